//! Packets that came to a node which is no gateway for them, as the nodes' own counters tell: none, while no source is
//! pointed at a gateway before that one is ready, and no gateway forgets a policy before its sources.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

use crate::{cluster::Cluster, error::Result};

/// The counters: an id that is not known, a peer that is not, a peer's pods that are not.
const COUNTERS: [&str; 3] = ["drop_unknown_id", "drop_not_peer", "drop_spoofed"];

/// The sum over all nodes, through tables that are made anew.
#[derive(Debug, Default)]
pub struct Misdirected {
    last: BTreeMap<(usize, &'static str), u64>,
    sum: u64,
}

impl Misdirected {
    /// Looks at the counters; returns the sum so far.
    ///
    /// # Errors
    /// When a node is not up.
    pub fn look(&mut self, cluster: &Cluster) -> Result<u64> {
        for (index, node) in cluster.nodes().iter().enumerate() {
            let mut command = Command::new("nft");
            command.args(["--json", "list", "counters", "table", "inet", "egressnat"]);
            // A node without any policy has no table.
            let listed = node.netns()?.output(&mut command).unwrap_or_default();
            self.take(index, &serde_json::from_str(&listed).unwrap_or_default());
        }
        Ok(self.sum)
    }

    /// What a node's nft has listed.
    fn take(&mut self, node: usize, listed: &Value) {
        let items = listed["nftables"].as_array();
        let counters = items.into_iter().flatten().filter_map(|item| item.get("counter"));
        for counter in counters {
            let Some(name) = COUNTERS.into_iter().find(|name| counter["name"] == *name) else {
                continue;
            };
            let packets = counter["packets"].as_u64().unwrap_or_default();
            let last = self.last.insert((node, name), packets).unwrap_or_default();
            self.sum += if packets < last { packets } else { packets - last };
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counters_add_up_also_when_they_begin_anew() {
        let mut misdirected = Misdirected::default();
        let counters = |unknown: u64, other: u64| {
            json!({"nftables": [
                {"metainfo": {}},
                {"counter": {"name": "drop_unknown_id", "packets": unknown}},
                {"counter": {"name": "drop_no_gateway", "packets": other}},
            ]})
        };
        for (unknown, sum) in [(3, 3), (5, 5), (2, 7)] {
            misdirected.take(0, &counters(unknown, 100));
            assert_eq!(misdirected.sum, sum);
        }
        misdirected.take(1, &counters(1, 100));
        assert_eq!(misdirected.sum, 8);
    }
}
