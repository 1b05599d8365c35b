//! What is still to be written: plans that the API server does not hold as they should be, and policies whose status
//! may say what is not so any more.

use std::collections::{BTreeMap, BTreeSet};

use crate::apply::{self, PlanWrite, WAVES};
use crate::difference::Difference;
use crate::plan::{Planner, Touched};
use crate::rollout::{Rollout, Step};
use crate::world::World;

/// A planner, and what of that which follows from it is still to be written.
#[derive(Debug)]
pub struct Backlog {
    planner: Planner,
    rollout: Rollout,
    /// The wave in which each node's plan is to be written. The plan itself is made when its turn comes.
    plans: BTreeMap<String, usize>,
    policies: BTreeSet<String>,
}

impl Backlog {
    /// From scratch.
    pub fn new(world: &World) -> Self {
        let Touched { plans, policies } = Touched::everything(world);
        let mut backlog = Self {
            planner: Planner::new(world),
            rollout: Rollout::new(world),
            plans: BTreeMap::new(),
            policies,
        };
        for node in plans {
            backlog.compare(node, world);
        }
        backlog
    }

    /// Takes note of a difference. Nothing follows from it before [`Backlog::catch_up`].
    pub fn note(&mut self, difference: Difference<'_>) {
        if let Difference::Plan(node, before, after) = difference {
            self.rollout.note(node, before, after);
        }
        self.planner.note(difference);
    }

    /// Draws the consequences of all that was noted; `world` is as all these differences left it.
    pub fn catch_up(&mut self, world: &World) {
        let mut touched = self.planner.catch_up(world);
        touched.plans.append(&mut self.rollout.take_due());
        self.add(touched, world);
    }

    /// Whether nothing was noted since.
    pub fn is_current(&self) -> bool {
        self.planner.is_current()
    }

    /// How far the plans are on their way.
    pub fn rollout(&self) -> &Rollout {
        &self.rollout
    }

    /// The planner.
    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    /// The nodes whose plans are to be written, in waves, each to be sent before the next.
    pub fn waves(&self) -> [Vec<String>; WAVES] {
        let mut waves = [const { Vec::new() }; WAVES];
        for (node, wave) in &self.plans {
            waves[*wave].push(node.clone());
        }
        waves
    }

    /// Whether any plan is to be written.
    pub fn has_plans(&self) -> bool {
        !self.plans.is_empty()
    }

    /// Whether the API server holds this node's plan as it should be.
    pub fn is_written(&self, node: &str) -> bool {
        !self.plans.contains_key(node)
    }

    /// What is to be written of a node's plan. That may be nothing any more, after what was written before it.
    pub fn write(&mut self, node: &str, world: &World) -> Option<PlanWrite> {
        self.compare(node.to_owned(), world)
    }

    /// The policies whose status may be another.
    pub fn policies(&self) -> &BTreeSet<String> {
        &self.policies
    }

    /// These policies are looked at.
    pub fn take_policies(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.policies)
    }

    /// This policy has to be looked at again.
    pub fn put_back(&mut self, policy: String) {
        self.policies.insert(policy);
    }

    fn add(&mut self, touched: Touched, world: &World) {
        for node in touched.plans {
            let policies = self.planner.policies_of(&node).into_iter();
            self.policies.extend(policies.map(str::to_owned));
            self.compare(node, world);
        }
        self.policies.extend(touched.policies);
    }

    fn compare(&mut self, node: String, world: &World) -> Option<PlanWrite> {
        let step = self.step(&node, world);
        self.rollout.settle(&node, step.as_ref());
        let Some((wave, write)) = apply::difference(&node, step.map(|step| step.spec), world) else {
            self.plans.remove(&node);
            return None;
        };
        self.plans.insert(node, wave);
        Some(write)
    }

    /// What may be written of a node's plan now; `None` of one that is not there.
    fn step(&self, node: &str, world: &World) -> Option<Step> {
        let target = self.planner.plan(node)?;
        let is_given = |id| self.planner.is_given(id);
        Some(self.rollout.step(node, target, world, is_given))
    }
}
