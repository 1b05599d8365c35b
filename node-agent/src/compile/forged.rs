//! Sources that are not the sender's.
//!
//! A pod is known by its source address. So another pod could send with that of a selected one, and leave with its
//! policy's address; and a selected one could send with another, and leave with its node's. Both show in that the node's
//! routes lead to the source by another link than the packet came in by. It is looked up for the first packet of a
//! connection alone: conntrack knows the others, and knows no links.

use std::collections::BTreeSet;

use super::Context;
use super::source::inside;
use super::table::*;
use crate::model::{Data, DataType, ElementKey, Key, KeyType, Rule, Ruleset, Set, Statement, Verdict};
use crate::owned::{Drop, POD_LINKS};

const CHAIN: &str = "own_link";

impl Context<'_> {
    /// The rule for what has a selected pod's source and is bound for the outside: it has come from there.
    pub(super) fn by_own_door(&self) -> Option<Rule> {
        let forged = [Statement::CtUnconfirmed, Statement::FibSaddrMissing];
        self.checks_sources().then(|| drop_if(forged, Drop::Forged))
    }

    /// Set and chain, and the rule of `prerouting` that leads there, for what comes by a selected pod's own link with the
    /// source of nobody whom a policy selects. Of other pods' packets, the first of a connection pays a look at its link.
    pub(super) fn own_links(&self, table: &mut Ruleset) -> Option<Rule> {
        if !self.checks_sources() {
            return None;
        }
        table.sets.extend([set(&self.facts.links)]);
        let mut rules = inside(&Verdict::Return);
        rules.push(drop_if([Statement::FibSaddrMissing], Drop::Forged));
        table.chain(CHAIN, rules);
        Some(rule([Statement::In(Key::Iif, POD_LINKS.into()), jump(CHAIN)]))
    }

    fn checks_sources(&self) -> bool {
        !self.facts.sources_unchecked
    }
}

/// The set of the links of selected pods.
pub(crate) fn set(links: &BTreeSet<u32>) -> (String, Set) {
    let elements = links.iter().map(|link| (ElementKey::Link(*link), Data::None));
    let set = Set {
        elements: elements.collect(),
        ..Set::new(KeyType::Link, DataType::None, false)
    };
    (POD_LINKS.into(), set)
}
