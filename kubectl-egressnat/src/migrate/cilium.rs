//! CiliumEgressNATPolicy and CiliumEgressGatewayPolicy.

use egressnat_crds::policy::{EgressGateway, PodSelection};
use egressnat_crds::selector::LabelSelector;
use serde::Deserialize;

use super::Object;
use super::draft::{Draft, given};
use super::labels;
use super::spidernet::Gateways;

const OVERLAP: &str = "the longest prefix among their destinations decides. Give narrower \
                       destinations the higher priority.";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NatSpec {
    #[serde(default)]
    egress: Vec<Rule>,
    #[serde(default, rename = "destinationCIDRs")]
    destination_cidrs: Vec<String>,
    #[serde(rename = "egressSourceIP")]
    egress_source_ip: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GatewaySpec {
    #[serde(default)]
    selectors: Vec<Rule>,
    #[serde(default, rename = "destinationCIDRs")]
    destination_cidrs: Vec<String>,
    #[serde(default, rename = "excludedCIDRs")]
    excluded_cidrs: Vec<String>,
    egress_gateway: Option<Gateway>,
    #[serde(default)]
    egress_gateways: Vec<Gateway>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    pod_selector: Option<LabelSelector>,
    namespace_selector: Option<LabelSelector>,
    node_selector: Option<LabelSelector>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Gateway {
    node_selector: Option<LabelSelector>,
    interface: Option<String>,
    #[serde(rename = "egressIP")]
    egress_ip: Option<String>,
}

pub(super) fn nat_policy(object: &Object, _: &Gateways, draft: &mut Draft) {
    let Some(spec) = object.read::<NatSpec>(draft) else {
        return;
    };
    draft.priority(100, OVERLAP);
    selectors("egress", spec.egress, draft);
    destinations(&spec.destination_cidrs, draft);
    draft.fail_closed();
    draft.addresses("egressSourceIP", &[spec.egress_source_ip]);
}

pub(super) fn gateway_policy(object: &Object, _: &Gateways, draft: &mut Draft) {
    let Some(spec) = object.read::<GatewaySpec>(draft) else {
        return;
    };
    draft.priority(100, OVERLAP);
    selectors("selectors", spec.selectors, draft);
    destinations(&spec.destination_cidrs, draft);
    excluded(&spec.excluded_cidrs, draft);
    match (spec.egress_gateway, spec.egress_gateways) {
        (Some(one), several) if several.is_empty() => only_gateway(&one, draft),
        (None, several) if !several.is_empty() => several_gateways(&several, draft),
        (None, _) => draft.refuse("egressGateway", "missing", "name the gateway"),
        (Some(_), _) => draft.refuse(
            "egressGateway",
            "stands beside egressGateways",
            "leave out the one that is not meant: they are never used together here",
        ),
    }
}

fn selectors(field: &str, rules: Vec<Rule>, draft: &mut Draft) {
    let by_node = rules.iter().any(|r| r.node_selector.is_some());
    if by_node && rules.len() > 1 {
        draft.comment(
            "selectors",
            "A nodeSelector belongs to its own entry here; there, any entry's pods on any entry's nodes are \
             selected.",
        );
    }
    draft.comment(
        "selectors",
        "Every label of a pod counts here; there, only those that Cilium makes identities of.",
    );
    let mut entries = Vec::with_capacity(rules.len());
    for (i, rule) in rules.into_iter().enumerate() {
        let field = format!("{field}[{i}]");
        if rule.pod_selector.is_none() && rule.namespace_selector.is_none() {
            let problem = "selects no pods there without podSelector or namespaceSelector";
            draft.refuse(
                &field,
                problem,
                "write podSelector: {} if every pod is meant, or remove the entry",
            );
            continue;
        }
        let entry = PodSelection {
            pod_selector: rule.pod_selector,
            namespace_selector: rule.namespace_selector,
            node_selector: rule.node_selector,
        };
        entries.push(labels::rewrite(&field, entry, draft));
    }
    draft.set("selectors", &entries);
}

fn destinations(cidrs: &[String], draft: &mut Draft) {
    if cidrs.is_empty() {
        let problem = "empty, which means no destination there and every destination here";
        draft.refuse(
            "destinationCIDRs",
            problem,
            "write 0.0.0.0/0 or ::/0 if everything is meant",
        );
    }
    draft.cidrs("destinationCIDRs", cidrs);
}

fn excluded(cidrs: &[String], draft: &mut Draft) {
    if !cidrs.is_empty() {
        draft.comment(
            "excludedCIDRs",
            "Excluded from this policy only: the pod's next policy still applies there. For Cilium, an \
             exclusion also keeps every policy with a shorter prefix away.",
        );
    }
    draft.cidrs("excludedCIDRs", cidrs);
}

fn only_gateway(theirs: &Gateway, draft: &mut Draft) {
    let Some(gateway) = gateway("egressGateway", theirs, draft) else {
        return;
    };
    draft.comment("egressGateway", which_node(&gateway));
    draft.families(gateway.egress_ip.as_slice());
    draft.set("egressGateway", &gateway);
}

fn several_gateways(theirs: &[Gateway], draft: &mut Draft) {
    let field = |i: usize| format!("egressGateways[{i}]");
    let gateways = theirs.iter().enumerate();
    let gateways: Vec<EgressGateway> = gateways
        .filter_map(|(i, g)| gateway(&field(i), g, draft))
        .collect();
    draft.comment(
        "egressGateways",
        "A pod keeps one of the gateways that are ready, by its uid, as there. Here a gateway that comes or \
         goes moves only its own share of the pods; there, all may move.",
    );
    let addresses: Option<Vec<String>> = gateways.iter().map(|g| g.egress_ip.clone()).collect();
    draft.families(&addresses.unwrap_or_default());
    draft.set("egressGateways", &gateways);
}

fn gateway(field: &str, theirs: &Gateway, draft: &mut Draft) -> Option<EgressGateway> {
    let Some(node_selector) = theirs.node_selector.clone() else {
        draft.refuse(
            format!("{field}.nodeSelector"),
            "missing",
            "write {} if any node may be the gateway",
        );
        return None;
    };
    Some(EgressGateway {
        node_selector,
        interface: given(theirs.interface.as_ref()).cloned(),
        egress_ip: given(theirs.egress_ip.as_ref()).cloned(),
        ..EgressGateway::default()
    })
}

fn which_node(gateway: &EgressGateway) -> &'static str {
    match gateway.egress_ip {
        Some(_) => {
            "Of the nodes selected, the one that holds the address is the gateway; there, it is the first by \
             name, whether it holds the address or not."
        }
        None => {
            "One of the nodes selected that are ready is the gateway, and it stays while it can; there, it is \
             the first by name."
        }
    }
}
