//! `EgressPlan`: what one node has to do, and what its agent says of it.
//!
//! The only contract between operator and agent. One object per node, with the node's name, owned by the
//! Node. Every list is sorted and free of doubles, so that equal plans are equal texts.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::interval::Interval;
use crate::policy::{NoGateway, OnChange};
use crate::ports::PortRange;

/// Highest policy id: 14 bits, since bits 14 and 15 of a packet mark belong to Kubernetes.
pub const MAX_POLICY_ID: u16 = 0x3fff;

/// What one node has to do. Written by the operator; not for editing.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "egressnat.io",
    version = "v1alpha1",
    kind = "EgressPlan",
    plural = "egressplans",
    singular = "egressplan",
    shortname = "epl",
    category = "egressnat",
    status = "EgressPlanStatus",
    derive = "PartialEq",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(
        name = "Generation",
        type_ = "integer",
        json_path = ".metadata.generation",
        priority = 1
    ),
    printcolumn(
        name = "Programmed",
        type_ = "integer",
        json_path = ".status.observedGeneration",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct EgressPlanSpec {
    /// This node's own address under the tunnel, to which its peers send. Absent while the node has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub underlay: Option<IpAddr>,
    /// Ranges that no policy captures: pods, Services, every node's addresses, the API server. Merged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub cluster: Vec<Interval>,
    /// The other nodes that this one shares a tunnel with, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
    /// The policies in which this node has a part, by id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PlanPolicy>,
    /// What the pods of this node use, by id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<Profile>,
    /// The selected pods of this node, by uid. Those still without an address are there too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<PlanPod>,
    /// The default local egress of pods that no policy captures. Absent: that is left to the CNI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<Masquerade>,
    /// What is known of the node's other pods. Absent: nothing, and pods start at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// Ids that this plan has used, and that this node's agent has not yet reported to be without, by id: they are
    /// given to no other policy meanwhile. The operator's own note, of which the agent takes no notice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<RetiredId>,
    /// Everything of ours leaves the node, as if there were no plan; the agent says when it is done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub teardown: bool,
}

/// Another node, to or from which this node tunnels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// The peer's node name.
    pub node: String,
    /// Its address under the tunnel. Its tunnel MAC address follows from it.
    #[schemars(with = "String")]
    pub underlay: IpAddr,
    /// Where this node is the gateway of the peer's pods: the inner source ranges accepted from the peer,
    /// which is also where replies go back to it. Empty for a peer that is only a gateway of this node's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub ranges: Vec<IpNet>,
}

/// One policy's part on this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanPolicy {
    /// The policy's number, 1 to 0x3fff.
    #[schemars(range(min = 1, max = 16383))]
    pub id: u16,
    /// The policy's name, for people.
    pub name: String,
    /// What this node's own pods do. Absent where none of them uses the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceRole>,
    /// The addresses with which this node, as the gateway, sends: at most one of each family. Absent where
    /// another node is the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<GatewayRole>,
}

/// An id that may still be in use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetiredId {
    /// The id.
    #[schemars(range(min = 1, max = 16383))]
    pub id: u16,
    /// The name of the policy that it was of.
    pub name: String,
}

/// How the pods of this node reach a policy's gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceRole {
    /// The gateway's node: a peer, or this node itself. Absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The families that the gateway has an address of. A packet of another family meets `noGateway`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub families: Vec<Family>,
    /// What happens to packets that no gateway can take.
    #[serde(default)]
    pub no_gateway: NoGateway,
    /// What happens to TCP connections that are older than the policy's hold on their pod.
    #[serde(default)]
    pub on_change: OnChange,
}

/// What this node does as a policy's gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayRole {
    /// The source addresses given to the policy's packets: at most one of each family.
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<IpAddr>,
    /// The source ports (ICMP: the echo identifiers) given with the addresses. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub source_ports: Option<PortRange>,
}

/// Which of this node's pods a policy selects is said by the plan's pods; this says of which it is known that none
/// does. Of any other pod it is not known yet, its namespace or its labels may be news that is still on its way, or not
/// known any more: it is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// Pods start at once. Otherwise only when the node knows them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub open: bool,
    /// The namespaces that any policy may select pods of, in the whole cluster. Empty where the gate is open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// The pods of this node in those namespaces that no policy selects, by uid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unselected: Vec<String>,
    /// The namespaces of this node's other pods: no policy selects pods of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub free: Vec<String>,
}

impl EgressPlanSpec {
    /// The gate, where pods wait at it.
    pub fn closed_gate(&self) -> Option<&Gate> {
        self.gate.as_ref().filter(|gate| !gate.open)
    }
}

/// The masquerade of what no policy captures: packets of these sources to destinations elsewhere leave with
/// an address of the node's own interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Masquerade {
    /// The node's pod ranges, or its pods' own addresses where these lie elsewhere.
    #[schemars(with = "Vec<String>")]
    pub sources: Vec<IpNet>,
    /// Destinations to which packets keep their source: the cluster's own, and what the installation says.
    #[schemars(with = "Vec<String>")]
    pub except: Vec<Interval>,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Family {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

impl From<IpAddr> for Family {
    fn from(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::IPv4 } else { Self::IPv6 }
    }
}

/// Which policy applies to which destination, for all pods that the same policies select.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    /// The profile's number in this plan, from 1.
    #[schemars(range(min = 1))]
    pub id: u32,
    /// Disjoint intervals in ascending order, IPv4 first: overlaps, exclusions and priorities are resolved.
    pub destinations: Vec<Destination>,
}

/// One interval of a [`Profile`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// The addresses, as `FIRST-LAST`, both included.
    #[schemars(with = "String")]
    pub range: Interval,
    /// The id of the policy that applies there.
    #[schemars(range(min = 1, max = 16383))]
    pub policy: u16,
}

/// A selected pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanPod {
    /// The pod's uid.
    pub uid: String,
    /// `namespace/name`, for people.
    pub name: String,
    /// The pod's addresses. Empty while it has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub ips: Vec<IpAddr>,
    /// The pod's profile.
    pub profile: u32,
}

/// What the node's agent says of the plan and of its node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressPlanStatus {
    /// The generation of the spec that the kernel holds, read back and compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the datapath is what the spec says. Otherwise the reason is the category of what is wrong. `Gate`, where
    /// the spec asks for it: pods start only when this node knows them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The addresses that this node holds, by interface: what a policy may name as its egress address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<NodeInterface>,
    /// Egress addresses of the spec that the node does not hold: their policies' packets are dropped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub missing_addresses: Vec<IpAddr>,
    /// Policies of this gateway that had no source port left for a destination within the last minute: further
    /// connections to it are dropped. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub exhausted_ports: Vec<ExhaustedPorts>,
    /// The interfaces, other than the default route's, by which egress addresses of the spec leave.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exits: Vec<NodeExit>,
    /// Selected pods of this node that started without passing the start gate, as `namespace/name`: their first packets
    /// may have had the node's address. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub ungated: Vec<String>,
    /// What of ours in the node's kernel another hand has removed or changed, and the agent has put right: the
    /// latest. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub repairs: Vec<Repair>,
    /// What of other programs, or of the node's settings, is in the way: of some traffic, or, where the plan is not
    /// Ready for it, of all. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub hindrances: Vec<Hindrance>,
}

/// Something that is in the way on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hindrance {
    /// Its category, one word.
    pub reason: String,
    /// What it is, and what to do.
    pub message: String,
}

impl Hindrance {
    /// How many of them a status names.
    pub const MAX: usize = 16;
}

/// Something that another hand has removed or changed, and the agent has put right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Repair {
    /// The kind of thing.
    pub object: RepairedObject,
    /// Its name or text.
    pub what: String,
    /// How often.
    pub count: u32,
    /// When the last time was.
    pub last_time: Time,
}

impl Repair {
    /// How many of them a status names.
    pub const MAX: usize = 16;
}

/// The kinds of things that the agent has in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RepairedObject {
    /// The nft table with all that is in it.
    Table,
    /// An nft chain.
    Chain,
    /// A rule of an nft chain.
    Rule,
    /// An nft set or map.
    Set,
    /// An element of an nft set or map.
    Element,
    /// A named nft counter.
    Counter,
    /// The tunnel device, with all that hangs on it.
    Link,
    /// A kernel setting.
    Sysctl,
    /// An entry of the tunnel's forwarding database.
    FdbEntry,
    /// A neighbour entry on the tunnel.
    Neighbour,
    /// A route.
    Route,
    /// An ip rule.
    IpRule,
}

impl RepairedObject {
    /// All kinds.
    pub const ALL: [Self; 12] = [
        Self::Table,
        Self::Chain,
        Self::Rule,
        Self::Set,
        Self::Element,
        Self::Counter,
        Self::Link,
        Self::Sysctl,
        Self::FdbEntry,
        Self::Neighbour,
        Self::Route,
        Self::IpRule,
    ];

    /// The word for it in messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Table => "nft table",
            Self::Chain => "nft chain",
            Self::Rule => "nft rule",
            Self::Set => "nft set",
            Self::Element => "nft element",
            Self::Counter => "nft counter",
            Self::Link => "link",
            Self::Sysctl => "sysctl",
            Self::FdbEntry => "FDB entry",
            Self::Neighbour => "neighbour",
            Self::Route => "route",
            Self::IpRule => "ip rule",
        }
    }
}

/// An interface by which packets leave because their egress address is there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeExit {
    /// The interface's name.
    pub interface: String,
    /// The egress addresses of the spec that are on it.
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<IpAddr>,
    /// Where their packets go to reach other networks than the interface's own. Those of a family that has no
    /// next hop are refused as unreachable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next_hops: Vec<NextHop>,
}

/// The way of a family by an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NextHop {
    /// The family.
    pub family: Family,
    /// The router's address. Absent where the interface leads everywhere by itself, as point-to-point links do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub via: Option<IpAddr>,
}

impl NodeExit {
    /// Its addresses of families without a next hop.
    pub fn stranded(&self) -> impl Iterator<Item = &IpAddr> {
        let has_way = |family: Family| self.next_hops.iter().any(|hop| hop.family == family);
        self.addresses.iter().filter(move |a| !has_way((**a).into()))
    }
}

/// Source ports that are all taken towards one destination.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExhaustedPorts {
    /// The policy's name.
    pub policy: String,
    /// The source address that the ports belong to.
    #[schemars(with = "String")]
    pub address: IpAddr,
    /// The ports that the policy gives, as `FIRST-LAST`.
    #[schemars(with = "String")]
    pub source_ports: PortRange,
    /// The number of the IP protocol; each has ports of its own.
    pub protocol: u8,
    /// The destination.
    #[schemars(with = "String")]
    pub destination: IpAddr,
    /// The destination's port, where the protocol has ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl ExhaustedPorts {
    /// How many of them a status names.
    pub const MAX: usize = 16;
}

/// A network interface of the node with its global addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeInterface {
    /// The interface's name.
    pub name: String,
    /// Its global unicast addresses, the preferred one of each family first.
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<IpAddr>,
    /// The families whose default route leaves by this interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub default_route: Vec<Family>,
}
