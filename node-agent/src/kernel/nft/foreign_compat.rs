//! Matches and targets of iptables that nft has no expression for, with their structures of
//! `linux/netfilter/xt_*.h`.

use super::attr::Attrs;
use super::foreign_rule::{Action, ForeignRule, MarkOf, MarkWrite, Match, State};

/// Takes what a target does.
pub(super) fn target(rule: &mut ForeignRule, data: Attrs<'_>) {
    let info = Info(data.get(3).unwrap_or_default());
    match (data.text(1), data.u32(2)) {
        (Some("MASQUERADE" | "SNAT"), _) => rule.action = Action::Translate,
        (Some("REJECT"), _) => rule.action = Action::Drop,
        (Some("NFQUEUE"), _) => {
            rule.matches.push(Match::Perhaps);
            rule.action = Action::Accept;
        }
        (Some("MARK"), Some(2)) => rule.writes.extend(mark_target(info)),
        (Some("CONNMARK"), Some(1 | 2)) => rule.writes.extend(connmark_target(info)),
        _ => {}
    }
}

fn mark_target(info: Info<'_>) -> Option<MarkWrite> {
    let (sets, mask) = (info.word(0)?, info.word(1)?);
    let of = MarkOf::Packet;
    let touched = mask | sets;
    let copies = 0;
    Some(MarkWrite {
        of,
        touched,
        sets,
        copies,
    })
}

fn connmark_target(info: Info<'_>) -> Option<MarkWrite> {
    const SET: u8 = 0;
    const SAVE: u8 = 1;
    const RESTORE: u8 = 2;
    let (ctmark, ctmask, nfmask) = (info.word(0)?, info.word(1)?, info.word(2)?);
    let (of, touched, sets, copies) = match info.octet(12)? {
        SET => (MarkOf::Connection, ctmask | ctmark, ctmark, 0),
        SAVE => (MarkOf::Connection, ctmask | nfmask, 0, nfmask),
        RESTORE => (MarkOf::Packet, nfmask | ctmask, 0, ctmask),
        _ => return None,
    };
    Some(MarkWrite {
        of,
        touched,
        sets,
        copies,
    })
}

/// What a match asks for.
pub(super) fn matches(data: Attrs<'_>) -> Vec<Match> {
    let info = Info(data.get(3).unwrap_or_default());
    let name = data.text(1).unwrap_or_default();
    let found = match (name, data.u32(2)) {
        ("comment", _) => Some(Vec::new()),
        ("owner", _) => Some(vec![Match::Never]),
        ("mark", Some(1)) => mark(MarkOf::Packet, info),
        ("connmark", Some(1)) => mark(MarkOf::Connection, info),
        ("addrtype", Some(revision @ (0 | 1))) => types(revision, info),
        ("conntrack", Some(2 | 3)) => conntrack(info),
        ("tcp", _) => ports(info, 8, info.octet(11)),
        ("udp", _) => ports(info, 0, info.octet(8)),
        ("rpfilter", _) => rpfilter(info),
        _ => None,
    };
    found.unwrap_or_else(|| vec![Match::Perhaps])
}

fn mark(of: MarkOf, info: Info<'_>) -> Option<Vec<Match>> {
    let (value, mask, is) = (info.word(0)?, info.word(1)?, info.octet(8)? == 0);
    Some(vec![Match::Mark { of, mask, value, is }])
}

/// Of sets of types (`1 << RTN_*`, 0 is any): a pod's address and one outside are unicast, not the node's own.
fn types(revision: u32, info: Info<'_>) -> Option<Vec<Match>> {
    const UNICAST: u16 = 1 << 1;
    let (not_source, not_destination) = match revision {
        0 => (info.word(1)?, info.word(2)?),
        _ => (info.word(1)? & 1, info.word(1)? & 2),
    };
    let holds = |types: u16, inverted: u32| types == 0 || (types & UNICAST != 0) != (inverted != 0);
    let all = holds(info.half(0)?, not_source) && holds(info.half(1)?, not_destination);
    Some(if all { Vec::new() } else { vec![Match::Never] })
}

/// `struct xt_conntrack_mtinfo3`, of which the states are understood.
fn conntrack(info: Info<'_>) -> Option<Vec<Match>> {
    const STATE: u16 = 1 << 0;
    const UNTRACKED: u16 = 1 << 8;
    let (asked, inverted, states) = (info.half(73)?, info.half(74)?, info.half(75)?);
    if asked != STATE {
        return None;
    }
    // The lower bits are the kernel's own, as in nft.
    let untracked = if states & UNTRACKED != 0 {
        State::Untracked as u32
    } else {
        0
    };
    let states = u32::from(states & 0x1f) | untracked;
    let is = inverted & STATE == 0;
    Some(vec![Match::State { states, is }])
}

/// Ranges of ports, and flags of TCP at an offset.
fn ports(info: Info<'_>, flags: usize, inverted: Option<u8>) -> Option<Vec<Match>> {
    let inverted = inverted?;
    let of = |destination: bool, first: usize, bit: u8| {
        let ports = info.half(first)?..=info.half(first + 1)?;
        let is = inverted & bit == 0;
        (ports != (0..=u16::MAX)).then_some(Match::Port {
            destination,
            ports,
            is,
        })
    };
    let mut found: Vec<Match> = of(false, 0, 1).into_iter().chain(of(true, 2, 2)).collect();
    let asks_for_flags = flags != 0 && (info.octet(flags)?, info.octet(flags + 1)?) != (0, 0);
    found.extend(asks_for_flags.then_some(Match::Perhaps));
    Some(found)
}

fn rpfilter(info: Info<'_>) -> Option<Vec<Match>> {
    const LOOSE: u8 = 1 << 0;
    const INVERTED: u8 = 1 << 3;
    let flags = info.octet(0)?;
    (flags & INVERTED != 0).then(|| match flags & LOOSE {
        0 => vec![Match::NoWayBack],
        _ => vec![Match::Never],
    })
}

/// A structure of the kernel's.
#[derive(Clone, Copy)]
struct Info<'a>(&'a [u8]);

impl Info<'_> {
    /// The number of 32 bits at so many times four octets.
    fn word(self, i: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.0.get(4 * i..4 * i + 4)?.try_into().ok()?))
    }

    /// The number of 16 bits at so many times two octets.
    fn half(self, i: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(self.0.get(2 * i..2 * i + 2)?.try_into().ok()?))
    }

    fn octet(self, i: usize) -> Option<u8> {
        self.0.get(i).copied()
    }
}
