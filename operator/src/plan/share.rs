//! What follows from a node's own pods: the node's share in all sums.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use egressnat_crds::plan::Family;

use super::faults;
use super::gateway::zone_of;
use super::peers::{Accepted, accepted};
use super::pods::Pods;
use super::policies::Policies;
use super::profiles::Flat;
use super::shared::Shared;
use crate::world::{Node, Pod};

/// A pod that at least one policy selects.
#[derive(Debug)]
pub struct SelectedPod {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Those of its addresses that another pod has taken over.
    pub lost: Vec<IpAddr>,
    /// The destinations of the policies that select it.
    pub flat: Arc<Flat>,
}

/// What follows from a node's own pods.
#[derive(Debug, Default)]
pub struct Share {
    /// The address from which it tunnels, if it has one.
    pub underlay: Option<IpAddr>,
    /// The zone that it is in.
    pub zone: Option<String>,
    /// Its selected pods, by uid.
    pub pods: Vec<SelectedPod>,
    /// Which of them do not get what a policy promises, by place.
    pub at_fault: Vec<usize>,
    /// Its pod ranges, sorted.
    pub ranges: Accepted,
    /// What the gateways of its pods accept from it, by their names.
    pub tunnels: BTreeMap<String, Accepted>,
}

/// What of a slot's pods are a node's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The pods that use the slot.
    pub pods: usize,
    /// How many addresses of each family they have.
    pub ips: [usize; 2],
    /// The pods that the slot's gateway may not serve, since it is in another zone.
    pub far: usize,
    /// Whether a destination is left to the slot.
    pub is_source: bool,
}

impl SelectedPod {
    /// The addresses that are the pod's own.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.pod.ips.iter().copied().filter(|ip| !self.lost.contains(ip))
    }
}

impl Share {
    /// Of the node with this name. `flat` gives the destinations of the policies that select a pod, if any.
    pub fn of(
        name: &str,
        node: &Node,
        pods: &Pods,
        shared: &Shared,
        mut flat: impl FnMut(&Pod) -> Option<Arc<Flat>>,
    ) -> Self {
        let selected = pods.of_node(name).iter().filter_map(|pod| {
            Some(SelectedPod {
                flat: flat(pod)?,
                lost: pods.lost(pod).collect(),
                pod: pod.clone(),
            })
        });
        let mut ranges = node.pod_cidrs.clone();
        ranges.sort_unstable();
        ranges.dedup();
        let mut share = Self {
            underlay: node.underlay(shared.underlay),
            zone: zone_of(node).map(str::to_owned),
            pods: selected.collect(),
            at_fault: Vec::new(),
            ranges: ranges.into(),
            tunnels: BTreeMap::new(),
        };
        share.at_fault = faults::places(&share, shared);
        if share.underlay.is_some() {
            share.tunnels = share.tunnels_of(name, &shared.in_force);
        }
        share
    }

    /// The pods of which packets are captured: at least one policy is left with a destination.
    pub fn captured(&self) -> impl Iterator<Item = &SelectedPod> {
        self.pods.iter().filter(|pod| !pod.flat.slots.is_empty())
    }

    /// The slots that the captured pods use.
    pub fn sources(&self) -> BTreeSet<usize> {
        self.pods
            .iter()
            .flat_map(|pod| pod.flat.slots.iter().copied())
            .collect()
    }

    /// The node's part in each slot that its pods use.
    pub fn parts(&self, policies: &Policies) -> BTreeMap<usize, Part> {
        let mut parts: BTreeMap<usize, Part> = BTreeMap::new();
        for selected in &self.pods {
            let mut ips = [0; 2];
            for ip in selected.ips() {
                ips[Family::from(ip) as usize] += 1;
            }
            for slot in &selected.flat.used {
                let part = parts.entry(*slot).or_default();
                part.pods += 1;
                part.ips = [0, 1].map(|family| part.ips[family] + ips[family]);
                part.is_source |= selected.flat.slots.contains(slot);
            }
        }
        for (slot, part) in &mut parts {
            let has_one = policies.slots[*slot].resolution.gateway.is_some();
            if has_one && policies.gateway_of(*slot, self.zone.as_deref()).is_none() {
                part.far = part.pods;
            }
        }
        parts
    }

    /// How many of its pods use the same slots, for each set of slots.
    pub fn sets(&self) -> BTreeMap<&[usize], usize> {
        let mut sets = BTreeMap::new();
        for selected in &self.pods {
            *sets.entry(selected.flat.used.as_slice()).or_default() += 1;
        }
        sets
    }

    fn tunnels_of(&self, name: &str, policies: &Policies) -> BTreeMap<String, Accepted> {
        let mut ips: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
        for selected in &self.pods {
            for slot in &selected.flat.slots {
                let gateway = policies.gateway_of(*slot, self.zone.as_deref());
                if let Some(gateway) = gateway.filter(|gateway| gateway.node != name) {
                    ips.entry(&gateway.node).or_default().extend(selected.ips());
                }
            }
        }
        let tunnels = ips.into_iter();
        tunnels
            .map(|(gateway, ips)| (gateway.to_owned(), accepted(&self.ranges, &ips)))
            .collect()
    }
}
