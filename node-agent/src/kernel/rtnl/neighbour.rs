//! FDB and neighbour entries of the tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::model::{Fdb, MacAddr, Neighbour};

/// `NUD_PERMANENT` and `NUD_NOARP`, as `bridge fdb add ... permanent` has it.
const FDB_STATE: u16 = PERMANENT | 0x40;

const PERMANENT: u16 = 0x80;

/// Asks for the entries of one family on one link. Old kernels answer with all links'.
pub(super) fn get_all(family: AddressFamily, index: u32) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.attributes = vec![NeighbourAttribute::IfIndex(index)];
    RouteNetlinkMessage::GetNeighbour(message)
}

/// A permanent entry of the tunnel's own FDB.
pub(super) fn fdb(fdb: &Fdb, index: u32) -> NeighbourMessage {
    let mut message = entry(AddressFamily::Bridge, index, fdb.mac, fdb.remote);
    // Without it the entry is meant for a bridge above the device.
    message.header.flags = NeighbourFlags::Own;
    message.header.state = FDB_STATE.into();
    message
}

/// A permanent neighbour entry.
pub(super) fn neighbour(neighbour: &Neighbour, index: u32) -> NeighbourMessage {
    let family = match neighbour.address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    entry(family, index, neighbour.mac, neighbour.address)
}

fn entry(family: AddressFamily, index: u32, mac: MacAddr, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
        NeighbourAttribute::Destination(address.into()),
    ];
    message
}

/// The FDB entry that a message holds, unless it has more to it than [`Fdb`] can say.
pub(super) fn read_fdb(message: &NeighbourMessage) -> Option<Fdb> {
    let plain = message.attributes.iter().all(|a| {
        matches!(
            a,
            NeighbourAttribute::LinkLayerAddress(_)
                | NeighbourAttribute::Destination(_)
                | NeighbourAttribute::CacheInfo(_)
        )
    });
    let (mac, remote) = addresses(message)?;
    plain.then_some(Fdb { mac, remote })
}

/// The neighbour entry that a message holds, unless it has more to it than [`Neighbour`] can say.
pub(super) fn read_neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let plain = !message.header.flags.contains(NeighbourFlags::Proxy);
    let (mac, address) = addresses(message)?;
    plain.then_some(Neighbour { address, mac })
}

fn addresses(message: &NeighbourMessage) -> Option<(MacAddr, IpAddr)> {
    if u16::from(message.header.state) & PERMANENT == 0 {
        return None;
    }
    mac(message).zip(destination(message))
}

/// The MAC address of a neighbour or FDB entry.
pub(super) fn mac(message: &NeighbourMessage) -> Option<MacAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(a) => a.as_slice().try_into().map(MacAddr).ok(),
        _ => None,
    })
}

/// Whose entry it is.
pub(super) fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(a) => ip(a),
        _ => None,
    })
}

fn ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(a) => Some((*a).into()),
        NeighbourAddress::Inet6(a) => Some((*a).into()),
        // As FDB entries have it.
        NeighbourAddress::Other(octets) => {
            let v4 = <[u8; 4]>::try_from(octets.as_slice()).map(Ipv4Addr::from);
            let v6 = || <[u8; 16]>::try_from(octets.as_slice()).map(Ipv6Addr::from);
            v4.map(IpAddr::V4).or_else(|_| v6().map(IpAddr::V6)).ok()
        }
        _ => None,
    }
}
