//! Packets that came to a node which is no gateway for them: none, while no source is pointed at a gateway before that
//! one is ready, and no gateway forgets a policy or a source before its sources have gone elsewhere.
//!
//! The node's own counter tells of ids that it does not know. Its counter of what comes from no peer tells of replies as
//! well, which are on their way when the last policy leaves a source; so the hunt looks itself, before the node's rules
//! and after, at what carries an id, as replies do not. Sources that are no peer's pods (`drop_spoofed`) say nothing: a
//! reply that is still on its way when its connection is cut has such a one.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

use crate::{cluster::Cluster, error::Result, netns::Netns, topology::TUNNEL_PORT};

/// Of an id that the node does not know.
const UNKNOWN: [&str; 3] = ["inet", "egressnat", "drop_unknown_id"];
/// Tunnelled packets with an id, before the node's rules that know its peers and after them.
const CAME: [&str; 3] = ["inet", "hunt", "came"];
const PASSED: [&str; 3] = ["inet", "hunt", "passed"];
/// The priority of those rules.
const RAW: i32 = -300;
/// Where the id is: in bits behind the UDP header's begin (8 bytes, and 2 of the VXLAN header).
const ID: &str = "@th,80,16";

/// What the counters said last.
#[derive(Debug)]
pub struct Misdirected {
    last: BTreeMap<(usize, &'static str), u64>,
}

impl Misdirected {
    /// Begins to count on every node.
    ///
    /// # Errors
    /// When a node's nft refuses.
    pub fn watch(cluster: &Cluster) -> Result<Self> {
        let chain = |counter: &str, priority: i32| {
            format!(
                "counter {counter} {{ }}
                chain {counter} {{
                    type filter hook prerouting priority {priority};
                    udp dport {TUNNEL_PORT} {ID} != 0 counter name {counter}
                }}"
            )
        };
        let (before, after) = (chain(CAME[2], RAW - 1), chain(PASSED[2], RAW + 1));
        for node in cluster.nodes() {
            node.netns()?
                .nft(&format!("table inet hunt {{ {before}\n{after}\n }}"))?;
        }
        let last = BTreeMap::new();
        Ok(Self { last })
    }

    /// Looks at the counters; returns what came since the last look: how many, where and why.
    ///
    /// # Errors
    /// When a node is not up.
    pub fn look(&mut self, cluster: &Cluster) -> Result<Vec<(u64, String)>> {
        let mut found = Vec::new();
        for (index, node) in cluster.nodes().iter().enumerate() {
            let netns = node.netns()?;
            // In this order: what comes in between has passed, and is not taken for refused.
            let came = packets(&netns, CAME);
            let passed = packets(&netns, PASSED);
            let refused = self.more(index, "from no peer", came.saturating_sub(passed));
            let unknown = packets(&netns, UNKNOWN);
            let unknown = self.since_anew(index, "of an unknown id", unknown);
            for (count, why) in [refused, unknown].into_iter().filter(|(count, _)| *count > 0) {
                found.push((
                    count,
                    format!("{count} packets misdirected to {}: {why}", node.spec().name),
                ));
            }
        }
        Ok(found)
    }

    /// By how much a number is above what it ever was.
    fn more(&mut self, node: usize, why: &'static str, now: u64) -> (u64, &'static str) {
        let most = self.last.entry((node, why)).or_default();
        let more = now.saturating_sub(*most);
        *most = now.max(*most);
        (more, why)
    }

    /// By how much a counter is above what it was, which begins at 0 when its table is made anew.
    fn since_anew(&mut self, node: usize, why: &'static str, now: u64) -> (u64, &'static str) {
        let last = self.last.insert((node, why), now).unwrap_or_default();
        (now.checked_sub(last).unwrap_or(now), why)
    }
}

/// What a counter says: nothing, where its table is not there, as on a node without any policy.
fn packets(netns: &Netns, counter: [&str; 3]) -> u64 {
    let mut list = Command::new("nft");
    list.args(["--json", "list", "counter"]).args(counter);
    packets_of(&netns.output(&mut list).unwrap_or_default())
}

fn packets_of(listed: &str) -> u64 {
    let listed: Value = serde_json::from_str(listed).unwrap_or_default();
    let items = listed["nftables"].as_array();
    let mut counters = items.into_iter().flatten().filter_map(|item| item.get("counter"));
    counters
        .find_map(|counter| counter["packets"].as_u64())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn misdirected() -> Misdirected {
        Misdirected {
            last: BTreeMap::new(),
        }
    }

    #[test]
    fn each_look_tells_what_is_new_also_when_a_counter_begins_anew() {
        let mut misdirected = misdirected();
        for (node, now, more) in [(0, 3, 3), (0, 5, 2), (0, 2, 2), (0, 2, 0), (1, 2, 2)] {
            assert_eq!(misdirected.since_anew(node, "why", now), (more, "why"));
        }
    }

    #[test]
    fn what_only_seemed_to_have_passed_is_not_told_twice() {
        let mut misdirected = misdirected();
        for (now, more) in [(3, 3), (2, 0), (3, 0), (4, 1)] {
            assert_eq!(misdirected.more(0, "why", now), (more, "why"));
        }
    }

    #[test]
    fn a_counter_is_read_from_what_nft_lists() {
        let listed =
            r#"{"nftables": [{"metainfo": {}}, {"counter": {"name": "came", "packets": 7, "bytes": 9}}]}"#;
        assert_eq!(packets_of(listed), 7);
        assert_eq!(packets_of(""), 0);
    }
}
