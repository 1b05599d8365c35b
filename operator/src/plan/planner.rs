//! Keeps plans and outcomes up with a changing world: a pod's event costs one node's plan.
//!
//! What the planner keeps is what is the same for all nodes ([`Shared`]), what follows from each node's own pods
//! ([`Share`]), and the sums of the latter ([`Totals`]). Plans and outcomes are not kept: each is made of these when
//! somebody asks for it. A change either leaves [`Shared`] as it is, and then only the shares of the nodes that it
//! names are made anew, or everything is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use egressnat_crds::EgressPlanSpec;

use super::faults::{self, Fault};
use super::ids::Mentions;
use super::outcome::{self, PolicyOutcome};
use super::pods::Pods;
use super::select::Candidates;
use super::share::Share;
use super::shared::Shared;
use super::stale::Stale;
use super::totals::Totals;
use super::{Outcome, gate, masquerade, node};
use crate::difference::Difference;
use crate::world::{Node, World};

/// What plans and outcomes are made of.
#[derive(Debug)]
pub struct Planner {
    pods: Pods,
    mentions: Mentions,
    shared: Shared,
    candidates: Candidates,
    /// Whether pods start at once.
    open: bool,
    /// Of each namespace that is known, whether any policy may select pods of it.
    gated: BTreeMap<String, bool>,
    shares: BTreeMap<Arc<str>, Share>,
    totals: Totals,
    stale: Stale,
}

/// What may be another than before.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// The nodes whose plans, or what the API server says of them.
    pub plans: BTreeSet<String>,
    /// The policies whose outcomes, or what the API server says of them.
    pub policies: BTreeSet<String>,
}

impl Planner {
    /// From scratch.
    pub fn new(world: &World) -> Self {
        let mentions = Mentions::of(world.plans.values());
        let mut planner = Self {
            pods: Pods::of(world.pods.values()),
            shared: Shared::of(world, &mentions),
            mentions,
            candidates: Candidates::default(),
            open: true,
            gated: BTreeMap::new(),
            shares: BTreeMap::new(),
            totals: Totals::default(),
            stale: Stale::default(),
        };
        planner.share_out(world);
        planner
    }

    /// Takes note of a difference. Nothing follows from it before [`Planner::catch_up`].
    pub fn note(&mut self, difference: Difference<'_>) {
        match difference {
            Difference::Pod(before, after) => self.stale.nodes.append(&mut self.pods.replace(before, after)),
            Difference::Plan(name, before, after) => {
                let mentions_others = self.mentions.replace(before, after);
                self.stale.plan(name, before, after, mentions_others);
            }
            Difference::Policy(name, before, after) => self.stale.policy(name, before, after),
            Difference::Node(before, after) => self.stale.node(before, after),
            Difference::Namespace(name, ..) => self.stale.namespace(name),
            Difference::Cluster => self.stale.shared = true,
        }
    }

    /// Whether nothing was noted since the planner last caught up.
    pub fn is_current(&self) -> bool {
        self.stale == Stale::default()
    }

    /// Draws the consequences of all that was noted; `world` is as all these differences left it.
    pub fn catch_up(&mut self, world: &World) -> Touched {
        let stale = std::mem::take(&mut self.stale);
        let shared = (stale.all || stale.shared).then(|| Shared::of(world, &self.mentions));
        let is_outdated = |name: &String| self.candidates.is_outdated(name, &self.shared.in_force, world);
        let others = stale.namespaces.iter().any(is_outdated);
        let mut touched = Touched {
            plans: stale.plans,
            policies: stale.policies,
        };
        if stale.all || others || shared.as_ref().is_some_and(|shared| *shared != self.shared) {
            touched.plans.extend(self.shares.keys().map(ToString::to_string));
            self.shared = shared.unwrap_or_else(|| Shared::of(world, &self.mentions));
            self.share_out(world);
            touched.add_all_of(world);
            return touched;
        }
        if self.gate(&stale.namespaces, world) {
            touched.plans.extend(self.shares.keys().map(ToString::to_string));
        }
        for name in &stale.nodes {
            if let Some(node) = world.nodes.get(name) {
                self.share_anew(name, node, world, &mut touched);
            }
        }
        touched
    }

    /// The plan of a node; `None` of one that is not there.
    pub fn plan(&self, name: &str) -> Option<EgressPlanSpec> {
        let share = self.shares.get(name)?;
        let peers = self.totals.tunnels.peers(name, share, &self.shares);
        let except = self.shared.unmasqueraded.as_ref();
        let masquerade =
            except.and_then(|except| masquerade::of_node(&share.ranges, self.pods.of_node(name), except));
        let gate = gate::of_node(self.open, &self.gated, share, self.pods.of_node(name));
        Some(node::plan(name, share, peers, masquerade, gate, &self.shared))
    }

    /// What became of those of the policies `names` that are there, by name.
    pub fn policies<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
        world: &World,
    ) -> BTreeMap<String, PolicyOutcome> {
        outcome::of_policies(names, world, &self.shared, &self.shares, &self.totals)
    }

    /// The names of the policies in which a node has a part.
    pub fn policies_of(&self, node: &str) -> BTreeSet<&str> {
        let share = self.shares.get(node);
        let gateway = self.shared.at_gateway.get(node).into_iter().flatten().copied();
        let slots = share.into_iter().flat_map(Share::sources).chain(gateway);
        slots
            .map(|slot| self.shared.in_force.policy_of(slot).name.as_str())
            .collect()
    }

    /// Whether an id is some policy's.
    pub fn is_given(&self, id: u16) -> bool {
        self.shared.given.contains(&id)
    }

    /// How many pods are captured.
    pub fn captured(&self) -> usize {
        self.totals.captured
    }

    /// The pods that do not get what a policy promises them, for a reason of their own.
    pub fn faults<'a>(&'a self, world: &'a World) -> Vec<Fault<'a>> {
        faults::of(world, &self.shared, &self.pods, self.shares.values())
    }

    /// All plans and all outcomes.
    pub fn outcome(&self, world: &World) -> Outcome {
        let plan = |name: &Arc<str>| Some((name.to_string(), self.plan(name)?));
        Outcome {
            plans: self.shares.keys().filter_map(plan).collect(),
            policies: self.policies(world.policies.keys().map(String::as_str), world),
        }
    }

    /// Makes all shares anew.
    fn share_out(&mut self, world: &World) {
        self.candidates = Candidates::default();
        self.totals = Totals::new(&self.shared.in_force);
        self.open = !world.config.start_gate;
        self.gated = BTreeMap::new();
        self.gate(world.namespaces.keys(), world);
        self.shares.clear();
        for (name, node) in &world.nodes {
            let after = self.share_of(name, node, world);
            self.put(Arc::from(name.as_str()), &Share::default(), after);
        }
    }

    /// Looks at namespaces again: whether what is known of any is another now.
    fn gate<'a>(&mut self, namespaces: impl IntoIterator<Item = &'a String>, world: &World) -> bool {
        let mut others = false;
        for name in namespaces {
            let is_there = world.namespaces.contains_key(name);
            let now = is_there.then(|| self.candidates.any(name, &self.shared.in_force, world));
            let before = match now {
                Some(now) => self.gated.insert(name.clone(), now),
                None => self.gated.remove(name),
            };
            others |= before != now;
        }
        others
    }

    /// Makes a node's share anew, and adds what may be another than before to `touched`.
    fn share_anew(&mut self, name: &str, node: &Node, world: &World, touched: &mut Touched) {
        let after = self.share_of(name, node, world);
        let Some((name, before)) = self.shares.remove_entry(name) else {
            return;
        };
        touched.plans.insert(name.to_string());
        let gateways = before.tunnels.keys().chain(after.tunnels.keys());
        let others = gateways.filter(|gateway| before.tunnels.get(*gateway) != after.tunnels.get(*gateway));
        touched.plans.extend(others.cloned());
        for slot in self.put(name, &before, after) {
            let policy = self.shared.in_force.policy_of(slot);
            touched.policies.insert(policy.name.clone());
        }
    }

    fn share_of(&mut self, name: &str, node: &Node, world: &World) -> Share {
        let policies = &self.shared.in_force;
        let (candidates, totals) = (&mut self.candidates, &mut self.totals);
        Share::of(name, node, &self.pods, &self.shared, |pod| {
            let slots = candidates.slots(pod, node, policies, world);
            (!slots.is_empty()).then(|| totals.flat(slots, policies))
        })
    }

    /// Puts a node's share in the place of that which it had. The slots of which a sum is another now.
    fn put(&mut self, name: Arc<str>, before: &Share, after: Share) -> BTreeSet<usize> {
        let policies = &self.shared.in_force;
        let changed = self.totals.replace(&name, before, &after, policies);
        self.shares.insert(name, after);
        changed
    }
}

impl Touched {
    /// All that there is.
    pub fn everything(world: &World) -> Self {
        let mut touched = Self::default();
        touched.add_all_of(world);
        touched
    }

    fn add_all_of(&mut self, world: &World) {
        self.plans
            .extend(world.nodes.keys().chain(world.plans.keys()).cloned());
        self.policies.extend(world.policies.keys().cloned());
    }
}
