//! Random worlds, small enough that everything meets: as seeds, from which both the objects of the API server
//! and the model's answers are made.

use std::net::IpAddr;

use egressnat_operator::convert;
use egressnat_operator::store::{Change, Delta, Store};
use egressnat_operator::world::World;
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

mod objects;
mod programmed;
mod strategies;

pub use objects::namespace_changes;
pub use programmed::{program, ready, status};
pub use strategies::seeds;

/// Destinations that contain one another, at both ends of both families.
const CIDRS: [&str; 9] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.1.7/32",
    "255.255.255.0/24",
    "::/0",
    "2001:db8::/32",
    "2001:db8:1::7/128",
    "fe00::/7",
];

/// Addresses inside and around every one of [`CIDRS`].
pub fn probes() -> Vec<IpAddr> {
    let texts = [
        "0.0.0.0",
        "9.255.255.255",
        "10.0.0.0",
        "10.1.0.0",
        "10.1.1.6",
        "10.1.1.7",
        "10.1.1.8",
        "10.2.0.0",
        "11.0.0.0",
        "255.255.255.255",
        "::",
        "2001:db8::1",
        "2001:db8:1::6",
        "2001:db8:1::7",
        "2001:db8:1::8",
        "2001:db9::",
        "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "fe00::",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ];
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

/// A moment.
pub fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Seeds {
    pub nodes: Vec<NodeSeed>,
    pub pods: Vec<PodSeed>,
    pub policies: Vec<PolicySeed>,
}

#[derive(Clone, Debug)]
pub struct NodeSeed {
    number: usize,
    pub ready: bool,
    /// Its pods' addresses lie in its pod ranges.
    ranges: bool,
    /// It has addresses at all.
    addresses: bool,
}

#[derive(Clone, Debug)]
pub struct PodSeed {
    number: usize,
    node: usize,
    namespace: usize,
    app: usize,
    /// The node whose range its addresses are of, if not of its own.
    elsewhere: Option<usize>,
    /// The last part of its addresses; `None` while it has none.
    host: Option<u8>,
    phase: &'static str,
    host_network: bool,
    pub deleting: bool,
    pub created: i64,
}

#[derive(Clone, Debug)]
pub struct PolicySeed {
    number: usize,
    pub priority: i32,
    pub created: i64,
    /// Per entry: namespace, app, node; at least one of them.
    entries: Vec<(Option<usize>, Option<usize>, Option<usize>)>,
    destinations: Vec<usize>,
    exclusions: Vec<usize>,
    gateway: GatewaySeed,
    ports: Option<&'static str>,
    node_ip: bool,
}

#[derive(Clone, Copy, Debug)]
enum Families {
    V4,
    V6,
    Both,
}

#[derive(Clone, Debug)]
enum GatewaySeed {
    V4(usize),
    V6(usize),
    /// A pair of addresses of each of these nodes, or one of each, if they are not of both families.
    Pairs(Vec<usize>, Families),
    Chosen,
    /// By entries of [`objects::entry_of`], and by how zones matter.
    Several(Vec<usize>, &'static str),
    Unheld,
}

/// The entry of [`objects::entry_of`] that names an IPv4 address.
const NAMED: usize = 5;

impl Seeds {
    /// The objects, as the watches show them.
    pub fn changes(&self) -> Vec<Change> {
        let namespaces = (0..2).map(|n| {
            let object = json!({"metadata": {"name": namespace(n), "labels": {"name": namespace(n)}}});
            Change::Namespaces(Delta::Set(namespace(n), convert::namespace(read(object))))
        });
        let nodes = self
            .nodes
            .iter()
            .map(|n| Change::Nodes(Delta::Set(n.name(), convert::node(read(n.object())))));
        let pods = self
            .pods
            .iter()
            .map(|p| Change::Pods(Delta::Set(p.key(), convert::pod(read(p.object())))));
        let policies = self
            .policies
            .iter()
            .map(|p| Change::Policies(Delta::Set(p.name(), convert::policy(read(p.object())))));
        namespaces.chain(nodes).chain(pods).chain(policies).collect()
    }

    /// Their deletions.
    pub fn deletions(&self) -> Vec<Change> {
        let nodes = self.nodes.iter().map(|n| Change::Nodes(Delta::Gone(n.name())));
        let pods = self.pods.iter().map(|p| Change::Pods(Delta::Gone(p.key())));
        let policies = self
            .policies
            .iter()
            .map(|p| Change::Policies(Delta::Gone(p.name())));
        nodes.chain(pods).chain(policies).collect()
    }

    /// The world of these objects.
    pub fn world(&self) -> World {
        let mut store = Store::default();
        for change in self.changes() {
            store.apply(change);
        }
        store.world().clone()
    }

    /// Whether any destination is left to the policy, and one that its addresses could serve.
    pub fn in_force(&self, policy: &PolicySeed) -> bool {
        let (included, excluded) = (cidrs(&policy.destinations), cidrs(&policy.exclusions));
        let all = if included.is_empty() {
            cidrs(&[0, 5])
        } else {
            included.clone()
        };
        // No two of the ranges make up a third, so that only a single one can cover another.
        let left = all.iter().any(|i| !excluded.iter().any(|e| e.contains(i)));
        let served = match &policy.gateway {
            GatewaySeed::Several(entries, _) if entries.contains(&NAMED) => {
                included.iter().any(|c| c.addr().is_ipv4())
            }
            GatewaySeed::V4(_) | GatewaySeed::Unheld | GatewaySeed::Pairs(_, Families::V4) => {
                included.iter().any(|c| c.addr().is_ipv4())
            }
            GatewaySeed::V6(_) | GatewaySeed::Pairs(_, Families::V6) => {
                included.iter().any(|c| c.addr().is_ipv6())
            }
            GatewaySeed::Pairs(_, Families::Both) | GatewaySeed::Chosen | GatewaySeed::Several(..) => true,
        };
        left && (included.is_empty() || served)
    }

    /// The same, with the entries of `egressGateways` and the pairs of `egressSourceIPs` in another order.
    pub fn with_gateways_reversed(&self) -> Self {
        let mut seeds = self.clone();
        for policy in &mut seeds.policies {
            if let GatewaySeed::Several(entries, _) | GatewaySeed::Pairs(entries, _) = &mut policy.gateway {
                entries.reverse();
            }
        }
        seeds
    }

    /// Whether the policy selects the pod, which must be live and on a node that is there.
    pub fn selects(&self, policy: &PolicySeed, pod: &PodSeed) -> bool {
        let is = |wanted: Option<usize>, value: usize| wanted.is_none_or(|w| w == value);
        pod.is_live()
            && self.nodes.iter().any(|n| n.number == pod.node)
            && policy.entries.iter().any(|(namespace, app, node)| {
                is(*namespace, pod.namespace) && is(*app, pod.app) && is(*node, pod.node)
            })
    }
}

impl NodeSeed {
    pub fn name(&self) -> String {
        node_name(self.number)
    }

    /// The node as the watch shows it, Ready or not.
    pub fn change(&self, ready: bool) -> Change {
        let node = Self {
            ready,
            ..self.clone()
        };
        Change::Nodes(Delta::Set(self.name(), convert::node(read(node.object()))))
    }

    /// Its zone, if it is in one.
    pub fn zone(&self) -> Option<String> {
        (self.number < 3).then(|| format!("zone-{}", self.number % 2))
    }
}

impl PodSeed {
    pub fn uid(&self) -> String {
        format!("pod-{}", self.number)
    }

    pub fn node(&self) -> String {
        node_name(self.node)
    }

    pub fn is_live(&self) -> bool {
        !self.host_network && !matches!(self.phase, "Succeeded" | "Failed")
    }

    pub fn ips(&self) -> Vec<IpAddr> {
        let range = self.elsewhere.unwrap_or(self.node);
        let of = |host: u8| {
            [
                format!("10.244.{range}.{host}"),
                format!("fd00:10:244:{range}::{host}"),
            ]
        };
        let texts = self.host.map(of).into_iter().flatten();
        texts.map(|t| t.parse().unwrap()).collect()
    }

    fn key(&self) -> String {
        format!("{}/{}", namespace(self.namespace), self.uid())
    }
}

impl PolicySeed {
    pub fn name(&self) -> String {
        format!("policy-{}", self.number)
    }

    /// Whether the destination is one of the policy's.
    pub fn wants(&self, destination: IpAddr) -> bool {
        let within = |cidrs: Vec<IpNet>| cidrs.iter().any(|c| c.contains(&destination));
        (self.destinations.is_empty() || within(cidrs(&self.destinations)))
            && !within(cidrs(&self.exclusions))
    }

    /// What it says of zones, if it has several gateways.
    pub fn zone_affinity(&self) -> Option<&'static str> {
        match self.gateway {
            GatewaySeed::Several(_, affinity) => Some(affinity),
            _ => None,
        }
    }
}

fn cidrs(indexes: &[usize]) -> Vec<IpNet> {
    indexes.iter().map(|i| CIDRS[*i].parse().unwrap()).collect()
}

fn namespace(n: usize) -> String {
    format!("namespace-{n}")
}

/// The name of one of four nodes.
pub fn node_name(n: usize) -> String {
    format!("node-{n}")
}

fn read<T: serde::de::DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).unwrap()
}
