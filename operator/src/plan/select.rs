//! Which pods a policy selects, and which addresses are theirs.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::policy::PodSelection;
use egressnat_crds::selector::{LabelSelector, Labels};

use super::gateway::zone_of;
use super::{InForce, Policies, choose};
use crate::world::{Node, Pod, World};

/// A pod that at least one policy selects.
#[derive(Debug)]
pub struct SelectedPod<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Those of its addresses that no newer pod has taken over.
    pub ips: Vec<IpAddr>,
    /// What it uses of the policies that select it: one slot of each, in order of precedence.
    pub slots: Vec<usize>,
}

/// Label of every namespace with its name, set by the API server.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The selected pods of every node, by uid. Pods of nodes that are not known are left out.
pub fn pods_by_node<'a>(
    world: &'a World,
    in_force: &'a Policies<'a>,
) -> BTreeMap<&'a str, Vec<SelectedPod<'a>>> {
    let lost = lost_addresses(world);
    let mut candidates = Candidates {
        world,
        policies: &in_force.policies,
        of_namespace: BTreeMap::new(),
    };
    let mut by_node: BTreeMap<&str, Vec<SelectedPod>> = BTreeMap::new();
    for pod in world.pods.values().filter(|p| p.eligible()) {
        let Some((name, node)) = pod.node.as_deref().and_then(|n| world.nodes.get_key_value(n)) else {
            continue;
        };
        let selecting = candidates.selecting(pod, node);
        if !selecting.is_empty() {
            let kept = pod
                .ips
                .iter()
                .filter(|ip| !lost.contains(&(**ip, pod.uid.as_str())));
            by_node.entry(name).or_default().push(SelectedPod {
                pod,
                ips: kept.copied().collect(),
                slots: slots(&selecting, pod, node, in_force),
            });
        }
    }
    for pods in by_node.values_mut() {
        pods.sort_by_key(|p| &p.pod.uid);
    }
    by_node
}

/// The slot of each of the policies that the pod uses.
fn slots(policies: &[usize], pod: &Pod, node: &Node, in_force: &Policies<'_>) -> Vec<usize> {
    let zone = zone_of(node);
    let slot = |policy: &usize| choose::slot(&in_force.policies[*policy], &in_force.slots, &pod.uid, zone);
    policies.iter().map(slot).collect()
}

/// Addresses that are no longer a pod's, with its uid: another live pod claims them as well. A pod that is
/// being deleted yields to one that is not, then the older to the newer. Pods that have ended claim nothing.
fn lost_addresses(world: &World) -> BTreeSet<(IpAddr, &str)> {
    let eligible = world.pods.values().filter(|p| p.eligible());
    let mut claims: Vec<_> = eligible
        .flat_map(|p| {
            p.ips
                .iter()
                .map(move |ip| (*ip, p.deleting, Reverse(p.created), p.uid.as_str()))
        })
        .collect();
    claims.sort_unstable();
    let pairs = claims.windows(2).filter(|w| w[0].0 == w[1].0);
    pairs.map(|w| (w[1].0, w[1].3)).collect()
}

/// Selector entries that may match a pod of a namespace, with their policy's index, in order of precedence.
type Entries<'a> = Vec<(usize, &'a PodSelection)>;

/// The entries that a namespace's labels leave, worked out once per namespace.
struct Candidates<'a> {
    world: &'a World,
    policies: &'a [InForce<'a>],
    of_namespace: BTreeMap<&'a str, Entries<'a>>,
}

impl<'a> Candidates<'a> {
    fn selecting(&mut self, pod: &'a Pod, node: &Node) -> Vec<usize> {
        let (world, policies) = (self.world, self.policies);
        let entries = self
            .of_namespace
            .entry(&pod.namespace)
            .or_insert_with(|| entries_of(world, policies, &pod.namespace));
        let mut selecting: Vec<usize> = Vec::new();
        for (policy, entry) in entries {
            if selecting.last() != Some(policy)
                && matches(&entry.pod_selector, &pod.labels)
                && matches(&entry.node_selector, &node.labels)
            {
                selecting.push(*policy);
            }
        }
        selecting
    }
}

fn entries_of<'a>(world: &World, policies: &'a [InForce<'a>], namespace: &str) -> Entries<'a> {
    // The pod's event may come before its namespace's; the one label that is sure is known all the same.
    let named = || Labels::from([(NAMESPACE_NAME.into(), namespace.into())]);
    let labels = world.namespaces.get(namespace).cloned().unwrap_or_else(named);
    let all = policies.iter().enumerate();
    all.flat_map(|(i, p)| p.spec.selections.iter().map(move |entry| (i, entry)))
        .filter(|(_, entry)| matches(&entry.namespace_selector, &labels))
        .collect()
}

/// A selector that was left out selects everything.
fn matches(selector: &Option<LabelSelector>, labels: &Labels) -> bool {
    selector.as_ref().is_none_or(|s| s.matches(labels))
}
