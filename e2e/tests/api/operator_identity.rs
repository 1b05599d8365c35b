//! Of nodes, the operator takes the start-up taint away, and changes nothing else: Kubernetes RBAC cannot say so, the
//! chart's ValidatingAdmissionPolicy does.

use egressnat_operator::{apply::Writer, world::STARTUP_TAINT};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Error,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{support::*, world::eventually};

const MAY_ONLY: &str = "the egressnat operator may";

fn taint(key: &str, effect: &str) -> Value {
    json!({"key": key, "effect": effect})
}

/// Makes a node that has something of everything, the start-up taint twice.
async fn node(name: &str) -> Api<Node> {
    let node = json!({
        "metadata": {
            "name": name,
            "labels": {"zone": "a"},
            "annotations": {"note": "x"},
            "finalizers": ["example.com/kept"],
        },
        "spec": {
            "podCIDRs": ["10.9.0.0/24"],
            "podCIDR": "10.9.0.0/24",
            "taints": [
                taint("first", "NoSchedule"),
                taint(STARTUP_TAINT, "NoSchedule"),
                taint("middle", "NoExecute"),
                taint(STARTUP_TAINT, "NoExecute"),
            ],
        },
    });
    let nodes: Api<Node> = Api::all(shared().admin().await);
    let node = serde_json::from_value(node).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    nodes
}

/// What the API server would make of the change.
async fn answer(nodes: &Api<Node>, name: &str, operations: Value) -> Result<Node, Error> {
    let patch = Patch::<Node>::Json(serde_json::from_value(operations).unwrap());
    nodes.patch(name, &PatchParams::default().dry_run(), &patch).await
}

fn is_refused(answer: &Result<Node, Error>) -> bool {
    matches!(answer, Err(Error::Api(status)) if status.code == 403 && status.message.contains(MAY_ONLY))
}

/// An API server takes a while to take up a policy that has just been installed.
async fn operator(name: &str) -> Api<Node> {
    let nodes: Api<Node> = Api::all(shared().client_of(OPERATOR).await);
    let label = || json!([{"op": "add", "path": "/metadata/labels/probe", "value": "x"}]);
    eventually("the policy to be in force", async || {
        is_refused(&answer(&nodes, name, label()).await).then_some(())
    })
    .await;
    nodes
}

#[tokio::test]
async fn the_operator_takes_the_start_up_taint_away() {
    let nodes = node("tainted").await;
    operator("tainted").await;
    let writer = Writer::new(shared().client_of(OPERATOR).await);
    let others = keys(&nodes).await.into_iter().filter(|key| key != STARTUP_TAINT);
    let others: Vec<_> = others.collect();
    for left in [1, 0] {
        let place = keys(&nodes).await.iter().position(|key| key == STARTUP_TAINT);
        writer.remove_taint("tainted", place.unwrap()).await.unwrap();
        let (startup, rest): (Vec<_>, Vec<_>) = keys(&nodes)
            .await
            .into_iter()
            .partition(|key| key == STARTUP_TAINT);
        assert_eq!((startup.len(), &rest), (left, &others));
    }
}

async fn keys(nodes: &Api<Node>) -> Vec<String> {
    let spec = nodes.get("tainted").await.unwrap().spec.unwrap();
    let taints = spec.taints.unwrap_or_default().into_iter();
    taints.map(|taint| taint.key).collect()
}

#[tokio::test]
async fn a_nodes_last_taint_may_be_the_start_up_taint() {
    let nodes = node("lone").await;
    let lone = json!({"spec": {"taints": [taint(STARTUP_TAINT, "NoSchedule")]}});
    nodes
        .patch("lone", &PatchParams::default(), &Patch::Merge(lone))
        .await
        .unwrap();
    operator("lone").await;
    let writer = Writer::new(shared().client_of(OPERATOR).await);
    writer.remove_taint("lone", 0).await.unwrap();
    assert_eq!(nodes.get("lone").await.unwrap().spec.unwrap().taints, None);
}

#[tokio::test]
async fn nothing_else_of_a_node_changes_by_the_operators_hand() {
    let nodes = node("bounded").await;
    let operator = operator("bounded").await;
    let removal = json!({"op": "remove", "path": "/spec/taints/1"});
    let changes = [
        json!([{"op": "add", "path": "/metadata/labels/zone", "value": "b"}]),
        json!([{"op": "remove", "path": "/metadata/labels"}]),
        json!([{"op": "remove", "path": "/metadata/annotations/note"}]),
        json!([{"op": "remove", "path": "/metadata/finalizers"}]),
        json!([{"op": "add", "path": "/spec/unschedulable", "value": true}]),
        json!([{"op": "add", "path": "/spec/providerID", "value": "cloud://another"}]),
        json!([{"op": "remove", "path": "/spec/taints"}]),
        json!([{"op": "remove", "path": "/spec/taints/0"}]),
        json!([{"op": "replace", "path": "/spec/taints/1/value", "value": "x"}]),
        json!([{"op": "replace", "path": "/spec/taints/1/effect", "value": "PreferNoSchedule"}]),
        json!([{"op": "add", "path": "/spec/taints/-", "value": taint("another", "NoExecute")}]),
        json!([{"op": "add", "path": "/spec/taints/-", "value": taint(STARTUP_TAINT, "PreferNoSchedule")}]),
        // With what it may do beside it.
        json!([removal, {"op": "add", "path": "/metadata/labels/zone", "value": "b"}]),
        json!([removal, {"op": "replace", "path": "/spec/taints/0/effect", "value": "PreferNoSchedule"}]),
    ];
    assert!(answer(&operator, "bounded", json!([removal])).await.is_ok());
    for change in changes {
        let anybody = answer(&nodes, "bounded", change.clone()).await;
        assert!(anybody.is_ok(), "{change}: {anybody:?}");
        let answer = answer(&operator, "bounded", change.clone()).await;
        assert!(is_refused(&answer), "{change}: {answer:?}");
    }
}
