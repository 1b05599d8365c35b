//! `kubectl egressnat migrate`: policies of other gateways, from files and from the cluster.

use std::{collections::BTreeMap, fs, sync::OnceLock};

use egressnat_e2e::site::Site;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Plugin;
use crate::support::*;

#[test]
fn a_policy_that_cannot_be_said_here_is_refused() {
    let egress = json!({"apiVersion": "crd.antrea.io/v1beta1", "kind": "Egress", "metadata": {"name": "none"}, "spec": {}});
    let said = Plugin::of(shared()).says_of(&["migrate", "-"], &egress.to_string());
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    assert!(said.err.contains("refused: "), "{}", said.err);
}

/// The kinds of other gateways, as their projects name them: group, version, kind, plural, scope.
const FOREIGN: [[&str; 5]; 7] = [
    [
        "cilium.io",
        "v2alpha1",
        "CiliumEgressNATPolicy",
        "ciliumegressnatpolicies",
        "Cluster",
    ],
    [
        "cilium.io",
        "v2",
        "CiliumEgressGatewayPolicy",
        "ciliumegressgatewaypolicies",
        "Cluster",
    ],
    ["crd.antrea.io", "v1beta1", "Egress", "egresses", "Cluster"],
    ["k8s.ovn.org", "v1", "EgressIP", "egressips", "Cluster"],
    [
        "egressgateway.spidernet.io",
        "v1beta1",
        "EgressPolicy",
        "egresspolicies",
        "Namespaced",
    ],
    [
        "egressgateway.spidernet.io",
        "v1beta1",
        "EgressClusterPolicy",
        "egressclusterpolicies",
        "Cluster",
    ],
    [
        "egressgateway.spidernet.io",
        "v1beta1",
        "EgressGateway",
        "egressgateways",
        "Cluster",
    ],
];

/// Their CustomResourceDefinitions, without schemas. Removed when dropped.
struct Foreign;

impl Foreign {
    fn install() -> Self {
        let foreign = Self;
        for [group, version, kind, plural, scope] in FOREIGN {
            let crd = json!({
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": format!("{plural}.{group}")},
                "spec": {
                    "group": group,
                    "scope": scope,
                    "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                    "versions": [{
                        "name": version,
                        "served": true,
                        "storage": true,
                        "schema": {
                            "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                        },
                    }],
                },
            });
            shared().kubectl(&["apply", "-f", "-"], &crd.to_string());
        }
        let names = Self::names();
        let established = ["wait", "--for=condition=Established", "--timeout=60s"];
        shared().kubectl(&[&established[..], &names].concat(), "");
        foreign
    }

    fn names() -> Vec<&'static str> {
        static NAMES: OnceLock<Vec<String>> = OnceLock::new();
        let name = |[group, _, _, plural, _]: [&str; 5]| format!("crd/{plural}.{group}");
        let names = NAMES.get_or_init(|| FOREIGN.map(name).into());
        names.iter().map(String::as_str).collect()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        shared().kubectl(
            &[&["delete", "--ignore-not-found"][..], &Self::names()].concat(),
            "",
        );
    }
}

/// The published examples of the kinds, of the versions that are served.
fn published() -> Vec<Value> {
    let cases = [
        "antrea",
        "cilium-gateway-policy",
        "cilium-nat-policy",
        "ovn",
        "spidernet",
    ];
    let folder = Site::root().join("kubectl-egressnat/testdata/migrate");
    let text = |case: &str| fs::read_to_string(folder.join(case).with_extension("yaml")).unwrap();
    let objects = cases.iter().flat_map(|case| documents(&text(case)));
    let served = |object: &Value| {
        FOREIGN.iter().any(|[group, version, kind, ..]| {
            object["kind"] == *kind && object["apiVersion"] == format!("{group}/{version}")
        })
    };
    objects.filter(served).map(with_own_name).collect()
}

/// Several projects call their example the same. What policies refer to keeps its name.
fn with_own_name(mut object: Value) -> Value {
    let (name, kind) = (object["metadata"]["name"].as_str(), object["kind"].as_str());
    if let (Some(name), Some(kind)) = (name, kind)
        && kind != "EgressGateway"
    {
        object["metadata"]["name"] = json!(format!("{name}-{kind}").to_lowercase());
    }
    object
}

fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let objects = documents.map(|document| Value::deserialize(document).unwrap());
    objects.filter(|object| !object.is_null()).collect()
}

/// What is read from a cluster becomes what the same objects become in a file.
#[test]
fn policies_of_every_other_gateway_are_migrated_from_the_cluster() {
    let plugin = Plugin::of(shared());
    let none = plugin.says(&["migrate", "--cluster"]);
    assert_eq!(none.code, Some(1), "{}{}", none.out, none.err);
    let _foreign = Foreign::install();
    let objects = published();
    for [_, _, kind, ..] in FOREIGN {
        assert!(
            objects.iter().any(|object| object["kind"] == kind),
            "no example of {kind}"
        );
    }
    for object in &objects {
        if let Some(namespace) = object["metadata"]["namespace"].as_str() {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
            shared().kubectl(&["apply", "-f", "-"], &namespace.to_string());
        }
        shared().kubectl(&["apply", "-f", "-"], &object.to_string());
    }
    let said = plugin.says(&["migrate", "--cluster"]);
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    let texts: Vec<String> = objects.iter().map(|o| format!("---\n{o}\n")).collect();
    let of_file = plugin.says_of(&["migrate", "-"], &texts.concat());
    assert_eq!(of_file.code, Some(0), "{}", of_file.err);
    let by_name = |text: &str| {
        let policies = documents(text).into_iter();
        policies
            .map(|p| (p["metadata"]["name"].to_string(), p["spec"].clone()))
            .collect::<BTreeMap<_, _>>()
    };
    let found = by_name(&said.out);
    assert_eq!(found, by_name(&of_file.out));
    assert!(found.len() > 7, "{}", said.out);
    let create = ["create", "--dry-run=server", "--validate=strict", "-f", "-"];
    shared().kubectl(&create, &said.out);
}
