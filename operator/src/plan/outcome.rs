//! What became of every policy, before any agent has said a word.

use std::collections::{BTreeMap, BTreeSet};

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::Family;

use super::gateway::{Gateway, zone_of};
use super::ids::Bearer;
use super::lost::{self, Lost, Sets};
use super::select::SelectedPod;
use super::sharing::Sharing;
use super::{InForce, Policies, Slot, verdict};
use crate::choice::EntryKey;
use crate::condition::{Reason, Verdict};
use crate::world::{Policy, World};

/// What became of a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyOutcome {
    /// Its id. One with several gateways has none: each of them has its own.
    pub id: Option<u16>,
    /// Condition `Accepted`.
    pub accepted: Verdict,
    /// Condition `GatewayReady`.
    pub gateway_ready: Verdict,
    /// Its gateways, in the order of the spec.
    pub gateways: Vec<GatewayOutcome>,
    /// What it loses to other policies.
    pub lost: Vec<Lost>,
    /// What works only in part, and why.
    pub degraded: Vec<(Reason, String)>,
    /// How many pods it selects.
    pub matched_pods: usize,
    /// The nodes that must know it.
    pub nodes: BTreeSet<String>,
}

/// What became of a gateway that a policy asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayOutcome {
    /// Which entry of `egressGateways` it is.
    pub key: Option<EntryKey>,
    /// Its id.
    pub id: u16,
    /// The gateway in force.
    pub gateway: Option<Gateway>,
    /// How many pods use it.
    pub pods: usize,
}

/// The outcome of every policy, by name.
pub fn of_policies(
    world: &World,
    ids: &BTreeMap<Bearer<'_>, u16>,
    in_force: &Policies<'_>,
    sets: &Sets,
    pods: &BTreeMap<&str, Vec<SelectedPod<'_>>>,
    plans: &BTreeMap<String, EgressPlanSpec>,
) -> BTreeMap<String, PolicyOutcome> {
    let matched = matched(world, in_force, pods);
    let sharing = Sharing::of(in_force);
    let standings = standings(in_force, sets, &matched, &sharing, plans);
    let outcome = |(name, policy): (&String, &Policy)| {
        let id = ids.get(&(name.as_str(), None)).copied();
        let outcome = match standings.get(name.as_str()) {
            None => not_in_force(id, policy),
            Some(standing) => of_policy(id, policy, standing, plans),
        };
        (name.clone(), outcome)
    };
    world.policies.iter().map(outcome).collect()
}

/// The pods that use a slot.
#[derive(Clone, Debug, Default)]
pub struct Matched<'a> {
    /// How many.
    pub pods: usize,
    /// The families of their addresses.
    pub families: BTreeSet<Family>,
    /// The nodes of those among them that it may not serve, since they are in other zones.
    pub far: BTreeMap<&'a str, usize>,
}

/// A policy in force, for its verdicts.
pub struct Standing<'a> {
    /// The policy.
    pub policy: &'a InForce<'a>,
    /// Its slots, and the pods that use them.
    pub slots: Vec<(&'a Slot, &'a Matched<'a>)>,
    /// What it loses to other policies.
    pub lost: Vec<Lost>,
    /// Who sends with its addresses.
    pub sharing: &'a Sharing<'a>,
    /// The nodes that have a part in it.
    pub nodes: BTreeSet<&'a str>,
}

/// The policies in force, by name.
fn standings<'a>(
    in_force: &'a Policies<'a>,
    sets: &Sets,
    matched: &'a [Matched<'a>],
    sharing: &'a Sharing<'a>,
    plans: &'a BTreeMap<String, EgressPlanSpec>,
) -> BTreeMap<&'a str, Standing<'a>> {
    let nodes = nodes_by_id(plans);
    let mut lost = lost::of_policies(sets, &in_force.policies);
    let standing = |(index, policy): (usize, &'a InForce<'a>)| {
        let slots = in_force.slots[policy.slots.clone()].iter();
        let slots: Vec<(&Slot, &Matched)> = slots.zip(&matched[policy.slots.clone()]).collect();
        let nodes = slots.iter().filter_map(|(slot, _)| nodes.get(&slot.id));
        let standing = Standing {
            policy,
            sharing,
            nodes: nodes.flatten().copied().collect(),
            slots,
            lost: lost.remove(&index).unwrap_or_default(),
        };
        (policy.name, standing)
    };
    in_force.policies.iter().enumerate().map(standing).collect()
}

fn of_policy(
    id: Option<u16>,
    policy: &Policy,
    standing: &Standing<'_>,
    plans: &BTreeMap<String, EgressPlanSpec>,
) -> PolicyOutcome {
    let slots = standing.slots.iter();
    let matched_pods = slots.clone().map(|(_, matched)| matched.pods).sum();
    PolicyOutcome {
        id,
        accepted: verdict::accepted(policy, matched_pods, &standing.lost),
        gateway_ready: verdict::gateway_ready(standing),
        gateways: slots.map(|(slot, matched)| of_gateway(slot, matched)).collect(),
        lost: standing.lost.clone(),
        degraded: verdict::degraded(standing, plans),
        matched_pods,
        nodes: standing.nodes.iter().map(|node| (*node).to_owned()).collect(),
    }
}

fn of_gateway(slot: &Slot, matched: &Matched<'_>) -> GatewayOutcome {
    let far: usize = matched.far.values().sum();
    GatewayOutcome {
        key: slot.key,
        id: slot.id,
        gateway: slot.resolution.gateway.clone(),
        pods: slot.resolution.gateway.as_ref().map_or(0, |_| matched.pods - far),
    }
}

/// The pods that use each slot.
fn matched<'a>(
    world: &World,
    in_force: &Policies<'_>,
    pods: &BTreeMap<&'a str, Vec<SelectedPod<'_>>>,
) -> Vec<Matched<'a>> {
    let mut matched = vec![Matched::default(); in_force.slots.len()];
    for (node, pods) in pods {
        let zone = world.nodes.get(*node).and_then(zone_of);
        for pod in pods {
            for slot in &pod.slots {
                let of_slot = &mut matched[*slot];
                of_slot.pods += 1;
                of_slot
                    .families
                    .extend(pod.ips.iter().map(|ip| Family::from(*ip)));
                let has_one = in_force.slots[*slot].resolution.gateway.is_some();
                if has_one && in_force.gateway_of(*slot, zone).is_none() {
                    *of_slot.far.entry(node).or_default() += 1;
                }
            }
        }
    }
    matched
}

fn nodes_by_id(plans: &BTreeMap<String, EgressPlanSpec>) -> BTreeMap<u16, BTreeSet<&str>> {
    let mut nodes: BTreeMap<u16, BTreeSet<&str>> = BTreeMap::new();
    for (node, plan) in plans {
        for policy in &plan.policies {
            nodes.entry(policy.id).or_default().insert(node);
        }
    }
    nodes
}

fn not_in_force(id: Option<u16>, policy: &Policy) -> PolicyOutcome {
    PolicyOutcome {
        id,
        accepted: verdict::not_in_force(policy),
        gateway_ready: Verdict::no(Reason::NotAccepted, "the policy is not accepted"),
        gateways: Vec::new(),
        lost: Vec::new(),
        degraded: Vec::new(),
        matched_pods: 0,
        nodes: BTreeSet::new(),
    }
}
