//! The world as the watches tell it, and whether they have told all of it.
//!
//! Every watch sends [`Delta`]s. A list that starts anew is collected aside and takes the place of the old
//! one only when it is complete: a watch that breaks, or a list that breaks off, changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use egressnat_crds::selector::Labels;
use ipnet::IpNet;

use crate::difference::Difference;
use crate::intern::Interner;
use crate::world::{ClusterConfig, ExistingPlan, Node, Pod, Policy, World};

/// One event of a watch. The texts are the keys of [`World`]'s maps.
#[derive(Clone, Debug)]
pub enum Delta<V> {
    /// A list begins.
    Restart,
    /// An object of the list that began.
    Listed(String, V),
    /// The list is complete.
    Synced,
    /// An object was made or changed.
    Set(String, V),
    /// An object is gone.
    Gone(String),
}

/// A [`Delta`] of one kind of objects.
#[derive(Clone, Debug)]
pub enum Change {
    /// Of EgressNATPolicies.
    Policies(Delta<Policy>),
    /// Of Pods.
    Pods(Delta<Pod>),
    /// Of Nodes.
    Nodes(Delta<Node>),
    /// Of Namespaces.
    Namespaces(Delta<Labels>),
    /// Of ServiceCIDRs.
    ServiceCidrs(Delta<Vec<IpNet>>),
    /// Of the EndpointSlices of the API server.
    ApiServers(Delta<BTreeSet<IpAddr>>),
    /// Of EgressPlans.
    Plans(Delta<ExistingPlan>),
}

/// How far the watch of one kind is.
#[derive(Debug)]
struct Progress<T> {
    /// The list under way.
    listing: Option<BTreeMap<String, T>>,
    /// One list was complete.
    synced: bool,
}

/// A [`World`] and how far its watches are.
#[derive(Debug, Default)]
pub struct Store {
    world: World,
    labels: Interner<Labels>,
    policies: Progress<Policy>,
    pods: Progress<Arc<Pod>>,
    nodes: Progress<Node>,
    namespaces: Progress<Labels>,
    service_cidrs: Progress<Vec<IpNet>>,
    api_servers: Progress<BTreeSet<IpAddr>>,
    plans: Progress<ExistingPlan>,
}

impl Store {
    /// A store that knows only what the command line says.
    pub fn new(config: ClusterConfig) -> Self {
        let world = World {
            config,
            ..World::default()
        };
        Self {
            world,
            ..Self::default()
        }
    }

    /// What is known.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Whether every watch has listed all there is at least once.
    pub fn synced(&self) -> bool {
        self.policies.synced
            && self.pods.synced
            && self.nodes.synced
            && self.namespaces.synced
            && self.service_cidrs.synced
            && self.api_servers.synced
            && self.plans.synced
    }

    /// Takes in a change. Whether the world is now another, or has become complete.
    pub fn apply(&mut self, change: Change) -> bool {
        self.apply_noting(change, |_| {})
    }

    /// As [`Store::apply`]; tells `note` of each object that is now another.
    pub fn apply_noting(&mut self, change: Change, mut note: impl FnMut(Difference<'_>)) -> bool {
        let (world, labels) = (&mut self.world, &mut self.labels);
        match change {
            Change::Policies(d) => self
                .policies
                .apply(&mut world.policies, d, Policy::after, |n, b, a| {
                    note(Difference::Policy(n, b, a));
                }),
            Change::Pods(d) => {
                let shared = |pod: Pod, _: Option<&Arc<Pod>>| {
                    let labels = labels.intern(pod.labels);
                    Arc::new(Pod { labels, ..pod })
                };
                self.pods.apply(&mut world.pods, d, shared, |_, b, a| {
                    note(Difference::Pod(b, a));
                })
            }
            Change::Nodes(d) => self.nodes.apply(&mut world.nodes, d, latest, |_, b, a| {
                note(Difference::Node(b, a));
            }),
            Change::Namespaces(d) => self
                .namespaces
                .apply(&mut world.namespaces, d, latest, |n, b, a| {
                    note(Difference::Namespace(n, b, a));
                }),
            Change::ServiceCidrs(d) => {
                let changed = |_: &str, _: Option<&_>, _: Option<&_>| note(Difference::Cluster);
                self.service_cidrs
                    .apply(&mut world.service_cidrs, d, latest, changed)
            }
            Change::ApiServers(d) => {
                let changed = |_: &str, _: Option<&_>, _: Option<&_>| note(Difference::Cluster);
                self.api_servers.apply(&mut world.api_servers, d, latest, changed)
            }
            Change::Plans(d) => self.plans.apply(&mut world.plans, d, latest, |n, b, a| {
                note(Difference::Plan(n, b, a));
            }),
        }
    }
}

/// The object as it is now, whatever it was before.
fn latest<V>(new: V, _previous: Option<&V>) -> V {
    new
}

impl<T> Default for Progress<T> {
    fn default() -> Self {
        Self {
            listing: None,
            synced: false,
        }
    }
}

impl<T: PartialEq> Progress<T> {
    /// `after` gives what is kept of a value that follows another; `note` is told of each key whose value is
    /// now another: what was, and what is.
    fn apply<V>(
        &mut self,
        current: &mut BTreeMap<String, T>,
        delta: Delta<V>,
        mut after: impl FnMut(V, Option<&T>) -> T,
        mut note: impl FnMut(&str, Option<&T>, Option<&T>),
    ) -> bool {
        match delta {
            Delta::Restart => {
                self.listing = Some(BTreeMap::new());
                false
            }
            Delta::Listed(key, value) => {
                let value = after(value, current.get(&key));
                self.listing.get_or_insert_default().insert(key, value);
                false
            }
            Delta::Synced => {
                let listed = self.listing.take().unwrap_or_default();
                let mut changed = !std::mem::replace(&mut self.synced, true);
                differences(current, &listed, |key, before, now| {
                    changed = true;
                    note(key, before, now);
                });
                *current = listed;
                changed
            }
            Delta::Set(key, value) => {
                let before = current.get(&key);
                let value = after(value, before);
                if before == Some(&value) {
                    return false;
                }
                note(&key, before, Some(&value));
                current.insert(key, value);
                true
            }
            Delta::Gone(key) => match current.remove(&key) {
                None => false,
                Some(before) => {
                    note(&key, Some(&before), None);
                    true
                }
            },
        }
    }
}

/// Tells `note` of each key whose value is not the same in both.
fn differences<T: PartialEq>(
    before: &BTreeMap<String, T>,
    after: &BTreeMap<String, T>,
    mut note: impl FnMut(&str, Option<&T>, Option<&T>),
) {
    for (key, old) in before {
        let new = after.get(key);
        if new != Some(old) {
            note(key, Some(old), new);
        }
    }
    for (key, new) in after.iter().filter(|(key, _)| !before.contains_key(*key)) {
        note(key, None, Some(new));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespaces(store: &Store) -> Vec<&str> {
        store.world().namespaces.keys().map(String::as_str).collect()
    }

    fn apply(store: &mut Store, delta: Delta<Labels>) -> bool {
        store.apply(Change::Namespaces(delta))
    }

    fn listed(name: &str) -> Delta<Labels> {
        Delta::Listed(name.into(), Labels::new())
    }

    #[test]
    fn a_list_counts_only_when_complete() {
        let mut store = Store::default();
        assert!(!apply(&mut store, Delta::Restart));
        assert!(!apply(&mut store, listed("a")));
        assert!(namespaces(&store).is_empty());
        assert!(apply(&mut store, Delta::Synced));
        assert_eq!(namespaces(&store), ["a"]);

        apply(&mut store, Delta::Restart);
        apply(&mut store, listed("b"));
        assert_eq!(
            namespaces(&store),
            ["a"],
            "a list that breaks off changes nothing"
        );
        apply(&mut store, Delta::Restart);
        apply(&mut store, listed("c"));
        assert!(apply(&mut store, Delta::Synced));
        assert_eq!(namespaces(&store), ["c"], "what is no longer listed is gone");
    }

    #[test]
    fn what_changes_nothing_is_no_change() {
        let mut store = Store::default();
        let set = || Delta::Set("a".into(), Labels::new());
        assert!(apply(&mut store, set()));
        assert!(!apply(&mut store, set()));
        assert!(!apply(&mut store, Delta::Gone("b".into())));
        assert!(apply(&mut store, Delta::Gone("a".into())));
    }

    #[test]
    fn the_world_is_complete_when_every_watch_is() {
        let mut store = Store::default();
        let all = [
            Change::Policies(Delta::Synced),
            Change::Pods(Delta::Synced),
            Change::Nodes(Delta::Synced),
            Change::Namespaces(Delta::Synced),
            Change::ServiceCidrs(Delta::Synced),
            Change::ApiServers(Delta::Synced),
            Change::Plans(Delta::Synced),
        ];
        for change in all {
            assert!(!store.synced());
            assert!(
                store.apply(change),
                "the first list is news even when it is empty"
            );
        }
        assert!(store.synced());
    }
}
