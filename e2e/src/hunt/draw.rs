//! How the hunt chooses what to change next.

use super::{
    change::{Change, POLICIES, Trouble},
    model::{Policy, Selector, other},
    place::{EGRESS, NAMESPACES, OUTSIDE, VALUES},
    random::Random,
    safeguard::Safeguard,
    world::World,
};
use crate::site::NODES;

/// What comes next: one change, or several at once. Every other time it is what a favoured safeguard is for.
pub fn draw(random: &mut Random, world: &World, favour: Option<Safeguard>) -> Vec<Change> {
    let mut changes = match favour.filter(|_| random.one_in(2)) {
        Some(safeguard) => testing(safeguard, random, world).unwrap_or_else(|| vec![create(random, world)]),
        None => anything(random, world),
    };
    if changes.is_empty() || random.one_in(6) {
        let at = random.below(changes.len() + 1);
        changes.insert(at, Change::Trouble(trouble(random)));
    }
    changes
}

/// What goes wrong where a safeguard is missing. `None`: there is no policy yet for which it could.
fn testing(safeguard: Safeguard, random: &mut Random, world: &World) -> Option<Vec<Change>> {
    match safeguard {
        Safeguard::Gate | Safeguard::Conntrack => None,
        Safeguard::Order => moved(random, world),
        Safeguard::Quarantine => rival(random, world),
    }
}

fn anything(random: &mut Random, world: &World) -> Vec<Change> {
    match random.below(24) {
        0..=1 => made_again(random, world).unwrap_or_default(),
        2..=3 => rival(random, world).unwrap_or_default(),
        4..=5 => moved(random, world).unwrap_or_default(),
        6..=12 => vec![create(random, world)],
        13..=15 => relabelled_pods(random, world),
        16 => {
            let namespace = random.below(NAMESPACES.len());
            vec![Change::Namespace(
                namespace,
                other(world.namespaces[namespace].last()),
            )]
        }
        17 => {
            let node = random.below(NODES.len());
            vec![Change::Node(node, other(world.nodes[node].last()))]
        }
        18..=19 => {
            let node = random.below(NODES.len());
            vec![Change::Gateway(node, !world.gateways[node])]
        }
        20 => vec![Change::Addresses(
            random.below(EGRESS.len()),
            random.below(NODES.len()),
        )],
        _ => Vec::new(),
    }
}

/// A policy that is not there is created; one that is, is edited or deleted.
fn create(random: &mut Random, world: &World) -> Change {
    let name = random.pick(&POLICIES);
    let Some(mut policy) = world.current_policy(name).cloned() else {
        return Change::Policy(name, Some(new_policy(random, name)));
    };
    match random.below(6) {
        0 => return Change::Policy(name, None),
        1 => policy.excluded = [None, Some(0), Some(1)][random.below(3)],
        2 => policy.selector = selector(random),
        3 => policy.by_label = !policy.by_label,
        _ => policy.egress = (policy.egress + 1 + random.below(EGRESS.len() - 1)) % EGRESS.len(),
    }
    Change::Policy(name, Some(policy))
}

/// A policy is deleted and made again.
fn made_again(random: &mut Random, world: &World) -> Option<Vec<Change>> {
    let (name, policy) = any_policy(random, world)?;
    Some(vec![
        Change::Policy(name, None),
        Change::Policy(name, Some(policy.clone())),
    ])
}

/// A policy goes, and another comes for the other pods, with other addresses of the same node, while an agent is
/// killed, or held so that it hears of neither: what it sends on must not be taken for the new policy's.
fn rival(random: &mut Random, world: &World) -> Option<Vec<Change>> {
    let (name, policy) = any_policy(random, world)?;
    let next = POLICIES
        .iter()
        .find(|next| world.current_policy(next).is_none())?;
    let mut rival = Policy {
        selector: policy.selector.contrary(),
        excluded: None,
        ..new_policy(random, next)
    };
    let holder = world.holders[policy.egress];
    let others = (0..EGRESS.len()).filter(|egress| *egress != policy.egress);
    let others: Vec<usize> = others.filter(|egress| world.holders[*egress] == holder).collect();
    if !others.is_empty() {
        rival.egress = random.pick(&others);
    }
    let source = (holder + 1 + random.below(NODES.len() - 1)) % NODES.len();
    let trouble = random.pick(&[
        Trouble::AgentHeld(source),
        Trouble::AgentHeld(source),
        Trouble::AgentKilled(source),
    ]);
    Some(vec![
        Change::Trouble(trouble),
        Change::Policy(name, None),
        Change::Policy(next, Some(rival)),
    ])
}

/// A policy moves to a gateway whose agent is held: its sources must wait.
fn moved(random: &mut Random, world: &World) -> Option<Vec<Change>> {
    let (name, policy) = any_policy(random, world)?;
    let holder = world.holders[policy.egress];
    let others = (0..EGRESS.len()).filter(|egress| world.holders[*egress] != holder);
    let others: Vec<usize> = others.collect();
    let egress = (!others.is_empty()).then(|| random.pick(&others))?;
    Some(vec![
        Change::Trouble(Trouble::AgentHeld(world.holders[egress])),
        Change::Policy(
            name,
            Some(Policy {
                egress,
                ..policy.clone()
            }),
        ),
    ])
}

fn any_policy<'a>(random: &mut Random, world: &'a World) -> Option<(&'static str, &'a Policy)> {
    let there = POLICIES
        .into_iter()
        .filter_map(|name| Some((name, world.current_policy(name)?)));
    let there: Vec<_> = there.collect();
    (!there.is_empty()).then(|| random.pick(&there))
}

/// Priorities are the names': of two policies there is always one that comes first.
fn new_policy(random: &mut Random, name: &str) -> Policy {
    let place = POLICIES
        .iter()
        .position(|known| *known == name)
        .unwrap_or_default();
    Policy {
        priority: 10 * (i32::try_from(place).unwrap_or_default() + 1),
        selector: selector(random),
        excluded: random.one_in(3).then(|| random.below(OUTSIDE.len())),
        egress: random.below(EGRESS.len()),
        by_label: random.one_in(3),
    }
}

fn selector(random: &mut Random) -> Selector {
    let mut selector = Selector {
        pod: None,
        namespace: None,
        node: None,
    };
    let value = Some(random.pick(&VALUES));
    match random.below(5) {
        0 => selector.node = value,
        1 => selector.namespace = value,
        2 => (selector.namespace, selector.pod) = (Some(random.pick(&VALUES)), value),
        _ => selector.pod = value,
    }
    selector
}

/// Some pods that are there.
fn relabelled_pods(random: &mut Random, world: &World) -> Vec<Change> {
    let there: Vec<_> = world
        .pods
        .iter()
        .filter(|(_, pod)| pod.deleted.is_none())
        .collect();
    if there.is_empty() {
        return Vec::new();
    }
    let mut changes: Vec<Change> = (0..3)
        .map(|_| random.pick(&there))
        .map(|(port, pod)| Change::Pod(*port, other(pod.label.last())))
        .collect();
    changes.dedup();
    changes
}

fn trouble(random: &mut Random) -> Trouble {
    let node = random.below(NODES.len());
    match random.below(12) {
        0..=1 => Trouble::AgentKilled(node),
        2..=3 => Trouble::AgentReplaced(node),
        4..=5 => Trouble::AgentHeld(node),
        6 => Trouble::Operator,
        7 => Trouble::KubeProxy(node),
        8..=9 => Trouble::Conntrack(node),
        _ => Trouble::PodAddresses(node),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn kind(change: &Change) -> String {
        let text = match change {
            Change::Trouble(trouble) => format!("{trouble:?}"),
            other => format!("{other:?}"),
        };
        text.split('(').next().unwrap_or_default().to_owned()
    }

    /// What comes in a world that follows.
    fn drawn(seed: u64, favour: Option<Safeguard>) -> Vec<Vec<Change>> {
        let (mut random, mut world) = (Random::new(seed), World::new());
        let mut batch = |at| {
            let changes = draw(&mut random, &world, favour);
            changes.iter().for_each(|change| world.change(at, change));
            world.settle(at);
            changes
        };
        (1..=300).map(&mut batch).collect()
    }

    #[test]
    fn a_seed_gives_the_same_changes_again_and_every_kind_comes() {
        assert_eq!(drawn(7, None), drawn(7, None));
        assert_ne!(drawn(7, None), drawn(8, None));
        let kinds: BTreeSet<String> = drawn(7, None).iter().flatten().map(kind).collect();
        // Without a pod none is relabelled.
        let expected = [
            "Addresses",
            "AgentHeld",
            "AgentKilled",
            "AgentReplaced",
            "Conntrack",
            "Gateway",
            "KubeProxy",
            "Namespace",
            "Node",
            "Operator",
            "PodAddresses",
            "Policy",
        ];
        assert!(kinds.iter().eq(expected), "{kinds:?}");
    }

    #[test]
    fn a_favoured_safeguard_is_tried_every_other_time() {
        let held_first = |changes: &&Vec<Change>| {
            matches!(
                changes[..],
                [Change::Trouble(Trouble::AgentHeld(_)), Change::Policy(..), ..]
            )
        };
        for safeguard in [Safeguard::Order, Safeguard::Quarantine] {
            let plain = drawn(7, None).iter().filter(held_first).count();
            let favoured = drawn(7, Some(safeguard)).iter().filter(held_first).count();
            assert!(
                favoured > 2 * plain,
                "{favoured} of 300, and {plain} of 300 otherwise"
            );
        }
    }
}
