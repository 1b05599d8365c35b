//! The pods that policies can select, by node and by address; those on their nodes' network, by node.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::world::Pod;

/// The eligible pods, by node and by address; those on their nodes' network, by node.
#[derive(Debug, Default)]
pub struct Pods {
    /// By node: in order of their uids.
    of_node: BTreeMap<String, Vec<Arc<Pod>>>,
    /// By address: the pods that claim it, the one that has it first.
    claims: BTreeMap<IpAddr, Vec<Arc<Pod>>>,
    /// Those on their node's network that have not ended, by node.
    on_host: BTreeMap<String, Vec<Arc<Pod>>>,
}

impl Pods {
    /// Those of all pods that are eligible.
    pub fn of<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> Self {
        let mut all = Self::default();
        for pod in pods {
            all.add(pod);
        }
        all
    }

    /// Puts `after` in the place of `before`. The nodes whose pods, or whose pods' addresses, may be others now.
    pub fn replace(&mut self, before: Option<&Arc<Pod>>, after: Option<&Arc<Pod>>) -> BTreeSet<String> {
        if let Some(pod) = before {
            self.remove(pod);
        }
        if let Some(pod) = after {
            self.add(pod);
        }
        let both = || [before, after].into_iter().flatten().filter(|pod| pod.eligible());
        let rivals = both()
            .flat_map(|pod| &pod.ips)
            .filter_map(|ip| self.claims.get(ip));
        let nodes = rivals.flatten().chain(both()).filter_map(|pod| pod.node.clone());
        nodes.collect()
    }

    /// The pods of a node, by uid.
    pub fn of_node(&self, node: &str) -> &[Arc<Pod>] {
        self.of_node.get(node).map_or(&[], Vec::as_slice)
    }

    /// The pod's addresses that another pod has taken over. Of live pods that claim the same address, one that is
    /// being deleted yields to one that is not, then the older to the newer.
    pub fn lost(&self, pod: &Arc<Pod>) -> impl Iterator<Item = IpAddr> {
        let is_owner = |ip: &IpAddr| {
            let claims = self.claims.get(ip);
            claims.is_some_and(|pods| Arc::ptr_eq(&pods[0], pod))
        };
        pod.ips.iter().copied().filter(move |ip| !is_owner(ip))
    }

    /// The pod that has an address.
    pub fn owner(&self, ip: IpAddr) -> Option<&Arc<Pod>> {
        self.claims.get(&ip)?.first()
    }

    /// The pods that use the network of their node, by node.
    pub fn on_host(&self) -> impl Iterator<Item = (&str, &Pod)> {
        let nodes = self.on_host.iter();
        nodes.flat_map(|(node, pods)| pods.iter().map(move |pod| (node.as_str(), &**pod)))
    }

    fn add(&mut self, pod: &Arc<Pod>) {
        if let Some(node) = pod.node.as_ref().filter(|_| pod.host_network && !pod.ended) {
            insert(&mut self.on_host, node, pod, by_uid);
        }
        if !pod.eligible() {
            return;
        }
        if let Some(node) = &pod.node {
            insert(&mut self.of_node, node, pod, by_uid);
        }
        for ip in &pod.ips {
            insert(&mut self.claims, ip, pod, by_precedence);
        }
    }

    fn remove(&mut self, pod: &Arc<Pod>) {
        if let Some(node) = &pod.node {
            remove(&mut self.of_node, node, pod);
            remove(&mut self.on_host, node, pod);
        }
        for ip in &pod.ips {
            remove(&mut self.claims, ip, pod);
        }
    }
}

fn insert<K: Ord + Clone>(
    pods: &mut BTreeMap<K, Vec<Arc<Pod>>>,
    at: &K,
    pod: &Arc<Pod>,
    order: fn(&Pod, &Pod) -> Ordering,
) {
    match pods.get_mut(at) {
        Some(pods) => {
            let place = pods.partition_point(|other| order(other, pod).is_lt());
            pods.insert(place, pod.clone());
        }
        // Most addresses are claimed by one pod: a vector of just one.
        None => {
            pods.insert(at.clone(), vec![pod.clone()]);
        }
    }
}

fn remove<K: Ord>(pods: &mut BTreeMap<K, Vec<Arc<Pod>>>, at: &K, pod: &Arc<Pod>) {
    if let Some(here) = pods.get_mut(at) {
        here.retain(|other| !Arc::ptr_eq(other, pod));
        if here.is_empty() {
            pods.remove(at);
        }
    }
}

/// In a plan's order. No two pods have the same uid, but the order of their events must not matter even so.
fn by_uid(a: &Pod, b: &Pod) -> Ordering {
    let [a, b] = [a, b].map(|pod| (&pod.uid, &pod.namespace, &pod.name));
    a.cmp(&b)
}

/// The pod that has an address before those that only claim it.
fn by_precedence(a: &Pod, b: &Pod) -> Ordering {
    let [first, second] = [a, b].map(|pod| (pod.deleting, Reverse(pod.created)));
    first.cmp(&second).then_with(|| by_uid(a, b))
}
