//! Routes.
//!
//! Ours carry protocol `kernel`, as our rules do: systemd-networkd removes routes that it does not know,
//! those without a link (`throw`) with every change of any link, but never the kernel's. What makes them
//! ours is their table; the protocol tells them from what another program puts there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egressnat_crds::plan::Family;
use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteNextHopFlags,
    RouteProtocol, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::RouteMessageBuilder;

use super::observed::{ForeignRoute, NodeLink, NodeRoute};
use crate::model::{Route, RouteKind};
use crate::owned::Numbers;

/// The metric that the kernel gives to an IPv6 route that asks for none. IPv4 routes have 0.
const METRIC_V6: u32 = 1024;

/// `lo` has this index in every network namespace. The kernel hangs IPv6 routes without a device on it.
pub(super) const LOOPBACK: u32 = 1;

/// The node's own tables: what `ip route` shows, and what is its own address.
pub(super) const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;
const LOCAL: u32 = 255;

/// A route that concerns us.
pub(super) enum Seen {
    Ours(Route),
    Stray(RouteMessage),
    Foreign(ForeignRoute),
    Node(Vec<NodeRoute>),
}

/// Asks for all routes of a family.
pub(super) fn get_all(family: Family) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    RouteNetlinkMessage::GetRoute(message)
}

/// Asks by which route the node reaches an address.
pub(super) fn get(address: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::from(address));
    message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    message.attributes = vec![RouteAttribute::Destination(address.into())];
    RouteNetlinkMessage::GetRoute(message)
}

/// The message that puts `route`, and that which removes it and no other to the same destination. `tunnel`
/// is the device's index.
pub(super) fn write(route: &Route, tunnel: u32) -> RouteMessage {
    match route.to {
        IpNet::V4(to) => {
            let message = RouteMessageBuilder::<Ipv4Addr>::new();
            complete(
                message.destination_prefix(to.network(), to.prefix_len()),
                route,
                tunnel,
            )
        }
        IpNet::V6(to) => {
            let message = RouteMessageBuilder::<Ipv6Addr>::new().priority(METRIC_V6);
            complete(
                message.destination_prefix(to.network(), to.prefix_len()),
                route,
                tunnel,
            )
        }
    }
}

fn by<T>(mut message: RouteMessageBuilder<T>, to: &IpNet, via: &IpAddr, link: u32) -> RouteMessageBuilder<T> {
    let via = match (via, to) {
        (IpAddr::V6(via), IpNet::V4(_)) => RouteAttribute::Via(RouteVia::Inet6(*via)),
        (via, _) => RouteAttribute::Gateway((*via).into()),
    };
    message.get_mut().attributes.push(via);
    message.output_interface(link).onlink()
}

fn complete<T>(message: RouteMessageBuilder<T>, route: &Route, tunnel: u32) -> RouteMessage {
    let Route { table, to, kind } = route;
    let message = message.table_id(*table).protocol(RouteProtocol::Kernel);
    let nowhere = |message: RouteMessageBuilder<T>, kind| match to {
        IpNet::V4(_) => message.kind(kind),
        // Removal compares it, and nothing else that would tell a route to nowhere from one by a link.
        IpNet::V6(_) => message.kind(kind).output_interface(LOOPBACK),
    };
    match kind {
        RouteKind::Tunnel { via } => by(message, to, via, tunnel),
        RouteKind::Link { link, via: Some(via) } => by(message, to, via, link.index),
        RouteKind::Link { link, via: None } => message.scope(on_link(to)).output_interface(link.index),
        RouteKind::Throw => nowhere(message, RouteType::Throw),
        RouteKind::Unreachable => nowhere(message, RouteType::Unreachable),
    }
    .build()
}

/// IPv6 routes have no scope.
fn on_link(to: &IpNet) -> RouteScope {
    match to {
        IpNet::V4(_) => RouteScope::Link,
        IpNet::V6(_) => RouteScope::Universe,
    }
}

/// What a route is to us. `tunnel` is the tunnel device's index.
pub(super) fn read(
    message: RouteMessage,
    numbers: &Numbers,
    links: &[NodeLink],
    tunnel: Option<u32>,
) -> Option<Seen> {
    let header = &message.header;
    let family = family(header.address_family)?;
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let table = table(&message);
    if !numbers.owns_table(table) {
        let usable = !header.flags.contains(RouteFlags::Dead);
        return usable.then(|| Seen::Node(of_node(&message)));
    }
    let to = destination(&message, family)?;
    if header.protocol != RouteProtocol::Kernel {
        let protocol = header.protocol.into();
        return Some(Seen::Foreign(ForeignRoute { table, to, protocol }));
    }
    match kind(&message, family, links, tunnel) {
        Some(kind) => Some(Seen::Ours(Route { table, to, kind })),
        None => Some(Seen::Stray(message)),
    }
}

/// The table, which has more than the eight bits of the header.
pub(super) fn table(message: &RouteMessage) -> u32 {
    let long = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    long.unwrap_or(message.header.table.into())
}

/// How a route goes, unless it has more to it than [`RouteKind`] can say.
fn kind(
    message: &RouteMessage,
    family: Family,
    links: &[NodeLink],
    tunnel: Option<u32>,
) -> Option<RouteKind> {
    let header = &message.header;
    if header.tos != 0 || header.source_prefix_length != 0 {
        return None;
    }
    let (mut via, mut oif) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(_)
            | RouteAttribute::Destination(_)
            | RouteAttribute::CacheInfo(_)
            | RouteAttribute::Preference(_) => {}
            RouteAttribute::Priority(metric) if family == Family::IPv6 && *metric == METRIC_V6 => {}
            RouteAttribute::Oif(index) => oif = Some(*index),
            other => via = Some(next_hop(other)?),
        }
    }
    let onlink = header.flags.contains(RouteFlags::Onlink);
    match header.kind {
        RouteType::Throw => via.is_none().then_some(RouteKind::Throw),
        RouteType::Unreachable => via.is_none().then_some(RouteKind::Unreachable),
        RouteType::Unicast if via.is_some() != onlink => None,
        RouteType::Unicast if oif.is_some() && oif == tunnel => Some(RouteKind::Tunnel { via: via? }),
        RouteType::Unicast => {
            let link = links.iter().find(|l| Some(l.index) == oif)?.into();
            Some(RouteKind::Link { link, via })
        }
        _ => None,
    }
}

fn destination(message: &RouteMessage, family: Family) -> Option<IpNet> {
    let address = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(a)) => Some(IpAddr::V4(*a)),
        RouteAttribute::Destination(RouteAddress::Inet6(a)) => Some(IpAddr::V6(*a)),
        _ => None,
    });
    let any = match family {
        Family::IPv4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::IPv6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    IpNet::new(address.unwrap_or(any), message.header.destination_prefix_length).ok()
}

/// The node's own way by each link of a route: any of table main, the default routes of other tables. Not those
/// that routing protocols put into table main by the thousand, default routes excepted.
pub(super) fn of_node(message: &RouteMessage) -> Vec<NodeRoute> {
    let header = &message.header;
    let Some(to) = family(header.address_family).and_then(|f| destination(message, f)) else {
        return Vec::new();
    };
    let table = table(message);
    let default = to.prefix_len() == 0;
    let wanted = match table {
        MAIN => default || !is_routing_protocol(header.protocol),
        LOCAL => false,
        _ => default,
    };
    if !wanted || header.kind != RouteType::Unicast || header.tos != 0 || header.source_prefix_length != 0 {
        return Vec::new();
    }
    let mut metric = 0;
    let mut hops: Vec<(Option<u32>, Option<IpAddr>)> = Vec::new();
    let (mut link, mut via) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(m) => metric = *m,
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::MultiPath(several) => hops = several.iter().filter_map(hop).collect(),
            other => via = next_hop(other).or(via),
        }
    }
    if hops.is_empty() {
        hops.push((link, via));
    }
    let route = |(link, via): (Option<u32>, _)| {
        Some(NodeRoute {
            table,
            to,
            metric,
            link: link?,
            via,
        })
    };
    hops.into_iter().filter_map(route).collect()
}

fn hop(hop: &RouteNextHop) -> Option<(Option<u32>, Option<IpAddr>)> {
    let usable = !hop.flags.contains(RouteNextHopFlags::Dead);
    usable.then(|| {
        (
            Some(hop.interface_index),
            hop.attributes.iter().find_map(next_hop),
        )
    })
}

fn next_hop(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(a)) => Some((*a).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(a)) | RouteAttribute::Via(RouteVia::Inet6(a)) => {
            Some((*a).into())
        }
        _ => None,
    }
}

fn is_routing_protocol(protocol: RouteProtocol) -> bool {
    use RouteProtocol::{Babel, Bgp, Bird, Eigrp, Gated, Isis, Ospf, Rip, Xorp, Zebra};
    matches!(
        protocol,
        Babel | Bgp | Bird | Eigrp | Gated | Isis | Ospf | Rip | Xorp | Zebra
    )
}

pub(super) fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::IPv4 => AddressFamily::Inet,
        Family::IPv6 => AddressFamily::Inet6,
    }
}

pub(super) fn family(family: AddressFamily) -> Option<Family> {
    match family {
        AddressFamily::Inet => Some(Family::IPv4),
        AddressFamily::Inet6 => Some(Family::IPv6),
        _ => None,
    }
}
