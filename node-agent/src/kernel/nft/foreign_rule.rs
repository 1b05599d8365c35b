//! A rule of another program, as far as it concerns a pod's packet to some place outside the cluster.
//!
//! The packet carries no mark, has no socket on this node, and goes nowhere special: a rule for one destination is
//! not for it, one for all but some is. Matches that are not understood may hold or not.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egressnat_crds::plan::Family;
use ipnet::IpNet;

use super::attr::Attrs;
use super::elements::RawData;
use super::value::Value;
use crate::model::Verdict;

/// A rule of another program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignRule {
    /// What it asks of a packet: all of it.
    pub matches: Vec<Match>,
    /// What it does with one.
    pub action: Action,
    /// Where its verdict is looked up, until that has been read.
    pub(super) verdict_map: Option<String>,
}

/// What a rule asks of a pod's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// A source in this range, or one outside.
    Source {
        /// The range.
        net: IpNet,
        /// Inside.
        inside: bool,
    },
    /// A family.
    Family(Family),
    /// Something that no such packet has.
    Never,
    /// Something that such a packet may have.
    Perhaps,
}

/// What a rule does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Nothing that matters here.
    #[default]
    Nothing,
    /// Give the packet another source.
    Translate,
    /// Let the packet go, or drop it.
    End,
    /// Back to where the chain was jumped from.
    Return,
    /// On in one of these chains, and back after it.
    Jump(Vec<String>),
    /// On in one of these chains.
    Goto(Vec<String>),
}

impl ForeignRule {
    /// The chains that it may lead to.
    pub fn targets(&self) -> impl Iterator<Item = &String> {
        match &self.action {
            Action::Jump(chains) | Action::Goto(chains) => chains.as_slice(),
            _ => &[],
        }
        .iter()
    }

    /// Takes the verdicts of its map, of which any may be the packet's.
    pub(super) fn goes_to(&mut self, verdicts: impl IntoIterator<Item = RawData>) {
        let chain = |data| match data {
            RawData::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain),
            _ => None,
        };
        self.matches.push(Match::Perhaps);
        self.action = Action::Jump(verdicts.into_iter().filter_map(chain).collect());
    }
}

const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
/// The destination register is the first attribute of every expression that loads; of `cmp` it is the source.
const REGISTER: u16 = 1;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const RTN_LOCAL: u32 = 2;

/// The rule that has these expressions.
pub(super) fn read_rule(expressions: Attrs<'_>) -> ForeignRule {
    let mut reader = Reader {
        registers: BTreeMap::new(),
        rule: ForeignRule::default(),
    };
    for (_, expression) in expressions.iter() {
        let expression = Attrs(expression);
        reader.expression(
            expression.text(NFTA_EXPR_NAME).unwrap_or_default(),
            expression.nested(NFTA_EXPR_DATA),
        );
    }
    reader.rule
}

/// What a register holds.
#[derive(Clone, Copy)]
enum Held {
    /// An address of the packet, from its first octet on, under a mask.
    Address { end: End, mask: Option<Value> },
    /// The same value in every such packet.
    Constant(Value),
    /// `NFPROTO_*`.
    Protocol,
    /// The type of an address (`RTN_*`): none is this node's own.
    TypeOfAddress,
    /// What only a packet of the node's own has.
    Owner,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Source(Family),
    Destination,
}

struct Reader {
    registers: BTreeMap<u32, Held>,
    rule: ForeignRule,
}

impl Reader {
    fn expression(&mut self, name: &str, data: Attrs<'_>) {
        match name {
            "payload" => self.load(data, address(data)),
            "meta" => self.load(data, meta(data)),
            "ct" => {
                let mark = data.u32(2) == Some(libc::NFT_CT_MARK as u32);
                self.load(data, mark.then_some(Held::Constant(Value::host(0))));
            }
            "fib" => {
                let is_type = data.u32(2) == Some(NFT_FIB_RESULT_ADDRTYPE);
                self.load(data, is_type.then_some(Held::TypeOfAddress));
            }
            "bitwise" => self.bitwise(data),
            "cmp" => self.compare(data),
            "range" | "byteorder" => self.perhaps(),
            "lookup" => self.lookup(data),
            "immediate" => self.immediate(data),
            "masq" => self.rule.action = Action::Translate,
            "nat" if data.u32(1) == Some(libc::NFT_NAT_SNAT as u32) => self.rule.action = Action::Translate,
            "target" => {
                if matches!(data.text(1), Some("MASQUERADE" | "SNAT")) {
                    self.rule.action = Action::Translate;
                }
            }
            "match" => self.rule.matches.extend(compat_match(data)),
            "limit" | "connlimit" | "quota" | "numgen" | "hash" | "exthdr" | "socket" | "osf" | "rt"
            | "xfrm" => {
                self.perhaps();
            }
            _ => {}
        }
    }

    fn load(&mut self, data: Attrs<'_>, held: Option<Held>) {
        if let Some(register) = data.u32(REGISTER) {
            match held {
                Some(held) => self.registers.insert(register, held),
                None => self.registers.remove(&register),
            };
        }
    }

    fn perhaps(&mut self) {
        self.rule.matches.push(Match::Perhaps);
    }

    fn bitwise(&mut self, data: Attrs<'_>) {
        let value = |kind| Value::from_slice(data.nested(kind).get(NFTA_DATA_VALUE)?);
        let result = data.u32(1).and_then(|source| {
            let (mask, xor) = (value(4)?, value(5)?);
            match self.registers.get(&source)? {
                Held::Address { end, mask: None } => Some(Held::Address {
                    end: *end,
                    mask: Some(mask),
                }),
                Held::Constant(constant) => combine(constant, &mask, &xor).map(Held::Constant),
                _ => None,
            }
        });
        if let Some(target) = data.u32(2) {
            match result {
                Some(held) => self.registers.insert(target, held),
                None => self.registers.remove(&target),
            };
        }
    }

    fn compare(&mut self, data: Attrs<'_>) {
        let equal = match data.u32(2).map(|op| op as i32) {
            Some(libc::NFT_CMP_EQ) => true,
            Some(libc::NFT_CMP_NEQ) => false,
            _ => return self.perhaps(),
        };
        let value = data.nested(3).get(NFTA_DATA_VALUE).and_then(Value::from_slice);
        let held = data
            .u32(REGISTER)
            .and_then(|register| self.registers.get(&register));
        let (Some(value), Some(held)) = (value, held) else {
            return self.perhaps();
        };
        let found = match held {
            Held::Address {
                end: End::Source(family),
                mask,
            } => match net(*family, mask, &value) {
                Some(net) => Some(Match::Source { net, inside: equal }),
                None => Some(Match::Perhaps),
            },
            Held::Address {
                end: End::Destination,
                ..
            } => equal.then_some(Match::Never),
            Held::Constant(constant) => ((*constant == value) != equal).then_some(Match::Never),
            Held::Protocol => family_match(&value, equal),
            Held::TypeOfAddress => {
                let is_local = value == Value::host(RTN_LOCAL);
                (is_local == equal).then_some(Match::Never)
            }
            Held::Owner => Some(Match::Never),
        };
        self.rule.matches.extend(found);
    }

    /// A set's elements are not looked at: sources may be among them, a destination nowhere special is not.
    fn lookup(&mut self, data: Attrs<'_>) {
        if data.u32(3) == Some(libc::NFT_REG_VERDICT as u32) {
            self.rule.verdict_map = data.text(1).map(str::to_owned);
            return;
        }
        let held = data.u32(2).and_then(|register| self.registers.get(&register));
        let inverted = data
            .u32(5)
            .is_some_and(|flags| flags & libc::NFT_LOOKUP_F_INV as u32 != 0);
        match held {
            Some(Held::Address {
                end: End::Destination,
                ..
            }) if inverted => {}
            Some(
                Held::Address {
                    end: End::Destination,
                    ..
                }
                | Held::Owner,
            ) => {
                self.rule.matches.push(Match::Never);
            }
            _ => self.perhaps(),
        }
    }

    fn immediate(&mut self, data: Attrs<'_>) {
        let verdict = data.nested(2).nested(NFTA_DATA_VERDICT);
        let Some(code) = verdict.u32(NFTA_VERDICT_CODE) else {
            return;
        };
        let chain = || {
            verdict
                .text(NFTA_VERDICT_CHAIN)
                .map(str::to_owned)
                .into_iter()
                .collect()
        };
        self.rule.action = match code as i32 {
            libc::NFT_JUMP => Action::Jump(chain()),
            libc::NFT_GOTO => Action::Goto(chain()),
            libc::NFT_RETURN => Action::Return,
            libc::NF_DROP | libc::NF_ACCEPT => Action::End,
            _ => Action::Nothing,
        };
    }
}

/// `value & mask ^ xor`.
fn combine(value: &Value, mask: &Value, xor: &Value) -> Option<Value> {
    let octets = value.as_slice().iter().zip(mask.as_slice()).zip(xor.as_slice());
    let octets: Vec<u8> = octets.map(|((value, mask), xor)| value & mask ^ xor).collect();
    Value::from_slice(&octets)
}

/// Which address a payload expression loads, if it loads one.
fn address(data: Attrs<'_>) -> Option<Held> {
    let network_header = data.u32(2) == Some(libc::NFT_PAYLOAD_NETWORK_HEADER as u32);
    let end = match (data.u32(3)?, data.u32(4)?) {
        (12, 1..=4) => End::Source(Family::IPv4),
        (8, 2..=16) => End::Source(Family::IPv6),
        (16, 1..=4) | (24, 1..=16) => End::Destination,
        _ => return None,
    };
    network_header.then_some(Held::Address { end, mask: None })
}

fn meta(data: Attrs<'_>) -> Option<Held> {
    match data.u32(2)? as i32 {
        libc::NFT_META_MARK => Some(Held::Constant(Value::host(0))),
        libc::NFT_META_NFPROTO => Some(Held::Protocol),
        libc::NFT_META_SKUID | libc::NFT_META_SKGID => Some(Held::Owner),
        _ => None,
    }
}

fn family_match(value: &Value, equal: bool) -> Option<Match> {
    let family = match (value.as_slice(), equal) {
        ([2], true) | ([10], false) => Family::IPv4,
        ([10], true) | ([2], false) => Family::IPv6,
        _ => return None,
    };
    Some(Match::Family(family))
}

/// The network whose addresses have these leading octets under a mask.
fn net(family: Family, mask: &Option<Value>, value: &Value) -> Option<IpNet> {
    let length = match family {
        Family::IPv4 => 4,
        Family::IPv6 => 16,
    };
    let octets = value.as_slice();
    let prefix: u32 = match mask {
        Some(mask) => mask.as_slice().iter().map(|octet| octet.count_ones()).sum(),
        None => 8 * u32::try_from(octets.len()).ok()?,
    };
    let mut whole = octets.to_vec();
    whole.resize(length, 0);
    let address: IpAddr = match family {
        Family::IPv4 => Ipv4Addr::from(<[u8; 4]>::try_from(whole).ok()?).into(),
        Family::IPv6 => Ipv6Addr::from(<[u8; 16]>::try_from(whole).ok()?).into(),
    };
    IpNet::new(address, u8::try_from(prefix).ok()?).ok()
}

/// A match of iptables that nft has no expression for, with its structure of `linux/netfilter/xt_*.h`.
fn compat_match(data: Attrs<'_>) -> Option<Match> {
    let info = data.get(3).unwrap_or_default();
    let word = |i: usize| Some(u32::from_ne_bytes(info.get(4 * i..4 * i + 4)?.try_into().ok()?));
    let half = |i: usize| Some(u16::from_ne_bytes(info.get(2 * i..2 * i + 2)?.try_into().ok()?));
    let holds = match (data.text(1)?, data.u32(2)) {
        ("comment", _) => Some(true),
        ("owner", _) => Some(false),
        ("mark" | "connmark", Some(1)) => mark_holds(word(0), word(1), info.get(8).copied()),
        ("addrtype", Some(0)) => types_hold(half(0), half(1), word(1), word(2)),
        ("addrtype", Some(1)) => {
            let flags = word(1)?;
            types_hold(half(0), half(1), Some(flags & 1), Some(flags & 2))
        }
        _ => None,
    };
    match holds {
        Some(true) => None,
        Some(false) => Some(Match::Never),
        None => Some(Match::Perhaps),
    }
}

fn mark_holds(mark: Option<u32>, mask: Option<u32>, inverted: Option<u8>) -> Option<bool> {
    let (mark, _) = (mark?, mask?);
    Some((mark == 0) != (inverted? != 0))
}

/// Of sets of types (`1 << RTN_*`, 0 is any): a pod's address and one outside are unicast, not the node's own.
fn types_hold(
    source: Option<u16>,
    destination: Option<u16>,
    not_s: Option<u32>,
    not_d: Option<u32>,
) -> Option<bool> {
    const UNICAST: u16 = 1 << 1;
    let holds = |types: u16, inverted: u32| types == 0 || (types & UNICAST != 0) != (inverted != 0);
    Some(holds(source?, not_s?) && holds(destination?, not_d?))
}
