//! EgressIP of OVN-Kubernetes.

use egressnat_crds::policy::{EgressGateway, PodSelection};
use egressnat_crds::selector::{LabelSelector, Operator, Requirement};
use serde::Deserialize;

use super::Object;
use super::draft::{Draft, is_v6};
use super::spidernet::Gateways;

/// The label of the nodes to which OVN-Kubernetes gives egress addresses.
const ASSIGNABLE: &str = "k8s.ovn.org/egress-assignable";

/// How many `egressGateways` the API takes.
const MOST_GATEWAYS: usize = 16;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    #[serde(default, rename = "egressIPs")]
    egress_ips: Vec<String>,
    namespace_selector: LabelSelector,
    #[serde(default)]
    pod_selector: LabelSelector,
}

pub(super) fn egress_ip(object: &Object, _: &Gateways, draft: &mut Draft) {
    let Some(spec) = object.read::<Spec>(draft) else {
        return;
    };
    draft.priority(100, "one of the EgressIPs applies, and no field says which.");
    let entry = PodSelection {
        pod_selector: Some(spec.pod_selector),
        namespace_selector: Some(spec.namespace_selector),
        node_selector: None,
    };
    draft.set("selectors", &[entry]);
    draft.every_destination();
    draft.fail_closed();
    let several = spec.egress_ips.len() > 1
        && spec
            .egress_ips
            .iter()
            .all(|a| is_v6(a) == is_v6(&spec.egress_ips[0]));
    match spec.egress_ips.as_slice() {
        [] => draft.refuse("egressIPs", "empty", "name the addresses"),
        addresses if several => of_several_nodes(addresses, draft),
        addresses => of_one_node(addresses, draft),
    }
}

fn of_one_node(addresses: &[String], draft: &mut Draft) {
    let field = if addresses.len() == 1 {
        "egressSourceIP"
    } else {
        "egressSourceIPs"
    };
    draft.comment(field, held(field));
    if addresses.len() == 2 {
        draft.comment(
            field,
            "One node must hold both here; there, each may be on a node of its own.",
        );
    }
    draft.addresses("egressIPs", addresses);
}

fn of_several_nodes(addresses: &[String], draft: &mut Draft) {
    if addresses.len() > MOST_GATEWAYS {
        let problem = format!(
            "{} addresses, of which {MOST_GATEWAYS} can be said",
            addresses.len()
        );
        return draft.refuse("egressIPs", problem, "split the pods between several policies");
    }
    let field = "egressGateways";
    draft.comment(field, held(field));
    draft.comment(
        field,
        "A pod keeps one of the addresses, by its uid, while a node holds it; there, each of its connections \
         may have another one of them.",
    );
    let node_selector = LabelSelector {
        match_expressions: vec![Requirement {
            key: ASSIGNABLE.into(),
            operator: Operator::Exists,
            values: Vec::new(),
        }],
        ..LabelSelector::default()
    };
    let gateways = addresses.iter().map(|address| EgressGateway {
        node_selector: node_selector.clone(),
        egress_ip: Some(address.clone()),
        ..EgressGateway::default()
    });
    draft.set(field, &gateways.collect::<Vec<_>>());
    draft.families(addresses);
}

/// Who puts the addresses where.
fn held(field: &str) -> String {
    let (it, is) = match field {
        "egressSourceIP" => ("the address", "it"),
        _ => ("the addresses", "them"),
    };
    format!(
        "OVN-Kubernetes puts {it} on nodes with label {ASSIGNABLE} and moves {is} when a node fails; here, \
         give {is} to nodes by other means: the gateway is the node that has {is}."
    )
}
