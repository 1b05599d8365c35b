//! Connections that are there when policies change.

use std::net::SocketAddr;

use egressnat_e2e::topology::{
    Cni, Conversation, Dual, FAMILIES, Family, Flow, Node, Options, PORT, SEGMENT, SERVER, Topology,
};

use crate::{
    lab::{Lab, ok},
    plan::Policy,
};

const ELSEWHERE: [&str; 2] = ["198.51.100.0/24", "2001:db8:51::/48"];
const CNIS: [Cni; 2] = [Cni::Masquerade { priority: 100 }, Cni::PlainSnat];

fn server(family: Family) -> SocketAddr {
    SocketAddr::new(SERVER.of(family), PORT)
}

/// The identity of a connection in a node's conntrack: another one after it was forgotten and seen again.
#[track_caller]
fn conntrack_id(node: &Node, family: Family, port: u16) -> String {
    let family = if family == Family::V4 { "ipv4" } else { "ipv6" };
    let mut command = std::process::Command::new("conntrack");
    command.args([
        "-L",
        "-f",
        family,
        "-p",
        "tcp",
        "--orig-port-src",
        &port.to_string(),
        "-o",
        "id",
    ]);
    let listed = ok(node.netns.output(&mut command));
    let ids: Vec<&str> = listed
        .split_whitespace()
        .filter(|word| word.starts_with("id="))
        .collect();
    assert_eq!(ids.len(), 1, "one connection from port {port}: {listed}");
    ids.concat()
}

/// A pod's TCP connection and UDP flow of one family, under way.
struct Talk {
    family: Family,
    tcp: Conversation,
    udp: Flow,
    before: Vec<String>,
}

impl Talk {
    /// Begun by the source node's pod of this index, seen as `expected`.
    fn begin(lab: &Lab, pod: usize, expected: Dual) -> Vec<Self> {
        let begin = |family| {
            let netns = &lab.topology.source.pods[pod].netns;
            let tcp = ok(Conversation::open(netns, server(family)));
            let udp = ok(Flow::open(netns, server(family)));
            let mut talk = Self {
                family,
                tcp,
                udp,
                before: Vec::new(),
            };
            talk.assert_seen(expected);
            talk
        };
        FAMILIES.map(begin).into()
    }

    fn assert_seen(&mut self, expected: Dual) {
        assert_eq!(ok(self.tcp.ask()), expected.of(self.family), "by TCP");
        assert_eq!(ok(self.udp.ask()), expected.of(self.family), "by UDP");
    }

    /// Remembers the connection as these nodes know it.
    fn remember(&mut self, nodes: &[&Node]) {
        self.before = self.identities(nodes);
    }

    /// The connection is what it was, on every node.
    fn assert_untouched(&mut self, nodes: &[&Node], expected: Dual) {
        self.assert_seen(expected);
        assert_eq!(self.identities(nodes), self.before);
    }

    fn identities(&self, nodes: &[&Node]) -> Vec<String> {
        let port = ok(self.tcp.port());
        nodes
            .iter()
            .map(|node| conntrack_id(node, self.family, port))
            .collect()
    }
}

/// One for another pod, one for other destinations of the same pod: through another gateway, both.
#[test]
fn unrelated_policies_leave_a_connection_with_its_gateway() {
    let lab = Lab::new(Options::default());
    let Topology {
        source,
        gateway,
        second,
        ..
    } = &lab.topology;
    let policy = Policy::new(7)
        .to(&SEGMENT)
        .via(gateway, gateway.egress)
        .select(&source.pods[0]);
    lab.apply(std::slice::from_ref(&policy));
    let mut talks = Talk::begin(&lab, 0, gateway.egress);
    talks
        .iter_mut()
        .for_each(|talk| talk.remember(&[source, gateway]));
    let other_pod = Policy::new(8)
        .to(&SEGMENT)
        .via(second, second.egress)
        .select(&source.pods[1]);
    let other_destinations = Policy::new(9)
        .to(&ELSEWHERE)
        .via(second, second.egress)
        .select(&source.pods[0]);
    let mut tap = ok(lab.topology.tap());
    for policies in [
        vec![policy.clone(), other_pod.clone()],
        vec![policy.clone(), other_pod, other_destinations],
        vec![policy],
    ] {
        let report = lab.apply(&policies);
        assert!(report.changed);
        assert_eq!(report.flows, 0, "connections deleted");
        for talk in &mut talks {
            talk.assert_untouched(&[source, gateway], gateway.egress);
        }
    }
    assert_eq!(
        ok(tap.count(|packet| packet.interface == "second" && packet.destination == SERVER.v4)),
        0
    );
}

#[test]
fn connections_of_unselected_pods_outlive_policies() {
    for cni in CNIS {
        let lab = Lab::new(Options {
            cni,
            ..Options::default()
        });
        let Topology { source, gateway, .. } = &lab.topology;
        let mut talks = Talk::begin(&lab, 1, source.address);
        talks.iter_mut().for_each(|talk| talk.remember(&[source]));
        let policy = Policy::new(7)
            .to(&SEGMENT)
            .via(gateway, gateway.egress)
            .select(&source.pods[0]);
        for policies in [vec![policy], vec![]] {
            lab.apply(&policies);
            for talk in &mut talks {
                talk.assert_untouched(&[source], source.address);
            }
        }
    }
}

/// The same UDP flow, without a pause long enough for conntrack to forget it.
#[test]
fn a_flow_is_judged_anew_when_its_pod_is_selected_and_released() {
    for cni in CNIS {
        let lab = Lab::new(Options {
            cni,
            ..Options::default()
        });
        let Topology { source, gateway, .. } = &lab.topology;
        for pod in [&source.pods[0], &gateway.pods[0]] {
            let node = if pod.name == source.pods[0].name {
                source
            } else {
                gateway
            };
            let policy = Policy::new(7)
                .to(&SEGMENT)
                .via(gateway, gateway.egress)
                .select(pod);
            let flows = FAMILIES.map(|family| (family, ok(Flow::open(&pod.netns, server(family)))));
            for (policies, expected) in [
                (vec![], node.address),
                (vec![policy.clone()], gateway.egress),
                (vec![], node.address),
                (vec![policy], gateway.egress),
            ] {
                lab.apply(&policies);
                for (family, flow) in &flows {
                    assert_eq!(ok(flow.ask()), expected.of(*family), "{} {cni:?}", pod.name);
                }
            }
            lab.apply(&[]);
        }
    }
}

#[test]
fn a_flow_follows_its_policys_egress_address() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    for pod in [&source.pods[0], &gateway.pods[0]] {
        let policy = |address| Policy::new(7).to(&SEGMENT).via(gateway, address).select(pod);
        lab.apply(&[policy(gateway.egress)]);
        let flows = FAMILIES.map(|family| (family, ok(Flow::open(&pod.netns, server(family)))));
        for address in [gateway.egress, gateway.secondary, gateway.address] {
            lab.apply(&[policy(address)]);
            for (family, flow) in &flows {
                assert_eq!(ok(flow.ask()), address.of(*family), "{}", pod.name);
            }
        }
    }
}

/// Only the source's plan says which gateway it is: with both ready, that alone moves the policy.
#[test]
fn another_gateway_in_the_sources_plan_moves_new_connections_and_living_flows() {
    let lab = Lab::new(Options::default());
    let Topology {
        source,
        gateway,
        second,
        ..
    } = &lab.topology;
    let pod = &source.pods[0];
    let via = |node: &Node| [Policy::new(7).to(&SEGMENT).via(node, node.egress).select(pod)];
    lab.apply(&via(gateway));
    lab.assert_seen(pod, SERVER, gateway.egress);
    let flows = FAMILIES.map(|family| (family, ok(Flow::open(&pod.netns, server(family)))));
    flows
        .iter()
        .for_each(|(family, flow)| assert_eq!(ok(flow.ask()), gateway.egress.of(*family)));

    ok(lab.second.sync(Some(&lab.plan(second, &via(second)))));
    lab.assert_seen(pod, SERVER, gateway.egress);
    let mut tap = ok(lab.topology.tap());
    let report = ok(lab.source.sync(Some(&lab.plan(source, &via(second)))));
    assert_eq!(report.flows, 0, "nothing had to be forgotten");
    lab.assert_seen(pod, SERVER, second.egress);
    flows
        .iter()
        .for_each(|(family, flow)| assert_eq!(ok(flow.ask()), second.egress.of(*family)));
    for family in FAMILIES {
        let to_server = SERVER.of(family);
        let others =
            ok(tap.count(|packet| {
                packet.destination == to_server && packet.source != second.egress.of(family)
            }));
        assert_eq!(others, 0, "no third address, {family:?}");
    }
}
