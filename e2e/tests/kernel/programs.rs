//! What other programs write into a node's netfilter, each as it writes it, from what is known of them. A script of one
//! can be run again and again, as the program does.
//!
//! `$N` is the node's number: its pods are 10.241.$N.0/24, its address is 172.30.0.$((N + 1)).

use egressnat_e2e::topology::Node;

use std::process::Command;

use crate::lab::ok;

/// A program's rules.
pub struct Program {
    pub name: &'static str,
    pub script: &'static str,
}

/// Appended, looked at every minute, and RFC 1918 is left alone.
const IP_MASQ_AGENT: &str = "
iptables-nft -t nat -N IP-MASQ-AGENT 2>/dev/null || iptables-nft -t nat -F IP-MASQ-AGENT
iptables-nft -t nat -C POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT 2>/dev/null || \
  iptables-nft -t nat -A POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT
for net in 10.0.0.0/8 192.168.0.0/16 169.254.0.0/16; do iptables-nft -t nat -A IP-MASQ-AGENT -d $net -j RETURN; done
iptables-nft -t nat -A IP-MASQ-AGENT -j MASQUERADE --random-fully";

/// A table that is made anew with every look, before most others' priority.
pub const KINDNET: &str = "nft -f - <<'EOF'
table inet kindnet-ipmasq {}
delete table inet kindnet-ipmasq
table inet kindnet-ipmasq {
  set noMasqV4 { type ipv4_addr; flags interval; elements = { 10.241.0.0/16 } }
  set noMasqV6 { type ipv6_addr; flags interval; elements = { fd00:10:241::/48 } }
  chain postrouting {
    type nat hook postrouting priority srcnat - 10;
    ct state established,related accept
    fib saddr type local accept
    ip daddr @noMasqV4 accept
    ip6 daddr @noMasqV6 accept
    masquerade fully-random
  }
}
EOF";

/// Jumps that are inserted first and again, marks of its own mask cleared, established connections accepted in mangle.
const CALICO: &str = "
for t in iptables ip6tables; do
  case $t in
    iptables) pods=10.241.0.0/16 ;;
    *) pods=fd00:10:241::/48 ;;
  esac
  for place in raw:PREROUTING mangle:PREROUTING filter:FORWARD nat:POSTROUTING; do
    table=${place%:*} hook=${place#*:}
    $t-nft -t $table -N cali-$hook 2>/dev/null || $t-nft -t $table -F cali-$hook
    $t-nft -t $table -D $hook -j cali-$hook 2>/dev/null || true
    $t-nft -t $table -I $hook 1 -j cali-$hook
  done
  $t-nft -t raw -A cali-PREROUTING -j MARK --set-xmark 0x0/0xf0000
  $t-nft -t raw -A cali-PREROUTING -i pod+ -j MARK --set-xmark 0x40000/0x40000
  $t-nft -t raw -A cali-PREROUTING -m rpfilter --validmark --invert -m mark --mark 0x40000/0x40000 -j DROP
  $t-nft -t raw -A cali-PREROUTING -j MARK --set-xmark 0x0/0x40000
  $t-nft -t mangle -A cali-PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
  $t-nft -t mangle -A cali-PREROUTING -j MARK --set-xmark 0x0/0xf0000
  $t-nft -t filter -A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000
  $t-nft -t filter -A cali-FORWARD -i pod+ -j MARK --set-xmark 0x10000/0x10000
  $t-nft -t filter -A cali-FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT
  $t-nft -t nat -A cali-POSTROUTING -s $pods ! -d $pods -j MASQUERADE --random-fully
done";

/// To an address, with the connection mark 0x80 and rules of its own before the main table's.
const AWS: &str = "
node=172.30.0.$((N + 1))
iptables-nft -t nat -N AWS-SNAT-CHAIN-0 2>/dev/null || iptables-nft -t nat -F AWS-SNAT-CHAIN-0
iptables-nft -t nat -C POSTROUTING -j AWS-SNAT-CHAIN-0 2>/dev/null || iptables-nft -t nat -A POSTROUTING -j AWS-SNAT-CHAIN-0
iptables-nft -t nat -A AWS-SNAT-CHAIN-0 -d 10.241.0.0/16 -j RETURN
iptables-nft -t nat -A AWS-SNAT-CHAIN-0 ! -o vlan+ -m addrtype ! --dst-type LOCAL -j SNAT --to-source $node --random-fully
iptables-nft -t mangle -F PREROUTING
iptables-nft -t mangle -A PREROUTING -i eth0 -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
iptables-nft -t mangle -A PREROUTING -i pod+ -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
ip rule del priority 512 2>/dev/null || true
ip rule add to 10.241.$N.0/24 lookup main priority 512
ip rule del priority 1024 2>/dev/null || true
ip rule add fwmark 0x80/0x80 lookup main priority 1024
ip rule del priority 1536 2>/dev/null || true
ip rule add from 10.241.$N.11 lookup 3 priority 1536
ip route replace default via 172.30.0.100 dev eth0 table 3";

/// Nothing is forwarded but what is excepted: its containers' packets, and the pods', as CNIs see to.
const DOCKER: &str = "
for t in iptables ip6tables; do
  case $t in
    iptables) pods=10.241.0.0/16 containers=172.17.0.0/16 ;;
    *) pods=fd00:10:241::/48 containers=fd00:172:17::/48 ;;
  esac
  $t-nft -P FORWARD DROP
  $t-nft -F FORWARD
  $t-nft -N DOCKER-USER 2>/dev/null || $t-nft -F DOCKER-USER
  $t-nft -I FORWARD 1 -j DOCKER-USER
  $t-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
  $t-nft -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
  $t-nft -A DOCKER-USER -s $pods -j ACCEPT
  $t-nft -A DOCKER-USER -d $pods -j ACCEPT
  $t-nft -t nat -D POSTROUTING -s $containers ! -o docker0 -j MASQUERADE 2>/dev/null || true
  $t-nft -t nat -A POSTROUTING -s $containers ! -o docker0 -j MASQUERADE
done";

/// Its table made anew with a reload: zones, a refusal of what none allows, the pods' range in zone trusted, the tunnel's
/// port open, and `IPv6_rpfilter=loose`. The strict one drops what comes out of any tunnel: see docs/beside.md.
const FIREWALLD: &str = "nft -f - <<'EOF'
table inet firewalld {}
delete table inet firewalld
table inet firewalld {
  chain filter_PREROUTING {
    type filter hook prerouting priority filter + 10;
    icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
    meta nfproto ipv6 fib saddr . mark oif missing drop
  }
  chain filter_INPUT {
    type filter hook input priority filter + 10;
    ct state { established, related } accept
    ct status dnat accept
    iifname lo accept
    jump filter_INPUT_ZONES
    ct state invalid drop
    reject with icmpx admin-prohibited
  }
  chain filter_INPUT_ZONES {
    meta l4proto { icmp, ipv6-icmp } accept
    udp dport 5770 accept
    ip saddr 10.241.0.0/16 accept
    ip6 saddr fd00:10:241::/48 accept
  }
  chain filter_FORWARD {
    type filter hook forward priority filter + 10;
    ct state { established, related } accept
    ct status dnat accept
    iifname lo accept
    jump filter_FORWARD_ZONES
    ct state invalid drop
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD_ZONES {
    ip saddr 10.241.0.0/16 accept
    ip6 saddr fd00:10:241::/48 accept
  }
  chain nat_POSTROUTING {
    type nat hook postrouting priority srcnat + 10;
    ip saddr 10.241.0.0/16 oifname eth0 masquerade
    ip6 saddr fd00:10:241::/48 oifname eth0 masquerade
  }
}
EOF";

/// The bridge plugin's ipMasq with iptables: a chain per pod.
const IP_MASQ: &str = "
for v in \"iptables 10.241.$N. /24 224.0.0.0/4\" \"ip6tables fd00:10:241:$N:: /64 ff00::/8\"; do
  set -- $v
  case $1 in
    iptables) net=${2}0$3 ;;
    *) net=$2$3 ;;
  esac
  for pod in 11 12; do
    $1-nft -t nat -N CNI-$pod 2>/dev/null || $1-nft -t nat -F CNI-$pod
    $1-nft -t nat -A CNI-$pod -d $net -m comment --comment 'name: \"net\" id: \"4a1b\"' -j ACCEPT
    $1-nft -t nat -A CNI-$pod ! -d $4 -m comment --comment 'name: \"net\" id: \"4a1b\"' -j MASQUERADE
    $1-nft -t nat -C POSTROUTING -s $2$pod -j CNI-$pod 2>/dev/null || $1-nft -t nat -A POSTROUTING -s $2$pod -j CNI-$pod
  done
done";

/// The same with nftables: a rule per pod.
const IP_MASQ_NFT: &str = "nft -f - <<EOF
table inet cni_plugins_masquerade {}
delete table inet cni_plugins_masquerade
table inet cni_plugins_masquerade {
  chain masq_checks {
    type nat hook postrouting priority 100;
    ip saddr { 10.241.$N.11, 10.241.$N.12 } ip daddr != 10.241.$N.0/24 masquerade comment \"4a1b\"
    ip6 saddr { fd00:10:241:$N::11, fd00:10:241:$N::12 } ip6 daddr != fd00:10:241:$N::/64 masquerade comment \"4a1b\"
  }
}
EOF";

/// All of them. Without ipMasq, the CNI's plugins write nothing.
pub const PROGRAMS: [Program; 8] = [
    Program {
        name: "ip-masq-agent",
        script: IP_MASQ_AGENT,
    },
    Program {
        name: "kindnet",
        script: KINDNET,
    },
    Program {
        name: "Calico",
        script: CALICO,
    },
    Program {
        name: "AWS VPC CNI",
        script: AWS,
    },
    Program {
        name: "Docker",
        script: DOCKER,
    },
    Program {
        name: "firewalld",
        script: FIREWALLD,
    },
    Program {
        name: "ipMasq",
        script: IP_MASQ,
    },
    Program {
        name: "ipMasq with nftables",
        script: IP_MASQ_NFT,
    },
];

impl Program {
    /// Writes its rules on a node, or writes them again.
    #[track_caller]
    pub fn write(&self, node: &Node) {
        let mut shell = Command::new("bash");
        shell.args(["-ec", self.script]).env("N", node.number.to_string());
        ok(node.netns.output(&mut shell));
    }
}
