//! The default local egress, on nodes whose CNI translates nothing.

use std::net::{IpAddr, SocketAddr};

use egressnat_crds::{EgressPlanSpec, interval::Interval, plan::Masquerade, policy::NoGateway};
use egressnat_e2e::topology::{
    Cni, Conversation, Dual, ELSEWHERE, FAMILIES, Family, Flow, Node, Options, PODS, PORT, Packet, Pod,
    SEGMENT, SERVER, SERVICES, Server, Topology, Transport, knock_tcp, knock_udp,
};
use ipnet::IpNet;

use crate::{
    lab::{Lab, assert_answered, assert_seen, ok},
    plan::Policy,
};

/// Link-local addresses that are on the segment.
const LINK_LOCAL: [&str; 1] = ["169.254.99.1"];

/// Nodes that translate nothing.
pub fn lab() -> Lab {
    Lab::new(Options {
        cni: Cni::Nothing,
        ..Options::default()
    })
}

/// A masquerade of a node's pods, except to the cluster and to these.
pub fn masquerade(node: &Node, except: &[&str]) -> Option<Masquerade> {
    let net = |net: &&str| net.parse::<IpNet>().expect("a CIDR");
    let except = PODS.iter().chain(&SERVICES).chain(except).map(net);
    let mut except: Vec<Interval> = except.map(Interval::from).collect();
    except.sort();
    Some(Masquerade {
        sources: node
            .pod_ranges()
            .iter()
            .map(|range| net(&range.as_str()))
            .collect(),
        except,
    })
}

/// A plan that asks for a masquerade and nothing else.
pub fn plan(node: &Node, except: &[&str]) -> EgressPlanSpec {
    EgressPlanSpec {
        masquerade: masquerade(node, except),
        ..EgressPlanSpec::default()
    }
}

/// Of a SYN, a datagram and an echo request of the pod, all leave with its own address.
#[track_caller]
fn assert_untranslated(topology: &Topology, pod: &Pod, server: IpAddr) {
    let own = pod
        .address
        .of(if server.is_ipv4() { Family::V4 } else { Family::V6 });
    let mut tap = ok(topology.tap());
    ok(knock_tcp(&pod.netns, server));
    ok(knock_udp(&pod.netns, server));
    // Nobody answers a pod's own address, which `ping` takes for a failure.
    let echo = "ping -n -q -c 1 -W 1 \"$0\" || true";
    let echo = ["-c", echo, &server.to_string()].map(str::to_owned);
    ok(pod.netns.output(std::process::Command::new("sh").args(echo)));
    let is_tcp = |packet: &Packet| matches!(packet.transport, Transport::Tcp { syn: true, .. });
    let is_udp = |packet: &Packet| matches!(packet.transport, Transport::Udp(..));
    let mut assert_own = |what: &str, is_kind: fn(&Packet) -> bool| {
        let packet = ok(tap.wait_for(what, |p| p.destination == server && is_kind(p)));
        assert_eq!(packet.source, own, "{what} to {server}");
    };
    assert_own("a SYN", is_tcp);
    assert_own("a datagram", is_udp);
    assert_own("an echo request", Packet::is_ping);
}

#[track_caller]
fn assert_untranslated_to(lab: &Lab, pod: &Pod, server: Dual) {
    for family in FAMILIES {
        assert_untranslated(&lab.topology, pod, server.of(family));
    }
}

#[test]
fn pods_leave_with_their_nodes_address_while_the_plan_says_so() {
    let lab = lab();
    let source = &lab.topology.source;
    let pod = &source.pods[0];
    assert_untranslated_to(&lab, pod, SERVER);
    let report = ok(lab.source.sync(Some(&plan(source, &[]))));
    assert_eq!(report.left_to, []);
    for server in [SERVER, ELSEWHERE] {
        lab.assert_seen(pod, server, source.address);
    }
    assert!(
        !ok(lab.source.sync(Some(&plan(source, &[])))).changed,
        "it is in step"
    );
    ok(lab.source.sync(Some(&EgressPlanSpec::default())));
    assert_untranslated_to(&lab, pod, SERVER);
    ok(lab.source.sync(Some(&plan(source, &[]))));
    lab.assert_seen(pod, SERVER, source.address);
    ok(lab.source.sync(None));
    assert_untranslated_to(&lab, pod, SERVER);
}

#[test]
fn a_fresh_process_finds_the_masquerade_in_step() {
    let mut lab = lab();
    let plan = plan(&lab.topology.source, &[]);
    ok(lab.source.sync(Some(&plan)));
    lab.stop_agents();
    lab.start_agents();
    let report = ok(lab.source.sync(Some(&plan)));
    assert_eq!(
        report.nft_steps, 1,
        "it takes the table over, and writes nothing else"
    );
    lab.assert_seen(&lab.topology.source.pods[0], SERVER, lab.topology.source.address);
}

#[test]
fn destinations_that_are_excepted_see_the_pod() {
    let lab = lab();
    let Topology { source, gateway, .. } = &lab.topology;
    let (pod, other) = (&source.pods[0], &gateway.pods[1]);
    let elsewhere = ["198.51.100.0/24", "2001:db8:51::/48"];
    ok(lab.source.sync(Some(&plan(source, &elsewhere))));
    lab.assert_seen(pod, SERVER, source.address);
    assert_untranslated_to(&lab, pod, ELSEWHERE);
    let _server = ok(Server::start(&other.netns, &other.address.both(), PORT));
    for family in FAMILIES {
        assert_answered(pod, other.address.of(family), pod.address.of(family));
    }
    // And no longer, once they are not.
    ok(lab.source.sync(Some(&plan(source, &[]))));
    lab.assert_seen(pod, ELSEWHERE, source.address);
}

#[test]
fn link_local_destinations_are_masqueraded_where_they_are_not_excepted() {
    let lab = lab();
    let Topology { source, outside, .. } = &lab.topology;
    let pod = &source.pods[0];
    let server: IpAddr = LINK_LOCAL[0].parse().expect("an address");
    ok(outside.ip(&format!("addr add {server}/32 dev segment")));
    ok(source.netns.ip(&format!("route add {server}/32 dev eth0")));
    let _server = ok(Server::start(outside, &[server], PORT));
    ok(lab.source.sync(Some(&plan(source, &["169.254.0.0/16"]))));
    assert_untranslated(&lab.topology, pod, server);
    ok(lab.source.sync(Some(&plan(source, &[]))));
    assert_seen(&lab.topology, pod, server, source.address.of(Family::V4));
}

#[test]
fn a_policy_comes_first_and_no_gateway_leaves_as_any_other() {
    let lab = lab();
    let Topology { source, gateway, .. } = &lab.topology;
    let policy = Policy::new(7)
        .to(&SEGMENT)
        .select(&source.pods[0])
        .select(&gateway.pods[0]);
    let apply = |policy: &Policy| {
        let policies = std::slice::from_ref(policy);
        for (node, agent) in [(gateway, &lab.gateway), (source, &lab.source)] {
            let mut plan = lab.plan(node, policies);
            plan.masquerade = masquerade(node, &[]);
            ok(agent.sync(Some(&plan)));
        }
    };
    apply(&policy.clone().via(gateway, gateway.egress));
    for node in [source, gateway] {
        lab.assert_seen(&node.pods[0], SERVER, gateway.egress);
        lab.assert_seen(&node.pods[0], ELSEWHERE, node.address);
        lab.assert_seen(&node.pods[1], SERVER, node.address);
    }
    apply(&policy.otherwise(NoGateway::NodeIP));
    for node in [source, gateway] {
        lab.assert_seen(&node.pods[0], SERVER, node.address);
    }
}

#[test]
fn connections_that_nobody_answered_begin_anew_and_the_others_go_on() {
    let lab = lab();
    let Topology { source, outside, .. } = &lab.topology;
    let (alone, routed) = (&source.pods[0], &source.pods[1]);
    // As kube-proxy has them: without any other rule of the kind, nothing is tracked before the masquerade comes, and
    // nothing translated after it has gone.
    ok(source.netns.nft(
        "table inet kube-proxy {
            chain forward { type filter hook forward priority 0; ct state invalid drop; }
            chain nat { type nat hook postrouting priority 100; }
        }",
    ));
    for family in FAMILIES {
        let (to, via) = (routed.address.of(family), source.address.of(family));
        ok(outside.ip(&format!("route add {to} via {via}")));
    }
    let server = |family| SocketAddr::new(SERVER.of(family), PORT);
    let in_vain = FAMILIES.map(|family| (family, ok(Flow::open(&alone.netns, server(family)))));
    for (_, flow) in &in_vain {
        ok(flow.send());
        flow.ask().expect_err("nobody answers a pod's own address");
    }
    let mut answered = FAMILIES.map(|family| (family, ok(Conversation::open(&routed.netns, server(family)))));
    let mut assert_goes_on = |when: &str| {
        for (family, conversation) in &mut answered {
            assert_eq!(ok(conversation.ask()), routed.address.of(*family), "{when}");
        }
    };
    assert_goes_on("before");
    ok(lab.source.sync(Some(&plan(source, &[]))));
    assert_goes_on("with the masquerade");
    for (family, flow) in &in_vain {
        assert_eq!(ok(flow.ask()), source.address.of(*family));
    }
    let mut masqueraded =
        FAMILIES.map(|family| (family, ok(Conversation::open(&alone.netns, server(family)))));
    ok(lab.source.sync(Some(&EgressPlanSpec::default())));
    assert_goes_on("after it");
    for (family, conversation) in &mut masqueraded {
        assert_eq!(
            ok(conversation.ask()),
            source.address.of(*family),
            "it goes on as it was"
        );
    }
}
