//! Steps from the nft table that is there to the one that is wanted.

use std::collections::BTreeMap;
use std::fmt;

use super::side_by_side;
use crate::model::{BaseChain, Chain, Data, DataType, ElementKey, KeyType, Rule, Ruleset, Set};
use crate::owned;

/// The nft table as the kernel shows it. Rules are known by their tags ([`Rule::tag`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedTable {
    /// Named counters: packets and octets.
    pub counters: BTreeMap<String, (u64, u64)>,
    /// Sets and maps with their elements.
    pub sets: BTreeMap<String, Set>,
    /// Chains.
    pub chains: BTreeMap<String, ObservedChain>,
}

/// A chain as the kernel shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedChain {
    /// Where a base chain hangs.
    pub base: Option<BaseChain>,
    /// The tags of its rules in order; empty where a rule has none, and so is not ours.
    pub tags: Vec<String>,
}

/// The types of a set, without which its elements cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetType {
    /// Type of the keys.
    pub key: KeyType,
    /// Type of what the keys map to.
    pub data: DataType,
    /// Keys are intervals.
    pub interval: bool,
}

/// One message of the transaction. Objects are those of the table `inet egressnat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NftStep {
    /// Make the table, or take it over where it is there: with `owner` and `persist` flags where the kernel
    /// has them.
    AddTable,
    /// Remove the table with all in it.
    DeleteTable,
    /// Make a named counter.
    AddCounter(String),
    /// Remove a named counter.
    DeleteCounter(String),
    /// Make a set or map.
    AddSet(String, SetType),
    /// Remove a set or map with its elements.
    DeleteSet(String),
    /// Put elements in.
    AddElements(String, SetType, Vec<(ElementKey, Data)>),
    /// Take elements out.
    DeleteElements(String, SetType, Vec<(ElementKey, Data)>),
    /// Make a chain.
    AddChain(String, Option<BaseChain>),
    /// Remove all rules of a chain.
    FlushChain(String),
    /// Remove an empty chain.
    DeleteChain(String),
    /// Append a rule to a chain, with its tag as comment.
    AddRule(String, Rule),
}

/// The steps, in the order in which the kernel takes them in one transaction: what is referred to is made
/// before what refers to it, and removed after it.
pub fn diff(desired: Option<&Ruleset>, observed: Option<&ObservedTable>) -> Vec<NftStep> {
    match (desired, observed) {
        (None, None) => Vec::new(),
        (None, Some(_)) => vec![NftStep::DeleteTable],
        (Some(desired), None) => changes(desired, &ObservedTable::default(), vec![NftStep::AddTable]),
        (Some(desired), Some(observed)) if replaces_types(desired, observed) => changes(
            desired,
            &ObservedTable::default(),
            vec![NftStep::DeleteTable, NftStep::AddTable],
        ),
        (Some(desired), Some(observed)) => changes(desired, observed, Vec::new()),
    }
}

/// Whether a set changes its type or a chain its hook, which no step can do: the table is then made anew.
fn replaces_types(desired: &Ruleset, observed: &ObservedTable) -> bool {
    let sets = desired
        .sets
        .iter()
        .any(|(name, set)| observed.sets.get(name).is_some_and(|o| !o.same_type(set)));
    let chains = desired
        .chains
        .iter()
        .any(|(name, chain)| observed.chains.get(name).is_some_and(|o| o.base != chain.base));
    sets || chains
}

fn changes(desired: &Ruleset, observed: &ObservedTable, mut steps: Vec<NftStep>) -> Vec<NftStep> {
    let Ruleset {
        counters,
        sets,
        chains,
    } = desired;
    let new_counters = counters.iter().filter(|c| !observed.counters.contains_key(*c));
    steps.extend(new_counters.map(|c| NftStep::AddCounter(c.clone())));
    let new_chains = chains
        .iter()
        .filter(|(name, _)| !observed.chains.contains_key(*name));
    steps.extend(new_chains.map(|(name, chain)| NftStep::AddChain(name.clone(), chain.base)));
    let new_sets = sets.iter().filter(|(name, _)| !observed.sets.contains_key(*name));
    steps.extend(new_sets.map(|(name, set)| NftStep::AddSet(name.clone(), set.into())));
    for (name, chain) in chains {
        chain_changes(name, chain, observed.chains.get(name), &mut steps);
    }
    let gone_chains = || observed.chains.keys().filter(|name| !chains.contains_key(*name));
    steps.extend(gone_chains().map(|name| NftStep::FlushChain(name.clone())));
    for (name, set) in sets {
        element_changes(name, set, observed.sets.get(name), &mut steps);
    }
    let gone_sets = observed.sets.keys().filter(|name| !sets.contains_key(*name));
    steps.extend(gone_sets.map(|name| NftStep::DeleteSet(name.clone())));
    steps.extend(gone_chains().map(|name| NftStep::DeleteChain(name.clone())));
    let gone_counters = observed.counters.keys().filter(|name| !counters.contains(*name));
    steps.extend(gone_counters.map(|name| NftStep::DeleteCounter(name.clone())));
    steps
}

fn chain_changes(name: &str, desired: &Chain, observed: Option<&ObservedChain>, steps: &mut Vec<NftStep>) {
    let tags = observed.map(|o| o.tags.as_slice()).unwrap_or_default();
    if desired
        .rules
        .iter()
        .map(Rule::tag)
        .eq(tags.iter().map(String::as_str))
    {
        return;
    }
    if !tags.is_empty() {
        steps.push(NftStep::FlushChain(name.into()));
    }
    steps.extend(
        desired
            .rules
            .iter()
            .map(|rule| NftStep::AddRule(name.into(), rule.clone())),
    );
}

/// The steps that give these sets of the table their elements, and no others; one that the table has not is left out.
pub fn elements(sets: &[(String, Set)], table: &ObservedTable) -> Vec<NftStep> {
    let mut steps = Vec::new();
    for (name, set) in sets {
        if let Some(observed) = table.sets.get(name) {
            element_changes(name, set, Some(observed), &mut steps);
        }
    }
    steps
}

/// Removals come first: a key with another value is taken out and put in again, within the transaction.
pub(super) fn element_changes(name: &str, desired: &Set, observed: Option<&Set>, steps: &mut Vec<NftStep>) {
    let nothing = BTreeMap::new();
    let there = observed.map_or(&nothing, |o| &o.elements);
    let (mut gone, mut new) = (Vec::new(), Vec::new());
    for (key, was, is) in side_by_side(there, &desired.elements).filter(|(_, was, is)| was != is) {
        gone.extend(was.map(|data| (*key, data.clone())));
        new.extend(is.map(|data| (*key, data.clone())));
    }
    if !gone.is_empty() {
        steps.push(NftStep::DeleteElements(name.into(), desired.into(), gone));
    }
    if !new.is_empty() {
        steps.push(NftStep::AddElements(name.into(), desired.into(), new));
    }
}

impl ObservedTable {
    /// Whether it can take in what connections leave behind that a policy gives up.
    pub fn remembers(&self) -> bool {
        self.sets.contains_key(&format!("{}4", owned::RELEASED))
    }
}

impl From<&Ruleset> for ObservedTable {
    /// What the kernel shows once it holds the ruleset.
    fn from(ruleset: &Ruleset) -> Self {
        let Ruleset {
            counters,
            sets,
            chains,
        } = ruleset;
        let observed = |chain: &Chain| ObservedChain {
            base: chain.base,
            tags: chain.rules.iter().map(Rule::tag).collect(),
        };
        Self {
            counters: counters.iter().map(|c| (c.clone(), (0, 0))).collect(),
            sets: sets.clone(),
            chains: chains
                .iter()
                .map(|(name, chain)| (name.clone(), observed(chain)))
                .collect(),
        }
    }
}

impl From<&Set> for SetType {
    fn from(set: &Set) -> Self {
        Self {
            key: set.key,
            data: set.data,
            interval: set.interval,
        }
    }
}

impl fmt::Display for NftStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = owned::TABLE;
        match self {
            Self::AddTable => write!(f, "add table inet {table}"),
            Self::DeleteTable => write!(f, "delete table inet {table}"),
            Self::AddCounter(name) => write!(f, "add counter inet {table} {name}"),
            Self::DeleteCounter(name) => write!(f, "delete counter inet {table} {name}"),
            Self::AddSet(
                name,
                SetType {
                    data: DataType::None,
                    key,
                    interval,
                },
            ) => {
                write!(
                    f,
                    "add set inet {table} {name} {{ type {key};{} }}",
                    flags(*interval)
                )
            }
            Self::AddSet(name, SetType { key, data, interval }) => {
                write!(
                    f,
                    "add map inet {table} {name} {{ type {key} : {data};{} }}",
                    flags(*interval)
                )
            }
            Self::DeleteSet(name) => write!(f, "delete set inet {table} {name}"),
            Self::AddElements(name, _, elements) => write_elements(f, "add", name, elements),
            Self::DeleteElements(name, _, elements) => write_elements(f, "delete", name, elements),
            Self::AddChain(name, None) => write!(f, "add chain inet {table} {name}"),
            Self::AddChain(name, Some(base)) => write!(f, "add chain inet {table} {name} {{ {base} }}"),
            Self::FlushChain(name) => write!(f, "flush chain inet {table} {name}"),
            Self::DeleteChain(name) => write!(f, "delete chain inet {table} {name}"),
            Self::AddRule(chain, rule) => write!(f, "add rule inet {table} {chain} {rule}"),
        }
    }
}

fn flags(interval: bool) -> &'static str {
    if interval { " flags interval;" } else { "" }
}

/// Names at most a few elements: the text is for logs and goldens, and there may be thousands.
fn write_elements(
    f: &mut fmt::Formatter<'_>,
    verb: &str,
    set: &str,
    elements: &[(ElementKey, Data)],
) -> fmt::Result {
    const SHOWN: usize = 8;
    write!(f, "{verb} element inet {} {set} {{", owned::TABLE)?;
    for (i, (key, data)) in elements.iter().take(SHOWN).enumerate() {
        let comma = if i == 0 { "" } else { "," };
        match data {
            Data::None => write!(f, "{comma} {key}")?,
            data => write!(f, "{comma} {key} : {data}")?,
        }
    }
    if elements.len() > SHOWN {
        write!(f, ", and {} more", elements.len() - SHOWN)?;
    }
    write!(f, " }}")
}
