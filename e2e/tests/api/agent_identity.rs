//! An agent writes the status of its own node's plan, and of no other: Kubernetes RBAC cannot say so, the
//! chart's ValidatingAdmissionPolicy does.

use std::time::{Duration, Instant};

use egressnat_crds::{AGENT_MANAGER, EgressPlan, OPERATOR_MANAGER};
use k8s_openapi::api::{apps::v1::DaemonSet, authentication::v1::BoundObjectReference, core::v1::Pod};
use kube::{
    Api, Client, Error,
    api::{PatchParams, PostParams},
};
use serde_json::json;

use super::support::*;

const NAMES_NO_NODE: &str = "this token of the egressnat agent names no node";

#[tokio::test]
async fn an_agent_writes_the_status_of_its_own_plan_only() {
    make_plans(["own-a", "own-b"]).await;
    let agent = shared().agent_of("own-a").await;
    report(&agent, "own-a").await.unwrap();
    let message = refusal(&agent, "own-b").await;
    assert!(
        message.contains("the egressnat agent of node own-a may not write the plan of node own-b"),
        "{message}"
    );
    report(&shared().agent_of("own-b").await, "own-b").await.unwrap();
}

#[tokio::test]
async fn the_token_in_an_agents_pod_is_bound_to_its_node() {
    make_plans(["pod-a", "pod-b"]).await;
    shared().agent_of("pod-a").await;
    let pod = agent_pod("pod-a").await;
    let bound_to = BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name,
        uid: pod.metadata.uid,
    };
    let agent = shared()
        .client_with(shared().token(AGENT, Some(bound_to)).await)
        .await;
    report(&agent, "pod-a").await.unwrap();
    let message = refusal(&agent, "pod-b").await;
    assert!(
        message.contains("of node pod-a may not write the plan of node pod-b"),
        "{message}"
    );
}

#[tokio::test]
async fn a_token_that_names_no_node_is_refused() {
    make_plans(["unbound"]).await;
    let unbound = shared().client_of(AGENT).await;
    let message = refusal(&unbound, "unbound").await;
    assert!(message.contains(NAMES_NO_NODE), "{message}");

    // Nothing beside the user's name at all, as by impersonation.
    let mut config = shared().config().await;
    config.auth_info.impersonate = Some(format!("system:serviceaccount:{NAMESPACE}:{AGENT}"));
    let bare = Client::try_from(config).unwrap();
    let message = refusal(&bare, "unbound").await;
    assert!(message.contains(NAMES_NO_NODE), "{message}");
}

#[tokio::test]
async fn an_agent_changes_no_spec_and_makes_no_plan() {
    make_plans(["spec-only"]).await;
    let agent: Api<EgressPlan> = Api::all(shared().agent_of("spec-only").await);
    let as_agent = PatchParams::apply(AGENT_MANAGER);
    for answer in [
        agent
            .patch("spec-only", &as_agent, &plan("spec-only", json!({})))
            .await,
        agent
            .patch("not-there", &as_agent, &plan("not-there", json!({})))
            .await,
        agent
            .patch_status("not-there", &as_agent, &plan_status(json!({})))
            .await,
    ] {
        let Err(Error::Api(status)) = answer else {
            panic!("accepted: {answer:?}")
        };
        assert!([403, 404].contains(&status.code), "{}", status.message);
    }
    let plans: Api<EgressPlan> = Api::all(shared().admin().await);
    assert!(plans.get_opt("not-there").await.unwrap().is_none());
}

#[tokio::test]
async fn the_operator_is_not_bound_to_a_node() {
    let operator: Api<EgressPlan> = Api::all(shared().client_of(OPERATOR).await);
    let apply = PatchParams::apply(OPERATOR_MANAGER);
    for node in ["any-a", "any-b"] {
        operator
            .patch(node, &apply, &plan(node, json!({})))
            .await
            .unwrap();
        operator.delete(node, &Default::default()).await.unwrap();
    }
}

async fn make_plans<const N: usize>(nodes: [&str; N]) {
    let plans: Api<EgressPlan> = Api::all(shared().admin().await);
    for node in nodes {
        plans
            .patch(
                node,
                &PatchParams::apply(OPERATOR_MANAGER),
                &plan(node, json!({})),
            )
            .await
            .unwrap();
    }
}

async fn report(client: &Client, node: &str) -> Result<EgressPlan, Error> {
    let status = plan_status(json!({"observedGeneration": 1}));
    Api::all(client.clone())
        .patch_status(node, &PatchParams::apply(AGENT_MANAGER), &status)
        .await
}

/// With what words a report for this node is refused. A policy is in force a moment after it was written.
async fn refusal(client: &Client, node: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match report(client, node).await {
            Err(Error::Api(status)) if status.code == 403 => return status.message,
            Ok(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(50)).await,
            answer => panic!("should be forbidden: {answer:?}"),
        }
    }
}

/// A pod as the DaemonSet controller makes it for this node.
async fn agent_pod(node: &str) -> Pod {
    let client = shared().admin().await;
    let agents: DaemonSet = Api::namespaced(client.clone(), NAMESPACE)
        .get(AGENT)
        .await
        .unwrap();
    let template = agents.spec.unwrap().template;
    let mut pod = Pod {
        metadata: template.metadata.unwrap(),
        spec: template.spec,
        ..Default::default()
    };
    pod.metadata.name = Some(format!("{AGENT}-{node}"));
    pod.spec.as_mut().unwrap().node_name = Some(node.into());
    Api::namespaced(client, NAMESPACE)
        .create(&PostParams::default(), &pod)
        .await
        .unwrap()
}
