//! Tunnel device, FDB, neighbours, routes, ip rules and sysctls as values.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egressnat_crds::plan::Family;
use ipnet::IpNet;

use super::rule::Link;
use crate::owned;

/// All of it. Sets are ordered: equal states are equal texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Net {
    /// The tunnel device, absent where the node has no peers.
    pub tunnel: Option<Tunnel>,
    /// Where the tunnel finds each peer's MAC address.
    pub fdb: BTreeSet<Fdb>,
    /// The MAC address of each next hop on the tunnel.
    pub neighbours: BTreeSet<Neighbour>,
    /// Routes in our own tables.
    pub routes: BTreeSet<Route>,
    /// Rules at our own priority.
    pub rules: BTreeSet<IpRule>,
    /// Settings of the tunnel device.
    pub sysctls: BTreeSet<Sysctl>,
}

/// The VXLAN device `egressnat0`: `nolearning`, `gbp`, up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The interface under it.
    pub underlay: Link,
    /// Our address under it: the outer source.
    pub local: IpAddr,
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// MTU in octets.
    pub mtu: u32,
    /// MAC address, [`MacAddr::of_underlay`] of `local`.
    pub mac: MacAddr,
    /// Its IPv4 address, [`owned::TUNNEL_ADDRESS`]; a host's, scope host.
    pub address: Ipv4Addr,
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

/// Permanent FDB entry of the tunnel: frames to `mac` go to `remote`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fdb {
    /// A peer's tunnel MAC address.
    pub mac: MacAddr,
    /// The peer's underlay address.
    pub remote: IpAddr,
}

/// Permanent neighbour entry on the tunnel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// A next hop.
    pub address: IpAddr,
    /// The peer's tunnel MAC address.
    pub mac: MacAddr,
}

/// A route in one of our tables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The table.
    pub table: u32,
    /// Where to. A prefix of length 0 is the family's default.
    pub to: IpNet,
    /// How.
    pub kind: RouteKind,
}

/// How a route goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// By the tunnel, `onlink`. The next hop may be IPv6 for an IPv4 route.
    Tunnel {
        /// The next hop.
        via: IpAddr,
    },
    /// By a link of the node.
    Link {
        /// The link.
        link: Link,
        /// The next hop, taken for a neighbour on the link whatever other routes say (`onlink`); none where the
        /// destination itself is one. May be IPv6 for an IPv4 route.
        via: Option<IpAddr>,
    },
    /// As if this table were not there: on to the next rule.
    Throw,
    /// Nowhere, said to the sender.
    Unreachable,
}

/// `ip rule`: packets with this mark use that table. Protocol `kernel`, since systemd-networkd deletes
/// rules of others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpRule {
    /// Family of the packets.
    pub family: Family,
    /// Priority.
    pub priority: u32,
    /// The mark's bits under `mask`.
    pub mark: u32,
    /// The bits of the packet mark that are compared.
    pub mask: u32,
    /// The table.
    pub table: u32,
}

/// A file under `/proc/sys/net` and what it must hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sysctl {
    /// Path below `/proc/sys/net`, such as `ipv4/conf/egressnat0/rp_filter`.
    pub path: String,
    /// The value.
    pub value: String,
}

impl Tunnel {
    /// Whether a device like this one can be made `other`: MTU and addresses can be changed, the rest is
    /// for life. Otherwise it is made anew, and all that hangs on it goes.
    pub fn same_device(&self, other: &Self) -> bool {
        let of = |t: &Self| (t.underlay.index, t.local, t.vni, t.port);
        of(self) == of(other)
    }
}

impl MacAddr {
    /// The tunnel MAC address of the node with this underlay address: peers need not exchange them.
    ///
    /// `02:65` (locally administered, unicast) and the four octets of an IPv4 address, so that it is as
    /// unique as the address itself; `02` and 40 bits of FNV-1a of an IPv6 address.
    pub fn of_underlay(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(a) => {
                let [b, c, d, e] = a.octets();
                Self([0x02, 0x65, b, c, d, e])
            }
            IpAddr::V6(a) => {
                let hash = a.octets().iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
                    (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
                });
                let [_, _, _, b, c, d, e, g] = hash.to_be_bytes();
                Self([0x02, b, c, d, e, g])
            }
        }
    }

    /// The link-local IPv6 address with this MAC address's modified EUI-64 (RFC 4291, appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 0x02, b, c, 0xff, 0xfe, d, e, f])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tunnel,
            fdb,
            neighbours,
            routes,
            rules,
            sysctls,
        } = self;
        if let Some(tunnel) = tunnel {
            writeln!(f, "{tunnel}")?;
        }
        sysctls.iter().try_for_each(|s| writeln!(f, "{s}"))?;
        fdb.iter().try_for_each(|e| writeln!(f, "{e}"))?;
        neighbours.iter().try_for_each(|n| writeln!(f, "{n}"))?;
        routes.iter().try_for_each(|r| writeln!(f, "{r}"))?;
        rules.iter().try_for_each(|r| writeln!(f, "{r}"))
    }
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            underlay,
            local,
            vni,
            port,
            mtu,
            mac,
            address,
        } = self;
        writeln!(
            f,
            "ip link add {} address {mac} mtu {mtu} up type vxlan id {vni} dev {} local {local} dstport {port} nolearning gbp",
            owned::TUNNEL,
            underlay.name
        )?;
        write!(f, "ip addr add {address}/32 dev {} scope host", owned::TUNNEL)
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sysctl -w net/{}={}", self.path, self.value)
    }
}

impl fmt::Display for Fdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "bridge fdb add {} dev {} dst {} self permanent",
            self.mac,
            owned::TUNNEL,
            self.remote
        )
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ip neigh add {} lladdr {} dev {} nud permanent",
            self.address,
            self.mac,
            owned::TUNNEL
        )
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, to, kind } = self;
        let ip = if to.addr().is_ipv6() { "ip -6" } else { "ip" };
        let to = if to.prefix_len() == 0 {
            "default".to_string()
        } else {
            to.to_string()
        };
        match kind {
            RouteKind::Tunnel { via } => write!(
                f,
                "{ip} route add {to} via {} dev {} onlink table {table}",
                next_hop(via),
                owned::TUNNEL
            ),
            RouteKind::Link { link, via: Some(via) } => write!(
                f,
                "{ip} route add {to} via {} dev {} onlink table {table}",
                next_hop(via),
                link.name
            ),
            RouteKind::Link { link, via: None } => {
                write!(f, "{ip} route add {to} dev {} table {table}", link.name)
            }
            RouteKind::Throw => write!(f, "{ip} route add throw {to} table {table}"),
            RouteKind::Unreachable => write!(f, "{ip} route add unreachable {to} table {table}"),
        }
    }
}

fn next_hop(via: &IpAddr) -> String {
    match via {
        IpAddr::V4(via) => via.to_string(),
        IpAddr::V6(via) => format!("inet6 {via}"),
    }
}

impl fmt::Display for IpRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            family,
            priority,
            mark,
            mask,
            table,
        } = self;
        let family = match family {
            Family::IPv4 => "-4",
            Family::IPv6 => "-6",
        };
        write!(
            f,
            "ip {family} rule add fwmark {mark:#010x}/{mask:#010x} lookup {table} priority {priority} protocol kernel"
        )
    }
}
