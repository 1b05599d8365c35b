//! The cluster's wires: a bridge in a namespace of its own (the fabric), the nodes and the echo server on
//! it, and, unless a CNI does, the pod routes and the masquerade that a simple CNI such as kindnet would set up.
//!
//! Nothing is made in the machine's own network namespace.

use clap::ValueEnum;

use crate::{
    error::Result,
    netns::Netns,
    site::{ECHO, NODE_LOCAL_DNS, NODE_PREFIX, NODES, NodeSpec, POD_RANGES, ROUTER, Site},
};

/// What a node's kernel is set to, as the distributions and kubelet's documentation ask for; strict
/// reverse-path filtering is what the RHEL family ships and the hardest setting to live with.
const NODE_SYSCTLS: [(&str, &str); 6] = [
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv4.conf.all.rp_filter", "1"),
    ("net.ipv4.conf.default.rp_filter", "1"),
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
];

/// Who makes pods' links, and carries their packets from node to node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// The plugin ptp the links, the lab routes and a masquerade.
    Ptp,
    /// flannel all of it, with its VXLAN backend.
    Flannel,
}

/// The table with the masquerade of the lab's nodes.
pub const MASQUERADE: &str = "inet lab-masquerade";

/// Makes the fabric, the nodes' namespaces, their links and, where the network is the lab's own, routes and masquerade.
///
/// # Errors
/// When a name is taken or the kernel refuses.
pub fn create(site: &Site, network: Network) -> Result<()> {
    let fabric = Netns::create(&site.netns("fabric"))?;
    fabric.ip(&format!(
        "link add br0 type bridge mcast_snooping 0\n\
         addr add {}/{} dev br0\n\
         addr add {}/{} dev br0 nodad\n\
         link set br0 up",
        ROUTER.0, NODE_PREFIX.0, ROUTER.1, NODE_PREFIX.1
    ))?;
    for node in &NODES {
        create_node(site, &fabric, node)?;
        if network == Network::Ptp {
            connect_pods(site, node)?;
        }
    }
    Ok(())
}

/// Makes the echo server's namespace: on the node network, with no route to any other, so that a packet
/// that comes with a pod's address gets no answer.
///
/// # Errors
/// When the name is taken or the kernel refuses.
pub fn create_echo(site: &Site) -> Result<()> {
    let fabric = Netns::open(&site.netns("fabric"))?;
    let name = site.netns("echo");
    Netns::create(&name)?.ip(&attach(&fabric, &name, "echo", ECHO)?)
}

/// Takes a node's network away: its namespace, and its port of the bridge.
///
/// # Errors
/// When it is not there.
pub fn unplug(site: &Site, node: &NodeSpec) -> Result<()> {
    let fabric = Netns::open(&site.netns("fabric"))?;
    fabric.ip(&format!("link del {}", port(node)))?;
    Netns::delete(&site.netns(node.name))
}

/// Gives a node that was [unplugged](unplug) a network as at first, of the lab's own kind.
///
/// # Errors
/// When the name is taken or the kernel refuses.
pub fn plug(site: &Site, node: &NodeSpec) -> Result<()> {
    create_node(site, &Netns::open(&site.netns("fabric"))?, node)?;
    connect_pods(site, node)
}

/// A node's port of the bridge.
fn port(node: &NodeSpec) -> String {
    format!("node{}", node.v4.octets()[3])
}

fn create_node(site: &Site, fabric: &Netns, node: &NodeSpec) -> Result<()> {
    let name = site.netns(node.name);
    let netns = Netns::create(&name)?;
    for (key, value) in NODE_SYSCTLS {
        netns.sysctl(key, value)?;
    }
    let link = attach(fabric, &name, &port(node), (node.v4, node.v6))?;
    netns.ip(&format!(
        "{link}addr add {NODE_LOCAL_DNS}/32 dev lo\n\
         route add default via {}\n\
         route add default via {}",
        ROUTER.0, ROUTER.1
    ))
}

fn connect_pods(site: &Site, node: &NodeSpec) -> Result<()> {
    let netns = Netns::open(&site.netns(node.name))?;
    let peers = NODES.iter().filter(|peer| peer.name != node.name);
    netns.ip(&peers.map(pod_routes).collect::<String>())?;
    netns.nft(&masquerade())
}

/// Plugs a namespace into the bridge; returns the `ip` commands for the inside.
fn attach(
    fabric: &Netns,
    name: &str,
    port: &str,
    (v4, v6): (std::net::Ipv4Addr, std::net::Ipv6Addr),
) -> Result<String> {
    fabric.ip(&format!(
        "link add {port} type veth peer name eth0 netns {name}\n\
         link set {port} master br0 up"
    ))?;
    let (v4_len, v6_len) = NODE_PREFIX;
    Ok(format!(
        "link set eth0 up\n\
         addr add {v4}/{v4_len} dev eth0\n\
         addr add {v6}/{v6_len} dev eth0 nodad\n"
    ))
}

fn pod_routes(peer: &NodeSpec) -> String {
    let (pods_v4, pods_v6) = peer.pod_ranges;
    format!(
        "route add {pods_v4} via {}\nroute add {pods_v6} via {}\n",
        peer.v4, peer.v6
    )
}

/// As kindnet does it: what a pod sends to anything but a pod leaves with its node's address. The text is for nft,
/// and the table's name is [`MASQUERADE`].
#[must_use]
pub fn masquerade() -> String {
    let (v4, v6) = POD_RANGES;
    format!(
        "table {MASQUERADE} {{
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                ip saddr {v4} ip daddr != {v4} masquerade
                ip6 saddr {v6} ip6 daddr != {v6} masquerade
            }}
        }}"
    )
}
