//! What has to be written, and the one writer.

use std::time::Duration;

use egressnat_crds::{EgressNATPolicy, EgressNATPolicyStatus, EgressPlan, EgressPlanSpec, OPERATOR_MANAGER};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::DeserializeGuard;
use kube::{Api, Client, CustomResourceExt};
use serde_json::json;
use tokio::time::timeout;

use crate::convert;
use crate::error::{Error, Request};
use crate::store::{Change, Delta};
use crate::world::{ExistingPlan, STARTUP_TAINT, World};

/// How long a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// A plan that is not as it should be.
#[derive(Clone, Debug, PartialEq)]
pub enum PlanWrite {
    /// Write it.
    Apply {
        /// The node.
        node: String,
        /// The node's uid.
        owner: String,
        /// What it has to do.
        spec: Box<EgressPlanSpec>,
    },
    /// Delete it: its node is gone.
    Delete {
        /// The node.
        node: String,
        /// The plan's uid.
        uid: String,
    },
}

/// How many waves of writes there are: see [`difference`].
pub const WAVES: usize = 3;

/// What has to be written for a node's plan to be `spec`, and in which wave; `None` if it is. There is no plan for a
/// node that is not there.
///
/// There are three waves, each to be sent before the next: plans that make a node a policy's gateway; those that
/// change sources; those that only take gateways away. That is for speed alone: what has to wait for an agent's word
/// is not in `spec` yet (see [`crate::rollout`]).
pub fn difference(node: &str, spec: Option<EgressPlanSpec>, world: &World) -> Option<(usize, PlanWrite)> {
    let existing = world.plans.get(node);
    let (Some(known), Some(spec)) = (world.nodes.get(node), spec) else {
        let uid = existing?.uid.clone();
        let node = node.to_owned();
        return Some((WAVES - 1, PlanWrite::Delete { node, uid }));
    };
    let is_same = |plan: &ExistingPlan| plan.spec == spec && plan.owner.as_ref() == Some(&known.uid);
    if existing.is_some_and(is_same) {
        return None;
    }
    let wave = wave(existing, &spec);
    let write = PlanWrite::Apply {
        node: node.to_owned(),
        owner: known.uid.clone(),
        spec: Box::new(spec),
    };
    Some((wave, write))
}

fn wave(existing: Option<&ExistingPlan>, spec: &EgressPlanSpec) -> usize {
    let before = existing.map(|e| gateway_roles(&e.spec)).unwrap_or_default();
    let after = gateway_roles(spec);
    if after.iter().any(|role| !before.contains(role)) {
        0
    } else if before.iter().any(|role| !after.contains(role)) {
        2
    } else {
        1
    }
}

/// What a node does for others: the policies it is the gateway of, and the peers it accepts.
fn gateway_roles(spec: &EgressPlanSpec) -> Vec<String> {
    let policies = spec.policies.iter().filter_map(|p| {
        let role = p.gateway.as_ref()?;
        Some(format!("{} {:?}", p.id, role.addresses))
    });
    let peers = spec.peers.iter().filter(|p| !p.ranges.is_empty());
    policies
        .chain(peers.map(|p| format!("{} {:?}", p.underlay, p.ranges)))
        .collect()
}

/// Writes plans and statuses, as the field manager of the operator.
#[derive(Clone)]
pub struct Writer {
    client: Client,
}

impl Writer {
    /// A writer.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Writes one plan; the answer is what the store may know at once.
    pub async fn plan(&self, write: PlanWrite) -> Result<Change, Error> {
        match write {
            PlanWrite::Apply { node, owner, spec } => match self.apply(&node, owner, *spec).await {
                Ok(plan) => Ok(Change::Plans(Delta::Set(node, convert::plan(plan)))),
                Err(source) => Err(Error::WritePlan { node, source }),
            },
            PlanWrite::Delete { node, uid } => match self.delete(&node, uid).await {
                Err(source) if !source.is_not_found() => Err(Error::DeletePlan { node, source }),
                _ => Ok(Change::Plans(Delta::Gone(node))),
            },
        }
    }

    /// Writes the status of the policy with this name and uid; the answer is what the store may know at once.
    pub async fn status(
        &self,
        policy: &str,
        uid: &str,
        status: &EgressNATPolicyStatus,
    ) -> Result<Change, Error> {
        let resource = EgressNATPolicy::api_resource();
        // The uid makes it a conflict to write to another policy of the same name.
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "name": policy, "uid": uid },
            "status": status,
        });
        let api = Api::<DeserializeGuard<EgressNATPolicy>>::all(self.client.clone());
        let (params, patch) = (params(), Patch::Apply(&patch));
        match request(api.patch_status(policy, &params, &patch)).await {
            Ok(written) => Ok(Change::Policies(Delta::Set(
                policy.to_owned(),
                convert::policy(written),
            ))),
            Err(source) => Err(Error::WriteStatus {
                policy: policy.to_owned(),
                source,
            }),
        }
    }

    /// Takes a node's start-up taint away, which is at this place among its taints. If it is not there any more, another
    /// hand was faster, and nothing is changed.
    pub async fn remove_taint(&self, node: &str, place: usize) -> Result<Change, Error> {
        let patch = serde_json::from_value(json!([
            { "op": "test", "path": format!("/spec/taints/{place}/key"), "value": STARTUP_TAINT },
            { "op": "remove", "path": format!("/spec/taints/{place}") },
        ]));
        let patch = Patch::<Node>::Json(patch.unwrap_or_default());
        let params = PatchParams {
            field_manager: Some(OPERATOR_MANAGER.into()),
            ..PatchParams::default()
        };
        let api = Api::<Node>::all(self.client.clone());
        match request(api.patch(node, &params, &patch)).await {
            Ok(changed) => Ok(Change::Nodes(Delta::Set(node.to_owned(), convert::node(changed)))),
            Err(source) => Err(Error::RemoveTaint {
                node: node.to_owned(),
                source,
            }),
        }
    }

    async fn apply(
        &self,
        node: &str,
        owner: String,
        spec: EgressPlanSpec,
    ) -> Result<DeserializeGuard<EgressPlan>, Request> {
        let mut plan = EgressPlan::new(node, spec);
        plan.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: node.into(),
            uid: owner,
            controller: Some(true),
            block_owner_deletion: None,
        }]);
        let api = Api::<DeserializeGuard<EgressPlan>>::all(self.client.clone());
        request(api.patch(node, &params(), &Patch::Apply(&plan))).await
    }

    async fn delete(&self, node: &str, uid: String) -> Result<(), Request> {
        let api = Api::<DeserializeGuard<EgressPlan>>::all(self.client.clone());
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        request(api.delete(node, &params)).await.map(|_| ())
    }
}

fn params() -> PatchParams {
    PatchParams::apply(OPERATOR_MANAGER).force()
}

/// A request, given up after a while: one that hangs must not stall the rest.
pub async fn request<T>(future: impl Future<Output = kube::Result<T>>) -> Result<T, Request> {
    Ok(timeout(REQUEST_TIMEOUT, future).await??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backlog::Backlog;
    use crate::plan::plan;
    use crate::testing;

    const WORLD: &str = r#"
kind: Node
metadata: {name: gateway, uid: gateway}
status: {addresses: [{type: InternalIP, address: 172.18.0.1}]}
---
kind: Node
metadata: {name: other, uid: other}
status: {addresses: [{type: InternalIP, address: 172.18.0.2}]}
---
kind: Node
metadata: {name: source, uid: source}
status: {addresses: [{type: InternalIP, address: 172.18.0.3}]}
---
kind: Pod
metadata: {namespace: default, name: p, uid: p}
spec: {nodeName: source}
status: {phase: Running, podIPs: [{ip: 10.0.0.5}]}
---
apiVersion: egressnat.io/v1alpha1
kind: EgressNATPolicy
metadata: {name: policy, uid: policy, generation: 1}
spec: {selectors: [{podSelector: {}}], egressSourceIP: ADDRESS}
"#;

    fn world(address: &str) -> World {
        testing::world(&WORLD.replace("ADDRESS", address))
    }

    fn waves(world: &World) -> [Vec<String>; WAVES] {
        Backlog::new(world).waves()
    }

    /// The world with all plans written.
    fn written(mut world: World) -> World {
        for (name, spec) in plan(&world).plans {
            let plan = ExistingPlan {
                owner: Some(name.clone()),
                spec,
                ..ExistingPlan::default()
            };
            world.plans.insert(name, plan);
        }
        world
    }

    #[test]
    fn a_gateway_is_made_before_its_sources() {
        let world = world("172.18.0.1");
        assert_eq!(waves(&world), [vec!["gateway"], vec!["other", "source"], vec![]]);
    }

    #[test]
    fn a_gateway_that_moves_is_made_first() {
        let mut after = world("172.18.0.2");
        after.plans = written(world("172.18.0.1")).plans;
        assert_eq!(waves(&after), [vec!["other"], vec![], vec![]]);
    }

    #[test]
    fn what_is_as_it_should_be_is_not_written() {
        let world = written(world("172.18.0.1"));
        assert_eq!(waves(&world), [vec![""; 0], vec![], vec![]]);
    }

    #[test]
    fn the_plan_of_a_node_that_is_gone_is_deleted_and_that_of_a_new_node_of_its_name_is_owned_anew() {
        let mut world = written(world("172.18.0.1"));
        world.nodes.remove("other");
        world.nodes.get_mut("source").unwrap().uid = "another".into();
        let mut backlog = Backlog::new(&world);
        assert_eq!(
            backlog.waves(),
            [vec![""; 0], vec!["gateway", "source"], vec!["other"]]
        );
        let gone = backlog.write("other", &world);
        assert!(matches!(gone, Some(PlanWrite::Delete { node, .. }) if node == "other"));
        let Some(PlanWrite::Apply { owner, .. }) = backlog.write("source", &world) else {
            panic!("the plan of another node of the same name stays");
        };
        assert_eq!(owner, "another");
    }
}
