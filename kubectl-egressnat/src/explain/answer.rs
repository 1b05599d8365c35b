//! What becomes of a pod's packets to one address.

use std::net::IpAddr;

use egressnat_operator::world::Pod;

use super::{Answer, Selecting};
use crate::cli::Destination;
use crate::place::place;
use crate::snapshot::Snapshot;
use crate::words;

/// Which policy captures packets to a destination, or why none does.
pub(super) fn answer(
    snapshot: &Snapshot,
    pod: &Pod,
    never: Option<&str>,
    policies: &[Selecting],
    Destination { address, port }: Destination,
) -> Answer {
    let winner = policies.iter().find(|p| words::contain(&p.wins, address));
    let because = match (never, place(snapshot, address, port)) {
        (Some(never), _) => Some(format!("no policy can select the pod: {never}")),
        (None, Some(place)) => Some(place.to_string()),
        (None, None)
            if !pod.ips.is_empty() && !pod.ips.iter().any(|ip| ip.is_ipv4() == address.is_ipv4()) =>
        {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            Some(format!("the pod has no {family} address to send from"))
        }
        (None, None) => winner.is_none().then(|| nobodys(snapshot, policies, address)),
    };
    Answer {
        address,
        port,
        captured_by: winner.filter(|_| because.is_none()).map(|p| p.name.clone()),
        not_captured_because: because,
    }
}

/// Why no policy has the destination.
fn nobodys(snapshot: &Snapshot, policies: &[Selecting], address: IpAddr) -> String {
    let excluded: Vec<String> = policies
        .iter()
        .filter_map(|policy| {
            let cidrs = &snapshot.specs.get(&policy.name)?.excluded_cidrs;
            let holds = |c: &&String| c.parse::<ipnet::IpNet>().is_ok_and(|net| net.contains(&address));
            let cidr = cidrs.iter().find(holds)?;
            Some(format!("policy {} excludes {cidr}", policy.name))
        })
        .collect();
    match (policies, excluded.is_empty()) {
        ([], _) => "no policy selects the pod".into(),
        (_, false) => format!(
            "{}, and no other policy of the pod has it",
            words::join(&excluded)
        ),
        (_, true) => {
            let names: Vec<&str> = policies.iter().map(|p| p.name.as_str()).collect();
            format!(
                "no policy that selects the pod ({}) has that destination",
                words::join(&names)
            )
        }
    }
}
