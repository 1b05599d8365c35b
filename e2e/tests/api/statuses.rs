//! When the operator writes, and when not: a status for each real change, none for time alone, and one that `kubectl
//! wait` can be asked about.

use std::{collections::BTreeMap, pin::pin, time::Duration};

use egressnat_crds::{EgressNATPolicy, EgressPlan};
use futures::{StreamExt, future::join_all};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, WatchEvent, WatchParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{support::*, world::*};

/// How long the operator waits for more before it writes a status, if nobody waits for it.
const STATUS_DELAY: Duration = Duration::from_millis(300);

/// The cluster's one policy, `walk`, on both of its nodes, once their agents have it.
async fn programmed() -> (Cluster, Client, Operator) {
    let (cluster, client) = world().await;
    apply(&client, &policy("walk", spec_from_gateway())).await;
    let operator = Operator::start(&cluster, "first").await;
    report_until_programmed(&cluster, &client, "walk").await;
    (cluster, client, operator)
}

/// The resource versions of every policy and plan: another with each write.
async fn versions(client: &Client) -> BTreeMap<String, Option<String>> {
    let policies = Api::<EgressNATPolicy>::all(client.clone());
    let plans = Api::<EgressPlan>::all(client.clone());
    let policies = policies.list(&Default::default()).await.unwrap();
    let plans = plans.list(&Default::default()).await.unwrap();
    let policies = policies.iter().map(|p| (p.name_any(), p.resource_version()));
    let plans = plans
        .iter()
        .map(|p| (format!("plan of {}", p.name_any()), p.resource_version()));
    policies.chain(plans).collect()
}

/// The same, once nothing has been written for a second.
async fn settled(client: &Client) -> BTreeMap<String, Option<String>> {
    eventually("a second without a write", async || {
        let before = versions(client).await;
        sleep(Duration::from_secs(1)).await;
        (versions(client).await == before).then_some(before)
    })
    .await
}

/// A kubelet says that its node is still there, as it does every few minutes.
async fn heartbeat(client: &Client, node: &str, second: u64) {
    let ready = json!({
        "type": "Ready",
        "status": "True",
        "lastHeartbeatTime": format!("2026-01-01T00:00:{second:02}Z"),
    });
    let status = Patch::Merge(json!({"status": {"conditions": [ready]}}));
    let nodes = Api::<Node>::all(client.clone());
    nodes
        .patch_status(node, &PatchParams::default(), &status)
        .await
        .unwrap();
}

#[tokio::test]
async fn nothing_is_written_for_time_alone() {
    let (_cluster, client, _operator) = programmed().await;
    let before = settled(&client).await;
    assert_eq!(before.len(), 3, "{before:?}");
    for second in 0..5 {
        heartbeat(&client, GATEWAY, second).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(versions(&client).await, before, "after {second} s");
    }
    // A real change is seen by the same look.
    run_pod(&client, "late", WORKER, "10.1.2.9").await;
    for written in ["walk", "plan of worker"] {
        eventually(written, async || {
            (versions(&client).await[written] != before[written]).then_some(())
        })
        .await;
    }
    let after = settled(&client).await;
    let gateways = "plan of gateway";
    assert_eq!(after[gateways], before[gateways], "its plan is as it was");
}

#[tokio::test]
async fn pods_that_come_together_share_a_status() {
    const PODS: u32 = 20;
    let (_cluster, client, _operator) = programmed().await;
    settled(&client).await;
    let policies = Api::<EgressNATPolicy>::all(client.clone());
    let list = policies.list(&Default::default()).await.unwrap();
    let version = list.metadata.resource_version.unwrap();
    let mut writes = pin!(policies.watch(&WatchParams::default(), &version).await.unwrap());

    let begin = Instant::now();
    let names: Vec<String> = (0..PODS).map(|n| format!("burst-{n}")).collect();
    let addresses: Vec<String> = (0..PODS).map(|n| format!("10.1.2.{}", 100 + n)).collect();
    let pods = names.iter().zip(&addresses);
    join_all(pods.map(|(name, address)| run_pod(&client, name, WORKER, address))).await;
    let took = begin.elapsed();

    let mut written = 0;
    loop {
        let Some(Ok(WatchEvent::Modified(policy))) = writes.next().await else {
            panic!("the watch has ended, or the policy");
        };
        written += 1;
        if policy.status.unwrap().matched_pods == 2 + PODS {
            break;
        }
    }
    // The first pod's, the last pod's, and one for each delay that the test took to make the others.
    let most = 2 + took.as_millis() / STATUS_DELAY.as_millis();
    assert!(written <= most, "{written} statuses in {took:?}");
}

/// kubectl compares a condition's `observedGeneration` with the policy's: what was said of another spec does not count.
#[tokio::test]
async fn kubectl_wait_is_not_content_with_what_was_said_of_another_spec() {
    let (cluster, client, operator) = programmed().await;
    let wait = |timeout: &str| {
        let timeout = format!("--timeout={timeout}");
        cluster.try_kubectl(&["wait", "--for=condition=Programmed", "enp/walk", &timeout])
    };
    wait("10s").unwrap();

    operator.kill();
    let mut spec = spec_from_gateway();
    spec["destinationCIDRs"] = json!(["203.0.113.0/24"]);
    apply(&client, &policy("walk", spec)).await;
    let stale = status_of(&client, "walk").await;
    assert_eq!(condition_of(&stale, "Programmed"), ("True", "Programmed"));
    let refused = wait("2s").unwrap_err().to_string();
    assert!(refused.contains("timed out waiting"), "{refused}");

    let _operator = Operator::start(&cluster, "second").await;
    let destination = "203.0.113.0-203.0.113.255".parse().unwrap();
    eventually("the worker's new plan", async || {
        let plan = plan_with_policy(&client, WORKER).await?;
        let destinations = &plan.spec.profiles.first()?.destinations;
        (destinations.first()?.range == destination).then_some(())
    })
    .await;
    for node in [WORKER, GATEWAY] {
        report(&cluster, node).await;
    }
    wait("30s").unwrap();
}
