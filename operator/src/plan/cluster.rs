//! The cluster's own ranges, which no policy captures.

use std::net::IpAddr;

use egressnat_crds::interval::Interval;
use ipnet::IpNet;

use crate::ranges;
use crate::world::World;

/// Pods, Services, every address of every node, the API servers, and what the command line adds; merged.
///
/// A node's addresses are those that the API server knows and those that its agent sees: a secondary address
/// of a node is still the node, and its pods must reach it as themselves.
pub fn ranges(world: &World) -> Vec<Interval> {
    let nodes = || world.nodes.values();
    let nets = nodes()
        .flat_map(|n| &n.pod_cidrs)
        .chain(world.service_cidrs.values().flatten())
        .chain(&world.config.service_cidrs)
        .chain(&world.config.cluster_cidrs);
    let of_known_nodes = world
        .plans
        .iter()
        .filter(|(name, _)| world.nodes.contains_key(*name));
    let addresses = nodes()
        .flat_map(|n| n.addresses.iter().chain(&n.internal_ips))
        .chain(of_known_nodes.flat_map(|(_, p)| p.status.interfaces.iter().flat_map(|i| &i.addresses)))
        .chain(world.api_servers.values().flatten());
    let net = |n: &IpNet| Interval::from(*n);
    let address = |a: &IpAddr| ranges::single(*a);
    ranges::merge(nets.map(net).chain(addresses.map(address)))
}
