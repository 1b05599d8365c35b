//! EgressPolicy and EgressClusterPolicy of spidernet's egressgateway, with the EgressGateways they name.

use std::collections::BTreeMap;

use egressnat_crds::policy::{EgressGateway, PodSelection};
use egressnat_crds::selector::LabelSelector;
use serde::Deserialize;

use super::draft::{Draft, given};
use super::labels::NAMESPACE_NAME;
use super::{Object, without_nulls};
use crate::documents::Document;

/// The API group.
pub(super) const GROUP: &str = "egressgateway.spidernet.io";
/// The kind that says which nodes are meant.
pub(super) const GATEWAY: &str = "EgressGateway";

/// The priorities of objects without one, by the project's design: an EgressPolicy's and that of an
/// EgressClusterPolicy.
const DEFAULT_PRIORITIES: [u32; 2] = [1000, 32768];
/// The largest number that can be turned into a priority here.
const LARGEST_PRIORITY: u32 = 1_000_000;

/// The EgressGateways of the input, by name.
#[derive(Default)]
pub(super) struct Gateways(BTreeMap<String, GatewaySpec>);

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct GatewaySpec {
    ippools: Pools,
    node_selector: NodeSelector,
    cluster_default: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeSelector {
    selector: Option<LabelSelector>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Pools {
    #[serde(rename = "ipv4DefaultEIP")]
    ipv4: Option<String>,
    #[serde(rename = "ipv6DefaultEIP")]
    ipv6: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    egress_gateway_name: Option<String>,
    #[serde(default, rename = "egressIP")]
    egress_ip: EgressIp,
    #[serde(default)]
    applied_to: AppliedTo,
    #[serde(default)]
    dest_subnet: Vec<String>,
    priority: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EgressIp {
    ipv4: Option<String>,
    ipv6: Option<String>,
    #[serde(default, rename = "useNodeIP")]
    use_node_ip: bool,
    allocator_policy: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AppliedTo {
    pod_selector: Option<LabelSelector>,
    #[serde(default)]
    pod_subnet: Vec<String>,
    namespace_selector: Option<LabelSelector>,
}

impl Gateways {
    /// Those of the documents. One that cannot be read is as good as missing: policies that need it say so.
    pub fn among(documents: &[Document]) -> Self {
        let ours = |d: &&Document| {
            let version = d.object["apiVersion"].as_str().unwrap_or_default();
            d.object["kind"] == GATEWAY && version.split('/').next() == Some(GROUP)
        };
        let named = documents.iter().filter(ours).filter_map(|d| {
            let name = d.object["metadata"]["name"].as_str()?.to_owned();
            let spec = GatewaySpec::deserialize(without_nulls(&d.object["spec"])).ok()?;
            Some((name, spec))
        });
        Self(named.collect())
    }

    /// The one that a policy names, or the cluster's default.
    fn find(&self, name: Option<&String>) -> Option<&GatewaySpec> {
        match name {
            Some(name) => self.0.get(name),
            None => self.0.values().find(|g| g.cluster_default),
        }
    }
}

pub(super) fn policy(object: &Object, gateways: &Gateways, draft: &mut Draft) {
    let Some(spec) = object.read::<Spec>(draft) else {
        return;
    };
    priority(object, &spec, draft);
    selectors(object, &spec.applied_to, draft);
    destinations(&spec.dest_subnet, draft);
    draft.fail_closed();
    let gateway = gateways.find(given(spec.egress_gateway_name.as_ref()));
    let named = given(spec.egress_ip.ipv4.as_ref()).or(given(spec.egress_ip.ipv6.as_ref()));
    match (spec.egress_ip.use_node_ip, named) {
        (true, Some(_)) => draft.refuse("egressIP", "an address and useNodeIP", "leave out one of them"),
        (true, None) => node_address(&spec, gateway, draft),
        (false, _) => own_address(object, &spec, gateway, draft),
    }
}

fn priority(object: &Object, spec: &Spec, draft: &mut Draft) {
    let [namespaced, cluster] = DEFAULT_PRIORITIES;
    let default = if object.namespace.is_some() {
        namespaced
    } else {
        cluster
    };
    let theirs = spec.priority.unwrap_or(default);
    if theirs > LARGEST_PRIORITY {
        let problem = format!("{theirs} is more than {LARGEST_PRIORITY}");
        draft.refuse("priority", problem, "renumber the policies");
    }
    draft.priority(
        -i64::from(theirs),
        &format!(
            "by its design, the smaller number wins and {default} stands for none, though its agents do not \
             read it. It was {theirs}: turned round."
        ),
    );
}

fn selectors(object: &Object, applied_to: &AppliedTo, draft: &mut Draft) {
    if !applied_to.pod_subnet.is_empty() {
        let instead = "select the pods by a label: podSelector";
        return draft.refuse("appliedTo.podSubnet", "pods are not selected by address", instead);
    }
    let Some(pods) = applied_to
        .pod_selector
        .clone()
        .filter(|s| *s != LabelSelector::default())
    else {
        let problem = "empty, which is refused there";
        return draft.refuse(
            "appliedTo.podSelector",
            problem,
            "write the policy by hand if every pod is meant",
        );
    };
    let mut namespaces = applied_to.namespace_selector.clone();
    if let Some(namespace) = object.namespace {
        let name = [(NAMESPACE_NAME.to_owned(), namespace.to_owned())];
        namespaces = Some(LabelSelector {
            match_labels: name.into(),
            ..LabelSelector::default()
        });
        let text = "Policies are for the whole cluster here: the namespace is part of the name, and selected \
                    under selectors.";
        draft.comment("metadata", text);
    }
    let entry = PodSelection {
        pod_selector: Some(pods),
        namespace_selector: namespaces,
        node_selector: None,
    };
    draft.set("selectors", &[entry]);
}

fn destinations(cidrs: &[String], draft: &mut Draft) {
    let text = match cidrs {
        [] => {
            "destinationCIDRs is left out, as destSubnet was: everything outside the cluster, which is found \
             out here, whatever EgressClusterInfo says."
        }
        _ => "Pods, Services and nodes are never captured here, even inside these ranges; there, they are.",
    };
    draft.comment("destinationCIDRs", text);
    draft.cidrs("destinationCIDRs", cidrs);
}

/// The gateway's own address.
fn node_address(spec: &Spec, gateway: Option<&GatewaySpec>, draft: &mut Draft) {
    let Some(node_selector) = gateway.and_then(|g| g.node_selector.selector.clone()) else {
        let name = given(spec.egress_gateway_name.as_ref()).map_or("the default one", String::as_str);
        let instead = "add it: its nodeSelector says which nodes may be the gateway";
        return draft.refuse(
            "egressGatewayName",
            format!("EgressGateway {name} is not in the input, or selects no nodes"),
            instead,
        );
    };
    let text = "The address is that of the interface of the gateway's default route, for each family.";
    draft.comment("egressGateway", text);
    let gateway = EgressGateway {
        node_selector,
        ..EgressGateway::default()
    };
    draft.set("egressGateway", &gateway);
}

/// An address of the EgressGateway's pool.
fn own_address(object: &Object, spec: &Spec, gateway: Option<&GatewaySpec>, draft: &mut Draft) {
    let (addresses, origin) = addresses(object, &spec.egress_ip, gateway);
    if addresses.is_empty() {
        let instead = "write the address that kubectl get shows in egressIP.ipv4 or .ipv6, or give the object \
                       with its status: policies have no pools";
        return draft.refuse("egressIP", "the address is left to the pool", instead);
    }
    let selector = gateway.and_then(|g| g.node_selector.selector.clone());
    let field = match (&selector, addresses.len()) {
        (Some(_), _) => "egressGateway",
        (None, 1) => "egressSourceIP",
        (None, _) => "egressSourceIPs",
    };
    draft.comment(
        field,
        "EgressGateway puts the address on one of its nodes and moves it when the node fails; here, give it \
         to a node by other means: the gateway is the node that has it.",
    );
    if let Some(origin) = origin {
        draft.comment(field, origin);
    }
    let Some(node_selector) = selector else {
        draft.comment(
            field,
            "The EgressGateway is not in the input: its nodeSelector is left out.",
        );
        return draft.addresses("egressIP", &addresses);
    };
    draft.families(&addresses);
    let gateway = match addresses.as_slice() {
        [one] => EgressGateway {
            node_selector,
            egress_ip: Some(one.clone()),
            ..EgressGateway::default()
        },
        _ => EgressGateway {
            node_selector,
            egress_ips: addresses,
            ..EgressGateway::default()
        },
    };
    draft.set(field, &gateway);
}

/// The addresses, one of each family at most, and where they come from if not from the spec alone.
fn addresses(
    object: &Object,
    wanted: &EgressIp,
    gateway: Option<&GatewaySpec>,
) -> (Vec<String>, Option<&'static str>) {
    let in_spec = [&wanted.ipv4, &wanted.ipv6].map(|a| given(a.as_ref()).cloned());
    let in_status = ["ipv4", "ipv6"].map(|f| object.status["eip"][f].as_str().map(str::to_owned));
    let in_status = in_status.map(|a| given(a.as_ref()).cloned());
    let [v4, v6] = &in_spec;
    let [v4_now, v6_now] = &in_status;
    let both = [v4.clone().or(v4_now.clone()), v6.clone().or(v6_now.clone())];
    if both.iter().any(Option::is_some) {
        let text = "By the object's status, the address that it has now.";
        let origin = (both != in_spec).then_some(text);
        return (both.into_iter().flatten().collect(), origin);
    }
    let by_default = given(wanted.allocator_policy.as_ref()).is_none_or(|p| p == "default");
    let pools = gateway.map(|g| &g.ippools).filter(|_| by_default);
    let default = pools.map(|p| [&p.ipv4, &p.ipv6].map(|a| given(a.as_ref()).cloned()));
    let text = "The default address of the EgressGateway, as allocatorPolicy says.";
    (default.into_iter().flatten().flatten().collect(), Some(text))
}
