//! Policy ids: the number that a packet carries in its connection mark and in the tunnel header.
//!
//! An id stays for the policy's life; where a policy may have several gateways (`egressGateways`,
//! `egressSourceIPs`), each entry has its own id, which stays for the entry's life. It is read back from the policy's
//! status and, where that was lost, from the plans that mention it. An id that a plan mentions under another name is
//! never given away: some node may still send with it, and its packets would leave with the new policy's address. A
//! plan goes on to mention an id that has left it until its agent has reported that (see [`crate::rollout`]).
//!
//! New ids do not start at 1: a new policy starts looking at a place that follows from its uid. So another policy of
//! the same name does not take the id of the one that was deleted, which the plans cannot tell from it.

use std::collections::{BTreeMap, BTreeSet};

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::MAX_POLICY_ID;

use crate::choice::EntryKey;
use crate::hash::fnv1a;
use crate::world::{ExistingPlan, Policy, Safeguard, World};

/// What has an id: a policy, by name, or one of its gateways, where it may have several.
pub type Bearer<'a> = (&'a str, Option<EntryKey>);

/// The ids. A bearer that is not there has none: its policy is refused, or there was none left. `mentions` are
/// those of the world's plans.
pub fn assign<'a>(world: &'a World, mentions: &Mentions) -> BTreeMap<Bearer<'a>, u16> {
    let mentions = &mentions.0;
    let mut by_age: Vec<(&str, &Policy)> = world.policies.iter().map(|(n, p)| (n.as_str(), p)).collect();
    by_age.sort_by_key(|(name, policy)| (policy.created, *name));
    let bearers: Vec<(Bearer, &Policy)> = by_age
        .iter()
        .flat_map(|(name, policy)| keys(policy).into_iter().map(|key| ((*name, key), *policy)))
        .collect();

    let guarded = world.config.guards(Safeguard::Quarantine);
    let mut ids = Ids::default();
    for ((name, key), policy) in &bearers {
        let own = |id: &u16| !guarded || mentions.get(id).is_none_or(|names| names.contains_key(*name));
        let valid = |id: &u16| (1..=MAX_POLICY_ID).contains(id);
        if let Some(id) = remembered(policy, *key).filter(valid).filter(own) {
            ids.take((name, *key), id);
        }
    }
    for ((name, key), policy) in &bearers {
        if policy.in_force().is_some() && !ids.of.contains_key(&(*name, *key)) {
            // Plans do not say which entry an id is of, nor of which of two policies that had the same name, one after
            // the other. The first in the order of looking is the one that was given when the status was lost, or
            // never written.
            let again = |id: &u16| mentions[id].keys().eq([name]) && !is_known(policy, *id);
            let unused = |id: &u16| !guarded || !mentions.contains_key(id) || again(id);
            let free = |id: &u16| !ids.taken.contains(id) && unused(id);
            let id = match guarded {
                true => probe(&policy.uid, *key).find(free),
                false => (1..=MAX_POLICY_ID).find(free),
            };
            if let Some(id) = id {
                ids.take((name, *key), id);
            }
        }
    }
    ids.of
}

/// The ids that plans mention, under which names, and in how many plans.
#[derive(Debug, Default)]
pub struct Mentions(BTreeMap<u16, BTreeMap<String, usize>>);

impl Mentions {
    /// Those of plans.
    pub fn of<'a>(plans: impl IntoIterator<Item = &'a ExistingPlan>) -> Self {
        let mut mentions = Self::default();
        for plan in plans {
            mentions.add(&plan.spec);
        }
        mentions
    }

    /// Puts `after` in the place of `before`. Whether an id is mentioned now under a name under which it was not,
    /// or the other way round.
    pub fn replace(&mut self, before: Option<&ExistingPlan>, after: Option<&ExistingPlan>) -> bool {
        // Added first, so that what both mention never seems to be gone in between.
        let added = after.is_some_and(|plan| self.add(&plan.spec));
        let removed = before.is_some_and(|plan| self.remove(&plan.spec));
        added || removed
    }

    fn add(&mut self, plan: &EgressPlanSpec) -> bool {
        let mut new = false;
        for (id, name) in mentioned(plan) {
            let names = self.0.entry(id).or_default();
            if let Some(plans) = names.get_mut(name) {
                *plans += 1;
            } else {
                names.insert(name.to_owned(), 1);
                new = true;
            }
        }
        new
    }

    fn remove(&mut self, plan: &EgressPlanSpec) -> bool {
        let mut gone = false;
        for (id, name) in mentioned(plan) {
            let Some(names) = self.0.get_mut(&id) else {
                continue;
            };
            match names.get_mut(name) {
                Some(plans) if *plans > 1 => *plans -= 1,
                _ => gone |= names.remove(name).is_some(),
            }
            if names.is_empty() {
                self.0.remove(&id);
            }
        }
        gone
    }
}

/// The ids that a plan uses, and those that its node may still use, each with the name of its policy.
fn mentioned(plan: &EgressPlanSpec) -> impl Iterator<Item = (u16, &str)> {
    let used = plan.policies.iter().map(|p| (p.id, p.name.as_str()));
    used.chain(plan.retired.iter().map(|r| (r.id, r.name.as_str())))
}

/// The ids given so far.
#[derive(Default)]
struct Ids<'a> {
    of: BTreeMap<Bearer<'a>, u16>,
    taken: BTreeSet<u16>,
}

impl<'a> Ids<'a> {
    /// Gives `id` to the bearer, unless it has one or another bearer has this one.
    fn take(&mut self, bearer: Bearer<'a>, id: u16) {
        if !self.of.contains_key(&bearer) && self.taken.insert(id) {
            self.of.insert(bearer, id);
        }
    }
}

/// The keys of a policy's gateways, in an order that does not depend on that of the entries. A policy that is
/// not in force keeps the id that it has.
fn keys(policy: &Policy) -> BTreeSet<Option<EntryKey>> {
    match policy.in_force() {
        Some(spec) => spec.gateways.iter().map(|g| g.key).collect(),
        None => [None].into(),
    }
}

/// The id that the policy's status has for one of its gateways.
fn remembered(policy: &Policy, key: Option<EntryKey>) -> Option<u16> {
    match key {
        None => policy.status.id,
        Some(key) => {
            let key = key.to_string();
            let mut gateways = policy.status.gateways.iter();
            gateways.find(|g| g.key.as_ref() == Some(&key))?.id
        }
    }
}

/// Whether the policy's status has this id for anything.
fn is_known(policy: &Policy, id: u16) -> bool {
    policy.status.id == Some(id) || policy.status.gateways.iter().any(|g| g.id == Some(id))
}

/// All ids, from a place that follows from the policy's uid and the entry's key.
fn probe(uid: &str, key: Option<EntryKey>) -> impl Iterator<Item = u16> {
    let all = u64::from(MAX_POLICY_ID);
    let hash = fnv1a(uid.bytes());
    let start = key.map_or(hash, |key| key.with(hash)) % all;
    (0..all).filter_map(move |step| u16::try_from((start + step) % all + 1).ok())
}

#[cfg(test)]
mod tests {
    use egressnat_crds::policy::GatewayStatus;

    use super::*;
    use crate::testing;
    use crate::valid::ValidPolicy;
    use crate::world::PolicySpec;

    fn world(names: &[&str]) -> World {
        let mut world = World::default();
        for name in names {
            world.policies.insert(name.to_string(), testing::policy(name));
        }
        world
    }

    fn ids(world: &World) -> BTreeMap<Bearer<'_>, u16> {
        assign(world, &Mentions::of(world.plans.values()))
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

    /// The id of a policy with a single gateway.
    fn id_of(world: &World, name: &str) -> u16 {
        ids(world)[&(name, None)]
    }

    /// Policy `a` with an entry of `egressGateways` for each of these labels.
    fn several(labels: &[&str]) -> World {
        let mut world = world(&["a"]);
        respec(&mut world, labels);
        world
    }

    fn respec(world: &mut World, labels: &[&str]) {
        let entry = |label: &&str| format!("{{nodeSelector: {{matchLabels: {{l: {label}}}}}}}");
        let entries: Vec<String> = labels.iter().map(entry).collect();
        let spec = format!(
            "{{selectors: [{{podSelector: {{}}}}], egressGateways: [{}]}}",
            entries.join(", ")
        );
        let valid = ValidPolicy::parse(&serde_yaml_ng::from_str(&spec).unwrap()).unwrap();
        world.policies.get_mut("a").unwrap().spec = PolicySpec::Valid(valid);
    }

    /// The ids of the entries of policy `a`, in their order.
    fn ids_of(world: &World) -> Vec<u16> {
        let ids = ids(world);
        let gateways = &world.policies["a"].in_force().unwrap().gateways;
        gateways.iter().map(|g| ids[&("a", g.key)]).collect()
    }

    /// Writes the ids of policy `a` into its status.
    fn remember(world: &mut World) {
        let ids = ids(world);
        let ids: Vec<_> = ids.iter().map(|((_, key), id)| (*key, *id)).collect();
        let status = &mut world.policies.get_mut("a").unwrap().status;
        (status.id, status.gateways) = (None, Vec::new());
        for (key, id) in ids {
            match key {
                None => status.id = Some(id),
                Some(key) => status.gateways.push(GatewayStatus {
                    key: Some(key.to_string()),
                    id: Some(id),
                    ..GatewayStatus::default()
                }),
            }
        }
    }

    #[test]
    fn an_entry_keeps_its_id_whatever_becomes_of_the_others() {
        let mut world = several(&["x", "y", "z"]);
        let [x, y, z] = ids_of(&world)[..] else { panic!() };
        assert!(x != y && y != z && x != z);
        remember(&mut world);
        respec(&mut world, &["w", "z", "x"]);
        let [w, again_z, again_x] = ids_of(&world)[..] else {
            panic!()
        };
        assert_eq!((again_x, again_z), (x, z));
        assert!(![x, y, z].contains(&w), "y may still be on its way");
    }

    #[test]
    fn ids_in_the_status_stay_with_their_keys() {
        let mut world = several(&["x", "y"]);
        remember(&mut world);
        let status = &mut world.policies.get_mut("a").unwrap().status;
        (status.gateways[0].id, status.gateways[1].id) = (Some(11), Some(12));
        let [first, second] = [0, 1].map(|i| status.gateways[i].key.clone());
        let ids = ids(&world);
        let by_key: BTreeMap<Option<String>, u16> = ids
            .into_iter()
            .map(|((_, key), id)| (key.map(|k| k.to_string()), id))
            .collect();
        assert_eq!(by_key, [(first, 11), (second, 12)].into());
    }

    #[test]
    fn ids_of_entries_that_the_status_lost_are_found_again_in_the_plans() {
        let mut world = several(&["x", "y"]);
        let before = ids_of(&world);
        for id in &before {
            mention(&mut world, *id, "a");
        }
        assert_eq!(ids_of(&world), before);
        mention(&mut world, before[0], "deleted");
        let after = ids_of(&world);
        assert_ne!(after[0], before[0], "mentioned under another name as well");
        assert_eq!(after[1], before[1]);
    }

    #[test]
    fn a_policy_that_goes_from_one_gateway_to_several_and_back_never_turns_an_ids_meaning() {
        let mut world = world(&["a"]);
        let one = id_of(&world, "a");
        remember(&mut world);
        mention(&mut world, one, "a");
        let single = world.policies["a"].spec.clone();
        respec(&mut world, &["x", "y"]);
        let several = ids_of(&world);
        assert!(!several.contains(&one));
        remember(&mut world);
        for id in &several {
            mention(&mut world, *id, "a");
        }
        world
            .plans
            .get_mut("n")
            .unwrap()
            .spec
            .policies
            .retain(|p| p.id != one);
        world.policies.get_mut("a").unwrap().spec = single;
        assert!(!several.contains(&id_of(&world, "a")));
    }

    #[test]
    fn an_id_in_the_status_stays() {
        let mut world = world(&["a", "b"]);
        world.policies.get_mut("b").unwrap().status.id = Some(7);
        assert_eq!(id_of(&world, "b"), 7);
    }

    #[test]
    fn an_id_lost_from_the_status_is_read_back_from_the_plans() {
        let mut world = world(&["a"]);
        let id = id_of(&world, "a");
        mention(&mut world, id, "a");
        assert_eq!(id_of(&world, "a"), id);
    }

    #[test]
    fn another_policy_of_the_same_name_does_not_get_the_id_that_plans_mention() {
        let mut world = world(&["a"]);
        let id = id_of(&world, "a");
        mention(&mut world, id, "a");
        world.policies.get_mut("a").unwrap().uid = "another".into();
        assert_ne!(id_of(&world, "a"), id);
    }

    #[test]
    fn a_retired_id_is_not_given_away() {
        let mut world = world(&["a"]);
        let id = id_of(&world, "a");
        let plan = world.plans.entry("n".into()).or_default();
        let name = "deleted".to_owned();
        plan.spec.retired = vec![egressnat_crds::plan::RetiredId { id, name }];
        assert_ne!(id_of(&world, "a"), id);
        world.config.unsafe_without.insert(Safeguard::Quarantine);
        assert_eq!(id_of(&world, "a"), 1, "without the safeguard, at once");
    }

    #[test]
    fn an_id_that_a_plan_mentions_under_another_name_is_not_given_away() {
        let mut world = world(&["a"]);
        let first = id_of(&world, "a");
        mention(&mut world, first, "deleted");
        assert_ne!(id_of(&world, "a"), first);
        world.policies.get_mut("a").unwrap().status.id = Some(first);
        assert_ne!(id_of(&world, "a"), first, "not even to a policy that claims it");
    }

    #[test]
    fn of_two_claims_the_older_policy_wins() {
        let mut world = world(&["a", "b"]);
        for policy in world.policies.values_mut() {
            policy.status.id = Some(5);
        }
        world.policies.get_mut("b").unwrap().created = testing::time(-1);
        let ids = ids(&world);
        assert_eq!(ids[&("b", None)], 5);
        assert_ne!(ids[&("a", None)], 5);
    }

    #[test]
    fn nonsense_in_the_status_is_no_claim() {
        for id in [0, MAX_POLICY_ID + 1] {
            let mut world = world(&["a"]);
            world.policies.get_mut("a").unwrap().status.id = Some(id);
            assert_ne!(id_of(&world, "a"), id);
        }
    }

    #[test]
    fn when_all_are_taken_a_policy_has_none() {
        let names: Vec<String> = (0..=MAX_POLICY_ID).map(|i| format!("p{i:05}")).collect();
        let world = world(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let ids = ids(&world);
        assert_eq!(ids.len(), usize::from(MAX_POLICY_ID));
        let distinct: BTreeSet<&u16> = ids.values().collect();
        assert_eq!(distinct.len(), ids.len());
        assert_eq!(distinct.first(), Some(&&1));
        assert_eq!(distinct.last(), Some(&&MAX_POLICY_ID));
    }
}
