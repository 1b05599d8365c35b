//! The plan of one node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::{GatewayRole, PlanPod, PlanPolicy, Profile, SourceRole};

use super::gateway::zone_of;
use super::profiles::{self, Flat};
use super::select::SelectedPod;
use super::{Shared, Slot};
use crate::world::World;

/// Makes the plan of the node `name`, whose selected pods are `pods`.
///
/// A node without a part in any policy has no cluster ranges either: its plan is not touched when other
/// nodes come and go.
pub fn plan(name: &str, pods: &[SelectedPod<'_>], shared: &Shared<'_>, world: &World) -> EgressPlanSpec {
    let node = world.nodes.get(name);
    let at = At {
        name,
        underlay: node.and_then(|n| n.underlay(shared.underlay)),
        zone: node.and_then(zone_of),
    };
    let captured: Vec<(&SelectedPod, &Flat)> = pods
        .iter()
        .filter_map(|p| Some((p, shared.profiles.get(&p.slots)?)))
        .filter(|(_, flat)| !flat.destinations.is_empty())
        .collect();
    let numbers = profiles::numbers(captured.iter().map(|(_, flat)| flat.ids.as_slice()));
    let policies = policies(&at, &captured, shared);
    EgressPlanSpec {
        underlay: at.underlay,
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
        masquerade: shared.masquerading.as_ref().and_then(|m| m.of_node(name, world)),
    }
}

/// The node that a plan is for.
struct At<'a> {
    name: &'a str,
    underlay: Option<IpAddr>,
    zone: Option<&'a str>,
}

/// The policies in which the node has a part, by id: one for each slot.
fn policies(at: &At<'_>, captured: &[(&SelectedPod<'_>, &Flat)], shared: &Shared<'_>) -> Vec<PlanPolicy> {
    let used: BTreeSet<usize> = captured
        .iter()
        .flat_map(|(_, flat)| flat.slots.iter().copied())
        .collect();
    let part = |(index, slot): (usize, &Slot)| {
        let source = used.contains(&index).then(|| source_role(at, index, shared));
        let gateway = slot.resolution.gateway.as_ref().filter(|g| g.node == at.name);
        (source.is_some() || gateway.is_some()).then(|| PlanPolicy {
            id: slot.id,
            name: shared.in_force.policy_of(index).name.to_owned(),
            source,
            gateway: gateway.map(|g| GatewayRole {
                addresses: g.addresses.clone(),
                source_ports: shared.in_force.policy_of(index).spec.source_ports,
            }),
        })
    };
    let slots = shared.in_force.slots.iter().enumerate();
    let mut policies: Vec<PlanPolicy> = slots.filter_map(part).collect();
    policies.sort_unstable_by_key(|p| p.id);
    policies
}

/// A gateway elsewhere is of no use to a node without an address to tunnel from.
fn source_role(at: &At<'_>, slot: usize, shared: &Shared<'_>) -> SourceRole {
    let gateway = shared.in_force.gateway_of(slot, at.zone);
    let gateway = gateway.filter(|g| g.node == at.name || at.underlay.is_some());
    SourceRole {
        gateway: gateway.map(|g| g.node.clone()),
        families: gateway.map(|g| g.families()).unwrap_or_default(),
        no_gateway: shared.in_force.policy_of(slot).spec.no_gateway,
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
