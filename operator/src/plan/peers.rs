//! Who tunnels to whom, and which inner source addresses a gateway accepts from whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use egressnat_crds::plan::Peer;
use ipnet::IpNet;

use super::share::Share;

/// The inner source ranges that a gateway accepts from a source, sorted.
pub type Accepted = Arc<[IpNet]>;

/// The tunnels of the cluster: by gateway, then by source.
#[derive(Debug, Default)]
pub struct Tunnels(BTreeMap<String, BTreeMap<Arc<str>, Accepted>>);

impl Tunnels {
    /// The source has just these tunnels, by gateway, instead of those that it had `before`.
    pub fn replace(
        &mut self,
        source: &Arc<str>,
        before: &BTreeMap<String, Accepted>,
        after: &BTreeMap<String, Accepted>,
    ) {
        for gateway in before.keys().filter(|gateway| !after.contains_key(*gateway)) {
            if let Some(sources) = self.0.get_mut(gateway) {
                sources.remove(source);
                if sources.is_empty() {
                    self.0.remove(gateway);
                }
            }
        }
        for (gateway, accepted) in after {
            let sources = match self.0.get_mut(gateway) {
                Some(sources) => sources,
                None => self.0.entry(gateway.clone()).or_default(),
            };
            sources.insert(source.clone(), accepted.clone());
        }
    }

    /// The peers of a node with this share, by name.
    pub fn peers(&self, node: &str, share: &Share, shares: &BTreeMap<Arc<str>, Share>) -> Vec<Peer> {
        let nobody = BTreeMap::new();
        let sources = self.0.get(node).unwrap_or(&nobody);
        let gateways = share.tunnels.keys().map(String::as_str);
        let names: BTreeSet<&str> = sources.keys().map(|name| &**name).chain(gateways).collect();
        let peer = |name: &str| {
            Some(Peer {
                node: name.to_owned(),
                underlay: shares.get(name)?.underlay?,
                ranges: sources
                    .get(name)
                    .map(|ranges| ranges.to_vec())
                    .unwrap_or_default(),
            })
        };
        names.into_iter().filter_map(peer).collect()
    }
}

/// The node's pod ranges, sorted, where all the pods lie inside them, otherwise the pods' own addresses: some
/// networks hand out pod addresses without regard to the node's ranges.
pub fn accepted(ranges: &Accepted, ips: &BTreeSet<IpAddr>) -> Accepted {
    match ips.iter().all(|ip| ranges.iter().any(|range| range.contains(ip))) {
        true => ranges.clone(),
        false => ips.iter().copied().map(IpNet::from).collect(),
    }
}
