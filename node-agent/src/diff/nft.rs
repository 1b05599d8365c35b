//! Steps from the nft table that is there to the one that is wanted.

use std::collections::BTreeMap;
use std::fmt;

use crate::model::{BaseChain, Data, DataType, ElementKey, KeyType, Rule, Set};
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
