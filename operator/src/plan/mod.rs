//! From the [`World`] to a plan for every node, and what became of every policy.
//!
//! Pure: no client, no clock, no environment, no order of events. Equal worlds give equal outcomes.
//!
//! What is the same for all nodes is worked out once: ids, gateways, the cluster's ranges, a flattened
//! profile per distinct set of policies, the tunnels. After that a node's plan is a function of its own pods.
//!
//! A policy with several gateways is several policies to the nodes: each entry of `egressGateways` is a
//! [`Slot`] with an id of its own, and each pod uses one of them ([`choose`]). Agents do not know more.

pub mod choose;
pub mod cluster;
pub mod gateway;
pub mod gateways;
#[cfg(test)]
mod golden;
pub mod ids;
pub mod lost;
pub mod masquerade;
pub mod node;
pub mod outcome;
pub mod peers;
pub mod profiles;
pub mod select;
pub mod sharing;
mod verdict;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::interval::Interval;
use egressnat_crds::plan::Family;

pub use self::outcome::{GatewayOutcome, PolicyOutcome};

use self::gateway::{Resolution, Resolver, zone_of};
use self::ids::Bearer;
use self::lost::{Set, Sets};
use self::masquerade::Masquerading;
use self::peers::Tunnels;
use self::profiles::{Flat, Layers};
use self::select::SelectedPod;
use crate::choice::EntryKey;
use crate::valid::ValidPolicy;
use crate::world::{Policy, World};

/// Everything that follows from a [`World`].
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// A plan for every node, by its name.
    pub plans: BTreeMap<String, EgressPlanSpec>,
    /// What became of every policy, by its name.
    pub policies: BTreeMap<String, PolicyOutcome>,
}

/// A policy that is in force.
#[derive(Debug)]
pub struct InForce<'a> {
    /// Its name.
    pub name: &'a str,
    /// What is in force of it.
    pub spec: &'a ValidPolicy,
    /// Its gateways, as indexes into [`Policies::slots`]: at least one, in the order of the spec.
    pub slots: Range<usize>,
}

/// A gateway of a policy, with the id that its packets carry.
#[derive(Debug)]
pub struct Slot {
    /// The policy, as an index into [`Policies::policies`].
    pub policy: usize,
    /// Its id.
    pub id: u16,
    /// Which entry of `egressGateways` it is.
    pub key: Option<EntryKey>,
    /// The gateway.
    pub resolution: Resolution,
}

/// The policies in force, in order of precedence, and their slots, in the same order.
#[derive(Debug, Default)]
pub struct Policies<'a> {
    /// The policies.
    pub policies: Vec<InForce<'a>>,
    /// The slots of all of them.
    pub slots: Vec<Slot>,
}

/// What is the same for all nodes.
#[derive(Debug)]
pub struct Shared<'a> {
    /// The policies in force.
    pub in_force: &'a Policies<'a>,
    /// The flattened destinations of every set of slots that a pod uses.
    pub profiles: BTreeMap<Vec<usize>, Flat>,
    /// Who tunnels to whom.
    pub tunnels: Tunnels<'a>,
    /// The cluster's own ranges.
    pub cluster: Vec<Interval>,
    /// The family of the tunnel.
    pub underlay: Family,
    /// The default local egress, where the installation asks for it.
    pub masquerading: Option<Masquerading<'a>>,
}

/// Makes all plans.
pub fn plan(world: &World) -> Outcome {
    let ids = ids::assign(world);
    let in_force = in_force(world, &ids);
    let pods = select::pods_by_node(world, &in_force);
    let (sets, profiles) = flatten(&pods, &in_force);
    let underlay = world.underlay_family();
    let cluster = cluster::ranges(world);
    let shared = Shared {
        tunnels: tunnels(world, underlay, &pods, &in_force, &profiles),
        profiles,
        masquerading: Masquerading::new(world, &cluster),
        cluster,
        underlay,
        in_force: &in_force,
    };
    let none = Vec::new();
    let plans: BTreeMap<String, EgressPlanSpec> = world
        .nodes
        .keys()
        .map(|name| {
            let pods = pods.get(name.as_str()).unwrap_or(&none);
            (name.clone(), node::plan(name, pods, &shared, world))
        })
        .collect();
    let policies = outcome::of_policies(world, &ids, &in_force, &sets, &pods, &plans);
    Outcome { plans, policies }
}

impl<'a> Policies<'a> {
    /// Adds the policy that comes next in order of precedence, with its slots.
    fn push(&mut self, name: &'a str, spec: &'a ValidPolicy, slots: impl Iterator<Item = Slot>) {
        let start = self.slots.len();
        self.slots.extend(slots);
        self.policies.push(InForce {
            name,
            spec,
            slots: start..self.slots.len(),
        });
    }

    /// The policy of a slot.
    pub fn policy_of(&self, slot: usize) -> &InForce<'a> {
        &self.policies[self.slots[slot].policy]
    }

    /// The gateway of a slot for pods of nodes in `zone`, if there is one that may serve them.
    pub fn gateway_of(&self, slot: usize, zone: Option<&str>) -> Option<&gateway::Gateway> {
        let affinity = self.policy_of(slot).spec.zone_affinity;
        choose::serving(&self.slots[slot], affinity, zone)
    }
}

/// The policies in force: the higher priority first, then the older, then the name that sorts first.
fn in_force<'a>(world: &'a World, ids: &BTreeMap<Bearer<'a>, u16>) -> Policies<'a> {
    let mut ranked: Vec<(&str, &Policy, &ValidPolicy)> = world
        .policies
        .iter()
        .filter_map(|(name, p)| Some((name.as_str(), p, p.in_force()?)))
        .filter(|(name, _, spec)| spec.gateways.iter().all(|g| ids.contains_key(&(*name, g.key))))
        .collect();
    ranked.sort_by_key(|(name, policy, spec)| (Reverse(spec.priority), policy.created, *name));
    let resolver = Resolver::new(world);
    let mut all = Policies::default();
    for (index, (name, policy, spec)) in ranked.into_iter().enumerate() {
        let resolutions = gateways::resolve(&resolver, spec, &policy.status);
        let slots = spec.gateways.iter().zip(resolutions);
        let slots = slots.map(|(entry, resolution)| Slot {
            policy: index,
            id: ids[&(name, entry.key)],
            key: entry.key,
            resolution,
        });
        all.push(name, spec, slots);
    }
    all
}

/// Lays the destinations side by side once for each set of policies, and names the slots for each set of those.
fn flatten(
    pods: &BTreeMap<&str, Vec<SelectedPod<'_>>>,
    in_force: &Policies<'_>,
) -> (Sets, BTreeMap<Vec<usize>, Flat>) {
    let mut by_slots: BTreeMap<&[usize], usize> = BTreeMap::new();
    for pod in pods.values().flatten() {
        *by_slots.entry(&pod.slots).or_default() += 1;
    }
    let mut sets = Sets::new();
    let mut profiles: BTreeMap<Vec<usize>, Flat> = BTreeMap::new();
    for (slots, pods) in by_slots {
        let policies = slots.iter().map(|slot| in_force.slots[*slot].policy).collect();
        let set = sets.entry(policies).or_insert_with_key(|policies| Set {
            layers: Layers::of(policies, &in_force.policies),
            pods: 0,
        });
        set.pods += pods;
        profiles.insert(slots.to_vec(), set.layers.with(slots, &in_force.slots));
    }
    (sets, profiles)
}

fn tunnels<'a>(
    world: &'a World,
    underlay: Family,
    pods: &BTreeMap<&'a str, Vec<SelectedPod<'_>>>,
    in_force: &'a Policies<'a>,
    profiles: &BTreeMap<Vec<usize>, Flat>,
) -> Tunnels<'a> {
    let mut tunnels = Tunnels::default();
    for (node, pods) in pods {
        let Some(known) = world.nodes.get(*node).filter(|n| n.underlay(underlay).is_some()) else {
            continue;
        };
        let zone = zone_of(known);
        for pod in pods {
            for slot in profiles.get(&pod.slots).into_iter().flat_map(|f| &f.slots) {
                if let Some(gateway) = in_force.gateway_of(*slot, zone) {
                    tunnels.add(node, &gateway.node, &pod.ips);
                }
            }
        }
    }
    tunnels
}
