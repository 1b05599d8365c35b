//! Policies that have no source port left for a destination, in words.

use std::collections::BTreeSet;

use egressnat_crds::plan::ExhaustedPorts;

use crate::condition::sentences_and_advice;
use crate::plan::PolicyOutcome;
use crate::world::World;

/// What the agents of a policy's gateways say, and what to do. None where they have ports left.
pub fn message(policy: &str, outcome: &PolicyOutcome, world: &World) -> Option<String> {
    let gateways = outcome.gateways.iter().filter_map(|g| g.gateway.as_ref());
    let nodes: BTreeSet<&str> = gateways.map(|g| g.node.as_str()).collect();
    let mut exhausted = Vec::new();
    for node in nodes {
        let status = world.plans.get(node).map(|p| &p.status);
        let lists = status.into_iter().flat_map(|s| &s.exhausted_ports);
        exhausted.extend(lists.filter(|e| e.policy == policy).map(|e| sentence(node, e)));
    }
    sentences_and_advice(
        exhausted.iter().map(String::as_str),
        "further connections there are dropped; widen sourcePorts, or use more egressSourceIPs or egressGateways",
    )
}

fn sentence(node: &str, exhausted: &ExhaustedPorts) -> String {
    let ExhaustedPorts {
        policy: _,
        address,
        source_ports,
        protocol,
        destination,
        port,
    } = exhausted;
    let protocol = match protocol {
        1 | 58 => "ICMP".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        132 => "SCTP".into(),
        136 => "UDP-Lite".into(),
        other => format!("protocol {other}"),
    };
    let port = port.map(|p| format!(" port {p}")).unwrap_or_default();
    format!(
        "{node} has no source port of {source_ports} left on {address} for {protocol} to {destination}{port}"
    )
}
