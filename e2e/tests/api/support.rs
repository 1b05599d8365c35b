//! What the tests of this rung share: names, helm, and the objects they write.

use std::process::Command;

use egressnat_e2e::site::Site;
use kube::api::Patch;
use serde_json::{Value, json};

pub use super::cluster::{Cluster, shared};

/// The namespace and the name of the release, as the README has them.
pub const NAMESPACE: &str = "egressnat-system";
pub const RELEASE: &str = "egressnat";
pub const OPERATOR: &str = "egressnat-operator";
pub const AGENT: &str = "egressnat-agent";

pub fn helm() -> Command {
    let helm = Site::program("helm");
    assert!(helm.exists(), "{} is missing: run e2e/setup.sh", helm.display());
    Command::new(helm)
}

/// The chart's folder.
pub fn chart() -> String {
    Site::root().join("charts/egressnat").display().to_string()
}

/// A policy to apply.
pub fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "egressnat.io/v1alpha1",
        "kind": "EgressNATPolicy",
        "metadata": {"name": name},
        "spec": spec,
    })
}

/// A policy's status to apply.
pub fn policy_status(status: Value) -> Value {
    json!({"apiVersion": "egressnat.io/v1alpha1", "kind": "EgressNATPolicy", "status": status})
}

/// A plan to apply, as the operator does it.
pub fn plan(node: &str, spec: Value) -> Patch<Value> {
    Patch::Apply(json!({
        "apiVersion": "egressnat.io/v1alpha1",
        "kind": "EgressPlan",
        "metadata": {"name": node},
        "spec": spec,
    }))
}

/// A plan's status to apply, as an agent does it.
pub fn plan_status(status: Value) -> Patch<Value> {
    Patch::Apply(json!({"apiVersion": "egressnat.io/v1alpha1", "kind": "EgressPlan", "status": status}))
}

/// A condition of this type, status and reason.
pub fn condition(kind: &str, status: &str, reason: &str) -> Value {
    json!({
        "type": kind,
        "status": status,
        "reason": reason,
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
        "observedGeneration": 1,
    })
}
