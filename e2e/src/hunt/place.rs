//! What is fixed in every hunt: its addresses, its namespaces, its labels.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::site::{NODES, ROUTER};

/// The namespaces of the hunt's pods.
pub const NAMESPACES: [&str; 2] = ["hunt-one", "hunt-two"];
/// The key of the label by which policies select pods, namespaces and nodes.
pub const LABEL: &str = "hunt";
/// The values of [`LABEL`].
pub const VALUES: [&str; 2] = ["red", "blue"];
/// The label of the nodes that may be gateways of policies that choose theirs by label.
pub const GATEWAY_LABEL: &str = "hunt-gateway";
/// The hosts outside to which the pods send; a policy can exclude one of them.
pub const OUTSIDE: [[IpAddr; 2]; 2] = [pair(0, 8), pair(0, 9)];
/// Egress addresses, IPv4 and IPv6: nothing but a policy ever sends with them.
pub const EGRESS: [[IpAddr; 2]; 6] = [
    pair(1, 1),
    pair(1, 2),
    pair(1, 3),
    pair(1, 4),
    pair(1, 5),
    pair(1, 6),
];
/// The first port that a pod may have. Each pod sends to a port of its own, by TCP and UDP: whatever source
/// address a packet has, its port tells whose it is.
pub const FIRST_PORT: u16 = 1024;

const fn pair(third: u8, last: u8) -> [IpAddr; 2] {
    let v6 = Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, third as u16, last as u16);
    [IpAddr::V4(Ipv4Addr::new(172, 18, third, last)), IpAddr::V6(v6)]
}

/// Who may send with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A node, by its place in [`NODES`]: what no policy captures.
    Node(usize),
    /// A policy that has this pair of [`EGRESS`].
    Egress(usize),
    /// The lab's router, which is no part of the cluster.
    Router,
    /// Nobody: the address of a pod, or one that nobody was given.
    Nobody,
}

impl Source {
    /// Who may send with this address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        let is_node = |node: &crate::site::NodeSpec| node.v4 == address || node.v6 == address;
        if let Some(node) = NODES.iter().position(is_node) {
            return Self::Node(node);
        }
        if address == ROUTER.0 || address == ROUTER.1 {
            return Self::Router;
        }
        let pair = EGRESS.iter().position(|pair| pair.contains(&address));
        pair.map_or(Self::Nobody, Self::Egress)
    }
}

/// The place of a destination in [`OUTSIDE`].
#[must_use]
pub fn outside(address: IpAddr) -> Option<usize> {
    OUTSIDE.iter().position(|pair| pair.contains(&address))
}
