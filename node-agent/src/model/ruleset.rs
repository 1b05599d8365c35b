//! The one nft table as a value: counters, sets and maps, chains.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use egressnat_crds::interval::Interval;

use super::net::MacAddr;
use super::rule::{Rule, Verdict};
use crate::owned;

/// The table `inet egressnat`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Named counters.
    pub counters: BTreeSet<String>,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, Set>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
}

/// A set, or a map where `data` is not [`DataType::None`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Type of the keys.
    pub key: KeyType,
    /// Type of what the keys map to.
    pub data: DataType,
    /// Keys are intervals (rbtree), not single values (hash).
    pub interval: bool,
    /// The elements. Intervals are disjoint.
    pub elements: BTreeMap<ElementKey, Data>,
}

/// Type of a set's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyType {
    /// `ipv4_addr`, 4 octets.
    Ipv4Addr,
    /// `ipv6_addr`, 16 octets.
    Ipv6Addr,
    /// `ether_addr`, 6 octets.
    EtherAddr,
    /// `mark`, 4 octets in host byte order.
    Mark,
    /// `iface_index`, 4 octets in host byte order.
    Link,
}

/// Type of what a map's keys map to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DataType {
    /// Nothing: a set.
    None,
    /// `mark`.
    Mark,
    /// `verdict`.
    Verdict,
    /// `ipv4_addr`.
    Ipv4Addr,
    /// `ipv6_addr`.
    Ipv6Addr,
}

/// Key of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ElementKey {
    /// One address.
    Addr(IpAddr),
    /// All addresses of an interval.
    Range(Interval),
    /// A MAC address.
    Mac(MacAddr),
    /// A mark.
    Mark(u32),
    /// A link's index.
    Link(u32),
}

/// What an element maps to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    /// Nothing: an element of a set.
    None,
    /// A mark.
    Mark(u32),
    /// A verdict.
    Verdict(Verdict),
    /// An address.
    Addr(IpAddr),
}

/// A chain: a base chain hangs on a hook, the others are gone to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where a base chain hangs.
    pub base: Option<BaseChain>,
    /// The rules in order.
    pub rules: Vec<Rule>,
}

/// Where a base chain hangs. Its policy is `accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// Type of the chain.
    pub kind: ChainKind,
    /// The hook.
    pub hook: Hook,
    /// Priority at the hook. A NAT chain runs at the hook's NAT priority whatever it says; the number
    /// orders NAT chains among themselves.
    pub priority: i32,
}

/// Type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of each connection.
    Nat,
}

/// Netfilter hook of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To the node itself.
    Input,
    /// Through the node.
    Forward,
    /// From the node itself.
    Output,
    /// After routing.
    Postrouting,
}

impl Set {
    /// A set or map without elements yet.
    pub fn new(key: KeyType, data: DataType, interval: bool) -> Self {
        Self {
            key,
            data,
            interval,
            elements: BTreeMap::new(),
        }
    }

    /// Whether both are of the same types: only elements may differ.
    pub fn same_type(&self, other: &Self) -> bool {
        (self.key, self.data, self.interval) == (other.key, other.data, other.interval)
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            counters,
            sets,
            chains,
        } = self;
        writeln!(f, "table inet {} {{", owned::TABLE)?;
        for counter in counters {
            writeln!(f, "  counter {counter} {{ }}")?;
        }
        for (name, set) in sets {
            write_set(f, name, set)?;
        }
        for (name, chain) in chains {
            writeln!(f, "  chain {name} {{")?;
            if let Some(base) = &chain.base {
                writeln!(f, "    {base}")?;
            }
            for rule in &chain.rules {
                writeln!(f, "    {rule}")?;
            }
            writeln!(f, "  }}")?;
        }
        writeln!(f, "}}")
    }
}

fn write_set(f: &mut fmt::Formatter<'_>, name: &str, set: &Set) -> fmt::Result {
    let Set {
        key,
        data,
        interval,
        elements,
    } = set;
    match data {
        DataType::None => writeln!(f, "  set {name} {{ type {key}")?,
        data => writeln!(f, "  map {name} {{ type {key} : {data}")?,
    }
    if *interval {
        writeln!(f, "    flags interval")?;
    }
    if !elements.is_empty() {
        writeln!(f, "    elements = {{")?;
        for (key, data) in elements {
            match data {
                Data::None => writeln!(f, "      {key},")?,
                data => writeln!(f, "      {key} : {data},")?,
            }
        }
        writeln!(f, "    }}")?;
    }
    writeln!(f, "  }}")
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4Addr => "ipv4_addr",
            Self::Ipv6Addr => "ipv6_addr",
            Self::EtherAddr => "ether_addr",
            Self::Mark => "mark",
            Self::Link => "iface_index",
        })
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "",
            Self::Mark => "mark",
            Self::Verdict => "verdict",
            Self::Ipv4Addr => "ipv4_addr",
            Self::Ipv6Addr => "ipv6_addr",
        })
    }
}

impl fmt::Display for ElementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(address) => write!(f, "{address}"),
            Self::Range(range) => write!(f, "{range}"),
            Self::Mac(mac) => write!(f, "{mac}"),
            Self::Mark(mark) => write!(f, "{mark:#010x}"),
            Self::Link(index) => write!(f, "{index}"),
        }
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Mark(mark) => write!(f, "{mark:#010x}"),
            Self::Verdict(verdict) => write!(f, "{verdict}"),
            Self::Addr(address) => write!(f, "{address}"),
        }
    }
}

impl fmt::Display for BaseChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        };
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        };
        write!(
            f,
            "type {kind} hook {hook} priority {}; policy accept;",
            self.priority
        )
    }
}
