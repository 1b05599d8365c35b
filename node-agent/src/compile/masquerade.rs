//! The default local egress: pods' packets that no policy captures leave with the node's address, where nobody else
//! sees to that.

use egressnat_crds::interval::Interval;
use egressnat_crds::plan::Family;

use super::source::merge;
use super::table::*;
use super::{Context, FAMILIES, digit};
use crate::facts::Masquerader;
use crate::model::{Data, DataType, ElementKey, Key, Rule, Ruleset, Statement};
use crate::owned;

/// The chain to which packets go that no policy has translated.
const CHAIN: &str = "default_egress";

impl Context<'_> {
    /// Whether there is anything for this node to masquerade.
    pub(super) fn masquerades(&self) -> bool {
        self.masqueraded().next().is_some()
    }

    /// The rule for packets that no policy captures, where this node masquerades.
    pub(super) fn default_egress(&self) -> Option<Rule> {
        self.masquerades().then(|| rule([goto(CHAIN)]))
    }

    /// What becomes of a policy's packet that is to leave as any other pod's.
    pub(super) fn as_any_other(&self) -> Statement {
        match self.masquerades() {
            true => goto(CHAIN),
            false => accept(),
        }
    }

    /// The chain and its sets: destinations that are left alone, then the sources. Both families have both, so that
    /// one that somebody else masquerades is left to them.
    pub(super) fn masquerade(&self, table: &mut Ruleset) {
        let Some(plan) = self.plan.masquerade.as_ref().filter(|_| self.masquerades()) else {
            return;
        };
        let except = merge(plan.except.iter().copied());
        let sources = merge(plan.sources.iter().map(|net| Interval::from(*net)));
        let (mut spared, mut masqueraded) = (Vec::new(), Vec::new());
        for family in self.masqueraded() {
            let name = |name: &str| format!("{name}{}", digit(family));
            let (to, from) = (name(owned::MASQUERADE_EXCEPT), name(owned::MASQUERADE_SOURCES));
            for (set, ranges) in [(&to, &except), (&from, &sources)] {
                let of_family = ranges.iter().filter(|r| family == r.first().into());
                let elements = of_family.map(|r| (ElementKey::Range(*r), Data::None));
                table.intervals(set.clone(), address_type(family).0, DataType::None, elements);
            }
            spared.push(rule([Statement::In(Key::Daddr(family), to), accept()]));
            masqueraded.push(rule([
                Statement::In(Key::Saddr(family), from),
                Statement::Masquerade,
            ]));
        }
        spared.extend(masqueraded);
        table.chain(CHAIN, spared);
    }

    /// See [`crate::model::Desired::left_to`].
    pub(super) fn left_to(&self) -> Vec<Masquerader> {
        let all = self.facts.masqueraders.iter();
        all.filter(|by| self.has_sources(by.family)).cloned().collect()
    }

    /// The families that this node masquerades.
    fn masqueraded(&self) -> impl Iterator<Item = Family> {
        let elsewhere = |family: &Family| self.facts.masqueraders.iter().any(|by| by.family == *family);
        FAMILIES
            .into_iter()
            .filter(move |f| self.has_sources(*f) && !elsewhere(f))
    }

    fn has_sources(&self, family: Family) -> bool {
        let mut sources = self.plan.masquerade.iter().flat_map(|m| &m.sources);
        sources.any(|net| family == net.addr().into())
    }
}
