//! Steps from the tunnel, routes and rules that are there to those that are wanted.

use std::collections::BTreeSet;
use std::fmt;

use crate::model::{Fdb, IpRule, Neighbour, Net, Route, RouteKind, Sysctl, Tunnel};
use crate::owned;

/// One of the things that a [`crate::model::Net`] is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetObject {
    /// The tunnel device.
    Tunnel(Tunnel),
    /// A setting of it. Removing one does nothing: it goes with the device.
    Sysctl(Sysctl),
    /// An FDB entry.
    Fdb(Fdb),
    /// A neighbour entry.
    Neighbour(Neighbour),
    /// A route.
    Route(Route),
    /// An ip rule.
    IpRule(IpRule),
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetStep {
    /// Make it, or make it as it should be.
    Put(NetObject),
    /// Remove it.
    Remove(NetObject),
}

/// The steps around the nft transaction: what the new ruleset leads to is there before it, what the old one
/// led to goes after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetChanges {
    /// Before the transaction.
    pub before: Vec<NetStep>,
    /// After it.
    pub after: Vec<NetStep>,
}

impl NetChanges {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }
}

/// The steps from `observed` to `desired`.
pub fn diff(desired: &Net, observed: &Net) -> NetChanges {
    match (&desired.tunnel, &observed.tunnel) {
        (Some(wanted), Some(present)) if !present.same_device(wanted) => {
            steps(desired, &without_tunnel(observed))
        }
        _ => steps(desired, observed),
    }
}

/// What stays when the device goes, to be made anew.
fn without_tunnel(observed: &Net) -> Net {
    let by_tunnel = |route: &&Route| matches!(route.kind, RouteKind::Tunnel { .. });
    Net {
        routes: observed
            .routes
            .iter()
            .filter(|r| !by_tunnel(r))
            .cloned()
            .collect(),
        rules: observed.rules.clone(),
        ..Net::default()
    }
}

fn steps(desired: &Net, observed: &Net) -> NetChanges {
    let Net {
        tunnel,
        fdb,
        neighbours,
        routes,
        rules,
        sysctls,
    } = desired;
    let mut before = Vec::new();
    if let Some(tunnel) = tunnel.as_ref().filter(|t| observed.tunnel.as_ref() != Some(t)) {
        before.push(NetObject::Tunnel(tunnel.clone()));
    }
    before.extend(
        sysctls
            .difference(&observed.sysctls)
            .cloned()
            .map(NetObject::Sysctl),
    );
    before.extend(fdb.difference(&observed.fdb).cloned().map(NetObject::Fdb));
    before.extend(
        neighbours
            .difference(&observed.neighbours)
            .cloned()
            .map(NetObject::Neighbour),
    );
    before.extend(routes.difference(&observed.routes).cloned().map(NetObject::Route));
    before.extend(rules.difference(&observed.rules).cloned().map(NetObject::IpRule));
    NetChanges {
        before: before.into_iter().map(NetStep::Put).collect(),
        after: removals(desired, observed)
            .into_iter()
            .map(NetStep::Remove)
            .collect(),
    }
}

/// What is there and has no successor: putting replaces what has the same key.
fn removals(desired: &Net, observed: &Net) -> Vec<NetObject> {
    let Net {
        tunnel,
        fdb,
        neighbours,
        routes,
        rules,
        sysctls: _,
    } = observed;
    let mut gone: Vec<NetObject> = rules
        .difference(&desired.rules)
        .cloned()
        .map(NetObject::IpRule)
        .collect();
    let kept: BTreeSet<_> = desired.routes.iter().map(|r| (r.table, r.to)).collect();
    gone.extend(
        routes
            .iter()
            .filter(|r| !kept.contains(&(r.table, r.to)))
            .cloned()
            .map(NetObject::Route),
    );
    let kept: BTreeSet<_> = desired.neighbours.iter().map(|n| n.address).collect();
    gone.extend(
        neighbours
            .iter()
            .filter(|n| !kept.contains(&n.address))
            .cloned()
            .map(NetObject::Neighbour),
    );
    let kept: BTreeSet<_> = desired.fdb.iter().map(|e| e.mac).collect();
    gone.extend(
        fdb.iter()
            .filter(|e| !kept.contains(&e.mac))
            .cloned()
            .map(NetObject::Fdb),
    );
    gone.extend(
        tunnel
            .iter()
            .filter(|_| desired.tunnel.is_none())
            .cloned()
            .map(NetObject::Tunnel),
    );
    gone
}

impl fmt::Display for NetObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tunnel(o) => write!(f, "{o}"),
            Self::Sysctl(o) => write!(f, "{o}"),
            Self::Fdb(o) => write!(f, "{o}"),
            Self::Neighbour(o) => write!(f, "{o}"),
            Self::Route(o) => write!(f, "{o}"),
            Self::IpRule(o) => write!(f, "{o}"),
        }
    }
}

impl fmt::Display for NetStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(object) => write!(f, "{object}"),
            Self::Remove(NetObject::Tunnel(_)) => write!(f, "ip link del {}", owned::TUNNEL),
            Self::Remove(object) => write!(f, "{}", object.to_string().replacen(" add ", " del ", 1)),
        }
    }
}
