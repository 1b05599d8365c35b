//! `status`: every policy and every node concerned, at a glance, in the words of the operator and the agents.

mod table;

use std::collections::BTreeSet;

use egressnat_crds::ports::PortRange;
use egressnat_operator::condition::{ConditionType, Reason};
use egressnat_operator::world::{ExistingPlan, Policy, World};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;

use crate::progress::Progress;

/// What the operator and the agents say.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// The policies, by name.
    pub policies: Vec<PolicyRow>,
    /// The nodes with a part in any policy, by name.
    pub nodes: Vec<NodeRow>,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRow {
    /// Its name.
    pub name: String,
    /// Its priority, where its spec is in force.
    pub priority: Option<i32>,
    /// Its gateways' nodes.
    pub gateways: BTreeSet<String>,
    /// The addresses that the outside sees.
    pub addresses: Vec<String>,
    /// The source ports that it sees; any where the policy does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ports: Option<PortRange>,
    /// Whether it works.
    pub health: Health,
    /// What is wrong, if anything is.
    pub message: String,
    /// How many pods it selects.
    pub pods: u32,
    /// How many of the nodes concerned have programmed it.
    pub nodes_programmed: u32,
    /// How many nodes are concerned.
    pub nodes_concerned: u32,
}

/// Whether a policy works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Health {
    /// As written.
    Ready,
    /// Not yet.
    Pending,
    /// Only in part.
    Degraded,
    /// Not at all.
    Failed,
}

/// A node with a part in any policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRow {
    /// Its name.
    pub name: String,
    /// The policies that it is the gateway of.
    pub gateway_of: BTreeSet<String>,
    /// How many captured pods it has.
    pub pods: usize,
    /// How far it is with its plan.
    #[serde(flatten)]
    pub progress: Progress,
}

impl Status {
    /// Of the policies and plans in `world`.
    pub fn of(world: &World) -> Self {
        let plans = world.plans.iter().filter(|(_, p)| !p.spec.policies.is_empty());
        Self {
            policies: world
                .policies
                .iter()
                .map(|(name, p)| policy_row(name, p))
                .collect(),
            nodes: plans.map(|(name, plan)| node_row(name, plan)).collect(),
        }
    }

    /// Whether something does not work and will not by waiting.
    pub fn is_wrong(&self) -> bool {
        let failed = |p: &PolicyRow| matches!(p.health, Health::Degraded | Health::Failed);
        let stuck = |n: &NodeRow| matches!(n.progress, Progress::Failed { .. });
        self.policies.iter().any(failed) || self.nodes.iter().any(stuck)
    }
}

fn policy_row(name: &str, policy: &Policy) -> PolicyRow {
    let status = &policy.status;
    let (health, message) = health(policy);
    PolicyRow {
        name: name.to_owned(),
        priority: policy.in_force().map(|spec| spec.priority),
        gateways: status
            .gateways
            .iter()
            .map(|g| g.node.clone())
            .filter(|n| !n.is_empty())
            .collect(),
        addresses: status.gateways.iter().flat_map(|g| g.addresses.clone()).collect(),
        source_ports: policy.in_force().and_then(|spec| spec.source_ports),
        health,
        message,
        pods: status.matched_pods,
        nodes_programmed: status.nodes_programmed,
        nodes_concerned: status.nodes_concerned,
    }
}

/// A policy's health by its conditions, and the message of the condition that says so.
fn health(policy: &Policy) -> (Health, String) {
    let condition = |type_: ConditionType| {
        let conditions = policy.status.conditions.iter();
        let mut current = conditions.filter(|c| c.observed_generation == Some(policy.generation));
        current.find(|c| c.type_ == type_.to_string())
    };
    let (Some(accepted), Some(gateway), Some(programmed), Some(degraded)) = (
        condition(ConditionType::Accepted),
        condition(ConditionType::GatewayReady),
        condition(ConditionType::Programmed),
        condition(ConditionType::Degraded),
    ) else {
        let message = "the operator has not yet said anything of this spec: see that it runs";
        return (Health::Pending, message.into());
    };
    let holds = |c: &Condition| c.status == "True";
    let says = |c: &Condition| format!("{}: {}", c.reason, c.message);
    if !holds(accepted) {
        (Health::Failed, says(accepted))
    } else if !holds(programmed) && programmed.reason == Reason::NoGateway.to_string() {
        (Health::Failed, says(gateway))
    } else if !holds(programmed) && programmed.reason == Reason::Progressing.to_string() {
        (Health::Pending, says(programmed))
    } else if !holds(programmed) {
        (Health::Failed, says(programmed))
    } else if !holds(gateway) {
        (Health::Degraded, says(gateway))
    } else if holds(degraded) {
        (Health::Degraded, says(degraded))
    } else {
        (Health::Ready, String::new())
    }
}

fn node_row(name: &str, plan: &ExistingPlan) -> NodeRow {
    let gateways = plan.spec.policies.iter().filter(|p| p.gateway.is_some());
    NodeRow {
        name: name.to_owned(),
        gateway_of: gateways.map(|p| p.name.clone()).collect(),
        pods: plan.spec.pods.len(),
        progress: Progress::of(Some(plan), |_| true),
    }
}

#[cfg(test)]
mod tests {
    use egressnat_operator::condition::Reason::*;

    use super::*;
    use crate::testing;

    /// A policy of generation 2 whose conditions are of `generation`, and the plan of its gateway.
    fn world(generation: i64, conditions: [(bool, Reason); 5]) -> World {
        let conditions = ConditionType::ALL
            .iter()
            .zip(conditions)
            .map(|(type_, (holds, reason))| {
                let status = if holds { "True" } else { "False" };
                format!(
                    "{{type: {type_}, status: '{status}', reason: {reason}, message: because of {reason}, \
                 observedGeneration: {generation}, lastTransitionTime: '2026-01-01T00:00:00Z'}}"
                )
            });
        let conditions: Vec<String> = conditions.collect();
        testing::snapshot(&format!(
            r#"
kind: EgressNATPolicy
apiVersion: egressnat.io/v1alpha1
metadata: {{name: walk, uid: a, generation: 2}}
spec: {{selectors: [{{podSelector: {{}}}}], egressSourceIP: 192.0.2.1, sourcePorts: 20000-39999}}
status:
  id: 7
  matchedPods: 3
  nodesConcerned: 2
  nodesProgrammed: 1
  gateways: [{{node: edge, addresses: [192.0.2.1]}}]
  conditions: [{}]
---
kind: EgressPlan
apiVersion: egressnat.io/v1alpha1
metadata: {{name: edge, uid: b, generation: 4}}
spec: {{policies: [{{id: 7, name: walk, gateway: {{addresses: [192.0.2.1]}}}}]}}
---
kind: EgressPlan
apiVersion: egressnat.io/v1alpha1
metadata: {{name: idle, uid: c, generation: 1}}
spec: {{}}
"#,
            conditions.join(", ")
        ))
        .world
    }

    const GOOD: [(bool, Reason); 5] = [
        (true, Accepted),
        (true, GatewayReady),
        (true, Programmed),
        (true, Gated),
        (false, AsSpecified),
    ];

    #[test]
    fn health_is_what_the_present_conditions_say() {
        for (at, condition, health, says) in [
            (0, (true, Accepted), Health::Ready, ""),
            (0, (false, InvalidSpec), Health::Failed, "InvalidSpec: because of"),
            (1, (false, GatewayNotReady), Health::Degraded, "GatewayNotReady"),
            (2, (false, NoGateway), Health::Failed, "GatewayReady: because of"),
            (2, (false, Progressing), Health::Pending, "Progressing"),
            (2, (false, NodeFailed), Health::Failed, "NodeFailed"),
            // First packets alone are not covered: what the table shows is what is in force.
            (3, (false, GateOff), Health::Ready, ""),
            (4, (true, AddressConflict), Health::Degraded, "AddressConflict"),
        ] {
            let mut conditions = GOOD;
            conditions[at] = condition;
            let status = Status::of(&world(2, conditions));
            let row = &status.policies[0];
            assert_eq!(row.health, health, "{condition:?}");
            assert!(row.message.starts_with(says), "{}", row.message);
            let wrong = matches!(health, Health::Degraded | Health::Failed);
            assert_eq!(status.is_wrong(), wrong, "{condition:?}");
        }
        let stale = Status::of(&world(1, GOOD));
        assert_eq!(stale.policies[0].health, Health::Pending);
    }

    #[test]
    fn the_table_says_it_all() {
        let mut conditions = GOOD;
        conditions[2] = (false, Progressing);
        let status = Status::of(&world(2, conditions));
        let table = "\
POLICY  PRIORITY  GATEWAY  ADDRESS    PORTS        PODS  NODES  HEALTH   MESSAGE
walk    100       edge     192.0.2.1  20000-39999  3     1/2    Pending  Progressing: because of Progressing

NODE  PODS  GATEWAY OF  PLAN
edge  0     walk        not yet programmed: see that the node's agent runs
";
        assert_eq!(status.table(false), table);
        assert!(status.table(true).contains("\x1b[33mPending\x1b[0m"));
        let none = Status::of(&World::default()).table(false);
        assert_eq!(none, "There is no EgressNATPolicy.\n");
    }
}
