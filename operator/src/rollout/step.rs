//! What of a wanted plan may be written now.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::interval::Interval;
use egressnat_crds::plan::{Family, Peer, PlanPolicy, RetiredId, SourceRole};
use egressnat_crds::policy::NoGateway;

use super::confirmations::{Confirmations, Offer, peer, policy};
use crate::ranges;
use crate::world::{ExistingPlan, World};

/// A plan that may be written, on the way to the one that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The plan.
    pub spec: EgressPlanSpec,
    /// The gateways that it has to wait for, by id.
    pub waits: BTreeMap<u16, String>,
    /// The gateways that it keeps meanwhile.
    pub keeps: BTreeSet<String>,
    /// Whether it keeps something for sources that may still send here.
    pub serves_on: bool,
}

/// What a step is made from.
pub struct From<'a> {
    /// The node.
    pub node: &'a str,
    /// Its plan as it is stored.
    pub stored: &'a EgressPlanSpec,
    /// All that is stored.
    pub world: &'a World,
    /// What the agents have confirmed of it.
    pub confirmed: &'a Confirmations,
}

impl Step {
    /// All that is wanted.
    pub fn to(target: EgressPlanSpec) -> Self {
        Self {
            spec: target,
            waits: BTreeMap::new(),
            keeps: BTreeSet::new(),
            serves_on: false,
        }
    }

    /// Leaves the node's pods where they are until the gateways that are wanted serve them. Those that were nowhere
    /// are dropped meanwhile, also where `noGateway` is `NodeIP`: there is a gateway.
    pub fn keep_sources(&mut self, from: &From<'_>) {
        for at in 0..self.spec.policies.len() {
            let wanted = &self.spec.policies[at];
            let Some((role, gateway)) = new_way(wanted, from) else {
                continue;
            };
            if from.is_served(&self.spec, wanted.id, gateway, &role.families) {
                continue;
            }
            self.waits.insert(wanted.id, gateway.to_owned());
            let kept = from.kept(wanted);
            let until = SourceRole {
                gateway: kept.and_then(|role| role.gateway.clone()),
                families: kept.map_or_else(Vec::new, |role| role.families.clone()),
                no_gateway: kept.map_or(NoGateway::Drop, |_| role.no_gateway),
                on_change: role.on_change,
            };
            self.keeps.extend(until.gateway.clone());
            self.spec.policies[at].source = Some(until);
        }
        if !self.waits.is_empty() {
            let policies = &self.spec.policies;
            let is_used = |peer: &Peer| policies.iter().any(|p| sends_to(Some(p), &peer.node));
            self.spec
                .peers
                .retain(|peer| !peer.ranges.is_empty() || is_used(peer));
        }
        for gateway in &self.keeps {
            if let (None, Some(kept)) = (peer(&self.spec, gateway), peer(from.stored, gateway)) {
                let kept = Peer {
                    ranges: Vec::new(),
                    ..kept.clone()
                };
                insert_peer(&mut self.spec, kept);
            }
        }
    }

    /// Leaves the node the gateway of those that may still send to it.
    pub fn keep_roles(&mut self, from: &From<'_>) {
        let mut users = BTreeSet::new();
        for stored in from.stored.policies.iter().filter(|p| p.gateway.is_some()) {
            let wanted = policy(&self.spec, stored.id);
            let is_other = wanted.is_some_and(|w| w.gateway.is_some() || w.name != stored.name);
            if is_other {
                continue;
            }
            let senders: Vec<&str> = from.confirmed.users(from.node, stored.id, from.world).collect();
            if !senders.is_empty() || sends_to(wanted, from.node) {
                users.extend(senders);
                self.keep_role(stored);
            }
        }
        if self.serves_on && self.spec.cluster.is_empty() {
            self.spec.cluster.clone_from(&from.stored.cluster);
        }
        let is_left_out =
            |p: &&Peer| !p.ranges.is_empty() && peer(&self.spec, &p.node).is_none_or(|p| p.ranges.is_empty());
        let left_out = from
            .stored
            .peers
            .iter()
            .filter(is_left_out)
            .map(|p| p.node.as_str());
        users.extend(left_out.filter(|node| from.confirmed.is_user(node, from.node)));
        if !from.confirmed.is_settled(from.node) {
            users.extend(from.confirmed.leaving(from.node));
            let roles = from.stored.policies.iter().filter(|p| p.gateway.is_some());
            users.extend(roles.flat_map(|p| from.confirmed.unknown_users(from.node, p.id, from.world)));
        }
        self.keep_peers(&users, from);
    }

    /// Notes the ids that the node may still use. One that it does not use any more, but that is some policy's, is
    /// struck out only with another change: it cannot be given away anyway.
    pub fn keep_ids(&mut self, from: &From<'_>, is_given: impl Fn(u16) -> bool) {
        let mentioned = from.stored.policies.iter().map(|p| RetiredId {
            id: p.id,
            name: p.name.clone(),
        });
        let in_use = from.stored.retired.iter();
        let in_use = in_use.filter(|r| !from.confirmed.has_retired(from.node, r.id));
        let retired: BTreeSet<RetiredId> = mentioned.chain(in_use.cloned()).collect();
        self.spec.retired = retired.into_iter().filter(|r| !has(&self.spec, r)).collect();
        let is_free = |r: &&RetiredId| !self.spec.retired.contains(r) && !is_given(r.id);
        if self.spec.retired != from.stored.retired && from.stored.retired.iter().find(is_free).is_none() {
            let lazy = EgressPlanSpec {
                retired: from.stored.retired.clone(),
                ..self.spec.clone()
            };
            if lazy == *from.stored {
                self.spec = lazy;
            }
        }
    }

    fn keep_role(&mut self, stored: &PlanPolicy) {
        self.serves_on = true;
        match self.spec.policies.binary_search_by_key(&stored.id, |p| p.id) {
            Ok(at) => self.spec.policies[at].gateway.clone_from(&stored.gateway),
            Err(at) => {
                let role = PlanPolicy {
                    source: None,
                    ..stored.clone()
                };
                self.spec.policies.insert(at, role);
            }
        }
    }

    /// Goes on to accept what these nodes may still send, unless those addresses are another peer's now.
    fn keep_peers(&mut self, users: &BTreeSet<&str>, from: &From<'_>) {
        let of_peers = || self.spec.peers.iter().flat_map(|p| &p.ranges);
        let mut taken = None;
        let mut kept: Vec<Peer> = Vec::new();
        for node in users.iter().filter(|node| from.world.nodes.contains_key(**node)) {
            let Some(stored) = peer(from.stored, node) else {
                continue;
            };
            let has = peer(&self.spec, node).map_or(&[][..], |p| &p.ranges);
            let mut more = stored.clone();
            let taken = taken.get_or_insert_with(|| ranges::merge(of_peers().copied().map(Interval::from)));
            more.ranges
                .retain(|range| !has.contains(range) && !overlaps(taken, (*range).into()));
            if !more.ranges.is_empty() {
                kept.push(more);
            }
        }
        for more in kept {
            self.serves_on = true;
            insert_peer(&mut self.spec, more);
        }
    }
}

impl From<'_> {
    /// Whether a gateway is known to take what the node's pods would send it by this id.
    fn is_served(&self, target: &EgressPlanSpec, id: u16, gateway: &str, families: &[Family]) -> bool {
        let Some(plan) = self.world.plans.get(gateway).filter(|plan| is_ready(plan)) else {
            return false;
        };
        let holds = |offer: Offer| self.confirmed.holds(gateway, &offer);
        let role = policy(&plan.spec, id).and_then(|p| p.gateway.as_ref());
        let with = |family: &Family| {
            let mut of_family = role.into_iter().flat_map(|r| &r.addresses);
            of_family.any(|a| Family::from(*a) == *family && holds(Offer::Address(id, *a)))
        };
        let here = peer(&plan.spec, self.node).filter(|here| Some(here.underlay) == target.underlay);
        let takes = |ip: IpAddr| {
            let mut ranges = here.into_iter().flat_map(|here| &here.ranges);
            ranges.any(|r| r.contains(&ip) && holds(Offer::Range(self.node.to_owned(), *r)))
        };
        role.is_some() && families.iter().all(with) && senders(target, id).all(takes)
    }

    /// What the node does with an id by its stored plan, if its gateway serves on.
    fn kept(&self, wanted: &PlanPolicy) -> Option<&SourceRole> {
        let stored = policy(self.stored, wanted.id).filter(|p| p.name == wanted.name)?;
        let role = stored.source.as_ref()?;
        let gateway = role.gateway.as_deref()?;
        let plan = self.world.plans.get(gateway).map(|plan| &plan.spec)?;
        let serves = policy(plan, wanted.id).is_some_and(|p| p.gateway.is_some());
        (serves && self.world.nodes.contains_key(gateway)).then_some(role)
    }
}

/// The way that is wanted for an id, where it is another than the stored one: the role, and its gateway.
fn new_way<'a>(wanted: &'a PlanPolicy, from: &From<'_>) -> Option<(&'a SourceRole, &'a str)> {
    let role = wanted.source.as_ref()?;
    let gateway = role.gateway.as_deref().filter(|gateway| *gateway != from.node)?;
    let stored = policy(from.stored, wanted.id).filter(|p| p.name == wanted.name);
    let stored = stored.and_then(|p| p.source.as_ref());
    let same = stored.is_some_and(|stored| {
        stored.gateway.as_deref() == Some(gateway)
            && role
                .families
                .iter()
                .all(|family| stored.families.contains(family))
    });
    (!same).then_some((role, gateway))
}

fn sends_to(policy: Option<&PlanPolicy>, gateway: &str) -> bool {
    let role = policy.and_then(|p| p.source.as_ref());
    role.is_some_and(|role| role.gateway.as_deref() == Some(gateway))
}

/// The addresses of the pods of a plan that use an id.
fn senders(plan: &EgressPlanSpec, id: u16) -> impl Iterator<Item = IpAddr> {
    let uses = plan
        .profiles
        .iter()
        .filter(move |p| p.destinations.iter().any(|d| d.policy == id));
    let profiles: BTreeSet<u32> = uses.map(|p| p.id).collect();
    let pods = plan
        .pods
        .iter()
        .filter(move |pod| profiles.contains(&pod.profile));
    pods.flat_map(|pod| pod.ips.iter().copied())
}

/// Whether the agent says that its kernel holds what it has reported.
pub fn is_ready(plan: &ExistingPlan) -> bool {
    let mut conditions = plan.status.conditions.iter();
    conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}

fn has(plan: &EgressPlanSpec, retired: &RetiredId) -> bool {
    policy(plan, retired.id).is_some_and(|p| p.name == retired.name)
}

/// Whether any of these intervals, disjoint and in ascending order, meets another.
fn overlaps(sorted: &[Interval], with: Interval) -> bool {
    let at = sorted.partition_point(|i| i.last() < with.first());
    sorted.get(at).is_some_and(|i| i.first() <= with.last())
}

/// Adds a peer, or to the ranges of the one that is there.
fn insert_peer(plan: &mut EgressPlanSpec, more: Peer) {
    match plan.peers.binary_search_by(|p| p.node.cmp(&more.node)) {
        Err(at) => plan.peers.insert(at, more),
        Ok(at) => {
            let ranges = &mut plan.peers[at].ranges;
            ranges.extend(more.ranges);
            ranges.sort_unstable();
            ranges.dedup();
        }
    }
}
