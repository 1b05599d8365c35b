//! The operator's planner: what a full plan, a pod's event and a policy's edit cost, and what all of it weighs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use egressnat_crds::EgressNATPolicySpec;
use egressnat_operator::{
    apply,
    plan::{Outcome, plan},
    valid::ValidPolicy,
    world::{ExistingPlan, Node, Pod, Policy, PolicySpec, World},
};
use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::jiff::Timestamp;

use crate::results::{Record, Target};

/// Nodes of the clusters. The largest is the first: only then does all that the process holds belong to it.
const NODES: [u32; 3] = [5_000, 1_000, 100];
const PODS_PER_NODE: u32 = 30;
const POLICIES: u32 = 1_000;
/// A node's address has neighbours: some blocks, as subnets of a cloud have.
const BLOCK: u32 = 64;

/// Every figure of the planner, each the median of so many.
pub fn records(repeats: usize) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for nodes in NODES {
        eprintln!("bench: the planner at {nodes} nodes");
        let before = resident()?;
        let mut cluster = Cluster::new(nodes)?;
        let full = repeat(repeats, || {
            cluster.world.plans.clear();
            cluster.plan().1
        });
        let weight = resident()? - before;
        let pod = repeat(repeats, || cluster.pod_event());
        let policy = repeat(repeats, || cluster.policy_edit());
        let full = Record::new("operator_full_plan", "ms", &full);
        let pod = Record::new("operator_pod_event", "ms", &pod);
        let large = nodes == NODES[0];
        let target = |limit| large.then_some(Target::Below(limit));
        let mut of_size = vec![
            full.target(target(1_000.0)),
            pod.target(target(1.0)),
            Record::new("operator_policy_edit", "ms", &policy),
        ];
        if large {
            of_size.push(Record::new("operator_resident", "MB", &[weight]).target(target(400.0)));
        }
        let labelled = of_size.into_iter().map(|record| {
            let record = record.label("nodes", nodes).label("pods", nodes * PODS_PER_NODE);
            record.label("policies", POLICIES)
        });
        records.extend(labelled);
    }
    Ok(records)
}

fn repeat(times: usize, mut work: impl FnMut() -> Duration) -> Vec<f64> {
    (0..times).map(|_| work().as_secs_f64() * 1e3).collect()
}

/// A cluster whose plans are all written.
struct Cluster {
    world: World,
    turn: u32,
}

impl Cluster {
    fn new(nodes: u32) -> Result<Self> {
        let mut world = World::default();
        for number in 0..nodes {
            world.nodes.insert(node_name(number), node(number));
            for pod in 0..PODS_PER_NODE {
                let (key, pod) = pod_of(number, pod);
                world.pods.insert(key, Arc::new(pod));
            }
        }
        for number in 0..POLICIES {
            let name = format!("policy-{number:04}");
            let team = BTreeMap::from([("team".to_owned(), format!("team-{number}"))]);
            world
                .namespaces
                .insert(namespace(number), team.into_iter().collect());
            world
                .policies
                .insert(name.clone(), policy(&name, number, nodes, 0)?);
        }
        let mut cluster = Self { world, turn: 0 };
        let written = cluster.plan().0;
        ensure!(written > 0, "no plan is written");
        Ok(cluster)
    }

    /// Plans, and takes what would be written for written. How many plans, and how long the planning took.
    fn plan(&mut self) -> (usize, Duration) {
        let begin = Instant::now();
        let outcome = plan(&self.world);
        let waves = apply::due(&self.world, &outcome);
        let took = begin.elapsed();
        let written = waves.iter().map(Vec::len).sum();
        let Outcome { plans, .. } = outcome;
        for (name, spec) in plans {
            let owner = self.world.nodes.get(&name).map(|node| node.uid.clone());
            let existing = self.world.plans.entry(name).or_default();
            *existing = ExistingPlan {
                owner,
                spec,
                ..ExistingPlan::default()
            };
        }
        (written, took)
    }

    /// A pod has another address.
    fn pod_event(&mut self) -> Duration {
        self.turn += 1;
        let (key, mut pod) = pod_of(self.turn, 0);
        pod.ips = Vec::from([IpAddr::V4(Ipv4Addr::from(0x0a40_0000 + self.turn))]);
        self.world.pods.insert(key, Arc::new(pod));
        let (written, took) = self.plan();
        assert!((1..=3).contains(&written), "{written} plans for one pod");
        took
    }

    /// A policy has another destination.
    fn policy_edit(&mut self) -> Duration {
        self.turn += 1;
        let name = format!("policy-{:04}", self.turn % POLICIES);
        let nodes = u32::try_from(self.world.nodes.len()).unwrap_or(u32::MAX);
        let edited = policy(&name, self.turn % POLICIES, nodes, self.turn);
        self.world
            .policies
            .extend(edited.ok().map(|policy| (name, policy)));
        let (written, took) = self.plan();
        assert!(written >= 1, "no plan for an edited policy");
        took
    }
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
    let labels = [
        ("app", format!("app-{}", serial % 97)),
        ("pod-template-hash", "7c9d8b6f5d".into()),
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
