//! What the hunt changes, and how it chooses.

use std::fmt;

use super::{
    model::{Label, Policy, Selector},
    place::{EGRESS, NAMESPACES, OUTSIDE, VALUES},
    random::Random,
    world::World,
};
use crate::site::NODES;

/// The names of the policies. Their number bounds what there is at a time.
pub const POLICIES: [&str; 4] = ["hunt-a", "hunt-b", "hunt-c", "hunt-d"];

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A policy is created, edited, or (`None`) deleted.
    Policy(&'static str, Option<Policy>),
    /// A pod, by its port, has another label.
    Pod(u16, Label),
    /// A namespace has.
    Namespace(usize, Label),
    /// A node has.
    Node(usize, Label),
    /// A node may be a gateway of policies that choose theirs by label, or may no longer.
    Gateway(usize, bool),
    /// Egress addresses move to another node.
    Addresses(usize, usize),
    /// Something is killed or upset.
    Trouble(Trouble),
}

/// What can happen to the programs on the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The node's agent is killed.
    Agent(usize),
    /// The operator is killed.
    Operator,
    /// kube-proxy is started anew on a node.
    KubeProxy(usize),
    /// The node's conntrack forgets every connection to the hosts outside.
    Conntrack(usize),
}

/// What comes next: one change, sometimes several at once.
pub fn draw(random: &mut Random, world: &World) -> Vec<Change> {
    let mut changes = match random.below(20) {
        // Deleted and made again; one deleted, and another made that could be given its id.
        0 => match world.current_policies().next() {
            Some((name, policy)) => {
                let name = *POLICIES
                    .iter()
                    .find(|known| **known == name)
                    .unwrap_or(&POLICIES[0]);
                vec![
                    Change::Policy(name, None),
                    Change::Policy(name, Some(policy.clone())),
                ]
            }
            None => vec![create(random, world)],
        },
        1..=2 => POLICIES
            .iter()
            .find_map(|name| replace(random, world, name))
            .unwrap_or_default(),
        3..=9 => vec![create(random, world)],
        10..=12 => relabelled_pods(random, world),
        13 => {
            let namespace = random.below(NAMESPACES.len());
            vec![Change::Namespace(
                namespace,
                other(world.namespaces[namespace].last()),
            )]
        }
        14 => {
            let node = random.below(NODES.len());
            vec![Change::Node(node, other(world.nodes[node].last()))]
        }
        15..=16 => {
            let node = random.below(NODES.len());
            vec![Change::Gateway(node, !world.gateways[node])]
        }
        17 => vec![Change::Addresses(
            random.below(EGRESS.len()),
            random.below(NODES.len()),
        )],
        _ => Vec::new(),
    };
    if changes.is_empty() || random.one_in(6) {
        let at = random.below(changes.len() + 1);
        changes.insert(at, Change::Trouble(trouble(random)));
    }
    changes
}

/// A policy that is not there is created; one that is, is edited or deleted.
fn create(random: &mut Random, world: &World) -> Change {
    let name = random.pick(&POLICIES);
    let current = world
        .policies
        .get(name)
        .and_then(|timeline| timeline.last().clone());
    let Some(mut policy) = current else {
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

/// One policy goes, another comes, while a node's agent is too late to hear of either.
fn replace(random: &mut Random, world: &World, name: &'static str) -> Option<Vec<Change>> {
    let is_there = |name: &str| {
        let timeline = world.policies.get(name);
        timeline.is_some_and(|timeline| timeline.last().is_some())
    };
    let next = POLICIES.iter().find(|next| !is_there(next))?;
    is_there(name).then(|| {
        vec![
            Change::Trouble(Trouble::Agent(random.below(NODES.len()))),
            Change::Policy(name, None),
            Change::Policy(next, Some(new_policy(random, next))),
        ]
    })
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

fn other(label: Label) -> Label {
    if label == VALUES[0] { VALUES[1] } else { VALUES[0] }
}

fn trouble(random: &mut Random) -> Trouble {
    let node = random.below(NODES.len());
    match random.below(8) {
        0..=2 => Trouble::Agent(node),
        3 => Trouble::Operator,
        4..=5 => Trouble::KubeProxy(node),
        _ => Trouble::Conntrack(node),
    }
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(name, None) => write!(formatter, "policy {name} is deleted"),
            Self::Policy(name, Some(policy)) => {
                let Policy {
                    priority: _,
                    selector,
                    excluded,
                    egress,
                    by_label,
                } = policy;
                write!(formatter, "policy {name} has {} for", EGRESS[*egress][0])?;
                for (what, label) in [
                    ("pods", selector.pod),
                    ("namespaces", selector.namespace),
                    ("nodes", selector.node),
                ] {
                    if let Some(label) = label {
                        write!(formatter, " {label} {what}")?;
                    }
                }
                if let Some(excluded) = excluded {
                    write!(formatter, ", not to {}", OUTSIDE[*excluded][0])?;
                }
                formatter.write_str(if *by_label { ", gateway by label" } else { "" })
            }
            Self::Pod(port, label) => write!(formatter, "pod of port {port} is {label}"),
            Self::Namespace(namespace, label) => {
                write!(formatter, "namespace {} is {label}", NAMESPACES[*namespace])
            }
            Self::Node(node, label) => write!(formatter, "node {} is {label}", NODES[*node].name),
            Self::Gateway(node, true) => write!(formatter, "node {} may be a gateway", NODES[*node].name),
            Self::Gateway(node, false) => {
                write!(formatter, "node {} may no longer be a gateway", NODES[*node].name)
            }
            Self::Addresses(pair, node) => {
                write!(formatter, "{} moves to {}", EGRESS[*pair][0], NODES[*node].name)
            }
            Self::Trouble(trouble) => trouble.fmt(formatter),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(node) => write!(formatter, "the agent of {} is killed", NODES[*node].name),
            Self::Operator => formatter.write_str("the operator is killed"),
            Self::KubeProxy(node) => write!(formatter, "kube-proxy of {} is started anew", NODES[*node].name),
            Self::Conntrack(node) => write!(
                formatter,
                "conntrack of {} forgets the outside",
                NODES[*node].name
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn kind(change: &Change) -> String {
        format!("{change:?}")
            .split('(')
            .next()
            .unwrap_or_default()
            .to_owned()
    }

    #[test]
    fn a_seed_gives_the_same_changes_again_and_every_kind_comes() {
        let drawn = |seed| {
            let mut random = Random::new(seed);
            let world = World::new();
            (0..200).map(|_| draw(&mut random, &world)).collect::<Vec<_>>()
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        let kinds: BTreeSet<String> = drawn(7).iter().flatten().map(kind).collect();
        // Without a pod none is relabelled.
        let expected = ["Addresses", "Gateway", "Namespace", "Node", "Policy", "Trouble"];
        assert!(kinds.iter().eq(expected), "{kinds:?}");
    }
}
