//! The order of a change across nodes: from the plans that are wanted to those that may be written now.
//!
//! - A source is pointed at a gateway only when the gateway's agent has reported that it holds the id, with the
//!   policy's addresses, and takes the source's pods ([`Step::keep_sources`]). Until then it keeps the gateway that it
//!   has; without one, the packets are dropped.
//! - A gateway keeps an id, and the sources that it takes, until no stored plan points there and every node whose plan
//!   did has reported a newer one ([`Step::keep_roles`]).
//! - An id that leaves a plan stays in it as retired until the agent has reported that, and so is not given to another
//!   policy ([`Step::keep_ids`], [`crate::plan::ids`]).
//!
//! Everything follows from what is stored, and so survives whatever kills this process between two writes. What is
//! remembered besides ([`Confirmations`]) only spares waiting: without it, a node is believed to do anything with the
//! ids that its plan mentions until it has reported its plan as it stands.

mod confirmations;
mod step;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use egressnat_crds::EgressPlanSpec;

use self::confirmations::{Confirmations, News};
pub use self::step::Step;

use crate::world::{ExistingPlan, Safeguard, World};

/// How far the plans are on their way.
#[derive(Debug, Default)]
pub struct Rollout {
    confirmed: Confirmations,
    /// The nodes that wait for a gateway.
    waiting: BTreeMap<String, Waiting>,
    /// By gateway: the nodes among them that it concerns.
    concerns: BTreeMap<String, BTreeSet<String>>,
    /// The gateways that serve on for sources that may still send to them.
    serving_on: BTreeSet<String>,
    /// The nodes that may go a step further.
    due: BTreeSet<String>,
}

/// The gateways that a node waits for, and those that it keeps meanwhile: see [`Step`].
#[derive(Debug)]
struct Waiting {
    waits: BTreeMap<u16, String>,
    keeps: BTreeSet<String>,
}

impl Rollout {
    /// Of the plans that are stored, of which nothing else is known.
    pub fn new(world: &World) -> Self {
        let mut rollout = Self::default();
        for (node, plan) in &world.plans {
            rollout.confirmed.replace(node, None, Some(plan));
        }
        rollout
    }

    /// Takes note that a node's plan is another.
    pub fn note(&mut self, node: &str, before: Option<&ExistingPlan>, after: Option<&ExistingPlan>) {
        let News { offers, freed, known } = self.confirmed.replace(node, before, after);
        let is_ready = |plan: Option<&ExistingPlan>| plan.is_some_and(step::is_ready);
        if offers || after.is_none() || is_ready(before) != is_ready(after) {
            self.due
                .extend(self.concerns.get(node).into_iter().flatten().cloned());
        }
        self.due.extend(freed);
        if known {
            self.due.extend(self.serving_on.iter().cloned());
        }
    }

    /// The nodes that may go a step further since this was last asked.
    pub fn take_due(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.due)
    }

    /// What may be written of a node's wanted plan. `is_given` says of an id whether it is some policy's.
    pub fn step(
        &self,
        node: &str,
        target: EgressPlanSpec,
        world: &World,
        is_given: impl Fn(u16) -> bool,
    ) -> Step {
        let nothing = EgressPlanSpec::default();
        let from = step::From {
            node,
            stored: world.plans.get(node).map_or(&nothing, |plan| &plan.spec),
            world,
            confirmed: &self.confirmed,
        };
        let mut step = Step::to(target);
        if world.config.guards(Safeguard::Order) {
            step.keep_sources(&from);
            step.keep_roles(&from);
        }
        if world.config.guards(Safeguard::Quarantine) {
            step.keep_ids(&from, is_given);
        }
        step
    }

    /// Takes note of what a node waits for, and of what it keeps. `None`: the node is gone.
    pub fn settle(&mut self, node: &str, step: Option<&Step>) {
        if let Some(before) = self.waiting.remove(node) {
            before
                .gateways()
                .for_each(|gateway| self.unconcern(gateway, node));
        }
        self.serving_on.remove(node);
        let Some(step) = step else { return };
        if step.serves_on {
            self.serving_on.insert(node.to_owned());
        }
        if !step.waits.is_empty() {
            let waiting = Waiting {
                waits: step.waits.clone(),
                keeps: step.keeps.clone(),
            };
            for gateway in waiting.gateways() {
                let nodes = self.concerns.entry(gateway.clone()).or_default();
                nodes.insert(node.to_owned());
            }
            self.waiting.insert(node.to_owned(), waiting);
        }
    }

    /// Whether a node has to wait for the gateway of an id.
    pub fn waits(&self, node: &str, id: u16) -> bool {
        let waiting = self.waiting.get(node);
        waiting.is_some_and(|waiting| waiting.waits.contains_key(&id))
    }

    fn unconcern(&mut self, gateway: &str, node: &str) {
        if let Some(nodes) = self.concerns.get_mut(gateway) {
            nodes.remove(node);
            if nodes.is_empty() {
                self.concerns.remove(gateway);
            }
        }
    }
}

impl Waiting {
    fn gateways(&self) -> impl Iterator<Item = &String> {
        self.waits.values().chain(&self.keeps)
    }
}
