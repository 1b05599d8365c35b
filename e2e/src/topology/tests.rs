//! The topology by itself: what its probes see where nobody interferes.

use std::time::Duration;

use super::*;

#[test]
fn a_pod_leaves_with_its_nodes_address() {
    for cni in [Cni::Masquerade { priority: 100 }, Cni::PlainSnat] {
        let topology = Topology::new(Options {
            cni,
            ..Options::default()
        })
        .unwrap();
        for family in FAMILIES {
            let node = &topology.source;
            for server in [SERVER, ELSEWHERE] {
                let server = server.of(family);
                assert_eq!(
                    ask_tcp(&node.pods[0].netns, server).unwrap(),
                    node.address.of(family)
                );
                assert_eq!(
                    ask_udp(&node.pods[0].netns, server).unwrap(),
                    node.address.of(family)
                );
            }
        }
    }
}

#[test]
fn pods_reach_each_other_with_their_own_addresses() {
    let topology = Topology::new(Options::default()).unwrap();
    let (here, there) = (&topology.source.pods, &topology.gateway.pods[0]);
    let _there = Server::start(&there.netns, &there.address.both(), PORT).unwrap();
    let _here = Server::start(&here[1].netns, &here[1].address.both(), PORT).unwrap();
    for family in FAMILIES {
        for other in [there, &here[1]] {
            let seen = ask_tcp(&here[0].netns, other.address.of(family)).unwrap();
            assert_eq!(seen, here[0].address.of(family));
        }
    }
}

#[test]
fn the_tap_sees_what_each_node_sends() {
    let topology = Topology::new(Options::default()).unwrap();
    let pod = &topology.source.pods[0];
    for family in FAMILIES {
        let mut tap = topology.tap().unwrap();
        ping(&pod.netns, SERVER.of(family)).unwrap();
        let packet = tap.wait_for("the echo request", Packet::is_ping).unwrap();
        assert_eq!(packet.interface, "source");
        assert_eq!(packet.source, topology.source.address.of(family));
        // No NAT touches what belongs to no connection: the pod's own address is out.
        let (from, to) = (
            (pod.address.of(family), 1000).into(),
            (SERVER.of(family), 2000).into(),
        );
        inject(&pod.netns, &tcp_segment(from, to, Flags::Rst).unwrap()).unwrap();
        let packet = tap
            .wait_for("the segment", |packet| packet.is_from_port(1000))
            .unwrap();
        assert_eq!(packet.source, pod.address.of(family));
    }
}

#[test]
fn bulk_data_arrives_unchanged_both_ways() {
    let topology = Topology::new(Options::default()).unwrap();
    let pod = &topology.source.pods[0];
    for family in FAMILIES {
        upload(&pod.netns, SERVER.of(family), 3_000_000, Duration::from_secs(5)).unwrap();
        download(&pod.netns, SERVER.of(family), 3_000_000, Duration::from_secs(5)).unwrap();
    }
}

#[test]
fn a_connection_can_be_asked_again_and_ends_with_its_server() {
    let topology = Topology::new(Options::default()).unwrap();
    let pods = &topology.source.pods;
    let server = Server::start(&pods[1].netns, &pods[1].address.both(), PORT).unwrap();
    let address = (pods[1].address.of(Family::V4), PORT).into();
    let mut conversation = Conversation::open(&pods[0].netns, address).unwrap();
    assert_eq!(conversation.ask().unwrap(), pods[0].address.of(Family::V4));
    assert_eq!(conversation.ask().unwrap(), pods[0].address.of(Family::V4));
    drop(server);
    assert!(conversation.ask().is_err());
}
