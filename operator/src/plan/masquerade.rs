//! The default local egress: what every node masquerades of its own pods' packets.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use egressnat_crds::interval::Interval;
use egressnat_crds::never::{self, Kind};
use egressnat_crds::plan::Masquerade;

use super::peers::{Accepted, accepted};
use crate::ranges;
use crate::world::{MasqueradeConfig, Pod};

/// Destinations to which packets keep their source, where the installation asks for a masquerade; `cluster` are the
/// cluster's own ranges.
pub fn except(config: &MasqueradeConfig, cluster: &[Interval]) -> Vec<Interval> {
    let fixed = never::captured().filter(|(kind, _)| *kind != Kind::LinkLocal || !config.link_local);
    let nets = fixed
        .map(|(_, net)| net)
        .chain(config.except.iter().copied())
        .map(Interval::from);
    ranges::merge(cluster.iter().copied().chain(nets))
}

/// The masquerade of a node with these pod ranges and these pods that have a network of their own; none while nothing
/// is known of its pods' addresses.
pub fn of_node(ranges: &Accepted, pods: &[Arc<Pod>], except: &[Interval]) -> Option<Masquerade> {
    let ips: BTreeSet<IpAddr> = pods.iter().flat_map(|pod| pod.ips.iter().copied()).collect();
    let sources = accepted(ranges, &ips);
    (!sources.is_empty()).then(|| Masquerade {
        sources: sources.to_vec(),
        except: except.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{plan::plan, testing};

    const NODES: &str = r#"
kind: Node
metadata: {name: ranges, uid: ranges}
spec: {podCIDRs: [10.1.0.0/24, "fd00:1::/64"]}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
kind: Node
metadata: {name: elsewhere, uid: elsewhere}
spec: {podCIDRs: [10.2.0.0/24]}
---
kind: Node
metadata: {name: empty, uid: empty}
---
kind: Pod
metadata: {namespace: a, name: inside, uid: inside}
spec: {nodeName: ranges}
status: {phase: Running, podIPs: [{ip: 10.1.0.9}, {ip: "fd00:1::9"}]}
---
kind: Pod
metadata: {namespace: a, name: hosts, uid: hosts}
spec: {nodeName: ranges, hostNetwork: true}
status: {phase: Running, podIPs: [{ip: 192.168.0.1}]}
---
kind: Pod
metadata: {namespace: a, name: outside, uid: outside}
spec: {nodeName: elsewhere}
status: {phase: Running, podIPs: [{ip: 10.99.0.9}]}
---
kind: Pod
metadata: {namespace: a, name: inside-too, uid: inside-too}
spec: {nodeName: elsewhere}
status: {phase: Running, podIPs: [{ip: 10.2.0.9}]}
---
kind: Pod
metadata: {namespace: a, name: ended, uid: ended}
spec: {nodeName: elsewhere}
status: {phase: Succeeded, podIPs: [{ip: 10.99.0.10}]}
"#;

    fn planned(config: Option<MasqueradeConfig>) -> BTreeMap<String, Option<Masquerade>> {
        let mut world = testing::world(NODES);
        world.config.masquerade = config;
        let plans = plan(&world).plans.into_iter();
        plans.map(|(node, plan)| (node, plan.masquerade)).collect()
    }

    fn texts<T: ToString>(values: &[T]) -> Vec<String> {
        values.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nobody_masquerades_unasked() {
        assert!(planned(None).values().all(Option::is_none));
    }

    #[test]
    fn sources_are_the_nodes_ranges_or_its_pods_where_these_lie_elsewhere() {
        let of = planned(Some(MasqueradeConfig::default()));
        let sources = |node: &str| of[node].as_ref().map(|m| texts(&m.sources));
        assert_eq!(
            sources("ranges").unwrap(),
            ["10.1.0.0/24", "fd00:1::/64"],
            "the host-network pod is not of the node's pods"
        );
        assert_eq!(sources("elsewhere").unwrap(), ["10.2.0.9/32", "10.99.0.9/32"]);
        assert_eq!(sources("empty"), None);
    }

    #[test]
    fn the_cluster_and_what_the_installation_names_are_excepted() {
        let config = |link_local| {
            Some(MasqueradeConfig {
                except: vec!["10.1.1.0/24".parse().unwrap(), "203.0.113.0/24".parse().unwrap()],
                link_local,
            })
        };
        let except = |link_local| {
            let of = planned(config(link_local));
            texts(&of["ranges"].as_ref().unwrap().except)
        };
        let with = except(false);
        for range in [
            "10.1.0.0-10.1.1.255",
            "10.2.0.0-10.2.0.255",
            "192.168.0.1-192.168.0.1",
            "203.0.113.0-203.0.113.255",
            "224.0.0.0-239.255.255.255",
            "fd00:1::-fd00:1::ffff:ffff:ffff:ffff",
            "169.254.0.0-169.254.255.255",
        ] {
            assert!(with.contains(&range.to_owned()), "{range} in {with:?}");
        }
        let without = except(true);
        assert!(
            !texts(&without)
                .iter()
                .any(|r| r.starts_with("169.254.") || r.starts_with("fe80:"))
        );
        assert_eq!(without.len() + 2, with.len());
    }
}
