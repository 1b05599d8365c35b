//! Beside what else stands on a node: masquerades of every priority, kube-proxy's rules, a forward policy of drop.

use std::process::Command;

use egressnat_e2e::topology::{Cni, ELSEWHERE, Node, Options, SEGMENT, SERVER, Topology};

use crate::{
    lab::{Lab, ok},
    plan::Policy,
    programs::PROGRAMS,
    sender::{Sender, is_senders},
};

/// What kube-proxy in nftables mode has on every node: marks of its own, its masquerade, no packet that
/// conntrack calls invalid.
const KUBE_PROXY: &str = "
table ip kube-proxy {
    chain filter-forward {
        type filter hook forward priority -110;
        ct state invalid drop
    }
    chain nat-prerouting {
        type nat hook prerouting priority -100;
        ip daddr 10.96.0.10 meta mark set meta mark or 0x4000 dnat to 172.30.0.101
    }
    chain nat-postrouting {
        type nat hook postrouting priority 100;
        meta mark & 0x4000 != 0 meta mark set meta mark & 0xffffbfff masquerade fully-random
    }
}
table ip6 kube-proxy {
    chain filter-forward {
        type filter hook forward priority -110;
        ct state invalid drop
    }
    chain nat-postrouting {
        type nat hook postrouting priority 100;
        meta mark & 0x4000 != 0 meta mark set meta mark & 0xffffbfff masquerade fully-random
    }
}";

/// Sets foreign bits before our chains, and counts packets that have them, and nothing else, after all of them.
const MARKS: &str = "
table inet marks {
    counter seen {
    }
    chain prerouting {
        type filter hook prerouting priority -120;
        iifname pod0 meta mark set 0x00402080
    }
    chain postrouting {
        type filter hook postrouting priority 200;
        meta mark 0x00402080 counter name seen
    }
}";

fn policy(topology: &Topology) -> [Policy; 1] {
    let Topology { source, gateway, .. } = topology;
    [Policy::new(7)
        .to(&SEGMENT)
        .via(gateway, gateway.egress)
        .select(&source.pods[0])
        .select(&gateway.pods[0])]
}

/// Selected pods leave with the egress address, all others and all else with their node's.
#[track_caller]
fn assert_in_force(lab: &Lab) {
    let Topology { source, gateway, .. } = &lab.topology;
    for node in [source, gateway] {
        lab.assert_seen(&node.pods[0], SERVER, gateway.egress);
        lab.assert_seen(&node.pods[1], SERVER, node.address);
        lab.assert_seen(&node.pods[0], ELSEWHERE, node.address);
    }
}

#[test]
fn a_cnis_translation_comes_after_ours_whatever_its_priority_says() {
    for priority in [90, 100, 110] {
        let lab = Lab::new(Options {
            cni: Cni::Masquerade { priority },
            ..Options::default()
        });
        lab.apply(&policy(&lab.topology));
        assert_in_force(&lab);
    }
    let lab = Lab::new(Options {
        cni: Cni::PlainSnat,
        ..Options::default()
    });
    lab.apply(&policy(&lab.topology));
    assert_in_force(&lab);
}

#[test]
fn a_cnis_table_that_comes_after_ours_changes_nothing() {
    let lab = Lab::new(Options::default());
    lab.apply(&policy(&lab.topology));
    for node in lab.topology.nodes() {
        let table = ok(node
            .netns
            .output(Command::new("nft").args(["list", "table", "inet", "cni"])));
        ok(node.netns.nft("delete table inet cni"));
        ok(node.netns.nft(&table));
    }
    assert_in_force(&lab);
}

fn assert_works_beside(ruleset: &str) {
    let lab = Lab::new(Options::default());
    let add = |node: &Node| ok(node.netns.nft(ruleset));
    lab.topology.nodes().into_iter().for_each(add);
    lab.apply(&policy(&lab.topology));
    assert_in_force(&lab);
}

#[test]
fn beside_kube_proxy() {
    assert_works_beside(KUBE_PROXY);
}

#[test]
fn foreign_bits_of_the_packet_mark_survive_and_ours_are_gone() {
    let lab = Lab::new(Options::default());
    lab.apply(&policy(&lab.topology));
    let Topology { gateway, .. } = &lab.topology;
    ok(gateway.netns.nft(MARKS));
    lab.assert_seen(&gateway.pods[0], SERVER, gateway.egress);
    let counters = ok(gateway
        .netns
        .output(Command::new("nft").args(["list", "counter", "inet", "marks", "seen"])));
    assert!(
        counters.contains("packets ") && !counters.contains("packets 0 "),
        "{counters}"
    );
}

/// What a program writes is there before ours, comes after it, and comes again and again while it is in force; meanwhile
/// pods send.
#[test]
fn beside_what_each_program_writes_before_after_and_again() {
    for program in PROGRAMS {
        for before in [true, false] {
            let lab = Lab::new(Options::default());
            let write = || {
                lab.topology
                    .nodes()
                    .into_iter()
                    .for_each(|node| program.write(node))
            };
            if before {
                write();
            }
            lab.apply(&policy(&lab.topology));
            let Topology { source, gateway, .. } = &lab.topology;
            let mut tap = ok(lab.topology.tap());
            let senders = [&source.pods[0], &gateway.pods[0]].map(Sender::start);
            for _ in 0..3 {
                write();
            }
            drop(senders);
            let seen = ok(tap.take());
            println!("beside {}, which was there before: {before}", program.name);
            assert_in_force(&lab);
            for address in gateway.egress.both() {
                let right = seen
                    .iter()
                    .filter(|p| is_senders(p) && p.source == address)
                    .count();
                assert!(right > 2, "{}: {right} of {address}", program.name);
            }
            let egress = gateway.egress.both();
            let wrong = seen.iter().find(|p| is_senders(p) && !egress.contains(&p.source));
            assert_eq!(wrong, None, "{}", program.name);
        }
    }
}
