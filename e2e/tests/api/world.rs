//! A small world for the operator: nodes and pods as kubelets show them, agents that report.

use std::{net::IpAddr, time::Duration};

use egressnat_crds::{AGENT_MANAGER, EgressNATPolicy, EgressPlan, OPERATOR_MANAGER};
use egressnat_operator::{election::LeaseConfig, run, world::ClusterConfig};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Namespace, Node, Pod, ServiceAccount},
    events::v1::Event,
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    runtime::Runtime,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::support::*;

pub const GATEWAY: &str = "gateway";
pub const GATEWAY_IP: &str = "192.0.2.11";
pub const WORKER: &str = "worker";
pub const WORKER_IP: &str = "192.0.2.12";

const DEADLINE: Duration = Duration::from_secs(60);

/// An operator on a runtime of its own, so that it can be killed in the middle of whatever it does.
pub struct Operator {
    runtime: Option<Runtime>,
    pub stop: CancellationToken,
}

impl Operator {
    pub async fn start(cluster: &Cluster, identity: &str) -> Self {
        Self::start_with(cluster, identity, ClusterConfig::default()).await
    }

    pub async fn start_with(cluster: &Cluster, identity: &str, of_cluster: ClusterConfig) -> Self {
        let kube = cluster.config_with(cluster.token(OPERATOR, None).await).await;
        let config = run::Config {
            http_address: "127.0.0.1:0".parse().unwrap(),
            cluster: of_cluster,
            lease: LeaseConfig {
                namespace: NAMESPACE.into(),
                identity: identity.into(),
                duration: Duration::from_secs(3),
                renew_deadline: Duration::from_secs(2),
                retry_period: Duration::from_millis(300),
            },
        };
        let runtime = Runtime::new().unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        runtime.spawn(async move {
            let client = egressnat_api_client::client(kube).unwrap();
            run::run(config, client, stopped).await.unwrap();
        });
        Self {
            runtime: Some(runtime),
            stop,
        }
    }

    /// Ends it at once, lease in hand.
    pub fn kill(self) {}
}

impl Drop for Operator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A cluster of two nodes with a pod each, in namespace `apps`.
pub async fn world() -> (Cluster, Client) {
    let cluster = Cluster::start();
    let client = cluster.admin().await;
    run_node(&client, GATEWAY, GATEWAY_IP, "10.1.1.0/24").await;
    run_node(&client, WORKER, WORKER_IP, "10.1.2.0/24").await;
    apply_to(
        &Api::<Namespace>::all(client.clone()),
        &json!({"metadata": {"name": "apps"}}),
    )
    .await;
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "apps");
    apply_to(&accounts, &json!({"metadata": {"name": "default"}})).await;
    run_pod(&client, "on-gateway", GATEWAY, "10.1.1.2").await;
    run_pod(&client, "on-worker", WORKER, "10.1.2.2").await;
    (cluster, client)
}

/// A policy's spec: the pods of `apps`, to one network, with the address of the gateway.
pub fn spec_from_gateway() -> Value {
    json!({
        "selectors": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "apps"}}}],
        "destinationCIDRs": ["198.51.100.0/24"],
        "egressSourceIP": GATEWAY_IP,
    })
}

async fn run_node(client: &Client, name: &str, address: &str, pods: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    apply_to(
        &nodes,
        &json!({"metadata": {"name": name}, "spec": {"podCIDR": pods, "podCIDRs": [pods]}}),
    )
    .await;
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
}

/// A pod as a kubelet shows it.
pub async fn run_pod(client: &Client, name: &str, node: &str, address: &str) {
    run_pod_of(client, name, json!({"nodeName": node}), address).await;
}

/// The same, of a spec but for its container.
pub async fn run_pod_of(client: &Client, name: &str, mut spec: Value, address: &str) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "apps");
    spec["containers"] = json!([{"name": "app", "image": "app"}]);
    apply_to(&pods, &json!({"metadata": {"name": name}, "spec": spec})).await;
    let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
}

/// Says, as the agent of a node, that its kernel holds its plan.
pub async fn report(cluster: &Cluster, node: &str) {
    report_with(cluster, node, &[], &[]).await;
}

/// The same, with more conditions, and with selected pods that started ungated.
pub async fn report_with(cluster: &Cluster, node: &str, more: &[Value], ungated: &[&str]) {
    let plan = plan_with_policy(&cluster.admin().await, node).await.unwrap();
    let generation = plan.metadata.generation.unwrap();
    let mut conditions = vec![condition("Ready", "True", "Programmed")];
    conditions.extend(more.iter().cloned());
    for condition in &mut conditions {
        condition["observedGeneration"] = json!(generation);
    }
    let status = json!({"observedGeneration": generation, "conditions": conditions, "ungated": ungated});
    let status = plan_status(status);
    let plans: Api<EgressPlan> = Api::all(cluster.agent_of(node).await);
    plans
        .patch_status(node, &PatchParams::apply(AGENT_MANAGER), &status)
        .await
        .unwrap();
}

/// Says, as the agents of all nodes, that their kernels hold what their plans say, until the policy is programmed: a
/// source is pointed at its gateway only when that has reported.
pub async fn report_until_programmed(cluster: &Cluster, client: &Client, policy: &str) {
    eventually("all nodes", async || {
        for node in [GATEWAY, WORKER] {
            plan_with_policy(client, node).await?;
            report(cluster, node).await;
        }
        status_when(client, policy, "Programmed", "True").await
    })
    .await;
}

/// The node that the plan of a node sends its pods' packets to.
pub async fn way_of(client: &Client, node: &str) -> Option<String> {
    let plan = plan_with_policy(client, node).await?;
    plan.spec.policies.first()?.source.as_ref()?.gateway.clone()
}

/// Writes a policy as a user does.
pub async fn apply(client: &Client, policy: &Value) {
    apply_to(&Api::<EgressNATPolicy>::all(client.clone()), policy).await;
}

async fn apply_to<K>(api: &Api<K>, object: &Value)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let mut object = object.clone();
    object["apiVersion"] = json!(K::api_version(&()));
    object["kind"] = json!(K::kind(&()));
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    api.patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(object))
        .await
        .unwrap();
}

/// The plan of a node, once it has a policy.
pub async fn plan_with_policy(client: &Client, node: &str) -> Option<EgressPlan> {
    let plan = Api::<EgressPlan>::all(client.clone())
        .get_opt(node)
        .await
        .unwrap()?;
    (!plan.spec.policies.is_empty()).then_some(plan)
}

/// The status of a policy, null while it has none.
pub async fn status_of(client: &Client, policy: &str) -> Value {
    let policy = Api::<EgressNATPolicy>::all(client.clone())
        .get(policy)
        .await
        .unwrap();
    json!(policy.status)
}

/// The status of a policy, once a condition of this type has this status for the present spec.
pub async fn status_when(client: &Client, policy: &str, type_: &str, wanted: &str) -> Option<Value> {
    let policy = Api::<EgressNATPolicy>::all(client.clone())
        .get(policy)
        .await
        .unwrap();
    let status = policy.status?;
    let condition = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == type_)?;
    let current = condition.observed_generation == policy.metadata.generation;
    (current && condition.status == wanted).then(|| json!(status))
}

/// Status and reason of a condition.
pub fn condition_of<'a>(status: &'a Value, type_: &str) -> (&'a str, &'a str) {
    let conditions = status["conditions"].as_array().unwrap();
    let condition = conditions
        .iter()
        .find(|condition| condition["type"] == type_)
        .unwrap();
    (
        condition["status"].as_str().unwrap(),
        condition["reason"].as_str().unwrap(),
    )
}

/// The operator's Event on a policy with this reason.
pub async fn event_on(client: &Client, policy: &str, reason: &str) -> Option<Event> {
    let events = Api::<Event>::namespaced(client.clone(), "default")
        .list(&Default::default())
        .await
        .unwrap();
    events.into_iter().find(|event| {
        event
            .regarding
            .as_ref()
            .is_some_and(|object| object.name.as_deref() == Some(policy))
            && event.reason.as_deref() == Some(reason)
            && event.reporting_controller.as_deref() == Some(OPERATOR_MANAGER)
    })
}

/// Whether this operator, or none, holds the Lease.
pub async fn leader_is(client: &Client, identity: Option<&str>) -> Option<()> {
    let lease = Api::<Lease>::namespaced(client.clone(), NAMESPACE)
        .get_opt(OPERATOR)
        .await
        .unwrap()?;
    let holder = lease.spec.and_then(|spec| spec.holder_identity);
    (holder.as_deref() == identity).then_some(())
}

/// Asks until there is an answer.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = probe().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited for {what} in vain");
        sleep(Duration::from_millis(50)).await;
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
