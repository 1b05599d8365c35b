//! Rules as other programs and administrators write them, and what is said of them.

/// What stands in the way, on which node, and what is said.
pub struct Case {
    pub name: &'static str,
    pub script: &'static str,
    pub on_gateway: bool,
    pub category: &'static str,
    /// In the message.
    pub words: &'static [&'static str],
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

/// What hinders packets.
pub const CASES: [Case; 11] = [
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
pub const REFUSED: [Case; 5] = [
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
pub const HARMLESS: &str = "
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
