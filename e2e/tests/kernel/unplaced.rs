//! Packets of a selected pod that belong to no connection: no NAT touches them, so they must not leave.

use std::net::{IpAddr, SocketAddr};

use egressnat_agent::owned::Drop as DropReason;
use egressnat_e2e::topology::{
    Dual, FAMILIES, Flags, Node, Options, Pod, SEGMENT, SERVER, Tap, Topology, Transport, icmp_error, inject,
    knock_udp, tcp_segment,
};

use crate::{
    agent::Agent,
    lab::{Lab, assert_dropped, ok},
    plan::Policy,
};

/// A lone RST, flags that no TCP sends, no flags, an ICMP error that quotes nothing that was sent.
fn strange(source: IpAddr, destination: IpAddr) -> [Vec<u8>; 4] {
    let (from, to) = (SocketAddr::new(source, 1000), SocketAddr::new(destination, 2000));
    let [rst, syn_fin, null] =
        [Flags::Rst, Flags::SynFin, Flags::Null].map(|flags| ok(tcp_segment(from, to, flags)));
    [rst, syn_fin, null, ok(icmp_error(source, destination))]
}

fn send_strange(pod: &Pod, to: Dual) {
    for family in FAMILIES {
        for packet in strange(pod.address.of(family), to.of(family)) {
            ok(inject(&pod.netns, &packet));
        }
    }
}

/// Four kinds in two families.
const SENT: usize = 8;

/// How many packets a tap saw with the pod's own address, and waits for as many as there should be.
#[track_caller]
fn assert_seen_with_own_address(tap: &mut Tap, pod: &Pod, expected: usize) {
    let own = |tap: &mut Tap| {
        let is_own = |source: &IpAddr| pod.address.both().contains(source);
        tap.count(|packet| is_own(&packet.source) && !matches!(packet.transport, Transport::Other { .. }))
    };
    let seen = egressnat_e2e::wait::until("the pod's packets", std::time::Duration::from_secs(5), || {
        let seen = own(tap).map_err(|error| error.to_string())?;
        if seen >= expected {
            Ok(seen)
        } else {
            Err(format!("{seen} of {expected}"))
        }
    });
    assert_eq!(ok(seen), expected);
}

fn assert_none_leaves(lab: &Lab, node: &Node, agent: &Agent) {
    let Topology { gateway, second, .. } = &lab.topology;
    let pod = &node.pods[0];
    // Without a policy all of them are out, with the pod's address: the probe sees them.
    let mut before = ok(lab.topology.tap());
    send_strange(pod, SERVER);
    assert_seen_with_own_address(&mut before, pod, SENT);

    lab.apply(&[Policy::new(7)
        .to(&SEGMENT)
        .via(gateway, gateway.egress)
        .select(pod)]);
    let mut after = ok(lab.topology.tap());
    send_strange(pod, SERVER);
    assert_dropped(agent, DropReason::Unplaced, SENT as u64);
    // A packet that does leave shows that everything before it would have been seen.
    for family in FAMILIES {
        ok(knock_udp(&pod.netns, SERVER.of(family)));
        ok(after.wait_for("a good packet", |packet| {
            packet.source == gateway.egress.of(family)
        }));
    }
    assert_seen_with_own_address(&mut after, pod, 0);

    // Within the cluster they are nobody's harm, and no concern of ours.
    let other = &second.pods[0];
    let mut inside = ok(Tap::incoming(&other.netns, &["eth0"]));
    send_strange(pod, other.address);
    assert_seen_with_own_address(&mut inside, pod, SENT);
    assert_dropped(agent, DropReason::Unplaced, SENT as u64);
}

#[test]
fn packets_of_no_connection_do_not_leave_from_another_node() {
    let lab = Lab::new(Options::default());
    assert_none_leaves(&lab, &lab.topology.source, &lab.source);
}

#[test]
fn packets_of_no_connection_do_not_leave_from_the_gateway_node() {
    let lab = Lab::new(Options::default());
    assert_none_leaves(&lab, &lab.topology.gateway, &lab.gateway);
}

#[test]
fn unselected_pods_keep_sending_them() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    lab.apply(&[Policy::new(7)
        .to(&SEGMENT)
        .via(gateway, gateway.egress)
        .select(&source.pods[0])]);
    let mut tap = ok(lab.topology.tap());
    send_strange(&source.pods[1], SERVER);
    assert_seen_with_own_address(&mut tap, &source.pods[1], SENT);
}
