//! What leaves in the very moment in which policies change.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use egressnat_crds::policy::NoGateway;
use egressnat_e2e::topology::{
    Dual, FAMILIES, Flow, Node, Options, PORT, Packet, Pod, SEGMENT, SERVER, Tap, Topology,
};

use crate::{
    lab::{Lab, ok},
    plan::Policy,
};

/// Runs `work` while the pod sends, as fast as it can, by one old flow of each family and by ever new ones.
fn while_sending(pod: &Pod, work: impl FnOnce()) {
    let server = |family| SocketAddr::new(SERVER.of(family), PORT);
    let old = FAMILIES.map(|family| ok(Flow::open(&pod.netns, server(family))));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            ok(pod.netns.enter());
            while !done.load(Ordering::Relaxed) {
                for flow in &old {
                    // A refusal, for want of a route or by an ICMP error, is no packet.
                    let _ = flow.send();
                }
                for family in FAMILIES {
                    let _ = Flow::open(&pod.netns, server(family)).and_then(|flow| flow.send());
                }
            }
        });
        work();
        done.store(true, Ordering::Relaxed);
    });
}

/// How many packets for the server each node sent with which source address.
fn sources(tap: &mut Tap) -> BTreeMap<(String, IpAddr), usize> {
    let mut sources = BTreeMap::new();
    let for_server = |packet: &&Packet| SERVER.both().contains(&packet.destination);
    for packet in ok(tap.packets()).iter().filter(for_server) {
        *sources
            .entry((packet.interface.clone(), packet.source))
            .or_default() += 1;
    }
    sources
}

/// Every packet for the server is of one of these nodes with its address, the first of each at least once.
#[track_caller]
fn assert_only(tap: &mut Tap, allowed: &[(&Node, [IpAddr; 2])]) {
    let seen = sources(tap);
    for ((node, source), packets) in &seen {
        let fine = allowed
            .iter()
            .any(|(by, addresses)| by.name == node && addresses.contains(source));
        assert!(fine, "{packets} packets with {source} from {node}: {seen:#?}");
    }
    for (by, addresses) in allowed {
        for address in addresses {
            assert!(
                seen.contains_key(&(by.name.to_owned(), *address)),
                "none with {address}: {seen:#?}"
            );
        }
    }
}

#[test]
fn a_pod_that_comes_under_a_policy_and_goes_sends_with_no_third_address() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    for (node, agent) in [(source, &lab.source), (gateway, &lab.gateway)] {
        let pod = &node.pods[0];
        let policies = [Policy::new(7)
            .to(&SEGMENT)
            .via(gateway, gateway.egress)
            .select(pod)];
        let mut tap = ok(lab.topology.tap());
        while_sending(pod, || {
            for _ in 0..5 {
                ok(lab.gateway.sync(Some(&lab.plan(gateway, &policies))));
                ok(agent.sync(Some(&lab.plan(node, &policies))));
                ok(agent.sync(None));
                ok(lab.gateway.sync(None));
            }
        });
        assert_only(
            &mut tap,
            &[(node, node.address.both()), (gateway, gateway.egress.both())],
        );
    }
}

#[test]
fn a_policy_that_moves_to_another_gateway_sends_with_no_third_address() {
    let lab = Lab::new(Options::default());
    let Topology {
        source,
        gateway,
        second,
        ..
    } = &lab.topology;
    let pod = &source.pods[0];
    let via = |node: &Node| [Policy::new(7).to(&SEGMENT).via(node, node.egress).select(pod)];
    lab.apply(&via(gateway));
    let mut tap = ok(lab.topology.tap());
    while_sending(pod, || {
        for _ in 0..5 {
            for (new, agent, old, old_agent) in [
                (second, &lab.second, gateway, &lab.gateway),
                (gateway, &lab.gateway, second, &lab.second),
            ] {
                ok(agent.sync(Some(&lab.plan(new, &via(new)))));
                ok(lab.source.sync(Some(&lab.plan(source, &via(new)))));
                ok(old_agent.sync(Some(&lab.plan(old, &via(new)))));
            }
        }
    });
    assert_only(
        &mut tap,
        &[(gateway, gateway.egress.both()), (second, second.egress.both())],
    );
}

/// From the tunnel to this node as the gateway, and to this node because there is none.
#[test]
fn a_policy_that_leaves_the_tunnel_sends_with_no_third_address() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let pod = &source.pods[0];
    let policy = Policy::new(7)
        .to(&SEGMENT)
        .select(pod)
        .otherwise(NoGateway::NodeIP);
    let away = [policy.clone().via(gateway, gateway.egress)];
    let here = [policy.clone().via(source, source.egress)];
    let none = [policy];
    ok(lab.gateway.sync(Some(&lab.plan(gateway, &away))));
    let mut tap = ok(lab.topology.tap());
    while_sending(pod, || {
        for policies in [
            &away, &here, &none, &away, &none, &here, &away, &here, &away, &none,
        ] {
            let mut plan = lab.plan(source, policies);
            // The gateway stays a peer, so that the table and the tunnel stay.
            plan.peers = lab.plan(source, &away).peers;
            ok(lab.source.sync(Some(&plan)));
        }
    });
    let sources = [source.address, source.egress].map(Dual::both);
    assert_only(
        &mut tap,
        &[
            (source, sources[0]),
            (source, sources[1]),
            (gateway, gateway.egress.both()),
        ],
    );
}
