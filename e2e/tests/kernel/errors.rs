//! Fragments, and ICMP errors about packets that have been translated.

use std::net::SocketAddr;

use egressnat_e2e::topology::{
    FAMILIES, Flow, Options, PORT, Packet, SEGMENT, SERVER, Tap, Topology, Transport,
};

use crate::{
    lab::{Lab, ok},
    plan::Policy,
};

/// A port of the server's on which nobody listens.
const CLOSED: u16 = 9;

fn lab() -> Lab {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    lab.apply(&[Policy::new(7)
        .to(&SEGMENT)
        .via(gateway, gateway.egress)
        .ports("20000-20099")
        .select(&source.pods[0])
        .select(&gateway.pods[0])]);
    lab
}

#[test]
fn an_error_about_a_translated_packet_finds_its_pod() {
    let lab = lab();
    let Topology { source, gateway, .. } = &lab.topology;
    for pod in [&source.pods[0], &gateway.pods[0]] {
        for family in FAMILIES {
            let mut inside = ok(Tap::incoming(&pod.netns, &["eth0"]));
            let flow = ok(Flow::open(&pod.netns, SocketAddr::new(SERVER.of(family), CLOSED)));
            ok(flow.send());
            let unreachable = if SERVER.of(family).is_ipv4() { 3 } else { 1 };
            let is_error = |packet: &Packet| matches!(packet.transport, Transport::Icmp { kind, .. } if kind == unreachable);
            let error = ok(inside.wait_for("the error", is_error));
            assert_eq!(
                (error.source, error.destination),
                (SERVER.of(family), pod.address.of(family))
            );
            // The socket knows that it is meant: what the error quotes is as the pod has sent it.
            flow.send().expect_err("a socket that has been told");
        }
    }
}

#[test]
fn a_datagram_in_fragments_leaves_with_the_address_and_is_answered() {
    let lab = lab();
    let Topology { source, gateway, .. } = &lab.topology;
    for pod in [&source.pods[0], &gateway.pods[0]] {
        for family in FAMILIES {
            let mut tap = ok(lab.topology.tap());
            let flow = ok(Flow::open(&pod.netns, SocketAddr::new(SERVER.of(family), PORT)));
            let seen = ok(flow.peer_by(&[0; 1900]));
            assert_eq!(seen.ip(), gateway.egress.of(family));
            assert!((20000..=20099).contains(&seen.port()), "{seen}");
            let left = |packet: &Packet| packet.interface == "gateway" && is_fragment(packet);
            assert!(ok(tap.count(left)) >= 2, "it went in one piece");
            let others = |p: &Packet| left(p) && p.source != gateway.egress.of(family);
            assert_eq!(ok(tap.count(others)), 0);
            let own = |p: &Packet| p.source == pod.address.of(family) && p.tunnelled.is_none();
            assert_eq!(ok(tap.count(own)), 0);
        }
    }
}

/// Of a datagram: a whole one would be taken apart.
fn is_fragment(packet: &Packet) -> bool {
    const UDP: u8 = 17;
    matches!(packet.transport, Transport::Other { protocol: UDP, .. })
}
