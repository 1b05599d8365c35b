//! Is what was sent in place? The nodes' plans tell what the operator made of it, their status what the kernels hold.

use std::collections::BTreeMap;

use egressnat_crds::{EgressNATPolicy, EgressPlan, plan::PlanPolicy};
use kube::ResourceExt;

use super::{
    model::{Policy, applies},
    place::{EGRESS, NAMESPACES, OUTSIDE},
    timeline::Time,
    world::{Pod, World},
};
use crate::site::NODES;

/// A wait for what was sent before a moment.
#[derive(Debug)]
pub struct Wait {
    sent: Time,
    /// By node: the first generation of the plan that says all, as it was seen when the operator had read all.
    said: BTreeMap<usize, i64>,
}

impl Wait {
    /// For all that was sent until now.
    #[must_use]
    pub fn new(sent: Time) -> Self {
        Self {
            sent,
            said: BTreeMap::new(),
        }
    }

    /// Looks at what the API server shows; returns what is missing still.
    pub fn missing(
        &mut self,
        world: &World,
        policies: &[EgressNATPolicy],
        plans: &[EgressPlan],
    ) -> Vec<String> {
        let mut missing = unread(world, policies);
        // Until then a plan may say it by accident: what is deleted and made again as it was is in it before and after.
        if !missing.is_empty() {
            return missing;
        }
        for (node, spec) in NODES.iter().enumerate() {
            let Some(plan) = plans
                .iter()
                .find(|plan| plan.metadata.name.as_deref() == Some(spec.name))
            else {
                missing.push(format!("{} has no plan", spec.name));
                continue;
            };
            let generation = plan.metadata.generation.unwrap_or_default();
            let holds = plan.status.as_ref().and_then(|status| status.observed_generation);
            let said = match self.said.get(&node) {
                Some(said) => *said,
                None => match contradictions(world, plan, node, self.sent) {
                    none if none.is_empty() => *self.said.entry(node).or_insert(generation),
                    some => {
                        missing.extend(some);
                        continue;
                    }
                },
            };
            if holds.is_none_or(|holds| holds < said) {
                missing.push(format!(
                    "the kernel of {} holds generation {holds:?}, not {said}",
                    spec.name
                ));
            }
        }
        missing
    }
}

/// Policies of which the operator has not said yet that it knows them as they are. One that is deleted says nothing:
/// for it speaks the one that was edited after it ([`super::api::Server::send_barrier`]).
fn unread(world: &World, policies: &[EgressNATPolicy]) -> Vec<String> {
    let is_read = |policy: &EgressNATPolicy| {
        let status = policy.status.as_ref();
        let mut conditions = status.iter().flat_map(|status| &status.conditions);
        let accepted = conditions.find(|condition| condition.type_ == "Accepted");
        accepted.is_some_and(|accepted| accepted.observed_generation == policy.metadata.generation)
    };
    let unread = policies
        .iter()
        .filter(|policy| !is_read(policy))
        .map(ResourceExt::name_any);
    let is_shown = |name: &str| policies.iter().any(|policy| policy.name_any() == name);
    let not_shown = world
        .current_policies()
        .filter(|(name, _)| !is_shown(name))
        .map(|(name, _)| name.to_owned());
    unread
        .chain(not_shown)
        .map(|name| format!("{name} is not read"))
        .collect()
}

/// Where a plan says something else than the history.
fn contradictions(world: &World, plan: &EgressPlan, node: usize, sent: Time) -> Vec<String> {
    let policies: BTreeMap<&str, &Policy> = world.current_policies().collect();
    let pods = world
        .pods
        .values()
        .filter(|pod| pod.node == node && pod.removed.is_none());
    let of_pods = pods.filter_map(|pod| of_pod(world, plan, pod, sent));
    let of_policies = plan
        .spec
        .policies
        .iter()
        .filter_map(|own| of_policy(world, own, *policies.get(own.name.as_str())?, node));
    of_pods.chain(of_policies).chain(of_gate(world, plan)).collect()
}

/// A pod that is to come must be waited for in every namespace that a policy may select from.
fn of_gate(world: &World, plan: &EgressPlan) -> Option<String> {
    let gate = plan.spec.closed_gate()?;
    let may_select = |policy: &Policy, label| policy.selector.namespace.is_none_or(|wanted| wanted == label);
    NAMESPACES
        .iter()
        .zip(&world.namespaces)
        .filter(|(_, label)| {
            world
                .current_policies()
                .any(|(_, policy)| may_select(policy, *label.last()))
        })
        .find(|(name, _)| !gate.namespaces.iter().any(|gated| gated == *name))
        .map(|(name, _)| format!("the gate of {} does not know {name}", plan.name_any()))
}

/// A pod that came after what is waited for, and is not known yet, will be known with it.
fn of_pod(world: &World, plan: &EgressPlan, pod: &Pod, sent: Time) -> Option<String> {
    let planned = plan.spec.pods.iter().find(|planned| planned.uid == pod.uid);
    if planned.is_none() && (pod.created >= sent || pod.deleted.is_some()) {
        return None;
    }
    let profile = planned.and_then(|pod| {
        plan.spec
            .profiles
            .iter()
            .find(|profile| profile.id == pod.profile)
    });
    for (place, hosts) in OUTSIDE.iter().enumerate() {
        let expected = applies(
            world.current_policies().map(|(_, policy)| policy),
            world.labels(pod),
            place,
        );
        let expected = world
            .current_policies()
            .find(|(_, policy)| Some(*policy) == expected)
            .map(|(name, _)| name);
        for host in hosts {
            let destinations = profile.iter().flat_map(|profile| &profile.destinations);
            let id = destinations
                .filter(|destination| destination.range.contains(*host))
                .map(|destination| destination.policy)
                .next();
            let name = plan.spec.policies.iter().find(|policy| Some(policy.id) == id);
            let name = name.map(|policy| policy.name.as_str());
            if name != expected {
                return Some(format!(
                    "{} to {host} is planned by {name:?}, not by {expected:?}",
                    pod.name
                ));
            }
        }
    }
    None
}

fn of_policy(world: &World, own: &PlanPolicy, policy: &Policy, node: usize) -> Option<String> {
    let holder = world.holders[policy.egress];
    let gateway = (!policy.by_label || world.gateways[holder]).then_some(holder);
    if let Some(source) = &own.source
        && source.gateway.as_deref() != gateway.map(|gateway| NODES[gateway].name)
    {
        return Some(format!(
            "{} sends {} to {:?}, not to {gateway:?}",
            NODES[node].name, own.name, source.gateway
        ));
    }
    let addresses = own.gateway.as_ref().map(|role| &role.addresses);
    if gateway == Some(node) && addresses.is_some_and(|addresses| **addresses != EGRESS[policy.egress]) {
        return Some(format!("{} gives {} {addresses:?}", NODES[node].name, own.name));
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A policy that the operator has read, or has not.
    fn policy(is_read: bool) -> EgressNATPolicy {
        let of = |generation: i64| {
            json!({
                "apiVersion": "egressnat.io/v1alpha1",
                "kind": "EgressNATPolicy",
                "metadata": {"name": "hunt-a", "generation": generation},
                "spec": {"selectors": [], "egressSourceIP": "172.18.1.1"},
                "status": {"conditions": [{
                    "type": "Accepted", "status": "True", "reason": "Valid", "message": "",
                    "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
                }]},
            })
        };
        serde_json::from_value(of(if is_read { 1 } else { 2 })).expect("a policy")
    }

    /// Each node's plan of this generation, without any pod, and the one that its kernel holds.
    fn plans(generation: i64, holds: i64) -> Vec<EgressPlan> {
        let of = |name: &str| {
            let plan = json!({
                "apiVersion": "egressnat.io/v1alpha1",
                "kind": "EgressPlan",
                "metadata": {"name": name, "generation": generation},
                "spec": {},
                "status": {"observedGeneration": holds},
            });
            serde_json::from_value(plan).expect("a plan")
        };
        NODES.iter().map(|node| of(node.name)).collect()
    }

    /// Made again as it was, it is in the plans before the operator has heard of it, and then is not, and is again.
    #[test]
    fn a_plan_counts_that_was_made_when_the_operator_had_read_all() {
        let (world, mut wait) = (World::new(), Wait::new(1));
        let mut missing =
            |is_read, generation, holds| wait.missing(&world, &[policy(is_read)], &plans(generation, holds));
        assert_eq!(missing(false, 5, 5), ["hunt-a is not read"]);
        assert_eq!(missing(true, 7, 6).len(), NODES.len());
        assert_eq!(missing(true, 7, 7), [""; 0]);
    }
}
