//! A world as a user and the cluster would write it, and the little that the model reads of each object.

use std::fmt;
use std::net::IpAddr;

use egressnat_crds::selector::Labels;
use egressnat_crds::{EgressNATPolicySpec, EgressNATPolicyStatus, EgressPlanStatus};
use egressnat_operator::convert;
use egressnat_operator::store::{Change, Delta, Store};
use egressnat_operator::world::{ClusterConfig, World as Known};
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The objects, and what the model reads of them.
#[derive(Clone, Default)]
pub struct World {
    objects: Vec<Value>,
    /// The chart's values.
    pub values: Values,
    pub policies: Vec<Policy>,
    pub pods: Vec<Pod>,
    pub nodes: Vec<Node>,
    pub namespaces: Vec<Namespace>,
    pub service_cidrs: Vec<ServiceCidr>,
    pub endpoint_slices: Vec<EndpointSlice>,
    pub plans: Vec<Plan>,
    /// In files: what somebody has worked out by hand.
    pub verdicts: Vec<WrittenVerdict>,
}

/// The chart's values, of kind `Values` in a file.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Values {
    #[serde(rename = "clusterCIDRs")]
    pub cluster_cidrs: Vec<IpNet>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub labels: Labels,
    /// RFC 3339 in UTC: the earlier text is the earlier time.
    pub creation_timestamp: String,
    pub deletion_timestamp: Option<String>,
}

#[derive(Clone, Deserialize)]
pub struct Policy {
    pub metadata: Metadata,
    pub spec: EgressNATPolicySpec,
    #[serde(default)]
    pub status: EgressNATPolicyStatus,
}

#[derive(Clone, Deserialize)]
pub struct Pod {
    pub metadata: Metadata,
    pub spec: PodSpec,
    pub status: PodStatus,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: Option<String>,
    pub host_network: bool,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    pub phase: String,
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
}

#[derive(Clone, Deserialize)]
pub struct PodIp {
    pub ip: IpAddr,
}

#[derive(Clone, Deserialize)]
pub struct Node {
    pub metadata: Metadata,
    #[serde(default)]
    pub spec: NodeSpec,
    #[serde(default)]
    pub status: NodeStatus,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    pub addresses: Vec<NodeAddress>,
    pub conditions: Vec<NodeCondition>,
}

#[derive(Clone, Deserialize)]
pub struct NodeAddress {
    #[serde(rename = "type")]
    pub kind: String,
    pub address: IpAddr,
}

#[derive(Clone, Deserialize)]
pub struct NodeCondition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
}

#[derive(Clone, Deserialize)]
pub struct Namespace {
    pub metadata: Metadata,
}

#[derive(Clone, Deserialize)]
pub struct ServiceCidr {
    pub spec: ServiceCidrSpec,
}

#[derive(Clone, Deserialize)]
pub struct ServiceCidrSpec {
    pub cidrs: Vec<IpNet>,
}

#[derive(Clone, Deserialize)]
pub struct EndpointSlice {
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Deserialize)]
pub struct Endpoint {
    pub addresses: Vec<IpAddr>,
}

/// What a node's agent has said.
#[derive(Clone, Deserialize)]
pub struct Plan {
    pub metadata: Metadata,
    #[serde(default)]
    pub status: EgressPlanStatus,
}

/// What must become of a packet, of kind `Verdict` in a file.
#[derive(Clone, Deserialize)]
pub struct WrittenVerdict {
    /// `namespace/name`.
    pub pod: String,
    pub to: IpAddr,
    /// As [`crate::expected::say`] puts it.
    pub is: String,
}

impl World {
    /// The world of these objects.
    pub fn new(objects: Vec<Value>) -> Self {
        let mut world = Self::default();
        for object in &objects {
            match kind(object) {
                "Values" => world.values = read(object),
                "EgressNATPolicy" => world.policies.push(read(object)),
                "Pod" => world.pods.push(read(object)),
                "Node" => world.nodes.push(read(object)),
                "Namespace" => world.namespaces.push(read(object)),
                "ServiceCIDR" => world.service_cidrs.push(read(object)),
                "EndpointSlice" => world.endpoint_slices.push(read(object)),
                "EgressPlan" => world.plans.push(read(object)),
                "Verdict" => world.verdicts.push(read(object)),
                other => panic!("no kind {other:?} in a world"),
            }
        }
        world.objects = objects;
        world
    }

    /// The world of a file.
    pub fn of_yaml(text: &str) -> Self {
        let documents = serde_yaml_ng::Deserializer::from_str(text);
        Self::new(documents.map(|d| Value::deserialize(d).unwrap()).collect())
    }

    /// The world as the operator knows it after having listed everything.
    pub fn known(&self) -> Known {
        let mut store = self.store();
        for object in &self.objects {
            change(object).map(|c| store.apply(c));
        }
        store.world().clone()
    }

    /// The operator's store, still empty.
    pub fn store(&self) -> Store {
        Store::new(ClusterConfig {
            cluster_cidrs: self.values.cluster_cidrs.clone(),
            ..ClusterConfig::default()
        })
    }

    /// The objects.
    pub fn objects(&self) -> &[Value] {
        &self.objects
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|n| n.metadata.name == name)
    }
}

impl Pod {
    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// Its addresses.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.status.pod_ips.iter().map(|p| p.ip)
    }
}

impl Node {
    /// Its addresses of type InternalIP, in the kubelet's order.
    pub fn internal_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let internal = self.status.addresses.iter().filter(|a| a.kind == "InternalIP");
        internal.map(|a| a.address)
    }
}

/// What a watch says of an object that was made or changed. None for what is no object of the API server's.
pub fn change(object: &Value) -> Option<Change> {
    convert::change(object.clone()).unwrap_or_else(|e| panic!("{e} in {object}"))
}

/// What a watch says of an object that is gone.
pub fn deletion(object: &Value) -> Option<Change> {
    let key = convert::key(object);
    Some(match kind(object) {
        "EgressNATPolicy" => Change::Policies(Delta::Gone(key)),
        "Pod" => Change::Pods(Delta::Gone(key)),
        "Node" => Change::Nodes(Delta::Gone(key)),
        "Namespace" => Change::Namespaces(Delta::Gone(key)),
        "ServiceCIDR" => Change::ServiceCidrs(Delta::Gone(key)),
        "EndpointSlice" => Change::ApiServers(Delta::Gone(key)),
        "EgressPlan" => Change::Plans(Delta::Gone(key)),
        _ => return None,
    })
}

/// An object's kind.
pub fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap()
}

fn read<T: DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{e} in {object}"))
}

/// The file that [`World::of_yaml`] reads.
impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for object in &self.objects {
            let text = serde_yaml_ng::to_string(object).map_err(|_| fmt::Error)?;
            write!(f, "---\n{text}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
