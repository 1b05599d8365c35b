//! Routes.
//!
//! Ours carry protocol `kernel`, as our rules do: systemd-networkd removes routes that it does not know,
//! those without a link (`throw`) with every change of any link, but never the kernel's. What makes them
//! ours is their table; the protocol tells them from what another program puts there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egressnat_crds::plan::Family;
use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::RouteMessageBuilder;

use super::observed::{DefaultRoute, ForeignRoute};
use crate::model::{Route, RouteKind};
use crate::owned::Numbers;

/// The metric that the kernel gives to an IPv6 route that asks for none. IPv4 routes have 0.
const METRIC_V6: u32 = 1024;

/// `lo` has this index in every network namespace. The kernel hangs IPv6 routes without a device on it.
const LOOPBACK: u32 = 1;

/// A route that concerns us.
pub(super) enum Seen {
    Ours(Route),
    Stray(RouteMessage),
    Foreign(ForeignRoute),
    Default(DefaultRoute),
}

/// Asks for all routes of a family.
pub(super) fn get_all(family: Family) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
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

fn complete<T>(message: RouteMessageBuilder<T>, route: &Route, tunnel: u32) -> RouteMessage {
    let Route { table, to, kind } = route;
    let mut message = message.table_id(*table).protocol(RouteProtocol::Kernel);
    match (kind, to) {
        (RouteKind::Tunnel { via }, to) => {
            let via = match (via, to) {
                (IpAddr::V6(via), IpNet::V4(_)) => RouteAttribute::Via(RouteVia::Inet6(*via)),
                (via, _) => RouteAttribute::Gateway((*via).into()),
            };
            message.get_mut().attributes.push(via);
            message.output_interface(tunnel).onlink()
        }
        (RouteKind::Throw, IpNet::V4(_)) => message.kind(RouteType::Throw),
        // Removal compares it, and nothing else that would tell a throw route from one by the tunnel.
        (RouteKind::Throw, IpNet::V6(_)) => message.kind(RouteType::Throw).output_interface(LOOPBACK),
    }
    .build()
}

/// What a route is to us. `tunnel` is the tunnel device's index.
pub(super) fn read(message: RouteMessage, numbers: &Numbers, tunnel: Option<u32>) -> Option<Seen> {
    let header = &message.header;
    let family = family(header.address_family)?;
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let table = table(&message);
    if table == u32::from(RouteHeader::RT_TABLE_MAIN) {
        return default_route(&message, family).map(Seen::Default);
    }
    if !numbers.owns_table(table) {
        return None;
    }
    let to = destination(&message, family)?;
    if header.protocol != RouteProtocol::Kernel {
        let protocol = header.protocol.into();
        return Some(Seen::Foreign(ForeignRoute { table, to, protocol }));
    }
    match kind(&message, family, tunnel) {
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
fn kind(message: &RouteMessage, family: Family, tunnel: Option<u32>) -> Option<RouteKind> {
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
            RouteAttribute::Gateway(RouteAddress::Inet(a)) => via = Some((*a).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(a)) => via = Some((*a).into()),
            RouteAttribute::Via(RouteVia::Inet6(a)) => via = Some((*a).into()),
            RouteAttribute::Oif(index) => oif = Some(*index),
            _ => return None,
        }
    }
    match header.kind {
        RouteType::Throw => via.is_none().then_some(RouteKind::Throw),
        RouteType::Unicast if oif.is_some() && oif == tunnel && header.flags.contains(RouteFlags::Onlink) => {
            Some(RouteKind::Tunnel { via: via? })
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

fn default_route(message: &RouteMessage, family: Family) -> Option<DefaultRoute> {
    let header = &message.header;
    let usable = header.kind == RouteType::Unicast && !header.flags.contains(RouteFlags::Dead);
    if header.destination_prefix_length != 0 || !usable {
        return None;
    }
    let (mut metric, mut links) = (0, Vec::new());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(m) => metric = *m,
            RouteAttribute::Oif(index) => links.push(*index),
            RouteAttribute::MultiPath(hops) => links.extend(hops.iter().map(|h| h.interface_index)),
            _ => {}
        }
    }
    Some(DefaultRoute {
        family,
        metric,
        links,
    })
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
