//! Who tunnels to whom, and which inner source addresses a gateway accepts from whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::plan::{Family, Peer};
use ipnet::IpNet;

use crate::world::{Node, World};

/// The tunnels of the cluster.
#[derive(Debug, Default)]
pub struct Tunnels<'a> {
    /// By gateway, then by source: the addresses of the source's pods that use the gateway.
    sources: BTreeMap<&'a str, BTreeMap<&'a str, BTreeSet<IpAddr>>>,
    /// By source: the gateways that its pods use.
    gateways: BTreeMap<&'a str, BTreeSet<&'a str>>,
}

impl<'a> Tunnels<'a> {
    /// A pod of `source` with these addresses uses the gateway `gateway`.
    pub fn add(&mut self, source: &'a str, gateway: &'a str, ips: &[IpAddr]) {
        if source != gateway {
            let by_source = self.sources.entry(gateway).or_default();
            by_source.entry(source).or_default().extend(ips);
            self.gateways.entry(source).or_default().insert(gateway);
        }
    }

    /// The peers of a node, by name.
    pub fn peers(&self, node: &str, world: &World, underlay: Family) -> Vec<Peer> {
        let nobody = BTreeMap::new();
        let sources = self.sources.get(node).unwrap_or(&nobody);
        let gateways = self.gateways.get(node).into_iter().flatten();
        let names: BTreeSet<&str> = sources.keys().chain(gateways).copied().collect();
        let peer = |name: &str| {
            let known = world.nodes.get(name)?;
            let ips = sources.get(name);
            Some(Peer {
                node: name.to_owned(),
                underlay: known.underlay(underlay)?,
                ranges: ips.map(|ips| accepted(known, ips)).unwrap_or_default(),
            })
        };
        names.into_iter().filter_map(peer).collect()
    }
}

/// The node's pod ranges where all the pods lie inside them, otherwise the pods' own addresses: some
/// networks hand out pod addresses without regard to the node's ranges.
pub(super) fn accepted(node: &Node, ips: &BTreeSet<IpAddr>) -> Vec<IpNet> {
    let inside = |ip: &IpAddr| node.pod_cidrs.iter().any(|c| c.contains(ip));
    let mut ranges = match ips.iter().all(inside) {
        true => node.pod_cidrs.clone(),
        false => ips.iter().copied().map(IpNet::from).collect(),
    };
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}
