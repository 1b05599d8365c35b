//! Destinations at which something may change.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_crds::interval::{next, previous};
use egressnat_e2e::topology::{API_SERVER, ELSEWHERE, SERVER};
use ipnet::IpNet;

use crate::world::World;

/// Of every kind that no policy captures, and some others.
const EVERYWHERE: [&str; 14] = [
    "127.0.0.1",
    "169.254.20.10",
    "169.254.255.255",
    "169.255.0.0",
    "223.255.255.255",
    "224.0.0.251",
    "255.255.255.254",
    "255.255.255.255",
    "::1",
    "::2",
    "fe80::1",
    "fec0::",
    "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "ff02::fb",
];

/// The ends of every range in the world, one before and one after each, and every address in it. Not the
/// unspecified ones: no packet goes there.
pub fn destinations(world: &World) -> BTreeSet<IpAddr> {
    let of_policies = world
        .policies
        .iter()
        .flat_map(|p| p.spec.destination_cidrs.iter().chain(&p.spec.excluded_cidrs))
        .map(|c| c.parse().unwrap());
    let of_nodes = world.nodes.iter().flat_map(|n| n.spec.pod_cidrs.clone());
    let of_services = world.service_cidrs.iter().flat_map(|s| s.spec.cidrs.clone());
    let of_values = world.values.cluster_cidrs.iter().copied();
    let ranges: Vec<IpNet> = of_policies
        .chain(of_nodes)
        .chain(of_services)
        .chain(of_values)
        .collect();
    let ends = ranges.iter().flat_map(|r| {
        let (first, last) = (r.network(), r.broadcast());
        [Some(first), Some(last), previous(first), next(last)]
    });
    let nodes = world
        .nodes
        .iter()
        .flat_map(|n| n.status.addresses.iter().map(|a| a.address));
    let reported = world.plans.iter().flat_map(|p| &p.status.interfaces);
    let reported = reported.flat_map(|i| i.addresses.clone());
    let pods = world.pods.iter().flat_map(|p| p.ips());
    let hosts = [SERVER, ELSEWHERE, API_SERVER].into_iter().flat_map(|d| d.both());
    let everywhere = EVERYWHERE.iter().map(|a| a.parse().unwrap());
    let all = ends
        .flatten()
        .chain(nodes)
        .chain(reported)
        .chain(pods)
        .chain(hosts);
    all.chain(everywhere).filter(|a| !a.is_unspecified()).collect()
}
