//! From the [`World`] to a plan for every node, and what became of every policy.
//!
//! Pure: no client, no clock, no environment, no order of events. Equal worlds give equal outcomes.
//!
//! What is the same for all nodes is worked out once ([`shared`]): ids, gateways, the cluster's ranges. After that
//! a node's plan is a function of its own pods ([`share`]) and, where it is a gateway, of sums over all nodes
//! ([`totals`]). [`Planner`] keeps these three up with a changing world.
//!
//! A policy with several gateways is several policies to the nodes: each entry of `egressGateways`, and each
//! pair of `egressSourceIPs`, is a [`policies::Slot`] with an id of its own, and each pod uses one of them
//! ([`choose`]). Agents do not know more.

pub mod choose;
pub mod cluster;
pub mod faults;
mod gate;
pub mod gateway;
pub mod gateways;
#[cfg(test)]
mod golden;
pub mod ids;
pub mod lost;
pub mod masquerade;
pub mod node;
pub mod outcome;
pub mod peers;
pub mod planner;
pub mod pods;
pub mod policies;
pub mod profiles;
pub mod select;
pub mod share;
pub mod shared;
pub mod sharing;
pub mod stale;
pub mod totals;
mod verdict;

use std::collections::BTreeMap;

use egressnat_crds::EgressPlanSpec;

pub use self::outcome::{GatewayOutcome, PolicyOutcome};
pub use self::planner::{Planner, Touched};

use crate::world::World;

/// Everything that follows from a [`World`].
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// A plan for every node, by its name.
    pub plans: BTreeMap<String, EgressPlanSpec>,
    /// What became of every policy, by its name.
    pub policies: BTreeMap<String, PolicyOutcome>,
}

/// Makes all plans.
pub fn plan(world: &World) -> Outcome {
    Planner::new(world).outcome(world)
}
