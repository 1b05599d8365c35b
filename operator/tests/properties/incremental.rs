//! Whatever happens, and in whatever order: the planner that keeps up says what one from scratch says, and what it
//! does not name as touched is as it was.

use std::collections::BTreeMap;
use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::{EgressPlanStatus, Family, NodeInterface};
use egressnat_operator::plan::{Outcome, Planner, PolicyOutcome, Touched, plan};
use egressnat_operator::store::{Change, Delta, Store};
use egressnat_operator::world::{ClusterConfig, ExistingPlan, MasqueradeConfig};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::worlds::{self, Seeds, seeds};

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// The API server says so.
    Change(Box<Change>),
    /// The plan of a node is written.
    Write(usize),
    /// The plan of a node is deleted.
    Delete(usize),
    /// The agent of a node says which addresses it finds, and whether it is done.
    Report(usize, Option<u8>, bool),
    /// A policy's status is written.
    Status(usize),
}

/// Mostly of pods: what happens to others often makes everything anew, and hides what was missed before.
fn step(pool: Vec<Change>) -> impl Strategy<Value = Step> {
    let (mut of_pods, others): (Vec<Change>, Vec<Change>) = pool
        .into_iter()
        .partition(|change| matches!(change, Change::Pods(_)));
    // There may be no pods at all.
    of_pods.extend(others.first().cloned());
    let change = |of| proptest::sample::select(of).prop_map(|change| Step::Change(Box::new(change)));
    let report = (0..4usize, proptest::option::of(0..4u8), any::<bool>());
    prop_oneof![
        12 => change(of_pods),
        1 => change(others),
        2 => (0..4usize).prop_map(Step::Write),
        1 => (0..4usize).prop_map(Step::Delete),
        1 => report.prop_map(|(node, address, done)| Step::Report(node, address, done)),
        2 => (0..6usize).prop_map(Step::Status),
    ]
}

/// A world, and batches of what happens to it: objects become what they are in other worlds, or go.
fn histories() -> impl Strategy<Value = (Seeds, Vec<Vec<Step>>)> {
    (seeds(), vec(seeds(), 1..4)).prop_flat_map(|(first, others)| {
        let worlds = others.iter().chain([&first]);
        let pool = worlds.flat_map(|world| world.changes().into_iter().chain(world.deletions()));
        let pool: Vec<Change> = pool.chain(worlds::namespace_changes()).collect();
        (Just(first), vec(vec(step(pool), 1..4), 1..24))
    })
}

/// A planner that keeps up, and what is known of it by what it touches alone.
struct Kept {
    store: Store,
    planner: Planner,
    known: Outcome,
}

impl Kept {
    fn new(store: Store) -> Self {
        let planner = Planner::new(store.world());
        Self {
            known: planner.outcome(store.world()),
            planner,
            store,
        }
    }

    fn apply(&mut self, change: Change) {
        let planner = &mut self.planner;
        self.store
            .apply_noting(change, |difference| planner.note(difference));
    }

    fn happen(&mut self, step: Step) {
        match step {
            Step::Change(change) => self.apply(*change),
            Step::Write(node) => {
                let name = worlds::node_name(node);
                if let Some(spec) = self.known.plans.get(&name).cloned() {
                    self.alter_plan(name, |plan| {
                        plan.generation += 1;
                        plan.spec = spec;
                    });
                }
            }
            Step::Delete(node) => self.apply(Change::Plans(Delta::Gone(worlds::node_name(node)))),
            Step::Report(node, address, done) => self.alter_plan(worlds::node_name(node), |plan| {
                plan.status = EgressPlanStatus {
                    observed_generation: done.then_some(plan.generation),
                    interfaces: address.into_iter().map(interface).collect(),
                    ..EgressPlanStatus::default()
                };
            }),
            Step::Status(number) => {
                let name = format!("policy-{number}");
                if let Some(mut policy) = self.store.world().policies.get(&name).cloned()
                    && let Some(outcome) = self.known.policies.get(&name)
                {
                    policy.status = worlds::status(outcome);
                    self.apply(Change::Policies(Delta::Set(name, policy)));
                }
            }
        }
    }

    fn alter_plan(&mut self, node: String, alter: impl FnOnce(&mut ExistingPlan)) {
        let mut plan = self.store.world().plans.get(&node).cloned().unwrap_or_default();
        alter(&mut plan);
        self.apply(Change::Plans(Delta::Set(node, plan)));
    }

    fn catch_up(&mut self) {
        let world = self.store.world();
        let Touched { plans, policies } = self.planner.catch_up(world);
        let known: &mut BTreeMap<String, EgressPlanSpec> = &mut self.known.plans;
        for node in plans {
            match self.planner.plan(&node) {
                Some(plan) => known.insert(node, plan),
                None => known.remove(&node),
            };
        }
        let names = policies.iter().map(String::as_str);
        let made: BTreeMap<String, PolicyOutcome> = self.planner.policies(names, world);
        self.known.policies.retain(|name, _| !policies.contains(name));
        self.known.policies.extend(made);
    }
}

/// An interface with the address of one of four nodes.
fn interface(number: u8) -> NodeInterface {
    NodeInterface {
        name: "eth0".into(),
        addresses: vec![IpAddr::from([172, 18, 0, number + 1])],
        default_route: vec![Family::IPv4],
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn to_keep_up_is_to_begin_anew(
        (first, history) in histories(),
        masquerades in any::<bool>(),
        start_gate in any::<bool>(),
    ) {
        let mut store = Store::new(ClusterConfig {
            masquerade: masquerades.then(MasqueradeConfig::default),
            start_gate,
            ..ClusterConfig::default()
        });
        for change in first.changes() {
            store.apply(change);
        }
        let mut kept = Kept::new(store);
        for batch in history {
            let said = format!("{batch:?}");
            for step in batch {
                kept.happen(step);
            }
            kept.catch_up();
            let world = kept.store.world();
            prop_assert_eq!(&kept.known, &plan(world), "after {}", said);
            prop_assert_eq!(&kept.known, &kept.planner.outcome(world), "touched too little: {}", said);
            let anew = Planner::new(world);
            prop_assert_eq!(kept.planner.faults(world), anew.faults(world), "after {}", said);
        }
    }
}
