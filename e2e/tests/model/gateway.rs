//! The model's answer to which nodes are a policy's gateways, and with which addresses.

use std::net::IpAddr;

use egressnat_crds::EgressNATPolicySpec;
use egressnat_crds::plan::{Family, NodeInterface};
use egressnat_crds::policy::ZoneAffinity;
use egressnat_crds::selector::LabelSelector;

use crate::selector::matches;
use crate::world::{Node, Policy, World};

/// A gateway.
#[derive(Clone)]
pub struct Gateway {
    pub node: String,
    /// At most one of each family, at least one.
    pub addresses: Vec<IpAddr>,
    ready: bool,
    zone: Option<String>,
}

/// Label of a node with its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// What a spec says of one gateway.
pub struct Choice<'a> {
    /// The nodes that may be it: all that hold the addresses, where nothing is said.
    pub selector: Option<&'a LabelSelector>,
    /// The addresses that the user wrote.
    pub addresses: Vec<IpAddr>,
    interface: Option<&'a String>,
}

/// The gateways of a spec: one, or each of `egressGateways`, or each pair of `egressSourceIPs`.
pub fn choices(spec: &EgressNATPolicySpec) -> Vec<Choice<'_>> {
    let mut choices = Vec::new();
    for gateway in spec.egress_gateway.iter().chain(&spec.egress_gateways) {
        let texts = gateway.egress_ip.iter().chain(&gateway.egress_ips);
        choices.push(Choice {
            selector: Some(&gateway.node_selector),
            addresses: texts.map(|t| t.parse().unwrap()).collect(),
            interface: gateway.interface.as_ref(),
        });
    }
    let of_addresses = |addresses| Choice {
        selector: None,
        addresses,
        interface: None,
    };
    let single = spec.egress_source_ip.iter().map(|t| vec![t.parse().unwrap()]);
    choices.extend(single.map(of_addresses));
    choices.extend(pairs(&spec.egress_source_ips).into_iter().map(of_addresses));
    choices
}

/// The n-th IPv4 address with the n-th IPv6 address, where there are both.
fn pairs(texts: &[String]) -> Vec<Vec<IpAddr>> {
    let of_family = |is_v4: bool| {
        let all = texts.iter().map(|t| t.parse::<IpAddr>().unwrap());
        all.filter(|a| a.is_ipv4() == is_v4).collect::<Vec<_>>()
    };
    let (v4, v6) = (of_family(true), of_family(false));
    let pair = |n: usize| v4.get(n).into_iter().chain(v6.get(n)).copied().collect();
    (0..v4.len().max(v6.len())).map(pair).collect()
}

/// The gateways that a pod of `node` may use, in each case that the API leaves open; in a case without any there is none
/// for it.
pub fn gateways(world: &World, policy: &Policy, node: &Node) -> Vec<Vec<Gateway>> {
    let cases = settled(world, policy).into_iter();
    cases.map(|all| usable(policy, node, all)).collect()
}

/// Whether choices compete: which of them gets a gateway matters.
pub fn compete(world: &World, policy: &Policy) -> bool {
    settled(world, policy).len() > 1
}

/// Those of a policy's gateways that a pod of `node` may use.
fn usable(policy: &Policy, node: &Node, mut usable: Vec<Gateway>) -> Vec<Gateway> {
    let zone = node.metadata.labels.get(ZONE);
    let affinity = policy.spec.zone_affinity;
    let is_near = |g: &Gateway| zone.is_some() && g.zone.as_ref() == zone;
    if affinity == ZoneAffinity::Require {
        usable.retain(is_near);
    }
    if usable.iter().any(|g| g.ready) {
        usable.retain(|g| g.ready);
        if affinity == ZoneAffinity::Prefer && usable.iter().any(is_near) {
            usable.retain(is_near);
        }
    }
    usable
}

/// The policy's gateways. No two are the same node with the same addresses; which choice gets one that several could
/// have is not said: each possibility, in which the choices come one after the other and take what is left.
fn settled(world: &World, policy: &Policy) -> Vec<Vec<Gateway>> {
    let choices: Vec<Vec<Gateway>> = choices(&policy.spec)
        .iter()
        .map(|choice| candidates(world, policy, choice))
        .collect();
    let is_same = |a: &Gateway, b: &Gateway| a.node == b.node && a.addresses == b.addresses;
    let mut cases: Vec<Vec<Gateway>> = Vec::new();
    for order in orders(choices.len()) {
        let mut taken: Vec<Gateway> = Vec::new();
        for choice in order {
            let left = choices[choice]
                .iter()
                .find(|c| !taken.iter().any(|t| is_same(c, t)));
            taken.extend(left.cloned());
        }
        taken.sort_by(|a, b| (&a.node, &a.addresses).cmp(&(&b.node, &b.addresses)));
        let is_known = |case: &Vec<Gateway>| {
            case.len() == taken.len() && case.iter().zip(&taken).all(|(a, b)| is_same(a, b))
        };
        if !cases.iter().any(is_known) {
            cases.push(taken);
        }
    }
    cases
}

/// Every order of so many.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let mut orders = vec![Vec::new()];
    for next in 0..count {
        let longer = orders.into_iter().flat_map(|order: Vec<usize>| {
            (0..=order.len()).map(move |at| {
                let mut longer = order.clone();
                longer.insert(at, next);
                longer
            })
        });
        orders = longer.collect();
    }
    orders
}

/// The nodes for a choice, the best first: a Ready one, then the one that is it now, then the one whose name sorts
/// first.
fn candidates(world: &World, policy: &Policy, choice: &Choice<'_>) -> Vec<Gateway> {
    // Of several, the status says by a key which one an item is of; here it has none.
    let is_single = policy.spec.egress_source_ips.is_empty() && policy.spec.egress_gateways.is_empty();
    let current = policy
        .status
        .gateways
        .first()
        .filter(|_| is_single)
        .map(|g| &g.node);
    let mut candidates = Vec::new();
    for node in &world.nodes {
        let addresses = addresses(world, choice, node);
        // Nobody could tunnel to a node without an underlay address.
        if !addresses.is_empty() && underlay(world, node).is_some() {
            candidates.push((node, addresses));
        }
    }
    candidates.sort_by_key(|(node, _)| {
        let name = &node.metadata.name;
        (!is_ready(node), current != Some(name), name.clone())
    });
    let gateways = candidates.into_iter().map(|(node, addresses)| Gateway {
        node: node.metadata.name.clone(),
        addresses,
        ready: is_ready(node),
        zone: node.metadata.labels.get(ZONE).cloned(),
    });
    gateways.collect()
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

/// The addresses with which the node would send. None where it cannot be the gateway.
fn addresses(world: &World, choice: &Choice<'_>, node: &Node) -> Vec<IpAddr> {
    let fits = |selector| matches(selector, &node.metadata.labels);
    if !choice.selector.is_none_or(fits) {
        return Vec::new();
    }
    let named = &choice.addresses;
    if !named.is_empty() {
        let held = held(world, node);
        return match named.iter().all(|a| held.contains(a)) {
            true => named.clone(),
            false => Vec::new(),
        };
    }
    let interfaces = interfaces(world, node);
    let families = [Family::IPv4, Family::IPv6].into_iter();
    let found = families.filter_map(|family| {
        let usable: Vec<IpAddr> = match choice.interface {
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
