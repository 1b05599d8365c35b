//! What must become of a pod's packet, from the API's text alone.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use egressnat_crds::EgressNATPolicySpec;
use egressnat_crds::policy::{NoGateway, PodSelection};
use egressnat_crds::ports::PortRange;
use egressnat_crds::selector::{LabelSelector, Labels};
use ipnet::IpNet;

use crate::gateway::{Gateway, choices, gateways, underlay};
use crate::selector::{is_satisfiable, matches};
use crate::world::{Node, Pod, Policy, World};

/// What a policy does to a packet, or why none does anything. Where the API does not say which of its gateways a pod
/// uses, each possibility.
pub type Verdict = Result<Vec<Capture>, NotCaptured>;

/// What a policy does to a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capture {
    /// It leaves by the gateway with this address, and one of these ports if not any.
    Egress {
        policy: String,
        gateway: String,
        address: IpAddr,
        ports: Option<PortRange>,
    },
    /// No gateway can take it: it leaves as that of any other pod.
    NodeAddress { policy: String },
    /// No gateway can take it: it is lost.
    Dropped { policy: String },
}

/// Why no policy does anything to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotCaptured {
    /// The pod uses its node's network.
    HostNetwork,
    /// The pod has ended.
    Ended,
    /// The pod is on no node, or on one that is gone.
    NoNode,
    /// The pod has no address of the destination's family.
    NoAddress,
    /// The pod's address is another pod's by now.
    TakenOver,
    /// Loopback, link-local, multicast, broadcast.
    NeverRouted,
    /// A pod, a Service, a node, the API server.
    InCluster,
    /// No policy selects the pod for this destination.
    NoPolicy,
}

/// A verdict in words.
pub fn say(verdict: &Verdict) -> String {
    match verdict {
        Err(why) => format!("not captured: {why:?}"),
        Ok(captures) => {
            let captures: Vec<String> = captures.iter().map(ToString::to_string).collect();
            captures.join(" or ")
        }
    }
}

impl fmt::Display for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Egress {
                policy,
                gateway,
                address,
                ports,
            } => {
                write!(f, "{policy}: {gateway} sends with {address}")?;
                ports.map_or(Ok(()), |ports| write!(f, ", ports {ports}"))
            }
            Self::NodeAddress { policy } => write!(f, "{policy}: node address"),
            Self::Dropped { policy } => write!(f, "{policy}: dropped"),
        }
    }
}

/// What must become of a packet of `pod` to `destination`.
pub fn expected(world: &World, pod: &Pod, destination: IpAddr) -> Verdict {
    if pod.spec.host_network {
        return Err(NotCaptured::HostNetwork);
    }
    if has_ended(pod) {
        return Err(NotCaptured::Ended);
    }
    let node = pod.spec.node_name.as_deref().and_then(|n| world.node(n));
    let node = node.ok_or(NotCaptured::NoNode)?;
    let source = pod.ips().find(|ip| ip.is_ipv4() == destination.is_ipv4());
    let source = source.ok_or(NotCaptured::NoAddress)?;
    if owner(world, source).map(|p| &p.metadata.uid) != Some(&pod.metadata.uid) {
        return Err(NotCaptured::TakenOver);
    }
    if is_never_routed(destination) {
        return Err(NotCaptured::NeverRouted);
    }
    if is_in_cluster(world, destination) {
        return Err(NotCaptured::InCluster);
    }
    let mut policies: Vec<&Policy> = world.policies.iter().collect();
    policies.sort_by_key(|p| {
        (
            Reverse(p.spec.priority),
            &p.metadata.creation_timestamp,
            &p.metadata.name,
        )
    });
    for policy in policies {
        if applies(&policy.spec, destination)
            && selects(world, &policy.spec, pod, node)
            && was_ever_accepted(policy)
        {
            return Ok(what_happens(world, policy, node, destination));
        }
    }
    Err(NotCaptured::NoPolicy)
}

/// By each gateway that the pod may use; without one, by none.
fn what_happens(world: &World, policy: &Policy, node: &Node, destination: IpAddr) -> Vec<Capture> {
    // Of a spec that is refused now, only the pods and destinations are known.
    let cases = match is_refused(&policy.spec) {
        true => vec![Vec::new()],
        false => gateways(world, policy, node),
    };
    let mut captures: BTreeSet<Capture> = BTreeSet::new();
    for gateways in cases {
        if gateways.is_empty() {
            captures.insert(by(world, policy, node, destination, None));
        }
        let each = gateways.into_iter();
        captures.extend(each.map(|g| by(world, policy, node, destination, Some(g))));
    }
    captures.into_iter().collect()
}

/// By the gateway, if there is one that serves the family and that the node can reach.
fn by(world: &World, policy: &Policy, node: &Node, destination: IpAddr, gateway: Option<Gateway>) -> Capture {
    let name = policy.metadata.name.clone();
    let reachable = gateway.filter(|g| g.node == node.metadata.name || underlay(world, node).is_some());
    let served = reachable.and_then(|g| {
        let of_family = |a: &&IpAddr| a.is_ipv4() == destination.is_ipv4();
        let address = g.addresses.iter().find(of_family).copied();
        address.map(|address| (g.node, address))
    });
    match (served, policy.spec.no_gateway) {
        (Some((gateway, address)), _) => Capture::Egress {
            policy: name,
            gateway,
            address,
            ports: policy.spec.source_ports.as_deref().map(|p| p.parse().unwrap()),
        },
        (None, NoGateway::Drop) => Capture::Dropped { policy: name },
        (None, NoGateway::NodeIP) => Capture::NodeAddress { policy: name },
    }
}

/// The pod that an address belongs to: of those that may still send, one that is not being deleted, then the
/// newest.
pub fn owner(world: &World, address: IpAddr) -> Option<&Pod> {
    let claims = world.pods.iter().filter(|p| {
        let has_it = p.ips().any(|ip| ip == address);
        has_it && !p.spec.host_network && !has_ended(p)
    });
    claims.max_by_key(|p| {
        let stays = p.metadata.deletion_timestamp.is_none();
        (stays, &p.metadata.creation_timestamp)
    })
}

/// Whether a pod has ended: its addresses are free.
pub fn has_ended(pod: &Pod) -> bool {
    pod.status.phase == "Succeeded" || pod.status.phase == "Failed"
}

fn is_never_routed(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(a) => a.is_loopback() || a.is_link_local() || a.is_multicast() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local() || a.is_multicast(),
    }
}

/// Pods, Services, nodes, the API server.
fn is_in_cluster(world: &World, destination: IpAddr) -> bool {
    let pods = world.nodes.iter().flat_map(|n| &n.spec.pod_cidrs);
    let services = world.service_cidrs.iter().flat_map(|s| &s.spec.cidrs);
    let mut ranges = pods.chain(services).chain(&world.values.cluster_cidrs);
    let of_nodes = world.nodes.iter().flat_map(|n| {
        let reported = world
            .plans
            .iter()
            .filter(|p| p.metadata.name == n.metadata.name)
            .flat_map(|p| &p.status.interfaces)
            .flat_map(|i| &i.addresses);
        n.status.addresses.iter().map(|a| &a.address).chain(reported)
    });
    let endpoints = world.endpoint_slices.iter().flat_map(|s| &s.endpoints);
    let mut hosts = of_nodes.chain(endpoints.flat_map(|e| &e.addresses));
    ranges.any(|r| r.contains(&destination)) || hosts.any(|h| *h == destination)
}

/// A spec that is refused does nothing, unless an earlier one was accepted: that one left its id.
fn was_ever_accepted(policy: &Policy) -> bool {
    !is_refused(&policy.spec) || policy.status.id.is_some()
}

/// A spec that cannot mean anything: a selector that nothing can match, no destination left, or none that the
/// egress addresses could serve, or no ports.
pub fn is_refused(spec: &EgressNATPolicySpec) -> bool {
    let ports = spec.source_ports.as_deref().map(str::parse::<PortRange>);
    if ports.is_some_and(|ports| ports.is_err()) {
        return true;
    }
    let of_entries = spec.selectors.iter().flat_map(selectors_of);
    let choices = choices(spec);
    let of_gateways = choices.iter().filter_map(|c| c.selector);
    if !of_entries.chain(of_gateways).all(is_satisfiable) {
        return true;
    }
    let included = cidrs(&spec.destination_cidrs);
    let served =
        |c: &IpNet, addresses: &[IpAddr]| addresses.iter().any(|a| a.is_ipv4() == c.addr().is_ipv4());
    let useless =
        |addresses: &[IpAddr]| !addresses.is_empty() && !included.iter().any(|c| served(c, addresses));
    if !included.is_empty() && choices.iter().any(|c| useless(&c.addresses)) {
        return true;
    }
    nothing_left(&included, &cidrs(&spec.excluded_cidrs))
}

/// Whether the exclusions cover all destinations. Every address at which that can change is tried: the first of
/// each destination, and the one after the last of each exclusion.
fn nothing_left(included: &[IpNet], excluded: &[IpNet]) -> bool {
    let everything = cidrs(&["0.0.0.0/0".into(), "::/0".into()]);
    let included = if included.is_empty() {
        &everything
    } else {
        included
    };
    let firsts = included.iter().map(|c| c.network());
    let afters = excluded
        .iter()
        .filter_map(|c| egressnat_crds::interval::next(c.broadcast()));
    let mut tried = firsts.chain(afters);
    !tried.any(|a| included.iter().any(|c| c.contains(&a)) && !excluded.iter().any(|c| c.contains(&a)))
}

/// Any entry: all of its selectors.
fn selects(world: &World, spec: &EgressNATPolicySpec, pod: &Pod, node: &Node) -> bool {
    let namespace = world
        .namespaces
        .iter()
        .find(|n| n.metadata.name == pod.metadata.namespace);
    let namespace = namespace.map(|n| n.metadata.labels.clone()).unwrap_or_default();
    spec.selectors.iter().any(|entry| {
        matches_if_given(&entry.pod_selector, &pod.metadata.labels)
            && matches_if_given(&entry.namespace_selector, &namespace)
            && matches_if_given(&entry.node_selector, &node.metadata.labels)
    })
}

fn matches_if_given(selector: &Option<LabelSelector>, labels: &Labels) -> bool {
    match selector {
        None => true,
        Some(selector) => matches(selector, labels),
    }
}

fn selectors_of(entry: &PodSelection) -> impl Iterator<Item = &LabelSelector> {
    let all = [
        &entry.pod_selector,
        &entry.namespace_selector,
        &entry.node_selector,
    ];
    all.into_iter().flatten()
}

/// Whether a destination is among the policy's, less its own exclusions.
fn applies(spec: &EgressNATPolicySpec, destination: IpAddr) -> bool {
    let included = cidrs(&spec.destination_cidrs);
    let excluded = cidrs(&spec.excluded_cidrs);
    (included.is_empty() || included.iter().any(|c| c.contains(&destination)))
        && !excluded.iter().any(|c| c.contains(&destination))
}

fn cidrs(texts: &[String]) -> Vec<IpNet> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}
