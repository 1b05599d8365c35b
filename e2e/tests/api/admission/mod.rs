//! Admission of policies: every rule of the CRD refuses what it is there for, with the message that a user
//! sees, and what is right passes.

mod addresses;
mod changes;
mod destinations;
mod gateways;
mod schema;
mod selectors;

use std::collections::BTreeSet;

use egressnat_crds::{EgressNATPolicy, EgressPlan};
use kube::{Client, CustomResourceExt, Error, api::PostParams, core::Request};
use serde_json::{Value, json};

use super::support::*;

const NOT_ADDRESSES: &str = "every entry must be an IPv4 or IPv6 address";
const TWO_OF_A_FAMILY: &str = "two addresses must be one of IPv4 and one of IPv6";
const NO_SOURCE: &str = "write an address by which the outside can answer: none that is loopback, link-local, multicast, \
                         broadcast or unspecified";
const NO_SOURCES: &str = "write addresses by which the outside can answer: none that is loopback, link-local, multicast, \
                          broadcast or unspecified";
/// Addresses that packets to the outside cannot have.
const UNUSABLE: [&str; 10] = [
    "127.0.0.1",
    "::1",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
    "169.254.0.1",
    "fe80::1",
    "255.255.255.255",
    "239.255.255.250",
];
const ONE_ADDRESS: &str =
    "set exactly one of egressSourceIP, egressSourceIPs, egressGateway and egressGateways";
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
    [
        addresses::accepted(),
        destinations::accepted(),
        gateways::accepted(),
        selectors::accepted(),
        schema::accepted(),
    ]
    .concat()
}

/// One case at least for each CEL rule of the CRD; each breaks that rule alone.
fn against_rules() -> Vec<Refused> {
    [
        addresses::refused(),
        destinations::refused(),
        gateways::refused(),
        selectors::refused(),
    ]
    .concat()
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
    for (change, field, message) in against_rules().into_iter().chain(schema::refused()) {
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
        .chain(changes::refused())
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
