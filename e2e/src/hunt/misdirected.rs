//! Packets that came to a node which is no gateway for them, as the nodes' own counters tell: none, while no source is
//! pointed at a gateway before that one is ready, and no gateway forgets a policy before its sources.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

use crate::{cluster::Cluster, error::Result};

/// The counters: an id that is not known, and a peer that is not. Not among them are sources that are no peer's pods
/// (`drop_spoofed`): a reply that is still on its way when its connection is cut has such a one.
const COUNTERS: [&str; 2] = ["drop_unknown_id", "drop_not_peer"];

/// What the nodes' counters said last; a table that is made anew begins at 0.
#[derive(Debug, Default)]
pub struct Misdirected {
    last: BTreeMap<(usize, &'static str), u64>,
}

impl Misdirected {
    /// Looks at the counters; returns what came since the last look: how many, where and why.
    ///
    /// # Errors
    /// When a node is not up.
    pub fn look(&mut self, cluster: &Cluster) -> Result<Vec<(u64, String)>> {
        let mut found = Vec::new();
        for (index, node) in cluster.nodes().iter().enumerate() {
            let mut command = Command::new("nft");
            command.args(["--json", "list", "counters", "table", "inet", "egressnat"]);
            // A node without any policy has no table.
            let listed = node.netns()?.output(&mut command).unwrap_or_default();
            let news = self.take(index, &serde_json::from_str(&listed).unwrap_or_default());
            let told = |(count, counter)| {
                (
                    count,
                    format!("{count} packets misdirected to {}: {counter}", node.spec().name),
                )
            };
            found.extend(news.into_iter().map(told));
        }
        Ok(found)
    }

    /// What a node's nft has listed; returns what is more than last time.
    fn take(&mut self, node: usize, listed: &Value) -> Vec<(u64, &'static str)> {
        let items = listed["nftables"].as_array();
        let counters = items.into_iter().flatten().filter_map(|item| item.get("counter"));
        let mut news = Vec::new();
        for counter in counters {
            let Some(name) = COUNTERS.into_iter().find(|name| counter["name"] == *name) else {
                continue;
            };
            let packets = counter["packets"].as_u64().unwrap_or_default();
            let last = self.last.insert((node, name), packets).unwrap_or_default();
            let more = packets.checked_sub(last).unwrap_or(packets);
            if more > 0 {
                news.push((more, name));
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_look_tells_what_is_new_also_when_counters_begin_anew() {
        let mut misdirected = Misdirected::default();
        let counters = |unknown: u64, other: u64| {
            json!({"nftables": [
                {"metainfo": {}},
                {"counter": {"name": "drop_unknown_id", "packets": unknown}},
                {"counter": {"name": "drop_no_gateway", "packets": other}},
            ]})
        };
        for (unknown, more) in [(3, 3), (5, 2), (2, 2)] {
            let news = misdirected.take(0, &counters(unknown, 100));
            assert_eq!(news, [(more, "drop_unknown_id")]);
        }
        assert_eq!(misdirected.take(0, &counters(2, 200)), []);
        assert_eq!(misdirected.take(1, &counters(2, 100)), [(2, "drop_unknown_id")]);
    }
}
