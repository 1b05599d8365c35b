//! Beside what else stands on a node: masquerades of every priority, kube-proxy's rules, a forward policy of drop.

use std::process::Command;

use egressnat_e2e::topology::{Cni, ELSEWHERE, Node, Options, SEGMENT, SERVER, Topology};

use crate::{
    lab::{Lab, ok},
    plan::Policy,
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

/// Docker's forward policy, and the CNI's exceptions from it, as iptables has them: pods' packets alone.
const DOCKER: &str = "
table ip filter {
    chain FORWARD {
        type filter hook forward priority 0; policy drop;
        ip saddr 10.241.0.0/16 accept
        ip daddr 10.241.0.0/16 accept
    }
}
table ip6 filter {
    chain FORWARD {
        type filter hook forward priority 0; policy drop;
        ip6 saddr fd00:10:241::/48 accept
        ip6 daddr fd00:10:241::/48 accept
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
fn beside_a_forward_policy_of_drop_with_exceptions_for_pods() {
    assert_works_beside(DOCKER);
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
