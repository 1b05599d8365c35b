//! Whether somebody else gives pods' packets another source: then a masquerade of ours would be one too many.
//!
//! A pod's packet is followed through others' chains: it carries no mark, has no socket on this node, and goes nowhere
//! special: a rule for one destination is not for it, one for all but some is. Where it is not known whether a rule
//! holds, both are followed: a masquerade that may be met counts.

use std::collections::BTreeSet;

use egressnat_crds::plan::{Family, Masquerade};
use ipnet::IpNet;

use crate::facts::Masquerader;
use crate::kernel::nft::{Action, Foreign, ForeignTable, Match};
use crate::model::Hook;

/// Who translates the sources that the plan has masqueraded: the first of each family.
pub fn masqueraders(foreign: &Foreign, plan: &Masquerade) -> Vec<Masquerader> {
    let of = |family: Family| {
        let of_family = plan.sources.iter().filter(|net| family == net.addr().into());
        let sources: Vec<IpNet> = of_family.copied().collect();
        foreign
            .iter()
            .filter(|_| !sources.is_empty())
            .find_map(|(name, table)| {
                if !sees(name.family, family) {
                    return None;
                }
                let walk = Walk { table, family };
                let bases = table.bases.iter();
                let mut bases = bases.filter(|(_, base)| base.nat && base.hook == Hook::Postrouting);
                let chain = bases.find_map(|(chain, _)| walk.translating(chain, &sources))?;
                let (table, chain) = (name.to_string(), chain.to_owned());
                Some(Masquerader { family, table, chain })
            })
    };
    [Family::IPv4, Family::IPv6].into_iter().filter_map(of).collect()
}

/// Whether a table of a family, `NFPROTO_*`, sees packets of the other.
pub(super) fn sees(table: u8, packets: Family) -> bool {
    match i32::from(table) {
        libc::NFPROTO_IPV4 => packets == Family::IPv4,
        libc::NFPROTO_IPV6 => packets == Family::IPv6,
        _ => true,
    }
}

/// How sure it is that a rule's matches hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sure {
    Yes,
    Perhaps,
}

/// What became of a packet in a chain.
enum Outcome<'a> {
    /// This chain may give it another source.
    Translated(&'a str),
    /// It went no further.
    Ended,
    /// It came to the chain's end, or was sent back.
    Through,
}

struct Walk<'a> {
    table: &'a ForeignTable,
    family: Family,
}

impl<'a> Walk<'a> {
    fn translating(&self, base: &'a str, sources: &[IpNet]) -> Option<&'a str> {
        match self.chain(base, sources, &mut BTreeSet::new()) {
            Outcome::Translated(chain) => Some(chain),
            Outcome::Ended | Outcome::Through => None,
        }
    }

    /// Follows packets of these sources through a chain. `seen` are the chains where such packets have been.
    fn chain(
        &self,
        name: &'a str,
        sources: &[IpNet],
        seen: &mut BTreeSet<(&'a str, Vec<IpNet>)>,
    ) -> Outcome<'a> {
        let rules = self
            .table
            .chains
            .get(name)
            .filter(|_| seen.insert((name, sources.to_vec())));
        for rule in rules.into_iter().flatten() {
            let Some((sure, of_rule)) = self.holds(&rule.matches, sources) else {
                continue;
            };
            let ends = match &rule.action {
                Action::Nothing => None,
                Action::Translate => Some(Outcome::Translated(name)),
                Action::Accept | Action::Drop => Some(Outcome::Ended),
                Action::Return => Some(Outcome::Through),
                Action::Jump(target) => match self.chain(target, &of_rule, seen) {
                    Outcome::Through => None,
                    other => Some(other),
                },
                Action::Goto(target) => Some(self.chain(target, &of_rule, seen)),
            };
            match ends {
                Some(translated @ Outcome::Translated(_)) => return translated,
                Some(other) if sure == Sure::Yes => return other,
                _ => {}
            }
        }
        Outcome::Through
    }

    /// Whether all matches hold for packets of some of the sources, and which those are.
    fn holds(&self, matches: &[Match], sources: &[IpNet]) -> Option<(Sure, Vec<IpNet>)> {
        let (mut sure, mut sources) = (Sure::Yes, sources.to_vec());
        for m in matches {
            match m {
                Match::Source { net, is } => {
                    let rest: Vec<IpNet> = sources.iter().filter_map(|s| common(s, net, *is)).collect();
                    if rest != sources {
                        sure = Sure::Perhaps;
                    }
                    sources = rest;
                }
                other => match self.held(other) {
                    Some(true) => {}
                    Some(false) => return None,
                    None => sure = Sure::Perhaps,
                },
            }
        }
        (!sources.is_empty()).then_some((sure, sources))
    }

    /// Whether a match that is not of the source holds; `None` where that is not known.
    fn held(&self, m: &Match) -> Option<bool> {
        match m {
            Match::Never => Some(false),
            Match::Family(family) => Some(*family == self.family),
            Match::Destination { is, .. } => Some(!is),
            Match::Mark { value, is, .. } => Some((*value == 0) == *is),
            Match::NoneOf(none) if none.is_empty() => Some(true),
            Match::AnyOf(all) | Match::NoneOf(all)
                if all.iter().all(|m| matches!(m, Match::Destination { .. })) =>
            {
                Some(matches!(m, Match::NoneOf(_)))
            }
            _ => None,
        }
    }
}

/// What of `source` is inside `net`, or is not all inside.
fn common(source: &IpNet, net: &IpNet, inside: bool) -> Option<IpNet> {
    match inside {
        true if net.contains(source) => Some(*source),
        true if source.contains(net) => Some(*net),
        true => None,
        false => (!net.contains(source)).then_some(*source),
    }
}
