//! Pods that send with sources that are not theirs.

use std::net::{IpAddr, SocketAddr};

use egressnat_e2e::topology::{
    Dual, FAMILIES, Family, Options, Packet, SEGMENT, SERVER, Topology, Transport, inject, knock_udp,
    udp_datagram,
};

use crate::{
    lab::{Lab, ok},
    plan::Policy,
};

/// Nobody's address.
const FOREIGN: Dual = Dual::new([203, 0, 113, 9], [0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 9]);
/// The port from which spoofed packets come; the first of one for each source.
const PORT: u16 = 3000;

/// Another pod that is unselected, one of another policy, the node, an egress address, nobody.
fn sources(lab: &Lab) -> [Dual; 5] {
    let Topology { source, gateway, .. } = &lab.topology;
    [
        source.pods[1].address,
        source.pods[2].address,
        source.address,
        gateway.egress,
        FOREIGN,
    ]
}

fn port(packet: &Packet) -> Option<u16> {
    match packet.transport {
        Transport::Udp(_, port) => Some(port),
        _ => None,
    }
}

/// Sends one with each source, and returns what was seen outside of each.
fn seen(lab: &Lab, family: Family) -> Vec<Option<IpAddr>> {
    let pod = &lab.topology.source.pods[0];
    let mut tap = ok(lab.topology.tap());
    for (source, port) in sources(lab).iter().zip(PORT..) {
        let (from, to) = (
            SocketAddr::new(source.of(family), 999),
            SocketAddr::new(SERVER.of(family), port),
        );
        ok(inject(&pod.netns, &ok(udp_datagram(from, to, b"not mine"))));
    }
    // Another packet, so that whatever was to be seen has been seen.
    ok(knock_udp(&pod.netns, SERVER.of(family)));
    ok(tap.wait_for("the pod's own", |p| {
        p.source == lab.topology.gateway.egress.of(family)
    }));
    let packets = ok(tap.packets()).to_vec();
    let ports = (PORT..).take(sources(lab).len());
    let source = |wanted| packets.iter().find(|p| port(p) == Some(wanted)).map(|p| p.source);
    ports.map(source).collect()
}

/// IPv6 has no setting for it: this is what firewalld and others have.
const FILTER_V6: &str = "table ip6 filter_v6 { chain prerouting { type filter hook prerouting priority -300;\n\
    ip6 saddr != fe80::/10 fib saddr . iif oif missing drop\n}\n}";

/// A pod is known by its address. That it sends with none but its own is for the node's reverse path filter to see to.
#[test]
fn with_a_source_that_is_not_its_own_nothing_leaves_a_node_that_filters_by_reverse_path() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let policies = [
        (7, &source.pods[0], gateway.egress),
        (8, &source.pods[2], gateway.secondary),
    ];
    lab.apply(
        &policies
            .map(|(id, pod, addresses)| Policy::new(id).to(&SEGMENT).via(gateway, addresses).select(pod)),
    );
    let others = |family| seen(&lab, family).into_iter().flatten().collect::<Vec<_>>();

    ok(source.netns.nft(FILTER_V6));
    for family in FAMILIES {
        assert_eq!(others(family), Vec::<IpAddr>::new(), "{family:?}");
    }

    // Without it they are seen: the probe, and what is not ours to prevent.
    ok(source.netns.nft("delete table ip6 filter_v6"));
    for link in ["pod0", "all"] {
        ok(source
            .netns
            .sysctl(&format!("net.ipv4.conf.{link}.rp_filter"), "0"));
    }
    for family in FAMILIES {
        let holders = [source.address, gateway.secondary, gateway.egress, FOREIGN].map(|a| a.of(family));
        let seen = others(family);
        assert!(
            holders.iter().all(|holder| seen.contains(holder)),
            "{family:?}: {seen:?}"
        );
        assert!(
            seen.iter().all(|source| holders.contains(source)),
            "{family:?}: {seen:?}"
        );
    }
}
