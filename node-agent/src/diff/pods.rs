//! The shortcut for the commonest change: pods come and go, and all else is as it was.

use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::interval::Interval;
use egressnat_crds::plan::{Masquerade, Peer, PlanPolicy, Profile};

use super::nft::{NftStep, ObservedTable, element_changes};
use crate::compile::{pod_without_profile, pods};
use crate::model::{ElementKey, Set};

/// Another choice of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodsChange {
    /// What the kernel has to do.
    pub steps: Vec<NftStep>,
    /// Pods that came, went, or have other destinations.
    pub sources: Vec<IpAddr>,
    sets: [(String, Set); 2],
}

/// All of a plan but its pods, and but the operator's note.
type Rest<'a> = (
    &'a Option<IpAddr>,
    &'a [Interval],
    &'a [Peer],
    &'a [PlanPolicy],
    &'a [Profile],
    &'a Option<Masquerade>,
);

fn rest(plan: &EgressPlanSpec) -> Rest<'_> {
    let EgressPlanSpec {
        underlay,
        cluster,
        peers,
        policies,
        profiles,
        pods: _,
        masquerade,
        // Nothing of it is in the kernel.
        gate: _,
        retired: _,
        teardown: _,
    } = plan;
    (underlay, cluster, peers, policies, profiles, masquerade)
}

/// Whether the plans are the same but for their pods.
pub fn same_but_pods(old: &EgressPlanSpec, new: &EgressPlanSpec) -> bool {
    rest(old) == rest(new)
}

/// The plan without its pods.
pub fn without_pods(plan: &EgressPlanSpec) -> EgressPlanSpec {
    EgressPlanSpec {
        pods: Vec::new(),
        ..plan.clone()
    }
}

/// From the pods in the table to those of a plan that is [`same_but_pods`] as the one it was compiled from: what
/// [`super::nft::diff`] would find as well, having looked at everything. `None` where a pod of the plan has no
/// profile, or the table no pods: then it has more to say.
pub fn diff(plan: &EgressPlanSpec, table: &ObservedTable) -> Option<PodsChange> {
    if pod_without_profile(plan).is_some() {
        return None;
    }
    let sets = pods(plan);
    let mut steps = Vec::new();
    for (name, set) in &sets {
        element_changes(name, set, Some(table.sets.get(name)?), &mut steps);
    }
    let elements = steps.iter().flat_map(|step| match step {
        NftStep::AddElements(.., elements) | NftStep::DeleteElements(.., elements) => elements.as_slice(),
        _ => &[],
    });
    let sources = elements.filter_map(|(key, _)| match key {
        ElementKey::Addr(address) => Some(*address),
        _ => None,
    });
    Some(PodsChange {
        sources: sources.collect(),
        steps,
        sets,
    })
}

impl PodsChange {
    /// What the kernel shows once it has taken the steps.
    pub fn apply(self, table: &mut ObservedTable) {
        table.sets.extend(self.sets);
    }
}
