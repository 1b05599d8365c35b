//! Policies that no gateway can serve, in part or at all: dropped and counted, or as the policy says otherwise.

use egressnat_agent::owned::Drop as DropReason;
use egressnat_crds::policy::NoGateway;
use egressnat_e2e::topology::{
    Dual, FAMILIES, Family, Options, Pod, SEGMENT, SERVER, Topology, in_pod_range, knock_tcp, knock_udp,
    on_segment,
};

use crate::{
    agent::Agent,
    lab::{Lab, assert_dropped, assert_seen, ok},
    plan::Policy,
};

/// A SYN and a datagram of the pod are dropped for `reason` on the agent's node, and nothing of them leaves.
/// `counted` is how many were dropped before.
#[track_caller]
fn assert_lost(lab: &Lab, pod: &Pod, family: Family, (agent, reason, counted): (&Agent, DropReason, u64)) {
    let server = SERVER.of(family);
    let mut tap = ok(lab.topology.tap());
    ok(knock_tcp(&pod.netns, server));
    ok(knock_udp(&pod.netns, server));
    assert_dropped(agent, reason, counted + 2);
    // An unselected pod's answer shows that whatever had left before it would have been seen.
    let other = &lab.topology.source.pods[1];
    assert_seen(
        &lab.topology,
        other,
        server,
        lab.topology.source.address.of(family),
    );
    let wait = tap.wait_for("the other pod's packet", |packet| {
        packet.destination == server && packet.is_ping()
    });
    ok(wait);
    let others = lab.topology.source.address.of(family);
    let left = ok(tap.count(|packet| packet.destination == server && packet.source != others));
    assert_eq!(left, 0, "{} to {server}", pod.name);
}

#[test]
fn without_a_gateway_packets_are_dropped() {
    let lab = Lab::new(Options::default());
    let pod = &lab.topology.source.pods[0];
    lab.assert_seen(pod, SERVER, lab.topology.source.address);
    lab.apply(&[Policy::new(7).to(&SEGMENT).select(pod)]);
    for (counted, family) in [0, 2].into_iter().zip(FAMILIES) {
        assert_lost(&lab, pod, family, (&lab.source, DropReason::NoGateway, counted));
    }
}

#[test]
fn without_a_gateway_packets_keep_the_nodes_address_where_the_policy_says_so() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let pod = &source.pods[0];
    let policy = Policy::new(7)
        .to(&SEGMENT)
        .select(pod)
        .otherwise(NoGateway::NodeIP);
    lab.apply(std::slice::from_ref(&policy));
    lab.assert_seen(pod, SERVER, source.address);
    lab.apply(&[policy.clone().via(gateway, gateway.egress)]);
    lab.assert_seen(pod, SERVER, gateway.egress);
    lab.apply(&[policy]);
    lab.assert_seen(pod, SERVER, source.address);
}

#[test]
fn a_family_that_the_gateway_does_not_serve_is_dropped() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    for node in [source, gateway] {
        let (pod, agent) = (
            &node.pods[0],
            if node.name == source.name {
                &lab.source
            } else {
                &lab.gateway
            },
        );
        for (served, missing) in [(Family::V4, Family::V6), (Family::V6, Family::V4)] {
            let counted = agent.dropped(DropReason::NoGateway);
            let address = gateway.egress.of(served);
            lab.apply(&[Policy::new(7)
                .to(&SEGMENT)
                .via_only(gateway, &[address])
                .select(pod)]);
            assert_seen(&lab.topology, pod, SERVER.of(served), address);
            assert_lost(&lab, pod, missing, (agent, DropReason::NoGateway, counted));
        }
    }
}

#[test]
fn a_family_that_the_gateway_does_not_serve_keeps_the_nodes_address_where_the_policy_says_so() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    for node in [source, gateway] {
        let pod = &node.pods[0];
        let policy = Policy::new(7)
            .to(&SEGMENT)
            .via_only(gateway, &[gateway.egress.v4.into()])
            .select(pod);
        lab.apply(&[policy.otherwise(NoGateway::NodeIP)]);
        lab.assert_seen(
            pod,
            SERVER,
            Dual {
                v4: gateway.egress.v4,
                v6: node.address.v6,
            },
        );
    }
}

#[test]
fn an_address_that_the_gateway_does_not_hold_is_reported_and_its_packets_are_dropped_there() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let nobodys = on_segment(77);
    for pod in [&source.pods[0], &gateway.pods[0]] {
        let policies = [Policy::new(7).to(&SEGMENT).via(gateway, nobodys).select(pod)];
        let before = lab.gateway.dropped(DropReason::NoAddress);
        lab.apply(&policies);
        let report = ok(lab.gateway.sync(Some(&lab.plan(gateway, &policies))));
        assert_eq!(report.missing, nobodys.both().into());
        for (counted, family) in [before, before + 2].into_iter().zip(FAMILIES) {
            assert_lost(&lab, pod, family, (&lab.gateway, DropReason::NoAddress, counted));
        }
    }
    // The address comes, and all is well.
    for address in nobodys.both() {
        let options = if address.is_ipv6() {
            "/128 dev eth0 nodad preferred_lft 0"
        } else {
            "/32 dev eth0"
        };
        ok(gateway.netns.ip(&format!("addr add {address}{options}")));
    }
    let policy = [Policy::new(7)
        .to(&SEGMENT)
        .via(gateway, nobodys)
        .select(&source.pods[0])];
    lab.gateway.distrust();
    lab.apply(&policy);
    lab.assert_seen(&source.pods[0], SERVER, nobodys);
}

/// The operator writes the gateway's plan first; where its agent lags, the pods' packets are lost, not leaked.
#[test]
fn before_the_gateway_is_ready_nothing_leaves() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let pod = &source.pods[0];
    let policies = [Policy::new(7)
        .to(&SEGMENT)
        .via(gateway, gateway.egress)
        .select(pod)];
    ok(lab.source.sync(Some(&lab.plan(source, &policies))));
    let mut tap = ok(lab.topology.tap());
    for family in FAMILIES {
        let server = SERVER.of(family);
        ok(knock_udp(&pod.netns, server));
        let sent = |packet: &egressnat_e2e::topology::Packet| {
            packet
                .tunnelled
                .as_ref()
                .is_some_and(|inner| inner.packet.destination == server)
        };
        ok(tap.wait_for("the tunnel's packet", sent));
        assert_eq!(ok(tap.count(|packet| packet.destination == server)), 0);
    }
    ok(lab.gateway.sync(Some(&lab.plan(gateway, &policies))));
    lab.assert_seen(pod, SERVER, gateway.egress);
}

/// A pod that is to come: its address is not known yet, or nobody has it.
#[test]
fn a_pod_without_an_address_is_no_hindrance() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let policies = [Policy::new(7)
        .to(&SEGMENT)
        .via(gateway, gateway.egress)
        .select(&source.pods[0])];
    lab.apply(&policies);
    let mut plan = lab.plan(source, &policies);
    let mut coming = plan.pods[0].clone();
    (coming.uid, coming.ips) = ("source-9".into(), Vec::new());
    plan.pods.push(coming.clone());
    ok(lab.source.sync(Some(&plan)));
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
    coming.ips = in_pod_range(1, 99).both().into();
    plan.pods[1] = coming;
    let report = ok(lab.source.sync(Some(&plan)));
    assert_eq!(report.nft_steps, 2, "one element in each family");
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
}
