//! The policies in force, in order of precedence, with their gateways.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

use super::gateway::{Gateway, Resolution, Resolver};
use super::ids::Bearer;
use super::{choose, gateways};
use crate::choice::EntryKey;
use crate::valid::ValidPolicy;
use crate::world::{Policy, World};

/// A policy that is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct InForce {
    /// Its name.
    pub name: String,
    /// What is in force of it.
    pub spec: ValidPolicy,
    /// Its gateways, as indexes into [`Policies::slots`]: at least one, in the order of the spec.
    pub slots: Range<usize>,
}

/// A gateway of a policy, with the id that its packets carry.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// The policy, as an index into [`Policies::policies`].
    pub policy: usize,
    /// Its id.
    pub id: u16,
    /// Which of the policy's gateways it is, where there may be several.
    pub key: Option<EntryKey>,
    /// The gateway.
    pub resolution: Resolution,
}

/// The policies in force, in order of precedence, and their slots, in the same order.
#[derive(Debug, Default, PartialEq)]
pub struct Policies {
    /// The policies.
    pub policies: Vec<InForce>,
    /// The slots of all of them.
    pub slots: Vec<Slot>,
}

impl Policies {
    /// The policies in force: the higher priority first, then the older, then the name that sorts first.
    pub fn of(world: &World, ids: &BTreeMap<Bearer<'_>, u16>) -> Self {
        let mut ranked: Vec<(&str, &Policy, &ValidPolicy)> = world
            .policies
            .iter()
            .filter_map(|(name, p)| Some((name.as_str(), p, p.in_force()?)))
            .filter(|(name, _, spec)| spec.gateways.iter().all(|g| ids.contains_key(&(*name, g.key))))
            .collect();
        ranked.sort_by_key(|(name, policy, spec)| (Reverse(spec.priority), policy.created, *name));
        let resolver = Resolver::new(world);
        let mut all = Self::default();
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

    /// Adds the policy that comes next in order of precedence, with its slots.
    fn push(&mut self, name: &str, spec: &ValidPolicy, slots: impl Iterator<Item = Slot>) {
        let start = self.slots.len();
        self.slots.extend(slots);
        self.policies.push(InForce {
            name: name.to_owned(),
            spec: spec.clone(),
            slots: start..self.slots.len(),
        });
    }

    /// The policy of a slot.
    pub fn policy_of(&self, slot: usize) -> &InForce {
        &self.policies[self.slots[slot].policy]
    }

    /// The gateway of a slot for pods of nodes in `zone`, if there is one that may serve them.
    pub fn gateway_of(&self, slot: usize, zone: Option<&str>) -> Option<&Gateway> {
        let affinity = self.policy_of(slot).spec.zone_affinity;
        choose::serving(&self.slots[slot], affinity, zone)
    }
}
