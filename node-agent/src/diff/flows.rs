//! Which connections a change concerns.
//!
//! New decisions must not wait for old connections: those whose verdict changes are forgotten by conntrack,
//! so that their next packet is judged anew. Those whose verdict stays are not touched.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::interval::Interval;
use egressnat_crds::plan::{EgressPlanSpec, Profile};

use super::nft::{NftStep, ObservedTable};
use super::side_by_side;
use super::translation::{self, Translation, translations};
use crate::compile::never_captured;
use crate::model::{Data, ElementKey, Rule, Ruleset, Verdict};
use crate::owned::{CT_MARK_MASK, CT_MARK_SHIFT, MASQUERADE_EXCEPT, MASQUERADE_SOURCES};

type Elements = BTreeMap<ElementKey, Data>;

/// What has to be looked at in conntrack after a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Concerned {
    /// Pods whose verdicts may differ: of their connections, those that [`Verdicts`] contradicts go.
    pub sources: BTreeSet<IpAddr>,
    /// Where nobody knows which pods there were: every source is taken for one whose verdicts may differ, but for these,
    /// the pods of peers.
    pub all_but: Option<BTreeSet<Interval>>,
    /// Policies whose translation differs: all their connections go.
    pub ids: BTreeSet<u16>,
    /// Policies that may still translate some connections as they did, with what they translate to now: those
    /// that have something else go.
    pub translations: BTreeMap<u16, Translation>,
    /// Sources that are masqueraded from now on, or to more destinations: those of their connections go that have
    /// kept their address and that nobody has answered. One that was answered has its way back, and goes on; so does
    /// one that is not masqueraded any more, with the node's address.
    pub masqueraded: BTreeSet<Interval>,
}

impl Concerned {
    /// Whether no connection can be concerned.
    pub fn is_empty(&self) -> bool {
        let Self {
            sources,
            all_but,
            ids,
            translations,
            masqueraded,
        } = self;
        let no_source = sources.is_empty() && all_but.is_none();
        no_source && ids.is_empty() && translations.is_empty() && masqueraded.is_empty()
    }

    /// Adds what another change concerns.
    pub fn merge(&mut self, other: Self) {
        let Self {
            sources,
            all_but,
            ids,
            translations,
            masqueraded,
        } = other;
        self.sources.extend(sources);
        self.all_but = all_but.or(self.all_but.take());
        self.ids.extend(ids);
        self.translations.extend(translations);
        self.masqueraded.extend(masqueraded);
    }

    /// Whether any pod's verdicts may differ.
    pub fn has_sources(&self) -> bool {
        !self.sources.is_empty() || self.all_but.is_some()
    }

    /// Whether a source is that of a pod whose verdicts may differ.
    pub fn concerns(&self, source: IpAddr) -> bool {
        let among = |ranges: &BTreeSet<Interval>| ranges.iter().any(|range| range.contains(source));
        self.sources.contains(&source) || self.all_but.as_ref().is_some_and(|peers| !among(peers))
    }

    /// Whether a policy's connection is translated as the policy does not.
    pub fn mistranslated(&self, ct_mark: u32, address: IpAddr, port: Option<u16>) -> bool {
        let translation = id_of(&ElementKey::Mark(ct_mark)).and_then(|id| self.translations.get(&id));
        translation.is_some_and(|t| !t.allows(address, port))
    }

    /// Whether an unanswered connection of this source, which has kept its address, is to be masqueraded.
    pub fn unmasqueraded(&self, source: IpAddr) -> bool {
        self.masqueraded.iter().any(|range| range.contains(source))
    }
}

/// What the change from `observed` to `desired` concerns.
pub fn concerned(desired: Option<&Ruleset>, observed: Option<&ObservedTable>) -> Concerned {
    let (no_ruleset, no_table) = (Ruleset::default(), ObservedTable::default());
    let change = Change {
        old: observed.unwrap_or(&no_table),
        new: desired.unwrap_or(&no_ruleset),
    };
    let mut concerned = Concerned::default();
    for family in ['4', '6'] {
        change.sources(family, &mut concerned.sources);
        change.ids(family, &mut concerned.ids);
        change.masqueraded(family, &mut concerned.masqueraded);
    }
    let (none_of_old, translations) = translation::changed(change.new, change.old);
    concerned.ids.extend(none_of_old);
    concerned.translations = translations;
    concerned
}

/// What a table concerns of which nobody knows whether the process that wrote it has judged any connection: it may have
/// ended after it had taken a pod out. Where there is no table, marks like ours are another program's.
pub fn everything(
    plan: &EgressPlanSpec,
    desired: Option<&Ruleset>,
    observed: Option<&ObservedTable>,
) -> Concerned {
    let peers = plan.peers.iter().flat_map(|peer| &peer.ranges);
    let had_policies = observed.is_some_and(ObservedTable::remembers);
    Concerned {
        all_but: had_policies.then(|| peers.map(|range| (*range).into()).collect()),
        sources: plan.pods.iter().flat_map(|pod| pod.ips.iter().copied()).collect(),
        ids: BTreeSet::new(),
        translations: desired.map(translations).unwrap_or_default(),
        masqueraded: concerned(desired, None).masqueraded,
    }
}

/// The policies that use the tunnel and no longer will, taken out of `observed`, with the steps that take them out
/// of the kernel: where their packets went into it, and where they came out of it.
///
/// Their connections have the pod's address for the tunnel's sake. A packet of one would leave with it by the next
/// door that opens; and a reply that comes when its connection is forgotten, and the rules are gone that would
/// refuse it, makes a connection of its own: in its wake all that the pod sends is a reply, which nobody
/// translates. So the tunnel is closed to them first, then they are forgotten, then the rest may go.
pub fn leave_tunnel(
    desired: Option<&Ruleset>,
    observed: &mut ObservedTable,
) -> (BTreeSet<u16>, Vec<NftStep>) {
    let (mut ids, mut steps) = (BTreeSet::new(), Vec::new());
    for name in ["ids4", "ids6", "tunnel_ids"] {
        let new = desired.and_then(|d| d.sets.get(name));
        let Some(old) = observed.sets.get_mut(name) else {
            continue;
        };
        let stays = |key: &ElementKey| new.and_then(|set| set.elements.get(key)).is_some_and(uses_tunnel);
        let leaving: Vec<_> = old
            .elements
            .extract_if(.., |key, data| uses_tunnel(data) && !stays(key))
            .collect();
        if !leaving.is_empty() {
            let leaving_ids = leaving.iter().map(|(key, _)| key);
            match name {
                "tunnel_ids" => ids.extend(leaving_ids.filter_map(id_on_the_wire)),
                _ => ids.extend(leaving_ids.filter_map(id_of)),
            }
            steps.push(NftStep::DeleteElements(name.into(), (&*old).into(), leaving));
        }
    }
    (ids, steps)
}

/// Whether an id's packets go into the tunnel, or come out of it.
fn uses_tunnel(data: &Data) -> bool {
    matches!(data, Data::Verdict(Verdict::Goto(chain)) if chain.starts_with("gw_") || chain.starts_with("in_"))
}

struct Change<'a> {
    old: &'a ObservedTable,
    new: &'a Ruleset,
}

/// How a policy's packets are translated on this node. Which peer they go to makes no difference: the
/// connection moves with the policy.
#[derive(PartialEq, Eq)]
enum Way {
    Tunnel,
    Here,
    AsNode,
    Nowhere,
}

impl Change<'_> {
    /// Pods that came, went, or have other destinations.
    fn sources(&self, family: char, concerned: &mut BTreeSet<IpAddr>) {
        let (old, new) = self.elements(&format!("pods{family}"));
        let (old_cluster, new_cluster) = self.elements(&format!("cluster{family}"));
        let cluster_differs = old_cluster != new_cluster;
        let profiles = self.changed_profiles();
        let changed_profile = |data: &Data| matches!(data, Data::Mark(profile) if profiles.contains(profile));
        for (key, was, is) in side_by_side(old, new) {
            let differs = was != is || cluster_differs || is.is_some_and(changed_profile);
            if let (true, ElementKey::Addr(address)) = (differs, key) {
                concerned.insert(*address);
            }
        }
    }

    /// Maps are named by their content, so that a profile's rules differ when its verdicts do.
    fn changed_profiles(&self) -> BTreeSet<u32> {
        let rules = |id: &u32| {
            self.new
                .chains
                .get(&format!("prof_{id}"))
                .map(|c| c.rules.iter().map(Rule::tag))
        };
        let was = |id: &u32| {
            self.old
                .chains
                .get(&format!("prof_{id}"))
                .map(|c| c.tags.iter().cloned())
        };
        let (_, profiles) = self.elements("profiles");
        profiles
            .keys()
            .filter_map(|key| match key {
                ElementKey::Mark(id) => Some(*id),
                _ => None,
            })
            .filter(|id| match (rules(id), was(id)) {
                (Some(new), Some(old)) => !new.eq(old),
                _ => true,
            })
            .collect()
    }

    /// Policies whose packets left by some way, and now leave otherwise or not at all.
    fn ids(&self, family: char, concerned: &mut BTreeSet<u16>) {
        let (old, new) = self.elements(&format!("ids{family}"));
        let (old_as_node, new_as_node) = self.elements(&format!("as_node{family}"));
        let differs = |key: &&ElementKey| way(old, old_as_node, key) != way(new, new_as_node, key);
        concerned.extend(old.keys().filter(differs).filter_map(id_of));
    }

    /// Ranges that were not among the sources, or all where some destination is not excepted any more.
    fn masqueraded(&self, family: char, concerned: &mut BTreeSet<Interval>) {
        let (old_except, new_except) = self.elements(&format!("{MASQUERADE_EXCEPT}{family}"));
        let more = old_except.keys().any(|range| !new_except.contains_key(range));
        let (old, new) = self.elements(&format!("{MASQUERADE_SOURCES}{family}"));
        let new = new.keys().filter(|range| more || !old.contains_key(range));
        concerned.extend(new.filter_map(|key| match key {
            ElementKey::Range(range) => Some(*range),
            _ => None,
        }));
    }

    fn elements(&self, set: &str) -> (&Elements, &Elements) {
        static NONE: Elements = Elements::new();
        let old = self.old.sets.get(set).map_or(&NONE, |s| &s.elements);
        (old, self.new.sets.get(set).map_or(&NONE, |s| &s.elements))
    }
}

fn way(ids: &Elements, as_node: &Elements, id: &ElementKey) -> Way {
    match ids.get(id) {
        Some(data) if uses_tunnel(data) => Way::Tunnel,
        Some(_) if as_node.contains_key(id) => Way::AsNode,
        Some(_) => Way::Here,
        None => Way::Nowhere,
    }
}

fn id_on_the_wire(key: &ElementKey) -> Option<u16> {
    match key {
        ElementKey::Mark(id) => u16::try_from(*id).ok(),
        _ => None,
    }
}

pub(super) fn id_of(key: &ElementKey) -> Option<u16> {
    match key {
        ElementKey::Mark(mark) => u16::try_from((mark & CT_MARK_MASK) >> CT_MARK_SHIFT).ok(),
        _ => None,
    }
}

/// What a plan says of each of its pods' destinations.
#[derive(Debug)]
pub struct Verdicts<'a> {
    never: Vec<Interval>,
    profiles: BTreeMap<u32, &'a Profile>,
    pods: BTreeMap<IpAddr, u32>,
}

impl<'a> Verdicts<'a> {
    /// The verdicts of `plan`.
    pub fn new(plan: &'a EgressPlanSpec) -> Self {
        let pods = plan
            .pods
            .iter()
            .flat_map(|pod| pod.ips.iter().map(|ip| (*ip, pod.profile)))
            .collect();
        Self {
            never: never_captured(plan),
            profiles: plan.profiles.iter().map(|p| (p.id, p)).collect(),
            pods,
        }
    }

    /// The id of the policy that applies to packets from `source` to `destination`, 0 where none does.
    pub fn id(&self, source: IpAddr, destination: IpAddr) -> u16 {
        let Some(profile) = self.pods.get(&source).and_then(|p| self.profiles.get(p)) else {
            return 0;
        };
        if covering(&self.never, |r| *r, destination).is_some() {
            return 0;
        }
        covering(&profile.destinations, |d| d.range, destination).map_or(0, |d| d.policy)
    }

    /// Whether a connection from `source` to `destination` that carries this connection mark was decided
    /// otherwise than it would be now.
    pub fn contradicts(&self, source: IpAddr, destination: IpAddr, ct_mark: u32) -> bool {
        u32::from(self.id(source, destination)) != (ct_mark & CT_MARK_MASK) >> CT_MARK_SHIFT
    }

    /// Whether a policy has had a connection from `source` to `destination` that carries this connection mark, and none
    /// would have it now.
    pub fn gives_up(&self, source: IpAddr, destination: IpAddr, ct_mark: u32) -> bool {
        ct_mark & CT_MARK_MASK != 0 && self.id(source, destination) == 0
    }
}

/// The one of disjoint intervals, in ascending order, that holds `address`.
fn covering<T>(sorted: &[T], range: impl Fn(&T) -> Interval, address: IpAddr) -> Option<&T> {
    let after = sorted.partition_point(|t| range(t).first() <= address);
    let candidate = sorted.get(after.checked_sub(1)?)?;
    range(candidate).contains(address).then_some(candidate)
}

#[cfg(test)]
mod tests {
    use egressnat_crds::plan::{Destination, PlanPod};

    use super::*;

    fn plan() -> EgressPlanSpec {
        EgressPlanSpec {
            cluster: vec!["10.0.0.0-10.255.255.255".parse().unwrap()],
            profiles: vec![Profile {
                id: 1,
                destinations: vec![
                    Destination {
                        range: "0.0.0.0-192.0.2.9".parse().unwrap(),
                        policy: 7,
                    },
                    Destination {
                        range: "192.0.2.10-192.0.2.10".parse().unwrap(),
                        policy: 8,
                    },
                    Destination {
                        range: "2001:db8::-2001:db8::f".parse().unwrap(),
                        policy: 9,
                    },
                ],
            }],
            pods: vec![PlanPod {
                uid: "a".into(),
                name: "default/a".into(),
                ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
                profile: 1,
            }],
            ..EgressPlanSpec::default()
        }
    }

    #[test]
    fn a_verdict_is_that_of_the_interval_outside_the_cluster() {
        let plan = plan();
        let verdicts = Verdicts::new(&plan);
        for (source, destination, id) in [
            ("10.0.0.1", "192.0.2.9", 7),
            ("10.0.0.1", "192.0.2.10", 8),
            ("10.0.0.1", "192.0.2.11", 0),
            ("10.0.0.1", "10.9.9.9", 0),
            ("10.0.0.1", "169.254.20.10", 0),
            ("10.0.0.2", "192.0.2.9", 0),
            ("fd00::1", "2001:db8::f", 9),
            ("fd00::1", "2001:db8::10", 0),
            ("fd00::1", "fe80::1", 0),
        ] {
            let found = verdicts.id(source.parse().unwrap(), destination.parse().unwrap());
            assert_eq!(found, id, "{source} -> {destination}");
        }
    }

    #[test]
    fn a_connection_is_contradicted_by_another_id_only() {
        let plan = plan();
        let verdicts = Verdicts::new(&plan);
        let contradicts =
            |mark| verdicts.contradicts("10.0.0.1".parse().unwrap(), "192.0.2.9".parse().unwrap(), mark);
        assert!(!contradicts(0x0007_0000));
        assert!(!contradicts(0x8007_0001), "bits of others");
        assert!(contradicts(0x0008_0000));
        assert!(contradicts(0));
    }
}
