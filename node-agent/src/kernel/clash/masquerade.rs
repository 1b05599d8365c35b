//! Whether somebody else gives pods' packets another source: then a masquerade of ours would be one too many.
//!
//! A pod's packet is followed through others' chains ([`crate::kernel::nft::ForeignRule`] tells which packet). Where it
//! is not known whether a rule holds, both are followed: a masquerade that may be met counts.

use std::collections::BTreeSet;

use egressnat_crds::plan::{Family, Masquerade};
use ipnet::IpNet;

use crate::facts::Masquerader;
use crate::kernel::nft::{Action, ForeignNat, Match, NatTable};

/// Who translates the sources that the plan has masqueraded: the first of each family.
pub fn masqueraders(foreign: &ForeignNat, plan: &Masquerade) -> Vec<Masquerader> {
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
                let chain = table
                    .bases
                    .iter()
                    .find_map(|base| walk.translating(base, &sources))?;
                let (table, chain) = (name.to_string(), chain.to_owned());
                Some(Masquerader { family, table, chain })
            })
    };
    [Family::IPv4, Family::IPv6].into_iter().filter_map(of).collect()
}

/// Whether a table of a family, `NFPROTO_*`, sees packets of the other.
fn sees(table: u8, packets: Family) -> bool {
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
    table: &'a NatTable,
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
                Action::End => Some(Outcome::Ended),
                Action::Return => Some(Outcome::Through),
                Action::Jump(targets) => match self.first_of(targets, &of_rule, seen) {
                    Outcome::Through => None,
                    other => Some(other),
                },
                Action::Goto(targets) => Some(self.first_of(targets, &of_rule, seen)),
            };
            match ends {
                Some(translated @ Outcome::Translated(_)) => return translated,
                Some(other) if sure == Sure::Yes => return other,
                _ => {}
            }
        }
        Outcome::Through
    }

    /// What becomes of packets that go to one of these chains. Of several it is not known to which.
    fn first_of(
        &self,
        targets: &'a [String],
        sources: &[IpNet],
        seen: &mut BTreeSet<(&'a str, Vec<IpNet>)>,
    ) -> Outcome<'a> {
        let mut last = Outcome::Through;
        for target in targets {
            last = self.chain(target, sources, seen);
            if matches!(last, Outcome::Translated(_)) {
                return last;
            }
        }
        match targets.len() {
            1 => last,
            _ => Outcome::Through,
        }
    }

    /// Whether all matches hold for packets of some of the sources, and which those are.
    fn holds(&self, matches: &[Match], sources: &[IpNet]) -> Option<(Sure, Vec<IpNet>)> {
        let (mut sure, mut sources) = (Sure::Yes, sources.to_vec());
        for m in matches {
            match m {
                Match::Never => return None,
                Match::Family(family) if *family != self.family => return None,
                Match::Family(_) => {}
                Match::Perhaps => sure = Sure::Perhaps,
                Match::Source { net, inside } => {
                    let rest: Vec<IpNet> = sources.iter().filter_map(|s| common(s, net, *inside)).collect();
                    if rest != sources {
                        sure = Sure::Perhaps;
                    }
                    sources = rest;
                }
            }
        }
        (!sources.is_empty()).then_some((sure, sources))
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
