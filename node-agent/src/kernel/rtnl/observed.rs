//! What one look at the node's network shows.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_crds::plan::Family;
use ipnet::IpNet;

use super::Stray;
use super::route::{LOOPBACK, MAIN};
use crate::model::{Link, MacAddr, Net};
use crate::owned::TUNNEL;

/// The node's network: ours, and what of others' concerns us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Ours, as far as [`Net`] can say it. Without the settings, which
    /// [`Sysctls::observe`](crate::kernel::sysctl::Sysctls::observe) reads.
    ///
    /// A tunnel device that lacks what every tunnel of ours has (`gbp`, `nolearning`, a local address) shows
    /// VNI 0, one that is down shows MTU 0, one without its address shows 0.0.0.0: values that no plan asks
    /// for, so that it is never taken for what it should be.
    pub net: Net,
    /// Things on our ground that [`Net`] cannot say. To be removed, and the node looked at again, before a
    /// difference is drawn.
    pub strays: Vec<Stray>,
    /// All links.
    pub links: Vec<NodeLink>,
    /// All addresses, in the kernel's order.
    pub addresses: Vec<NodeAddress>,
    /// The node's own routes that are in force, one for each next hop: those of table main, unless a routing
    /// protocol brought them, and the default routes of all tables but ours.
    pub routes: Vec<NodeRoute>,
    /// Rules of others at our priority, that look at our bits of the packet mark, or that lead to our tables.
    pub foreign_rules: Vec<ForeignRule>,
    /// Routes of others in our tables.
    pub foreign_routes: Vec<ForeignRoute>,
}

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeLink {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Alternative names.
    pub altnames: Vec<String>,
    /// Kind, such as `vxlan`. Empty for a physical device.
    pub kind: String,
    /// MTU in octets.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// MAC address, where it has one of six octets.
    pub mac: Option<MacAddr>,
    /// Its other end, or the device below it, is in another network namespace.
    pub leads_elsewhere: bool,
    /// Present for kind `vxlan`.
    pub vxlan: Option<Vxlan>,
}

/// What sets one VXLAN device apart from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Index of the device below, 0 where there is none.
    pub underlay: u32,
    /// Outer source address.
    pub local: Option<IpAddr>,
    /// Group policy extension.
    pub gbp: bool,
    /// Learns FDB entries from packets.
    pub learning: bool,
    /// Has a default remote, or takes tunnel parameters from elsewhere.
    pub other: bool,
}

/// An address of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// Index of the link.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix.
    pub prefix: u8,
    /// Of global scope.
    pub global: bool,
    /// Not the first of its network (IPv4), or temporary (IPv6).
    pub secondary: bool,
    /// Not for new connections, unless asked for.
    pub deprecated: bool,
    /// Stays until somebody removes it.
    pub permanent: bool,
    /// Not yet, or not, usable: duplicate address detection runs or has failed.
    pub unusable: bool,
}

/// A route of the node's, or one of the next hops of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRoute {
    /// Table.
    pub table: u32,
    /// Where to. A prefix of length 0 is the family's default.
    pub to: IpNet,
    /// Metric: the lowest wins.
    pub metric: u32,
    /// Index of the link by which it leaves.
    pub link: u32,
    /// The next hop, none where the destination is a neighbour itself.
    pub via: Option<IpAddr>,
}

/// An ip rule of another program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRule {
    /// Family.
    pub family: Family,
    /// Priority.
    pub priority: u32,
    /// The mark's bits under `mask`.
    pub mark: u32,
    /// The bits of the packet mark that are compared, 0 for none.
    pub mask: u32,
    /// Applies to all that does not match.
    pub inverted: bool,
    /// The table, 0 where it leads to none.
    pub table: u32,
}

/// A route of another program in one of our tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRoute {
    /// Table.
    pub table: u32,
    /// Where to.
    pub to: IpNet,
    /// Number of the protocol that it carries: who made it.
    pub protocol: u8,
}

impl Observed {
    /// The link of that index.
    pub fn link(&self, index: u32) -> Option<&NodeLink> {
        self.links.iter().find(|l| l.index == index)
    }

    /// The routes of table main to everywhere.
    pub fn default_routes(&self) -> impl Iterator<Item = &NodeRoute> {
        let default = |r: &&NodeRoute| r.is_of_main() && r.to.prefix_len() == 0;
        self.routes.iter().filter(default)
    }

    /// The links by which the main table sends a family's packets that no longer prefix claims: of several default
    /// routes, those of the lowest metric.
    pub fn default_links(&self, family: Family) -> BTreeSet<u32> {
        let of_family = || {
            self.default_routes()
                .filter(move |r| family == r.to.addr().into())
        };
        let best = of_family().map(|r| r.metric).min();
        of_family()
            .filter(|r| Some(r.metric) == best)
            .map(|r| r.link)
            .collect()
    }

    /// The link that bears the tunnel's name, of whatever kind.
    pub fn tunnel_link(&self) -> Option<&NodeLink> {
        self.links.iter().find(|l| l.name == TUNNEL)
    }
}

impl NodeRoute {
    /// Whether it is what `ip route` shows.
    pub fn is_of_main(&self) -> bool {
        self.table == MAIN
    }
}

impl NodeAddress {
    /// No other address is on its network.
    pub fn is_single(&self) -> bool {
        self.prefix == if self.address.is_ipv4() { 32 } else { 128 }
    }
}

impl NodeLink {
    /// The node's end of a pair whose other end is in another network namespace, as a pod's is; and as a node's own
    /// interface is in kind.
    pub fn is_nodes_end(&self) -> bool {
        self.kind == "veth" && self.leads_elsewhere
    }

    /// Nothing leaves by it: an address stands on it that others lead to this node.
    pub fn leads_nowhere(&self) -> bool {
        self.index == LOOPBACK || ["dummy", "vrf"].contains(&self.kind.as_str())
    }
}

impl From<&NodeLink> for Link {
    fn from(link: &NodeLink) -> Self {
        Self {
            name: link.name.clone(),
            index: link.index,
        }
    }
}
