//! `EgressNATPolicy`: which pods leave with which address.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::interval::Interval;
use crate::selector::LabelSelector;

/// Pods that leave the cluster with a stable, chosen source address.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "egressnat.io",
    version = "v1alpha1",
    kind = "EgressNATPolicy",
    plural = "egressnatpolicies",
    singular = "egressnatpolicy",
    shortname = "enp",
    category = "egressnat",
    status = "EgressNATPolicyStatus",
    printcolumn(name = "Gateway", type_ = "string", json_path = ".status.gatewayNodes"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses"),
    printcolumn(name = "Pods", type_ = "integer", json_path = ".status.matchedPods"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].reason",
        priority = 1
    ),
    printcolumn(
        name = "Priority",
        type_ = "integer",
        json_path = ".spec.priority",
        priority = 1
    ),
    printcolumn(
        name = "Nodes",
        type_ = "integer",
        json_path = ".status.nodesConcerned",
        priority = 1
    ),
    printcolumn(
        name = "Programmed",
        type_ = "integer",
        json_path = ".status.nodesProgrammed",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.egressSourceIP) ? 1 : 0) + (has(self.egressSourceIPs) ? 1 : 0) + (has(self.egressGateway) ? 1 : 0) + (has(self.egressGateways) ? 1 : 0) == 1")
        .message("set exactly one of egressSourceIP, egressSourceIPs, egressGateway and egressGateways"),
    validation = Rule::new("!has(self.zoneAffinity) || self.zoneAffinity == 'None' || has(self.egressGateways)")
        .message("zoneAffinity chooses among egressGateways: write the gateway as an entry of egressGateways, or leave zoneAffinity out"),
    validation = Rule::new("!has(self.destinationCIDRs) || !has(self.egressSourceIP) || !isIP(self.egressSourceIP) || self.destinationCIDRs.exists(c, isCIDR(c) && cidr(c).ip().family() == ip(self.egressSourceIP).family())")
        .message("no destinationCIDR is of the family of egressSourceIP: the address could never be used"),
    validation = Rule::new("!has(oldSelf.destinationCIDRs) || has(self.destinationCIDRs)")
        .message("without destinationCIDRs the policy would apply to everything outside the cluster: write 0.0.0.0/0 and ::/0 to mean that, or delete the policy")
)]
pub struct EgressNATPolicySpec {
    /// Which policy wins where several select the same pod and destination: the higher priority, then the
    /// older policy, then the name that sorts first.
    #[serde(default = "default_priority")]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    pub priority: i32,
    /// The pods that this policy selects: those that match any entry.
    #[schemars(length(min = 1, max = 32))]
    pub selectors: Vec<PodSelection>,
    /// Destinations for which the pods use the egress address. Left out: everything outside the cluster.
    /// Pods, Services, nodes and the API server are never captured, whatever is written here.
    #[serde(default, rename = "destinationCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(max = 43)))]
    #[x_kube(
        validation = Rule::new("self.all(c, isCIDR(c))").message("every entry must be a CIDR, such as 192.0.2.0/24 or 2001:db8::/32"),
        validation = Rule::new("self.all(c, !isCIDR(c) || cidr(c) == cidr(c).masked())").message("a CIDR must not have host bits set: write 192.0.2.0/24, not 192.0.2.7/24"),
        validation = Rule::new("!self.exists(c, isCIDR(c) && ['127.0.0.0/8', '::1/128', '169.254.0.0/16', 'fe80::/10', '224.0.0.0/4', 'ff00::/8', '255.255.255.255/32'].exists(never, cidr(never).containsCIDR(cidr(c))))").message("loopback, link-local, multicast and broadcast addresses are never captured: leave such CIDRs out")
    )]
    pub destination_cidrs: Vec<String>,
    /// Destinations that this policy leaves alone. The pod's next policy still applies there.
    #[serde(default, rename = "excludedCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 43)))]
    #[x_kube(
        validation = Rule::new("self.all(c, isCIDR(c))").message("every entry must be a CIDR, such as 192.0.2.0/24 or 2001:db8::/32"),
        validation = Rule::new("self.all(c, !isCIDR(c) || cidr(c) == cidr(c).masked())").message("a CIDR must not have host bits set: write 192.0.2.0/24, not 192.0.2.7/24")
    )]
    pub excluded_cidrs: Vec<String>,
    /// The address that the outside sees. The gateway is the node that holds it.
    #[serde(default, rename = "egressSourceIP", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 39))]
    #[x_kube(
        validation = Rule::new("isIP(self)").message("egressSourceIP must be an IPv4 or IPv6 address"),
        validation = Rule::new("!isIP(self) || ip(self).isGlobalUnicast()").message("write an address by which the outside can answer: none that is loopback, link-local, multicast, broadcast or unspecified")
    )]
    pub egress_source_ip: Option<String>,
    /// As `egressSourceIP`, for dual stack and for several addresses, up to 16 of each family. The first IPv4
    /// address goes with the first IPv6 address, and so on; one node holds both of a pair. A pod keeps one
    /// pair of those that are held, and pods spread evenly.
    #[serde(default, rename = "egressSourceIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32), inner(length(max = 39)))]
    #[x_kube(
        validation = Rule::new("self.all(a, isIP(a))").message("every entry must be an IPv4 or IPv6 address"),
        validation = Rule::new("self.all(a, !isIP(a) || ip(a).isGlobalUnicast())").message("write addresses by which the outside can answer: none that is loopback, link-local, multicast, broadcast or unspecified"),
        validation = Rule::new("self.all(a, !isIP(a) || self.filter(b, isIP(b) && ip(b) == ip(a)).size() == 1)").message("every address must be there once"),
        validation = Rule::new("!self.all(a, isIP(a)) || self.filter(a, ip(a).family() == 4).size() * 2 in [0, size(self), size(self) * 2]").message("write as many IPv4 as IPv6 addresses, the first with the first and so on, or addresses of one family"),
        validation = Rule::new("size(self) <= 16 || !self.all(a, isIP(a)) || self.exists(a, ip(a).family() != ip(self[0]).family())").message("write at most 16 addresses of each family")
    )]
    pub egress_source_ips: Vec<String>,
    /// The gateway chosen by label instead of by its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_gateway: Option<EgressGateway>,
    /// Several gateways, each chosen as `egressGateway`. A pod keeps one of those that are ready, and pods
    /// spread evenly; a gateway that comes or goes moves only its own share of the pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub egress_gateways: Vec<EgressGateway>,
    /// Whether a pod uses gateways of its own zone, by the label `topology.kubernetes.io/zone` of the pod's
    /// node and of the gateway's. Only with `egressGateways`.
    #[serde(default)]
    pub zone_affinity: ZoneAffinity,
    /// The source ports that the outside sees, as `FIRST-LAST`: for firewalls that match them, and for
    /// policies that share an address. Left out: any. For ICMP these are the echo identifiers. A connection
    /// for which no port is left is dropped, and counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 11))]
    #[x_kube(
        validation = Rule::new("self.matches('^[0-9]{1,5}(-[0-9]{1,5})?$') && self.split('-').all(p, int(p) >= 1 && int(p) <= 65535)").message("sourcePorts must be ports of 1 to 65535, such as 20000-39999"),
        validation = Rule::new("!self.matches('^[0-9]{1,5}-[0-9]{1,5}$') || int(self.split('-')[0]) <= int(self.split('-')[1])").message("write the lower port first, as in 20000-39999")
    )]
    pub source_ports: Option<String>,
    /// What happens to the selected pods' packets while no gateway can take them.
    #[serde(default)]
    pub no_gateway: NoGateway,
    /// What happens to TCP connections that a pod has already when the policy comes to apply to them.
    #[serde(default)]
    pub on_change: OnChange,
}

/// One entry of `selectors`: a pod is selected when all the selectors given here match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.podSelector) || has(self.namespaceSelector) || has(self.nodeSelector)")
        .message("an entry needs at least one of podSelector, namespaceSelector and nodeSelector; write podSelector: {} for every pod")
)]
pub struct PodSelection {
    /// By the pod's labels. Empty or left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// By the labels of the pod's namespace. Empty or left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// By the labels of the node that the pod runs on. Empty or left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
}

/// A gateway chosen by node label.
///
/// With `egressIP` or `egressIPs` the chosen node is one that holds the address; with `interface` its
/// addresses on that interface are used; with neither, those of the interface of its default route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.interface) ? 1 : 0) + (has(self.egressIP) ? 1 : 0) + (has(self.egressIPs) ? 1 : 0) <= 1")
        .message("set at most one of interface, egressIP and egressIPs")
)]
pub struct EgressGateway {
    /// The nodes that may be the gateway.
    pub node_selector: LabelSelector,
    /// Use the addresses of this interface of the gateway: its name, of at most 15 characters, or an
    /// alternative name of up to 127.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 127), regex(pattern = "^[^\\s/]+$"))]
    pub interface: Option<String>,
    /// Use this address, which the gateway must hold.
    #[serde(default, rename = "egressIP", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 39))]
    #[x_kube(
        validation = Rule::new("isIP(self)").message("egressIP must be an IPv4 or IPv6 address"),
        validation = Rule::new("!isIP(self) || ip(self).isGlobalUnicast()").message("write an address by which the outside can answer: none that is loopback, link-local, multicast, broadcast or unspecified")
    )]
    pub egress_ip: Option<String>,
    /// As `egressIP`, for dual stack: one IPv4 and one IPv6 address.
    #[serde(default, rename = "egressIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 2), inner(length(max = 39)))]
    #[x_kube(
        validation = Rule::new("self.all(a, isIP(a))").message("every entry must be an IPv4 or IPv6 address"),
        validation = Rule::new("self.all(a, !isIP(a) || ip(a).isGlobalUnicast())").message("write addresses by which the outside can answer: none that is loopback, link-local, multicast, broadcast or unspecified"),
        validation = Rule::new("size(self) < 2 || !isIP(self[0]) || !isIP(self[1]) || ip(self[0]).family() != ip(self[1]).family()").message("two addresses must be one of IPv4 and one of IPv6")
    )]
    pub egress_ips: Vec<String>,
}

/// Whether a pod uses gateways of its own zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ZoneAffinity {
    /// Zones do not matter.
    #[default]
    None,
    /// Those of its zone while one of them is ready, otherwise any.
    Prefer,
    /// Only those of its zone. Without one, its packets meet `noGateway`.
    Require,
}

/// What happens to the packets of selected pods that no gateway can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum NoGateway {
    /// They are dropped, and counted.
    #[default]
    Drop,
    /// They leave as those of any other pod, with their node's address.
    NodeIP,
}

/// What happens to TCP connections that are older than the policy's hold on their pod. Their next packet would leave
/// with another address than those before it, and the server would take it for a stranger's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum OnChange {
    /// They are reset: the pod knows at once that it has to connect anew. No packet of them leaves any more.
    #[default]
    Cut,
    /// They go on with the policy's address, for servers that take them up in the middle.
    Readdress,
}

/// What the operator made of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressNATPolicyStatus {
    /// `Accepted`, `GatewayReady`, `Programmed`, `Degraded`, each with `observedGeneration`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The policy's number in connection marks and in the tunnel header, 1 to 0x3fff. It stays for the
    /// policy's life. With `egressGateways` and `egressSourceIPs` each gateway has its own instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u16>,
    /// The gateway in force. With `egressGateways` there is an item for every entry, in their order, with
    /// `egressSourceIPs` for every pair of addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<GatewayStatus>,
    /// The nodes of all gateways, each once, in order of name, joined by commas, as `kubectl get` shows them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gateway_nodes: String,
    /// The addresses in force of all gateways, joined by commas, as `kubectl get` shows them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub addresses: String,
    /// How many pods the policy selects, those still without an address included.
    #[serde(default)]
    pub matched_pods: u32,
    /// How many nodes must know the policy: those of its pods, and the gateway.
    #[serde(default)]
    pub nodes_concerned: u32,
    /// How many of them have reported it in place.
    #[serde(default)]
    pub nodes_programmed: u32,
    /// The policies that come first for some of this one's pods at some of its destinations, in order of
    /// precedence: at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub lost: Vec<LostTo>,
    /// How many more such policies there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_lost: u32,
}

/// A gateway in force, or an entry of `egressGateways`, or a pair of `egressSourceIPs`, that waits for one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// The gateway's node. Empty while an entry or a pair has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// The addresses that the outside sees, at most one of each family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Its node is Ready.
    #[serde(default)]
    pub ready: bool,
    /// How many of the policy's pods are assigned to it, those still without an address included.
    #[serde(default)]
    pub pods: u32,
    /// By what an entry of `egressGateways`, or a pair of `egressSourceIPs`, is known again: it follows from
    /// what it says, wherever it stands in the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its number in connection marks and in the tunnel header, 1 to 0x3fff. It stays for its life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u16>,
}

/// What a policy loses to another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LostTo {
    /// The policy that comes first.
    pub policy: String,
    /// For how many pods it does.
    pub pods: u32,
    /// The destinations that it takes, as `FIRST-LAST`, both included: at most 16.
    #[schemars(with = "Vec<String>", length(max = 16))]
    pub ranges: Vec<Interval>,
    /// How many more ranges there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_ranges: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

fn default_priority() -> i32 {
    100
}
