//! What became of every policy, before any agent has said a word.

use std::collections::{BTreeMap, BTreeSet};

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::Family;
use egressnat_crds::policy::NoGateway;

use super::InForce;
use super::gateway::Gateway;
use super::select::SelectedPod;
use crate::condition::{Reason, Verdict, some_of};
use crate::world::{Policy, PolicySpec, World};

/// What became of a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyOutcome {
    /// Its id.
    pub id: Option<u16>,
    /// Condition `Accepted`.
    pub accepted: Verdict,
    /// Condition `GatewayReady`.
    pub gateway_ready: Verdict,
    /// The gateway in force.
    pub gateway: Option<Gateway>,
    /// What works only in part, and why.
    pub degraded: Vec<(Reason, String)>,
    /// How many pods it selects.
    pub matched_pods: usize,
    /// The nodes that must know it.
    pub nodes: BTreeSet<String>,
}

/// The outcome of every policy, by name.
pub fn of_policies(
    world: &World,
    ids: &BTreeMap<&str, u16>,
    policies: &[InForce<'_>],
    pods: &BTreeMap<&str, Vec<SelectedPod<'_>>>,
    plans: &BTreeMap<String, EgressPlanSpec>,
) -> BTreeMap<String, PolicyOutcome> {
    let mut matched = vec![0; policies.len()];
    for policy in pods.values().flatten().flat_map(|p| &p.policies) {
        matched[*policy] += 1;
    }
    let mut nodes = nodes_by_policy(plans);
    let in_force: BTreeMap<&str, (usize, &InForce)> = policies
        .iter()
        .enumerate()
        .map(|(i, p)| (p.name, (i, p)))
        .collect();
    let outcome = |(name, policy): (&String, &Policy)| {
        let id = ids.get(name.as_str()).copied();
        let outcome = match in_force.get(name.as_str()) {
            None => not_in_force(id, policy),
            Some((index, in_force)) => {
                let nodes = nodes.remove(&in_force.id).unwrap_or_default();
                PolicyOutcome {
                    id,
                    accepted: accepted(policy),
                    gateway_ready: gateway_ready(in_force),
                    gateway: in_force.resolution.gateway.clone(),
                    degraded: degraded(in_force, &nodes, plans),
                    matched_pods: matched[*index],
                    nodes,
                }
            }
        };
        (name.clone(), outcome)
    };
    world.policies.iter().map(outcome).collect()
}

fn nodes_by_policy(plans: &BTreeMap<String, EgressPlanSpec>) -> BTreeMap<u16, BTreeSet<String>> {
    let mut nodes: BTreeMap<u16, BTreeSet<String>> = BTreeMap::new();
    for (node, plan) in plans {
        for policy in &plan.policies {
            nodes.entry(policy.id).or_default().insert(node.clone());
        }
    }
    nodes
}

fn not_in_force(id: Option<u16>, policy: &Policy) -> PolicyOutcome {
    let accepted = match &policy.spec {
        PolicySpec::Refused(_) => accepted(policy),
        _ => Verdict::no(
            Reason::IdsExhausted,
            "all 16383 policy ids are taken: delete policies, or say more in one",
        ),
    };
    PolicyOutcome {
        id,
        accepted,
        gateway_ready: Verdict::no(Reason::NotAccepted, "the policy is not accepted"),
        gateway: None,
        degraded: Vec::new(),
        matched_pods: 0,
        nodes: BTreeSet::new(),
    }
}

fn accepted(policy: &Policy) -> Verdict {
    match &policy.spec {
        PolicySpec::Valid(_) => Verdict::yes(Reason::Accepted, "the spec is in force"),
        PolicySpec::Kept {
            generation, error, ..
        } => Verdict::no(
            Reason::InvalidSpec,
            format!("{error}. The spec of generation {generation} stays in force"),
        ),
        PolicySpec::Guarded { guard, error } => Verdict::no(
            Reason::InvalidSpec,
            format!(
                "{error}. The spec that was in force is not known any more: until this one is corrected, {}",
                without_gateway(guard.no_gateway)
            ),
        ),
        PolicySpec::Refused(error) => {
            Verdict::no(Reason::InvalidSpec, format!("{error}. Nothing is in force"))
        }
    }
}

fn without_gateway(no_gateway: NoGateway) -> &'static str {
    match no_gateway {
        NoGateway::Drop => "packets of the selected pods are dropped",
        NoGateway::NodeIP => "packets of the selected pods leave with their node's address",
    }
}

/// The resolver's verdict; it names a family that is captured but not served, where the user named none.
fn gateway_ready(policy: &InForce<'_>) -> Verdict {
    let mut verdict = policy.resolution.verdict.clone();
    if policy.spec.named_families.is_none()
        && let Some(family) = unserved(policy).first()
    {
        let fate = match policy.spec.no_gateway {
            NoGateway::Drop => "is dropped",
            NoGateway::NodeIP => "leaves with the node's address",
        };
        verdict
            .message
            .push_str(&format!("; {family:?} {fate}, since there is no address of it"));
    }
    verdict
}

/// Families of the policy's destinations that its gateway has no address of.
fn unserved(policy: &InForce<'_>) -> Vec<Family> {
    let Some(gateway) = &policy.resolution.gateway else {
        return Vec::new();
    };
    let served = gateway.families();
    let mut families: BTreeSet<Family> = policy
        .spec
        .destinations
        .iter()
        .map(|d| Family::from(d.first()))
        .collect();
    families.retain(|f| !served.contains(f));
    families.into_iter().collect()
}

fn degraded(
    policy: &InForce<'_>,
    nodes: &BTreeSet<String>,
    plans: &BTreeMap<String, EgressPlanSpec>,
) -> Vec<(Reason, String)> {
    let mut reasons = Vec::new();
    let unserved = unserved(policy);
    let named = policy.spec.named_families.as_ref();
    if let (Some(gateway), Some(family)) = (&policy.resolution.gateway, unserved.first())
        && named.is_some()
    {
        let node = &gateway.node;
        let message = format!(
            "destinationCIDRs name {family:?}, but gateway {node} has no {family:?} address to send with: \
             {} there; add an address, or remove these CIDRs",
            without_gateway(policy.spec.no_gateway)
        );
        reasons.push((Reason::FamilyNotServed, message));
    }
    if let Some(conflict) = &policy.resolution.conflict {
        reasons.push((Reason::AddressConflict, conflict.clone()));
    }
    let rootless = nodes
        .iter()
        .filter(|n| plans.get(*n).is_some_and(|p| p.underlay.is_none()));
    let rootless: Vec<&str> = rootless.map(String::as_str).collect();
    if !rootless.is_empty() {
        let message = format!(
            "{} have no InternalIP of the cluster's first family to tunnel from: {} there",
            some_of(rootless),
            without_gateway(policy.spec.no_gateway)
        );
        reasons.push((Reason::SourceWithoutUnderlay, message));
    }
    reasons
}
