//! The packets that a plan makes this node pass on.

use std::fmt;
use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::Family;

use super::packet::Packet;
use crate::kernel::nft::State;
use crate::kernel::rtnl::Observed;
use crate::model::{Hook, Link};
use crate::owned::{Numbers, TUNNEL};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// How many pods, and ranges of pods, stand for all.
const SAMPLES: usize = 8;

/// A way of packets through a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// From this node's pods into the tunnel.
    ToGateway,
    /// Out of the tunnel, back to this node's pods.
    BackToPod,
    /// Out of the tunnel, and out of this node, the gateway.
    ThroughGateway,
    /// Back into the tunnel.
    BackToNode,
    /// From this node's own pods, out of this node, the gateway.
    FromOwnPods,
    /// To the tunnel's port.
    ByTunnel,
}

impl Passage {
    /// Where others' rules may stop it.
    pub fn hooks(self) -> &'static [Hook] {
        match self {
            Self::BackToPod | Self::ThroughGateway => &[Hook::Prerouting, Hook::Forward],
            Self::ToGateway | Self::BackToNode | Self::FromOwnPods => &[Hook::Forward],
            Self::ByTunnel => &[Hook::Input],
        }
    }
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ToGateway => "selected pods' packets on their way to the gateway",
            Self::BackToPod => "replies to selected pods, out of the tunnel",
            Self::ThroughGateway => "packets that this gateway is to pass on, out of the tunnel",
            Self::BackToNode => "replies that this gateway is to send back into the tunnel",
            Self::FromOwnPods => "packets of this gateway's own selected pods",
            Self::ByTunnel => "the tunnel's own packets",
        })
    }
}

/// All of a family, with a few packets for each that stand for all.
pub fn passages(
    observed: &Observed,
    plan: &EgressPlanSpec,
    node: &str,
    numbers: &Numbers,
    family: Family,
) -> Vec<(Passage, Vec<Packet>)> {
    let of_family = |address: &IpAddr| family == (*address).into();
    let pods = || {
        plan.pods
            .iter()
            .flat_map(|pod| &pod.ips)
            .copied()
            .filter(of_family)
    };
    let ranges = plan
        .peers
        .iter()
        .flat_map(|peer| &peer.ranges)
        .map(|range| range.addr());
    let theirs: Vec<IpAddr> = ranges.filter(of_family).take(SAMPLES).collect();
    let sources = plan.policies.iter().filter_map(|policy| policy.source.as_ref());
    let gateways = || sources.clone().filter_map(|source| source.gateway.as_deref());
    let ours = |wanted: bool| pods().filter(move |_| wanted).take(SAMPLES);
    let (to_others, to_itself) = (
        ours(gateways().any(|gateway| gateway != node)),
        ours(gateways().any(|gateway| gateway == node)),
    );
    let ways = Ways::new(observed, family);
    let mut passages = vec![
        (
            Passage::ToGateway,
            to_others.clone().map(|pod| ways.to_gateway(pod)).collect(),
        ),
        (
            Passage::BackToPod,
            to_others.map(|pod| ways.back_to_pod(pod)).collect(),
        ),
        (
            Passage::FromOwnPods,
            to_itself.map(|pod| ways.out_of_node(pod)).collect(),
        ),
        (
            Passage::ThroughGateway,
            theirs.iter().map(|pod| ways.through(*pod)).collect(),
        ),
        (
            Passage::BackToNode,
            theirs.iter().map(|pod| ways.back_to_node(*pod)).collect(),
        ),
        (Passage::ByTunnel, by_tunnel(observed, plan, numbers, family)),
    ];
    passages.retain(|(_, packets): &(_, Vec<Packet>)| !packets.is_empty());
    passages
}

/// The tunnel's own packets, from its peers.
fn by_tunnel(observed: &Observed, plan: &EgressPlanSpec, numbers: &Numbers, family: Family) -> Vec<Packet> {
    let own = plan.underlay.filter(|address| family == (*address).into());
    let held = observed.addresses.iter().find(|a| Some(a.address) == own);
    let link = held.and_then(|held| observed.link(held.index)).map(Link::from);
    let peers = plan.peers.iter().filter(|_| own.is_some()).take(SAMPLES);
    let packet = |peer: IpAddr| Packet {
        source: Some(peer),
        destination: own,
        came_by: link.clone(),
        protocol: UDP,
        port: Some(numbers.port),
        state: State::Untracked,
        ..Packet::new(family)
    };
    peers.map(|peer| packet(peer.underlay)).collect()
}

/// The links of a node, and the packets that go by them.
struct Ways<'a> {
    observed: &'a Observed,
    family: Family,
    tunnel: Link,
    /// Where this node, as the gateway, sends to; none where there are several ways.
    uplink: Option<Link>,
}

impl<'a> Ways<'a> {
    fn new(observed: &'a Observed, family: Family) -> Self {
        let tunnel = observed.tunnel_link().map(Link::from);
        let absent = || Link {
            name: TUNNEL.into(),
            index: 0,
        };
        let mut uplinks = observed.default_links(family).into_iter();
        let uplink = uplinks.next().filter(|_| uplinks.next().is_none());
        Self {
            observed,
            family,
            tunnel: tunnel.unwrap_or_else(absent),
            uplink: uplink.and_then(|index| observed.link(index)).map(Link::from),
        }
    }

    fn to_gateway(&self, pod: IpAddr) -> Packet {
        Packet {
            source: Some(pod),
            came_by: self.link_of(pod),
            goes_by: Some(self.tunnel.clone()),
            ..Packet::new(self.family)
        }
    }

    fn back_to_pod(&self, pod: IpAddr) -> Packet {
        Packet {
            destination: Some(pod),
            came_by: Some(self.tunnel.clone()),
            goes_by: self.link_of(pod),
            state: State::Established,
            no_way_back: true,
            ..Packet::new(self.family)
        }
    }

    fn out_of_node(&self, pod: IpAddr) -> Packet {
        Packet {
            source: Some(pod),
            came_by: self.link_of(pod),
            goes_by: self.uplink.clone(),
            ..Packet::new(self.family)
        }
    }

    fn through(&self, pod: IpAddr) -> Packet {
        Packet {
            source: Some(pod),
            came_by: Some(self.tunnel.clone()),
            goes_by: self.uplink.clone(),
            no_way_back: true,
            ..Packet::new(self.family)
        }
    }

    fn back_to_node(&self, pod: IpAddr) -> Packet {
        Packet {
            destination: Some(pod),
            came_by: self.uplink.clone(),
            goes_by: Some(self.tunnel.clone()),
            state: State::Established,
            ..Packet::new(self.family)
        }
    }

    /// The link by which the main table leads to a pod of this node.
    fn link_of(&self, pod: IpAddr) -> Option<Link> {
        let leads = self.observed.routes.iter();
        let leads = leads.filter(|route| route.is_of_main() && route.to.contains(&pod));
        let best = leads.max_by_key(|route| route.to.prefix_len())?;
        self.observed.link(best.link).map(Link::from)
    }
}

impl Packet {
    /// The first of a connection of TCP, from somewhere to somewhere.
    fn new(family: Family) -> Self {
        Self {
            family,
            source: None,
            destination: None,
            came_by: None,
            goes_by: None,
            protocol: TCP,
            port: None,
            state: State::New,
            no_way_back: false,
        }
    }
}
