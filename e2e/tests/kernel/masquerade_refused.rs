//! A masquerade of somebody else's is noticed when it comes and when it goes, and ours is left out meanwhile.

use std::{process::Command, time::Duration};

use egressnat_crds::plan::Family::{self, IPv4, IPv6};
use egressnat_e2e::topology::{Node, SERVER};

use crate::{
    lab::{Lab, ok},
    masquerade::{lab, plan},
    programs::KINDNET,
};

const NOTICE: Duration = Duration::from_secs(5);
const BOTH: [Family; 2] = [IPv4, IPv6];

/// A program's rules, as it writes them, and the families whose pods' packets they give another source.
struct Case {
    name: &'static str,
    script: &'static str,
    families: &'static [Family],
    /// In the message, beside the families.
    chain: &'static str,
}

/// The bridge plugin's ipMasq with iptables: a chain per pod.
const IP_MASQ: &str = "
for v in 'iptables 10.241.1.11 10.241.1.0/24 224.0.0.0/4' 'ip6tables fd00:10:241:1::11 fd00:10:241:1::/64 ff00::/8'; do
  set -- $v
  $1-nft -t nat -N CNI-4a1b -m comment --comment pod 2>/dev/null || $1-nft -t nat -N CNI-4a1b
  $1-nft -t nat -A CNI-4a1b -d $3 -m comment --comment 'name: \"net\" id: \"4a1b\"' -j ACCEPT
  $1-nft -t nat -A CNI-4a1b ! -d $4 -m comment --comment 'name: \"net\" id: \"4a1b\"' -j MASQUERADE
  $1-nft -t nat -A POSTROUTING -s $2 -m comment --comment 'name: \"net\" id: \"4a1b\"' -j CNI-4a1b
done";

/// The same with nftables: a rule per pod.
const IP_MASQ_NFT: &str = "nft -f - <<'EOF'
table inet cni_plugins_masquerade {
  chain masq_checks {
    type nat hook postrouting priority 100;
    ip saddr 10.241.1.11 ip daddr != 10.241.1.0/24 masquerade comment \"4a1b\"
    ip6 saddr fd00:10:241:1::11 ip6 daddr != fd00:10:241:1::/64 masquerade comment \"4a1b\"
  }
}
EOF";

const FLANNEL: &str = "
iptables-nft -t nat -N FLANNEL-POSTRTG
iptables-nft -t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG
iptables-nft -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment 'flanneld masq' -j RETURN
iptables-nft -t nat -A FLANNEL-POSTRTG -s 10.241.1.0/24 -d 10.241.0.0/16 -m comment --comment 'flanneld masq' -j RETURN
iptables-nft -t nat -A FLANNEL-POSTRTG -s 10.241.0.0/16 -d 10.241.1.0/24 -m comment --comment 'flanneld masq' -j RETURN
iptables-nft -t nat -A FLANNEL-POSTRTG ! -s 10.241.0.0/16 -d 10.241.1.0/24 -m comment --comment 'flanneld masq' -j RETURN
iptables-nft -t nat -A FLANNEL-POSTRTG -s 10.241.0.0/16 ! -d 224.0.0.0/4 -m comment --comment 'flanneld masq' -j MASQUERADE --random-fully
iptables-nft -t nat -A FLANNEL-POSTRTG ! -s 10.241.0.0/16 -d 10.241.0.0/16 -m comment --comment 'flanneld masq' -j MASQUERADE --random-fully";

const FLANNEL_NFT: &str = "nft -f - <<'EOF'
table ip flannel-ipv4 {
  chain postrtg {
    type nat hook postrouting priority srcnat;
    meta mark 0x4000 return
    ip saddr 10.241.1.0/24 ip daddr 10.241.0.0/16 return
    ip saddr 10.241.0.0/16 ip daddr 10.241.1.0/24 return
    ip saddr != 10.241.1.0/24 ip daddr 10.241.0.0/16 return
    ip saddr 10.241.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
    ip saddr != 10.241.0.0/16 ip daddr 10.241.0.0/16 masquerade fully-random
  }
}
EOF";

const KIND: &str = "
iptables-nft -t nat -N KIND-MASQ-AGENT
iptables-nft -t nat -A POSTROUTING -m addrtype ! --dst-type LOCAL -m comment --comment kind -j KIND-MASQ-AGENT
iptables-nft -t nat -A KIND-MASQ-AGENT -d 10.241.0.0/16 -m comment --comment kind -j RETURN
iptables-nft -t nat -A KIND-MASQ-AGENT -m comment --comment kind -j MASQUERADE";

const AWS: &str = "
iptables-nft -t nat -N AWS-SNAT-CHAIN-0
iptables-nft -t nat -A POSTROUTING -m comment --comment 'AWS SNAT CHAIN' -j AWS-SNAT-CHAIN-0
iptables-nft -t nat -A AWS-SNAT-CHAIN-0 -d 172.30.0.0/24 -m comment --comment 'AWS SNAT CHAIN' -j RETURN
iptables-nft -t nat -A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment 'AWS, SNAT' -m addrtype ! --dst-type LOCAL \
  -j SNAT --to-source 172.30.0.2 --random-fully";

/// Pods are found in a verdict map.
const BY_MAP: &str = "nft -f - <<'EOF'
table ip6 net {
  chain out { masquerade; }
  chain post { type nat hook postrouting priority 100; ip6 saddr vmap { fd00:10:241::/48 : goto out }; }
}
EOF";

const REFUSED: [Case; 8] = [
    Case {
        name: "ipMasq",
        script: IP_MASQ,
        families: &BOTH,
        chain: "CNI-4a1b of table ip nat",
    },
    Case {
        name: "ipMasq with nftables",
        script: IP_MASQ_NFT,
        families: &BOTH,
        chain: "masq_checks of table inet cni_plugins_masquerade",
    },
    Case {
        name: "flannel",
        script: FLANNEL,
        families: &[IPv4],
        chain: "FLANNEL-POSTRTG of table ip nat",
    },
    Case {
        name: "flannel with nftables",
        script: FLANNEL_NFT,
        families: &[IPv4],
        chain: "postrtg of table ip flannel-ipv4",
    },
    Case {
        name: "kindnet",
        script: KINDNET,
        families: &BOTH,
        chain: "postrouting of table inet kindnet-ipmasq",
    },
    Case {
        name: "kind",
        script: KIND,
        families: &[IPv4],
        chain: "KIND-MASQ-AGENT of table ip nat",
    },
    Case {
        name: "AWS",
        script: AWS,
        families: &[IPv4],
        chain: "AWS-SNAT-CHAIN-0 of table ip nat",
    },
    Case {
        name: "a verdict map",
        script: BY_MAP,
        families: &[IPv6],
        chain: "out of table ip6 net",
    },
];

/// kube-proxy's masquerade is for packets with its mark.
const KUBE_PROXY: &str = "
for t in iptables ip6tables; do
  $t-nft -t nat -N KUBE-POSTROUTING
  $t-nft -t nat -I POSTROUTING -m comment --comment 'kubernetes postrouting rules' -j KUBE-POSTROUTING
  $t-nft -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
  $t-nft -t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
  $t-nft -t nat -A KUBE-POSTROUTING -m comment --comment 'kubernetes service traffic' -j MASQUERADE --random-fully
done";

const KUBE_PROXY_NFT: &str = "nft -f - <<'EOF'
table inet kube-proxy {
  chain masquerading {
    mark and 0x4000 == 0 return
    mark set mark xor 0x4000
    masquerade fully-random
  }
  chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
}
EOF";

/// Docker's networks, with a container that is reached by its own published port; libvirt's.
const OTHERS_NETWORKS: &str = "
iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
iptables-nft -t nat -A POSTROUTING -s 10.241.1.11/32 -d 10.241.1.11/32 -p tcp -m tcp --dport 80 -j MASQUERADE
iptables-nft -t nat -A POSTROUTING -s 192.168.122.0/24 ! -d 192.168.122.0/24 -p tcp -j MASQUERADE --to-ports 1024-65535";

/// Calico's IPIP and Tailscale's: packets of the node's own, and marked ones. Portmap's: marked ones.
const OWN_AND_MARKED: &str = "
iptables-nft -t nat -A POSTROUTING -o tunl0 -m addrtype ! --src-type LOCAL --limit-iface-out \
  -m addrtype --src-type LOCAL -j MASQUERADE --random-fully
iptables-nft -t nat -A POSTROUTING -m mark --mark 0x40000/0xff0000 -j MASQUERADE
iptables-nft -t nat -A POSTROUTING -m mark --mark 0x2000/0x2000 -j MASQUERADE
iptables-nft -t nat -A POSTROUTING -m connmark --mark 0x80/0x80 -j MASQUERADE
iptables-nft -t nat -A POSTROUTING -m owner --uid-owner 0 -j MASQUERADE";

const ALLOWED: [(&str, &str); 4] = [
    ("kube-proxy", KUBE_PROXY),
    ("kube-proxy with nftables", KUBE_PROXY_NFT),
    ("others' networks", OTHERS_NETWORKS),
    ("own and marked packets", OWN_AND_MARKED),
];

fn run(node: &Node, script: &str) {
    ok(node.netns.output(Command::new("sh").args(["-ec", script])));
}

/// All tables but ours go.
fn clean(node: &Node) {
    let script = "nft list tables | grep -v egressnat | while read -r table; do nft delete $table; done";
    run(node, script);
}

/// Whom the agent finds to masquerade, once it has noticed.
#[track_caller]
fn left_to(lab: &Lab, name: &str) -> Vec<(Family, String)> {
    assert!(lab.source.changed(NOTICE), "{name} was not noticed");
    let source = &lab.topology.source;
    let report = ok(lab.source.sync(Some(&plan(source, &[]))));
    let left_to = report.left_to.into_iter();
    left_to.map(|by| (by.family, by.to_string())).collect()
}

#[test]
fn the_masquerade_of_a_cni_is_noticed_when_it_comes_and_when_it_goes() {
    let lab = lab();
    let source = &lab.topology.source;
    ok(lab.source.sync(Some(&plan(source, &[]))));
    for Case {
        name,
        script,
        families,
        chain,
    } in REFUSED
    {
        run(source, script);
        let found = left_to(&lab, name);
        let of_families: Vec<Family> = found.iter().map(|(family, _)| *family).collect();
        assert_eq!(of_families, families, "{name}");
        assert!(found[0].1.contains(chain), "{name}: {found:?}");
        clean(source);
        assert_eq!(left_to(&lab, name), [], "{name} is gone");
    }
    lab.assert_seen(&source.pods[0], SERVER, source.address);
}

#[test]
fn what_is_not_for_every_packet_of_a_pod_is_no_hindrance() {
    for (name, script) in ALLOWED {
        let lab = lab();
        let source = &lab.topology.source;
        run(source, script);
        let report = ok(lab.source.sync(Some(&plan(source, &[]))));
        assert_eq!(report.left_to, [], "{name}");
        lab.assert_seen(&source.pods[0], SERVER, source.address);
        // The same rules for pods' packets are one.
        run(
            source,
            "iptables-nft -t nat -A POSTROUTING -s 10.241.1.0/24 -j MASQUERADE",
        );
        assert_eq!(left_to(&lab, name).len(), 1, "{name}");
    }
}

/// Where the CNI's is there first, nothing of ours is; and a node that asks for none does not look.
#[test]
fn nothing_of_ours_is_there_beside_the_cnis() {
    let lab = lab();
    let source = &lab.topology.source;
    run(source, IP_MASQ_NFT);
    let report = ok(lab.source.sync(Some(&plan(source, &[]))));
    assert_eq!(report.left_to.len(), 2);
    assert!(!report.changed);
    let tables = ok(source.netns.output(Command::new("nft").args(["list", "tables"])));
    assert_eq!(tables.trim(), "table inet cni_plugins_masquerade");
    lab.assert_seen(&source.pods[0], SERVER, source.address);
    let report = ok(lab.source.sync(Some(&egressnat_crds::EgressPlanSpec::default())));
    assert_eq!(report.left_to, []);
}
