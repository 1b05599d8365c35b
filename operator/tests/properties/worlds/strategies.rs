//! How worlds are drawn.

use proptest::collection::vec;
use proptest::prelude::*;

use super::{CIDRS, Families, GatewaySeed, NAMED, NodeSeed, PodSeed, PolicySeed, Seeds};

prop_compose! {
    fn node()(ready in proptest::bool::weighted(0.8), ranges in any::<bool>(), addresses in proptest::bool::weighted(0.9))
        -> NodeSeed
    {
        NodeSeed { number: 0, ready, ranges, addresses }
    }
}

prop_compose! {
    fn pod()(
        (node, namespace, app) in (0..4usize, 0..2usize, 0..3usize),
        elsewhere in proptest::option::weighted(0.4, 0..4usize),
        host in proptest::option::weighted(0.9, 1..5u8),
        phase in proptest::sample::select(vec!["Running", "Running", "Running", "Pending", "Succeeded", "Failed"]),
        host_network in proptest::bool::weighted(0.1),
        deleting in proptest::bool::weighted(0.2),
        created in 0..3i64,
    ) -> PodSeed {
        PodSeed { number: 0, node, namespace, app, elsewhere, host, phase, host_network, deleting, created }
    }
}

prop_compose! {
    fn entry()(which in 1..8u8, namespace in 0..2usize, app in 0..3usize, node in 0..4usize)
        -> (Option<usize>, Option<usize>, Option<usize>)
    {
        let given = |bit: u8, value: usize| (which & bit != 0).then_some(value);
        (given(1, namespace), given(2, app), given(4, node))
    }
}

fn several() -> impl Strategy<Value = GatewaySeed> {
    let entries = proptest::sample::subsequence((0..=NAMED).collect::<Vec<usize>>(), 1..=4);
    let affinity = proptest::sample::select(vec!["None", "Prefer", "Require"]);
    (entries.prop_shuffle(), affinity).prop_map(|(entries, affinity)| GatewaySeed::Several(entries, affinity))
}

fn pairs() -> impl Strategy<Value = GatewaySeed> {
    let nodes = proptest::sample::subsequence((0..=4).collect::<Vec<usize>>(), 1..=4).prop_shuffle();
    let families = proptest::sample::select(vec![Families::V4, Families::V6, Families::Both]);
    (nodes, families).prop_map(|(nodes, families)| GatewaySeed::Pairs(nodes, families))
}

prop_compose! {
    fn policy()(
        priority in 0..3i32,
        created in 0..2i64,
        entries in vec(entry(), 1..3),
        destinations in vec(0..CIDRS.len(), 0..4),
        exclusions in vec(0..CIDRS.len(), 0..3),
        gateway in prop_oneof![
            (0..4usize).prop_map(GatewaySeed::V4),
            (0..4usize).prop_map(GatewaySeed::V6),
            pairs(),
            pairs(),
            Just(GatewaySeed::Chosen),
            several(),
            several(),
            Just(GatewaySeed::Unheld),
        ],
        ports in proptest::option::of(proptest::sample::select(vec!["20000-29999", "25000-39999"])),
        node_ip in any::<bool>(),
    ) -> PolicySeed {
        PolicySeed { number: 0, priority, created, entries, destinations, exclusions, gateway, ports, node_ip }
    }
}

/// Random worlds.
pub fn seeds() -> impl Strategy<Value = Seeds> {
    (vec(node(), 1..5), vec(pod(), 0..9), vec(policy(), 0..6)).prop_map(
        |(mut nodes, mut pods, mut policies)| {
            nodes.iter_mut().enumerate().for_each(|(i, n)| n.number = i);
            pods.iter_mut().enumerate().for_each(|(i, p)| p.number = i);
            policies.iter_mut().enumerate().for_each(|(i, p)| p.number = i);
            Seeds {
                nodes,
                pods,
                policies,
            }
        },
    )
}
