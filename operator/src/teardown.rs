//! Before the release is uninstalled: everything of ours leaves the nodes while their agents are still there to do it.
//!
//! The operator is stopped, and its Lease taken, so that nobody writes plans; every plan says `teardown`; when the agents
//! have said that they are done, the plans are deleted, and the Lease. Nodes that cannot answer are named and left: an
//! agent that comes back there finds no plan, and takes everything away as well.

use std::collections::BTreeSet;
use std::time::Duration;

use egressnat_crds::{EgressPlan, EgressPlanSpec, OPERATOR_MANAGER};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::{DeserializeGuard, ObjectMeta};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::apply::request;
use crate::convert;
use crate::election::{LEASE_NAME, LeaseConfig};
use crate::error::{Error, Request};
use crate::leader;
use crate::world::ExistingPlan;

/// Between two looks at the plans.
const PAUSE: Duration = Duration::from_secs(1);
/// How long an operator may take to stop, or its Lease to run out.
const STOPPING: Duration = Duration::from_secs(60);

/// Does it. Nodes have `patience`; `stop` gives the Lease back and ends it where it is.
pub async fn run(
    client: Client,
    lease: LeaseConfig,
    deployment: &str,
    patience: Duration,
    stop: CancellationToken,
) -> Result<(), Error> {
    stop_operator(&client, &lease.namespace, deployment).await?;
    let (lead, mut leads) = watch::channel(false);
    let stop_leading = stop.child_token();
    let namespace = lease.namespace.clone();
    let leading = tokio::spawn(leader::run(client.clone(), lease, lead, stop_leading.clone()));
    let done = tokio::select! {
        done = lead_and_clear(&client, &mut leads, patience) => done,
        () = stop.cancelled() => Ok(()),
    };
    stop_leading.cancel();
    let led = leading.await.unwrap_or(Err(Error::TaskEnded("leader election")));
    done.and(led)?;
    let leases: Api<Lease> = Api::namespaced(client, &namespace);
    delete(&leases, LEASE_NAME, "delete the lease").await
}

async fn lead_and_clear(
    client: &Client,
    leads: &mut watch::Receiver<bool>,
    patience: Duration,
) -> Result<(), Error> {
    // Not the guard that it comes with.
    let led = timeout(STOPPING, async {
        leads.wait_for(|leads| *leads).await.map(|_| ())
    })
    .await;
    match led {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return Err(Error::TaskEnded("leader election")),
        Err(late) => return Err(failed("take the lease of the operator")(late.into())),
    }
    let plans: Api<DeserializeGuard<EgressPlan>> = Api::all(client.clone());
    for plan in list(&plans).await? {
        mark(client, &plan.name_any()).await?;
    }
    let left = wait(client, &plans, Instant::now() + patience).await?;
    if !left.is_empty() {
        tracing::warn!(nodes = ?left, "have not said that they are clear: see to them by hand");
    }
    for plan in list(&plans).await? {
        delete(&plans, &plan.name_any(), "delete a plan").await?;
    }
    Ok(())
}

async fn stop_operator(client: &Client, namespace: &str, deployment: &str) -> Result<(), Error> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let none = Patch::Merge(json!({"spec": {"replicas": 0}}));
    match request(api.patch_scale(deployment, &PatchParams::default(), &none)).await {
        Err(error) if !error.is_not_found() => Err(failed("stop the operator")(error)),
        _ => Ok(()),
    }
}

/// Nothing else is left in the plan: all of it is this writer's.
async fn mark(client: &Client, node: &str) -> Result<(), Error> {
    let plan = EgressPlan {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            ..ObjectMeta::default()
        },
        spec: EgressPlanSpec {
            teardown: true,
            ..EgressPlanSpec::default()
        },
        status: None,
    };
    let api: Api<DeserializeGuard<EgressPlan>> = Api::all(client.clone());
    let params = PatchParams::apply(OPERATOR_MANAGER).force();
    let written = request(api.patch(node, &params, &Patch::Apply(&plan))).await;
    written
        .map_err(|source| Error::WritePlan {
            node: node.to_owned(),
            source,
        })
        .map(|_| ())
}

/// Waits until the agents are done, or the deadline. The nodes that have not said so.
async fn wait(
    client: &Client,
    plans: &Api<DeserializeGuard<EgressPlan>>,
    deadline: Instant,
) -> Result<BTreeSet<String>, Error> {
    loop {
        let ready = ready_nodes(client).await?;
        let left: BTreeSet<String> = list(plans)
            .await?
            .into_iter()
            .map(|plan| (plan.name_any(), convert::plan(plan)))
            .filter(|(_, plan)| !is_clear(plan))
            .map(|(node, _)| node)
            .collect();
        // A node that is not Ready answers to nobody, and one whose agent never spoke has none.
        if left.is_disjoint(&ready) || Instant::now() >= deadline {
            return Ok(left);
        }
        sleep(PAUSE).await;
    }
}

fn is_clear(plan: &ExistingPlan) -> bool {
    let spoke = !plan.status.conditions.is_empty();
    !spoke || plan.status.observed_generation == Some(plan.generation)
}

async fn ready_nodes(client: &Client) -> Result<BTreeSet<String>, Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = request(nodes.list(&ListParams::default())).await;
    let nodes = nodes.map_err(failed("list the nodes"))?;
    let named = nodes
        .into_iter()
        .map(|node| (node.name_any(), convert::node(node)));
    Ok(named
        .filter(|(_, node)| node.ready)
        .map(|(name, _)| name)
        .collect())
}

async fn list(plans: &Api<DeserializeGuard<EgressPlan>>) -> Result<Vec<DeserializeGuard<EgressPlan>>, Error> {
    let listed = request(plans.list(&ListParams::default())).await;
    Ok(listed.map_err(failed("list the plans"))?.items)
}

/// What is gone is as it should be.
async fn delete<K>(api: &Api<K>, name: &str, what: &str) -> Result<(), Error>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    match request(api.delete(name, &DeleteParams::default())).await {
        Err(error) if !error.is_not_found() => Err(failed(what)(error)),
        _ => Ok(()),
    }
}

fn failed(what: &str) -> impl FnOnce(Request) -> Error {
    let what = what.to_owned();
    move |source| Error::Teardown { what, source }
}
