//! With which address a pod's packets leave, if they do.

use std::net::IpAddr;

use egressnat_crds::interval::Interval;
use egressnat_crds::plan::Family;
use egressnat_crds::policy::NoGateway;
use egressnat_crds::ports::PortRange;
use egressnat_operator::world::{Pod, World};
use serde::Serialize;

use super::Selecting;

/// What becomes of packets to some ranges.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seen {
    /// Destinations, of one family.
    pub ranges: Vec<Interval>,
    /// The policy that captures them.
    pub policy: String,
    /// What it makes of them.
    #[serde(flatten)]
    pub fate: Fate,
}

/// What a policy makes of a packet.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "fate")]
pub enum Fate {
    /// It leaves by the gateway.
    Gateway {
        /// With this source address.
        address: IpAddr,
        /// With one of these source ports.
        #[serde(skip_serializing_if = "Option::is_none")]
        ports: Option<PortRange>,
        /// This node.
        gateway: String,
    },
    /// It is dropped.
    Dropped {
        /// Why.
        because: String,
    },
    /// It leaves with the address of the pod's node.
    NodeAddress {
        /// Why.
        because: String,
    },
}

/// What becomes of the pod's packets, by policy and family.
pub fn seen(world: &World, pod: &Pod, policies: &[Selecting]) -> Vec<Seen> {
    let mut seen = Vec::new();
    for policy in policies {
        for family in [Family::IPv4, Family::IPv6] {
            // A pod without an address yet may get one of either family.
            let sends = pod.ips.is_empty() || pod.ips.iter().any(|ip| Family::from(*ip) == family);
            let of_family = policy.wins.iter().filter(|r| Family::from(r.first()) == family);
            let ranges: Vec<Interval> = of_family.copied().collect();
            if sends && !ranges.is_empty() {
                seen.push(Seen {
                    ranges,
                    policy: policy.name.clone(),
                    fate: fate(world, policy, family),
                });
            }
        }
    }
    seen
}

fn fate(world: &World, policy: &Selecting, family: Family) -> Fate {
    let without = |because: String| match policy.no_gateway {
        NoGateway::Drop => Fate::Dropped { because },
        NoGateway::NodeIP => Fate::NodeAddress { because },
    };
    let Some(gateway) = &policy.gateway else {
        return without(policy.gateway_message.clone());
    };
    let Some(address) = policy.addresses.iter().find(|a| Family::from(**a) == family) else {
        return without(format!("the gateway {gateway} sends with no {family:?} address"));
    };
    let missing = world.plans.get(gateway).map(|p| &p.status.missing_addresses);
    match missing.is_some_and(|m| m.contains(address)) {
        // The gateway drops, whatever noGateway says: the packet has left its node.
        true => Fate::Dropped {
            because: format!("the agent of {gateway} does not find {address} on its node"),
        },
        false => Fate::Gateway {
            address: *address,
            ports: policy.source_ports,
            gateway: gateway.clone(),
        },
    }
}
