//! Nodes and pods.

use std::process::Command;

use super::{Dual, Family, Options, PODS_PER_NODE, SERVER, in_pod_range, on_segment};
use crate::{error::Result, netns::Netns};

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its name, which is also the name of its port on the outside's wire.
    pub name: &'static str,
    /// Its namespace.
    pub netns: Netns,
    /// Its addresses under the tunnel, with which its pods leave where no policy applies.
    pub address: Dual,
    /// Further addresses that it holds.
    pub secondary: Dual,
    /// Further addresses that it holds, for policies to use.
    pub egress: Dual,
    /// Its pods.
    pub pods: Vec<Pod>,
    /// Its number, which is in its pods' addresses.
    pub number: u8,
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// Its name, and its uid.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its addresses.
    pub address: Dual,
}

impl Node {
    pub(super) fn new(name: &'static str, number: u8, outside: &Netns, options: Options) -> Result<Self> {
        let netns = Netns::anonymous()?;
        let mut node = Self {
            name,
            address: on_segment(number + 1),
            secondary: on_segment(number + 21),
            egress: on_segment(number + 31),
            pods: Vec::new(),
            netns,
            number,
        };
        node.configure(options)?;
        outside.ip(&format!(
            "link add {name} type veth peer name eth0 netns {}\n\
             link set {name} master segment addrgenmode none up",
            node.netns.path().display()
        ))?;
        node.add_addresses()?;
        node.netns.nft(&options.cni.ruleset(&node))?;
        for host in 0..PODS_PER_NODE {
            let pod = Pod::new(&node, host)?;
            node.pods.push(pod);
        }
        Ok(node)
    }

    /// The ranges of its pods.
    #[must_use]
    pub fn pod_ranges(&self) -> [String; 2] {
        let number = self.number;
        [
            format!("10.241.{number}.0/24"),
            format!("fd00:10:241:{number}::/64"),
        ]
    }

    fn configure(&self, options: Options) -> Result<()> {
        let mark = if options.src_valid_mark { "1" } else { "0" };
        for (key, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv4.conf.all.rp_filter", "1"),
            ("net.ipv4.conf.default.rp_filter", "1"),
            ("net.ipv4.conf.all.src_valid_mark", mark),
            ("net.ipv6.conf.default.accept_dad", "0"),
        ] {
            self.netns.sysctl(key, value)?;
        }
        Ok(())
    }

    fn add_addresses(&self) -> Result<()> {
        let mut batch = String::from("link set eth0 up\n");
        batch += &format!(
            "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n",
            self.address.v4, self.address.v6
        );
        for further in [self.secondary, self.egress] {
            batch += &format!("addr add {}/32 dev eth0\n", further.v4);
            // Deprecated: held, but never the kernel's own choice of source, masquerading included.
            batch += &format!("addr add {}/128 dev eth0 nodad preferred_lft 0\n", further.v6);
        }
        for address in SERVER.both() {
            batch += &format!(
                "route add {} via {address}\n",
                if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" }
            );
        }
        self.netns.ip(&batch)
    }

    /// Leaves the node and its pods without a family, as where it has never been set up.
    pub(super) fn take_away(&self, family: Family) -> Result<()> {
        let pods = self.pods.iter().map(|pod| &pod.netns);
        for netns in pods.chain([&self.netns]) {
            match family {
                // There is no switch for IPv4; its routes go with its addresses.
                Family::V4 => {
                    netns.output(Command::new("ip").args(["-4", "addr", "flush", "scope", "global"]))?;
                }
                Family::V6 => netns.sysctl("net.ipv6.conf.all.disable_ipv6", "1")?,
            }
        }
        Ok(())
    }

    /// The ways to the other nodes' pods.
    pub(super) fn add_routes(&self, nodes: [&Self; 3]) -> Result<()> {
        let others = nodes.into_iter().filter(|node| node.number != self.number);
        let routes = others.flat_map(|node| {
            let ways = node.pod_ranges().into_iter().zip(node.address.both());
            ways.map(|(range, address)| format!("route add {range} via {address}\n"))
        });
        self.netns.ip(&routes.collect::<String>())
    }
}

impl Pod {
    fn new(node: &Node, index: u8) -> Result<Self> {
        let netns = Netns::anonymous()?;
        netns.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        let address = in_pod_range(node.number, 11 + index);
        let router = in_pod_range(node.number, 1).v4;
        let veth = format!("pod{index}");
        node.netns.ip(&format!(
            "link add {veth} type veth peer name eth0 netns {}\n\
             link set {veth} addrgenmode none up\n\
             addr add {router}/32 dev {veth}\n\
             addr add fe80::1/64 dev {veth} nodad\n\
             route add {}/32 dev {veth}\n\
             route add {}/128 dev {veth}",
            netns.path().display(),
            address.v4,
            address.v6,
        ))?;
        netns.ip(&format!(
            "link set eth0 up\n\
             addr add {}/32 dev eth0\n\
             addr add {}/128 dev eth0 nodad\n\
             route add {router}/32 dev eth0\n\
             route add 0.0.0.0/0 via {router}\n\
             route add ::/0 via fe80::1 dev eth0",
            address.v4, address.v6,
        ))?;
        Ok(Self {
            name: format!("{}-{}", node.name, index + 1),
            netns,
            address,
        })
    }
}
