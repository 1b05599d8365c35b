//! Connections that are older than the policy that comes to apply to their pod.

use std::{
    error::Error as _,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use egressnat_agent::owned::Drop as DropReason;
use egressnat_crds::policy::OnChange;
use egressnat_e2e::{
    topology::{
        Cni, Conversation, Dual, FAMILIES, Family, Flow, Node, Options, PORT, Packet, Pod, SEGMENT, SERVER,
        Tap, Topology, Transport,
    },
    wait,
};

use crate::{
    agent::Agent,
    lab::{Lab, meanwhile, ok},
    plan::Policy,
};

/// A Service's address.
const SERVICE: Dual = Dual::new([10, 96, 0, 50], [0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x50]);
const DEADLINE: Duration = Duration::from_secs(10);
/// How often a pod comes under the policy while it sends: without what keeps older connections from the policy's id,
/// one time in a few leaves such a connection with its node's address for good.
const ROUNDS: usize = 8;
/// Often enough that some packets fall between any two steps of a change, and not so often that the tap never ends.
const PACE: Duration = Duration::from_micros(200);

fn server(family: Family) -> SocketAddr {
    SocketAddr::new(SERVER.of(family), PORT)
}

/// The gateway for pods of the source node, and for its own.
fn sides(lab: &Lab) -> [(&Node, &Agent); 2] {
    let Topology { source, gateway, .. } = &lab.topology;
    [(source, &lab.source), (gateway, &lab.gateway)]
}

fn policy(lab: &Lab, pod: &Pod, on_change: OnChange) -> [Policy; 1] {
    let gateway = &lab.topology.gateway;
    let policy = Policy::new(7).to(&SEGMENT).via(gateway, gateway.egress);
    [policy.select(pod).on_change(on_change)]
}

/// Whether it is a packet for the server by TCP, or else by UDP.
fn of_protocol(packet: &Packet, family: Family, tcp: bool) -> bool {
    packet.destination == SERVER.of(family) && matches!(packet.transport, Transport::Tcp { .. }) == tcp
}

#[test]
fn a_tcp_connection_is_reset_at_its_next_packet_or_goes_on_with_the_policys_address() {
    for cni in [Cni::Masquerade { priority: 100 }, Cni::PlainSnat] {
        let lab = Lab::new(Options {
            cni,
            ..Options::default()
        });
        for (node, _) in sides(&lab) {
            for on_change in [OnChange::Cut, OnChange::Readdress] {
                for family in FAMILIES {
                    changes(&lab, node, family, on_change);
                }
            }
        }
    }
}

fn changes(lab: &Lab, node: &Node, family: Family, on_change: OnChange) {
    let what = format!("{} {family:?} {on_change:?}", node.name);
    let (pod, gateway) = (&node.pods[0], &lab.topology.gateway);
    let mut talk = ok(Conversation::open(&pod.netns, server(family)));
    assert_eq!(ok(talk.ask()), node.address.of(family), "{what}: the probe");
    lab.apply(&policy(lab, pod, on_change));
    let mut tap = ok(lab.topology.tap());
    let asked = talk.ask();
    assert!(asked.is_err(), "{what}: the server knows nothing of {asked:?}");
    let egress = gateway.egress.of(family);
    // Another connection, so that whatever was to be seen has been seen.
    assert_eq!(
        ok(Flow::open(&pod.netns, server(family)).and_then(|f| f.ask())),
        egress,
        "{what}"
    );
    ok(tap.wait_for("the flow", |p| {
        of_protocol(p, family, false) && p.source == egress
    }));
    let seen: Vec<IpAddr> = ok(tap.packets())
        .iter()
        .filter(|p| of_protocol(p, family, true))
        .map(|p| p.source)
        .collect();
    match on_change {
        OnChange::Cut => assert!(seen.is_empty(), "{what}: {seen:?}"),
        OnChange::Readdress => {
            assert!(!seen.is_empty(), "{what}");
            assert!(seen.iter().all(|source| *source == egress), "{what}: {seen:?}");
        }
    }
    lab.remove();
}

/// By one old flow, without a pause, while the policy comes: once it is in force, that flow is the policy's.
#[test]
fn a_flow_under_way_is_the_policys_once_that_is_in_force() {
    let lab = Lab::new(Options::default());
    for (node, agent) in sides(&lab) {
        let pod = &node.pods[0];
        for family in FAMILIES {
            for _ in 0..ROUNDS {
                let mut tap = ok(lab.topology.tap());
                while_sending(pod, family, || comes(&lab, &mut tap, (node, agent), pod, family));
                lab.remove();
            }
        }
    }
}

fn comes(lab: &Lab, tap: &mut Tap, (node, agent): (&Node, &Agent), pod: &Pod, family: Family) {
    let (gateway, own) = (&lab.topology.gateway, node.address.of(family));
    let sent_with = |address| move |p: &Packet| of_protocol(p, family, false) && p.source == address;
    ok(tap.wait_for("the node's address", sent_with(own)));
    lab.apply(&policy(lab, pod, OnChange::Cut));
    let since = ok(tap.packets()).len();
    let egress = sent_with(gateway.egress.of(family));
    // What was on its way when the packets were counted came before the first of the policy's.
    let first = ok(wait::until("the policy's address", DEADLINE, || {
        let packets = tap.packets().map_err(|error| error.to_string())?;
        let found = packets[since..].iter().position(&egress);
        found
            .map(|at| since + at)
            .ok_or_else(|| format!("dropped: {}", agent.dropped(DropReason::Older)))
    }));
    let wrong = ok(wait::until("more of them", DEADLINE, || {
        let packets = tap.packets().map_err(|error| error.to_string())?;
        let after = &packets[first..];
        let wrong = after
            .iter()
            .filter(|p| of_protocol(p, family, false) && !egress(p))
            .count();
        (after.len() >= 20)
            .then_some(wrong)
            .ok_or_else(|| after.len().to_string())
    }));
    assert_eq!(wrong, 0, "of {} {family:?}", node.name);
}

/// Runs `work` while the pod sends by one old flow.
fn while_sending(pod: &Pod, family: Family, work: impl FnOnce()) {
    let flow = ok(Flow::open(&pod.netns, server(family)));
    let send = || {
        // A refusal is no packet.
        let _ = flow.send();
        thread::sleep(PACE);
    };
    meanwhile(send, work);
}

/// The server is reached by a Service's address: the reset has to come from that one.
#[test]
fn a_connection_by_a_services_address_is_reset_from_that_address() {
    let lab = Lab::new(Options::default());
    for (node, _) in sides(&lab) {
        ok(node.netns.nft(&format!(
            "table inet services {{ chain prerouting {{ type nat hook prerouting priority -100;\n\
             ip daddr {} tcp dport {PORT} dnat ip to {}\n\
             ip6 daddr {} tcp dport {PORT} dnat ip6 to {}\n}}\n}}",
            SERVICE.v4, SERVER.v4, SERVICE.v6, SERVER.v6
        )));
        for family in FAMILIES {
            let (pod, what) = (&node.pods[0], format!("{} {family:?}", node.name));
            let service = SocketAddr::new(SERVICE.of(family), PORT);
            let mut talk = ok(Conversation::open(&pod.netns, service));
            assert_eq!(ok(talk.ask()), node.address.of(family), "{what}: the probe");
            lab.apply(&policy(&lab, pod, OnChange::Cut));
            let asked = talk.ask();
            let error = asked.expect_err(&format!("{what}: the connection is cut"));
            let cause = error.source().and_then(|e| e.downcast_ref::<std::io::Error>());
            assert_eq!(
                cause.map(std::io::Error::kind),
                Some(std::io::ErrorKind::ConnectionReset),
                "{what}: {error:?}"
            );
            let mut again = ok(Conversation::open(&pod.netns, service));
            assert_eq!(
                ok(again.ask()),
                lab.topology.gateway.egress.of(family),
                "{what}: anew"
            );
            lab.apply(&[]);
        }
    }
}
