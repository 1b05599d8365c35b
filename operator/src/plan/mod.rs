//! From the [`World`] to a plan for every node, and what became of every policy.
//!
//! Pure: no client, no clock, no environment, no order of events. Equal worlds give equal outcomes.
//!
//! What is the same for all nodes is worked out once: ids, gateways, the cluster's ranges, a flattened
//! profile per distinct set of policies, the tunnels. After that a node's plan is a function of its own pods.

pub mod cluster;
pub mod gateway;
#[cfg(test)]
mod golden;
pub mod ids;
pub mod node;
pub mod outcome;
pub mod peers;
pub mod profiles;
pub mod select;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::interval::Interval;
use egressnat_crds::plan::Family;

pub use self::outcome::PolicyOutcome;

use self::gateway::{Resolution, Resolver};
use self::peers::Tunnels;
use self::profiles::Flat;
use self::select::SelectedPod;
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
    /// Its id.
    pub id: u16,
    /// What is in force of it.
    pub spec: &'a ValidPolicy,
    /// Its gateway.
    pub resolution: Resolution,
}

/// What is the same for all nodes.
#[derive(Debug)]
pub struct Shared<'a> {
    /// The policies in force, in order of precedence.
    pub policies: &'a [InForce<'a>],
    /// The flattened destinations of every set of policies that select a pod.
    pub profiles: BTreeMap<Vec<usize>, Flat>,
    /// Who tunnels to whom.
    pub tunnels: Tunnels<'a>,
    /// The cluster's own ranges.
    pub cluster: Vec<Interval>,
    /// The family of the tunnel.
    pub underlay: Family,
}

/// Makes all plans.
pub fn plan(world: &World) -> Outcome {
    let ids = ids::assign(world);
    let policies = in_force(world, &ids);
    let pods = select::pods_by_node(world, &policies);
    let profiles = flatten(&pods, &policies);
    let underlay = world.underlay_family();
    let shared = Shared {
        tunnels: tunnels(world, underlay, &pods, &policies, &profiles),
        profiles,
        cluster: cluster::ranges(world),
        underlay,
        policies: &policies,
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
    let policies = outcome::of_policies(world, &ids, &policies, &pods, &plans);
    Outcome { plans, policies }
}

/// FNV-1a, for numbers that follow from a name: small, and the same for ever.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The policies in force: the higher priority first, then the older, then the name that sorts first.
fn in_force<'a>(world: &'a World, ids: &BTreeMap<&str, u16>) -> Vec<InForce<'a>> {
    let mut ranked: Vec<(&str, &Policy, &ValidPolicy, u16)> = world
        .policies
        .iter()
        .filter_map(|(name, p)| Some((name.as_str(), p, p.in_force()?, *ids.get(name.as_str())?)))
        .collect();
    ranked.sort_by_key(|(name, policy, spec, _)| (Reverse(spec.priority), policy.created, *name));
    let resolver = Resolver::new(world);
    ranked
        .into_iter()
        .map(|(name, policy, spec, id)| {
            let current = policy.status.gateways.first().map(|g| g.node.as_str());
            InForce {
                name,
                id,
                spec,
                resolution: resolver.resolve(spec, current),
            }
        })
        .collect()
}

fn flatten(
    pods: &BTreeMap<&str, Vec<SelectedPod<'_>>>,
    policies: &[InForce<'_>],
) -> BTreeMap<Vec<usize>, Flat> {
    let mut profiles: BTreeMap<Vec<usize>, Flat> = BTreeMap::new();
    for pod in pods.values().flatten() {
        if !profiles.contains_key(&pod.policies) {
            profiles.insert(pod.policies.clone(), Flat::of(&pod.policies, policies));
        }
    }
    profiles
}

fn tunnels<'a>(
    world: &'a World,
    underlay: Family,
    pods: &BTreeMap<&'a str, Vec<SelectedPod<'_>>>,
    policies: &'a [InForce<'a>],
    profiles: &BTreeMap<Vec<usize>, Flat>,
) -> Tunnels<'a> {
    let mut tunnels = Tunnels::default();
    for (node, pods) in pods {
        if world
            .nodes
            .get(*node)
            .and_then(|n| n.underlay(underlay))
            .is_none()
        {
            continue;
        }
        for pod in pods {
            for policy in profiles.get(&pod.policies).into_iter().flat_map(|f| &f.policies) {
                if let Some(gateway) = &policies[*policy].resolution.gateway {
                    tunnels.add(node, &gateway.node, &pod.ips);
                }
            }
        }
    }
    tunnels
}
