//! What another hand has done to ours: what we left in the kernel, against what is found there.
//!
//! A thing counts where it is found otherwise than we left it, and otherwise than the plan wants it. The kernel
//! itself takes things away with what they stand on, as an interface's routes with the interface: the plan does not
//! want those any more, and nobody has touched anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use egressnat_crds::plan::RepairedObject as Object;

use super::nft::ObservedTable;
use super::{NetObject, side_by_side};
use crate::model::{Net, RouteKind, Rule, Ruleset, Set};
use crate::owned;

/// How many are told of one look: a map that was emptied may have had a hundred thousand elements.
const MOST: usize = 64;

/// A thing of ours that another hand has removed or changed, or put among ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Touched {
    /// Its kind.
    pub object: Object,
    /// Its name or text.
    pub what: String,
}

impl Touched {
    /// A thing of this kind that reads so.
    pub fn new(object: Object, what: impl Display) -> Self {
        let what = what.to_string();
        Self { object, what }
    }
}

impl From<NetObject> for Touched {
    fn from(object: NetObject) -> Self {
        let text = object.to_string().replacen(" add ", " ", 1);
        match object {
            NetObject::Tunnel(_) => Self::new(Object::Link, owned::TUNNEL),
            NetObject::Sysctl(sysctl) => Self::new(Object::Sysctl, sysctl.path),
            NetObject::Fdb(_) => Self::new(Object::FdbEntry, text),
            NetObject::Neighbour(_) => Self::new(Object::Neighbour, text),
            NetObject::Route(_) => Self::new(Object::Route, text),
            NetObject::IpRule(_) => Self::new(Object::IpRule, text),
        }
    }
}

/// What was done to tunnel, neighbours, routes, rules and settings; all three have the settings.
pub fn net(held: &Net, found: &Net, wanted: &Net) -> Vec<Touched> {
    let mut touched = Vec::new();
    if held.tunnel != found.tunnel && found.tunnel != wanted.tunnel {
        let tunnel = wanted.tunnel.as_ref().or(held.tunnel.as_ref());
        touched.extend(tunnel.cloned().map(NetObject::Tunnel));
    }
    // With the device goes what hangs on it, and when it is taken down, some of that.
    let device_is_ours = touched.is_empty();
    let sets = (&held.sysctls, &found.sysctls, &wanted.sysctls);
    touched.extend(contested(sets, |s| s.path.clone(), device_is_ours).map(NetObject::Sysctl));
    let sets = (&held.fdb, &found.fdb, &wanted.fdb);
    touched.extend(contested(sets, |e| e.mac, device_is_ours).map(NetObject::Fdb));
    let sets = (&held.neighbours, &found.neighbours, &wanted.neighbours);
    touched.extend(contested(sets, |n| n.address, device_is_ours).map(NetObject::Neighbour));
    let by_tunnel = |kind: &RouteKind| matches!(kind, RouteKind::Tunnel { .. });
    let sets = (&held.routes, &found.routes, &wanted.routes);
    let routes = contested(sets, |r| (r.table, r.to), true);
    touched.extend(
        routes
            .filter(|r| device_is_ours || !by_tunnel(&r.kind))
            .map(NetObject::Route),
    );
    let sets = (&held.rules, &found.rules, &wanted.rules);
    touched.extend(contested(sets, Clone::clone, true).map(NetObject::IpRule));
    touched.into_iter().take(MOST).map(Touched::from).collect()
}

/// The things that are found otherwise than held and otherwise than wanted, as wanted where they are. `place` tells
/// which of two sets are the same thing.
fn contested<T: Ord + Clone, K: Ord>(
    (held, found, wanted): (&BTreeSet<T>, &BTreeSet<T>, &BTreeSet<T>),
    place: impl Fn(&T) -> K,
    counts: bool,
) -> impl Iterator<Item = T> {
    let by_place = |set: &BTreeSet<T>| -> BTreeMap<K, T> {
        set.iter().map(|thing| (place(thing), thing.clone())).collect()
    };
    let wanted = by_place(wanted);
    let mut things = Vec::new();
    if counts && held != found {
        for (place, was, is) in side_by_side(&by_place(held), &by_place(found)) {
            let wanted = wanted.get(place);
            if was != is && is != wanted {
                things.extend(wanted.or(is).cloned());
            }
        }
    }
    things.into_iter()
}

/// What was done to the table.
pub fn table(held: &ObservedTable, found: Option<&ObservedTable>, wanted: &Ruleset) -> Vec<Touched> {
    let Some(found) = found else {
        return vec![Touched::new(Object::Table, format_args!("inet {}", owned::TABLE))];
    };
    let mut touched = Vec::new();
    for (name, was, is) in side_by_side(&held.counters, &found.counters) {
        if was.is_some() != is.is_some() && is.is_some() != wanted.counters.contains(name) {
            touched.push(Touched::new(Object::Counter, name));
        }
    }
    let chains = side_by_side(&held.chains, &found.chains);
    // The guard is ours, and gone before we leave.
    for (name, was, is) in chains.filter(|(name, ..)| *name != owned::GUARD) {
        let wanted = wanted.chains.get(name);
        let base = is.map(|is| is.base);
        if was.map(|was| was.base) != base {
            let right = base == wanted.map(|wanted| wanted.base);
            touched.extend((!right).then(|| Touched::new(Object::Chain, name)));
        } else if let (Some(was), Some(is), Some(wanted)) = (was, is, wanted)
            && was.tags != is.tags
        {
            rules(name, &is.tags, &wanted.rules, &mut touched);
        }
    }
    for (name, was, is) in side_by_side(&held.sets, &found.sets) {
        let same_type = |a: Option<&Set>, b: Option<&Set>| match (a, b) {
            (Some(a), Some(b)) => a.same_type(b),
            (a, b) => a.is_none() && b.is_none(),
        };
        let wanted = wanted.sets.get(name);
        if !same_type(was, is) {
            touched.extend((!same_type(is, wanted)).then(|| Touched::new(Object::Set, name)));
        } else if let (Some(was), Some(is), Some(wanted)) = (was, is, wanted) {
            elements(name, was, is, wanted, &mut touched);
        }
    }
    touched.truncate(MOST);
    touched
}

/// The wanted rules that are not there, and that there are others.
fn rules(chain: &str, found: &[String], wanted: &[Rule], touched: &mut Vec<Touched>) {
    let tags: Vec<String> = wanted.iter().map(Rule::tag).collect();
    let gone = wanted.iter().zip(&tags).filter(|(_, tag)| !found.contains(tag));
    let before = touched.len();
    touched.extend(gone.map(|(rule, _)| Touched::new(Object::Rule, format_args!("{chain}: {rule}"))));
    if touched.len() == before && found != tags {
        touched.push(Touched::new(
            Object::Rule,
            format_args!("{chain}: rules of another program"),
        ));
    }
}

fn elements(name: &str, held: &Set, found: &Set, wanted: &Set, touched: &mut Vec<Touched>) {
    let others = side_by_side(&held.elements, &found.elements)
        .filter(|(key, was, is)| was != is && *is != wanted.elements.get(key));
    touched.extend(
        others
            .take(MOST)
            .map(|(key, ..)| Touched::new(Object::Element, format_args!("{name}: {key}"))),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Data, DataType, ElementKey, IpRule, KeyType, Route, Sysctl, Tunnel};

    fn route(to: &str, kind: RouteKind) -> Route {
        let to = to.parse().unwrap();
        Route {
            table: 7701,
            to,
            kind,
        }
    }

    fn sample() -> Net {
        let via = "192.0.2.2".parse().unwrap();
        let sysctl = Sysctl {
            path: "ipv4/conf/egressnat0/rp_filter".into(),
            value: "2".into(),
        };
        let rule = IpRule {
            family: egressnat_crds::plan::Family::IPv4,
            priority: 770,
            mark: 0x0100_0000,
            mask: 0x3f00_0000,
            table: 7701,
        };
        Net {
            tunnel: Some(Tunnel {
                underlay: crate::model::Link {
                    name: "eth0".into(),
                    index: 2,
                },
                local: "192.0.2.1".parse().unwrap(),
                vni: 1,
                port: 5770,
                mtu: 1450,
                mac: crate::model::MacAddr([2; 6]),
                address: owned::TUNNEL_ADDRESS,
            }),
            routes: [
                route("0.0.0.0/0", RouteKind::Tunnel { via }),
                route("10.0.0.0/8", RouteKind::Throw),
            ]
            .into(),
            rules: [rule].into(),
            sysctls: [sysctl].into(),
            ..Net::default()
        }
    }

    fn kinds(touched: &[Touched]) -> Vec<Object> {
        touched.iter().map(|t| t.object).collect()
    }

    #[test]
    fn what_is_as_we_left_it_nobody_has_touched() {
        let (held, mut wanted) = (sample(), sample());
        assert_eq!(net(&held, &held, &wanted), []);
        // Another plan is no other hand.
        wanted.rules.clear();
        wanted.routes.clear();
        assert_eq!(net(&held, &held, &wanted), []);
    }

    #[test]
    fn what_is_gone_and_wanted_is_named_and_what_is_not_wanted_is_not() {
        let (held, mut found) = (sample(), sample());
        found.rules.clear();
        found.routes.pop_last();
        let touched = net(&held, &found, &held);
        assert_eq!(kinds(&touched), [Object::Route, Object::IpRule]);
        assert_eq!(touched[0].what, "ip route throw 10.0.0.0/8 table 7701");
        assert_eq!(net(&held, &found, &found), [], "gone for good");
    }

    #[test]
    fn what_is_changed_is_told_once_as_it_should_be() {
        let (held, mut found) = (sample(), sample());
        found.sysctls = [Sysctl {
            path: "ipv4/conf/egressnat0/rp_filter".into(),
            value: "1".into(),
        }]
        .into();
        let via = "192.0.2.9".parse().unwrap();
        found.routes.pop_first();
        found.routes.insert(route("0.0.0.0/0", RouteKind::Tunnel { via }));
        let touched = net(&held, &found, &held);
        assert_eq!(kinds(&touched), [Object::Sysctl, Object::Route]);
        assert!(touched[1].what.contains("via 192.0.2.2"), "{}", touched[1].what);
    }

    #[test]
    fn with_the_device_goes_what_hangs_on_it() {
        let (held, mut found) = (sample(), sample());
        (found.tunnel, found.sysctls) = (None, BTreeSet::new());
        found.routes.pop_first();
        assert_eq!(kinds(&net(&held, &found, &held)), [Object::Link]);
    }

    #[test]
    fn of_a_table_the_largest_thing_that_is_missing_is_named() {
        let mut pods = Set::new(KeyType::Ipv4Addr, DataType::Mark, false);
        let pod = ElementKey::Addr("10.0.0.1".parse().unwrap());
        pods.elements.insert(pod, Data::Mark(1));
        let mut wanted = Ruleset::default();
        wanted.sets.insert("pods4".into(), pods);
        wanted.counters.insert("drop_stale".into());
        let held = ObservedTable::from(&wanted);
        assert_eq!(table(&held, Some(&held), &wanted), []);
        assert_eq!(kinds(&table(&held, None, &wanted)), [Object::Table]);
        let mut found = held.clone();
        found.sets.get_mut("pods4").unwrap().elements.clear();
        let touched = table(&held, Some(&found), &wanted);
        assert_eq!(touched, [Touched::new(Object::Element, "pods4: 10.0.0.1")]);
        found.sets.clear();
        assert_eq!(kinds(&table(&held, Some(&found), &wanted)), [Object::Set]);
    }
}
