//! Protocols other than TCP, UDP and ICMP: they leave with the policy's address, or not at all.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
};

use egressnat_agent::owned::Drop as DropReason;
use egressnat_e2e::topology::{
    Chunk, Dual, FAMILIES, Family, Node, Options, Packet, Pod, SEGMENT, SERVER, Tap, Topology, Transport,
    inject, ip_packet, is_intact, sctp_packet, udp_lite_datagram,
};

use crate::{
    lab::{Lab, assert_dropped, ok},
    plan::Policy,
};

const GRE: u8 = 47;
const ESP: u8 = 50;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;
/// For experiments (RFC 3692): nobody knows it.
const UNKNOWN: u8 = 253;
const ALL: [u8; 5] = [GRE, ESP, SCTP, UDP_LITE, UNKNOWN];

/// Ports as pods choose them, and those of the server.
const CLIENT_PORT: u16 = 1000;
const SERVER_PORT: u16 = 2000;
const PORTS: std::ops::RangeInclusive<u16> = 20000..=20099;

/// Conntrack checks UDP-Lite's checksum as if it were UDP's, and takes each right one for a wrong one (`udplite_error`,
/// Linux 6.18): here it does not look.
fn lab() -> Lab {
    let lab = Lab::new(Options::default());
    for node in lab.topology.nodes() {
        ok(node.netns.sysctl("net.netfilter.nf_conntrack_checksum", "0"));
    }
    lab
}

/// What a client sends, or its server answers.
fn payload(protocol: u8, from: SocketAddr, to: SocketAddr, is_answer: bool) -> Vec<u8> {
    let chunk = if is_answer { Chunk::InitAck } else { Chunk::Init };
    match protocol {
        SCTP => sctp_packet(from.port(), to.port(), chunk),
        UDP_LITE => udp_lite_datagram(from, to, b"payload"),
        // Version 0, without a key.
        GRE => [&[0, 0, 0x08, 0x00][..], &[0; 20]].concat(),
        _ => vec![0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4],
    }
}

/// Source and destination port of a protocol that has some.
fn ports(protocol: u8, payload: &[u8]) -> Option<[u16; 2]> {
    let port = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
    matches!(protocol, SCTP | UDP_LITE).then(|| [port(0), port(2)])
}

fn send(pod: &Pod, family: Family, protocol: u8) {
    let (source, destination) = (pod.address.of(family), SERVER.of(family));
    let (from, to) = ((source, CLIENT_PORT).into(), (destination, SERVER_PORT).into());
    let packet = ip_packet(source, destination, protocol, &payload(protocol, from, to, false));
    ok(inject(&pod.netns, &ok(packet)));
}

/// What a packet carries, if it is of this protocol.
fn carried(packet: &Packet, of: u8) -> Option<&[u8]> {
    match &packet.transport {
        Transport::Other { protocol, payload } if *protocol == of => Some(payload),
        _ => None,
    }
}

/// Waits for the packet that a node puts on the wire: its source, and what it carries.
#[track_caller]
fn leaving(tap: &mut Tap, family: Family, protocol: u8) -> (IpAddr, Vec<u8>) {
    let found = ok(tap.wait_for("the packet outside", |packet| {
        packet.destination == SERVER.of(family) && carried(packet, protocol).is_some()
    }));
    let payload = carried(&found, protocol).map(<[u8]>::to_vec);
    (found.source, payload.expect("just found"))
}

/// A policy for the first two pods of the source node and of the gateway node.
fn policy(topology: &Topology) -> Policy {
    let Topology { source, gateway, .. } = topology;
    let pods = [source, gateway].into_iter().flat_map(|node| &node.pods[..2]);
    let policy = Policy::new(7).to(&SEGMENT).via(gateway, gateway.egress);
    pods.fold(policy, Policy::select)
}

/// It leaves with the address, and what the server answers finds the pod. Returns its source port outside.
#[track_caller]
fn assert_there_and_back(lab: &Lab, pod: &Pod, family: Family, protocol: u8, seen_as: Dual) -> Option<u16> {
    let (server, address) = (SERVER.of(family), seen_as.of(family));
    let mut outside = ok(lab.topology.tap());
    let mut inside = ok(Tap::incoming(&pod.netns, &["eth0"]));
    send(pod, family, protocol);
    let (source, sent) = leaving(&mut outside, family, protocol);
    assert_eq!(source, address, "{} by protocol {protocol}", pod.name);
    assert!(protocol != SCTP || is_intact(&sent), "the checksum is wrong");
    let port = ports(protocol, &sent).map(|[from, _]| from);

    let (from, to) = (
        (server, SERVER_PORT).into(),
        (address, port.unwrap_or_default()).into(),
    );
    let answer = payload(protocol, from, to, true);
    let answer = ok(ip_packet(server, address, protocol, &answer));
    ok(inject(&lab.topology.outside, &answer));
    let back = ok(inside.wait_for("the answer", |packet| carried(packet, protocol).is_some()));
    assert_eq!((back.source, back.destination), (server, pod.address.of(family)));
    let received = carried(&back, protocol).expect("just found");
    assert!(
        protocol != SCTP || is_intact(received),
        "the answer's checksum is wrong"
    );
    let to = ports(protocol, received).map(|[_, to]| to);
    assert_eq!(to, port.map(|_| CLIENT_PORT));
    let own = |packet: &Packet| packet.source == pod.address.of(family) && packet.tunnelled.is_none();
    assert_eq!(ok(outside.count(own)), 0, "with the pod's own address");
    port
}

#[test]
fn every_protocol_leaves_with_the_policys_address_and_is_answered() {
    let lab = lab();
    let Topology { source, gateway, .. } = &lab.topology;
    let policy = policy(&lab.topology);
    for family in FAMILIES {
        for protocol in ALL {
            for node in [source, gateway] {
                let pod = &node.pods[0];
                // As the CNI does it: the probe sees it.
                assert_there_and_back(&lab, pod, family, protocol, node.address);
                lab.apply(std::slice::from_ref(&policy));
                assert_there_and_back(&lab, pod, family, protocol, gateway.egress);
                // A pod that no policy selects.
                assert_there_and_back(&lab, &node.pods[2], family, protocol, node.address);
                lab.remove();
                forget(&lab);
            }
        }
    }
}

/// How many connections conntrack has refused, as `conntrack -S` says.
fn refused(node: &Node) -> u64 {
    let mut command = Command::new("conntrack");
    let statistics = ok(node.netns.output(command.arg("-S")));
    let counts = statistics
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("insert_failed="));
    counts.map(|count| count.parse::<u64>().expect("a number")).sum()
}

/// What is tracked already would hinder the next one: a protocol without ports has one connection at a time.
fn forget(lab: &Lab) {
    for node in lab.topology.nodes() {
        ok(node.netns.output(Command::new("conntrack").arg("-F")));
    }
}

#[test]
fn those_with_ports_keep_to_the_policys_and_those_without_have_the_address() {
    let lab = lab();
    let Topology { source, gateway, .. } = &lab.topology;
    for ports in ["20000-20099", "20000"] {
        lab.apply(&[policy(&lab.topology).ports(ports)]);
        for family in FAMILIES {
            for protocol in ALL {
                for node in [source, gateway] {
                    let port = assert_there_and_back(&lab, &node.pods[0], family, protocol, gateway.egress);
                    assert!(port.is_none_or(|port| PORTS.contains(&port)), "{port:?}");
                    assert_eq!(port.is_some(), matches!(protocol, SCTP | UDP_LITE));
                    forget(&lab);
                }
            }
        }
    }
}

/// Nothing tells two such connections apart at the server: the second has to wait for the first to be forgotten.
#[test]
fn of_two_pods_that_use_a_protocol_without_ports_the_second_never_leaves_with_another_address() {
    let lab = lab();
    let Topology { source, gateway, .. } = &lab.topology;
    lab.apply(&[policy(&lab.topology)]);
    for family in FAMILIES {
        for protocol in [GRE, ESP, UNKNOWN] {
            for node in [source, gateway] {
                let [first, second] = [0, 1].map(|pod| &node.pods[pod]);
                assert_there_and_back(&lab, first, family, protocol, gateway.egress);
                let mut tap = ok(lab.topology.tap());
                let before = refused(gateway);
                send(second, family, protocol);
                assert_there_and_back(&lab, first, family, protocol, gateway.egress);
                assert_eq!(refused(gateway), before + 1, "what the kernel counts");
                let left =
                    |packet: &Packet| packet.tunnelled.is_none() && carried(packet, protocol).is_some();
                assert_eq!(ok(tap.count(left)), 1, "the first pod's");
                forget(&lab);
            }
        }
    }
}

#[test]
fn what_conntrack_takes_for_broken_does_not_leave() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    lab.apply(&[policy(&lab.topology)]);
    for family in FAMILIES {
        for (node, agent) in [(source, &lab.source), (gateway, &lab.gateway)] {
            let mut tap = ok(lab.topology.tap());
            let before = agent.dropped(DropReason::Unplaced);
            send(&node.pods[0], family, UDP_LITE);
            assert_dropped(agent, DropReason::Unplaced, before + 1);
            assert_there_and_back(&lab, &node.pods[0], family, SCTP, gateway.egress);
            let left = |packet: &Packet| carried(packet, UDP_LITE).is_some();
            assert_eq!(ok(tap.count(left)), 0);
        }
    }
}
