//! The plan of one node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::{GatewayRole, PlanPod, PlanPolicy, Profile, SourceRole};

use super::profiles::{self, Flat};
use super::select::SelectedPod;
use super::{InForce, Shared};
use crate::world::World;

/// Makes the plan of the node `name`, whose selected pods are `pods`.
///
/// A node without a part in any policy has no cluster ranges either: its plan is not touched when other
/// nodes come and go.
pub fn plan(name: &str, pods: &[SelectedPod<'_>], shared: &Shared<'_>, world: &World) -> EgressPlanSpec {
    let underlay = world.nodes.get(name).and_then(|n| n.underlay(shared.underlay));
    let captured: Vec<(&SelectedPod, &Flat)> = pods
        .iter()
        .filter_map(|p| Some((p, shared.profiles.get(&p.policies)?)))
        .filter(|(_, flat)| !flat.destinations.is_empty())
        .collect();
    let numbers = profiles::numbers(captured.iter().map(|(_, flat)| flat.ids.as_slice()));
    let policies = policies(name, underlay, &captured, shared);
    EgressPlanSpec {
        underlay,
        cluster: match policies.is_empty() {
            true => Vec::new(),
            false => shared.cluster.clone(),
        },
        peers: shared.tunnels.peers(name, world, shared.underlay),
        policies,
        profiles: profile_list(&captured, &numbers),
        pods: captured
            .iter()
            .map(|(selected, flat)| PlanPod {
                uid: selected.pod.uid.clone(),
                name: format!("{}/{}", selected.pod.namespace, selected.pod.name),
                ips: selected.ips.clone(),
                profile: numbers[flat.ids.as_slice()],
            })
            .collect(),
    }
}

/// The policies in which the node has a part, by id.
fn policies(
    name: &str,
    underlay: Option<IpAddr>,
    captured: &[(&SelectedPod<'_>, &Flat)],
    shared: &Shared<'_>,
) -> Vec<PlanPolicy> {
    let used: BTreeSet<usize> = captured
        .iter()
        .flat_map(|(_, flat)| flat.policies.iter().copied())
        .collect();
    let part = |(index, policy): (usize, &InForce)| {
        let source = used.contains(&index).then(|| source_role(name, underlay, policy));
        let gateway = policy.resolution.gateway.as_ref().filter(|g| g.node == name);
        (source.is_some() || gateway.is_some()).then(|| PlanPolicy {
            id: policy.id,
            name: policy.name.to_owned(),
            source,
            gateway: gateway.map(|g| GatewayRole {
                addresses: g.addresses.clone(),
            }),
        })
    };
    let mut policies: Vec<PlanPolicy> = shared.policies.iter().enumerate().filter_map(part).collect();
    policies.sort_unstable_by_key(|p| p.id);
    policies
}

/// A gateway elsewhere is of no use to a node without an address to tunnel from.
fn source_role(name: &str, underlay: Option<IpAddr>, policy: &InForce<'_>) -> SourceRole {
    let gateway = policy.resolution.gateway.as_ref();
    let gateway = gateway.filter(|g| g.node == name || underlay.is_some());
    SourceRole {
        gateway: gateway.map(|g| g.node.clone()),
        families: gateway.map(|g| g.families()).unwrap_or_default(),
        no_gateway: policy.spec.no_gateway,
    }
}

fn profile_list(captured: &[(&SelectedPod<'_>, &Flat)], numbers: &BTreeMap<&[u16], u32>) -> Vec<Profile> {
    let distinct: BTreeMap<u32, &Flat> = captured
        .iter()
        .map(|(_, flat)| (numbers[flat.ids.as_slice()], *flat))
        .collect();
    distinct
        .into_iter()
        .map(|(id, flat)| Profile {
            id,
            destinations: flat.destinations.clone(),
        })
        .collect()
}
