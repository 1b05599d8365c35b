//! How the world came to be does not matter. The operator's own property tests shuffle the events and start from
//! an emptied world; here objects are changed in place, deleted and made, in any order.

use std::collections::BTreeMap;

use egressnat_operator::convert;
use egressnat_operator::plan::plan;
use egressnat_operator::store::Change;
use proptest::prelude::*;
use serde_json::Value;

use crate::expected::is_refused;
use crate::generate::worlds;
use crate::world::{World, change, deletion, kind};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_way_to_a_world_does_not_matter(
        before in worlds(),
        (after, steps) in worlds().prop_flat_map(|w| (Just(w), vec_of_ranks()))
    ) {
        let mut store = after.store();
        let begun = before.objects().iter().filter_map(change);
        for change in begun.chain(shuffled(changes(&before, &after), &steps)) {
            store.apply(change);
        }
        prop_assert_eq!(plan(store.world()), plan(&after.known()), "{}", after);
    }
}

/// More random numbers than two worlds have objects.
fn vec_of_ranks() -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(any::<u32>(), 100)
}

/// What makes one world of another, object by object.
fn changes(before: &World, after: &World) -> Vec<Vec<Change>> {
    let old = by_name(before);
    let new = by_name(after);
    let gone = old.iter().filter(|(name, _)| !new.contains_key(*name));
    let gone = gone.map(|(_, object)| deletion(object).into_iter().collect());
    let made = new.values().map(|object| {
        // A spec that becomes invalid leaves the last accepted one in force: there, history does matter.
        let forget = refused(after, object).then(|| deletion(object)).flatten();
        forget.into_iter().chain(change(object)).collect()
    });
    gone.chain(made).collect()
}

fn by_name(world: &World) -> BTreeMap<(String, String), &Value> {
    let objects = world.objects().iter();
    objects
        .map(|o| ((kind(o).to_owned(), convert::key(o)), o))
        .collect()
}

fn refused(world: &World, object: &Value) -> bool {
    let policy = world
        .policies
        .iter()
        .find(|p| p.metadata.name == convert::key(object));
    kind(object) == "EgressNATPolicy" && policy.is_some_and(|p| is_refused(&p.spec))
}

fn shuffled(changes: Vec<Vec<Change>>, ranks: &[u32]) -> impl Iterator<Item = Change> {
    let mut ranked: Vec<(u32, Vec<Change>)> = ranks.iter().copied().zip(changes).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().flat_map(|(_, changes)| changes)
}
