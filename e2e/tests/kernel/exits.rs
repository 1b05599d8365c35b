//! Egress addresses on a second interface of the gateway: they leave by it, and by no other.

use std::{net::IpAddr, time::Duration};

use egressnat_agent::{agent::Report, owned::Drop as DropReason};
use egressnat_crds::plan::Family as PlanFamily;
use egressnat_e2e::topology::{
    Dual, ELSEWHERE, FAMILIES, Options, Packet, Pod, ROUTER, SERVER, Topology, Uplink, ask_udp, knock_udp,
    ping,
};

use crate::{
    agent::Agent,
    lab::{Lab, assert_answered, assert_dropped, ok},
    plan::{EVERYWHERE, Policy},
};

/// What is told at all is told well within it.
const SOON: Duration = Duration::from_secs(5);
/// A change that is told is told in a fifth of a second.
const SILENCE: Duration = Duration::from_millis(400);

fn lab(src_valid_mark: bool) -> Lab {
    Lab::new(Options {
        uplink: true,
        src_valid_mark,
        ..Options::default()
    })
}

fn uplink(topology: &Topology) -> &Uplink {
    topology.uplink.as_ref().expect("the lab has an uplink")
}

/// Everything of a pod off the gateway and one on it leaves with the addresses that the gateway has there.
fn policy(topology: &Topology) -> Policy {
    with(topology, uplink(topology).address)
}

fn with(topology: &Topology, address: Dual) -> Policy {
    let Topology { source, gateway, .. } = topology;
    Policy::new(7)
        .to(&EVERYWHERE)
        .via(gateway, address)
        .select(&source.pods[0])
        .select(&gateway.pods[0])
}

fn selected(topology: &Topology) -> [&Pod; 2] {
    [&topology.source.pods[0], &topology.gateway.pods[0]]
}

/// Whatever the pod sends to the server leaves by the second interface with this address, and none of it by another.
#[track_caller]
fn assert_by_uplink(lab: &Lab, pod: &Pod, server: IpAddr, expected: IpAddr) {
    let (mut there, mut elsewhere) = (ok(uplink(&lab.topology).tap()), ok(lab.topology.tap()));
    assert_answered(pod, server, expected);
    ok(ping(&pod.netns, server));
    let to_server = |packet: &Packet| packet.destination == server;
    let request = ok(there.wait_for("an echo request", |p| to_server(p) && p.is_ping()));
    assert_eq!(request.source, expected, "{} to {server} by ICMP", pod.name);
    let others = ok(there.count(|packet| to_server(packet) && packet.source != expected));
    assert_eq!(others, 0, "{} to {server} with another address", pod.name);
    assert_eq!(
        ok(elsewhere.count(to_server)),
        0,
        "{} to {server} elsewhere",
        pod.name
    );
}

/// What the pod sends to a server beyond leaves by no interface at all. Another pod's, by the main table, does.
#[track_caller]
fn assert_by_none(lab: &Lab, pod: &Pod, server: IpAddr) {
    let (mut there, mut elsewhere) = (ok(uplink(&lab.topology).tap()), ok(lab.topology.tap()));
    ok(knock_udp(&pod.netns, server));
    ask_udp(&pod.netns, server).expect_err("an answer");
    let other = &lab.topology.gateway.pods[1];
    ok(ping(&other.netns, server));
    let to_server = |packet: &Packet| packet.destination == server;
    ok(elsewhere.wait_for("the other pod's echo request", |p| to_server(p) && p.is_ping()));
    assert_eq!(
        ok(elsewhere.count(|p| to_server(p) && !p.is_ping())),
        0,
        "{}",
        pod.name
    );
    assert_eq!(ok(there.count(to_server)), 0, "{}", pod.name);
}

#[track_caller]
fn assert_in_force(lab: &Lab, address: Dual) {
    for pod in selected(&lab.topology) {
        for family in FAMILIES {
            for server in [ELSEWHERE, ROUTER] {
                assert_by_uplink(lab, pod, server.of(family), address.of(family));
            }
        }
    }
}

/// Changes the gateway's network; its agent hears of that, and brings the same plan in step.
#[track_caller]
fn notice(lab: &Lab, policies: &[Policy], what: &str, change: impl FnOnce()) -> Report {
    while lab.gateway.changed(SILENCE) {}
    change();
    assert!(lab.gateway.changed(SOON), "{what}: unnoticed");
    ok(lab.gateway.sync(Some(&lab.plan(&lab.topology.gateway, policies))))
}

fn rp_filter(lab: &Lab) -> String {
    let shown = lab
        .topology
        .gateway
        .netns
        .output(std::process::Command::new("sysctl").args(["-n", "net.ipv4.conf.eth1.rp_filter"]));
    ok(shown).trim().to_owned()
}

#[test]
fn an_address_of_the_second_interface_leaves_by_it_with_src_valid_mark_and_without() {
    for src_valid_mark in [false, true] {
        let lab = lab(src_valid_mark);
        let Topology { source, gateway, .. } = &lab.topology;
        lab.assert_seen(&source.pods[0], ELSEWHERE, source.address);
        lab.apply(&[policy(&lab.topology)]);
        assert_in_force(&lab, uplink(&lab.topology).address);
        for node in [source, gateway] {
            lab.assert_seen(&node.pods[1], ELSEWHERE, node.address);
            lab.assert_seen(&node.pods[1], SERVER, node.address);
        }
        for agent in [&lab.source, &lab.gateway] {
            for reason in DropReason::ALL {
                assert_eq!(agent.dropped(reason), 0, "{}", reason.counter());
            }
        }
    }
}

#[test]
fn each_policy_and_each_family_has_the_interface_of_its_address() {
    let lab = lab(true);
    let Topology { source, gateway, .. } = &lab.topology;
    let (here, there) = (gateway.egress, uplink(&lab.topology).address);
    let by_v4_alone = [there.v4.into(), here.v6.into()];
    lab.apply(&[
        Policy::new(7)
            .to(&EVERYWHERE)
            .via_only(gateway, &by_v4_alone)
            .select(&source.pods[0])
            .select(&gateway.pods[0]),
        Policy::new(8)
            .to(&EVERYWHERE)
            .via(gateway, here)
            .select(&source.pods[1])
            .select(&gateway.pods[1]),
    ]);
    for node in [source, gateway] {
        assert_by_uplink(&lab, &node.pods[0], ELSEWHERE.v4.into(), there.v4.into());
        assert_answered(&node.pods[0], ELSEWHERE.v6.into(), here.v6.into());
        lab.assert_seen(&node.pods[1], ELSEWHERE, here);
    }
}

#[test]
fn the_reverse_path_filter_is_loose_while_it_must_be_and_then_what_it_was() {
    let mut lab = lab(true);
    let policies = [policy(&lab.topology)];
    assert_eq!(rp_filter(&lab), "1");
    lab.apply(&policies);
    assert_eq!(rp_filter(&lab), "2");
    let (pod, server) = (&lab.topology.source.pods[0], ELSEWHERE.v4.into());
    assert_answered(pod, server, uplink(&lab.topology).address.v4.into());
    // Somebody else makes it strict again: this is what it is loose for.
    ok(lab
        .topology
        .gateway
        .netns
        .sysctl("net.ipv4.conf.eth1.rp_filter", "1"));
    ask_udp(&pod.netns, server).expect_err("an answer");
    lab.gateway.distrust();
    lab.apply(&policies);
    assert_answered(pod, server, uplink(&lab.topology).address.v4.into());
    // The next agent knows what it was.
    lab.stop_agents();
    lab.start_agents();
    lab.apply(&policies);
    assert_eq!(rp_filter(&lab), "2");
    lab.apply(&[with(&lab.topology, lab.topology.gateway.egress)]);
    assert_eq!(rp_filter(&lab), "1");
    lab.apply(&policies);
    lab.stop_agents();
    lab.start_agents();
    lab.remove();
    assert_eq!(rp_filter(&lab), "1");
    // What somebody wants loose stays so.
    ok(lab
        .topology
        .gateway
        .netns
        .sysctl("net.ipv4.conf.eth1.rp_filter", "2"));
    lab.apply(&policies);
    lab.remove();
    assert_eq!(rp_filter(&lab), "2");
}

#[test]
fn without_a_next_hop_packets_beyond_are_dropped_and_never_leave_by_another_interface() {
    let lab = lab(true);
    let policies = [policy(&lab.topology)];
    let (gateway, address) = (&lab.topology.gateway.netns, uplink(&lab.topology).address);
    lab.apply(&policies);
    assert_in_force(&lab, address);
    let gone = "route del 0.0.0.0/0 dev eth1 metric 2000\nroute del ::/0 dev eth1 metric 2000";
    let report = notice(&lab, &policies, "the next hop goes", || ok(gateway.ip(gone)));
    let families = [PlanFamily::IPv4, PlanFamily::IPv6];
    assert_eq!(
        report.stranded,
        families.map(|family| ("eth1".into(), family)).into()
    );
    let [exit] = report.exits.as_slice() else {
        panic!("{:?}", report.exits)
    };
    assert_eq!((exit.interface.as_str(), &exit.next_hops), ("eth1", &vec![]));
    assert_eq!(exit.stranded().copied().collect::<Vec<_>>(), address.both());
    for pod in selected(&lab.topology) {
        for family in FAMILIES {
            assert_by_none(&lab, pod, ELSEWHERE.of(family));
            assert_by_uplink(&lab, pod, ROUTER.of(family), address.of(family));
        }
    }
    // Refused by the exit's own table: none fell through to the main one's.
    assert_eq!(lab.gateway.dropped(DropReason::WrongDoor), 0);
    // As nodes with several networks have it.
    let back = format!(
        "route add 0.0.0.0/0 via {} table 101\nroute add ::/0 via {} table 101",
        ROUTER.v4, ROUTER.v6
    );
    let report = notice(&lab, &policies, "a next hop comes", || ok(gateway.ip(&back)));
    assert_eq!(report.stranded, [].into());
    assert_eq!(report.exits[0].stranded().count(), 0);
    let next_hops: Vec<_> = report.exits[0].next_hops.iter().map(|hop| hop.via).collect();
    assert_eq!(next_hops, ROUTER.both().map(Some));
    assert_in_force(&lab, address);
}

#[test]
fn while_the_interface_is_down_packets_leave_by_no_other() {
    let lab = lab(true);
    let policies = [policy(&lab.topology)];
    let (gateway, uplink) = (&lab.topology.gateway, uplink(&lab.topology));
    lab.apply(&policies);
    assert_in_force(&lab, uplink.address);
    // Before the agent acts, and after.
    ok(gateway.netns.ip("link set eth1 down"));
    for pod in selected(&lab.topology) {
        for family in FAMILIES {
            assert_by_none(&lab, pod, ELSEWHERE.of(family));
        }
    }
    assert!(lab.gateway.changed(SOON), "the interface goes down: unnoticed");
    ok(lab.gateway.sync(Some(&lab.plan(gateway, &policies))));
    for pod in selected(&lab.topology) {
        for family in FAMILIES {
            assert_by_none(&lab, pod, ELSEWHERE.of(family));
        }
    }
    notice(&lab, &policies, "the interface comes up", || {
        ok(uplink.connect(gateway))
    });
    assert_in_force(&lab, uplink.address);
}

#[test]
fn an_address_that_moves_to_the_other_interface_leaves_by_it() {
    let lab = lab(true);
    let Topology { gateway, .. } = &lab.topology;
    let egress = gateway.egress;
    let policies = [with(&lab.topology, egress)];
    let route = |address: IpAddr| format!("route add {address} dev gateway\n");
    ok(uplink(&lab.topology).netns.ip(&egress.both().map(route).concat()));
    lab.apply(&policies);
    let by_main = || {
        for pod in selected(&lab.topology) {
            lab.assert_seen(pod, ELSEWHERE, egress);
        }
    };
    by_main();
    let moves = |from: &str, to: &str| {
        let Dual { v4, v6 } = egress;
        ok(gateway.netns.ip(&format!(
            "addr del {v4}/32 dev {from}\naddr add {v4}/32 dev {to}\n\
             addr del {v6}/128 dev {from}\naddr add {v6}/128 dev {to} nodad preferred_lft 0"
        )));
    };
    notice(&lab, &policies, "the address moves", || moves("eth0", "eth1"));
    assert_in_force(&lab, egress);
    notice(&lab, &policies, "the address moves back", || {
        moves("eth1", "eth0")
    });
    by_main();
}

#[test]
fn an_address_that_goes_and_comes_back_is_noticed() {
    let lab = lab(true);
    let policies = [policy(&lab.topology)];
    let (gateway, uplink) = (&lab.topology.gateway, uplink(&lab.topology));
    lab.apply(&policies);
    assert_in_force(&lab, uplink.address);
    let report = notice(&lab, &policies, "the addresses go", || {
        ok(gateway.netns.ip("addr flush dev eth1 scope global"));
    });
    assert_eq!(report.missing, uplink.address.both().into());
    for pod in selected(&lab.topology) {
        for family in FAMILIES {
            assert_by_none(&lab, pod, ELSEWHERE.of(family));
        }
    }
    notice(&lab, &policies, "the addresses come", || {
        ok(uplink.connect(gateway));
    });
    assert_in_force(&lab, uplink.address);
}

#[test]
fn a_pod_that_comes_leaves_by_the_interface_as_well() {
    let lab = lab(true);
    let gateway = &lab.topology.gateway;
    let (first, both) = (
        policy(&lab.topology),
        policy(&lab.topology).select(&gateway.pods[1]),
    );
    lab.apply(std::slice::from_ref(&first));
    lab.assert_seen(&gateway.pods[1], ELSEWHERE, gateway.address);
    let both = [both];
    // The first try after a change knows what it has written; the second has nothing else to do.
    ok(lab.gateway.sync(Some(&lab.plan(gateway, &[first]))));
    let report = ok(lab.gateway.sync(Some(&lab.plan(gateway, &both))));
    assert_eq!(
        (report.nft_steps, report.net_steps),
        (3, 0),
        "one element in each family, and the pod's link"
    );
    let address = uplink(&lab.topology).address;
    for family in FAMILIES {
        let server = ELSEWHERE.of(family);
        assert_by_uplink(&lab, &gateway.pods[1], server, address.of(family));
    }
}

/// Until it is repaired, the packets would take the main table's way.
#[test]
fn while_the_rule_is_missing_packets_are_dropped() {
    let lab = lab(true);
    let policies = [policy(&lab.topology)];
    lab.apply(&policies);
    assert_in_force(&lab, uplink(&lab.topology).address);
    let gateway: (&Agent, _) = (&lab.gateway, &lab.topology.gateway.netns);
    let command = "ip -4 rule del priority 770 fwmark 0x1000000/0x3f000000; \
                   ip -6 rule del priority 770 fwmark 0x1000000/0x3f000000";
    ok(gateway
        .1
        .output(std::process::Command::new("bash").args(["-ec", command])));
    let mut elsewhere = ok(lab.topology.tap());
    for (dropped, family) in [2, 4].into_iter().zip(FAMILIES) {
        let server = ELSEWHERE.of(family);
        for pod in selected(&lab.topology) {
            ok(knock_udp(&pod.netns, server));
        }
        assert_dropped(gateway.0, DropReason::WrongDoor, dropped);
        assert_eq!(ok(elsewhere.count(|packet| packet.destination == server)), 0);
    }
    lab.gateway.distrust();
    lab.apply(&policies);
    assert_in_force(&lab, uplink(&lab.topology).address);
}

#[test]
fn an_agent_that_starts_finds_what_the_former_left() {
    let mut lab = lab(true);
    let policies = [policy(&lab.topology)];
    lab.apply(&policies);
    lab.stop_agents();
    lab.start_agents();
    let plan = lab.plan(&lab.topology.gateway, &policies);
    let report = ok(lab.gateway.sync(Some(&plan)));
    assert_eq!((report.net_steps, report.flows), (0, 0));
    assert!(report.nft_steps <= 1, "{} steps", report.nft_steps);
    assert_in_force(&lab, uplink(&lab.topology).address);
}
