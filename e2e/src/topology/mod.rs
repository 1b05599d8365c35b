//! The bare topology: nodes, pods and the outside as network namespaces, without Kubernetes.
//!
//! ```text
//!  pod-1 ... pod-4         pod-1 ... pod-4         pod-1 ... pod-4      10.241.N.11 up, fd00:10:241:N::11 up
//!     │ veth                  │                       │
//!   source                 gateway                 second               172.30.0.2, .3, .4; fd00:172:30::2 ...
//!     └───────────────┬───────┴───────────────────────┘
//!                  outside                                              172.30.0.100, fd00:172:30::100
//! ```
//!
//! If asked for, the gateway has a second interface, in a network of its own: see [`Uplink`].
//!
//! Nodes forward, filter by strict reverse path, know each other's pod ranges and masquerade their pods as a
//! CNI does. The outside has no route to any pod: only what a node translates is answered.
//!
//! The namespaces have no names: they end with this value, or with the process, however that ends.

mod address;
mod client;
mod cni;
mod inject;
mod node;
mod packet;
mod sctp;
mod server;
mod tap;
mod uplink;
mod vxlan;

pub use address::{Dual, FAMILIES, Family, in_pod_range, on_segment};
pub use client::{Conversation, Flow, PORT, ask_tcp, ask_udp, download, knock_tcp, knock_udp, ping, upload};
pub use cni::Cni;
pub use inject::{
    Flags, Injector, icmp_error, inject, ip_packet, tcp_segment, udp_datagram, udp_lite_datagram,
};
pub use node::{Node, Pod};
pub use packet::{Packet, Transport};
pub use sctp::{Chunk, is_intact, sctp_packet};
pub use server::Server;
pub use tap::Tap;
pub use uplink::{ROUTER, Uplink};
pub use vxlan::{Encapsulation, TUNNEL_PORT, Tunnelled, VNI, send_tunnelled};

use crate::{error::Result, netns::Netns};

/// The server outside, and the router of everything beyond the segment.
pub const SERVER: Dual = on_segment(100);
/// The API server: outside the nodes, on the segment.
pub const API_SERVER: Dual = on_segment(101);
/// A server beyond the segment: 198.51.100.100 and 2001:db8:51::100.
pub const ELSEWHERE: Dual = Dual::new([198, 51, 100, 100], [0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0x100]);
/// The segment.
pub const SEGMENT: [&str; 2] = ["172.30.0.0/24", "fd00:172:30::/64"];
/// Every pod's range.
pub const PODS: [&str; 2] = ["10.241.0.0/16", "fd00:10:241::/48"];
/// Every Service's range.
pub const SERVICES: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];

/// How many pods a node has.
pub const PODS_PER_NODE: u8 = 4;

/// What differs from test to test.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How pods' packets get a node's address where no policy applies.
    pub cni: Cni,
    /// `net.ipv4.conf.all.src_valid_mark` of every node.
    pub src_valid_mark: bool,
    /// The gateway has a second interface.
    pub uplink: bool,
    /// Nodes and pods have this family alone.
    pub only: Option<Family>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cni: Cni::Masquerade { priority: 100 },
            src_valid_mark: true,
            uplink: false,
            only: None,
        }
    }
}

/// Three nodes with their pods, and the outside.
#[derive(Debug)]
pub struct Topology {
    /// The outside: server, router and the segment's wire.
    pub outside: Netns,
    /// The node whose pods the tests select.
    pub source: Node,
    /// The node through which they leave.
    pub gateway: Node,
    /// Another such node.
    pub second: Node,
    /// Where the gateway's second interface leads, if it has one.
    pub uplink: Option<Uplink>,
    /// The families that nodes and pods have.
    pub families: Vec<Family>,
    _server: Server,
}

impl Topology {
    /// Makes it all.
    ///
    /// # Errors
    /// When the kernel refuses, or `ip` or `nft` are missing.
    pub fn new(options: Options) -> Result<Self> {
        let outside = Netns::anonymous()?;
        outside.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        outside.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
        let mut batch = String::from(
            "link add segment type bridge mcast_snooping 0\n\
             link set segment up\n",
        );
        for (address, lengths) in [
            (SERVER, [24, 64]),
            (API_SERVER, [32, 128]),
            (ELSEWHERE, [32, 128]),
        ] {
            for (address, length) in address.both().iter().zip(lengths) {
                batch += &format!("addr add {address}/{length} dev segment nodad\n");
            }
        }
        outside.ip(&batch)?;
        let node = |name, number| Node::new(name, number, &outside, options);
        let (source, gateway, second) = (node("source", 1)?, node("gateway", 2)?, node("second", 3)?);
        for node in [&source, &gateway, &second] {
            node.add_routes([&source, &gateway, &second])?;
        }
        let uplink = options.uplink.then(|| Uplink::new(&gateway)).transpose()?;
        let has = |family: &Family| options.only.is_none_or(|only| only == *family);
        let (families, others): (Vec<_>, Vec<_>) = FAMILIES.into_iter().partition(has);
        for node in [&source, &gateway, &second] {
            others.iter().try_for_each(|family| node.take_away(*family))?;
        }
        let addresses = [SERVER, API_SERVER, ELSEWHERE].map(Dual::both).concat();
        let server = Server::start(&outside, &addresses, PORT)?;
        Ok(Self {
            outside,
            source,
            gateway,
            second,
            uplink,
            families,
            _server: server,
        })
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> [&Node; 3] {
        [&self.source, &self.gateway, &self.second]
    }

    /// Sees every packet that a node puts on the wire from now on, the node being [`Packet::interface`].
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn tap(&self) -> Result<Tap> {
        Tap::incoming(&self.outside, &self.nodes().map(|node| node.name))
    }
}

#[cfg(test)]
mod tests;
