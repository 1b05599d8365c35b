//! One look at the node's network.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::observed::{NodeAddress, NodeLink, Observed};
use super::stray::{Stray, unique};
use super::{NetError, Rtnl, link, neighbour, route, rule};
use crate::model::{Neighbour, Route};
use crate::owned::TUNNEL_ADDRESS;

impl Rtnl {
    /// Looks at the node's network.
    pub async fn observe(&mut self) -> Result<Observed, NetError> {
        let mut observed = Observed::default();
        let links = self.wire.dump("links", link::get_all(), |message| match message {
            RouteNetlinkMessage::NewLink(m) => Some(NodeLink::read(m)),
            _ => None,
        });
        observed.links = links.await?;
        let tunnel = observed.tunnel_link().filter(|l| l.vxlan.is_some()).cloned();
        observed.net.tunnel = tunnel.as_ref().and_then(|t| t.tunnel(&observed.links));
        let index = tunnel.map(|t| t.index);
        self.observe_addresses(&mut observed, index).await?;
        self.observe_routes(&mut observed, index).await?;
        self.observe_rules(&mut observed).await?;
        if let Some(index) = index {
            self.observe_fdb(&mut observed, index).await?;
            self.observe_neighbours(&mut observed, index).await?;
        }
        Ok(observed)
    }

    async fn observe_addresses(
        &mut self,
        observed: &mut Observed,
        tunnel: Option<u32>,
    ) -> Result<(), NetError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let addresses = self.wire.dump("addresses", request, |message| match message {
            RouteNetlinkMessage::NewAddress(m) => NodeAddress::read(&m),
            _ => None,
        });
        observed.addresses = addresses.await?;
        let ours = |a: &NodeAddress| Some(a.index) == tunnel && a.address == TUNNEL_ADDRESS;
        if let Some(tunnel) = &mut observed.net.tunnel
            && observed.addresses.iter().any(ours)
        {
            tunnel.address = TUNNEL_ADDRESS;
        }
        Ok(())
    }

    async fn observe_routes(&mut self, observed: &mut Observed, tunnel: Option<u32>) -> Result<(), NetError> {
        let numbers = self.numbers;
        let mut ours: Vec<Route> = Vec::new();
        for family in self.families() {
            let links = &observed.links;
            let seen = self
                .wire
                .dump("routes", route::get_all(*family), |message| match message {
                    RouteNetlinkMessage::NewRoute(m) => route::read(m, &numbers, links, tunnel),
                    _ => None,
                });
            for seen in seen.await? {
                match seen {
                    route::Seen::Ours(route) => ours.push(route),
                    route::Seen::Stray(message) => observed.strays.push(Stray::Route(message)),
                    route::Seen::Foreign(route) => observed.foreign_routes.push(route),
                    route::Seen::Node(routes) => observed.routes.extend(routes),
                }
            }
        }
        // To one destination the model has one route, and a change replaces it; `append` makes several.
        let (ours, double) = unique(ours, |r| (r.table, r.to));
        let write = |r: &Route| Stray::Route(route::write(r, tunnel.unwrap_or_default()));
        observed.strays.extend(double.iter().map(write));
        observed.net.routes = ours.into_iter().collect();
        Ok(())
    }

    async fn observe_rules(&mut self, observed: &mut Observed) -> Result<(), NetError> {
        let numbers = self.numbers;
        for family in self.families() {
            let seen = self
                .wire
                .dump("ip rules", rule::get_all(*family), |message| match message {
                    RouteNetlinkMessage::NewRule(m) => rule::read(m, &numbers),
                    _ => None,
                });
            for seen in seen.await? {
                match seen {
                    rule::Seen::Ours(rule) => drop(observed.net.rules.insert(rule)),
                    rule::Seen::Stray(message) => observed.strays.push(Stray::Rule(message)),
                    rule::Seen::Foreign(rule) => observed.foreign_rules.push(rule),
                }
            }
        }
        Ok(())
    }

    async fn observe_fdb(&mut self, observed: &mut Observed, index: u32) -> Result<(), NetError> {
        let request = neighbour::get_all(AddressFamily::Bridge, index);
        let entries = self.wire.dump("FDB", request, |message| match message {
            RouteNetlinkMessage::NewNeighbour(m) if m.header.ifindex == index => {
                Some(neighbour::read_fdb(&m).ok_or(m))
            }
            _ => None,
        });
        for entry in entries.await? {
            match entry {
                Ok(fdb) => drop(observed.net.fdb.insert(fdb)),
                Err(message) => observed.strays.push(Stray::Neighbour(message)),
            }
        }
        Ok(())
    }

    async fn observe_neighbours(&mut self, observed: &mut Observed, index: u32) -> Result<(), NetError> {
        for family in self.families() {
            let request = neighbour::get_all(route::address_family(*family), index);
            let entries = self.wire.dump("neighbours", request, |message| match message {
                RouteNetlinkMessage::NewNeighbour(m) if m.header.ifindex == index => {
                    neighbour::read_neighbour(&m)
                }
                _ => None,
            });
            let entries: Vec<Neighbour> = entries.await?;
            observed.net.neighbours.extend(entries);
        }
        Ok(())
    }

    /// Whether the kernel can do VXLAN. Makes nothing.
    pub async fn has_vxlan(&mut self) -> Result<bool, NetError> {
        let request = link::impossible();
        let answer = self.wire.request(request, NLM_F_CREATE | NLM_F_EXCL).await;
        Ok(answer.err().and_then(|e| e.errno()) != Some(Errno::EOPNOTSUPP))
    }
}

impl NodeAddress {
    pub(super) fn read(message: &AddressMessage) -> Option<Self> {
        let header = &message.header;
        let mut flags = AddressFlags::from_bits_retain(header.flags.bits().into());
        let (mut address, mut local): (Option<IpAddr>, Option<IpAddr>) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Address(a) => address = Some(*a),
                AddressAttribute::Local(a) => local = Some(*a),
                AddressAttribute::Flags(all) => flags = *all,
                _ => {}
            }
        }
        Some(Self {
            index: header.index,
            // On a point-to-point link the other one is the far end's.
            address: local.or(address)?,
            prefix: header.prefix_len,
            global: header.scope == AddressScope::Universe,
            secondary: flags.contains(AddressFlags::Secondary),
            deprecated: flags.contains(AddressFlags::Deprecated),
            permanent: flags.contains(AddressFlags::Permanent),
            unusable: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed),
        })
    }
}
