//! Pods that send with sources that are not theirs, on a node whose own reverse path filter lets them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use egressnat_agent::owned::Drop;
use egressnat_e2e::topology::{
    self, Dual, FAMILIES, Family, Flags, Options, Pod, SEGMENT, SERVER, Topology, Transport, inject,
    knock_udp, tcp_segment, udp_datagram,
};

use crate::{
    lab::{Lab, assert_dropped, ok},
    plan::Policy,
};

/// Nobody's address.
const FOREIGN: Dual = Dual::new([203, 0, 113, 9], [0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 9]);
/// To these ports packets go that are not as they should be, and nothing else.
const PORTS: [u16; 2] = [3000, 3001];
const UNCHECKED: &[&str] = &["--check-sources", "false"];

/// A lab whose node filters by no reverse path, with agents of these arguments. Pods 0 and 2 have a policy each.
fn lab(arguments: &[&str], connect: impl Fn(&Topology)) -> Lab {
    let mut lab = Lab::new(Options::default());
    lab.stop_agents();
    lab.start_agents_with(arguments);
    connect(&lab.topology);
    let Topology { source, gateway, .. } = &lab.topology;
    let off = "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done";
    ok(source.netns.output(Command::new("sh").args(["-c", off])));
    let policies = [
        (7, &source.pods[0], gateway.egress),
        (8, &source.pods[2], gateway.secondary),
    ];
    lab.apply(
        &policies
            .map(|(id, pod, addresses)| Policy::new(id).to(&SEGMENT).via(gateway, addresses).select(pod)),
    );
    lab
}

/// Sends a datagram and a segment of no connection with each source, and returns those seen outside.
fn seen(lab: &Lab, family: Family, pod: &Pod, sources: &[Dual]) -> BTreeSet<IpAddr> {
    let Topology { source, gateway, .. } = &lab.topology;
    let mut tap = ok(lab.topology.tap());
    let to = PORTS.map(|port| SocketAddr::new(SERVER.of(family), port));
    // A connection that is there already would take in another pod's packets.
    let place = source
        .pods
        .iter()
        .position(|of_node| of_node.address == pod.address);
    let first = place.map_or(1000, |place| 1000 + 100 * place as u16);
    for (address, port) in sources.iter().zip(first..) {
        let from = SocketAddr::new(address.of(family), port);
        ok(inject(&pod.netns, &ok(udp_datagram(from, to[0], b"not mine"))));
        ok(inject(&pod.netns, &ok(tcp_segment(from, to[1], Flags::Rst))));
    }
    // Other packets by both ways, so that whatever was to be seen has been seen.
    for (pod, expected) in [(0, gateway.egress), (1, source.address)] {
        ok(knock_udp(&source.pods[pod].netns, SERVER.of(family)));
        let is_it = |t: &Transport| matches!(t, Transport::Udp(_, topology::PORT));
        ok(tap.wait_for("the pod's own", |p| {
            is_it(&p.transport) && p.source == expected.of(family)
        }));
    }
    let packets = ok(tap.packets()).iter();
    let forged = packets.filter(|packet| match packet.transport {
        Transport::Udp(_, to) | Transport::Tcp { ports: (_, to), .. } => PORTS.contains(&to),
        _ => false,
    });
    forged.map(|packet| packet.source).collect()
}

fn of(family: Family, addresses: &[Dual]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|address| address.of(family)).collect()
}

/// Every pod's packets have the source that they should have.
fn assert_right(lab: &Lab) {
    let Topology { source, gateway, .. } = &lab.topology;
    for (pod, expected) in [(0, gateway.egress), (1, source.address), (2, gateway.secondary)] {
        lab.assert_seen(&source.pods[pod], SERVER, expected);
    }
}

#[test]
fn an_unselected_pod_gets_no_policys_address_with_a_selected_ones() {
    let steal = |lab: &Lab, family| {
        let pods = &lab.topology.source.pods;
        seen(lab, family, &pods[1], &[pods[0].address, pods[2].address])
    };
    let unchecked = lab(UNCHECKED, |_| {});
    let Topology { gateway, .. } = &unchecked.topology;
    for family in FAMILIES {
        let stolen = of(family, &[gateway.egress, gateway.secondary]);
        assert_eq!(steal(&unchecked, family), stolen, "the probe");
    }

    let checked = lab(&[], |_| {});
    for (family, so_far) in FAMILIES.into_iter().zip(1..) {
        assert_eq!(steal(&checked, family), BTreeSet::new());
        // What conntrack cannot place leaves with no selected pod's address in any case.
        assert_dropped(&checked.source, Drop::Forged, 2 * so_far);
        assert_dropped(&checked.source, Drop::Unplaced, 2 * so_far);
    }
    assert_right(&checked);
    assert_dropped(&checked.source, Drop::Forged, 4);
}

#[test]
fn a_selected_pod_does_not_evade_its_policy_with_another_source() {
    let evade = |lab: &Lab, family| {
        let Topology { source, gateway, .. } = &lab.topology;
        let others = [
            source.pods[1].address,
            source.pods[2].address,
            source.address,
            gateway.egress,
            FOREIGN,
        ];
        seen(lab, family, &source.pods[0], &others)
    };
    let unchecked = lab(UNCHECKED, |_| {});
    let Topology { source, gateway, .. } = &unchecked.topology;
    for family in FAMILIES {
        let evaded = of(family, &[source.address, gateway.secondary, FOREIGN]);
        let seen = evade(&unchecked, family);
        assert!(evaded.is_subset(&seen), "the probe: {seen:?}");
    }

    let checked = lab(&[], |_| {});
    for family in FAMILIES {
        assert_eq!(evade(&checked, family), BTreeSet::new());
    }
    let dropped = checked.source.dropped(Drop::Forged);
    assert!(dropped >= 12, "{dropped}");
    assert_right(&checked);
    assert_dropped(&checked.source, Drop::Forged, dropped);
}

/// What others on the node give the pod by a route is as much its own as what the API server knows of.
#[test]
fn an_address_that_the_node_routes_to_the_pod_is_its_own() {
    let checked = lab(&[], |_| {});
    let Topology { source, .. } = &checked.topology;
    for family in FAMILIES {
        let own = FOREIGN.of(family);
        let send = || seen(&checked, family, &source.pods[0], &[FOREIGN]);
        assert_eq!(send(), BTreeSet::new());
        ok(source.netns.ip(&format!("route add {own} dev pod0")));
        assert!(!send().is_empty(), "{family:?}");
    }
}

/// A pod that is no more selected may send what it likes again: its node sees to that.
#[test]
fn a_pod_that_no_policy_selects_any_more_is_not_checked() {
    let checked = lab(&[], |_| {});
    let Topology { source, gateway, .. } = &checked.topology;
    let send = |family| seen(&checked, family, &source.pods[2], &[FOREIGN]);
    for family in FAMILIES {
        assert_eq!(send(family), BTreeSet::new());
    }
    let rest = Policy::new(7)
        .to(&SEGMENT)
        .via(gateway, gateway.egress)
        .select(&source.pods[0]);
    checked.apply(&[rest]);
    for family in FAMILIES {
        assert!(!send(family).is_empty(), "{family:?}");
    }
}

/// As with Cilium, unless it has a route for each pod: the node's routes lead to pods by a router, and something else
/// leads there.
#[test]
fn where_pods_are_not_reached_by_the_links_that_they_send_by_nothing_is_checked() {
    let routed = lab(&[], |topology| {
        let node = &topology.source;
        let sh = |command: &str| ok(node.netns.output(Command::new("sh").args(["-ec", command])));
        sh(
            "ip link add host0 type veth peer name host1; ip link set host0 up; ip link set host1 up; \
            for f in -4 -6; do ip $f rule add priority 50 iif egressnat0 lookup 100; done",
        );
        for number in [0, 2] {
            let Dual { v4, v6 } = node.pods[number].address;
            sh(&format!(
                "ip route add {v4} dev pod{number} table 100; ip route replace {v4} via 169.254.9.1 dev host0 onlink; \
                 ip route add {v6} dev pod{number} table 100; ip route replace {v6} via fe80::9 dev host0"
            ));
        }
    });
    assert_right(&routed);
    assert_dropped(&routed.source, Drop::Forged, 0);
}

/// Where pods are on one bridge, the node cannot tell by the link who sends; it can between those of the bridge and
/// others.
#[test]
fn on_a_bridge_pods_can_be_told_from_those_beside_it_alone() {
    let bridged = lab(&[], |topology| {
        let node = &topology.source;
        ok(node.netns.ip(
            "link add cni0 type bridge mcast_snooping 0\nlink set cni0 addrgenmode none up\n\
            addr add fe80::1/64 dev cni0 nodad",
        ));
        for (number, pod) in node.pods.iter().enumerate().filter(|(number, _)| *number != 3) {
            let Dual { v4, v6 } = pod.address;
            let router = topology::in_pod_range(node.number, 1).v4;
            ok(node.netns.ip(&format!(
                "addr flush dev pod{number}\nlink set pod{number} master cni0 up\n\
                 addr replace {router}/32 dev cni0\n\
                 route replace {v4}/32 dev cni0\nroute replace {v6}/128 dev cni0"
            )));
        }
    });
    let Topology { source, gateway, .. } = &bridged.topology;
    let selected = source.pods[0].address;
    for family in FAMILIES {
        let others = seen(&bridged, family, &source.pods[0], &[source.pods[1].address]);
        assert!(
            others.contains(&source.address.of(family)),
            "{family:?}: {others:?}"
        );
        let stolen = seen(&bridged, family, &source.pods[1], &[selected]);
        assert_eq!(stolen, of(family, &[gateway.egress]));
        assert_eq!(
            seen(&bridged, family, &source.pods[3], &[selected]),
            BTreeSet::new()
        );
    }
    assert_dropped(&bridged.source, Drop::Forged, 2);
    assert_right(&bridged);
}
