//! Clusters of one family: IPv4 alone on nodes that have IPv6 switched off, IPv6 alone on nodes without IPv4 addresses.

use std::process::Command;

use egressnat_agent::owned::Drop as DropReason;
use egressnat_e2e::topology::{
    FAMILIES, Family, Options, SEGMENT, SERVER, Topology, ask_tcp, knock_tcp, knock_udp,
};

use crate::{
    lab::{Lab, assert_dropped, ok},
    plan::Policy,
    snapshot::Snapshot,
};

/// A pod of the source node and one of the gateway leave with the gateway's address of this family.
fn policy(topology: &Topology, family: Family) -> Policy {
    let Topology { source, gateway, .. } = topology;
    Policy::new(7)
        .to(&SEGMENT)
        .via_only(gateway, &[gateway.egress.of(family)])
        .select(&source.pods[0])
        .select(&gateway.pods[0])
}

fn lab(family: Family) -> Lab {
    Lab::over(
        family,
        Options {
            only: Some(family),
            ..Options::default()
        },
    )
}

#[test]
fn one_family_is_enough() {
    for (family, other) in FAMILIES.into_iter().zip(FAMILIES.into_iter().rev()) {
        let lab = lab(family);
        let Topology { source, gateway, .. } = &lab.topology;
        lab.assert_seen(&source.pods[0], SERVER, source.address);
        ask_tcp(&source.pods[0].netns, SERVER.of(other)).expect_err("the pod has no other family");
        let before = lab.topology.nodes().map(Snapshot::of);
        let policies = [policy(&lab.topology, family)];
        lab.apply(&policies);
        lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
        lab.assert_seen(&gateway.pods[0], SERVER, gateway.egress);
        lab.assert_seen(&source.pods[1], SERVER, source.address);

        lab.source.distrust();
        assert!(!lab.apply(&policies).changed, "{family:?}: the same again");
        lab.remove();
        for (node, before) in lab.topology.nodes().into_iter().zip(&before) {
            before.assert_unchanged(node, "removed");
        }
        lab.assert_seen(&source.pods[0], SERVER, source.address);
    }
}

#[test]
fn one_family_without_a_gateway_is_dropped() {
    for family in FAMILIES {
        let lab = lab(family);
        let pod = &lab.topology.source.pods[0];
        lab.assert_seen(pod, SERVER, lab.topology.source.address);
        lab.apply(&[Policy::new(7).to(&SEGMENT).select(pod)]);
        ok(knock_tcp(&pod.netns, SERVER.of(family)));
        ok(knock_udp(&pod.netns, SERVER.of(family)));
        assert_dropped(&lab.source, DropReason::NoGateway, 2);
    }
}

/// Where IPv6 is off, nothing of it is written: rules and routes of a family that nobody has are nobody's business.
#[test]
fn nothing_of_ipv6_is_written_where_it_is_off() {
    let shown = |lab: &Lab| {
        let commands = [
            "ip -6 rule",
            "ip -6 route show table all",
            "ip -6 neigh show nud permanent",
        ];
        let output = |command| {
            let mut sh = Command::new("sh");
            ok(lab.topology.source.netns.output(sh.args(["-c", command])))
        };
        commands.map(output)
    };
    for (only, is_written) in [(None, true), (Some(Family::V4), false)] {
        let lab = Lab::new(Options {
            only,
            ..Options::default()
        });
        let before = shown(&lab);
        lab.apply(&[policy(&lab.topology, Family::V4)]);
        assert_eq!(shown(&lab) != before, is_written, "{only:?}: {before:?}");
    }
}
