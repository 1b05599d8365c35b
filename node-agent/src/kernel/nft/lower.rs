//! Statements to expressions: the small verbs that hide byte order, and the matches that must come before
//! others.

use std::collections::BTreeMap;

use egressnat_crds::plan::Family;
use ipnet::IpNet;

use super::expr::{Expr, R1, R2, R3, Reg, VERDICT, nfproto};
use super::name::Name;
use super::types::data_type;
use super::value::Value;
use crate::model::rule::Masked;
use crate::model::{Cmp, DataType, Direction, Key, Rule, Statement, Verdict};

const NF_CT_STATE_INVALID: u32 = 1 << 0;
const NF_CT_STATE_UNTRACKED: u32 = 1 << 6;
const RTN_LOCAL: u32 = 2;
const RTN_BROADCAST: u32 = 3;
const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;
// linux/netfilter/nf_conntrack_common.h
const IPS_CONFIRMED: u32 = 1 << 3;

/// The rule as expressions. `maps` has the data type of each set and map that the rule uses as a set.
pub fn lower(rule: &Rule, maps: &BTreeMap<String, DataType>) -> Result<Vec<Expr>, &'static str> {
    let mut lowering = Lowering {
        maps,
        exprs: Vec::new(),
        family: None,
    };
    for statement in &rule.0 {
        lowering.statement(statement)?;
    }
    Ok(lowering.exprs)
}

/// The sets that a rule uses as sets, and whose data type lowering has to know.
pub fn sets_used(rule: &Rule) -> impl Iterator<Item = &str> {
    rule.0.iter().filter_map(|statement| match statement {
        Statement::In(_, set) => Some(set.as_str()),
        _ => None,
    })
}

struct Lowering<'a> {
    maps: &'a BTreeMap<String, DataType>,
    exprs: Vec<Expr>,
    /// The family that the rule has matched so far, so that it does so once.
    family: Option<Family>,
}

impl Lowering<'_> {
    fn statement(&mut self, statement: &Statement) -> Result<(), &'static str> {
        match statement {
            Statement::Iif(link) => self.meta_is(libc::NFT_META_IIF, Value::host(link.index)),
            Statement::Oif(link) => self.meta_is(libc::NFT_META_OIF, Value::host(link.index)),
            Statement::NfProto(family) => self.family(*family),
            Statement::UdpDport(port) => self.udp_dport(*port),
            Statement::CtUnplaced => {
                self.ct(libc::NFT_CT_STATE);
                self.mask(NF_CT_STATE_INVALID | NF_CT_STATE_UNTRACKED);
                self.cmp(libc::NFT_CMP_NEQ, Value::host(0));
            }
            Statement::CtConfirmed => self.ct_confirmed(libc::NFT_CMP_NEQ),
            Statement::CtUnconfirmed => self.ct_confirmed(libc::NFT_CMP_EQ),
            Statement::CtDirection(direction) => self.ct_direction(*direction),
            Statement::CtMark(masked) => {
                self.ct(libc::NFT_CT_MARK);
                self.masked(masked);
            }
            Statement::MetaMark(masked) => {
                self.meta(libc::NFT_META_MARK);
                self.masked(masked);
            }
            Statement::SaddrIn(net) => self.saddr_in(net),
            Statement::FibDaddrLocal => self.fib_daddr_local(),
            Statement::FibSaddrMissing => {
                self.exprs.push(Expr::FibSaddrByIif);
                self.equals(Value::host(0));
            }
            Statement::In(key, set) => self.is_in(key, set)?,
            Statement::Vmap(key, map) => {
                self.key(key);
                self.exprs.push(Expr::Lookup(Name::new(map)?, Some(VERDICT)));
            }
            Statement::MapVmap(key, map, vmap) => self.map_vmap(key, map, vmap)?,
            Statement::SetCtMark { keep, bits } => {
                self.rewritten(Expr::Ct(libc::NFT_CT_MARK), *keep, *bits);
                self.exprs.push(Expr::SetCt(libc::NFT_CT_MARK));
            }
            Statement::SetMetaMark { keep, bits } => {
                self.rewritten(Expr::Meta(libc::NFT_META_MARK, R1), *keep, *bits);
                self.exprs.push(Expr::SetMeta(libc::NFT_META_MARK, R1));
            }
            Statement::MetaMarkFromCtMark { mask, shift } => self.meta_mark_from_ct_mark(*mask, *shift)?,
            Statement::TcpSyn => self.tcp_flags(TCP_SYN | TCP_RST, libc::NFT_CMP_EQ),
            Statement::TcpMidstream => {
                self.tcp_flags(TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK, libc::NFT_CMP_NEQ);
            }
            Statement::ClampMss(size) => {
                self.immediate(Value::new(size.to_be_bytes()), R1);
                self.exprs.push(Expr::WriteMss);
            }
            Statement::SnatToSaddr(family) => {
                self.key(&Key::Saddr(*family));
                self.exprs.push(Expr::Snat(*family));
            }
            Statement::SnatMap(family, key, map) => {
                self.family(*family);
                self.key(key);
                self.exprs.push(Expr::Lookup(Name::new(map)?, Some(R1)));
                self.exprs.push(Expr::Snat(*family));
            }
            Statement::SnatPorts(address, ports) => {
                let family = Family::from(*address);
                self.family(family);
                self.immediate(Value::from(*address), R1);
                self.immediate(Value::new(ports.first().to_be_bytes()), R2);
                self.immediate(Value::new(ports.last().to_be_bytes()), R3);
                self.exprs.push(Expr::SnatPorts(family));
            }
            Statement::Masquerade => self.exprs.push(Expr::Masquerade),
            Statement::Notrack => self.exprs.push(Expr::Notrack),
            Statement::RejectTcpReset => self.exprs.push(Expr::RejectTcpReset),
            Statement::Counter(name) => self.exprs.push(Expr::Counter(Name::new(name)?)),
            Statement::Verdict(verdict) => self.verdict(verdict)?,
        }
        Ok(())
    }

    fn meta(&mut self, key: i32) {
        self.exprs.push(Expr::Meta(key, R1));
    }

    fn ct(&mut self, key: i32) {
        self.exprs.push(Expr::Ct(key));
    }

    fn immediate(&mut self, value: Value, reg: Reg) {
        self.exprs.push(Expr::Immediate(value, reg));
    }

    fn equals(&mut self, value: Value) {
        self.cmp(libc::NFT_CMP_EQ, value);
    }

    fn cmp(&mut self, op: i32, value: Value) {
        self.exprs.push(Expr::Cmp { op, value });
    }

    fn meta_is(&mut self, key: i32, value: Value) {
        self.meta(key);
        self.equals(value);
    }

    /// `& mask` of a number in host byte order.
    fn mask(&mut self, mask: u32) {
        if mask != u32::MAX {
            let (mask, xor) = (Value::host(mask), Value::host(0));
            self.exprs.push(Expr::Bitwise { mask, xor });
        }
    }

    fn masked(&mut self, Masked { mask, cmp, value }: &Masked) {
        self.mask(*mask);
        let op = match cmp {
            Cmp::Eq => libc::NFT_CMP_EQ,
            Cmp::Ne => libc::NFT_CMP_NEQ,
        };
        self.cmp(op, Value::host(*value));
    }

    /// In an `inet` chain an address cannot be read before the family is known.
    fn family(&mut self, family: Family) {
        if self.family != Some(family) {
            self.meta_is(libc::NFT_META_NFPROTO, Value::new([nfproto(family)]));
            self.family = Some(family);
        }
    }

    fn l4proto(&mut self, protocol: i32) {
        self.meta_is(libc::NFT_META_L4PROTO, Value::new([protocol as u8]));
    }

    fn payload(&mut self, base: i32, offset: u32, length: u32) {
        self.exprs.push(Expr::Payload { base, offset, length });
    }

    fn udp_dport(&mut self, port: u16) {
        self.l4proto(libc::IPPROTO_UDP);
        self.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
        self.equals(Value::new(port.to_be_bytes()));
    }

    /// The connection's status has `IPS_CONFIRMED`, or has it not.
    fn ct_confirmed(&mut self, cmp: i32) {
        self.ct(libc::NFT_CT_STATUS);
        self.mask(IPS_CONFIRMED);
        self.cmp(cmp, Value::host(0));
    }

    fn ct_direction(&mut self, direction: Direction) {
        self.ct(libc::NFT_CT_DIRECTION);
        let direction = match direction {
            Direction::Original => 0,
            Direction::Reply => 1,
        };
        self.equals(Value::new([direction]));
    }

    /// As `nft` does: a prefix of whole octets is read and compared, any other is masked.
    fn saddr_in(&mut self, net: &IpNet) {
        let family = Family::from(net.addr());
        self.family(family);
        let (offset, length) = saddr(family);
        let prefix = u32::from(net.prefix_len());
        let network = Value::from(net.network());
        if prefix.is_multiple_of(8) {
            if prefix > 0 {
                self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, prefix / 8);
                self.equals(network.truncated(prefix / 8));
            }
            return;
        }
        self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, length);
        let (mask, xor) = (Value::from(net.netmask()), Value::zero(length));
        self.exprs.push(Expr::Bitwise { mask, xor });
        self.equals(network);
    }

    /// `RTN_LOCAL` or `RTN_BROADCAST`, which differ in their lowest bit.
    fn fib_daddr_local(&mut self) {
        const { assert!(RTN_LOCAL & !1 == RTN_BROADCAST & !1) };
        self.exprs.push(Expr::FibDaddrType);
        self.mask(!1);
        self.equals(Value::host(RTN_LOCAL));
    }

    /// The kernel wants a register for a map's data even where it is not needed. That it is not below zero is
    /// always so, but without any use of it `nft` would not show the lookup at all. A verdict map's data
    /// would take effect.
    fn is_in(&mut self, key: &Key, set: &str) -> Result<(), &'static str> {
        let data = match self.maps.get(set) {
            None => return Err("there is no set of that name"),
            Some(DataType::Verdict) => return Err("a verdict map cannot be used as a set"),
            Some(data) => *data,
        };
        self.key(key);
        let set = Name::new(set)?;
        match data_type(data) {
            None => self.exprs.push(Expr::Lookup(set, None)),
            Some((_, length)) => {
                self.exprs.push(Expr::Lookup(set, Some(R1)));
                self.cmp(libc::NFT_CMP_GTE, Value::zero(length));
            }
        }
        Ok(())
    }

    /// The mark that was found goes through the packet's mark, which is restored at once. Looking it up where
    /// it stands would do for the kernel, but `nft` before 1.1.1 aborts when it lists such a rule, and with it
    /// every `nft list ruleset` on the node.
    fn map_vmap(&mut self, key: &Key, map: &str, vmap: &str) -> Result<(), &'static str> {
        const MARK: i32 = libc::NFT_META_MARK;
        self.key(key);
        self.exprs.push(Expr::Lookup(Name::new(map)?, Some(R1)));
        self.exprs.extend([Expr::Meta(MARK, R2), Expr::SetMeta(MARK, R1)]);
        self.exprs.extend([Expr::Meta(MARK, R1), Expr::SetMeta(MARK, R2)]);
        self.exprs.push(Expr::Lookup(Name::new(vmap)?, Some(VERDICT)));
        Ok(())
    }

    fn key(&mut self, key: &Key) {
        match key {
            Key::Saddr(family) => self.address(*family, saddr(*family)),
            Key::Daddr(family) => self.address(*family, daddr(*family)),
            Key::EtherSaddr => self.ether_saddr(),
            Key::Iif => self.meta(libc::NFT_META_IIF),
            Key::CtMark(mask) => {
                self.ct(libc::NFT_CT_MARK);
                self.mask(*mask);
            }
            Key::MetaMark(mask) => {
                self.meta(libc::NFT_META_MARK);
                self.mask(*mask);
            }
        }
    }

    fn address(&mut self, family: Family, (offset, length): (u32, u32)) {
        self.family(family);
        self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, length);
    }

    /// Only an Ethernet device's link layer has a MAC address there.
    fn ether_saddr(&mut self) {
        self.meta_is(
            libc::NFT_META_IIFTYPE,
            Value::new(libc::ARPHRD_ETHER.to_ne_bytes()),
        );
        self.payload(libc::NFT_PAYLOAD_LL_HEADER, 6, 6);
    }

    /// `load & keep | bits`, and just the bits where nothing is kept.
    fn rewritten(&mut self, load: Expr, keep: u32, bits: u32) {
        if keep == 0 {
            self.immediate(Value::host(bits), R1);
            return;
        }
        let (mask, xor) = (Value::host(keep & !bits), Value::host(bits));
        self.exprs.extend([load, Expr::Bitwise { mask, xor }]);
    }

    fn meta_mark_from_ct_mark(&mut self, mask: u32, shift: u32) -> Result<(), &'static str> {
        self.ct(libc::NFT_CT_MARK);
        self.mask(mask);
        match shift {
            0 => {}
            1..32 => self.exprs.push(Expr::ShiftRight(shift)),
            _ => return Err("a mark cannot be shifted by 32 bits or more"),
        }
        self.exprs.push(Expr::SetMeta(libc::NFT_META_MARK, R1));
        Ok(())
    }

    /// Of TCP: the flags of `mask` are SYN alone, or are not.
    fn tcp_flags(&mut self, mask: u8, cmp: i32) {
        const FLAGS: u32 = 13;
        self.l4proto(libc::IPPROTO_TCP);
        self.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, FLAGS, 1);
        let (mask, xor) = (Value::new([mask]), Value::new([0]));
        self.exprs.push(Expr::Bitwise { mask, xor });
        self.cmp(cmp, Value::new([TCP_SYN]));
    }

    fn verdict(&mut self, verdict: &Verdict) -> Result<(), &'static str> {
        let (code, chain) = verdict_code(verdict)?;
        self.exprs.push(Expr::Verdict(code, chain));
        Ok(())
    }
}

/// The verdict's number, and its chain.
pub fn verdict_code(verdict: &Verdict) -> Result<(i32, Option<Name>), &'static str> {
    Ok(match verdict {
        Verdict::Drop => (libc::NF_DROP, None),
        Verdict::Accept => (libc::NF_ACCEPT, None),
        Verdict::Return => (libc::NFT_RETURN, None),
        Verdict::Jump(chain) => (libc::NFT_JUMP, Some(Name::new(chain)?)),
        Verdict::Goto(chain) => (libc::NFT_GOTO, Some(Name::new(chain)?)),
    })
}

/// Offset and length of the source address.
fn saddr(family: Family) -> (u32, u32) {
    match family {
        Family::IPv4 => (12, 4),
        Family::IPv6 => (8, 16),
    }
}

/// Offset and length of the destination address.
fn daddr(family: Family) -> (u32, u32) {
    match family {
        Family::IPv4 => (16, 4),
        Family::IPv6 => (24, 16),
    }
}
