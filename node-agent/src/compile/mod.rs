//! From a plan and the facts of the node to the desired state of its kernel. Pure.
//!
//! The chains, in the order in which a packet meets them (`ARCHITECTURE.md` has its whole journey):
//!
//! ```text
//! raw_prerouting -> tunnel_port  the tunnel's port is for peers only, and its UDP is not tracked
//! raw_output                   nor is what is sent by it
//! prerouting -> from_tunnel    out of the tunnel: peer, inner source and id are checked
//!            -> decided        a connection with an id: to its gateway, out by its address's link, or back by the tunnel
//!            -> selected       a selected pod's new connection: profile, destination, id
//!            -> own_link     what comes by a selected pod's own link with another source
//!            -> released       what is left of the connections of a pod that is selected no more
//! forward -> captured          the id goes on the wire, MSS fits the tunnel, no other door
//! postrouting -> keep_source   into the tunnel with the pod's address
//!             -> egress        out with the policy's address
//!             -> default_egress out with the node's, where no policy captures and the plan asks for it
//! ```

mod exits;
mod forged;
mod gateway;
mod masquerade;
mod net;
mod numbering;
mod released;
mod shared;
mod source;
mod table;

pub use shared::guard;
pub(crate) use source::{never_captured, pod_without_profile, pods};
#[cfg(feature = "kernel")]
pub(crate) use {forged::set as pod_links, released::sets as released};

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::plan::{EgressPlanSpec, Family, Peer};

use self::numbering::Assigned;
use crate::facts::{Exit, Facts};
use crate::model::{Desired, Link, MacAddr, Net, Tunnel};
use crate::owned::{self, Numbers, RoutingMark};

/// Why a plan cannot be compiled on this node.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CompileError {
    /// The plan contradicts itself.
    #[error("failed to read the plan: {0}")]
    PlanInvalid(String),
    /// The plan has peers, but this node does not hold its underlay address.
    #[error(
        "no interface of this node holds {0}, the address that peers would send to: check the Node's InternalIP"
    )]
    UnderlayMissing(IpAddr),
    /// The plan has peers but names no underlay address: the Node has no InternalIP.
    #[error("the plan names no underlay address: the Node object has no InternalIP")]
    UnderlayUnknown,
    /// The tunnel is needed and is not there yet.
    #[error("the tunnel device {} is not there", crate::owned::TUNNEL)]
    TunnelMissing,
    /// More gateways and exits than routing marks.
    #[error("the plan uses {0} gateways and exits, this node can use {max}", max = RoutingMark::MAX_NUMBER)]
    TooManyGateways(usize),
}

impl CompileError {
    /// The error's category: metric label and reason of the plan's condition.
    pub fn category(&self) -> &'static str {
        match self {
            Self::PlanInvalid(_) => "PlanInvalid",
            Self::UnderlayMissing(_) | Self::UnderlayUnknown => "UnderlayMissing",
            Self::TunnelMissing => "TunnelMissing",
            Self::TooManyGateways(_) => "TooManyGateways",
        }
    }
}

/// What the node's kernel has to hold for `plan`. The tunnel must be there where the plan needs one: put
/// [`tunnel`] first, then observe the facts again.
pub fn compile(
    plan: &EgressPlanSpec,
    node: &str,
    facts: &Facts,
    numbers: &Numbers,
) -> Result<Desired, CompileError> {
    let context = Context::new(plan, node, facts, numbers)?;
    let ruleset = (context.has_part() || context.masquerades() || facts.released.is_some())
        .then(|| context.ruleset())
        .transpose()?;
    Ok(Desired {
        ruleset,
        net: net::compile(&context),
        loose: context.loose(),
        missing: context.missing(),
        stranded: context.stranded(),
        left_to: context.left_to(),
    })
}

/// The part of [`compile`] that is not in the table.
pub fn network(
    plan: &EgressPlanSpec,
    node: &str,
    facts: &Facts,
    numbers: &Numbers,
) -> Result<Net, CompileError> {
    Ok(net::compile(&Context::new(plan, node, facts, numbers)?))
}

/// The tunnel device that `plan` needs: none where the node has no peers.
pub fn tunnel(
    plan: &EgressPlanSpec,
    facts: &Facts,
    numbers: &Numbers,
) -> Result<Option<Tunnel>, CompileError> {
    if plan.peers.is_empty() {
        return Ok(None);
    }
    let local = plan.underlay.ok_or(CompileError::UnderlayUnknown)?;
    let underlay = facts
        .underlay
        .as_ref()
        .ok_or(CompileError::UnderlayMissing(local))?;
    Ok(Some(Tunnel {
        underlay: underlay.link.clone(),
        local,
        vni: numbers.vni,
        port: numbers.port,
        mtu: underlay.mtu.saturating_sub(net::overhead(local)),
        mac: MacAddr::of_underlay(local),
        address: owned::TUNNEL_ADDRESS,
    }))
}

/// What every part of the compilation looks at.
struct Context<'a> {
    plan: &'a EgressPlanSpec,
    node: &'a str,
    facts: &'a Facts,
    numbers: &'a Numbers,
    /// The tunnel device and its link, where the node has peers.
    tunnel: Option<(Tunnel, Link)>,
    peers: BTreeMap<&'a str, &'a Peer>,
    /// The number of each gateway in use, by node.
    gateways: BTreeMap<&'a str, u8>,
    /// The links by which packets leave because their address is there, by number.
    exits: BTreeMap<u8, &'a Exit>,
}

impl<'a> Context<'a> {
    fn new(
        plan: &'a EgressPlanSpec,
        node: &'a str,
        facts: &'a Facts,
        numbers: &'a Numbers,
    ) -> Result<Self, CompileError> {
        let device = tunnel(plan, facts, numbers)?;
        let link = match (&device, &facts.tunnel) {
            (Some(_), Some(link)) => Some(link.clone()),
            (Some(_), None) => return Err(CompileError::TunnelMissing),
            (None, _) => None,
        };
        let peers: BTreeMap<&str, &Peer> = plan.peers.iter().map(|p| (p.node.as_str(), p)).collect();
        if let Some(peer) = plan.peers.iter().find(|p| Some(p.underlay) == plan.underlay) {
            return Err(CompileError::PlanInvalid(format!(
                "peer {} has this node's own address",
                peer.node
            )));
        }
        let mut used = BTreeMap::new();
        for source in plan.policies.iter().filter_map(|p| p.source.as_ref()) {
            if let Some(gateway) = source.gateway.as_deref().filter(|g| *g != node) {
                let peer = peers.get(gateway).ok_or_else(|| {
                    CompileError::PlanInvalid(format!("gateway {gateway} is not among the peers"))
                })?;
                used.insert(gateway, peer.underlay);
            }
        }
        let Assigned { gateways, exits } = numbering::assign(&used, facts)?;
        Ok(Self {
            plan,
            node,
            facts,
            numbers,
            tunnel: device.zip(link),
            peers,
            gateways,
            exits,
        })
    }

    /// Whether any policy concerns this node.
    fn has_part(&self) -> bool {
        !self.plan.policies.is_empty() || !self.plan.peers.is_empty()
    }

    /// Egress addresses that this node should hold and does not.
    fn missing(&self) -> BTreeSet<IpAddr> {
        self.plan
            .policies
            .iter()
            .filter_map(|p| p.gateway.as_ref())
            .flat_map(|g| &g.addresses)
            .filter(|a| !self.facts.addresses.contains(a))
            .copied()
            .collect()
    }

    fn link(&self) -> Option<&Link> {
        self.tunnel.as_ref().map(|(_, link)| link)
    }
}

/// Both families, in the order of all output.
const FAMILIES: [Family; 2] = [Family::IPv4, Family::IPv6];

/// The suffix of sets and maps that exist once per family.
fn digit(family: Family) -> char {
    match family {
        Family::IPv4 => '4',
        Family::IPv6 => '6',
    }
}

#[cfg(test)]
mod tests;
