//! Things on our ground that the model cannot say.

use std::collections::BTreeMap;
use std::fmt;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;

use super::link;
use crate::owned::TUNNEL;

/// An object in our tables, at our priority or on our device that is ours by its place, but has more to it
/// than ours ever have: kept as the kernel told it, so that it can be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stray {
    /// A route in one of our tables.
    Route(RouteMessage),
    /// A rule with our mask.
    Rule(RuleMessage),
    /// An FDB or neighbour entry of the tunnel.
    Neighbour(NeighbourMessage),
    /// The tunnel device under another name.
    Tunnel {
        /// Its index.
        index: u32,
        /// The name.
        name: String,
    },
}

impl Stray {
    pub(super) fn removal(&self) -> RouteNetlinkMessage {
        match self {
            Self::Route(message) => RouteNetlinkMessage::DelRoute(message.clone()),
            Self::Rule(message) => RouteNetlinkMessage::DelRule(message.clone()),
            Self::Neighbour(message) => RouteNetlinkMessage::DelNeighbour(message.clone()),
            Self::Tunnel { index, .. } => link::delete(*index),
        }
    }
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(m) => write!(f, "stray route {:?} {:?}", m.header.kind, m.attributes),
            Self::Rule(m) => write!(f, "stray rule {:?} {:?}", m.header.action, m.attributes),
            Self::Neighbour(m) => write!(f, "stray neighbour {:?} {:?}", m.header.family, m.attributes),
            Self::Tunnel { name, .. } => write!(f, "{TUNNEL} under the name {name}"),
        }
    }
}

/// Those of `all` that share no key with another, and the rest.
pub(super) fn unique<T, K: Ord>(all: Vec<T>, key: impl Fn(&T) -> K) -> (Vec<T>, Vec<T>) {
    let mut count = BTreeMap::new();
    for item in &all {
        *count.entry(key(item)).or_insert(0) += 1;
    }
    all.into_iter()
        .partition(|item| count.get(&key(item)) == Some(&1))
}
