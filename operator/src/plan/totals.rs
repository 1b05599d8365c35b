//! The sums over all nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::lost::{Set, Sets};
use super::peers::Tunnels;
use super::policies::Policies;
use super::profiles::{Flat, Layers};
use super::share::Share;

/// The sums of all shares.
#[derive(Debug, Default)]
pub struct Totals {
    /// By slot.
    pub slots: Vec<Sum>,
    /// The sets of policies that select the same pods.
    pub sets: Sets,
    /// The tunnels.
    pub tunnels: Tunnels,
    /// The pods that are captured.
    pub captured: usize,
    /// The destinations of the pods that use the same slots, and how many such pods there are.
    flats: BTreeMap<Vec<usize>, (Arc<Flat>, usize)>,
}

/// The pods that use a slot.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    /// How many.
    pub pods: usize,
    /// How many addresses of each family they have.
    pub ips: [usize; 2],
    /// How many of them the gateway may not serve, since they are in another zone, by node.
    pub far: BTreeMap<Arc<str>, usize>,
    /// The nodes of those that are captured.
    pub sources: BTreeSet<Arc<str>>,
}

impl Totals {
    /// Of no pods.
    pub fn new(policies: &Policies) -> Self {
        Self {
            slots: vec![Sum::default(); policies.slots.len()],
            ..Self::default()
        }
    }

    /// The destinations of pods that use these slots: those that there are already, or new ones, which no pod has
    /// yet.
    pub fn flat(&mut self, slots: Vec<usize>, policies: &Policies) -> Arc<Flat> {
        if let Some((flat, _)) = self.flats.get(&slots) {
            return flat.clone();
        }
        let flat = Arc::new(self.set(&slots, policies).layers.with(&slots, &policies.slots));
        self.flats.insert(slots, (flat.clone(), 0));
        flat
    }

    /// Puts a node's share in the place of that which it had. The slots of which a sum is another now.
    pub fn replace(
        &mut self,
        node: &Arc<str>,
        before: &Share,
        after: &Share,
        policies: &Policies,
    ) -> BTreeSet<usize> {
        let mut changed = self.replace_parts(node, before, after, policies);
        changed.extend(self.replace_sets(before, after, policies));
        self.tunnels.replace(node, &before.tunnels, &after.tunnels);
        self.captured = self.captured + after.captured().count() - before.captured().count();
        changed
    }

    fn replace_parts(
        &mut self,
        node: &Arc<str>,
        before: &Share,
        after: &Share,
        policies: &Policies,
    ) -> BTreeSet<usize> {
        let (before, after) = (before.parts(policies), after.parts(policies));
        let slots: BTreeSet<usize> = before.keys().chain(after.keys()).copied().collect();
        let part = |of: &BTreeMap<usize, _>, slot| of.get(slot).copied().unwrap_or_default();
        let is_changed = |slot: &usize| before.get(slot) != after.get(slot);
        let changed: BTreeSet<usize> = slots.into_iter().filter(is_changed).collect();
        for slot in &changed {
            let (old, new): (super::share::Part, super::share::Part) =
                (part(&before, slot), part(&after, slot));
            let sum = &mut self.slots[*slot];
            sum.pods = sum.pods + new.pods - old.pods;
            sum.ips = [0, 1].map(|family| sum.ips[family] + new.ips[family] - old.ips[family]);
            match new.far {
                0 => sum.far.remove(node),
                far => sum.far.insert(node.clone(), far),
            };
            match new.is_source {
                true => sum.sources.insert(node.clone()),
                false => sum.sources.remove(node),
            };
        }
        changed
    }

    /// The slots of the sets of which there are more pods now, or fewer.
    fn replace_sets(&mut self, before: &Share, after: &Share, policies: &Policies) -> BTreeSet<usize> {
        let mut changed = BTreeSet::new();
        let (before, after) = (before.sets(), after.sets());
        for (slots, pods) in &after {
            let had = before.get(slots).copied().unwrap_or_default();
            if had != *pods {
                self.count(slots, had, *pods, policies);
                changed.extend(slots.iter().copied());
            }
        }
        for (slots, had) in before.iter().filter(|(slots, _)| !after.contains_key(*slots)) {
            self.count(slots, *had, 0, policies);
            changed.extend(slots.iter().copied());
        }
        changed
    }

    /// Of the pods that use these slots, a node has `now` instead of `had`. What no pod has any more is forgotten.
    fn count(&mut self, slots: &[usize], had: usize, now: usize, policies: &Policies) {
        let set = self.set(slots, policies);
        set.pods = set.pods + now - had;
        if set.pods == 0 {
            self.sets.remove(&policies_of(slots, policies));
        }
        if let Some((_, pods)) = self.flats.get_mut(slots) {
            *pods = *pods + now - had;
            if *pods == 0 {
                self.flats.remove(slots);
            }
        }
    }

    fn set(&mut self, slots: &[usize], policies: &Policies) -> &mut Set {
        let set = self.sets.entry(policies_of(slots, policies));
        set.or_insert_with_key(|set| Set {
            layers: Layers::of(set, &policies.policies),
            pods: 0,
        })
    }
}

fn policies_of(slots: &[usize], policies: &Policies) -> Vec<usize> {
    slots.iter().map(|slot| policies.slots[*slot].policy).collect()
}
