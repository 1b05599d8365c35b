//! What leaves in the very moment in which policies change.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use egressnat_crds::policy::NoGateway;
use egressnat_e2e::{
    topology::{
        Dual, FAMILIES, Flow, Node, Options, PORT, Packet, Pod, SEGMENT, SERVER, Tap, Topology, Transport,
    },
    wait,
};

use crate::{
    lab::{Lab, meanwhile, ok},
    plan::Policy,
};

const DEADLINE: Duration = Duration::from_secs(10);

/// Runs `work` while the pod sends, as fast as it can, by one old flow of each family and by ever new ones.
fn while_sending(pod: &Pod, work: impl FnOnce()) {
    let server = |family| SocketAddr::new(SERVER.of(family), PORT);
    let old = FAMILIES.map(|family| ok(Flow::open(&pod.netns, server(family))));
    let again = || {
        for flow in &old {
            // A refusal, for want of a route or by an ICMP error, is no packet.
            let _ = flow.send();
        }
        for family in FAMILIES {
            let _ = Flow::open(&pod.netns, server(family)).and_then(|flow| flow.send());
        }
    };
    meanwhile(again, work);
}

/// A datagram for the server. ICMP errors do not count: without a policy those of no connection leave as they are.
fn is_sent(packet: &Packet) -> bool {
    SERVER.both().contains(&packet.destination) && matches!(packet.transport, Transport::Udp(..))
}

/// Waits until new datagrams of both families leave by this node with these addresses.
#[track_caller]
fn await_sent(tap: &mut Tap, node: &Node, addresses: Dual) {
    let before = ok(tap.packets()).len();
    for address in addresses.both() {
        let what = format!("datagrams with {address} from {}", node.name);
        ok(wait::until(&what, DEADLINE, || {
            let packets = tap.packets().map_err(|error| error.to_string())?;
            let sent = |packet: &&Packet| {
                is_sent(packet) && packet.source == address && packet.interface == node.name
            };
            packets[before..]
                .iter()
                .find(sent)
                .map(drop)
                .ok_or_else(|| "none".to_owned())
        }));
    }
}

/// Every packet for the server is of one of these nodes with one of its addresses.
#[track_caller]
fn assert_only(tap: &mut Tap, allowed: &[(&Node, &[Dual])]) {
    let mut seen: BTreeMap<(&str, IpAddr), Vec<&Packet>> = BTreeMap::new();
    for packet in ok(tap.packets()).iter().filter(|packet| is_sent(packet)) {
        let key = (packet.interface.as_str(), packet.source);
        seen.entry(key).or_default().push(packet);
    }
    for ((node, source), packets) in &seen {
        let fine = allowed.iter().any(|(by, addresses)| {
            by.name == *node && addresses.iter().any(|dual| dual.both().contains(source))
        });
        let first = packets.first();
        assert!(
            fine,
            "{} packets with {source} from {node}, first {first:?}",
            packets.len()
        );
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
                await_sent(&mut tap, gateway, gateway.egress);
                ok(agent.sync(None));
                ok(lab.gateway.sync(None));
                await_sent(&mut tap, node, node.address);
            }
        });
        assert_only(&mut tap, &[(node, &[node.address]), (gateway, &[gateway.egress])]);
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
    let (first, other) = ((gateway, &lab.gateway), (second, &lab.second));
    while_sending(pod, || {
        for ((old, old_agent), (new, new_agent)) in [(first, other), (other, first)].repeat(5) {
            ok(new_agent.sync(Some(&lab.plan(new, &via(new)))));
            ok(lab.source.sync(Some(&lab.plan(source, &via(new)))));
            ok(old_agent.sync(Some(&lab.plan(old, &via(new)))));
            await_sent(&mut tap, new, new.egress);
        }
    });
    assert_only(
        &mut tap,
        &[(gateway, &[gateway.egress]), (second, &[second.egress])],
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
    let away = (
        policy.clone().via(gateway, gateway.egress),
        gateway,
        gateway.egress,
    );
    let here = (policy.clone().via(source, source.egress), source, source.egress);
    let none = (policy, source, source.address);
    ok(lab
        .gateway
        .sync(Some(&lab.plan(gateway, std::slice::from_ref(&away.0)))));
    let peers = lab.plan(source, std::slice::from_ref(&away.0)).peers;
    let mut tap = ok(lab.topology.tap());
    while_sending(pod, || {
        for (policy, node, expected) in [
            &away, &here, &none, &away, &none, &here, &away, &here, &away, &none,
        ] {
            let mut plan = lab.plan(source, std::slice::from_ref(policy));
            // The gateway stays a peer, so that the table and the tunnel stay.
            plan.peers.clone_from(&peers);
            ok(lab.source.sync(Some(&plan)));
            await_sent(&mut tap, node, *expected);
        }
    });
    assert_only(
        &mut tap,
        &[
            (source, &[source.address, source.egress]),
            (gateway, &[gateway.egress]),
        ],
    );
}
