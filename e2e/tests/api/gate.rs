//! What the operator makes of the agents' words about the start gate: taints of nodes, conditions of policies, Events on
//! pods. And how it leaves, before the release is uninstalled.

use std::time::Duration;

use egressnat_crds::{EgressNATPolicy, EgressPlan};
use egressnat_operator::{
    election::LeaseConfig,
    teardown,
    world::{ClusterConfig, STARTUP_TAINT},
};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::Node,
    events::v1::Event,
    rbac::v1::{Role, RoleBinding},
};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{support::*, world::*};

/// An operator that asks for the start gate, a policy, and both nodes' plans.
async fn gated() -> (Cluster, Client, Operator) {
    let (cluster, client) = world().await;
    taint(&client).await;
    apply(&client, &policy("walk", spec_from_gateway())).await;
    let config = ClusterConfig {
        start_gate: true,
        ..ClusterConfig::default()
    };
    let operator = Operator::start_with(&cluster, "only", config).await;
    for node in [WORKER, GATEWAY] {
        eventually(node, async || plan_with_policy(&client, node).await).await;
    }
    (cluster, client, operator)
}

/// As a node pool does it, among others' taints.
async fn taint(client: &Client) {
    let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
    let taints = ["first", STARTUP_TAINT, "last"].map(taint);
    let nodes: Api<Node> = Api::all(client.clone());
    let patch = Patch::Merge(json!({"spec": {"taints": taints}}));
    nodes
        .patch(WORKER, &PatchParams::default(), &patch)
        .await
        .unwrap();
}

async fn taints(client: &Client) -> Vec<String> {
    let node = Api::<Node>::all(client.clone()).get(WORKER).await.unwrap();
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    taints.into_iter().map(|taint| taint.key).collect()
}

fn armed() -> Value {
    condition("Gate", "True", "Armed")
}

#[tokio::test]
async fn a_new_nodes_taint_goes_when_its_gate_is_in_place() {
    let (cluster, client, _operator) = gated().await;
    report_until_programmed(&cluster, &client, "walk").await;
    assert_eq!(taints(&client).await, ["first", STARTUP_TAINT, "last"]);
    report_with(&cluster, WORKER, &[armed()], &[]).await;
    eventually("the taint to go", async || {
        (taints(&client).await == ["first", "last"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_policy_says_whether_first_packets_are_covered() {
    let (cluster, client, operator) = gated().await;
    for node in [WORKER, GATEWAY] {
        report_with(&cluster, node, &[armed()], &[]).await;
    }
    let status = eventually("a policy that is covered", async || {
        status_when(&client, "walk", "Gated", "True").await
    });
    assert_eq!(condition_of(&status.await, "Gated"), ("True", "Gated"));
    let missing = condition("Gate", "False", "NoNetworkConfiguration");
    report_with(&cluster, WORKER, &[missing], &[]).await;
    let status = eventually("a node without the gate", async || {
        status_when(&client, "walk", "Gated", "False").await
    });
    assert_eq!(condition_of(&status.await, "Gated"), ("False", "GateMissing"));
    operator.kill();
    let _off = Operator::start(&cluster, "off").await;
    eventually("an installation without the gate", async || {
        let status = status_of(&client, "walk").await;
        (condition_of(&status, "Gated") == ("False", "GateOff")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_passed_no_gate_is_named_by_an_event() {
    let (cluster, client, _operator) = gated().await;
    let walk = Api::<EgressNATPolicy>::all(client.clone())
        .get("walk")
        .await
        .unwrap();
    let created = walk.creation_timestamp().unwrap().0;
    // Times of creation are in whole seconds.
    eventually("a second that is younger than the policy's", async || {
        (Timestamp::now().as_second() > created.as_second()).then_some(())
    })
    .await;
    run_pod(&client, "late", WORKER, "10.1.2.9").await;
    report_with(&cluster, WORKER, &[armed()], &["apps/late", "apps/on-worker"]).await;
    let on = async |pod: &str| -> Option<Event> {
        let events = Api::<Event>::namespaced(client.clone(), "apps");
        let events = events.list(&Default::default()).await.unwrap();
        let is_it = |event: &Event| {
            let name = event.regarding.as_ref().and_then(|pod| pod.name.as_deref());
            event.reason.as_deref() == Some("StartedUngated") && name == Some(pod)
        };
        events.into_iter().find(is_it)
    };
    let event = eventually("an Event on the pod", async || on("late").await).await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    assert!(on("on-worker").await.is_none(), "it is older than the policy");
}

#[tokio::test]
async fn a_teardown_waits_for_agents_and_leaves_no_plan_and_no_lease() {
    let (cluster, client, operator) = gated().await;
    for node in [WORKER, GATEWAY] {
        report(&cluster, node).await;
    }
    // The Deployment's controller is not here to do it.
    operator.stop.cancel();
    allow_teardown(&client).await;
    let account = Client::try_from(cluster.config_with(cluster.token(OPERATOR, None).await).await).unwrap();
    let lease = LeaseConfig {
        namespace: NAMESPACE.into(),
        identity: "teardown".into(),
        duration: Duration::from_secs(3),
        renew_deadline: Duration::from_secs(2),
        retry_period: Duration::from_millis(300),
    };
    let patience = Duration::from_secs(60);
    let run = teardown::run(account, lease, OPERATOR, patience, CancellationToken::new());
    let run = tokio::spawn(run);
    let plans: Api<EgressPlan> = Api::all(client.clone());
    for node in [WORKER, GATEWAY] {
        let plan = eventually("a plan that says so", async || {
            let plan = plans.get_opt(node).await.unwrap()?;
            plan.spec.teardown.then_some(plan)
        })
        .await;
        assert!(
            plan.spec.policies.is_empty() && plan.spec.gate.is_none(),
            "nothing else"
        );
        assert!(!run.is_finished(), "{node} has not answered");
        let status = plan_status(json!({"observedGeneration": plan.metadata.generation}));
        plans
            .patch_status(node, &PatchParams::apply("agent").force(), &status)
            .await
            .unwrap();
    }
    run.await.unwrap().unwrap();
    let left = plans.list(&Default::default()).await.unwrap();
    assert_eq!(
        left.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(),
        Vec::<String>::new()
    );
    let leases: Api<Lease> = Api::namespaced(client, NAMESPACE);
    assert!(leases.get_opt(OPERATOR).await.unwrap().is_none());
}

/// The rights that the chart's hook gives.
async fn allow_teardown(client: &Client) {
    let objects = super::chart::hooks();
    let of = |kind: &str| {
        objects
            .iter()
            .find(|object| object["kind"] == kind)
            .unwrap()
            .clone()
    };
    let roles: Api<Role> = Api::namespaced(client.clone(), NAMESPACE);
    let role = serde_json::from_value(of("Role")).unwrap();
    roles.create(&PostParams::default(), &role).await.unwrap();
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), NAMESPACE);
    let binding = serde_json::from_value(of("RoleBinding")).unwrap();
    bindings.create(&PostParams::default(), &binding).await.unwrap();
}
