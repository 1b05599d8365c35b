//! Policies that give some source ports alone.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use egressnat_agent::owned::Drop as DropReason;
use egressnat_crds::plan::ExhaustedPorts;
use egressnat_crds::ports::PortRange;
use egressnat_e2e::topology::{
    Conversation, ELSEWHERE, FAMILIES, Family, Flow, Node, Options, PORT, Packet, Pod, SEGMENT, SERVER, Tap,
    Topology, ask_tcp, ask_udp, ping,
};
use egressnat_e2e::wait;

use crate::{
    lab::{Lab, assert_dropped, ok},
    plan::Policy,
};

const RANGE: &str = "20000-20099";

const DEADLINE: Duration = Duration::from_secs(20);

fn range(text: &str) -> PortRange {
    text.parse().expect("a range of ports")
}

/// A policy for the first pod of the source node and of the gateway node.
fn policy(topology: &Topology) -> Policy {
    let Topology { source, gateway, .. } = topology;
    Policy::new(7)
        .to(&SEGMENT)
        .to(&["198.51.100.0/24", "2001:db8:51::/48"])
        .via(gateway, gateway.egress)
        .select(&source.pods[0])
        .select(&gateway.pods[0])
}

/// What the gateway has sent to an address, so far: sources and ports.
fn seen(tap: &mut Tap, to: IpAddr) -> Vec<(IpAddr, Option<u16>)> {
    let sent = |packet: &&Packet| packet.interface == "gateway" && packet.destination == to;
    let packets = ok(tap.packets()).iter().filter(sent);
    packets
        .map(|packet| (packet.source, packet.source_port()))
        .collect()
}

#[track_caller]
fn assert_ports(seen: &[(IpAddr, Option<u16>)], address: IpAddr, ports: PortRange) {
    for (source, port) in seen {
        assert_eq!(*source, address);
        assert!(
            port.is_some_and(|port| ports.contains(port)),
            "{port:?} of {ports}"
        );
    }
}

#[test]
fn a_pod_leaves_with_ports_of_the_range_alone() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    lab.apply(&[policy(&lab.topology)]);
    for pod in [&source.pods[0], &gateway.pods[0]] {
        for family in FAMILIES {
            let (server, egress) = (SERVER.of(family), gateway.egress.of(family));
            // Without the range, ports are those that the pod chose, or any: the probe sees them.
            let mut before = ok(lab.topology.tap());
            ok(ask_udp(&pod.netns, server));
            let chosen = seen(&mut before, server);
            assert!(
                chosen
                    .iter()
                    .all(|(_, port)| port.is_some_and(|p| !range(RANGE).contains(p)))
            );
            assert!(!chosen.is_empty());

            lab.apply(&[policy(&lab.topology).ports(RANGE)]);
            let mut tap = ok(lab.topology.tap());
            assert_eq!(ok(ask_tcp(&pod.netns, server)), egress);
            assert_eq!(ok(ask_udp(&pod.netns, server)), egress);
            ok(ping(&pod.netns, server));
            let seen = seen(&mut tap, server);
            assert!(seen.len() >= 5, "{seen:?}");
            assert_ports(&seen, egress, range(RANGE));
            lab.apply(&[policy(&lab.topology)]);
        }
    }
    assert_eq!(lab.gateway.dropped(DropReason::PortsExhausted), 0);
}

#[test]
fn policies_that_share_an_address_keep_to_their_ports() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let via = |id, pod: &Pod| {
        Policy::new(id)
            .to(&SEGMENT)
            .via(gateway, gateway.egress)
            .select(pod)
    };
    let [first, second, any] = [0, 1, 2].map(|pod| &source.pods[pod]);
    lab.apply(&[
        via(7, first).ports("20000-20009"),
        via(8, second).ports("20010-20019"),
        via(9, any),
    ]);
    for family in FAMILIES {
        let (server, egress) = (SERVER.of(family), gateway.egress.of(family));
        for (pod, ports) in [
            (first, "20000-20009"),
            (second, "20010-20019"),
            (any, "1024-65535"),
        ] {
            let mut tap = ok(lab.topology.tap());
            for _ in 0..3 {
                assert_eq!(ok(ask_tcp(&pod.netns, server)), egress);
            }
            assert_ports(&seen(&mut tap, server), egress, range(ports));
        }
    }
}

/// The port with which a flow's packets leave.
fn port_of(lab: &Lab, family: Family, flow: &Flow) -> u16 {
    let mut tap = ok(lab.topology.tap());
    assert_eq!(ok(flow.ask()), lab.topology.gateway.egress.of(family));
    let (_, port) = seen(&mut tap, SERVER.of(family))[0];
    port.expect("UDP has ports")
}

/// Also where an agent that has just started finds the change already made.
#[test]
fn a_change_of_ports_cuts_the_connections_that_do_not_fit_and_no_other() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    for pod in [&source.pods[0], &gateway.pods[0]] {
        for family in FAMILIES {
            let server = SocketAddr::new(SERVER.of(family), PORT);
            let apply = |ports: &str| lab.apply(&[policy(&lab.topology).ports(ports)]);
            apply("20000-20009");
            let mut tcp = ok(Conversation::open(&pod.netns, server));
            ok(tcp.ask());
            let flow = ok(Flow::open(&pod.netns, server));
            let port = port_of(&lab, family, &flow);
            for wider in ["20000-20999", "1024-65535", "20000-20009"] {
                apply(wider);
                assert_eq!(port_of(&lab, family, &flow), port, "{wider} has it as well");
                ok(tcp.ask());
            }
            lab.apply(&[policy(&lab.topology)]);
            assert_eq!(port_of(&lab, family, &flow), port, "any has it as well");
            ok(tcp.ask());
            apply("30000-30009");
            assert!(range("30000-30009").contains(port_of(&lab, family, &flow)));
            ok(tcp.set_patience(Duration::from_secs(1)));
            assert!(tcp.ask().is_err(), "it went on");
        }
    }
}

/// With all ports taken towards one destination: the pod's further connections there are dropped, and counted.
fn exhaust(lab: &Lab, node: &Node, family: Family) {
    let gateway = &lab.topology.gateway;
    let pod = &node.pods[0].netns;
    let [server, other] = [SERVER, ELSEWHERE].map(|s| SocketAddr::new(s.of(family), PORT));
    let egress = gateway.egress.of(family);
    let mut tap = ok(lab.topology.tap());
    let before = lab.gateway.dropped(DropReason::PortsExhausted);
    let mut taken: Vec<Conversation> = (0..3).map(|_| ok(Conversation::open(pod, server))).collect();
    assert_eq!(lab.gateway.dropped(DropReason::PortsExhausted), before);

    // By UDP, whose packets are sent once each.
    let flows: Vec<Flow> = (0..4).map(|_| ok(Flow::open(pod, server))).collect();
    let (last, first) = flows.split_last().expect("four");
    first.iter().for_each(|flow| assert_eq!(ok(flow.ask()), egress));
    ok(last.send());
    assert_dropped(&lab.gateway, DropReason::PortsExhausted, before + 1);
    assert!(last.ask().is_err(), "it has been answered");
    assert_dropped(&lab.gateway, DropReason::PortsExhausted, before + 5);

    (0..3).for_each(|_| ok(ping(pod, server.ip())));
    assert!(ping(pod, server.ip()).is_err(), "a fourth echo is answered");
    assert_dropped(&lab.gateway, DropReason::PortsExhausted, before + 6);

    assert!(
        Conversation::open(pod, server).is_err(),
        "there is a fourth connection"
    );
    assert!(lab.gateway.dropped(DropReason::PortsExhausted) > before + 6);
    assert_exhausted(lab, egress, server);
    // Those that are there go on, and ports are another destination's as well.
    taken.iter_mut().for_each(|c| assert_eq!(ok(c.ask()), egress));
    first.iter().for_each(|flow| assert_eq!(ok(flow.ask()), egress));
    let elsewhere = ok(Conversation::open(pod, other));
    for to in [server, other] {
        assert_ports(&seen(&mut tap, to.ip()), egress, range("20000-20002"));
    }
    drop(elsewhere);
    ok(taken.pop().expect("three").reset());
    let mut fourth = ok(wait::until("a free port", DEADLINE, || {
        Conversation::open(pod, server)
    }));
    assert_eq!(ok(fourth.ask()), egress);
    let own =
        |packet: &Packet| packet.source == node.pods[0].address.of(family) && packet.tunnelled.is_none();
    assert_eq!(ok(tap.count(own)), 0, "with the pod's own address");
}

/// The gateway's agent names the policy, its range and the destination, by TCP and by UDP.
#[track_caller]
fn assert_exhausted(lab: &Lab, address: IpAddr, server: SocketAddr) {
    let plan = lab.plan(
        &lab.topology.gateway,
        &[policy(&lab.topology).ports("20000-20002")],
    );
    let report = ok(lab.gateway.sync(Some(&plan)));
    let of = |protocol| ExhaustedPorts {
        policy: "policy-7".into(),
        address,
        source_ports: range("20000-20002"),
        protocol,
        destination: server.ip(),
        port: Some(server.port()),
    };
    for protocol in [6, 17] {
        assert!(report.exhausted.contains(&of(protocol)), "{:?}", report.exhausted);
    }
}

#[test]
fn without_a_port_left_packets_are_dropped_and_counted() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let policy = policy(&lab.topology).ports("20000-20002");
    // A TCP connection that has been reset keeps its port for so long.
    ok(gateway
        .netns
        .sysctl("net.netfilter.nf_conntrack_tcp_timeout_close", "1"));
    for family in FAMILIES {
        for node in [source, gateway] {
            lab.apply(std::slice::from_ref(&policy));
            exhaust(&lab, node, family);
            lab.remove();
        }
    }
}
