//! The plan of one node.

use std::collections::BTreeMap;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::{Gate, GatewayRole, Masquerade, Peer, PlanPod, PlanPolicy, Profile, SourceRole};

use super::profiles::{self, Flat};
use super::share::Share;
use super::shared::Shared;

/// Makes the plan of the node `name`.
///
/// A node without a part in any policy has no cluster ranges either: its plan is not touched when other
/// nodes come and go.
pub fn plan(
    name: &str,
    share: &Share,
    peers: Vec<Peer>,
    masquerade: Option<Masquerade>,
    gate: Gate,
    shared: &Shared,
) -> EgressPlanSpec {
    let flats = || share.captured().map(|pod| &*pod.flat);
    let numbers = profiles::numbers(flats().map(|flat| flat.ids.as_slice()));
    let policies = policies(name, share, shared);
    EgressPlanSpec {
        underlay: share.underlay,
        cluster: match policies.is_empty() {
            true => Vec::new(),
            false => shared.cluster.clone(),
        },
        peers,
        policies,
        profiles: profile_list(flats(), &numbers),
        pods: share
            .captured()
            .map(|selected| PlanPod {
                uid: selected.pod.uid.clone(),
                name: format!("{}/{}", selected.pod.namespace, selected.pod.name),
                ips: selected.ips().collect(),
                profile: numbers[selected.flat.ids.as_slice()],
            })
            .collect(),
        masquerade,
        gate: Some(gate),
        retired: Vec::new(),
        teardown: false,
    }
}

/// The policies in which the node has a part, by id: one for each slot.
fn policies(name: &str, share: &Share, shared: &Shared) -> Vec<PlanPolicy> {
    let used = share.sources();
    let gateway_of = shared.at_gateway.get(name).map_or(&[][..], Vec::as_slice);
    let mut concerned = used.clone();
    concerned.extend(gateway_of);
    let part = |index: usize| {
        let slot = &shared.in_force.slots[index];
        let gateway = slot.resolution.gateway.as_ref().filter(|g| g.node == name);
        PlanPolicy {
            id: slot.id,
            name: shared.in_force.policy_of(index).name.clone(),
            source: used
                .contains(&index)
                .then(|| source_role(name, share, index, shared)),
            gateway: gateway.map(|g| GatewayRole {
                addresses: g.addresses.clone(),
                source_ports: shared.in_force.policy_of(index).spec.source_ports,
            }),
        }
    };
    let mut policies: Vec<PlanPolicy> = concerned.into_iter().map(part).collect();
    policies.sort_unstable_by_key(|p| p.id);
    policies
}

/// A gateway elsewhere is of no use to a node without an address to tunnel from.
fn source_role(name: &str, share: &Share, slot: usize, shared: &Shared) -> SourceRole {
    let gateway = shared.in_force.gateway_of(slot, share.zone.as_deref());
    let gateway = gateway.filter(|g| g.node == name || share.underlay.is_some());
    let spec = &shared.in_force.policy_of(slot).spec;
    SourceRole {
        gateway: gateway.map(|g| g.node.clone()),
        families: gateway.map(|g| g.families()).unwrap_or_default(),
        no_gateway: spec.no_gateway,
        on_change: spec.on_change,
    }
}

fn profile_list<'a>(flats: impl Iterator<Item = &'a Flat>, numbers: &BTreeMap<&[u16], u32>) -> Vec<Profile> {
    let distinct: BTreeMap<u32, &Flat> = flats.map(|flat| (numbers[flat.ids.as_slice()], flat)).collect();
    distinct
        .into_iter()
        .map(|(id, flat)| Profile {
            id,
            destinations: flat.destinations.clone(),
        })
        .collect()
}
