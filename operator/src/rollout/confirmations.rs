//! What the agents have confirmed of the plans that are stored, and who may still do what a plan no longer says.
//!
//! An agent reports generations, and may pass some over. So whatever enters a plan, or leaves it, is remembered with
//! the generation that did it, until the agent reports that one or a later one: a node whose plan changes all the time
//! is never up to date, and is confirmed all the same. Only what is not confirmed takes memory.
//!
//! Of a plan that is met for the first time nothing is known but what it says: nothing of it is confirmed before its
//! agent has reported it, and its node may do anything with the ids that it mentions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::{Peer, PlanPolicy};
use ipnet::IpNet;

use crate::world::{ExistingPlan, World};

/// What a gateway's plan has for the sources.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offer {
    /// It sends a policy's packets, by the policy's id, with this address.
    Address(u16, IpAddr),
    /// It takes packets of this range from a node.
    Range(String, IpNet),
}

/// What the agents have confirmed.
#[derive(Debug, Default)]
pub struct Confirmations {
    nodes: BTreeMap<Arc<str>, Unconfirmed>,
    /// By gateway and id: the nodes that may send there, other than the gateway itself. That of an id that a plan takes
    /// elsewhere stays until its agent has confirmed that.
    users: BTreeMap<String, BTreeMap<u16, BTreeSet<Arc<str>>>>,
    /// Those among them whose plans do not say so any more, by gateway.
    leaving: BTreeMap<String, BTreeSet<(u16, Arc<str>)>>,
    /// The nodes of which nothing is known but what their plans say.
    unknown: BTreeSet<Arc<str>>,
}

/// What a difference has brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// The node has confirmed something that it offers.
    pub offers: bool,
    /// The gateways that nobody is leaving any more, of all those that sent them some id.
    pub freed: BTreeSet<String>,
    /// The node is not unknown any more.
    pub known: bool,
}

/// What a node's agent has not confirmed, with the generation that confirms it.
#[derive(Debug, Default)]
struct Unconfirmed {
    /// Anything, since the plan was met for the first time.
    all: Option<i64>,
    /// What has entered the plan.
    offers: BTreeMap<Offer, i64>,
    /// The ways that have left it, by gateway and id.
    left: BTreeMap<(String, u16), i64>,
    /// The ids that have retired.
    retired: BTreeMap<u16, i64>,
}

impl Confirmations {
    /// Takes note that a node's plan is another.
    pub fn replace(
        &mut self,
        node: &str,
        before: Option<&ExistingPlan>,
        after: Option<&ExistingPlan>,
    ) -> News {
        let mut news = News::default();
        let Some(after) = after else {
            self.forget(node, before, &mut news);
            return news;
        };
        let name: Arc<str> = node.into();
        match before.filter(|before| follows(before, after)) {
            Some(before) if before.spec == after.spec => {}
            Some(before) => self.follow(&name, &before.spec, after),
            None => {
                self.forget(node, before, &mut news);
                self.meet(&name, after);
            }
        }
        self.confirm(&name, after, &mut news);
        news
    }

    /// Whether a node's kernel holds an offer that its stored plan has.
    pub fn holds(&self, node: &str, offer: &Offer) -> bool {
        let unconfirmed = self.nodes.get(node);
        unconfirmed.is_none_or(|u| u.all.is_none() && !u.offers.contains_key(offer))
    }

    /// Whether a node has let go of an id that its stored plan says is retired.
    pub fn has_retired(&self, node: &str, id: u16) -> bool {
        let unconfirmed = self.nodes.get(node);
        unconfirmed.is_none_or(|u| u.all.is_none() && !u.retired.contains_key(&id))
    }

    /// The nodes, other than the gateway, that may send an id there.
    pub fn users<'a>(&'a self, gateway: &'a str, id: u16, world: &'a World) -> impl Iterator<Item = &'a str> {
        let known = self.users.get(gateway).and_then(|ids| ids.get(&id));
        let known = known.into_iter().flatten().map(|node| &**node);
        known.chain(self.unknown_users(gateway, id, world))
    }

    /// Those of them of which nothing is known but that their plans mention the id.
    pub fn unknown_users<'a>(
        &'a self,
        gateway: &'a str,
        id: u16,
        world: &'a World,
    ) -> impl Iterator<Item = &'a str> {
        let unknown = self.unknown.iter().map(|node| &**node);
        unknown.filter(move |node| *node != gateway && mentions(node, id, world))
    }

    /// Whether a node may send anything to a gateway, as far as is known.
    pub fn is_user(&self, node: &str, gateway: &str) -> bool {
        let ids = self.users.get(gateway);
        ids.is_some_and(|ids| ids.values().any(|users| users.contains(node)))
    }

    /// The nodes that may send to a gateway though their plans do not say so.
    pub fn leaving(&self, gateway: &str) -> impl Iterator<Item = &str> {
        let leaving = self.leaving.get(gateway).into_iter().flatten();
        leaving.map(|(_, node)| &**node)
    }

    /// Whether anybody may send to a gateway what the stored plans do not say.
    pub fn is_settled(&self, gateway: &str) -> bool {
        self.unknown.is_empty() && !self.leaving.contains_key(gateway)
    }

    fn meet(&mut self, name: &Arc<str>, plan: &ExistingPlan) {
        let unconfirmed = Unconfirmed {
            all: Some(plan.generation),
            ..Unconfirmed::default()
        };
        self.nodes.insert(name.clone(), unconfirmed);
        self.unknown.insert(name.clone());
        for (gateway, id) in ways(name, &plan.spec) {
            self.add_user(gateway, id, name);
        }
    }

    fn follow(&mut self, name: &Arc<str>, before: &EgressPlanSpec, after: &ExistingPlan) {
        let (spec, generation) = (&after.spec, after.generation);
        let had: BTreeSet<(&str, u16)> = ways(name, before).collect();
        let has: BTreeSet<(&str, u16)> = ways(name, spec).collect();
        for (gateway, id) in has.difference(&had) {
            self.add_user(gateway, *id, name);
            self.stays(gateway, *id, name);
        }
        let unconfirmed = self.nodes.entry(name.clone()).or_default();
        for (gateway, id) in has.difference(&had) {
            unconfirmed.left.remove(&((*gateway).to_owned(), *id));
        }
        for (gateway, id) in had.difference(&has) {
            unconfirmed.left.insert(((*gateway).to_owned(), *id), generation);
            let leaving = self.leaving.entry((*gateway).to_owned()).or_default();
            leaving.insert((*id, name.clone()));
        }
        for offer in new_offers(before, spec) {
            unconfirmed.offers.insert(offer, generation);
        }
        for id in &spec.retired {
            if before.retired.binary_search(id).is_err() {
                unconfirmed.retired.insert(id.id, generation);
            }
        }
    }

    /// Strikes out what the agent has reported.
    fn confirm(&mut self, name: &Arc<str>, plan: &ExistingPlan, news: &mut News) {
        let Some(unconfirmed) = self.nodes.get_mut(name) else {
            return;
        };
        let observed = plan.status.observed_generation.unwrap_or_default();
        let is_done = |generation: &i64| *generation <= observed;
        if unconfirmed
            .all
            .take_if(|generation| is_done(generation))
            .is_some()
        {
            (news.offers, news.known) = (true, true);
            self.unknown.remove(name);
        }
        let before = unconfirmed.offers.len();
        unconfirmed.offers.retain(|_, generation| !is_done(generation));
        news.offers |= unconfirmed.offers.len() < before;
        unconfirmed.retired.retain(|_, generation| !is_done(generation));
        let left = unconfirmed
            .left
            .extract_if(.., |_, generation| is_done(generation));
        let left: Vec<(String, u16)> = left.map(|(way, _)| way).collect();
        if unconfirmed.is_empty() {
            self.nodes.remove(name);
        }
        for (gateway, id) in left {
            self.remove_user(&gateway, id, name, news);
        }
    }

    fn forget(&mut self, node: &str, plan: Option<&ExistingPlan>, news: &mut News) {
        let name: Arc<str> = node.into();
        news.known |= self.unknown.remove(&name);
        let left = self.nodes.remove(&name).unwrap_or_default().left.into_keys();
        let had = plan.into_iter().flat_map(|plan| ways(node, &plan.spec));
        let had = had.map(|(gateway, id)| (gateway.to_owned(), id));
        for (gateway, id) in left.chain(had).collect::<BTreeSet<_>>() {
            self.remove_user(&gateway, id, &name, news);
        }
    }

    fn add_user(&mut self, gateway: &str, id: u16, name: &Arc<str>) {
        let ids = match self.users.get_mut(gateway) {
            Some(ids) => ids,
            None => self.users.entry(gateway.to_owned()).or_default(),
        };
        ids.entry(id).or_default().insert(name.clone());
    }

    fn remove_user(&mut self, gateway: &str, id: u16, name: &Arc<str>, news: &mut News) {
        self.stays(gateway, id, name);
        let leaving = self.leaving.get(gateway).into_iter().flatten();
        if !leaving.map(|(leaving, _)| *leaving).any(|leaving| leaving == id) {
            news.freed.insert(gateway.to_owned());
        }
        let Some(ids) = self.users.get_mut(gateway) else {
            return;
        };
        if let Some(users) = ids.get_mut(&id) {
            users.remove(name);
            if users.is_empty() {
                ids.remove(&id);
            }
        }
        if ids.is_empty() {
            self.users.remove(gateway);
        }
    }

    /// The node does not leave the gateway, or has left it.
    fn stays(&mut self, gateway: &str, id: u16, name: &Arc<str>) {
        if let Some(leaving) = self.leaving.get_mut(gateway) {
            leaving.remove(&(id, name.clone()));
            if leaving.is_empty() {
                self.leaving.remove(gateway);
            }
        }
    }
}

impl Unconfirmed {
    fn is_empty(&self) -> bool {
        self.all.is_none() && self.offers.is_empty() && self.left.is_empty() && self.retired.is_empty()
    }
}

/// Whether nothing was stored between the two.
fn follows(before: &ExistingPlan, after: &ExistingPlan) -> bool {
    before.uid == after.uid && (0..=1).contains(&(after.generation - before.generation))
}

/// Where a plan sends ids, other than to its own node.
fn ways<'a>(node: &'a str, plan: &'a EgressPlanSpec) -> impl Iterator<Item = (&'a str, u16)> {
    plan.policies.iter().filter_map(move |policy| {
        let gateway = policy.source.as_ref()?.gateway.as_deref()?;
        (gateway != node).then_some((gateway, policy.id))
    })
}

fn mentions(node: &str, id: u16, world: &World) -> bool {
    let plan = world.plans.get(node).map(|plan| &plan.spec);
    plan.is_some_and(|plan| policy(plan, id).is_some() || plan.retired.iter().any(|r| r.id == id))
}

/// What a plan says of an id.
pub fn policy(plan: &EgressPlanSpec, id: u16) -> Option<&PlanPolicy> {
    let at = plan.policies.binary_search_by_key(&id, |p| p.id).ok()?;
    plan.policies.get(at)
}

/// What a plan says of another node.
pub fn peer<'a>(plan: &'a EgressPlanSpec, node: &str) -> Option<&'a Peer> {
    let at = plan.peers.binary_search_by(|p| p.node.as_str().cmp(node)).ok()?;
    plan.peers.get(at)
}

/// What a plan has for sources that it had not, or had for another policy or from another address.
fn new_offers(before: &EgressPlanSpec, after: &EgressPlanSpec) -> Vec<Offer> {
    let mut new = Vec::new();
    for now in &after.policies {
        let was = policy(before, now.id).filter(|was| was.name == now.name);
        let had = was
            .and_then(|was| was.gateway.as_ref())
            .map_or(&[][..], |g| &g.addresses);
        let has = now.gateway.iter().flat_map(|g| &g.addresses);
        new.extend(
            has.filter(|a| !had.contains(a))
                .map(|a| Offer::Address(now.id, *a)),
        );
    }
    for now in &after.peers {
        let was = peer(before, &now.node);
        if was == Some(now) {
            continue;
        }
        let was = was.filter(|was| was.underlay == now.underlay);
        let had = was.map_or(&[][..], |was| &was.ranges);
        let has = now.ranges.iter().filter(|range| !had.contains(range));
        new.extend(has.map(|range| Offer::Range(now.node.clone(), *range)));
    }
    new
}
