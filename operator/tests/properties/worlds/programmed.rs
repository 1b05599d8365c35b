//! What operator and agents say when their work is done.

use egressnat_crds::EgressNATPolicyStatus;
use egressnat_crds::plan::EgressPlanStatus;
use egressnat_crds::policy::GatewayStatus;
use egressnat_operator::plan::{GatewayOutcome, Outcome, PolicyOutcome};
use egressnat_operator::world::{ExistingPlan, World};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::time;

/// What of a status is read again: ids and gateways.
pub fn status(outcome: &PolicyOutcome) -> EgressNATPolicyStatus {
    let gateway = |made: &GatewayOutcome| GatewayStatus {
        node: made.gateway.as_ref().map(|g| g.node.clone()).unwrap_or_default(),
        key: made.key.map(|key| key.to_string()),
        id: made.key.map(|_| made.id),
        ..GatewayStatus::default()
    };
    EgressNATPolicyStatus {
        id: outcome.id,
        gateways: outcome.gateways.iter().map(gateway).collect(),
        matched_pods: u32::try_from(outcome.matched_pods).unwrap(),
        ..EgressNATPolicyStatus::default()
    }
}

/// Makes the world as it is when every plan is written and every agent has done its work.
pub fn program(world: &mut World, outcome: &Outcome) {
    world.plans = outcome
        .plans
        .iter()
        .map(|(node, spec)| {
            let plan = ExistingPlan {
                uid: node.clone(),
                owner: Some(world.nodes[node].uid.clone()),
                generation: 1,
                spec: spec.clone(),
                status: EgressPlanStatus {
                    observed_generation: Some(1),
                    conditions: vec![ready()],
                    ..EgressPlanStatus::default()
                },
            };
            (node.clone(), plan)
        })
        .collect();
}

/// What an agent says of a plan that its kernel holds.
pub fn ready() -> Condition {
    Condition {
        last_transition_time: Time(time(0)),
        message: String::new(),
        observed_generation: Some(1),
        reason: "Programmed".into(),
        status: "True".into(),
        type_: "Ready".into(),
    }
}
