//! Random small worlds, in the addresses of the bare topology, so that some of them can be built for real.

use egressnat_e2e::topology::{API_SERVER, Dual, PODS, PODS_PER_NODE, SERVICES, in_pod_range, on_segment};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use crate::policy_seed::{NAMESPACE_LABELS, NODE_LABELS, POD_LABELS, PolicySeed, labels, policy};
use crate::world::World;

/// The nodes that a world may have: first those of the topology.
pub const NODES: [&str; 4] = ["source", "gateway", "second", "third"];

/// Any world.
pub fn worlds() -> impl Strategy<Value = World> {
    let seed = (
        proptest::bool::weighted(0.2),
        any::<bool>(),
        vec(node(), 2..=NODES.len()),
        vec(labels(NAMESPACE_LABELS), 1..=4),
        vec(pod(), 0..=12),
        vec(policy(), 1..=6),
    );
    seed.prop_map(|(v6_first, cluster_cidrs, nodes, namespaces, pods, policies)| {
        let seed = Seed {
            v6_first,
            cluster_cidrs,
            nodes,
            namespaces,
            pods,
            policies,
        };
        World::new(seed.objects())
    })
}

/// Worlds that the bare topology can be: its three nodes with all their addresses, and pods where it has some.
pub fn topology_worlds() -> impl Strategy<Value = World> {
    let seed = (
        vec(node(), 3),
        vec(labels(NAMESPACE_LABELS), 1..=4),
        vec(pod(), 4..=12),
        vec(policy(), 2..=6),
    );
    seed.prop_map(|(mut nodes, namespaces, mut pods, policies)| {
        for node in &mut nodes {
            node.internal = Families::Both;
            node.has_ranges = true;
            node.external = false;
            node.report = Report::ByEth0;
        }
        for pod in &mut pods {
            pod.orphan = false;
            pod.moved = false;
            pod.slot %= PODS_PER_NODE;
        }
        let seed = Seed {
            v6_first: false,
            cluster_cidrs: false,
            nodes,
            namespaces,
            pods,
            policies,
        };
        World::new(seed.objects_without_eth1())
    })
}

/// A moment, as the API server writes it.
pub fn time(seconds: u32) -> String {
    format!("2026-01-01T00:{:02}:{:02}Z", seconds / 60, seconds % 60)
}

/// A node's addresses on its second interface.
pub fn address_on_eth1(node: usize) -> Dual {
    let host = node as u8 + 1;
    Dual::new([192, 0, 2, host], [0x2001, 0xdb8, 2, 0, 0, 0, 0, host.into()])
}

#[derive(Clone, Debug)]
struct Seed {
    /// The cluster's first family is IPv6.
    v6_first: bool,
    /// The chart is told the pods' range, though the nodes tell it.
    cluster_cidrs: bool,
    nodes: Vec<NodeSeed>,
    namespaces: Vec<Map<String, Value>>,
    pods: Vec<PodSeed>,
    policies: Vec<PolicySeed>,
}

#[derive(Clone, Debug)]
struct NodeSeed {
    labels: Map<String, Value>,
    ready: bool,
    internal: Families,
    /// It has an address that a cloud's NAT has, and not the node.
    external: bool,
    has_ranges: bool,
    report: Report,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Families {
    Both,
    V4,
    V6,
    None,
}

/// What the node's agent has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Report {
    Nothing,
    /// Both default routes leave by `eth0`.
    ByEth0,
    /// IPv4's leaves by `eth0`, IPv6's by `eth1`.
    ByBoth,
    /// There is none.
    NoDefault,
}

#[derive(Clone, Debug)]
struct PodSeed {
    labels: Map<String, Value>,
    namespace: usize,
    node: Option<usize>,
    /// Its node is gone.
    orphan: bool,
    /// Its addresses are of the next node's range: it came from there and kept them.
    moved: bool,
    slot: u8,
    families: Families,
    phase: &'static str,
    host_network: bool,
    deleting: bool,
    created: u32,
}

fn families() -> impl Strategy<Value = Families> {
    prop_oneof![
        7 => Just(Families::Both),
        1 => Just(Families::V4),
        1 => Just(Families::V6),
        1 => Just(Families::None),
    ]
}

prop_compose! {
    fn node()(
        labels in labels(NODE_LABELS),
        ready in proptest::bool::weighted(0.8),
        internal in families(),
        external in proptest::bool::weighted(0.2),
        has_ranges in proptest::bool::weighted(0.8),
        report in select(vec![Report::Nothing, Report::ByEth0, Report::ByEth0, Report::ByBoth, Report::NoDefault]),
    ) -> NodeSeed {
        NodeSeed { labels, ready, internal, external, has_ranges, report }
    }
}

prop_compose! {
    fn pod()(
        labels in labels(POD_LABELS),
        namespace in 0..4usize,
        node in proptest::option::weighted(0.95, 0..12usize),
        orphan in proptest::bool::weighted(0.05),
        moved in proptest::bool::weighted(0.1),
        slot in 0..10u8,
        families in families(),
        phase in prop_oneof![8 => Just("Running"), 1 => Just("Pending"), 1 => Just("Succeeded"), 1 => Just("Failed")],
        host_network in proptest::bool::weighted(0.05),
        deleting in proptest::bool::weighted(0.2),
        created in 0..3u32,
    ) -> PodSeed {
        PodSeed { labels, namespace, node, orphan, moved, slot, families, phase, host_network, deleting, created }
    }
}

impl Seed {
    fn objects(&self) -> Vec<Value> {
        // A pod outside the ranges that the nodes tell is one of which the chart must be told.
        let told = self.cluster_cidrs || self.nodes.iter().any(|n| !n.has_ranges);
        let values = told.then(|| json!({"kind": "Values", "clusterCIDRs": PODS}));
        let mut objects: Vec<Value> = values.into_iter().collect();
        objects.push(json!({
            "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": {"cidrs": SERVICES},
        }));
        for (address, family) in API_SERVER.both().into_iter().zip(["IPv4", "IPv6"]) {
            objects.push(json!({
                "kind": "EndpointSlice",
                "metadata": {"name": family.to_lowercase(), "namespace": "default"},
                "addressType": family,
                "endpoints": [{"addresses": [address]}],
            }));
        }
        let namespaces = self.namespaces.iter().enumerate();
        objects.extend(namespaces.map(|(n, labels)| namespace(n, labels)));
        for (number, node) in self.nodes.iter().enumerate() {
            objects.push(node.object(number, self.v6_first));
            objects.extend(node.plan(number));
        }
        let pods = self.pods.iter().enumerate();
        objects.extend(pods.map(|(n, p)| p.object(n, self.namespaces.len(), self.nodes.len())));
        objects.extend(self.policies.iter().enumerate().map(|(n, p)| p.object(n)));
        objects
    }

    /// The topology's nodes have one interface.
    fn objects_without_eth1(&self) -> Vec<Value> {
        let mut objects = self.objects();
        for plan in objects.iter_mut().filter(|o| o["kind"] == "EgressPlan") {
            let interfaces = plan["status"]["interfaces"].as_array_mut().unwrap();
            interfaces.retain(|i| i["name"] == "eth0");
        }
        objects
    }
}

impl NodeSeed {
    fn object(&self, number: usize, v6_first: bool) -> Value {
        let name = NODES[number];
        let mut internal = self.internal.of(on_segment(number as u8 + 2));
        if v6_first {
            internal.reverse();
        }
        let mut addresses: Vec<Value> = internal
            .iter()
            .map(|a| json!({"type": "InternalIP", "address": a}))
            .collect();
        if self.external {
            addresses.push(json!({"type": "ExternalIP", "address": format!("203.0.113.{}", number + 1)}));
        }
        let ranges = in_pod_range(number as u8 + 1, 0);
        let ranges = match self.has_ranges {
            true => json!([format!("{}/24", ranges.v4), format!("{}/64", ranges.v6)]),
            false => json!([]),
        };
        let ready = if self.ready { "True" } else { "False" };
        let mut labels = self.labels.clone();
        labels.insert("kubernetes.io/hostname".into(), json!(name));
        json!({
            "kind": "Node",
            "metadata": {"name": name, "uid": format!("node-{name}"), "labels": labels},
            "spec": {"podCIDRs": ranges},
            "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": ready}]},
        })
    }

    fn plan(&self, number: usize) -> Option<Value> {
        let [first, second] = match self.report {
            Report::Nothing => return None,
            Report::ByEth0 => [json!(["IPv4", "IPv6"]), json!([])],
            Report::ByBoth => [json!(["IPv4"]), json!(["IPv6"])],
            Report::NoDefault => [json!([]), json!([])],
        };
        let eth0 = [2, 22, 32].map(|first| self.internal.of(on_segment(first + number as u8)));
        let eth1 = self.internal.of(address_on_eth1(number));
        Some(json!({
            "apiVersion": "egressnat.io/v1alpha1",
            "kind": "EgressPlan",
            "metadata": {"name": NODES[number], "uid": format!("plan-{}", NODES[number])},
            "spec": {},
            "status": {"interfaces": [
                {"name": "eth0", "addresses": eth0.concat(), "defaultRoute": first},
                {"name": "eth1", "addresses": eth1, "defaultRoute": second},
            ]},
        }))
    }
}

impl PodSeed {
    fn object(&self, number: usize, namespaces: usize, nodes: usize) -> Value {
        let namespace = namespace_name(self.namespace % namespaces);
        let name = format!("pod-{number}");
        let ips = match self.node {
            None => Vec::new(),
            Some(node) if self.host_network => self.families.of(on_segment((node % nodes) as u8 + 2)),
            Some(node) => {
                let home = (node + usize::from(self.moved)) % nodes;
                self.families.of(in_pod_range(home as u8 + 1, 11 + self.slot))
            }
        };
        let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let mut object = json!({
            "kind": "Pod",
            "metadata": {
                "namespace": namespace,
                "name": name,
                "uid": name,
                // No two of one age: which of those has a common address is nobody's promise.
                "creationTimestamp": time(self.created * 60 + number as u32),
                "labels": self.labels,
            },
            "spec": {},
            "status": {"phase": if self.node.is_some() { self.phase } else { "Pending" }, "podIPs": ips},
        });
        if let Some(node) = self.node {
            object["spec"]["nodeName"] = json!(if self.orphan { "gone" } else { NODES[node % nodes] });
        }
        if self.host_network {
            object["spec"]["hostNetwork"] = json!(true);
        }
        if self.deleting {
            object["metadata"]["deletionTimestamp"] = json!(time(600));
        }
        object
    }
}

impl Families {
    fn of(self, address: Dual) -> Vec<std::net::IpAddr> {
        match self {
            Self::Both => address.both().into(),
            Self::V4 => vec![address.v4.into()],
            Self::V6 => vec![address.v6.into()],
            Self::None => Vec::new(),
        }
    }
}

fn namespace(number: usize, labels: &Map<String, Value>) -> Value {
    let name = namespace_name(number);
    let mut labels = labels.clone();
    labels.insert("kubernetes.io/metadata.name".into(), json!(name));
    json!({"kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn namespace_name(number: usize) -> String {
    format!("namespace-{number}")
}
