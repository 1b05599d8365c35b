//! Other programs' rules that are in our way: seen when they come and when they go, before the start and after it.

use std::{process::Command, time::Duration};

use egressnat_agent::{agent::Report, error::AgentError};
use egressnat_crds::EgressPlanSpec;
use egressnat_e2e::topology::{Node, Options, SEGMENT, SERVER, Topology};

use crate::{
    agent::Agent,
    lab::{Lab, ok},
    plan::Policy,
    programs::PROGRAMS,
};

const NOTICE: Duration = Duration::from_secs(5);

/// What stands in the way, on which node, and what is said.
struct Case {
    name: &'static str,
    script: &'static str,
    on_gateway: bool,
    category: &'static str,
    /// In the message.
    words: &'static [&'static str],
}

/// As Docker leaves the chain where nobody excepts the pods.
const DOCKER: &str = "
iptables-nft -P FORWARD DROP
iptables-nft -N DOCKER-USER
iptables-nft -A DOCKER-USER -j RETURN
iptables-nft -A FORWARD -j DOCKER-USER
iptables-nft -N DOCKER
iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables-nft -A FORWARD -o docker0 -j DOCKER
iptables-nft -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
iptables-nft -A FORWARD -i docker0 -o docker0 -j ACCEPT
iptables-nft -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT";

/// kube-proxy's chain beside it lets replies and what it has marked pass, and no more.
const DOCKER_AND_KUBE_PROXY: &str = "
iptables-nft -P FORWARD DROP
iptables-nft -N KUBE-FORWARD
iptables-nft -N KUBE-SERVICES
iptables-nft -A FORWARD -m comment --comment 'kubernetes forwarding rules' -j KUBE-FORWARD
iptables-nft -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
iptables-nft -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
iptables-nft -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
iptables-nft -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";

/// An administrator's own, as the examples of nftables have it.
const BY_HAND: &str = "nft -f - <<'EOF'
table inet mine {
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state vmap { established : accept, related : accept, invalid : drop }
    iifname { \"lo\", \"wg0\" } accept
    ip saddr 192.168.0.0/16 accept
    tcp dport { 22, 80, 443 } ip daddr 192.0.2.1 accept
  }
}
EOF";

/// firewalld with no zone for the pods.
const FIREWALLD: &str = "nft -f - <<'EOF'
table inet firewalld {
  chain filter_FORWARD {
    type filter hook forward priority filter + 10;
    ct state { established, related } accept
    ct status dnat accept
    iifname lo accept
    jump filter_FORWARD_ZONES
    ct state invalid drop
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD_ZONES { iifname docker0 accept; }
}
EOF";

/// Its filter of reverse paths, strict.
const STRICT: &str = "nft -f - <<'EOF'
table inet firewalld {
  chain filter_PREROUTING {
    type filter hook prerouting priority filter + 10;
    icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
    meta nfproto ipv6 fib saddr . mark . iif oif missing drop
  }
}
EOF";

/// Nothing comes in but what is excepted.
const INPUT: &str = "
iptables-nft -A INPUT -i lo -j ACCEPT
iptables-nft -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables-nft -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
iptables-nft -A INPUT -p udp -m udp --dport 8472 -j ACCEPT
iptables-nft -A INPUT -j REJECT";

const CASES: [Case; 11] = [
    Case {
        name: "Docker",
        script: DOCKER,
        on_gateway: false,
        category: "FirewallDrops",
        words: &["FORWARD of table ip filter", "way to the gateway", "IPv4"],
    },
    Case {
        name: "Docker, on the gateway",
        script: DOCKER,
        on_gateway: true,
        category: "FirewallDrops",
        words: &["FORWARD of table ip filter", "gateway is to pass on"],
    },
    Case {
        name: "Docker and kube-proxy",
        script: DOCKER_AND_KUBE_PROXY,
        on_gateway: false,
        category: "FirewallDrops",
        words: &["FORWARD of table ip filter"],
    },
    Case {
        name: "by hand",
        script: BY_HAND,
        on_gateway: true,
        category: "FirewallDrops",
        words: &["forward of table inet mine"],
    },
    Case {
        name: "firewalld",
        script: FIREWALLD,
        on_gateway: false,
        category: "FirewallDrops",
        words: &["filter_FORWARD of table inet firewalld"],
    },
    Case {
        name: "firewalld's reverse path filter",
        script: STRICT,
        on_gateway: false,
        category: "FirewallDrops",
        words: &["filter_PREROUTING of table inet firewalld", "out of the tunnel", "IPv6"],
    },
    Case {
        name: "no way in",
        script: INPUT,
        on_gateway: true,
        category: "FirewallDrops",
        words: &["INPUT of table ip filter", "the tunnel's own packets"],
    },
    Case {
        name: "marks overwritten",
        script: "iptables-nft -t mangle -A FORWARD -j MARK --set-mark 5",
        on_gateway: true,
        category: "MarkOverwritten",
        words: &["FORWARD of table ip mangle", "0x3f000000", "packet mark"],
    },
    Case {
        name: "connection marks overwritten",
        script: "nft -f - <<'EOF'
table inet mine { chain out { type filter hook postrouting priority 0; ct mark set meta mark; }; }
EOF",
        on_gateway: false,
        category: "MarkOverwritten",
        words: &["out of table inet mine", "0x3fff0000", "connection mark"],
    },
    Case {
        name: "marks read",
        script: "iptables-nft -A FORWARD -m mark --mark 0x1000000/0x1000000 -j ACCEPT",
        on_gateway: false,
        category: "MarkRead",
        words: &["FORWARD of table ip filter", "0x1000000"],
    },
    Case {
        name: "connection marks read",
        script: "nft -f - <<'EOF'
table inet mine { chain pre { type filter hook prerouting priority 0; ct mark and 0xff0000 == 0x40000 accept; }; }
EOF",
        on_gateway: false,
        category: "MarkRead",
        words: &["pre of table inet mine", "0x40000", "connection mark"],
    },
];

/// What keeps an agent from working.
const REFUSED: [Case; 5] = [
    Case {
        name: "a mark of ours",
        script: "iptables-nft -t mangle -A PREROUTING -i eth1 -j MARK --set-xmark 0x21000000/0xff000000",
        on_gateway: false,
        category: "ClashMark",
        words: &["PREROUTING of table ip mangle", "0x21000000", "routing.markMask"],
    },
    Case {
        name: "a mark of ours, kube-proxy's",
        script: "nft -f - <<'EOF'
table ip kube-proxy { chain mark-for-masquerade { mark set mark or 0x4000000; }; }
EOF",
        on_gateway: false,
        category: "ClashMark",
        words: &["mark-for-masquerade of table ip kube-proxy", "0x4000000"],
    },
    Case {
        name: "a connection mark of ours",
        script: "iptables-nft -t mangle -A PREROUTING -i eth1 -j CONNMARK --set-mark 0x40000/0xff0000",
        on_gateway: false,
        category: "ClashMark",
        words: &["PREROUTING of table ip mangle", "0x40000", "connection mark"],
    },
    Case {
        name: "the id out of the tunnel",
        script: "iptables-nft -t mangle -A PREROUTING -m addrtype ! --dst-type LOCAL -j MARK --set-xmark 0x2000/0x2000",
        on_gateway: true,
        category: "ClashPolicyId",
        words: &["PREROUTING of table ip mangle", "0x2000"],
    },
    Case {
        name: "the id in the tunnel",
        script: "nft -f - <<'EOF'
table inet mine { chain out { type filter hook postrouting priority 0; oifname != eth0 meta mark set meta mark or 0x80; }; }
EOF",
        on_gateway: false,
        category: "ClashPolicyId",
        words: &["out of table inet mine", "0x80"],
    },
];

/// Rules with marks as kube-proxy, portmap, AWS, Tailscale, flannel and Cilium have them.
const HARMLESS: &str = "
iptables-nft -t nat -N KUBE-MARK-MASQ
iptables-nft -t nat -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
iptables-nft -t nat -N CNI-HOSTPORT-SETMARK
iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-SETMARK
iptables-nft -t nat -A CNI-HOSTPORT-SETMARK -j MARK --set-xmark 0x2000/0x2000
iptables-nft -t mangle -A PREROUTING -i eth0 -j CONNMARK --set-xmark 0x80/0x80
iptables-nft -t mangle -A PREROUTING -i pod+ -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
iptables-nft -A FORWARD -i tailscale0 -j MARK --set-xmark 0x40000/0xff0000
iptables-nft -A FORWARD -m mark --mark 0x40000/0xff0000 -j ACCEPT
iptables-nft -t nat -A POSTROUTING -m mark --mark 0x4000 -j RETURN
iptables-nft -t mangle -A PREROUTING -m mark --mark 0x200/0xf00 -j ACCEPT";

fn run(node: &Node, script: &str) {
    ok(node.netns.output(Command::new("sh").args(["-ec", script])));
}

/// All tables but ours go.
fn clean(node: &Node) {
    let script = "nft list tables | grep -v egressnat | while read -r table; do nft delete $table; done";
    run(node, script);
}

fn policies(topology: &Topology) -> [Policy; 1] {
    let Topology { source, gateway, .. } = topology;
    let policy = Policy::new(7).to(&SEGMENT).via(gateway, gateway.egress);
    [policy.select(&source.pods[0])]
}

/// The node of a case, its agent and its plan.
fn of<'a>(lab: &'a Lab, case: &Case) -> (&'a Node, &'a Agent, EgressPlanSpec) {
    let Topology { source, gateway, .. } = &lab.topology;
    let (node, agent) = match case.on_gateway {
        true => (gateway, &lab.gateway),
        false => (source, &lab.source),
    };
    (node, agent, lab.plan(node, &policies(&lab.topology)))
}

fn warnings(report: &Report) -> Vec<(&'static str, String)> {
    let warnings = report.warnings.iter();
    warnings.map(|w| (w.category(), w.to_string())).collect()
}

#[track_caller]
fn assert_said(said: &[(&'static str, String)], case: &Case) {
    let Case {
        name,
        category,
        words,
        ..
    } = case;
    let has = |(found, text): &(&str, String)| found == category && words.iter().all(|w| text.contains(w));
    assert!(said.iter().any(has), "{name}: {said:#?}");
    assert!(
        said.iter().all(|(found, _)| found == category),
        "{name}: {said:#?}"
    );
}

#[test]
fn what_hinders_packets_is_said_when_it_comes_and_until_it_goes() {
    let lab = Lab::new(Options::default());
    let before = lab.apply(&policies(&lab.topology));
    assert_eq!(before.warnings, []);
    for case in &CASES {
        let (node, agent, plan) = of(&lab, case);
        let name = case.name;
        run(node, case.script);
        assert!(agent.changed(NOTICE), "{name} was not noticed");
        assert_said(&warnings(&ok(agent.sync(Some(&plan)))), case);
        // One that looks at everything, as when it starts, finds it as well.
        agent.distrust();
        assert_said(&warnings(&ok(agent.sync(Some(&plan)))), case);
        clean(node);
        assert!(agent.changed(NOTICE), "{name} is gone, which was not noticed");
        assert_eq!(ok(agent.sync(Some(&plan))).warnings, [], "{name} is gone");
    }
    let Topology { source, gateway, .. } = &lab.topology;
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
}

/// What is said to be dropped is: the rules of the cases are right.
#[test]
fn what_is_said_to_be_dropped_is_dropped() {
    for case in CASES.iter().filter(|case| case.category == "FirewallDrops") {
        let lab = Lab::new(Options::default());
        lab.apply(&policies(&lab.topology));
        let Topology { source, gateway, .. } = &lab.topology;
        lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
        let server = match case.words.contains(&"IPv6") {
            true => SERVER.v6.into(),
            false => SERVER.v4.into(),
        };
        run(of(&lab, case).0, case.script);
        let answer = egressnat_e2e::topology::ask_tcp(&source.pods[0].netns, server);
        assert!(answer.is_err(), "{}: {answer:?}", case.name);
    }
}

#[test]
fn what_would_be_taken_for_ours_is_refused_until_it_goes() {
    for case in &REFUSED {
        let lab = Lab::new(Options::default());
        let (node, agent, plan) = of(&lab, case);
        run(node, case.script);
        let refused = |agent: &Agent| match agent.sync(Some(&plan)) {
            Err(AgentError::Clash(clashes)) => {
                clashes.iter().map(|c| (c.category(), c.to_string())).collect()
            }
            other => panic!("{}: {other:?}", case.name),
        };
        let said: Vec<_> = refused(agent);
        assert_said(&said, case);
        clean(node);
        lab.apply(&policies(&lab.topology));
        let Topology { source, gateway, .. } = &lab.topology;
        lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
        // What is in force stays, where it comes while the agent runs.
        run(node, case.script);
        assert!(agent.changed(NOTICE), "{} was not noticed", case.name);
        assert_said(&refused(agent), case);
        clean(node);
        assert!(
            agent.changed(NOTICE),
            "{} is gone, which was not noticed",
            case.name
        );
        assert_eq!(ok(agent.sync(Some(&plan))).warnings, []);
    }
}

#[test]
fn what_others_are_known_to_write_hinders_nothing() {
    let lab = Lab::new(Options::default());
    lab.apply(&policies(&lab.topology));
    let Topology { source, gateway, .. } = &lab.topology;
    for node in [source, gateway] {
        run(node, HARMLESS);
        PROGRAMS.iter().for_each(|program| program.write(node));
    }
    for agent in [&lab.source, &lab.gateway] {
        agent.distrust();
    }
    let said = lab.apply(&policies(&lab.topology)).warnings;
    assert_eq!(said, []);
    let plan = lab.plan(gateway, &policies(&lab.topology));
    assert_eq!(ok(lab.gateway.sync(Some(&plan))).warnings, []);
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
}

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
            ok(egressnat_e2e::wait::until(script, NOTICE, || {
                if lab.gateway.changed(NOTICE) {
                    let said = warnings(&ok(lab.gateway.sync(Some(&plan))));
                    let categories: std::collections::BTreeSet<_> =
                        said.iter().map(|(category, _)| *category).collect();
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
    let bypassing: std::net::IpAddr = "172.30.0.77".parse().expect("an address");
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
