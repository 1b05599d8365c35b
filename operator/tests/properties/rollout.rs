//! Whatever happens, in whatever order agents observe and report, and wherever the operator is killed: no node's kernel
//! sends an id to a gateway whose kernel does not have it for that node and that policy, and in the end all plans are
//! those that are wanted.

use std::collections::BTreeMap;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::{EgressPlanStatus, Family, NodeInterface};
use egressnat_operator::apply::PlanWrite;
use egressnat_operator::backlog::Backlog;
use egressnat_operator::plan::plan;
use egressnat_operator::store::{Change, Delta, Store};
use egressnat_operator::world::{ClusterConfig, ExistingPlan, Safeguard};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use crate::ips_using;
use crate::worlds::{self, Seeds, seeds};

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// The API server says so.
    Change(Box<Change>),
    /// A node is Ready, or is not.
    Ready(usize, bool),
    /// The operator looks, and writes one of the plans that differ.
    Write(prop::sample::Index),
    /// The operator is killed, and another begins.
    Kill,
    /// The agent of a node brings the kernel in step with the plan as it is stored.
    Program(usize),
    /// The agent of a node says which generation its kernel holds, and which address its node.
    Report(usize, Option<u8>),
    /// The operator writes a policy's status.
    Status(usize),
}

fn step(pool: Vec<Change>) -> impl Strategy<Value = Step> {
    let address = proptest::option::of(0..4u8);
    prop_oneof![
        3 => proptest::sample::select(pool).prop_map(|change| Step::Change(Box::new(change))),
        1 => (0..4usize, any::<bool>()).prop_map(|(node, ready)| Step::Ready(node, ready)),
        12 => any::<prop::sample::Index>().prop_map(Step::Write),
        1 => Just(Step::Kill),
        8 => (0..4usize).prop_map(Step::Program),
        8 => (0..4usize, address).prop_map(|(node, address)| Step::Report(node, address)),
        2 => (0..6usize).prop_map(Step::Status),
    ]
}

/// A world, and what happens to its policies, pods and nodes.
fn histories() -> impl Strategy<Value = (Seeds, Vec<Step>)> {
    (seeds(), vec(seeds(), 1..4)).prop_flat_map(|(first, others)| {
        let worlds = others.iter().chain([&first]);
        let pool = worlds.flat_map(|world| world.changes().into_iter().chain(world.deletions()));
        let pool: Vec<Change> = pool
            .filter(|change| !matches!(change, Change::Nodes(_)))
            .collect();
        (Just(first), vec(step(pool), 1..160))
    })
}

/// What a node's kernel holds.
#[derive(Clone, Debug, Default)]
struct Kernel {
    generation: i64,
    plan: EgressPlanSpec,
}

/// An API server, an operator, and agents.
struct Cluster {
    seeds: Seeds,
    store: Store,
    backlog: Backlog,
    kernels: BTreeMap<String, Kernel>,
}

impl Cluster {
    fn new(seeds: Seeds, without: Option<Safeguard>) -> Self {
        let mut store = Store::new(ClusterConfig {
            unsafe_without: without.into_iter().collect(),
            ..ClusterConfig::default()
        });
        for change in seeds.changes() {
            store.apply(change);
        }
        Self {
            seeds,
            backlog: Backlog::new(store.world()),
            store,
            kernels: BTreeMap::new(),
        }
    }

    fn apply(&mut self, change: Change) {
        let backlog = &mut self.backlog;
        self.store
            .apply_noting(change, |difference| backlog.note(difference));
    }

    fn happen(&mut self, step: Step) {
        match step {
            Step::Change(change) => self.apply(*change),
            Step::Ready(node, ready) => {
                let name = worlds::node_name(node);
                if let Some(node) = self.seeds.nodes.iter().find(|n| n.name() == name) {
                    self.apply(node.change(ready));
                }
            }
            Step::Write(which) => {
                self.backlog.catch_up(self.store.world());
                let waves: Vec<String> = self.backlog.waves().concat();
                if !waves.is_empty() {
                    self.write(which.get(&waves).clone());
                }
            }
            Step::Kill => self.backlog = Backlog::new(self.store.world()),
            Step::Program(node) => self.program(&worlds::node_name(node)),
            Step::Report(node, address) => self.report(&worlds::node_name(node), address),
            Step::Status(number) => self.write_status(&format!("policy-{number}")),
        }
    }

    fn write(&mut self, node: String) {
        let Some(PlanWrite::Apply { owner, spec, .. }) = self.backlog.write(&node, self.store.world()) else {
            return;
        };
        let mut plan = self.store.world().plans.get(&node).cloned().unwrap_or_default();
        plan.owner = Some(owner);
        plan.generation += 1;
        plan.spec = *spec;
        self.apply(Change::Plans(Delta::Set(node, plan)));
    }

    fn program(&mut self, node: &str) {
        if let Some(plan) = self.store.world().plans.get(node) {
            let kernel = Kernel {
                generation: plan.generation,
                plan: plan.spec.clone(),
            };
            self.kernels.insert(node.to_owned(), kernel);
        }
    }

    fn report(&mut self, node: &str, address: Option<u8>) {
        let Some(kernel) = self.kernels.get(node) else {
            return;
        };
        let plan = &self.store.world().plans[node];
        let interface = |number: u8| NodeInterface {
            name: "eth0".into(),
            addresses: vec![[172, 18, 0, number + 1].into()],
            default_route: vec![Family::IPv4],
        };
        let plan = ExistingPlan {
            status: EgressPlanStatus {
                observed_generation: Some(kernel.generation),
                conditions: vec![worlds::ready()],
                interfaces: address.map(interface).into_iter().collect(),
                ..EgressPlanStatus::default()
            },
            ..plan.clone()
        };
        self.apply(Change::Plans(Delta::Set(node.to_owned(), plan)));
    }

    fn write_status(&mut self, name: &str) {
        self.backlog.catch_up(self.store.world());
        let world = self.store.world();
        let outcome = self.backlog.planner().policies([name], world).remove(name);
        if let (Some(mut policy), Some(outcome)) = (world.policies.get(name).cloned(), outcome) {
            policy.status = worlds::status(&outcome);
            self.apply(Change::Policies(Delta::Set(name.to_owned(), policy)));
        }
    }

    /// Nothing that a kernel sends comes to a gateway whose kernel does not expect it, or takes it for another's.
    fn check(&self) -> Result<(), TestCaseError> {
        for (node, kernel) in &self.kernels {
            for policy in &kernel.plan.policies {
                let gateway = policy
                    .source
                    .as_ref()
                    .and_then(|source| source.gateway.as_deref());
                let Some(gateway) = gateway.filter(|gateway| gateway != node) else {
                    continue;
                };
                let what = format!("{} of {} as {} to {gateway}", policy.name, node, policy.id);
                let there = self.kernels.get(gateway).map(|kernel| &kernel.plan);
                let there = there.ok_or_else(|| TestCaseError::fail(format!("{what}, which has no plan")))?;
                let role = there
                    .policies
                    .iter()
                    .find(|p| p.id == policy.id && p.gateway.is_some());
                prop_assert_eq!(role.map(|p| &p.name), Some(&policy.name), "{}", what);
                let peer = there.peers.iter().find(|peer| peer.node == *node);
                let knows = there.underlay.is_some() && peer.map(|p| p.underlay) == kernel.plan.underlay;
                let sends = !ips_using(&kernel.plan, policy.id).is_empty();
                prop_assert!(knows || !sends, "{}, which does not know the node", what);
            }
        }
        Ok(())
    }

    /// All agents do their work until nothing changes any more.
    fn come_to_rest(&mut self) -> Result<(), TestCaseError> {
        let nodes: Vec<String> = self.seeds.nodes.iter().map(|n| n.name()).collect();
        let policies: Vec<String> = self.store.world().policies.keys().cloned().collect();
        for _ in 0..24 {
            policies.iter().for_each(|policy| self.write_status(policy));
            self.backlog.catch_up(self.store.world());
            let due = self.backlog.waves().concat();
            for node in &due {
                self.backlog.catch_up(self.store.world());
                if !self.backlog.is_written(node) {
                    self.write(node.clone());
                }
                self.check()?;
            }
            for node in &nodes {
                let held = self.store.world().interfaces(node).first();
                let held = held
                    .and_then(|i| i.addresses.first())
                    .and_then(|a| a.to_string().pop());
                let address = held.and_then(|last| last.to_digit(10)).map(|last| last as u8 - 1);
                self.program(node);
                self.check()?;
                self.report(node, address);
            }
            self.backlog.catch_up(self.store.world());
            if due.is_empty() && !self.backlog.has_plans() {
                break;
            }
        }
        self.is_as_wanted()
    }

    fn is_as_wanted(&self) -> Result<(), TestCaseError> {
        let world = self.store.world();
        for (node, wanted) in plan(world).plans {
            let stored = &world.plans[&node].spec;
            for retired in &stored.retired {
                prop_assert!(
                    self.backlog.planner().is_given(retired.id),
                    "{} of {}",
                    retired.id,
                    node
                );
            }
            let stored = EgressPlanSpec {
                retired: Vec::new(),
                ..stored.clone()
            };
            prop_assert_eq!(stored, wanted, "{}", node);
        }
        Ok(())
    }
}

fn run(seeds: Seeds, history: Vec<Step>, without: Option<Safeguard>) -> Result<(), TestCaseError> {
    let mut cluster = Cluster::new(seeds, without);
    for step in history {
        cluster.happen(step);
        cluster.check()?;
    }
    cluster.come_to_rest()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn no_kernel_sends_what_another_does_not_expect((seeds, history) in histories()) {
        run(seeds, history, None)?;
    }
}

/// The property sees what it is there for.
#[test]
fn without_a_safeguard_some_kernel_does() {
    for safeguard in [Safeguard::Order, Safeguard::Quarantine] {
        let config = ProptestConfig {
            failure_persistence: None,
            max_shrink_iters: 0,
            ..ProptestConfig::with_cases(2000)
        };
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let found = runner.run(&histories(), |(seeds, history)| {
            run(seeds, history, Some(safeguard))
        });
        let found = found.expect_err("nothing goes wrong without it").to_string();
        println!(
            "without {safeguard:?}: {}",
            found.lines().next().unwrap_or_default()
        );
    }
}
