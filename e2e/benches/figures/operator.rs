//! The operator's planner: what a full plan, a pod's event and a policy's edit cost, and what all of it weighs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use egressnat_crds::{EgressNATPolicySpec, EgressPlanSpec};
use egressnat_operator::{
    apply::PlanWrite,
    backlog::Backlog,
    status,
    store::{Change, Delta, Store},
    valid::ValidPolicy,
    world::{Node, Pod, Policy, PolicySpec, World},
};
use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use crate::{
    results::{Record, Target},
    stats::percentile,
};

/// Nodes of the clusters. The largest is the first: only then does all that the process holds belong to it.
const NODES: [u32; 3] = [5_000, 1_000, 100];
const PODS_PER_NODE: u32 = 30;
const POLICIES: u32 = 1_000;
/// A node's address has neighbours: some blocks, as subnets of a cloud have.
const BLOCK: u32 = 64;

/// How much of the planner's work is measured.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Full plans, and policy edits.
    pub plans: usize,
    /// Events of pods.
    pub events: usize,
}

/// Every figure of the planner.
pub fn records(effort: Effort) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for nodes in NODES {
        eprintln!("bench: the planner at {nodes} nodes");
        let of_size = of_size(nodes, effort)?.into_iter().map(|record| {
            let record = record.label("nodes", nodes).label("pods", nodes * PODS_PER_NODE);
            record.label("policies", POLICIES)
        });
        records.extend(of_size);
    }
    Ok(records)
}

fn of_size(nodes: u32, effort: Effort) -> Result<Vec<Record>> {
    let before = resident()?;
    let mut cluster = Cluster::new(nodes)?;
    cluster.write_all()?;
    let written = resident()? - before;
    let events = (0..effort.events)
        .map(|_| cluster.pod_event())
        .collect::<Result<Vec<_>>>()?;
    let [mut pod, statuses] = [0, 1].map(|part| {
        events
            .iter()
            .map(|event| milliseconds(event[part]))
            .collect::<Vec<_>>()
    });
    let weight = written.max(resident()? - before);
    let full = repeat(effort.plans, || cluster.full_plan())?;
    let policy = repeat(effort.plans, || cluster.policy_edit())?;
    let faults = repeat(effort.plans, || cluster.look_for_faults())?;
    pod.sort_by(f64::total_cmp);
    let slowest = [percentile(&pod, 0.99)];
    let large = nodes == NODES[0];
    let target = |limit| large.then_some(Target::Below(limit));
    let mut records = vec![
        Record::new("operator_full_plan", "ms", &full).target(target(1_000.0)),
        Record::new("operator_pod_event", "ms", &pod).target(target(1.0)),
        Record::new("operator_pod_event_p99", "ms", &slowest),
        Record::new("operator_pod_event_statuses", "ms", &statuses),
        Record::new("operator_policy_edit", "ms", &policy),
        Record::new("operator_pod_faults", "ms", &faults),
    ];
    if large {
        records.push(Record::new("operator_resident", "MB", &[weight]).target(target(400.0)));
    }
    Ok(records)
}

/// How many milliseconds the work takes, each time.
fn repeat(times: usize, mut work: impl FnMut() -> Result<Duration>) -> Result<Vec<f64>> {
    (0..times).map(|_| work().map(milliseconds)).collect()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A cluster, and all that the operator keeps of it.
struct Cluster {
    nodes: u32,
    store: Store,
    backlog: Backlog,
    turn: u32,
}

impl Cluster {
    fn new(nodes: u32) -> Result<Self> {
        let mut store = Store::default();
        for number in 0..nodes {
            store.apply(Change::Nodes(Delta::Set(node_name(number), node(number))));
            for pod in 0..PODS_PER_NODE {
                let (key, pod) = pod_of(number, pod);
                store.apply(Change::Pods(Delta::Set(key, pod)));
            }
        }
        for number in 0..POLICIES {
            let name = policy_name(number);
            let team = BTreeMap::from([("team".to_owned(), format!("team-{number}"))]);
            store.apply(Change::Namespaces(Delta::Set(namespace(number), team)));
            let policy = policy(&name, number, nodes, 0)?;
            store.apply(Change::Policies(Delta::Set(name, policy)));
        }
        let backlog = Backlog::new(store.world());
        Ok(Self {
            nodes,
            store,
            backlog,
            turn: 0,
        })
    }

    /// Works out everything from scratch, and what of it is to be written.
    fn full_plan(&mut self) -> Result<Duration> {
        self.backlog = Backlog::new(&World::default());
        let begin = Instant::now();
        self.backlog = Backlog::new(self.store.world());
        let took = begin.elapsed();
        ensure!(!self.backlog.has_plans(), "all plans were written");
        Ok(took)
    }

    /// A pod has another address, is gone, or is there again: until its node's plan is ready to be written, and the
    /// outcomes of the policies that it touches are known.
    fn pod_event(&mut self) -> Result<[Duration; 2]> {
        let turn = self.turn / 3;
        let (key, mut pod) = pod_of(turn % self.nodes, turn / self.nodes % PODS_PER_NODE);
        let change = match self.turn % 3 {
            0 => {
                pod.ips = vec![IpAddr::V4(Ipv4Addr::from(0x0a40_0000 + turn))];
                Delta::Set(key, pod)
            }
            1 => Delta::Gone(key),
            _ => Delta::Set(key, pod),
        };
        self.turn += 1;
        let serial = turn % self.nodes * PODS_PER_NODE + turn / self.nodes % PODS_PER_NODE;
        let took = self.happen(Change::Pods(change), &policy_name(serial))?;
        let statuses = self.statuses();
        let written = self.write_all()?;
        ensure!((1..=3).contains(&written), "{written} plans for one pod");
        Ok([took, statuses])
    }

    /// A policy has another destination.
    fn policy_edit(&mut self) -> Result<Duration> {
        self.turn += 1;
        let number = self.turn % POLICIES;
        let name = policy_name(number);
        let edited = policy(&name, number, self.nodes, self.turn)?;
        let took = self.happen(Change::Policies(Delta::Set(name.clone(), edited)), &name)?;
        ensure!(self.write_all()? >= 1, "no plan for an edited policy");
        Ok(took)
    }

    /// A look at all pods for what is wrong with them.
    fn look_for_faults(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        let faults = self.backlog.planner().faults(self.store.world());
        let took = begin.elapsed();
        ensure!(faults.is_empty(), "{faults:?}");
        Ok(took)
    }

    /// How long it takes until every plan that differs is ready to be written, and the outcome of the policy that the
    /// change is about is known.
    fn happen(&mut self, change: Change, policy: &str) -> Result<Duration> {
        let begin = Instant::now();
        self.apply(change);
        self.backlog.catch_up(self.store.world());
        let nodes = self.backlog.waves().concat();
        let (backlog, world) = (&mut self.backlog, self.store.world());
        let writes: Vec<Option<PlanWrite>> = nodes.iter().map(|node| backlog.write(node, world)).collect();
        let outcomes = self.backlog.planner().policies([policy], self.store.world());
        let took = begin.elapsed();
        let touched = self.backlog.policies().contains(policy) && outcomes.len() == 1;
        ensure!(touched && writes.iter().all(Option::is_some), "nothing follows");
        Ok(took)
    }

    /// How long it takes to make the statuses that may be others.
    fn statuses(&mut self) -> Duration {
        let begin = Instant::now();
        let names = self.backlog.take_policies();
        let due = status::due(&names, self.store.world(), &self.backlog, Timestamp::UNIX_EPOCH);
        let took = begin.elapsed();
        drop(due);
        took
    }

    /// Takes all that is to be written for written, and for reported by the agents. How many plans.
    fn write_all(&mut self) -> Result<usize> {
        let mut written = 0;
        while self.backlog.has_plans() {
            for node in self.backlog.waves().concat() {
                let write = self.backlog.write(&node, self.store.world());
                if let Some(PlanWrite::Apply { node, owner, spec }) = write {
                    self.program(node, owner, &spec)?;
                    written += 1;
                }
            }
            self.backlog.catch_up(self.store.world());
        }
        self.backlog.take_policies();
        Ok(written)
    }

    /// The plan as it comes back from the API server, and again when the agent has reported.
    fn program(&mut self, node: String, owner: String, spec: &EgressPlanSpec) -> Result<()> {
        let mut plan = self.store.world().plans.get(&node).cloned().unwrap_or_default();
        plan.owner = Some(owner);
        plan.generation += 1;
        plan.spec = serde_json::from_slice(&serde_json::to_vec(spec)?)?;
        self.apply(Change::Plans(Delta::Set(node.clone(), plan.clone())));
        plan.status.observed_generation = Some(plan.generation);
        plan.status.conditions = vec![ready()];
        self.apply(Change::Plans(Delta::Set(node, plan)));
        Ok(())
    }

    fn apply(&mut self, change: Change) {
        let backlog = &mut self.backlog;
        self.store
            .apply_noting(change, |difference| backlog.note(difference));
    }
}

/// What an agent says of a plan that its kernel holds.
fn ready() -> Condition {
    Condition {
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
        message: String::new(),
        observed_generation: None,
        reason: "Programmed".into(),
        status: "True".into(),
        type_: "Ready".into(),
    }
}

/// The policy of the pod with this serial number, or of this number.
fn policy_name(number: u32) -> String {
    format!("policy-{:04}", number % POLICIES)
}

fn node_name(number: u32) -> String {
    format!("node-{number:04}")
}

fn node_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xac10_0000 + number / BLOCK * (2 * BLOCK) + number % BLOCK)
}

fn node(number: u32) -> Node {
    let range = Ipv4Net::new_assert(Ipv4Addr::from(0x0a80_0000 + (number << 8)), 24);
    let address = node_address(number).into();
    Node {
        uid: node_name(number),
        pod_cidrs: vec![IpNet::V4(range)],
        internal_ips: vec![address],
        addresses: BTreeSet::from([address]),
        ready: true,
        ..Node::default()
    }
}

fn namespace(number: u32) -> String {
    format!("team-{:04}", number % POLICIES)
}

fn pod_of(node: u32, number: u32) -> (String, Pod) {
    let serial = node * PODS_PER_NODE + number;
    let (namespace, name) = (namespace(serial), format!("app-7c9d8b6f5d-{serial:06}"));
    // As of ReplicaSets of three.
    let labels = [
        ("app", format!("app-{}", serial / 3 % 97)),
        ("pod-template-hash", format!("{:010x}", serial / 3)),
    ];
    let pod = Pod {
        uid: format!("7d0c51e4-3a1b-4e58-9f4e-{serial:012x}"),
        namespace: namespace.clone(),
        name: name.clone(),
        labels: Arc::new(
            labels
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        ),
        node: Some(node_name(node)),
        ips: Vec::from([IpAddr::V4(Ipv4Addr::from(0x0a80_0000 + (node << 8) + 2 + number))]),
        created: Timestamp::UNIX_EPOCH,
        host_network: false,
        ended: false,
        deleting: false,
    };
    (format!("{namespace}/{name}"), pod)
}

/// For one team, to two networks, with the address of one of the nodes.
fn policy(name: &str, number: u32, nodes: u32, edition: u32) -> Result<Policy> {
    let network = |base: u32| Ipv4Addr::from(base + (number << 8));
    let spec = serde_json::json!({
        "selectors": [{"namespaceSelector": {"matchLabels": {"team": format!("team-{number}")}}}],
        "destinationCIDRs": [
            format!("{}/24", network(0x1400_0000)),
            format!("{}/24", network(0x1600_0000 + (edition << 18))),
        ],
        "egressSourceIP": node_address(number * 7 % nodes),
    });
    let spec: EgressNATPolicySpec = serde_json::from_value(spec)?;
    Ok(Policy {
        uid: name.to_owned(),
        generation: 1,
        created: Timestamp::UNIX_EPOCH,
        spec: PolicySpec::Valid(ValidPolicy::parse(&spec)?),
        status: Default::default(),
    })
}

/// What this process holds, in megabytes (10^6 octets).
fn resident() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = text.split(' ').nth(1).context("no resident pages")?.parse()?;
    Ok(pages * 4096.0 / 1e6)
}
