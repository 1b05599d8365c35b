//! Which policies select a pod, and which of their gateways it uses.

use std::collections::BTreeMap;

use egressnat_crds::policy::PodSelection;
use egressnat_crds::selector::{LabelSelector, Labels};

use super::choose;
use super::gateway::zone_of;
use super::policies::Policies;
use crate::world::{Node, Pod, World};

/// Label of every namespace with its name, set by the API server.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Selector entries that may match a pod of a namespace, in order of precedence: the policy, and which of its
/// selections.
type Entries = Vec<(usize, usize)>;

/// The entries that a namespace's labels leave, worked out once per namespace.
#[derive(Debug, Default)]
pub struct Candidates {
    of_namespace: BTreeMap<String, Entries>,
}

impl Candidates {
    /// What the pod, on this node, uses of the policies that select it: one slot of each, in order of precedence.
    pub fn slots(&mut self, pod: &Pod, node: &Node, policies: &Policies, world: &World) -> Vec<usize> {
        let mut slots: Vec<usize> = Vec::new();
        let mut selecting = None;
        for (index, selection) in self.entries(&pod.namespace, policies, world) {
            let policy = &policies.policies[*index];
            if selecting != Some(*index) && selects(&policy.spec.selections[*selection], pod, node) {
                selecting = Some(*index);
                slots.push(choose::slot(policy, &policies.slots, &pod.uid, zone_of(node)));
            }
        }
        slots
    }

    /// Whether what is known of a namespace is not so any more.
    pub fn is_outdated(&self, namespace: &str, policies: &Policies, world: &World) -> bool {
        let known = self.of_namespace.get(namespace);
        known.is_some_and(|entries| *entries != entries_of(namespace, policies, world))
    }

    /// Whether any policy may select pods of the namespace.
    pub fn any(&mut self, namespace: &str, policies: &Policies, world: &World) -> bool {
        !self.entries(namespace, policies, world).is_empty()
    }

    fn entries(&mut self, namespace: &str, policies: &Policies, world: &World) -> &Entries {
        if !self.of_namespace.contains_key(namespace) {
            let entries = entries_of(namespace, policies, world);
            self.of_namespace.insert(namespace.to_owned(), entries);
        }
        &self.of_namespace[namespace]
    }
}

fn entries_of(namespace: &str, policies: &Policies, world: &World) -> Entries {
    // The pod's event may come before its namespace's; the one label that is sure is known all the same.
    let named = || Labels::from([(NAMESPACE_NAME.into(), namespace.into())]);
    let labels = world.namespaces.get(namespace).cloned().unwrap_or_else(named);
    let mut entries = Entries::new();
    for (index, policy) in policies.policies.iter().enumerate() {
        let selections = policy.spec.selections.iter().enumerate();
        let left = selections.filter(|(_, entry)| matches(&entry.namespace_selector, &labels));
        entries.extend(left.map(|(selection, _)| (index, selection)));
    }
    entries
}

/// Whether an entry that the pod's namespace leaves selects it.
fn selects(entry: &PodSelection, pod: &Pod, node: &Node) -> bool {
    matches(&entry.pod_selector, &pod.labels) && matches(&entry.node_selector, &node.labels)
}

/// A selector that was left out selects everything.
fn matches(selector: &Option<LabelSelector>, labels: &Labels) -> bool {
    selector.as_ref().is_none_or(|s| s.matches(labels))
}
