//! Packets that are not there yet: whether others' rules would let them pass.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::plan::Family;

use super::masquerade::sees;
use crate::kernel::nft::{Action, Foreign, ForeignTable, LinkMatch, MarkOf, Match, State, TableName, Way};
use crate::model::{Hook, Link};
use crate::owned::CT_MARK_MASK;

/// A packet of egressnat's on a node. What is `None` is nothing special: an address outside, any link but those that
/// are known, a port that no rule names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its family.
    pub family: Family,
    /// Its source.
    pub source: Option<IpAddr>,
    /// Its destination.
    pub destination: Option<IpAddr>,
    /// The link that it came by.
    pub came_by: Option<Link>,
    /// The link that it goes by.
    pub goes_by: Option<Link>,
    /// Its protocol.
    pub protocol: u8,
    /// The port that it is for.
    pub port: Option<u16>,
    /// Its connection.
    pub state: State,
    /// A strict reverse path filter refuses it: it came out of the tunnel.
    pub no_way_back: bool,
}

impl Packet {
    /// The base chain in which it is sure to be dropped, of those at a hook: table and chain.
    pub fn dropped<'a>(&self, foreign: &'a Foreign, hook: Hook) -> Option<(&'a TableName, &'a str)> {
        let tables = foreign.iter().filter(|(name, _)| sees(name.family, self.family));
        tables
            .flat_map(|(name, table)| table.bases.iter().map(move |base| (name, table, base)))
            .filter(|(_, _, (_, base))| base.hook == hook && !base.nat)
            .find(|(_, table, (chain, base))| {
                let ends = Walk::new(self, table, 0).chain(chain);
                !ends.passed && (!ends.through || base.drops)
            })
            .map(|(name, _, (chain, _))| (name, chain.as_str()))
    }

    /// The rules of a table whose matches may hold for it, from a base chain on: chains and numbers. `written` are bits
    /// of its mark that are not known.
    pub fn met<'a>(&'a self, table: &'a ForeignTable, base: &'a str, written: u32) -> Met<'a> {
        let mut walk = Walk::new(self, table, written);
        walk.chain(base);
        walk.met
    }

    /// Whether a match holds; `None` where that is not known. `written` are bits of its mark that others may have set.
    fn has(&self, m: &Match, written: u32) -> Option<bool> {
        match m {
            Match::Source { net, is } => match self.source {
                Some(source) => Some(net.contains(&source) == *is),
                None => Some((net.prefix_len() == 0) == *is),
            },
            Match::Destination { net, is } => match (self.destination, net) {
                (Some(destination), Some(net)) => Some(net.contains(&destination) == *is),
                (Some(_), None) => None,
                (None, net) => Some(net.is_some_and(|net| net.prefix_len() == 0) == *is),
            },
            Match::Family(family) => Some(*family == self.family),
            Match::Interface { way, link, is } => {
                let of_packet = match way {
                    Way::In => &self.came_by,
                    Way::Out => &self.goes_by,
                };
                of_packet.as_ref().map(|found| link.is(found) == *is)
            }
            Match::Mark { of, mask, value, is } => {
                let unknown = match of {
                    MarkOf::Packet => written,
                    MarkOf::Connection => CT_MARK_MASK,
                };
                (mask & unknown == 0).then_some((*value == 0) == *is)
            }
            Match::State { states, is } => Some((states & self.state as u32 != 0) == *is),
            Match::Protocol { number, is } => Some((*number == self.protocol) == *is),
            Match::Port {
                destination: true,
                ports,
                is,
            } => Some(self.port.is_some_and(|port| ports.contains(&port)) == *is),
            Match::Port { .. } => None,
            Match::NoWayBack => Some(self.no_way_back),
            Match::AnyOf(all) => self.any(all, written),
            Match::NoneOf(all) => self.any(all, written).map(|any| !any),
            Match::Never => Some(false),
            Match::Perhaps => None,
        }
    }

    fn any(&self, all: &[Match], written: u32) -> Option<bool> {
        let mut any = Some(false);
        for m in all {
            match self.has(m, written) {
                Some(true) => return Some(true),
                Some(false) => {}
                None => any = None,
            }
        }
        any
    }
}

impl LinkMatch {
    fn is(&self, link: &Link) -> bool {
        match self {
            Self::Index(index) => *index == link.index,
            Self::Name(name) => *name == link.name,
            Self::Prefix(prefix) => link.name.starts_with(prefix.as_str()),
        }
    }
}

/// Rules, by chain and number.
pub type Met<'a> = BTreeSet<(&'a str, usize)>;

/// How a packet may leave a chain. Neither: it is dropped.
#[derive(Clone, Copy, Default)]
struct Ends {
    /// Accepted.
    passed: bool,
    /// At its end, or sent back.
    through: bool,
}

/// One packet in one table. Where it is not known whether a rule holds, both are followed.
struct Walk<'a> {
    packet: &'a Packet,
    table: &'a ForeignTable,
    /// Bits of the packet mark that are not known, such as those that rules of the table set for each other.
    written: u32,
    known: BTreeMap<&'a str, Ends>,
    met: Met<'a>,
}

impl<'a> Walk<'a> {
    fn new(packet: &'a Packet, table: &'a ForeignTable, written: u32) -> Self {
        let writes = table.chains.values().flatten().flat_map(|rule| &rule.writes);
        let of_packets = writes.filter(|write| write.of == MarkOf::Packet);
        Self {
            packet,
            table,
            written: of_packets.fold(written, |all, write| all | write.touched),
            known: BTreeMap::new(),
            met: BTreeSet::new(),
        }
    }

    fn chain(&mut self, name: &'a str) -> Ends {
        if let Some(known) = self.known.get(name) {
            return *known;
        }
        let ends = self.follow(name);
        self.known.insert(name, ends);
        ends
    }

    fn follow(&mut self, name: &'a str) -> Ends {
        let mut ends = Ends::default();
        let Some(rules) = self.table.chains.get(name) else {
            // One of kube-proxy's for Services, which accept nothing.
            let (passed, through) = (false, true);
            return Ends { passed, through };
        };
        for (number, rule) in rules.iter().enumerate() {
            let (packet, written) = (self.packet, self.written);
            let mut held = rule.matches.iter().map(|m| packet.has(m, written));
            let Some(sure) = held.try_fold(true, |sure, held| match held {
                Some(true) => Some(sure),
                Some(false) => None,
                None => Some(false),
            }) else {
                continue;
            };
            self.met.insert((name, number));
            let stays = self.act(&rule.action, &mut ends);
            if sure && !stays {
                return ends;
            }
        }
        ends.through = true;
        ends
    }

    /// Whether the packet may go on in the chain after this.
    fn act(&mut self, action: &'a Action, ends: &mut Ends) -> bool {
        match action {
            Action::Nothing | Action::Translate => return true,
            Action::Accept => ends.passed = true,
            Action::Drop => {}
            Action::Return => ends.through = true,
            Action::Jump(target) => {
                let there = self.chain(target);
                ends.passed |= there.passed;
                return there.through;
            }
            Action::Goto(target) => {
                let there = self.chain(target);
                ends.passed |= there.passed;
                ends.through |= there.through;
            }
        }
        false
    }
}
