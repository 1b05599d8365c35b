//! A rule of another program: what it asks of a packet, and what it does with one.
//!
//! Matches that are not understood may hold or not. What a rule does beyond verdicts, source translation and marks is
//! left out.

use std::ops::RangeInclusive;

use egressnat_crds::plan::Family;
use ipnet::IpNet;

use super::elements::RawData;
use super::foreign_reader::{Held, Pending};
use super::value::Value;
use crate::model::Verdict;

/// A rule of another program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignRule {
    /// What it asks of a packet: all of it.
    pub matches: Vec<Match>,
    /// What it does with one.
    pub action: Action,
    /// What it does to marks.
    pub writes: Vec<MarkWrite>,
    /// Sets and maps that it looks into, until they have been read.
    pub(super) pending: Vec<Pending>,
}

/// What a rule asks of a packet. `is`: that it has this, otherwise that it has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// A source in this range.
    Source {
        /// The range.
        net: IpNet,
        /// Inside it.
        is: bool,
    },
    /// A destination in this range.
    Destination {
        /// The range, `None` for some that are not known.
        net: Option<IpNet>,
        /// Inside it.
        is: bool,
    },
    /// A family.
    Family(Family),
    /// A link that it came by, or goes by.
    Interface {
        /// Which of the two.
        way: Way,
        /// The link.
        link: LinkMatch,
        /// That one.
        is: bool,
    },
    /// Bits of a mark.
    Mark {
        /// Which mark.
        of: MarkOf,
        /// The bits that are compared.
        mask: u32,
        /// Their value.
        value: u32,
        /// That value.
        is: bool,
    },
    /// A state of its connection, of several: [`State`].
    State {
        /// The states' bits.
        states: u32,
        /// One of them.
        is: bool,
    },
    /// A protocol.
    Protocol {
        /// Its number.
        number: u8,
        /// That one.
        is: bool,
    },
    /// A port.
    Port {
        /// Of the destination; otherwise of the source.
        destination: bool,
        /// The ports.
        ports: RangeInclusive<u16>,
        /// One of them.
        is: bool,
    },
    /// No route back to its source by the link that it came by (a strict reverse path filter).
    NoWayBack,
    /// One of these.
    AnyOf(Vec<Match>),
    /// None of these.
    NoneOf(Vec<Match>),
    /// Something that no packet of a pod's has.
    Never,
    /// Something that such a packet may have.
    Perhaps,
}

/// On which side of the node a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The packet came by it.
    In,
    /// The packet goes by it.
    Out,
}

/// How a rule names a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkMatch {
    /// By its index.
    Index(u32),
    /// By its name.
    Name(String),
    /// By the beginning of its name.
    Prefix(String),
}

/// Which mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MarkOf {
    /// The packet's.
    Packet,
    /// Its connection's.
    Connection,
}

/// States of a connection, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Answered, both ways.
    Established = 1 << 1,
    /// Not answered yet.
    New = 1 << 3,
    /// Conntrack leaves it alone.
    Untracked = 1 << 6,
}

/// A new value for a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkWrite {
    /// Which mark.
    pub of: MarkOf,
    /// The bits that may be others after it.
    pub touched: u32,
    /// Those of them that it sets.
    pub sets: u32,
    /// Those of them that it takes from the other mark.
    pub copies: u32,
}

/// What a rule does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Nothing that matters here.
    #[default]
    Nothing,
    /// Give the packet another source.
    Translate,
    /// Let the packet go, as far as this base chain is concerned.
    Accept,
    /// Drop or refuse it.
    Drop,
    /// Back to where the chain was jumped from.
    Return,
    /// On in this chain, and back after it.
    Jump(String),
    /// On in this chain.
    Goto(String),
}

impl Match {
    /// What every packet has.
    pub const ALWAYS: Self = Self::NoneOf(Vec::new());
}

impl ForeignRule {
    /// The chain that it may lead to.
    pub fn target(&self) -> Option<&String> {
        match &self.action {
            Action::Jump(chain) | Action::Goto(chain) => Some(chain),
            _ => None,
        }
    }

    /// Takes what is in a set that it looks into.
    pub(super) fn resolve(&mut self, at: usize, held: &Held, is: bool, keys: Vec<Option<Value>>) {
        let of_key = |key: Option<Value>| key.map_or(Match::Perhaps, |key| held.is(&key));
        let found: Vec<Match> = keys.into_iter().map(of_key).collect();
        if let Some(place) = self.matches.get_mut(at) {
            *place = match is {
                true => Match::AnyOf(found),
                false => Match::NoneOf(found),
            };
        }
    }

    /// The rules that it amounts to, one for each element of the map that it takes its verdict from.
    pub(super) fn spread(&self, verdicts: Vec<(Match, RawData)>) -> Vec<Self> {
        let rule = |(of_key, data): (Match, RawData)| {
            let RawData::Verdict(verdict) = data else {
                return None;
            };
            let mut rule = self.clone();
            rule.matches.push(of_key);
            rule.action = verdict.into();
            Some(rule)
        };
        verdicts.into_iter().filter_map(rule).collect()
    }
}

impl From<Verdict> for Action {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Accept => Self::Accept,
            Verdict::Drop => Self::Drop,
            Verdict::Return => Self::Return,
            Verdict::Jump(chain) => Self::Jump(chain),
            Verdict::Goto(chain) => Self::Goto(chain),
        }
    }
}
