//! What became of every policy, before any agent has said a word.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use egressnat_crds::plan::Family;

use super::gateway::Gateway;
use super::lost::{self, Lost};
use super::policies::{InForce, Slot};
use super::share::Share;
use super::shared::Shared;
use super::sharing::Sharing;
use super::totals::{Sum, Totals};
use super::verdict;
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
    /// Which of the policy's gateways it is, where there may be several.
    pub key: Option<EntryKey>,
    /// Its id.
    pub id: u16,
    /// The gateway in force.
    pub gateway: Option<Gateway>,
    /// How many pods use it.
    pub pods: usize,
}

/// The outcomes of those of the policies `names` that are there, by name.
pub fn of_policies<'a>(
    names: impl IntoIterator<Item = &'a str>,
    world: &World,
    shared: &Shared,
    shares: &BTreeMap<Arc<str>, Share>,
    totals: &Totals,
) -> BTreeMap<String, PolicyOutcome> {
    let names: BTreeSet<&str> = names.into_iter().collect();
    let in_force = names.iter().filter_map(|name| shared.by_name.get(*name).copied());
    let mut lost = lost::of_policies(&totals.sets, &shared.in_force.policies, &in_force.collect());
    let outcome = |name: &str| {
        let (name, policy) = world.policies.get_key_value(name)?;
        let id = shared.ids.get(name).copied();
        let outcome = match shared.by_name.get(name) {
            None => not_in_force(id, policy),
            Some(index) => {
                let matched = matched(*index, shared, totals);
                let lost = lost.remove(index).unwrap_or_default();
                let standing = standing(*index, &matched, lost, shared, totals);
                of_policy(id, policy, &standing, shares)
            }
        };
        Some((name.clone(), outcome))
    };
    names.into_iter().filter_map(outcome).collect()
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
    pub policy: &'a InForce,
    /// Its slots, and the pods that use them.
    pub slots: Vec<(&'a Slot, &'a Matched<'a>)>,
    /// What it loses to other policies.
    pub lost: Vec<Lost>,
    /// Who sends with its addresses.
    pub sharing: &'a Sharing,
    /// The nodes that have a part in it.
    pub nodes: BTreeSet<&'a str>,
}

fn standing<'a>(
    index: usize,
    matched: &'a [Matched<'a>],
    lost: Vec<Lost>,
    shared: &'a Shared,
    totals: &'a Totals,
) -> Standing<'a> {
    let policy = &shared.in_force.policies[index];
    let slots = &shared.in_force.slots[policy.slots.clone()];
    let sums = &totals.slots[policy.slots.clone()];
    let gateways = slots.iter().filter_map(|slot| slot.resolution.gateway.as_ref());
    let sources = sums.iter().flat_map(|sum| &sum.sources);
    let nodes = gateways.map(|gateway| gateway.node.as_str());
    Standing {
        policy,
        sharing: &shared.sharing,
        slots: slots.iter().zip(matched).collect(),
        lost,
        nodes: nodes.chain(sources.map(|node| &**node)).collect(),
    }
}

fn of_policy(
    id: Option<u16>,
    policy: &Policy,
    standing: &Standing<'_>,
    shares: &BTreeMap<Arc<str>, Share>,
) -> PolicyOutcome {
    let slots = standing.slots.iter();
    let matched_pods = slots.clone().map(|(_, matched)| matched.pods).sum();
    PolicyOutcome {
        id,
        accepted: verdict::accepted(policy, matched_pods, &standing.lost),
        gateway_ready: verdict::gateway_ready(standing),
        gateways: slots.map(|(slot, matched)| of_gateway(slot, matched)).collect(),
        lost: standing.lost.clone(),
        degraded: verdict::degraded(standing, shares),
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

/// The pods that use each slot of a policy.
fn matched<'a>(policy: usize, shared: &Shared, totals: &'a Totals) -> Vec<Matched<'a>> {
    let slots = shared.in_force.policies[policy].slots.clone();
    let families = [Family::IPv4, Family::IPv6];
    let matched = |sum: &'a Sum| Matched {
        pods: sum.pods,
        families: families
            .into_iter()
            .filter(|f| sum.ips[*f as usize] > 0)
            .collect(),
        far: sum.far.iter().map(|(node, pods)| (&**node, *pods)).collect(),
    };
    totals.slots[slots].iter().map(matched).collect()
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
