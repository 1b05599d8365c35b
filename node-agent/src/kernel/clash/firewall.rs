//! Other programs' rules that drop our packets, or that use our bits of the marks.

use std::collections::{BTreeMap, BTreeSet};

use egressnat_crds::plan::Family;

use super::packet::Packet;
use super::{Clash, Passage};
use crate::kernel::nft::{Base, Foreign, ForeignRule, ForeignTable, MarkOf, MarkWrite, Match};
use crate::model::Hook;
use crate::owned::{CT_MARK_MASK, FILTER_PRIORITY, GBP_ID_MASK, GBP_MASK, Numbers};

/// What passes through the node: each passage of a family, with packets that stand for all.
pub type Passages = BTreeMap<Family, Vec<(Passage, Vec<Packet>)>>;

/// The passages of which no packet comes through.
pub fn drops(foreign: &Foreign, passages: &Passages) -> Vec<Clash> {
    let mut found = Vec::new();
    for (family, passages) in passages {
        for (passage, packets) in passages {
            let stopped = |hook: &Hook| {
                let mut all = packets.iter().map(|packet| packet.dropped(foreign, *hook));
                let (table, chain) = all.next()??;
                all.all(|dropped| dropped.is_some())
                    .then(|| (table.to_string(), chain.to_owned()))
            };
            let stopped = passage.hooks().iter().find_map(stopped);
            found.extend(stopped.map(|(table, chain)| Clash::Firewall {
                passage: *passage,
                family: *family,
                table,
                chain,
            }));
        }
    }
    found
}

/// The rules that use our bits of the marks, one for each chain and kind.
pub fn marks(foreign: &Foreign, passages: &Passages, numbers: &Numbers) -> Vec<Clash> {
    let mut found = Vec::new();
    for (name, table) in foreign {
        let meetings = Meetings::new(table, passages, numbers);
        for (chain, rules) in &table.chains {
            let of_rule = |(number, rule)| meetings.judge(rule, chain, number);
            let kinds: BTreeSet<MarkClash> = rules.iter().enumerate().flat_map(of_rule).collect();
            found.extend(kinds.into_iter().map(|kind| Clash::Mark {
                kind,
                table: name.to_string(),
                chain: chain.clone(),
            }));
        }
    }
    found
}

/// What a rule of another program does with our bits of a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MarkClash {
    /// It sets them: its packets are taken for ours.
    Sets(MarkOf, u32),
    /// It writes the id with which a packet goes into the tunnel: it comes out as another policy's.
    Id(u32),
    /// It may clear or overwrite them on our packets.
    Overwrites(MarkOf, u32),
    /// It looks for them, and so may take our packets for its own.
    Reads(MarkOf, u32),
}

/// Where our packets may meet a table's rules: by chain and number, from which base chain, on which passage.
struct Meetings<'a> {
    met: BTreeMap<(&'a str, usize), Vec<(Base, Passage)>>,
    numbers: &'a Numbers,
}

impl<'a> Meetings<'a> {
    fn new(table: &'a ForeignTable, passages: &'a Passages, numbers: &'a Numbers) -> Self {
        let mut met: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let writes = |rules: &Vec<ForeignRule>| rules.iter().any(|rule| !rule.writes.is_empty());
        let on_node = passages
            .values()
            .flatten()
            .filter(|(p, _)| *p != Passage::ByTunnel);
        let on_node = on_node.filter(|_| table.chains.values().any(writes));
        for (passage, packets) in on_node {
            for (name, base) in table.bases.iter().filter(|(_, base)| is_on_the_way(base.hook)) {
                let rules = packets.iter().flat_map(|packet| {
                    let unknown = GBP_MASK | numbers.mark_mask;
                    packet.met(table, name, unknown)
                });
                for rule in rules.collect::<BTreeSet<_>>() {
                    met.entry(rule).or_default().push((*base, *passage));
                }
            }
        }
        Self { met, numbers }
    }

    /// What the rule of this number in a chain does.
    fn judge(&self, rule: &ForeignRule, chain: &str, number: usize) -> Vec<MarkClash> {
        let met = self.met.get(&(chain, number)).map_or(&[][..], Vec::as_slice);
        let mut found: Vec<MarkClash> = rule.writes.iter().filter_map(|w| self.write(w, met)).collect();
        found.extend(rule.matches.iter().filter_map(|m| match m {
            Match::Mark {
                of, value, is: true, ..
            } if value & self.ours(*of) != 0 => Some(MarkClash::Reads(*of, value & self.ours(*of))),
            _ => None,
        }));
        found
    }

    fn write(&self, write: &MarkWrite, met: &[(Base, Passage)]) -> Option<MarkClash> {
        let MarkWrite {
            of,
            touched,
            sets,
            copies,
        } = *write;
        let (bits, id) = (touched & self.ours(of), touched & GBP_ID_MASK);
        let of_packet = of == MarkOf::Packet;
        let met_where = |there: fn(&Base, Passage) -> bool| met.iter().any(|(base, way)| there(base, *way));
        let lost = match of {
            MarkOf::Packet => met_where(has_routing_mark),
            // What copies the mark's other bits leaves ours as they are.
            MarkOf::Connection => {
                !met.is_empty() && (copies == 0 || copies & (bits | self.numbers.mark_mask) != 0)
            }
        };
        if sets & bits != 0 {
            Some(MarkClash::Sets(of, sets & bits))
        } else if of_packet && id != 0 && met_where(has_id) {
            Some(MarkClash::Id(id))
        } else if bits != 0 && lost {
            Some(MarkClash::Overwrites(of, bits))
        } else {
            None
        }
    }

    fn ours(&self, of: MarkOf) -> u32 {
        match of {
            MarkOf::Packet => self.numbers.mark_mask,
            MarkOf::Connection => CT_MARK_MASK,
        }
    }
}

fn is_on_the_way(hook: Hook) -> bool {
    matches!(hook, Hook::Prerouting | Hook::Forward | Hook::Postrouting)
}

/// Whether packets have the id as their mark there: from our `forward` into the tunnel, and out of it to our `prerouting`.
fn has_id(base: &Base, passage: Passage) -> bool {
    match base.hook {
        Hook::Prerouting => passage == Passage::ThroughGateway && base.priority < FILTER_PRIORITY,
        Hook::Forward => passage == Passage::ToGateway && base.priority >= FILTER_PRIORITY,
        Hook::Postrouting => passage == Passage::ToGateway,
        Hook::Input | Hook::Output => false,
    }
}

/// Whether packets have our bits of the mark there: from our `prerouting` to our `forward`.
fn has_routing_mark(base: &Base, _: Passage) -> bool {
    match base.hook {
        Hook::Prerouting => base.priority >= FILTER_PRIORITY,
        Hook::Forward => base.priority < FILTER_PRIORITY,
        Hook::Input | Hook::Output | Hook::Postrouting => false,
    }
}
