//! The source role: this node's selected pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::interval::{self, Interval};
use egressnat_crds::never;
use egressnat_crds::plan::{EgressPlanSpec, Family, PlanPod, PlanPolicy, Profile, SourceRole};
use egressnat_crds::policy::{NoGateway, OnChange};

use super::table::*;
use super::{CompileError, Context, FAMILIES, digit, exits};
use crate::model::KeyType;
use crate::model::rule::digest;
use crate::model::{Data, DataType, Direction, ElementKey, Key, Rule, Ruleset, Set, Statement, Verdict};
use crate::owned::{self, Drop, RoutingMark};

/// Where a policy's packets of one family go from this node.
enum Way<'a> {
    /// By the tunnel to this peer.
    Peer(&'a str),
    /// This node is the gateway.
    Here,
    /// No gateway: as any other pod's.
    AsNode,
    /// No gateway: nowhere.
    Nowhere,
}

impl Context<'_> {
    /// Everything of the source role. Nothing is left out where there are no pods: a connection that still
    /// carries an id then meets an empty map, and is dropped.
    pub(super) fn source(&self, table: &mut Ruleset) -> Result<(), CompileError> {
        self.check_profiles()?;
        self.pods(table);
        self.profiles(table);
        self.ways(table);
        self.judge(table);
        for policy in self.plan.policies.iter().filter(|p| p.source.is_some()) {
            let mut rules = older(policy.source.as_ref());
            rules.push(rule([save_id(policy.id), goto("route")]));
            table.chain(format!("pol_{}", policy.id), rules);
        }
        for (node, number) in &self.gateways {
            let mark = self.set_routing_mark(RoutingMark::Gateway(*number));
            debug_assert!(self.peers.contains_key(node));
            table.chain(format!("gw_{number}"), vec![rule([mark, accept()])]);
        }
        Ok(())
    }

    /// What the rest relies on: references lead somewhere, intervals are disjoint and in order.
    fn check_profiles(&self) -> Result<(), CompileError> {
        let invalid = |text: String| Err(CompileError::PlanInvalid(text));
        let sources: BTreeSet<u16> = self
            .plan
            .policies
            .iter()
            .filter(|p| p.source.is_some())
            .map(|p| p.id)
            .collect();
        for Profile { id, destinations } in &self.plan.profiles {
            if let Some(d) = destinations.iter().find(|d| !sources.contains(&d.policy)) {
                return invalid(format!(
                    "profile {id} names policy {}, which has no source role here",
                    d.policy
                ));
            }
            if let Some(w) = destinations
                .windows(2)
                .find(|w| w[0].range.last() >= w[1].range.first())
            {
                return invalid(format!(
                    "profile {id}: {} and {} overlap or are out of order",
                    w[0].range, w[1].range
                ));
            }
        }
        match pod_without_profile(self.plan) {
            Some(pod) => invalid(format!(
                "pod {} has the unknown profile {}",
                pod.name, pod.profile
            )),
            None => Ok(()),
        }
    }

    fn pods(&self, table: &mut Ruleset) {
        table.sets.extend(pods(self.plan));
    }

    /// A chain per profile with an interval map per family. Maps are named by their content: equal ones are
    /// one, and a changed one is a new map, swapped in by replacing the rule.
    fn profiles(&self, table: &mut Ruleset) {
        let chains = self
            .plan
            .profiles
            .iter()
            .map(|p| (ElementKey::Mark(p.id), goto_data(format!("prof_{}", p.id))));
        table.hash("profiles", KeyType::Mark, DataType::Verdict, chains);
        for profile in &self.plan.profiles {
            let rules = FAMILIES
                .iter()
                .filter_map(|family| destination_rule(table, profile, *family))
                .collect();
            table.chain(format!("prof_{}", profile.id), rules);
        }
    }

    /// Which way each id goes, per family: one element each, which is all that a failover changes.
    fn ways(&self, table: &mut Ruleset) {
        for family in FAMILIES {
            let mut ids = Vec::new();
            let mut as_node = Vec::new();
            for policy in &self.plan.policies {
                let key = ElementKey::Mark(owned::ct_mark(policy.id));
                match policy.source.as_ref().map(|source| self.way(source, family)) {
                    Some(Way::Peer(node)) => {
                        ids.extend(
                            self.gateways
                                .get(node)
                                .map(|n| (key, goto_data(format!("gw_{n}")))),
                        );
                    }
                    Some(Way::Here) => ids.push((key, goto_data(self.chain_out(policy, family)))),
                    Some(Way::AsNode) => {
                        ids.push((key, goto_data("local")));
                        as_node.push((key, Data::None));
                    }
                    Some(Way::Nowhere) | None => {}
                }
            }
            table.hash(
                format!("ids{}", digit(family)),
                KeyType::Mark,
                DataType::Verdict,
                ids,
            );
            table.hash(
                format!("as_node{}", digit(family)),
                KeyType::Mark,
                DataType::None,
                as_node,
            );
        }
    }

    fn chain_out(&self, policy: &PlanPolicy, family: Family) -> String {
        match self.way_out(policy, family) {
            RoutingMark::Exit(number) => exits::exit_chain(number),
            _ => "local".into(),
        }
    }

    fn way<'a>(&self, source: &'a SourceRole, family: Family) -> Way<'a> {
        match source.gateway.as_deref() {
            Some(node) if source.families.contains(&family) => {
                if node == self.node {
                    Way::Here
                } else {
                    Way::Peer(node)
                }
            }
            _ if source.no_gateway == NoGateway::NodeIP => Way::AsNode,
            _ => Way::Nowhere,
        }
    }

    /// A selected pod's packet that carries no id yet.
    fn judge(&self, table: &mut Ruleset) {
        let ranges = never_captured(self.plan);
        for family in FAMILIES {
            let of_family = ranges.iter().filter(|r| family == r.first().into());
            let elements = of_family.map(|r| (ElementKey::Range(*r), Data::None));
            table.intervals(
                format!("cluster{}", digit(family)),
                address_type(family).0,
                DataType::None,
                elements,
            );
        }
        let mut selected = vec![
            rule([Statement::CtUnplaced, goto("unplaced")]),
            rule([Statement::CtDirection(Direction::Reply), accept()]),
        ];
        selected.extend(inside(&Verdict::Accept));
        selected.extend(self.by_own_door());
        selected.extend(FAMILIES.iter().map(|f| {
            rule([Statement::MapVmap(
                Key::Saddr(*f),
                format!("pods{}", digit(*f)),
                "profiles".into(),
            )])
        }));
        table.chain("selected", selected);

        let mut unplaced = inside(&Verdict::Accept);
        unplaced.push(drop_rule(Drop::Unplaced));
        table.chain("unplaced", unplaced);
    }
}

/// The rules for what is of no policy's concern, whoever sends it.
pub(super) fn inside(verdict: &Verdict) -> Vec<Rule> {
    let verdict = || Statement::Verdict(verdict.clone());
    let cluster = |family| Statement::In(Key::Daddr(family), format!("cluster{}", digit(family)));
    let ranges = FAMILIES.map(|family| rule([cluster(family), verdict()]));
    let local = rule([Statement::FibDaddrLocal, verdict()]);
    ranges.into_iter().chain([local]).collect()
}

/// The maps of the plan's pods: `address -> profile`, one of each family.
pub(crate) fn pods(plan: &EgressPlanSpec) -> [(String, Set); 2] {
    FAMILIES.map(|family| {
        let of_family = plan.pods.iter().flat_map(|pod| {
            let ips = pod.ips.iter().filter(move |ip| family == (**ip).into());
            ips.map(|ip| (ElementKey::Addr(*ip), Data::Mark(pod.profile)))
        });
        let set = Set {
            elements: of_family.collect(),
            ..Set::new(address_type(family).0, DataType::Mark, false)
        };
        (format!("pods{}", digit(family)), set)
    })
}

/// A pod whose profile the plan has not.
pub(crate) fn pod_without_profile(plan: &EgressPlanSpec) -> Option<&PlanPod> {
    let profiles: BTreeSet<u32> = plan.profiles.iter().map(|p| p.id).collect();
    plan.pods.iter().find(|p| !profiles.contains(&p.profile))
}

/// What no policy captures: the plan's ranges and those of every node, merged, in order.
pub(crate) fn never_captured(plan: &EgressPlanSpec) -> Vec<Interval> {
    let fixed = never::captured().map(|(_, net)| Interval::from(net));
    merge(plan.cluster.iter().copied().chain(fixed))
}

/// What is kept from getting a policy's id: packets of connections that conntrack knows already, whose translation is
/// another's, until they have been forgotten; and those that go on after that.
fn older(source: Option<&SourceRole>) -> Vec<Rule> {
    let mut rules = vec![drop_if([Statement::CtConfirmed], Drop::Older)];
    if source.is_some_and(|s| s.on_change == OnChange::Cut) {
        let counter = Statement::Counter(Drop::Older.counter().into());
        rules.push(rule([
            Statement::TcpMidstream,
            counter,
            Statement::RejectTcpReset,
        ]));
    }
    rules
}

/// The rule that looks a destination of `family` up, and the map it looks in. None where no policy of the
/// profile has destinations of the family; without a map where one policy has them all.
fn destination_rule(table: &mut Ruleset, profile: &Profile, family: Family) -> Option<Rule> {
    let elements: BTreeMap<ElementKey, Data> = profile
        .destinations
        .iter()
        .filter(|d| family == d.range.first().into())
        .map(|d| (ElementKey::Range(d.range), goto_data(format!("pol_{}", d.policy))))
        .collect();
    if let ([(ElementKey::Range(range), Data::Verdict(verdict))], true) = (
        elements.iter().collect::<Vec<_>>().as_slice(),
        elements.len() == 1,
    ) && is_everything(range)
    {
        return Some(rule([
            Statement::NfProto(family),
            Statement::Verdict(verdict.clone()),
        ]));
    }
    if elements.is_empty() {
        return None;
    }
    let name = format!("to{}_{}", digit(family), digest(&elements));
    table.intervals(name.clone(), address_type(family).0, DataType::Verdict, elements);
    Some(rule([Statement::Vmap(Key::Daddr(family), name)]))
}

fn is_everything(range: &Interval) -> bool {
    interval::previous(range.first()).is_none() && interval::next(range.last()).is_none()
}

/// The same addresses as disjoint intervals that do not touch, in order.
pub(super) fn merge(ranges: impl Iterator<Item = Interval>) -> Vec<Interval> {
    let mut sorted: Vec<Interval> = ranges.collect();
    sorted.sort();
    let mut merged: Vec<Interval> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if touches(last, &range) => {
                let end: IpAddr = last.last().max(range.last());
                if let Ok(joined) = Interval::new(last.first(), end) {
                    *last = joined;
                }
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// Whether `next`, which does not begin before `last`, overlaps or follows it at once.
fn touches(last: &Interval, next: &Interval) -> bool {
    last.first().is_ipv4() == next.first().is_ipv4()
        && interval::next(last.last()).is_none_or(|after| next.first() <= after)
}
