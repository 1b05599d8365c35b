//! Reads another program's rule out of its expressions, by following what its registers hold.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egressnat_crds::plan::Family;
use ipnet::IpNet;

use super::attr::Attrs;
use super::foreign_compat;
use super::foreign_rule::{Action, ForeignRule, LinkMatch, MarkOf, MarkWrite, Match, Way};
use super::value::Value;

/// A set or map that a rule looks into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pending {
    /// Its name.
    pub set: String,
    /// What is looked up.
    pub held: Held,
    /// Which of the rule's matches comes of it, and whether it asks for what is there; none where the rule's verdict is
    /// there.
    pub of: Option<(usize, bool)>,
}

/// What a register holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// An address of the packet, from its first octet on, under a mask.
    Address {
        source: bool,
        family: Family,
        mask: Option<Value>,
    },
    /// A mark, or `mark & mask ^ xor`.
    Mark { of: MarkOf, mask: u32, xor: u32 },
    /// The state of the connection under a mask.
    State { mask: u32 },
    /// What has happened to the connection.
    Status,
    /// The same value in every packet of a pod's, or a value to set.
    Constant(Value),
    /// `NFPROTO_*`.
    Family,
    /// The number of the protocol.
    Protocol,
    /// A port.
    Port { destination: bool },
    /// Name of a link.
    LinkName(Way),
    /// Index of a link.
    LinkIndex(Way),
    /// The type of an address (`RTN_*`): none is this node's own.
    TypeOfAddress,
    /// The link back to the packet's source; 0 where it is not the one that it came by.
    WayBack,
    /// What only a packet of the node's own has.
    Owner,
    /// Something else.
    Unknown,
}

const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
pub(super) const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
/// The destination register is the first attribute of every expression that loads; of `cmp` it is the source.
const REGISTER: u16 = 1;
const NFT_FIB_RESULT_OIF: u32 = 1;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_SADDR_IIF: u32 = 1 << 0 | 1 << 3;
const RTN_LOCAL: u32 = 2;
const IPS_DST_NAT: u32 = 1 << 5;
/// Names that nft gives to the sets of a rule begin so.
const OF_A_RULE: &str = "__set";

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

struct Reader {
    registers: BTreeMap<u32, Held>,
    rule: ForeignRule,
}

impl Reader {
    fn expression(&mut self, name: &str, data: Attrs<'_>) {
        match name {
            "payload" => self.load(data, payload(data)),
            "meta" => match data.u32(3) {
                Some(source) => self.write(MarkOf::Packet, data, libc::NFT_META_MARK as u32, source),
                None => self.load(data, meta(data)),
            },
            "ct" => match data.u32(4) {
                Some(source) => self.write(MarkOf::Connection, data, libc::NFT_CT_MARK as u32, source),
                None => self.load(data, ct(data)),
            },
            "fib" => self.load(data, fib(data)),
            "bitwise" => self.bitwise(data),
            "cmp" => self.compare(data),
            "lookup" => self.lookup(data),
            "immediate" => self.immediate(data),
            "reject" => self.rule.action = Action::Drop,
            "masq" => self.rule.action = Action::Translate,
            "nat" if data.u32(1) == Some(libc::NFT_NAT_SNAT as u32) => self.rule.action = Action::Translate,
            "target" => foreign_compat::target(&mut self.rule, data),
            "match" => self.rule.matches.extend(foreign_compat::matches(data)),
            "queue" => {
                self.rule.matches.push(Match::Perhaps);
                self.rule.action = Action::Accept;
            }
            "range" | "byteorder" | "limit" | "connlimit" | "quota" | "numgen" | "hash" | "exthdr"
            | "socket" | "osf" | "rt" | "xfrm" => self.rule.matches.push(Match::Perhaps),
            _ => {}
        }
    }

    fn load(&mut self, data: Attrs<'_>, held: Held) {
        if let Some(register) = data.u32(REGISTER) {
            self.registers.insert(register, held);
        }
    }

    fn held(&self, register: Option<u32>) -> Held {
        let held = register.and_then(|register| self.registers.get(&register));
        held.cloned().unwrap_or(Held::Unknown)
    }

    /// What cannot be followed is left out: nobody shall be warned of what may be nothing.
    fn write(&mut self, of: MarkOf, data: Attrs<'_>, mark: u32, source: u32) {
        if data.u32(2) != Some(mark) {
            return;
        }
        let write = match self.held(Some(source)) {
            Held::Constant(value) => value.mark().map(|sets| (u32::MAX, sets, 0)),
            Held::Mark { of: from, mask, xor } if from == of => Some((!mask | xor, xor, 0)),
            Held::Mark { mask, xor, .. } => Some((u32::MAX, xor, mask)),
            _ => None,
        };
        let write = write.map(|(touched, sets, copies)| MarkWrite {
            of,
            touched,
            sets,
            copies,
        });
        self.rule.writes.extend(write);
    }

    fn bitwise(&mut self, data: Attrs<'_>) {
        let value = |kind| Value::from_slice(data.nested(kind).get(NFTA_DATA_VALUE)?);
        let result = value(4).zip(value(5)).and_then(|(mask, xor)| {
            let numbers = mask.mark().zip(xor.mark());
            match (self.held(data.u32(1)), numbers) {
                (Held::Address { source, family, .. }, _) => Some(Held::Address {
                    source,
                    family,
                    mask: Some(mask),
                }),
                (Held::Mark { of, mask, xor }, Some((and, with))) => Some(Held::Mark {
                    of,
                    mask: mask & and,
                    xor: xor & and ^ with,
                }),
                (Held::State { mask }, Some((and, 0))) => Some(Held::State { mask: mask & and }),
                // No packet that we ask for has had its destination translated.
                (Held::Status, Some((IPS_DST_NAT, 0))) => Some(Held::Constant(Value::host(0))),
                _ => None,
            }
        });
        if let Some(target) = data.u32(2) {
            self.registers.insert(target, result.unwrap_or(Held::Unknown));
        }
    }

    fn compare(&mut self, data: Attrs<'_>) {
        let equal = match data.u32(2).map(|op| op as i32) {
            Some(libc::NFT_CMP_EQ) => true,
            Some(libc::NFT_CMP_NEQ) => false,
            _ => return self.rule.matches.push(Match::Perhaps),
        };
        let value = data.nested(3).get(NFTA_DATA_VALUE).and_then(Value::from_slice);
        let held = self.held(data.u32(REGISTER));
        let found = match value {
            Some(value) if equal => held.is(&value),
            Some(value) => held.is_not(&value),
            None => Match::Perhaps,
        };
        self.rule.matches.push(found);
    }

    /// Only sets that belong to the rule are looked into: of the others, sources may be among the elements, and a
    /// destination nowhere special is not.
    fn lookup(&mut self, data: Attrs<'_>) {
        let Some(set) = data.text(1).map(str::to_owned) else {
            return self.rule.matches.push(Match::Perhaps);
        };
        let held = self.held(data.u32(2));
        if data.u32(3) == Some(libc::NFT_REG_VERDICT as u32) {
            return self.rule.pending.push(Pending { set, held, of: None });
        }
        let inverted = data
            .u32(5)
            .is_some_and(|flags| flags & libc::NFT_LOOKUP_F_INV as u32 != 0);
        let found = held.is_in_a_set(!inverted);
        if set.starts_with(OF_A_RULE) {
            let of = Some((self.rule.matches.len(), !inverted));
            self.rule.pending.push(Pending { set, held, of });
        }
        self.rule.matches.push(found);
    }

    fn immediate(&mut self, data: Attrs<'_>) {
        let verdict = data.nested(2).nested(NFTA_DATA_VERDICT);
        let Some(code) = verdict.u32(NFTA_VERDICT_CODE) else {
            let value = data.nested(2).get(NFTA_DATA_VALUE).and_then(Value::from_slice);
            return self.load(data, value.map_or(Held::Unknown, Held::Constant));
        };
        let chain = || verdict.text(NFTA_VERDICT_CHAIN).unwrap_or_default().to_owned();
        self.rule.action = match code as i32 {
            libc::NFT_JUMP => Action::Jump(chain()),
            libc::NFT_GOTO => Action::Goto(chain()),
            libc::NFT_RETURN => Action::Return,
            libc::NF_DROP => Action::Drop,
            libc::NF_ACCEPT => Action::Accept,
            _ => Action::Nothing,
        };
    }
}

impl Held {
    /// That it is this value.
    pub(super) fn is(&self, value: &Value) -> Match {
        self.equals(value, true)
    }

    fn is_not(&self, value: &Value) -> Match {
        self.equals(value, false)
    }

    fn equals(&self, value: &Value, is: bool) -> Match {
        let known = |holds: bool| match holds {
            true => Match::ALWAYS,
            false => Match::Never,
        };
        match self {
            Self::Address {
                source: true,
                family,
                mask,
            } => net(*family, mask, value).map_or(Match::Perhaps, |net| Match::Source { net, is }),
            Self::Address { family, mask, .. } => Match::Destination {
                net: net(*family, mask, value),
                is,
            },
            Self::Mark { of, mask, xor } => match value.mark() {
                Some(value) => Match::Mark {
                    of: *of,
                    mask: *mask,
                    value: value ^ xor,
                    is,
                },
                None => Match::Perhaps,
            },
            Self::State { mask } => state(*mask, value, is),
            Self::Constant(constant) => known((constant == value) == is),
            Self::Family => family(value, is).map_or(Match::Perhaps, Match::Family),
            Self::Protocol => match value.as_slice() {
                [number] => Match::Protocol { number: *number, is },
                _ => Match::Perhaps,
            },
            Self::Port { destination } => match value.as_slice() {
                [high, low] => {
                    let port = u16::from_be_bytes([*high, *low]);
                    let (destination, ports) = (*destination, port..=port);
                    Match::Port {
                        destination,
                        ports,
                        is,
                    }
                }
                _ => Match::Perhaps,
            },
            Self::LinkName(way) => link_name(value).map_or(Match::Perhaps, |link| {
                let way = *way;
                Match::Interface { way, link, is }
            }),
            Self::LinkIndex(way) => value.mark().map_or(Match::Perhaps, |index| {
                let (way, link) = (*way, LinkMatch::Index(index));
                Match::Interface { way, link, is }
            }),
            Self::TypeOfAddress => known((*value == Value::host(RTN_LOCAL)) != is),
            Self::WayBack => match (value.as_slice().iter().all(|octet| *octet == 0), is) {
                (true, true) => Match::NoWayBack,
                _ => Match::Perhaps,
            },
            Self::Owner => Match::Never,
            Self::Status | Self::Unknown => Match::Perhaps,
        }
    }

    /// That it is in a set that is not looked into, or that it is not.
    fn is_in_a_set(&self, is: bool) -> Match {
        match self {
            Self::Address { source: false, .. } => Match::Destination { net: None, is },
            Self::Owner => Match::Never,
            _ => Match::Perhaps,
        }
    }
}

fn state(mask: u32, value: &Value, is: bool) -> Match {
    match (value.mark(), mask) {
        (Some(0), mask) => Match::State {
            states: mask,
            is: !is,
        },
        (Some(states), u32::MAX) => Match::State { states, is },
        _ => Match::Perhaps,
    }
}

fn payload(data: Attrs<'_>) -> Held {
    use Family::{IPv4, IPv6};
    const NETWORK: i32 = libc::NFT_PAYLOAD_NETWORK_HEADER;
    const TRANSPORT: i32 = libc::NFT_PAYLOAD_TRANSPORT_HEADER;
    let (Some(base), Some(offset), Some(length)) = (data.u32(2), data.u32(3), data.u32(4)) else {
        return Held::Unknown;
    };
    let address = |source, family| Held::Address {
        source,
        family,
        mask: None,
    };
    match (base as i32, offset, length) {
        (NETWORK, 12, 1..=4) => address(true, IPv4),
        (NETWORK, 8, 2..=16) => address(true, IPv6),
        (NETWORK, 16, 1..=4) => address(false, IPv4),
        (NETWORK, 24, 1..=16) => address(false, IPv6),
        (NETWORK, 9, 1) | (NETWORK, 6, 1) => Held::Protocol,
        (TRANSPORT, 0, 2) => Held::Port { destination: false },
        (TRANSPORT, 2, 2) => Held::Port { destination: true },
        _ => Held::Unknown,
    }
}

fn meta(data: Attrs<'_>) -> Held {
    match data.u32(2).map(|key| key as i32) {
        Some(libc::NFT_META_MARK) => whole(MarkOf::Packet),
        Some(libc::NFT_META_NFPROTO) => Held::Family,
        Some(libc::NFT_META_L4PROTO) => Held::Protocol,
        Some(libc::NFT_META_SKUID | libc::NFT_META_SKGID) => Held::Owner,
        Some(libc::NFT_META_IIF) => Held::LinkIndex(Way::In),
        Some(libc::NFT_META_OIF) => Held::LinkIndex(Way::Out),
        Some(libc::NFT_META_IIFNAME) => Held::LinkName(Way::In),
        Some(libc::NFT_META_OIFNAME) => Held::LinkName(Way::Out),
        _ => Held::Unknown,
    }
}

fn ct(data: Attrs<'_>) -> Held {
    match data.u32(2).map(|key| key as i32) {
        Some(libc::NFT_CT_MARK) => whole(MarkOf::Connection),
        Some(libc::NFT_CT_STATE) => Held::State { mask: u32::MAX },
        Some(libc::NFT_CT_STATUS) => Held::Status,
        _ => Held::Unknown,
    }
}

fn whole(of: MarkOf) -> Held {
    let (mask, xor) = (u32::MAX, 0);
    Held::Mark { of, mask, xor }
}

fn fib(data: Attrs<'_>) -> Held {
    match (data.u32(2), data.u32(3)) {
        (Some(NFT_FIB_RESULT_ADDRTYPE), _) => Held::TypeOfAddress,
        (Some(NFT_FIB_RESULT_OIF), Some(flags)) if flags & NFTA_FIB_F_SADDR_IIF == NFTA_FIB_F_SADDR_IIF => {
            Held::WayBack
        }
        _ => Held::Unknown,
    }
}

fn family(value: &Value, equal: bool) -> Option<Family> {
    match (value.as_slice(), equal) {
        ([2], true) | ([10], false) => Some(Family::IPv4),
        ([10], true) | ([2], false) => Some(Family::IPv6),
        _ => None,
    }
}

/// A whole name ends with a NUL, the beginning of one has none.
fn link_name(value: &Value) -> Option<LinkMatch> {
    let octets = value.as_slice();
    let end = octets.iter().position(|octet| *octet == 0);
    let name = std::str::from_utf8(&octets[..end.unwrap_or(octets.len())])
        .ok()?
        .to_owned();
    Some(match end {
        Some(_) => LinkMatch::Name(name),
        None => LinkMatch::Prefix(name),
    })
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
