//! Admission of policies: every rule of the CRD refuses what it is there for, with the message that a user
//! sees, and what is right passes.

use std::collections::BTreeSet;

use egressnat_crds::{EgressNATPolicy, EgressPlan};
use kube::{Client, CustomResourceExt, Error, api::PostParams, core::Request};
use serde_json::{Value, json};

use super::support::*;

const NOT_A_CIDR: &str = "every entry must be a CIDR, such as 192.0.2.0/24 or 2001:db8::/32";
const HOST_BITS: &str = "a CIDR must not have host bits set: write 192.0.2.0/24, not 192.0.2.7/24";
const NOT_ADDRESSES: &str = "every entry must be an IPv4 or IPv6 address";
const TWO_OF_A_FAMILY: &str = "two addresses must be one of IPv4 and one of IPv6";
const ONE_ADDRESS: &str =
    "set exactly one of egressSourceIP, egressSourceIPs, egressGateway and egressGateways";
const ZONES_OF_NOTHING: &str = "zoneAffinity chooses among egressGateways: write the gateway as an entry of \
                                egressGateways, or leave zoneAffinity out";
const USELESS_ADDRESS: &str =
    "no destinationCIDR is of the family of egressSourceIP: the address could never be used";
const EMPTY_SELECTION: &str = "an entry needs at least one of podSelector, namespaceSelector and nodeSelector; \
                               write podSelector: {} for every pod";
const OPERATOR_VALUES: &str =
    "operators In and NotIn need at least one entry in values, Exists and DoesNotExist take none";

/// A spec that is refused: how it differs from [`good`] (null takes a field away), the field that the answer
/// names, without indexes, and the end of its message.
type Refused = (Value, &'static str, &'static str);

fn good() -> Value {
    json!({
        "selectors": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}}],
        "destinationCIDRs": ["192.0.2.0/24"],
        "egressSourceIP": "192.0.2.10",
    })
}

fn accepted() -> Vec<Value> {
    let gateway = |gateway: Value| json!({"egressSourceIP": null, "egressGateway": gateway});
    vec![
        json!({}),
        json!({"destinationCIDRs": null}),
        json!({"destinationCIDRs": ["0.0.0.0/0", "::/0"], "excludedCIDRs": ["10.0.0.0/8", "fd00::/8"]}),
        json!({"egressSourceIP": "2001:db8::a", "destinationCIDRs": ["192.0.2.0/24", "2001:db8::/32"]}),
        json!({"egressSourceIP": null, "egressSourceIPs": ["192.0.2.10"]}),
        json!({"egressSourceIP": null, "egressSourceIPs": ["2001:db8::a", "192.0.2.10"]}),
        gateway(json!({"nodeSelector": {"matchLabels": {"egress": "yes"}}})),
        gateway(json!({"nodeSelector": {}, "interface": "bond0.100"})),
        gateway(json!({"nodeSelector": {}, "egressIP": "192.0.2.10"})),
        gateway(json!({"nodeSelector": {}, "egressIPs": ["192.0.2.10", "2001:db8::a"]})),
        several(json!([{"nodeSelector": {}}]), "None"),
        several(
            json!([
                {"nodeSelector": {"matchLabels": {"egress": "a"}}, "interface": "eth1"},
                {"nodeSelector": {"matchLabels": {"egress": "b"}}, "egressIP": "192.0.2.10"},
                {"nodeSelector": {}, "egressIPs": ["192.0.2.11", "2001:db8::a"]},
            ]),
            "Require",
        ),
        several(entries(16), "Prefer"),
        json!({"zoneAffinity": "None"}),
        json!({"priority": -5, "noGateway": "NodeIP"}),
        json!({"selectors": [{"podSelector": {}}, {"namespaceSelector": {}, "nodeSelector": {}}]}),
        json!({"selectors": [{"podSelector": {"matchExpressions": [
            {"key": "app", "operator": "In", "values": ["a", "b"]},
            {"key": "example.com/tier", "operator": "NotIn", "values": [""]},
            {"key": "a", "operator": "Exists"},
            {"key": "b", "operator": "DoesNotExist", "values": []},
        ]}}]}),
    ]
}

fn several(gateways: Value, zone_affinity: &str) -> Value {
    json!({"egressSourceIP": null, "egressGateways": gateways, "zoneAffinity": zone_affinity})
}

fn entries(count: usize) -> Value {
    let entry = |n: usize| json!({"nodeSelector": {"matchLabels": {"egress": n.to_string()}}});
    (0..count).map(entry).collect()
}

/// One case at least for each CEL rule of the CRD; each breaks that rule alone.
fn against_rules() -> Vec<Refused> {
    [
        addresses(),
        destinations(),
        gateways(),
        several_gateways(),
        selectors(),
    ]
    .concat()
}

fn addresses() -> Vec<Refused> {
    let two = |ips: Value| json!({"egressSourceIP": null, "egressSourceIPs": ips});
    vec![
        (json!({"egressSourceIP": null}), "spec", ONE_ADDRESS),
        (json!({"egressSourceIPs": ["192.0.2.10"]}), "spec", ONE_ADDRESS),
        (
            json!({"egressGateway": {"nodeSelector": {}}}),
            "spec",
            ONE_ADDRESS,
        ),
        (
            json!({"destinationCIDRs": ["2001:db8::/32"]}),
            "spec",
            USELESS_ADDRESS,
        ),
        (
            json!({"egressSourceIP": "192.0.2.256"}),
            "spec.egressSourceIP",
            "egressSourceIP must be an IPv4 or IPv6 address",
        ),
        (
            two(json!(["192.0.2.10", "x"])),
            "spec.egressSourceIPs",
            NOT_ADDRESSES,
        ),
        (
            two(json!(["192.0.2.10", "192.0.2.11"])),
            "spec.egressSourceIPs",
            TWO_OF_A_FAMILY,
        ),
    ]
}

fn destinations() -> Vec<Refused> {
    let beside_a_good_one = |cidr: &str| json!({"destinationCIDRs": ["192.0.2.0/24", cidr]});
    vec![
        (
            beside_a_good_one("192.0.2.0/33"),
            "spec.destinationCIDRs",
            NOT_A_CIDR,
        ),
        (
            beside_a_good_one("192.0.2.7"),
            "spec.destinationCIDRs",
            NOT_A_CIDR,
        ),
        (
            beside_a_good_one("example.com"),
            "spec.destinationCIDRs",
            NOT_A_CIDR,
        ),
        (
            beside_a_good_one("198.51.100.7/24"),
            "spec.destinationCIDRs",
            HOST_BITS,
        ),
        (
            beside_a_good_one("2001:db8::1/32"),
            "spec.destinationCIDRs",
            HOST_BITS,
        ),
        (
            json!({"excludedCIDRs": ["300.0.0.0/8"]}),
            "spec.excludedCIDRs",
            NOT_A_CIDR,
        ),
        (
            json!({"excludedCIDRs": ["10.0.0.1/8"]}),
            "spec.excludedCIDRs",
            HOST_BITS,
        ),
    ]
}

fn gateways() -> Vec<Refused> {
    let gateway = |choice: Value| {
        let mut spec = json!({"egressSourceIP": null, "egressGateway": {"nodeSelector": {}}});
        merge(&mut spec["egressGateway"], &choice);
        spec
    };
    let bad_requirement = json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}});
    let both = json!({"interface": "eth1", "egressIP": "192.0.2.10"});
    vec![
        (
            gateway(both),
            "spec.egressGateway",
            "set at most one of interface, egressIP and egressIPs",
        ),
        (
            gateway(json!({"egressIP": "192.0.2"})),
            "spec.egressGateway.egressIP",
            "egressIP must be an IPv4 or IPv6 address",
        ),
        (
            gateway(json!({"egressIPs": ["::g"]})),
            "spec.egressGateway.egressIPs",
            NOT_ADDRESSES,
        ),
        (
            gateway(json!({"egressIPs": ["2001:db8::1", "2001:db8::2"]})),
            "spec.egressGateway.egressIPs",
            TWO_OF_A_FAMILY,
        ),
        (
            gateway(bad_requirement),
            "spec.egressGateway.nodeSelector.matchExpressions",
            OPERATOR_VALUES,
        ),
    ]
}

fn several_gateways() -> Vec<Refused> {
    // Beside a good one, so that each is seen wherever it stands.
    let gateways = |second: Value| {
        let mut gateway = json!({"nodeSelector": {}});
        merge(&mut gateway, &second);
        several(json!([{"nodeSelector": {}}, gateway]), "None")
    };
    let bad_requirement = json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "NotIn"}]}});
    vec![
        (
            json!({"egressGateways": [{"nodeSelector": {}}]}),
            "spec",
            ONE_ADDRESS,
        ),
        (
            json!({"egressSourceIP": null, "egressGateways": entries(2), "egressGateway": {"nodeSelector": {}}}),
            "spec",
            ONE_ADDRESS,
        ),
        (json!({"zoneAffinity": "Prefer"}), "spec", ZONES_OF_NOTHING),
        (
            gateways(json!({"interface": "eth1", "egressIP": "192.0.2.10"})),
            "spec.egressGateways",
            "set at most one of interface, egressIP and egressIPs",
        ),
        (
            gateways(json!({"egressIP": "192.0.2"})),
            "spec.egressGateways.egressIP",
            "egressIP must be an IPv4 or IPv6 address",
        ),
        (
            gateways(json!({"egressIPs": ["::g"]})),
            "spec.egressGateways.egressIPs",
            NOT_ADDRESSES,
        ),
        (
            gateways(json!({"egressIPs": ["192.0.2.10", "192.0.2.11"]})),
            "spec.egressGateways.egressIPs",
            TWO_OF_A_FAMILY,
        ),
        (
            gateways(bad_requirement),
            "spec.egressGateways.nodeSelector.matchExpressions",
            OPERATOR_VALUES,
        ),
    ]
}

fn selectors() -> Vec<Refused> {
    let requirement = |selector: &str, requirement: Value| json!({"selectors": [{"podSelector": {}}, {selector: {"matchExpressions": [requirement]}}]});
    let without_values = json!({"key": "app", "operator": "NotIn", "values": []});
    let with_values = json!({"key": "app", "operator": "Exists", "values": ["a"]});
    let pods = "spec.selectors.podSelector.matchExpressions";
    let namespaces = "spec.selectors.namespaceSelector.matchExpressions";
    let nodes = "spec.selectors.nodeSelector.matchExpressions";
    vec![
        (json!({"selectors": [{}]}), "spec.selectors", EMPTY_SELECTION),
        (
            requirement("podSelector", without_values.clone()),
            pods,
            OPERATOR_VALUES,
        ),
        (requirement("podSelector", with_values), pods, OPERATOR_VALUES),
        (
            requirement("namespaceSelector", without_values.clone()),
            namespaces,
            OPERATOR_VALUES,
        ),
        (
            requirement("nodeSelector", without_values),
            nodes,
            OPERATOR_VALUES,
        ),
    ]
}

/// What the schema's types and bounds refuse.
fn against_the_schema() -> Vec<Refused> {
    let cidrs: Vec<String> = (0..257)
        .map(|n| format!("10.{}.{}.0/24", n / 256, n % 256))
        .collect();
    let requirement = json!({"matchExpressions": [{"key": "a", "operator": "Equals", "values": ["b"]}]});
    let gateway = json!({"nodeSelector": {}, "interface": "a-name-too-long-for-linux"});
    vec![
        (json!({"selectors": null}), "spec.selectors", "Required value"),
        (
            json!({"selectors": []}),
            "spec.selectors",
            "should have at least 1 items",
        ),
        (
            json!({"destinationCIDRs": [], "egressSourceIP": null, "egressGateway": {"nodeSelector": {}}}),
            "spec.destinationCIDRs",
            "should have at least 1 items",
        ),
        (
            json!({"destinationCIDRs": cidrs}),
            "spec.destinationCIDRs",
            "must have at most 256 items",
        ),
        (
            json!({"priority": 1_000_001}),
            "spec.priority",
            "should be less than or equal to 1000000",
        ),
        (
            json!({"priority": "high"}),
            "spec.priority",
            "must be of type integer: \"string\"",
        ),
        (
            json!({"noGateway": "Forward"}),
            "spec.noGateway",
            "supported values: \"Drop\", \"NodeIP\"",
        ),
        (
            several(json!([]), "None"),
            "spec.egressGateways",
            "should have at least 1 items",
        ),
        (
            several(entries(17), "None"),
            "spec.egressGateways",
            "must have at most 16 items",
        ),
        (
            several(entries(2), "Always"),
            "spec.zoneAffinity",
            "supported values: \"None\", \"Prefer\", \"Require\"",
        ),
        (
            json!({"selectors": [{"podSelector": requirement}]}),
            "spec.selectors.podSelector.matchExpressions.operator",
            "supported values: \"In\", \"NotIn\", \"Exists\", \"DoesNotExist\"",
        ),
        (
            json!({"egressSourceIP": null, "egressGateway": gateway}),
            "spec.egressGateway.interface",
            "may not be more than 15 bytes",
        ),
    ]
}

#[tokio::test]
async fn what_is_right_is_accepted() {
    let client = shared().admin().await;
    for change in accepted() {
        if let Err(error) = create(&client, &changed(&change)).await {
            panic!("{change} was refused: {error}");
        }
    }
}

#[tokio::test]
async fn every_rule_refuses_what_breaks_it_and_says_why() {
    let client = shared().admin().await;
    for (change, field, message) in against_rules().into_iter().chain(against_the_schema()) {
        let causes = refusal(&client, &changed(&change)).await;
        let [(named, text)] = causes.as_slice() else {
            panic!("{change} should break one rule, not: {causes:#?}");
        };
        assert_eq!(named, field, "{change}: {text}");
        assert!(
            text.ends_with(message),
            "{change}: {text:?} should end with {message:?}"
        );
    }
}

#[test]
fn no_rule_is_without_a_case() {
    let crds = [EgressNATPolicy::crd(), EgressPlan::crd()];
    let rules: BTreeSet<_> = crds.iter().flat_map(|crd| rules_of(&json!(crd))).collect();
    let tried: BTreeSet<_> = against_rules()
        .into_iter()
        .map(|(_, field, message)| (field.to_owned(), message.to_owned()))
        .collect();
    assert!(
        rules.len() >= 23,
        "the walk over the schema found {} rules only",
        rules.len()
    );
    assert_eq!(
        rules, tried,
        "rules of the CRDs (left), rules that a case breaks (right)"
    );
}

#[tokio::test]
async fn an_unknown_field_is_refused() {
    let client = shared().admin().await;
    for (change, name) in [
        (
            json!({"destinationCIDR": ["192.0.2.0/24"]}),
            "spec.destinationCIDR",
        ),
        (json!({"egressGatways": []}), "spec.egressGatways"),
        (
            json!({"selectors": [{"podSelector": {"app": "a"}}]}),
            "spec.selectors[0].podSelector.app",
        ),
    ] {
        let answer = create(&client, &changed(&change)).await;
        let Err(Error::Api(status)) = answer else {
            panic!("{change} was accepted")
        };
        assert_eq!(status.code, 400, "{change}: {}", status.message);
        assert!(
            status.message.contains(&format!("unknown field \"{name}\"")),
            "{change}: {}",
            status.message
        );
    }
}

#[tokio::test]
async fn defaults_are_filled_in() {
    let made = create(&shared().admin().await, &good()).await.unwrap();
    assert_eq!(made["spec"]["priority"], 100);
    assert_eq!(made["spec"]["noGateway"], "Drop");
    assert_eq!(made["spec"]["zoneAffinity"], "None");
}

/// Creates a policy as `kubectl create --dry-run=server` does, unknown fields refused.
async fn create(client: &Client, spec: &Value) -> Result<Value, Error> {
    let policy = json!({
        "apiVersion": "egressnat.io/v1alpha1",
        "kind": "EgressNATPolicy",
        "metadata": {"name": "case"},
        "spec": spec,
    });
    let dry_run = PostParams {
        dry_run: true,
        ..Default::default()
    };
    let body = policy.to_string().into_bytes();
    let mut request = Request::new("/apis/egressnat.io/v1alpha1/egressnatpolicies")
        .create(&dry_run, body)
        .unwrap();
    *request.uri_mut() = format!("{}&fieldValidation=Strict", request.uri())
        .parse()
        .unwrap();
    client.request(request).await
}

/// The fields and messages with which a spec is refused.
async fn refusal(client: &Client, spec: &Value) -> Vec<(String, String)> {
    let Err(Error::Api(status)) = create(client, spec).await else {
        panic!("accepted: {spec}")
    };
    assert_eq!(status.code, 422, "{spec}: {}", status.message);
    let causes = status.details.unwrap().causes.into_iter();
    // Where the schema refuses, the API server adds that it did not come to the rules.
    let causes = causes.filter(|cause| !cause.message.contains("some validation rules were not checked"));
    causes
        .map(|cause| (without_indexes(&cause.field), cause.message))
        .collect()
}

fn changed(change: &Value) -> Value {
    let mut spec = good();
    merge(&mut spec, change);
    spec
}

/// JSON merge of the first level: null takes a field away.
fn merge(target: &mut Value, change: &Value) {
    let target = target.as_object_mut().unwrap();
    for (name, value) in change.as_object().unwrap() {
        if value.is_null() {
            target.remove(name);
        } else {
            target.insert(name.clone(), value.clone());
        }
    }
}

/// `spec.selectors[0].podSelector` as `spec.selectors.podSelector`.
fn without_indexes(field: &str) -> String {
    field
        .split('[')
        .map(|part| part.split_once(']').map_or(part, |(_, rest)| rest))
        .collect()
}

/// The CEL rules of a CRD: the field that each stands beside, without indexes, and its message.
fn rules_of(crd: &Value) -> Vec<(String, String)> {
    let mut rules = Vec::new();
    for version in crd["spec"]["versions"].as_array().unwrap() {
        collect_rules(&version["schema"]["openAPIV3Schema"], String::new(), &mut rules);
    }
    rules
}

fn collect_rules(schema: &Value, field: String, rules: &mut Vec<(String, String)>) {
    for rule in schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        rules.push((field.clone(), rule["message"].as_str().unwrap().to_owned()));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let dot = if field.is_empty() { "" } else { "." };
        collect_rules(property, format!("{field}{dot}{name}"), rules);
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            collect_rules(&schema[inner], field.clone(), rules);
        }
    }
}
