//! Coming, staying, going: adoption, repair, removal.

use std::{net::SocketAddr, process::Command};

use egressnat_agent::owned::Drop as DropReason;
use egressnat_e2e::topology::{
    Conversation, ELSEWHERE, FAMILIES, Node, Options, PORT, Packet, SEGMENT, SERVER, Tap, Topology,
    knock_tcp, knock_udp,
};

use crate::{
    agent::Agent,
    lab::{Lab, assert_dropped, ok},
    plan::Policy,
    snapshot::Snapshot,
};

fn policies(topology: &Topology) -> [Policy; 2] {
    let Topology {
        source,
        gateway,
        second,
        ..
    } = topology;
    let elsewhere = ["198.51.100.0/24", "2001:db8:51::/48"];
    [
        Policy::new(7)
            .to(&SEGMENT)
            .via(gateway, gateway.egress)
            .select(&source.pods[0])
            .select(&gateway.pods[0]),
        Policy::new(8)
            .to(&elsewhere)
            .via(second, second.egress)
            .select(&source.pods[0]),
    ]
}

#[track_caller]
fn assert_in_force(lab: &Lab) {
    let Topology {
        source,
        gateway,
        second,
        ..
    } = &lab.topology;
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
    lab.assert_seen(&source.pods[0], ELSEWHERE, second.egress);
    lab.assert_seen(&gateway.pods[0], SERVER, gateway.egress);
}

#[test]
fn removal_leaves_nothing_and_pods_go_on_with_their_nodes_address() {
    let lab = Lab::new(Options::default());
    let before = lab.topology.nodes().map(Snapshot::of);
    // Twice: what comes back is as good as new.
    for _ in 0..2 {
        lab.apply(&policies(&lab.topology));
        assert_in_force(&lab);
        for (node, before) in lab.topology.nodes().into_iter().zip(&before) {
            before.assert_changed(node, "with a plan");
        }
        lab.remove();
        for (node, before) in lab.topology.nodes().into_iter().zip(&before) {
            before.assert_unchanged(node, "removed");
        }
        let Topology { source, gateway, .. } = &lab.topology;
        for node in [source, gateway] {
            lab.assert_seen(&node.pods[0], SERVER, node.address);
            lab.assert_seen(&node.pods[0], ELSEWHERE, node.address);
        }
    }
}

#[test]
fn removal_of_nothing_changes_nothing() {
    let lab = Lab::new(Options::default());
    let before = Snapshot::of(&lab.topology.source);
    assert!(!ok(lab.source.sync(None)).changed);
    before.assert_unchanged(&lab.topology.source, "without a plan");
}

#[test]
fn the_same_plan_again_writes_nothing() {
    let lab = Lab::new(Options::default());
    let policies = policies(&lab.topology);
    assert!(lab.apply(&policies).changed);
    let Topology {
        source,
        gateway,
        second,
        ..
    } = &lab.topology;
    for (agent, node) in [
        (&lab.source, source),
        (&lab.gateway, gateway),
        (&lab.second, second),
    ] {
        let plan = lab.plan(node, &policies);
        let before = Snapshot::of(node);
        assert!(!ok(agent.sync(Some(&plan))).changed, "{}: from memory", node.name);
        agent.distrust();
        assert!(
            !ok(agent.sync(Some(&plan))).changed,
            "{}: after reading everything",
            node.name
        );
        before.assert_unchanged(node, "the same plan");
    }
}

#[test]
fn the_datapath_stays_when_the_agent_ends_and_the_next_one_adopts_it() {
    let mut lab = Lab::new(Options::default());
    let policies = policies(&lab.topology);
    lab.apply(&policies);
    let open = |family| {
        let server = SocketAddr::new(SERVER.of(family), PORT);
        (
            family,
            ok(Conversation::open(&lab.topology.source.pods[0].netns, server)),
        )
    };
    let mut talks = FAMILIES.map(open);
    let egress = lab.topology.gateway.egress;
    let ask = |talks: &mut [(_, Conversation)]| {
        talks
            .iter_mut()
            .for_each(|(family, talk)| assert_eq!(ok(talk.ask()), egress.of(*family)));
    };
    ask(&mut talks);

    lab.stop_agents();
    assert_in_force(&lab);
    ask(&mut talks);

    lab.start_agents();
    let Topology {
        source,
        gateway,
        second,
        ..
    } = &lab.topology;
    for (agent, node) in [
        (&lab.source, source),
        (&lab.gateway, gateway),
        (&lab.second, second),
    ] {
        let before = Snapshot::of(node);
        let report = ok(agent.sync(Some(&lab.plan(node, &policies))));
        // Taking over the table's ownership is a message of its own, and changes nothing of what is in force.
        assert_eq!((report.net_steps, report.flows), (0, 0), "{}", node.name);
        assert!(report.nft_steps <= 1, "{}: {} steps", node.name, report.nft_steps);
        before.assert_unchanged(node, "the same plan");
        assert!(
            !ok(agent.sync(Some(&lab.plan(node, &policies)))).changed,
            "{}",
            node.name
        );
    }
    ask(&mut talks);
    assert_in_force(&lab);
}

#[test]
fn an_agent_that_finds_no_plan_removes_what_another_left() {
    let mut lab = Lab::new(Options::default());
    let before = lab.topology.nodes().map(Snapshot::of);
    lab.apply(&policies(&lab.topology));
    lab.stop_agents();
    lab.start_agents();
    lab.remove();
    for (node, before) in lab.topology.nodes().into_iter().zip(&before) {
        before.assert_unchanged(node, "removed");
    }
}

/// Breaks something on the node, and shows that it is broken; the agent's periodic check repairs it.
#[track_caller]
fn assert_repaired(lab: &Lab, (node, agent): (&Node, &Agent), how: &str, broken: impl FnOnce(&Node)) {
    let plan = lab.plan(node, &policies(&lab.topology));
    let before = Snapshot::of(node);
    broken(node);
    before.assert_changed(node, how);
    agent.distrust();
    assert!(ok(agent.sync(Some(&plan))).changed, "{how}");
    before.assert_unchanged(node, how);
}

#[test]
fn what_others_delete_or_change_is_repaired() {
    let lab = Lab::new(Options::default());
    lab.apply(&policies(&lab.topology));
    let Topology { source, gateway, .. } = &lab.topology;
    for (node, agent) in [(source, &lab.source), (gateway, &lab.gateway)] {
        for batch in [
            "rule del priority 770",
            "link set egressnat0 mtu 1300",
            "link set egressnat0 down",
            "link del egressnat0",
            "addr del 169.254.77.0/32 dev egressnat0",
            "neigh flush dev egressnat0 nud permanent",
        ] {
            assert_repaired(&lab, (node, agent), batch, |node| ok(node.netns.ip(batch)));
        }
        assert_repaired(&lab, (node, agent), "rp_filter", |node| {
            ok(node.netns.sysctl("net.ipv4.conf.egressnat0.rp_filter", "1"));
        });
    }
    assert_repaired(&lab, (source, &lab.source), "routes to a gateway", |node| {
        ok(node.netns.ip("route flush table 7701"));
    });
    assert_in_force(&lab);
}

/// Others cannot change the table at all as long as the agent lives.
#[test]
fn the_table_is_out_of_others_reach() {
    let lab = Lab::new(Options::default());
    lab.apply(&policies(&lab.topology));
    let node = &lab.topology.source;
    let before = Snapshot::of(node);
    assert!(before.contains("table inet egressnat"));
    for command in [
        "delete table inet egressnat",
        "flush chain inet egressnat prerouting",
    ] {
        node.netns.nft(command).expect_err(command);
        before.assert_unchanged(node, command);
    }
    ok(node.netns.nft("flush ruleset"));
    let Topology { source, gateway, .. } = &lab.topology;
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
}

/// Until it is repaired, a selected pod's packets would take the main table's way, out by the node.
#[test]
fn while_something_is_missing_packets_are_dropped() {
    for missing in [
        "ip -4 rule del priority 770; ip -6 rule del priority 770",
        "ip link del egressnat0",
    ] {
        let lab = Lab::new(Options::default());
        let Topology { source, gateway, .. } = &lab.topology;
        let policies = [Policy::new(7)
            .to(&SEGMENT)
            .via(gateway, gateway.egress)
            .select(&source.pods[0])];
        lab.apply(&policies);
        lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
        ok(source.netns.output(Command::new("bash").args(["-ec", missing])));
        let mut tap = ok(lab.topology.tap());
        for (dropped, family) in [2, 4].into_iter().zip(FAMILIES) {
            ok(knock_tcp(&source.pods[0].netns, SERVER.of(family)));
            ok(knock_udp(&source.pods[0].netns, SERVER.of(family)));
            assert_dropped(&lab.source, DropReason::WrongDoor, dropped);
        }
        assert_seen_as_nobody(&mut tap);
        lab.source.distrust();
        lab.apply(&policies);
        lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
    }
}

/// No packet for the server was seen.
#[track_caller]
fn assert_seen_as_nobody(tap: &mut Tap) {
    let for_server = |packet: &Packet| SERVER.both().contains(&packet.destination);
    assert_eq!(ok(tap.count(for_server)), 0);
}
