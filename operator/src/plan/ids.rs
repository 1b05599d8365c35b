//! Policy ids: the number that a packet carries in its connection mark and in the tunnel header.
//!
//! An id stays for the policy's life. It is read back from the policy's status and, where that was lost,
//! from the plans that mention it. An id that a plan mentions under another name is never given away: some
//! node still sends with it, and its packets would leave with the new policy's address.
//!
//! For the same reason new ids do not start at 1: an agent that lags behind its plan may hold an id that no
//! plan mentions any more. A new policy starts looking at a place that follows from its uid, so that an id
//! freed a moment ago is given again once in 16383 times instead of always.

use std::collections::{BTreeMap, BTreeSet};

use egressnat_crds::plan::MAX_POLICY_ID;

use crate::world::{Policy, World};

/// Ids by policy name. A policy that is not there has none: it is refused, or there was none left.
pub fn assign(world: &World) -> BTreeMap<&str, u16> {
    let mentions = mentions(world);
    let mut by_age: Vec<(&str, &Policy)> = world.policies.iter().map(|(n, p)| (n.as_str(), p)).collect();
    by_age.sort_by_key(|(name, policy)| (policy.created, *name));

    let mut ids = Ids::default();
    for (name, policy) in &by_age {
        let own = |id: &u16| mentions.get(id).is_none_or(|names| names.contains(name));
        let valid = |id: &u16| (1..=MAX_POLICY_ID).contains(id);
        if let Some(id) = policy.status.id.filter(valid).filter(own) {
            ids.take(name, id);
        }
    }
    for (name, _) in &by_age {
        let mentioned = mentions.iter().filter(|(_, names)| names.contains(name));
        for (id, _) in mentioned {
            ids.take(name, *id);
        }
    }
    for (name, policy) in &by_age {
        if policy.in_force().is_some() {
            let free = probe(&policy.uid).find(|id| !mentions.contains_key(id) && !ids.taken.contains(id));
            if let Some(id) = free {
                ids.take(name, id);
            }
        }
    }
    ids.of
}

/// The ids given so far.
#[derive(Default)]
struct Ids<'a> {
    of: BTreeMap<&'a str, u16>,
    taken: BTreeSet<u16>,
}

impl<'a> Ids<'a> {
    /// Gives `id` to the policy, unless it has one or another policy has this one.
    fn take(&mut self, name: &'a str, id: u16) {
        if !self.of.contains_key(name) && self.taken.insert(id) {
            self.of.insert(name, id);
        }
    }
}

/// The ids that plans mention, and under which names.
fn mentions(world: &World) -> BTreeMap<u16, BTreeSet<&str>> {
    let mut mentions: BTreeMap<u16, BTreeSet<&str>> = BTreeMap::new();
    for policy in world.plans.values().flat_map(|p| &p.spec.policies) {
        mentions.entry(policy.id).or_default().insert(&policy.name);
    }
    mentions
}

/// All ids, from a place that follows from `uid`.
fn probe(uid: &str) -> impl Iterator<Item = u16> {
    let all = u64::from(MAX_POLICY_ID);
    let start = super::fnv1a(uid.bytes()) % all;
    (0..all).filter_map(move |step| u16::try_from((start + step) % all + 1).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn world(names: &[&str]) -> World {
        let mut world = World::default();
        for name in names {
            world.policies.insert(name.to_string(), testing::policy(name));
        }
        world
    }

    fn mention(world: &mut World, id: u16, name: &str) {
        let plan = world.plans.entry("n".into()).or_default();
        plan.spec.policies.push(egressnat_crds::plan::PlanPolicy {
            id,
            name: name.into(),
            source: None,
            gateway: None,
        });
    }

    #[test]
    fn an_id_in_the_status_stays() {
        let mut world = world(&["a", "b"]);
        world.policies.get_mut("b").unwrap().status.id = Some(7);
        assert_eq!(assign(&world)["b"], 7);
    }

    #[test]
    fn an_id_lost_from_the_status_is_read_back_from_the_plans() {
        let mut world = world(&["a"]);
        mention(&mut world, 9, "a");
        assert_eq!(assign(&world)["a"], 9);
    }

    #[test]
    fn an_id_that_a_plan_mentions_under_another_name_is_not_given_away() {
        let mut world = world(&["a"]);
        let first = assign(&world)["a"];
        mention(&mut world, first, "deleted");
        assert_ne!(assign(&world)["a"], first);
        world.policies.get_mut("a").unwrap().status.id = Some(first);
        assert_ne!(assign(&world)["a"], first, "not even to a policy that claims it");
    }

    #[test]
    fn of_two_claims_the_older_policy_wins() {
        let mut world = world(&["a", "b"]);
        for policy in world.policies.values_mut() {
            policy.status.id = Some(5);
        }
        world.policies.get_mut("b").unwrap().created = testing::time(-1);
        let ids = assign(&world);
        assert_eq!(ids["b"], 5);
        assert_ne!(ids["a"], 5);
    }

    #[test]
    fn nonsense_in_the_status_is_no_claim() {
        for id in [0, MAX_POLICY_ID + 1] {
            let mut world = world(&["a"]);
            world.policies.get_mut("a").unwrap().status.id = Some(id);
            assert_ne!(assign(&world)["a"], id);
        }
    }

    #[test]
    fn when_all_are_taken_a_policy_has_none() {
        let names: Vec<String> = (0..=MAX_POLICY_ID).map(|i| format!("p{i:05}")).collect();
        let world = world(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let ids = assign(&world);
        assert_eq!(ids.len(), usize::from(MAX_POLICY_ID));
        let distinct: BTreeSet<&u16> = ids.values().collect();
        assert_eq!(distinct.len(), ids.len());
        assert_eq!(distinct.first(), Some(&&1));
        assert_eq!(distinct.last(), Some(&&MAX_POLICY_ID));
    }
}
