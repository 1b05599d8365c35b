//! What is in our way beside rules: programs on links, settings, pods that pass their node by.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use egressnat_e2e::{topology::Options, wait};

use super::{NOTICE, policies, run, warnings};
use crate::lab::{Lab, ok};

/// Links, programs on them and settings, each with what makes it and what undoes it, on the gateway.
const SURROUNDINGS: [(&str, &str, &str, &[&str]); 6] = [
    (
        "tc qdisc add dev eth0 clsact; tc filter add dev eth0 egress bpf bytecode '1,6 0 0 4294967295,'",
        "tc qdisc del dev eth0 clsact",
        "BpfProgram",
        &["way out by eth0"],
    ),
    (
        "ip link add cilium_host type bridge",
        "ip link del cilium_host",
        "BpfProgram",
        &["Cilium", "cilium_host"],
    ),
    (
        "sysctl -qw net.ipv4.conf.eth0.forwarding=0",
        "sysctl -qw net.ipv4.conf.eth0.forwarding=1",
        "NoForwarding",
        &["come in by eth0", "net.ipv4.conf.eth0.forwarding=1"],
    ),
    (
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -qw net.ipv4.ip_forward=1",
        "NoForwarding",
        &[],
    ),
    (
        "ip link add other type bridge; ip link set other up; ip route add 172.30.0.2/32 dev other",
        "ip link del other",
        "ReversePathFilter",
        &["eth0", "172.30.0.2", "rp_filter=2"],
    ),
    (
        "iptables-legacy -A FORWARD -s 192.0.2.1 -j DROP",
        "",
        "LegacyIptables",
        &["filter", "IPv4"],
    ),
];

#[test]
fn what_hinders_beside_rules_is_said_until_it_goes() {
    for (make, undo, category, words) in SURROUNDINGS {
        let lab = Lab::new(Options::default());
        lab.apply(&policies(&lab.topology));
        let gateway = &lab.topology.gateway;
        let plan = lab.plan(gateway, &policies(&lab.topology));
        let said = || {
            lab.gateway.distrust();
            warnings(&ok(lab.gateway.sync(Some(&plan))))
        };
        assert_eq!(said(), [], "before {make}");
        run(gateway, make);
        let found = said();
        let is_it =
            |(found, text): &(&str, String)| *found == category && words.iter().all(|w| text.contains(w));
        assert!(found.iter().any(is_it), "{make}: {found:#?}");
        assert!(
            found.iter().all(|(found, _)| *found == category),
            "{make}: {found:#?}"
        );
        if !undo.is_empty() {
            run(gateway, undo);
            assert_eq!(said(), [], "after {undo}");
        }
    }
}

/// Those that the kernel announces are noticed when they come.
#[test]
fn programs_and_settings_are_noticed() {
    let lab = Lab::new(Options::default());
    lab.apply(&policies(&lab.topology));
    let gateway = &lab.topology.gateway;
    let plan = lab.plan(gateway, &policies(&lab.topology));
    for (make, undo, category, _) in &SURROUNDINGS[..4] {
        if make.contains("cilium") {
            continue;
        }
        while lab.gateway.changed(Duration::from_millis(300)) {
            ok(lab.gateway.sync(Some(&plan)));
        }
        for (script, expected) in [(make, vec![*category]), (undo, vec![])] {
            run(gateway, script);
            ok(wait::until(script, NOTICE, || {
                if lab.gateway.changed(NOTICE) {
                    let said = warnings(&ok(lab.gateway.sync(Some(&plan))));
                    let categories: BTreeSet<_> = said.iter().map(|(category, _)| *category).collect();
                    if categories.into_iter().eq(expected.iter().copied()) {
                        return Ok(());
                    }
                    return Err(format!("{said:?}"));
                }
                Err("not noticed".into())
            }));
        }
    }
}

/// A pod that hangs on the node's own network by a device that the node does not see.
#[test]
fn pods_that_pass_the_node_by_are_named() {
    let lab = Lab::new(Options::default());
    lab.apply(&policies(&lab.topology));
    let source = &lab.topology.source;
    let mut plan = lab.plan(source, &policies(&lab.topology));
    let bypassing: IpAddr = "172.30.0.77".parse().expect("an address");
    let mut pod = plan.pods[0].clone();
    (pod.uid, pod.name, pod.ips) = ("macvlan".into(), "default/macvlan".into(), vec![bypassing]);
    plan.pods.push(pod);
    plan.pods.sort_by(|a, b| a.uid.cmp(&b.uid));
    let looked = || {
        lab.source.distrust();
        warnings(&ok(lab.source.sync(Some(&plan))))
    };
    assert_eq!(looked(), [], "it may be on its way");
    let said = looked();
    let [("PodsBypass", text)] = said.as_slice() else {
        panic!("{said:?}")
    };
    for word in ["1 selected", "default/macvlan", "the node's own eth0"] {
        assert!(text.contains(word), "{text}");
    }
    ok(source.netns.ip("link add mv0 type bridge"));
    ok(source.netns.ip("link set mv0 up"));
    ok(source.netns.ip("route add 172.30.0.77/32 dev mv0"));
    assert_eq!(looked(), [], "it has a link of its own");
}
