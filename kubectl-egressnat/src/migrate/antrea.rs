//! Egress of Antrea.

use egressnat_crds::policy::PodSelection;
use egressnat_crds::selector::LabelSelector;
use serde::Deserialize;
use serde_json::Value;

use super::Object;
use super::draft::{Draft, given};
use super::spidernet::Gateways;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    #[serde(default)]
    applied_to: AppliedTo,
    #[serde(rename = "egressIP")]
    egress_ip: Option<String>,
    #[serde(default, rename = "egressIPs")]
    egress_ips: Vec<String>,
    #[serde(rename = "externalIPPool")]
    external_ip_pool: Option<String>,
    #[serde(default, rename = "externalIPPools")]
    external_ip_pools: Vec<String>,
    bandwidth: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AppliedTo {
    pod_selector: Option<LabelSelector>,
    namespace_selector: Option<LabelSelector>,
}

pub(super) fn egress(object: &Object, _: &Gateways, draft: &mut Draft) {
    let Some(spec) = object.read::<Spec>(draft) else {
        return;
    };
    draft.priority(100, "one of the Egresses is taken at random.");
    if spec.bandwidth.is_some() {
        let instead = "remove it, and limit the rate by the pods' kubernetes.io/egress-bandwidth annotation \
                       where the CNI has it";
        draft.refuse("bandwidth", "no policy limits bandwidth", instead);
    }
    selectors(&spec.applied_to, draft);
    draft.every_destination();
    draft.fail_closed();
    addresses(object, &spec, draft);
}

fn selectors(applied_to: &AppliedTo, draft: &mut Draft) {
    if applied_to.pod_selector.is_none() && applied_to.namespace_selector.is_none() {
        let instead = "write podSelector: {} if every pod is meant";
        return draft.refuse("appliedTo", "empty, which selects nothing there", instead);
    }
    let entry = PodSelection {
        pod_selector: applied_to.pod_selector.clone(),
        namespace_selector: applied_to.namespace_selector.clone(),
        node_selector: None,
    };
    draft.set("selectors", &[entry]);
}

fn addresses(object: &Object, spec: &Spec, draft: &mut Draft) {
    let pools: Vec<&String> = spec
        .external_ip_pools
        .iter()
        .chain(&spec.external_ip_pool)
        .collect();
    let named = spec.egress_ips.iter().chain(&spec.egress_ip);
    let mut addresses: Vec<String> = named.filter(|a| !a.is_empty()).cloned().collect();
    let assigned = object.status["egressIP"].as_str().filter(|a| !a.is_empty());
    let field = if addresses.len() > 1 {
        "egressSourceIPs"
    } else {
        "egressSourceIP"
    };
    if let (true, Some(assigned)) = (addresses.is_empty(), assigned) {
        draft.comment(
            field,
            "The address that the object has been given from its pool, by its status.",
        );
        addresses.push(assigned.to_owned());
    }
    let unnamed = addresses.is_empty() || spec.egress_ips.iter().any(|a| given(Some(a)).is_none());
    if unnamed {
        let instead = "write the address that kubectl get egress shows in egressIP: policies have no pools";
        let field = if spec.egress_ips.is_empty() {
            "egressIP"
        } else {
            "egressIPs"
        };
        return draft.refuse(field, "an address is left to a pool", instead);
    }
    if let Some(pool) = pools.first() {
        draft.comment(
            field,
            format!(
                "Antrea puts the address on a node of ExternalIPPool {pool} and moves it when the node fails; \
                 here, give it to a node by other means: the gateway is the node that has it."
            ),
        );
    }
    draft.addresses(field_of(spec), &addresses);
}

fn field_of(spec: &Spec) -> &'static str {
    if spec.egress_ips.is_empty() {
        "egressIP"
    } else {
        "egressIPs"
    }
}
