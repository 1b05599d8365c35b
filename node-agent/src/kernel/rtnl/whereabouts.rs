//! Where the pod is that has an address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_crds::plan::Family;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::observed::NodeLink;
use super::{NetError, Rtnl, link, neighbour, route};
use crate::kernel::netlink::NetlinkError;
use crate::model::MacAddr;

/// Links with one end in a pod.
const PAIRS: [&str; 2] = ["veth", "netkit"];

/// What the kernel says when it has no way to an address.
const NO_WAY: [Errno; 5] = [
    Errno::ENETUNREACH,
    Errno::EHOSTUNREACH,
    Errno::EINVAL,
    Errno::EACCES,
    Errno::ENOENT,
];

/// Where the pod is that has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// Behind the link of this index, and nothing else is. With the pod's network the link goes, and its index is
    /// never another's.
    Link(u32),
    /// The same, behind this port of a bridge: what it sends comes in by the bridge.
    Port(u32),
    /// On this node, no link of pods leads to it.
    Nowhere,
    /// Nobody has answered to it when it was last asked for. It is being asked for again.
    Silent,
    /// The node's routes lead to it by a router, or by a link that is neither a pair nor a bridge: they do not say by which
    /// link it sends.
    Beyond,
    /// On a link that it shares with others; or it is being asked for.
    Unclear,
}

impl Rtnl {
    /// Whether there is a link of that index.
    pub async fn has_link(&mut self, index: u32) -> Result<bool, NetError> {
        Ok(self.link_of(index).await?.is_some())
    }

    /// The link by which the node's routes lead to an address; `None` where none does.
    pub async fn link_to(&mut self, address: IpAddr) -> Result<Option<u32>, NetError> {
        Ok(self.way_to(address).await?.map(|way| way.link))
    }

    /// Where the pod is that has the address; `uplinks` are the links that lead to no pods.
    pub async fn whereabouts(
        &mut self,
        address: IpAddr,
        uplinks: &BTreeSet<u32>,
    ) -> Result<Whereabouts, NetError> {
        let Some(way) = self.way_to(address).await? else {
            return Ok(Whereabouts::Nowhere);
        };
        let link = match self.link_of(way.link).await? {
            Some(link) if way.is_local || uplinks.contains(&link.index) => return Ok(Whereabouts::Nowhere),
            Some(link) if !way.has_router => link,
            Some(_) => return Ok(Whereabouts::Beyond),
            None => return Ok(Whereabouts::Unclear),
        };
        match link.kind.as_str() {
            "bridge" => self.behind_bridge(address, link.index).await,
            kind if PAIRS.contains(&kind) => Ok(Whereabouts::Link(link.index)),
            _ => Ok(Whereabouts::Beyond),
        }
    }

    /// The bridge has learnt by which port the pod's frames come.
    async fn behind_bridge(&mut self, address: IpAddr, bridge: u32) -> Result<Whereabouts, NetError> {
        let request = neighbour::get_all(route::address_family(Family::from(address)), bridge);
        let entries = self.wire.dump("neighbours", request, |message| match message {
            RouteNetlinkMessage::NewNeighbour(m) if m.header.ifindex == bridge => {
                let is_it = neighbour::destination(&m) == Some(address);
                is_it.then_some(m)
            }
            _ => None,
        });
        let entry = entries.await?.pop();
        let mac = entry.as_ref().and_then(neighbour::mac);
        if let Some(mac) = mac
            && let Some(port) = self.port_of(bridge, mac).await?
            && let Some(port) = self.link_of(port).await?
        {
            return Ok(match PAIRS.contains(&port.kind.as_str()) {
                true => Whereabouts::Port(port.index),
                false => Whereabouts::Unclear,
            });
        }
        self.ask_for(address, bridge).await?;
        match entry.map(|entry| entry.header.state) {
            Some(NeighbourState::Failed) => Ok(Whereabouts::Silent),
            _ => Ok(Whereabouts::Unclear),
        }
    }

    async fn port_of(&mut self, bridge: u32, mac: MacAddr) -> Result<Option<u32>, NetError> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Bridge;
        request.attributes = vec![NeighbourAttribute::Controller(bridge)];
        let request = RouteNetlinkMessage::GetNeighbour(request);
        let ports = self.wire.dump("FDB", request, |message| match message {
            RouteNetlinkMessage::NewNeighbour(m) if m.header.ifindex != bridge => {
                let is_it = neighbour::mac(&m) == Some(mac)
                    && m.attributes.contains(&NeighbourAttribute::Controller(bridge));
                is_it.then_some(m.header.ifindex)
            }
            _ => None,
        });
        Ok(ports.await?.pop())
    }

    /// Makes the kernel ask for an address that it does not know, or not for sure.
    async fn ask_for(&mut self, address: IpAddr, link: u32) -> Result<(), NetError> {
        let mut message = NeighbourMessage::default();
        message.header.family = route::address_family(Family::from(address));
        message.header.ifindex = link;
        message.header.flags = NeighbourFlags::Use;
        message.attributes = vec![NeighbourAttribute::Destination(address.into())];
        let message = RouteNetlinkMessage::NewNeighbour(message);
        let asked = self.wire.request(message, NLM_F_CREATE | NLM_F_REPLACE).await;
        answered(asked, &[Errno::ENODEV], "a neighbour").map(drop)
    }

    async fn link_of(&mut self, index: u32) -> Result<Option<NodeLink>, NetError> {
        let found = self.wire.request(link::get(index), 0).await;
        let found = answered(found, &[Errno::ENODEV], "a link")?;
        Ok(found.into_iter().find_map(|message| match message {
            RouteNetlinkMessage::NewLink(m) => Some(NodeLink::read(m)),
            _ => None,
        }))
    }

    async fn way_to(&mut self, address: IpAddr) -> Result<Option<Way>, NetError> {
        let found = self.wire.request(route::get(address), 0).await;
        let found = answered(found, &NO_WAY, "the way to a pod")?;
        Ok(found.into_iter().find_map(|message| match message {
            RouteNetlinkMessage::NewRoute(m) => Way::read(&m),
            _ => None,
        }))
    }
}

/// How the node reaches an address.
struct Way {
    link: u32,
    has_router: bool,
    /// The address is the node's own.
    is_local: bool,
}

impl Way {
    fn read(message: &RouteMessage) -> Option<Self> {
        let is_local = match message.header.kind {
            RouteType::Unicast => false,
            RouteType::Local => true,
            _ => return None,
        };
        let router = |a: &RouteAttribute| matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Via(_));
        let link = message.attributes.iter().find_map(|a| match a {
            RouteAttribute::Oif(link) => Some(*link),
            _ => None,
        });
        Some(Self {
            link: link?,
            has_router: message.attributes.iter().any(router),
            is_local,
        })
    }
}

/// What the kernel answered; nothing where it says one of these.
fn answered(
    answer: Result<Vec<RouteNetlinkMessage>, NetlinkError>,
    nothing: &[Errno],
    what: &'static str,
) -> Result<Vec<RouteNetlinkMessage>, NetError> {
    match answer {
        Err(error) if error.errno().is_some_and(|errno| nothing.contains(&errno)) => Ok(Vec::new()),
        answer => answer.map_err(|source| NetError::Read { what, source }),
    }
}
