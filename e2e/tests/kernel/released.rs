//! What a pod's connections still send after a policy has given the pod up.

use std::{net::SocketAddr, process::Command};

use egressnat_e2e::topology::{
    Cni, Conversation, FAMILIES, Family, Flow, Node, Options, PORT, Packet, Pod, SEGMENT, SERVER, Tap,
    Topology, Transport,
};

use crate::{
    lab::{Lab, ok},
    plan::Policy,
    snapshot::Snapshot,
};

fn server(family: Family) -> SocketAddr {
    SocketAddr::new(SERVER.of(family), PORT)
}

fn policy(lab: &Lab, pods: &[&Pod]) -> Policy {
    let gateway = &lab.topology.gateway;
    let policy = Policy::new(7).to(&SEGMENT).via(gateway, gateway.egress);
    pods.iter().fold(policy, |policy, pod| policy.select(pod))
}

/// What the outside saw of TCP to the server, once a datagram of the pod's has come out behind all that.
fn tcp_seen(tap: &mut Tap, pod: &Pod, node: &Node, family: Family) -> Vec<Packet> {
    let to_server = |p: &Packet| p.destination == SERVER.of(family);
    let own = node.address.of(family);
    assert_eq!(
        ok(Flow::open(&pod.netns, server(family)).and_then(|f| f.ask())),
        own
    );
    let flow = |p: &Packet| to_server(p) && p.source == own && matches!(p.transport, Transport::Udp(..));
    ok(tap.wait_for("the flow", flow));
    let is_tcp = |p: &Packet| to_server(p) && matches!(p.transport, Transport::Tcp { .. });
    ok(tap.take()).into_iter().filter(is_tcp).collect()
}

/// Has connections by the policy, and then takes the pod out of it.
fn released<const N: usize>(lab: &Lab, node: &Node, staying: &[&Pod], family: Family) -> [Conversation; N] {
    let pod = &node.pods[0];
    lab.apply(&[policy(lab, &[&[pod], staying].concat())]);
    let mut talks = [(); N].map(|()| ok(Conversation::open(&pod.netns, server(family))));
    for talk in &mut talks {
        assert_eq!(
            ok(talk.ask()),
            lab.topology.gateway.egress.of(family),
            "the probe"
        );
    }
    match staying {
        [] => lab.apply(&[]),
        _ => lab.apply(&[policy(lab, staying)]),
    };
    talks
}

/// Of two connections one is closed after the release, and one goes on sending.
fn release(lab: &Lab, node: &Node, staying: &[&Pod], family: Family) {
    let what = format!("{} {family:?}, {} pods stay", node.name, staying.len());
    let pod = &node.pods[0];
    let mut tap = ok(lab.topology.tap());
    let [closing, mut speaking] = released(lab, node, staying, family);
    ok(tap.take());
    drop(closing);
    let seen = tcp_seen(&mut tap, pod, node, family);
    assert!(seen.is_empty(), "{what}: closed: {seen:#?}");
    let asked = speaking.ask();
    assert!(asked.is_err(), "{what}: the server knows nothing of {asked:?}");
    let seen = tcp_seen(&mut tap, pod, node, family);
    assert!(seen.is_empty(), "{what}: spoke: {seen:#?}");
    // What begins now is another connection.
    let mut anew = ok(Conversation::open(&pod.netns, server(family)));
    for _ in 0..2 {
        assert_eq!(ok(anew.ask()), node.address.of(family), "{what}");
    }
}

#[test]
fn what_a_released_pods_connections_still_send_does_not_leave() {
    let cnis = [Cni::Masquerade { priority: 100 }, Cni::PlainSnat];
    for (cni, at_gateway) in cnis.into_iter().flat_map(|cni| [(cni, false), (cni, true)]) {
        // Nothing is remembered where no plan is left: of a lab that goes on, the other node's pods would still be heard.
        let lab = Lab::new(Options {
            cni,
            ..Options::default()
        });
        let Topology { source, gateway, .. } = &lab.topology;
        let node = if at_gateway { gateway } else { source };
        // The node goes on with the policy, or with none.
        for staying in [&[&node.pods[1]][..], &[]] {
            for family in FAMILIES {
                release(&lab, node, staying, family);
            }
        }
    }
}

fn remembers(node: &Node, pod: &Pod) -> bool {
    let listed = node.netns.run(|| {
        let list = ["list", "set", "inet", "egressnat", "released4"];
        Command::new("nft").args(list).output()
    });
    let listed = ok(ok(listed));
    String::from_utf8_lossy(&listed.stdout).contains(&pod.address.of(Family::V4).to_string())
}

#[test]
fn only_what_is_cut_leaves_something_to_remember() {
    let mut lab = Lab::new(Options::default());
    for at_gateway in [false, true] {
        let Topology { source, gateway, .. } = &lab.topology;
        let node = if at_gateway { gateway } else { source };
        let before = Snapshot::of(node);
        let pod = &node.pods[0];
        // A datagram's, and one of TCP that has ended.
        lab.apply(&[policy(&lab, &[pod])]);
        let ended = ok(Conversation::open(&pod.netns, server(Family::V4)));
        ok(ended.reset());
        ok(Flow::open(&pod.netns, server(Family::V4)).and_then(|flow| flow.ask()));
        lab.apply(&[]);
        before.assert_unchanged(node, "nothing was cut");

        let [open] = released(&lab, node, &[], Family::V4);
        assert!(remembers(node, pod));
        let remembering = Snapshot::of(node);
        lab.start_agents();
        lab.apply(&[]);
        let Topology { source, gateway, .. } = &lab.topology;
        let node = if at_gateway { gateway } else { source };
        remembering.assert_unchanged(node, "another process");
        drop(open);
        lab.remove();
        before.assert_unchanged(node, "the plan has gone");
    }
}

/// It has taken the pod out of the table, and no connection from conntrack.
#[test]
fn a_connection_is_cut_where_the_agent_ended_before_it_could_do_that() {
    let mut lab = Lab::new(Options::default());
    lab.start_agents_with(&["--unsafe-without", "conntrack"]);
    let family = Family::V4;
    let staying = [&lab.topology.source.pods[1]];
    let [mut talk] = released(&lab, &lab.topology.source, &staying, family);
    assert_eq!(
        ok(talk.ask()),
        lab.topology.gateway.egress.of(family),
        "the probe"
    );
    lab.start_agents();
    let (source, staying) = (&lab.topology.source, [&lab.topology.source.pods[1]]);
    lab.apply(&[policy(&lab, &staying)]);
    let mut tap = ok(lab.topology.tap());
    assert!(talk.ask().is_err(), "it is cut");
    assert_eq!(tcp_seen(&mut tap, &source.pods[0], source, family), []);
}

/// The kernel takes no new base chain in the transaction that takes over what a former process has left.
#[test]
fn an_agent_that_finds_only_what_is_remembered_programs_the_next_policy() {
    let mut lab = Lab::new(Options::default());
    let [_talk] = released(&lab, &lab.topology.source, &[], Family::V4);
    lab.stop_agents();
    lab.start_agents();
    let Topology { source, gateway, .. } = &lab.topology;
    lab.apply(&[policy(&lab, &[&source.pods[0]])]);
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
}
