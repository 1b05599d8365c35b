//! Which way packets take, and whom the outside sees.

use egressnat_agent::owned::Drop as DropReason;
use egressnat_e2e::topology::{
    Cni, ELSEWHERE, FAMILIES, Family, Options, SEGMENT, SERVER, Topology, ask_tcp, ask_udp,
};

use crate::{
    lab::{Lab, assert_seen, is_tunnelled, ok},
    plan::{EVERYWHERE, Policy},
};

/// A policy for the first pod of the source node and of the gateway node.
fn policy(topology: &Topology) -> Policy {
    let Topology { source, gateway, .. } = topology;
    Policy::new(7)
        .to(&SEGMENT)
        .via(gateway, gateway.egress)
        .select(&source.pods[0])
        .select(&gateway.pods[0])
}

#[test]
fn a_selected_pod_on_another_node_leaves_with_the_egress_address_through_the_tunnel() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let pod = &source.pods[0];
    lab.assert_seen(pod, SERVER, source.address);
    lab.apply(&[policy(&lab.topology)]);
    lab.assert_seen(pod, SERVER, gateway.egress);
    for family in FAMILIES {
        let (own, egress) = (pod.address.of(family), gateway.egress.of(family));
        let mut tap = ok(lab.topology.tap());
        ok(ask_udp(&pod.netns, SERVER.of(family)));
        // There with the policy's id and the pod's address, out with the egress address, back without an id.
        ok(tap.wait_for("the tunnel's packet", |packet| {
            is_tunnelled(packet, source, 7, |inner| inner.source == own)
        }));
        ok(tap.wait_for("the translated packet", |packet| {
            packet.interface == "gateway" && packet.source == egress
        }));
        ok(tap.wait_for("the tunnel's reply", |packet| {
            is_tunnelled(packet, gateway, 0, |inner| inner.destination == own)
        }));
        // Nothing but the tunnel has the pod's address.
        assert_eq!(
            ok(tap.count(|packet| packet.source == own || packet.destination == own)),
            0
        );
    }
}

#[test]
fn a_selected_pod_on_the_gateway_node_leaves_with_the_egress_address() {
    let lab = Lab::new(Options::default());
    let Topology { gateway, .. } = &lab.topology;
    lab.assert_seen(&gateway.pods[0], SERVER, gateway.address);
    lab.apply(&[policy(&lab.topology)]);
    let mut tap = ok(lab.topology.tap());
    lab.assert_seen(&gateway.pods[0], SERVER, gateway.egress);
    assert_eq!(
        ok(tap.count(|packet| packet.tunnelled.is_some())),
        0,
        "it crosses no tunnel"
    );
}

#[test]
fn an_unselected_pod_keeps_its_nodes_address() {
    let lab = Lab::new(Options::default());
    lab.apply(&[policy(&lab.topology)]);
    let Topology {
        source,
        gateway,
        second,
        ..
    } = &lab.topology;
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
    for node in [source, gateway, second] {
        lab.assert_seen(&node.pods[1], SERVER, node.address);
    }
}

#[test]
fn destinations_outside_the_policy_are_untouched() {
    let lab = Lab::new(Options::default());
    lab.apply(&[policy(&lab.topology)]);
    let Topology { source, gateway, .. } = &lab.topology;
    for node in [source, gateway] {
        lab.assert_seen(&node.pods[0], SERVER, gateway.egress);
        lab.assert_seen(&node.pods[0], ELSEWHERE, node.address);
    }
}

#[test]
fn a_destination_beyond_the_segment_is_reached_by_the_gateways_routes() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let policy = policy(&lab.topology).to(&["198.51.100.0/24", "2001:db8:51::/48"]);
    lab.apply(&[policy]);
    for node in [source, gateway] {
        lab.assert_seen(&node.pods[0], ELSEWHERE, gateway.egress);
    }
}

/// Replies come out of the tunnel although every other device filters by strict reverse path, with the mark
/// in that lookup and without it.
#[test]
fn strict_reverse_path_filters_let_replies_pass_with_src_valid_mark_and_without() {
    for src_valid_mark in [false, true] {
        let lab = Lab::new(Options {
            src_valid_mark,
            ..Options::default()
        });
        lab.apply(&[policy(&lab.topology)]);
        let Topology { source, gateway, .. } = &lab.topology;
        lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
        lab.assert_seen(&gateway.pods[0], SERVER, gateway.egress);
    }
}

#[test]
fn two_policies_of_one_pod_each_have_their_gateway() {
    let lab = Lab::new(Options::default());
    let Topology {
        source,
        gateway,
        second,
        ..
    } = &lab.topology;
    let elsewhere = ["198.51.100.0/24", "2001:db8:51::/48"];
    lab.apply(&[
        policy(&lab.topology),
        Policy::new(8)
            .to(&elsewhere)
            .via(second, second.egress)
            .select(&source.pods[0]),
    ]);
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
    lab.assert_seen(&source.pods[0], ELSEWHERE, second.egress);
}

#[test]
fn nothing_is_dropped_on_the_regular_way() {
    let lab = Lab::new(Options {
        cni: Cni::PlainSnat,
        ..Options::default()
    });
    lab.apply(&[policy(&lab.topology)]);
    let Topology { source, gateway, .. } = &lab.topology;
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
    lab.assert_seen(&gateway.pods[0], SERVER, gateway.egress);
    for agent in [&lab.source, &lab.gateway] {
        for reason in DropReason::ALL {
            assert_eq!(agent.dropped(reason), 0, "{}", reason.counter());
        }
    }
}

#[test]
fn a_tunnel_over_ipv6_carries_both_families() {
    let lab = Lab::over(Family::V6, Options::default());
    lab.apply(&[policy(&lab.topology)]);
    let Topology { source, gateway, .. } = &lab.topology;
    let mut tap = ok(lab.topology.tap());
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
    let tunnelled = ok(tap.wait_for("the tunnel's packet", |packet| {
        is_tunnelled(packet, source, 7, |_| true)
    }));
    assert_eq!(tunnelled.source, source.address.of(Family::V6));
}

#[test]
fn the_nodes_own_traffic_is_untouched() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let everything = Policy::new(7).to(&EVERYWHERE).via(gateway, gateway.egress);
    lab.apply(&[everything.select(&source.pods[0]).select(&gateway.pods[0])]);
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
    for node in [source, gateway] {
        for family in FAMILIES {
            let (server, expected) = (SERVER.of(family), node.address.of(family));
            assert_eq!(ok(ask_tcp(&node.netns, server)), expected);
            assert_eq!(ok(ask_udp(&node.netns, server)), expected);
        }
    }
}

/// The other one may be nobody's, or another pod's by now.
#[test]
fn a_pod_of_one_family_is_captured_in_that_family_alone() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let policies = [policy(&lab.topology)];
    lab.apply(&policies);
    for (index, family) in [0, 1].into_iter().zip(FAMILIES) {
        let mut plan = lab.plan(source, &policies);
        plan.pods[0].ips.swap_remove(1 - index);
        ok(lab.source.sync(Some(&plan)));
        for other in FAMILIES {
            let expected = if other == family {
                gateway.egress
            } else {
                source.address
            };
            assert_seen(
                &lab.topology,
                &source.pods[0],
                SERVER.of(other),
                expected.of(other),
            );
        }
    }
}
