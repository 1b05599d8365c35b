//! Links, and the tunnel device among them.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressScope;
use netlink_packet_route::link::{
    InfoData, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, Prop,
};
use rtnetlink::{AddressMessageBuilder, LinkMessageBuilder, LinkUnspec, LinkVxlan};

use super::observed::{NodeLink, Vxlan};
use crate::model::{Link, MacAddr, Tunnel};
use crate::owned::TUNNEL;

/// Asks for all links.
pub(super) fn get_all() -> RouteNetlinkMessage {
    let no_statistics = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
    let message = LinkMessageBuilder::<LinkUnspec>::new().append_extra_attribute(no_statistics);
    RouteNetlinkMessage::GetLink(message.build())
}

/// Asks for the link with the tunnel's name.
pub(super) fn get_tunnel() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkUnspec::new_with_name(TUNNEL).build())
}

/// Asks for the link of an index.
pub(super) fn get(index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkUnspec::new_with_index(index).build())
}

/// Makes the tunnel device.
pub(super) fn create(tunnel: &Tunnel) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewLink(changeable(device(tunnel), tunnel).build())
}

/// Makes the tunnel device, and leaves it down.
pub(super) fn create_down(tunnel: &Tunnel) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewLink(device(tunnel).build())
}

fn device(tunnel: &Tunnel) -> LinkMessageBuilder<LinkVxlan> {
    let device = LinkVxlan::new(TUNNEL, tunnel.vni)
        .dev(tunnel.underlay.index)
        .port(tunnel.port)
        .learning(false)
        .gbp();
    match tunnel.local {
        IpAddr::V4(local) => device.local(local),
        IpAddr::V6(local) => device.local6(local),
    }
}

/// Sets what can be changed on a living device.
pub(super) fn adjust(index: u32, tunnel: &Tunnel) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewLink(changeable(LinkUnspec::new_with_index(index), tunnel).build())
}

fn changeable<T>(device: LinkMessageBuilder<T>, tunnel: &Tunnel) -> LinkMessageBuilder<T> {
    device.address(tunnel.mac.0.to_vec()).mtu(tunnel.mtu).up()
}

/// Gives the device its address.
pub(super) fn add_address(index: u32, tunnel: &Tunnel) -> RouteNetlinkMessage {
    let address = AddressMessageBuilder::<Ipv4Addr>::new()
        .index(index)
        .address(tunnel.address, 32);
    let mut message = address.build();
    message.header.scope = AddressScope::Host;
    RouteNetlinkMessage::NewAddress(message)
}

/// Removes a link.
pub(super) fn delete(index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(index).build())
}

/// Asks for a VXLAN device that cannot be: a kernel that knows VXLAN refuses the identifier.
pub(super) fn impossible() -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewLink(LinkVxlan::new(TUNNEL, u32::MAX).gbp().build())
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
                LinkAttribute::PropList(properties) => {
                    link.altnames = properties.into_iter().filter_map(altname).collect();
                }
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

fn altname(property: Prop) -> Option<String> {
    match property {
        Prop::AltIfName(name) => Some(name),
        _ => None,
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
