//! What a network policy or an egress firewall denies a pod stays denied under an egress policy: rules on the pod's own
//! node, as such programs write them.

use std::{net::IpAddr, process::Command};

use egressnat_e2e::topology::{
    Dual, ELSEWHERE, FAMILIES, Family, Flow, Node, Options, PORT, Packet, Pod, SEGMENT, SERVER, Topology,
    Transport, knock_tcp, knock_udp,
};

use crate::{
    lab::{Lab, assert_seen, ok},
    plan::Policy,
};

/// Both of the server's networks: it is denied under one of its addresses.
const EVERYWHERE: [&str; 4] = [SEGMENT[0], SEGMENT[1], "198.51.100.0/24", "2001:db8:51::/64"];

/// A denial of the server to a pod: how it comes, and how it goes.
struct Denial {
    comes: String,
    goes: String,
}

/// In `FORWARD`, by the pod's address and the server's, inserted first.
fn by_iptables(pod: &Pod) -> Denial {
    let rules = |verb: &str| {
        let rule = |family| {
            let tool = if family == Family::V4 {
                "iptables-nft"
            } else {
                "ip6tables-nft"
            };
            let (from, to) = (pod.address.of(family), SERVER.of(family));
            format!("{tool} {verb} FORWARD -s {from} -d {to} -j DROP")
        };
        FAMILIES.map(rule).join("\n")
    };
    Denial {
        comes: rules("-I"),
        goes: rules("-D"),
    }
}

/// In a base chain of its own, with the pods in sets.
fn by_nftables(pod: &Pod) -> Denial {
    let Dual { v4, v6 } = pod.address;
    let comes = format!(
        "nft -f - <<'EOF'
table inet netpol {{
    set pods4 {{ type ipv4_addr; elements = {{ {v4} }}; }}
    set pods6 {{ type ipv6_addr; elements = {{ {v6} }}; }}
    chain forward {{
        type filter hook forward priority filter;
        ip saddr @pods4 ip daddr {} drop
        ip6 saddr @pods6 ip6 daddr {} drop
    }}
}}
EOF",
        SERVER.v4, SERVER.v6
    );
    Denial {
        comes,
        goes: "nft delete table inet netpol".into(),
    }
}

/// On the pod's node, off the gateway and on it; there before the policy, and come while connections are open.
#[test]
fn what_is_denied_to_a_pod_stays_denied_under_a_policy() {
    for rules in [by_iptables, by_nftables] as [fn(&Pod) -> Denial; 2] {
        let lab = Lab::new(Options::default());
        let Topology { source, gateway, .. } = &lab.topology;
        let policy = [Policy::new(7)
            .to(&EVERYWHERE)
            .via(gateway, gateway.egress)
            .select(&source.pods[0])
            .select(&gateway.pods[0])];
        for node in [source, gateway] {
            run(node, &rules(&node.pods[0]).comes);
        }
        lab.apply(&policy);
        for node in [source, gateway] {
            assert_denied(&lab, node, &[]);
            run(node, &rules(&node.pods[0]).goes);
            lab.assert_seen(&node.pods[0], SERVER, gateway.egress);
            let flows = SERVER.both().map(|server| {
                let flow = ok(Flow::open(&node.pods[0].netns, (server, PORT).into()));
                assert!(gateway.egress.both().contains(&ok(flow.ask())));
                flow
            });
            run(node, &rules(&node.pods[0]).comes);
            assert_denied(&lab, node, &flows);
        }
    }
}

/// Nothing that the node's first pod sends to the server, by old flows and new connections, leaves the nodes; what it
/// sends elsewhere does, with the policy's address, and so would have been seen.
#[track_caller]
fn assert_denied(lab: &Lab, node: &Node, flows: &[Flow]) {
    let pod = &node.pods[0];
    let mut tap = ok(lab.topology.tap());
    for flow in flows {
        ok(flow.send());
    }
    for server in SERVER.both() {
        ok(knock_tcp(&pod.netns, server));
        ok(knock_udp(&pod.netns, server));
    }
    for family in FAMILIES {
        let egress = lab.topology.gateway.egress.of(family);
        assert_seen(&lab.topology, pod, ELSEWHERE.of(family), egress);
        let elsewhere = |packet: &_| is_to(packet, ELSEWHERE.of(family));
        ok(tap.wait_for("what is not denied", elsewhere));
    }
    let left = ok(tap.count(|packet| SERVER.both().iter().any(|server| is_to(packet, *server))));
    assert_eq!(left, 0, "{} on {}", pod.name, node.name);
}

/// Whether it is a packet to this server, or one inside the tunnel.
fn is_to(packet: &Packet, server: IpAddr) -> bool {
    let is_spoken = matches!(packet.transport, Transport::Tcp { .. } | Transport::Udp(..));
    let inside = packet.tunnelled.as_ref();
    (is_spoken && packet.destination == server) || inside.is_some_and(|t| t.packet.destination == server)
}

#[track_caller]
fn run(node: &Node, script: &str) {
    ok(node.netns.output(Command::new("sh").args(["-ec", script])));
}
