//! Addresses that the gateways of a policy should hold and do not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::plan::PolicyOutcome;
use crate::world::World;

/// Addresses that are missing, by node.
pub type Missing<'a> = BTreeMap<&'a str, BTreeSet<IpAddr>>;

/// The addresses that the gateways' agents do not find on their nodes, by node.
pub fn addresses<'a>(outcome: &'a PolicyOutcome, world: &World) -> Missing<'a> {
    let mut by_node = Missing::new();
    for gateway in outcome.gateways.iter().filter_map(|g| g.gateway.as_ref()) {
        let plan = world.plans.get(&gateway.node);
        let missing = plan.map_or(&[][..], |p| &p.status.missing_addresses);
        for address in gateway.addresses.iter().filter(|a| missing.contains(a)) {
            by_node.entry(&gateway.node).or_default().insert(*address);
        }
    }
    by_node
}

/// The same in words, and what to do.
pub fn message(missing: &Missing<'_>) -> String {
    let sentence = |(node, addresses): (&&str, &BTreeSet<IpAddr>)| {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let addresses = addresses.join(" and ");
        format!(
            "{node} does not hold {addresses}: its packets are dropped; add the address to an interface of {node}"
        )
    };
    let sentences: Vec<String> = missing.iter().map(sentence).collect();
    sentences.join(". ")
}
