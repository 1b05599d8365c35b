//! Exits: an egress address on another link than the default route's leaves by that link, by its next hop.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::interval::Interval;
use egressnat_crds::plan::{Family, PlanPolicy};
use ipnet::IpNet;

use super::table::*;
use super::{Context, FAMILIES, source};
use crate::facts::Exit;
use crate::model::{Data, DataType, ElementKey, IpRule, KeyType, Link, Net, Route, RouteKind, Rule, Ruleset};
use crate::owned::{RP_FILTER, RoutingMark};

impl Context<'_> {
    /// Which way a policy's packets of a family leave this node, its gateway.
    pub(super) fn way_out(&self, policy: &PlanPolicy, family: Family) -> RoutingMark {
        let mut addresses = policy.gateway.iter().flat_map(|g| &g.addresses);
        let address = addresses.find(|a| family == (**a).into());
        let exit = self
            .exits
            .iter()
            .find(|(_, exit)| address.is_some_and(|a| exit.addresses.contains(a)));
        exit.map_or(RoutingMark::Local, |(number, _)| RoutingMark::Exit(*number))
    }

    /// Marks are for their own link alone: whatever leads a packet elsewhere, it is dropped.
    pub(super) fn by_exit(&self) -> impl Iterator<Item = Rule> {
        self.exits.iter().map(|(number, exit)| {
            rule([
                self.has_routing_mark(RoutingMark::Exit(*number)),
                oif(&exit.link),
                goto("out"),
            ])
        })
    }

    /// A chain per exit, for this node's own pods, and what has to be put back when it goes.
    pub(super) fn exit_chains(&self, table: &mut Ruleset) {
        for number in self.exits.keys() {
            let mark = self.set_routing_mark(RoutingMark::Exit(*number));
            table.chain(exit_chain(*number), vec![rule([mark, accept()])]);
        }
        let loose = self.loose();
        if !loose.is_empty() {
            let elements = loose
                .iter()
                .map(|(link, found)| (ElementKey::Mark(link.index), Data::Mark((*found).into())));
            table.hash(RP_FILTER, KeyType::Mark, DataType::Mark, elements);
        }
    }

    /// The exits' routes and rules.
    pub(super) fn exit_network(&self, net: &mut Net) {
        for (number, exit) in &self.exits {
            let mark = RoutingMark::Exit(*number);
            let table = self.numbers.table(mark);
            for family in families(exit) {
                let kinds = self.exit_routes(exit, family).into_iter();
                net.routes
                    .extend(kinds.map(|(to, kind)| Route { table, to, kind }));
                net.rules.insert(IpRule {
                    family,
                    priority: self.numbers.rule_priority,
                    mark: self.numbers.mark(mark),
                    mask: self.numbers.mark_mask,
                    table,
                });
            }
        }
    }

    /// What a family's packets find in an exit's table.
    fn exit_routes(&self, exit: &Exit, family: Family) -> BTreeMap<IpNet, RouteKind> {
        let never = source::never_captured(self.plan);
        let captured = |to: &IpNet| {
            let range = Interval::from(*to);
            !never
                .iter()
                .any(|n| n.contains(range.first()) && n.contains(range.last()))
        };
        // Nothing falls through to the main table.
        let mut routes = BTreeMap::from([(super::net::default_of(family), RouteKind::Unreachable)]);
        let of_link = exit.routes.iter().filter(|(to, _)| captured(to));
        routes.extend(of_link.filter(|(to, _)| is_of(family, to)).map(|(to, via)| {
            let (link, via) = (exit.link.clone(), *via);
            (*to, RouteKind::Link { link, via })
        }));
        // But the way back to a pod, which reverse path filters look up with the mark.
        let of_peers = self.plan.peers.iter().flat_map(|p| p.ranges.iter().copied());
        let pods = self.own_ranges().into_iter().chain(of_peers);
        routes.extend(
            pods.filter(|to| is_of(family, to))
                .map(|to| (to, RouteKind::Throw)),
        );
        routes
    }

    /// See [`crate::model::Desired::loose`].
    pub(super) fn loose(&self) -> BTreeMap<Link, u8> {
        let exits = self.exits.values();
        exits
            .filter_map(|exit| Some((exit.link.clone(), exit.strict?)))
            .collect()
    }

    /// See [`crate::model::Desired::stranded`].
    pub(super) fn stranded(&self) -> BTreeSet<(String, Family)> {
        let all = self
            .exits
            .values()
            .flat_map(|exit| families(exit).map(move |f| (exit, f)));
        all.filter(|(exit, family)| !exit.routes.contains_key(&super::net::default_of(*family)))
            .map(|(exit, family)| (exit.link.name.clone(), family))
            .collect()
    }
}

/// The chain that sends this node's own pods out by an exit.
pub(super) fn exit_chain(number: u8) -> String {
    format!("exit_{number}")
}

fn families(exit: &Exit) -> impl Iterator<Item = Family> {
    let has = |family: &Family| exit.addresses.iter().any(|a| *family == (*a).into());
    FAMILIES.into_iter().filter(has)
}

fn is_of(family: Family, to: &IpNet) -> bool {
    family == IpAddr::into(to.addr())
}
