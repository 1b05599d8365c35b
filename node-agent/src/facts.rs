//! What compiling needs to know of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use egressnat_crds::plan::{Family, NextHop, NodeExit};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::Link;

/// The node as its kernel shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Facts {
    /// The interface that holds the plan's underlay address, absent where none does.
    #[serde(default)]
    pub underlay: Option<Underlay>,
    /// The tunnel device, absent while it does not exist.
    #[serde(default)]
    pub tunnel: Option<Link>,
    /// Every unicast address of the node, those of `lo` included.
    #[serde(default)]
    pub addresses: BTreeSet<IpAddr>,
    /// The kernel does IPv6.
    #[serde(default)]
    pub ipv6: bool,
    /// The numbers under which gateways, by underlay address, are in use: a gateway keeps its number, so
    /// that packets on their way are never led to another.
    #[serde(default)]
    pub gateway_numbers: BTreeMap<IpAddr, u8>,
    /// The links other than the default route's that hold egress addresses of the plan, by index.
    #[serde(default)]
    pub exits: Vec<Exit>,
    /// The numbers under which exits, by the link's index, are in use.
    #[serde(default)]
    pub exit_numbers: BTreeMap<u32, u8>,
    /// Who else translates the sources that the plan has masqueraded: one for each family at most.
    #[serde(default)]
    pub masqueraders: Vec<Masquerader>,
    /// Connections that policies have given up with their pods. `None` where there is nothing to remember, nor
    /// anything that may turn out to be.
    #[serde(default)]
    pub released: Option<Released>,
    /// The links, by index, behind each of which is one selected pod and nothing else. Of a pod that shares a link, as
    /// on a bridge, there is none.
    #[serde(default)]
    pub links: BTreeSet<u32>,
    /// Pods send by other links than those by which the node's routes lead to them, so that it cannot be seen whose a
    /// source is.
    #[serde(default)]
    pub sources_unchecked: bool,
}

/// The ends of connections that policies have given up with their pods: each of these pods had one to some of these
/// servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Released {
    /// The pods' addresses.
    pub pods: BTreeSet<IpAddr>,
    /// The servers' addresses.
    pub servers: BTreeSet<IpAddr>,
}

/// Another program's chain, in which packets of this node's pods get another source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Masquerader {
    /// The packets' family.
    pub family: Family,
    /// The chain's table, with its family: `ip nat`.
    pub table: String,
    /// The chain.
    pub chain: String,
}

impl fmt::Display for Masquerader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, table, chain } = self;
        write!(f, "{family:?} by chain {chain} of table {table}")
    }
}

/// A link by which packets leave because their address is there: the main table alone would send them by another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Exit {
    /// The link.
    pub link: Link,
    /// The plan's egress addresses on it. Their families are those that have this exit.
    pub addresses: BTreeSet<IpAddr>,
    /// What is reached by it, of those families, and by which next hop; none where it is a neighbour itself.
    pub routes: BTreeMap<IpNet, Option<IpAddr>>,
    /// The link's `rp_filter` as somebody else has set it, where replies to the addresses would be dropped for it:
    /// the way back to who sent them is by another link.
    #[serde(default)]
    pub strict: Option<u8>,
}

impl From<&Exit> for NodeExit {
    /// As the plan's status has it.
    fn from(exit: &Exit) -> Self {
        let families: BTreeSet<Family> = exit.addresses.iter().map(|a| (*a).into()).collect();
        let everywhere = exit.routes.iter().filter(|(to, _)| to.prefix_len() == 0);
        let next_hops = everywhere.map(|(to, via)| NextHop {
            family: to.addr().into(),
            via: *via,
        });
        Self {
            interface: exit.link.name.clone(),
            addresses: exit.addresses.iter().copied().collect(),
            next_hops: next_hops.filter(|hop| families.contains(&hop.family)).collect(),
        }
    }
}

/// The interface under the tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    /// The interface.
    pub link: Link,
    /// Its MTU in octets.
    pub mtu: u32,
}
