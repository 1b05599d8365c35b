//! Large transfers where ICMP is blocked, so that only the MSS keeps segments within the tunnel's MTU.

use std::time::Duration;

use egressnat_e2e::topology::{
    FAMILIES, Family, Options, SEGMENT, SERVER, Tap, Topology, Transport, ask_tcp, download, upload,
};

use crate::{
    lab::{Lab, ok},
    plan::Policy,
};

const LENGTH: usize = 3_000_000;
const PATIENCE: Duration = Duration::from_secs(5);
/// Far above any delay here, and above the first retransmissions.
const HANGS: Duration = Duration::from_millis(700);

/// No node says that a packet is too big.
const NO_ICMP: &str = "table inet no_icmp {
    chain output { type filter hook output priority 0;
        icmp type destination-unreachable icmp code frag-needed drop
        icmpv6 type packet-too-big drop
    }
    chain prerouting { type filter hook prerouting priority -310;
        icmp type destination-unreachable icmp code frag-needed drop
        icmpv6 type packet-too-big drop
    }
}";

fn lab(underlay: Family) -> Lab {
    let lab = Lab::over(underlay, Options::default());
    for node in lab.topology.nodes() {
        ok(node.netns.nft(NO_ICMP));
    }
    let Topology { source, gateway, .. } = &lab.topology;
    lab.apply(&[Policy::new(7)
        .to(&SEGMENT)
        .via(gateway, gateway.egress)
        .select(&source.pods[0])]);
    lab
}

#[test]
fn large_transfers_pass_the_tunnel_both_ways_with_icmp_blocked() {
    for underlay in FAMILIES {
        assert_passes(&lab(underlay));
    }
}

fn assert_passes(lab: &Lab) {
    let pod = &lab.topology.source.pods[0].netns;
    for family in FAMILIES {
        let server = SERVER.of(family);
        ok(upload(pod, server, LENGTH, PATIENCE));
        ok(download(pod, server, LENGTH, PATIENCE));
    }
    // The control: in a tunnel that is smaller than the MSS allows for, the same transfers hang.
    for node in [&lab.topology.source, &lab.topology.gateway] {
        ok(node.netns.ip("link set egressnat0 mtu 1300"));
    }
    for family in FAMILIES {
        let server = SERVER.of(family);
        upload(pod, server, LENGTH, HANGS).expect_err("an upload of segments that do not fit");
        download(pod, server, LENGTH, HANGS).expect_err("a download of segments that do not fit");
    }
}

#[test]
fn syn_and_syn_ack_carry_the_tunnels_mss_and_no_other_pods_do() {
    let lab = lab(Family::V4);
    let Topology { source, .. } = &lab.topology;
    for (pod, captured) in [(&source.pods[0], true), (&source.pods[1], false)] {
        for family in FAMILIES {
            let (mut outside, mut inside) =
                (ok(lab.topology.tap()), ok(Tap::incoming(&pod.netns, &["eth0"])));
            ok(ask_tcp(&pod.netns, SERVER.of(family)));
            let expected = match (family, captured) {
                (Family::V4, true) => 1410,
                (Family::V6, true) => 1390,
                (Family::V4, false) => 1460,
                (Family::V6, false) => 1440,
            };
            let is_syn = |transport: &Transport| matches!(transport, Transport::Tcp { syn: true, .. });
            let syn = ok(outside.wait_for("the SYN", |packet| is_syn(&packet.transport)));
            let syn_ack = ok(inside.wait_for("the SYN-ACK", |packet| is_syn(&packet.transport)));
            for transport in [syn.transport, syn_ack.transport] {
                let Transport::Tcp { mss, .. } = transport else {
                    unreachable!("it is TCP")
                };
                assert_eq!(mss, Some(expected), "{family:?}, captured: {captured}");
            }
        }
    }
}
