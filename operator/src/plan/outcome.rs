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
    let mut matched = vec![Matched::default(); policies.len()];
    for pod in pods.values().flatten() {
        for policy in &pod.policies {
            matched[*policy].pods += 1;
            matched[*policy]
                .families
                .extend(pod.ips.iter().map(|ip| Family::from(*ip)));
        }
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
                let matched = &matched[*index];
                PolicyOutcome {
                    id,
                    accepted: accepted(policy, matched),
                    gateway_ready: gateway_ready(in_force, matched),
                    gateway: in_force.resolution.gateway.clone(),
                    degraded: degraded(in_force, &nodes, plans),
                    matched_pods: matched.pods,
                    nodes,
                }
            }
        };
        (name.clone(), outcome)
    };
    world.policies.iter().map(outcome).collect()
}

/// The pods that a policy selects.
#[derive(Clone, Debug, Default)]
struct Matched {
    /// How many.
    pods: usize,
    /// The families of their addresses.
    families: BTreeSet<Family>,
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
        PolicySpec::Refused(_) => accepted(policy, &Matched::default()),
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

fn accepted(policy: &Policy, matched: &Matched) -> Verdict {
    match &policy.spec {
        PolicySpec::Valid(_) if matched.pods == 0 => Verdict::yes(
            Reason::Accepted,
            "the spec is in force, but no pod matches its selectors",
        ),
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
                "{error}. The spec that was in force is not known any more: until this one is corrected, \
                 the packets of the selected pods {}",
                fate(guard.no_gateway)
            ),
        ),
        PolicySpec::Refused(error) => {
            Verdict::no(Reason::InvalidSpec, format!("{error}. Nothing is in force"))
        }
    }
}

/// What becomes of packets that no gateway can take.
fn fate(no_gateway: NoGateway) -> &'static str {
    match no_gateway {
        NoGateway::Drop => "are dropped",
        NoGateway::NodeIP => "leave with their node's address",
    }
}

/// The resolver's verdict. Where the user named no destinations, it also names a family of the pods that is
/// captured and not served: nothing is wrong with that, but it should not surprise.
fn gateway_ready(policy: &InForce<'_>, matched: &Matched) -> Verdict {
    let mut verdict = policy.resolution.verdict.clone();
    let unserved = unserved(policy);
    let surprise = unserved.iter().find(|family| matched.families.contains(family));
    if let (None, Some(family)) = (&policy.spec.named_families, surprise) {
        let fate = fate(policy.spec.no_gateway);
        verdict.message.push_str(&format!(
            "; without an {family:?} address, {family:?} packets {fate}"
        ));
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
            "destinationCIDRs name {family:?}, but {node} has no {family:?} address to send with: \
             such packets {}; add an address, or remove these CIDRs",
            fate(policy.spec.no_gateway)
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
            "{} have no InternalIP of the cluster's first family to tunnel from: packets of their pods {}",
            some_of(rootless),
            fate(policy.spec.no_gateway)
        );
        reasons.push((Reason::SourceWithoutUnderlay, message));
    }
    reasons
}
