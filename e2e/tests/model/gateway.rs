//! The model's answer to which node is a policy's gateway, and with which addresses.

use std::net::IpAddr;

use egressnat_crds::EgressNATPolicySpec;
use egressnat_crds::plan::{Family, NodeInterface};

use crate::selector::matches;
use crate::world::{Node, Policy, World};

/// A gateway.
pub struct Gateway {
    pub node: String,
    /// At most one of each family, at least one.
    pub addresses: Vec<IpAddr>,
}

/// The policy's gateway. Of several that could be, a Ready one, then the one that is it now, then the one whose
/// name sorts first.
pub fn gateway(world: &World, policy: &Policy) -> Option<Gateway> {
    let current = policy.status.gateways.first().map(|g| &g.node);
    let mut candidates = Vec::new();
    for node in &world.nodes {
        let addresses = addresses(world, &policy.spec, node);
        // Nobody could tunnel to a node without an underlay address.
        if !addresses.is_empty() && underlay(world, node).is_some() {
            candidates.push((node, addresses));
        }
    }
    let best = candidates.into_iter().min_by_key(|(node, _)| {
        let name = &node.metadata.name;
        (!is_ready(node), current != Some(name), name)
    });
    best.map(|(node, addresses)| Gateway {
        node: node.metadata.name.clone(),
        addresses,
    })
}

/// The addresses that the user wrote.
pub fn named_addresses(spec: &EgressNATPolicySpec) -> Vec<IpAddr> {
    let mut texts: Vec<&String> = spec.egress_source_ip.iter().collect();
    texts.extend(&spec.egress_source_ips);
    if let Some(gateway) = &spec.egress_gateway {
        texts.extend(&gateway.egress_ip);
        texts.extend(&gateway.egress_ips);
    }
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

/// The node's address under the tunnel: its first InternalIP of the family that most nodes have first.
pub fn underlay(world: &World, node: &Node) -> Option<IpAddr> {
    let firsts: Vec<IpAddr> = world
        .nodes
        .iter()
        .filter_map(|n| n.internal_ips().next())
        .collect();
    let v6 = firsts.iter().filter(|a| a.is_ipv6()).count();
    let is_v6 = v6 > firsts.len() - v6;
    node.internal_ips().find(|a| a.is_ipv6() == is_v6)
}

/// The addresses that a node holds: as its agent says, or, while it has said nothing, as the kubelet does.
pub fn held(world: &World, node: &Node) -> Vec<IpAddr> {
    let interfaces = interfaces(world, node);
    match interfaces.is_empty() {
        true => node.internal_ips().collect(),
        false => interfaces.iter().flat_map(|i| i.addresses.clone()).collect(),
    }
}

/// The addresses with which the node would send as the policy's gateway. None where it cannot be that.
fn addresses(world: &World, spec: &EgressNATPolicySpec, node: &Node) -> Vec<IpAddr> {
    if let Some(gateway) = &spec.egress_gateway
        && !matches(&gateway.node_selector, &node.metadata.labels)
    {
        return Vec::new();
    }
    let named = named_addresses(spec);
    if !named.is_empty() {
        let held = held(world, node);
        return match named.iter().all(|a| held.contains(a)) {
            true => named,
            false => Vec::new(),
        };
    }
    let interface = spec.egress_gateway.as_ref().and_then(|g| g.interface.as_ref());
    let interfaces = interfaces(world, node);
    let families = [Family::IPv4, Family::IPv6].into_iter();
    let found = families.filter_map(|family| {
        let usable: Vec<IpAddr> = match interface {
            Some(name) => addresses_of(interfaces, |i| i.name == *name),
            None if interfaces.is_empty() => node.internal_ips().collect(),
            None => addresses_of(interfaces, |i| i.default_route.contains(&family)),
        };
        usable.into_iter().find(|a| Family::from(*a) == family)
    });
    found.collect()
}

fn addresses_of(interfaces: &[NodeInterface], wanted: impl Fn(&NodeInterface) -> bool) -> Vec<IpAddr> {
    let wanted = interfaces.iter().filter(|i| wanted(i));
    wanted.flat_map(|i| i.addresses.clone()).collect()
}

/// What the node's agent has said.
pub fn interfaces<'a>(world: &'a World, node: &Node) -> &'a [NodeInterface] {
    let plan = world.plans.iter().find(|p| p.metadata.name == node.metadata.name);
    plan.map_or(&[], |p| &p.status.interfaces)
}

fn is_ready(node: &Node) -> bool {
    let conditions = &node.status.conditions;
    conditions.iter().any(|c| c.kind == "Ready" && c.status == "True")
}
