//! Links, and the tunnel device among them.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::observed::{NodeLink, Vxlan};
use crate::model::{Link, MacAddr, Tunnel};
use crate::owned::TUNNEL;

/// Asks for all links.
pub(super) fn get_all() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    RouteNetlinkMessage::GetLink(message)
}

/// Asks for the link with the tunnel's name.
pub(super) fn get_tunnel() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(TUNNEL.into())];
    RouteNetlinkMessage::GetLink(message)
}

/// Makes the tunnel device.
pub(super) fn create(tunnel: &Tunnel) -> RouteNetlinkMessage {
    let Tunnel {
        underlay,
        local,
        vni,
        port,
        mtu: _,
        mac: _,
        address: _,
    } = tunnel;
    let data = vec![
        InfoVxlan::Id(*vni),
        InfoVxlan::Link(underlay.index),
        match local {
            IpAddr::V4(a) => InfoVxlan::Local(*a),
            IpAddr::V6(a) => InfoVxlan::Local6(*a),
        },
        InfoVxlan::Port(*port),
        InfoVxlan::Learning(false),
        InfoVxlan::Gbp,
    ];
    let mut message = change(0, tunnel);
    message.attributes.push(LinkAttribute::IfName(TUNNEL.into()));
    message.attributes.push(vxlan(data));
    RouteNetlinkMessage::NewLink(message)
}

/// Sets what can be changed on a living device.
pub(super) fn adjust(index: u32, tunnel: &Tunnel) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewLink(change(index, tunnel))
}

/// Gives the device its address.
pub(super) fn add_address(index: u32, tunnel: &Tunnel) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.scope = AddressScope::Host;
    message.header.index = index;
    let address = tunnel.address.into();
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    RouteNetlinkMessage::NewAddress(message)
}

/// Removes a link.
pub(super) fn delete(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    RouteNetlinkMessage::DelLink(message)
}

/// Asks for a VXLAN device that cannot be: a kernel that knows VXLAN refuses the identifier.
pub(super) fn impossible() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(TUNNEL.into()));
    message
        .attributes
        .push(vxlan(vec![InfoVxlan::Id(u32::MAX), InfoVxlan::Gbp]));
    RouteNetlinkMessage::NewLink(message)
}

fn vxlan(data: Vec<InfoVxlan>) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(data)),
    ])
}

fn change(index: u32, tunnel: &Tunnel) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::Address(tunnel.mac.0.to_vec()),
        LinkAttribute::Mtu(tunnel.mtu),
    ];
    message
}

impl NodeLink {
    pub(super) fn read(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(address) => link.mac = address.try_into().map(MacAddr).ok(),
                LinkAttribute::LinkNetNsId(_) => link.leads_elsewhere = true,
                LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| match info {
                    LinkInfo::Kind(kind) => link.kind = kind.to_string(),
                    LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan = Some(Vxlan::read(&data)),
                    _ => {}
                }),
                _ => {}
            }
        }
        link
    }

    /// The device as a tunnel, see [`super::Observed::net`].
    pub(super) fn tunnel(&self, links: &[NodeLink]) -> Option<Tunnel> {
        let vxlan = self.vxlan.as_ref().filter(|_| self.name == TUNNEL)?;
        let underlay = links.iter().find(|l| l.index == vxlan.underlay);
        let local = vxlan
            .local
            .filter(|_| vxlan.gbp && !vxlan.learning && !vxlan.other);
        Some(Tunnel {
            underlay: Link {
                name: underlay.map(|l| l.name.clone()).unwrap_or_default(),
                index: vxlan.underlay,
            },
            local: local.unwrap_or(IpAddr::from([0; 4])),
            vni: local.map_or(0, |_| vxlan.vni),
            port: vxlan.port,
            mtu: if self.up { self.mtu } else { 0 },
            mac: self.mac.unwrap_or(MacAddr([0; 6])),
            address: Ipv4Addr::UNSPECIFIED,
        })
    }
}

impl Vxlan {
    fn read(data: &[InfoVxlan]) -> Self {
        let mut vxlan = Self::default();
        for info in data {
            match info {
                InfoVxlan::Id(vni) => vxlan.vni = *vni,
                InfoVxlan::Port(port) => vxlan.port = *port,
                InfoVxlan::Link(index) => vxlan.underlay = *index,
                InfoVxlan::Local(address) => vxlan.local = Some((*address).into()),
                InfoVxlan::Local6(address) => vxlan.local = Some((*address).into()),
                InfoVxlan::Gbp => vxlan.gbp = true,
                InfoVxlan::Learning(learning) => vxlan.learning = *learning,
                InfoVxlan::Group(_) | InfoVxlan::Group6(_) | InfoVxlan::CollectMetadata(true) => {
                    vxlan.other = true;
                }
                _ => {}
            }
        }
        vxlan
    }
}
