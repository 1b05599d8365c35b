//! What is the same for all nodes.

use std::collections::{BTreeMap, BTreeSet};

use egressnat_crds::interval::Interval;
use egressnat_crds::plan::Family;

use super::ids::{self, Mentions};
use super::policies::Policies;
use super::sharing::Sharing;
use super::{cluster, masquerade};
use crate::world::World;

/// What is the same for all nodes. Equal ones, and equal nodes and pods, give equal plans.
#[derive(Debug, PartialEq)]
pub struct Shared {
    /// The policies in force.
    pub in_force: Policies,
    /// The policies in force by name, as indexes into them.
    pub by_name: BTreeMap<String, usize>,
    /// The ids of policies that have one of their own, in force or not.
    pub ids: BTreeMap<String, u16>,
    /// The ids that policies and their gateways have.
    pub given: BTreeSet<u16>,
    /// The slots that a node is the gateway of, by its name.
    pub at_gateway: BTreeMap<String, Vec<usize>>,
    /// The cluster's own ranges.
    pub cluster: Vec<Interval>,
    /// The family of the tunnel.
    pub underlay: Family,
    /// Who sends with which addresses.
    pub sharing: Sharing,
    /// Where the installation asks for a masquerade: the destinations that it leaves out.
    pub unmasqueraded: Option<Vec<Interval>>,
}

impl Shared {
    /// Works it out.
    pub fn of(world: &World, mentions: &Mentions) -> Self {
        let ids = ids::assign(world, mentions);
        let in_force = Policies::of(world, &ids);
        let mut at_gateway: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, slot) in in_force.slots.iter().enumerate() {
            if let Some(gateway) = &slot.resolution.gateway {
                at_gateway.entry(gateway.node.clone()).or_default().push(index);
            }
        }
        let given = ids.values().copied().collect();
        let own = ids.into_iter().filter(|((_, key), _)| key.is_none());
        let names = in_force.policies.iter().enumerate();
        let cluster = cluster::ranges(world);
        let config = world.config.masquerade.as_ref();
        Self {
            ids: own.map(|((name, _), id)| (name.to_owned(), id)).collect(),
            given,
            by_name: names.map(|(index, p)| (p.name.clone(), index)).collect(),
            at_gateway,
            sharing: Sharing::of(&in_force),
            unmasqueraded: config.map(|config| masquerade::except(config, &cluster)),
            cluster,
            underlay: world.underlay_family(),
            in_force,
        }
    }
}
