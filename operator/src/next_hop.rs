//! Egress addresses on interfaces that lead nowhere beyond their own networks, in words.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_crds::plan::{Family, NodeExit};

use crate::condition::sentences_and_advice;
use crate::plan::PolicyOutcome;
use crate::world::World;

/// What the agents of a policy's gateways say of its addresses, and what to do. None where all have a way.
///
/// Their packets reach the interface's own networks; to others, the gateway answers that there is no route.
pub fn message(outcome: &PolicyOutcome, world: &World) -> Option<String> {
    let mut sentences = BTreeSet::new();
    for gateway in outcome.gateways.iter().filter_map(|g| g.gateway.as_ref()) {
        let status = world.plans.get(&gateway.node).map(|p| &p.status);
        for exit in status.into_iter().flat_map(|s| &s.exits) {
            let stranded = exit.stranded().filter(|a| gateway.addresses.contains(a));
            sentences.extend(stranded.map(|address| sentence(&gateway.node, exit, *address)));
        }
    }
    sentences_and_advice(
        sentences.iter().map(String::as_str),
        "packets with it reach that interface's own networks, all others are refused as unreachable; add a \
         default route by that interface, of any metric or in any table",
    )
}

fn sentence(node: &str, exit: &NodeExit, address: IpAddr) -> String {
    let (family, interface) = (Family::from(address), &exit.interface);
    format!("{address} is on {interface} of {node}, which has no {family:?} next hop")
}
