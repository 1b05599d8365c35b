//! nft rules as values: the few matches and statements that the datapath is made of.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use egressnat_crds::plan::Family;
use egressnat_crds::ports::PortRange;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A link whose index is known. Rules compare the index, which costs less than the name for each packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Link {
    /// The link's name, for people.
    pub name: String,
    /// The link's index in this network namespace.
    pub index: u32,
}

/// One rule: its statements in order. The first match that fails ends it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule(pub Vec<Statement>);

/// A match or an action.
///
/// A match of addresses ([`Key::Saddr`], [`Key::Daddr`], [`Statement::SaddrIn`], the SNAT statements) is a
/// match of the address's family as well: in an `inet` chain the lowering puts `meta nfproto` before it,
/// as `nft` does without showing it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Statement {
    /// `iif "NAME"`: came in by this link.
    Iif(Link),
    /// `oif "NAME"`: goes out by this link.
    Oif(Link),
    /// `meta nfproto ipv4`.
    NfProto(Family),
    /// `udp dport PORT`, the protocol's match included.
    UdpDport(u16),
    /// `ct state invalid,untracked`: conntrack has no entry for the packet.
    CtUnplaced,
    /// `ct status confirmed`: the packet is not its connection's first.
    CtConfirmed,
    /// `ct status ! confirmed`: the packet is its connection's first. Fails where there is no entry.
    CtUnconfirmed,
    /// `ct direction original`. Fails where there is no entry.
    CtDirection(Direction),
    /// `ct mark & MASK == VALUE`. Fails where there is no entry.
    CtMark(Masked),
    /// `meta mark & MASK == VALUE`.
    MetaMark(Masked),
    /// `ip saddr 10.244.1.0/24`.
    SaddrIn(IpNet),
    /// `fib daddr type { local, broadcast }`: the address is the node's own, or one of its networks' broadcast.
    FibDaddrLocal,
    /// `fib saddr . iif oif missing`: by the link that the packet came in by, no route leads to its source.
    FibSaddrMissing,
    /// `KEY @SET`: the key is in the set, or is a key of the map.
    In(Key, String),
    /// `KEY vmap @MAP`: go where the map says; the next rule where it says nothing.
    Vmap(Key, String),
    /// `KEY map @MAP vmap @VMAP`: look the key up, and the mark found there in the second map.
    MapVmap(Key, String, String),
    /// `ct mark set ct mark & KEEP | BITS`.
    SetCtMark {
        /// Bits that stay.
        keep: u32,
        /// Bits that are set.
        bits: u32,
    },
    /// `meta mark set meta mark & KEEP | BITS`.
    SetMetaMark {
        /// Bits that stay.
        keep: u32,
        /// Bits that are set.
        bits: u32,
    },
    /// `meta mark set (ct mark & MASK) >> SHIFT`: the whole packet mark.
    MetaMarkFromCtMark {
        /// Bits taken from the connection mark.
        mask: u32,
        /// How far they are shifted down.
        shift: u32,
    },
    /// `tcp flags syn / syn,rst`, the protocol's match included.
    TcpSyn,
    /// `tcp flags != syn / fin,syn,rst,ack`, the protocol's match included: the segment begins no connection.
    TcpMidstream,
    /// `tcp option maxseg size set N`. The kernel only ever lowers the size.
    ClampMss(u16),
    /// `snat ip to ip saddr`: a binding that keeps the source, and keeps later NAT chains off.
    SnatToSaddr(Family),
    /// `snat ip to KEY map @MAP`; the next rule where the map says nothing.
    SnatMap(Family, Key, String),
    /// `snat ip to ADDRESS:FIRST-LAST`: of ICMP, the echo identifiers; a protocol without ports gets the address
    /// alone. `nft` wants a match of the protocol before it when it reads it, and the kernel none.
    SnatPorts(IpAddr, PortRange),
    /// `masquerade fully-random`: an address of the interface that the packet leaves by, and a port that differs
    /// from connection to connection, so that those of two pods hardly ever compete for one.
    Masquerade,
    /// `notrack`.
    Notrack,
    /// `reject with tcp reset`, which ends the rule and drops the packet. Of TCP segments only.
    RejectTcpReset,
    /// `counter name "NAME"`: count in the table's named counter.
    Counter(String),
    /// End the rule with a verdict.
    Verdict(Verdict),
}

/// A comparison under a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Masked {
    /// The bits compared.
    pub mask: u32,
    /// Equal or not.
    pub cmp: Cmp,
    /// What they are compared with.
    pub value: u32,
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cmp {
    /// `==`
    Eq,
    /// `!=`
    Ne,
}

/// Direction of a packet within its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the side that opened the connection.
    Original,
    /// Towards it.
    Reply,
}

/// What is looked up in a set or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Source address of this family; the family's match is included.
    Saddr(Family),
    /// Destination address of this family; the family's match is included.
    Daddr(Family),
    /// Source MAC address.
    EtherSaddr,
    /// Index of the link that the packet came in by.
    Iif,
    /// `ct mark & MASK`, in host byte order. Fails where there is no entry.
    CtMark(u32),
    /// `meta mark & MASK`, in host byte order.
    MetaMark(u32),
}

/// Where a packet goes from here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Done with this hook's chain; later chains still see the packet.
    Accept,
    /// Gone.
    Drop,
    /// Back to the calling chain.
    Return,
    /// To that chain, and back here after it.
    Jump(String),
    /// To that chain, not back here.
    Goto(String),
}

impl Rule {
    /// What stands in the rule's comment in the kernel: a fresh process knows by it which rule this is,
    /// without reading expressions back. 64-bit FNV-1a of the rule with the indexes of its links. Another
    /// build may give other tags: its first transaction then writes the rules anew.
    pub fn tag(&self) -> String {
        digest(self)
    }
}

/// 64-bit FNV-1a (RFC 9923) in hexadecimal, the same in every process of a build, which the standard library's
/// hasher is not.
pub(crate) fn digest(value: &impl Hash) -> String {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    value.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// `ip` or `ip6`, as nft names the family's header.
pub fn header(family: Family) -> &'static str {
    match family {
        Family::IPv4 => "ip",
        Family::IPv6 => "ip6",
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, statement) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{statement}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iif(link) => write!(f, "iif \"{}\"", link.name),
            Self::Oif(link) => write!(f, "oif \"{}\"", link.name),
            Self::NfProto(Family::IPv4) => write!(f, "meta nfproto ipv4"),
            Self::NfProto(Family::IPv6) => write!(f, "meta nfproto ipv6"),
            Self::UdpDport(port) => write!(f, "udp dport {port}"),
            Self::CtUnplaced => write!(f, "ct state invalid,untracked"),
            Self::CtConfirmed => write!(f, "ct status confirmed"),
            Self::CtUnconfirmed => write!(f, "ct status ! confirmed"),
            Self::CtDirection(Direction::Original) => write!(f, "ct direction original"),
            Self::CtDirection(Direction::Reply) => write!(f, "ct direction reply"),
            Self::CtMark(m) => write!(f, "ct mark {m}"),
            Self::MetaMark(m) => write!(f, "meta mark {m}"),
            Self::SaddrIn(net) => write!(f, "{} saddr {net}", header(net.addr().into())),
            Self::FibDaddrLocal => write!(f, "fib daddr type {{ local, broadcast }}"),
            Self::FibSaddrMissing => write!(f, "fib saddr . iif oif missing"),
            Self::In(key, set) => write!(f, "{key} @{set}"),
            Self::Vmap(key, map) => write!(f, "{key} vmap @{map}"),
            Self::MapVmap(key, map, vmap) => write!(f, "{key} map @{map} vmap @{vmap}"),
            Self::SetCtMark { keep, bits } => write!(f, "ct mark set ct mark & {keep:#010x} | {bits:#010x}"),
            Self::SetMetaMark { keep, bits } => {
                write!(f, "meta mark set meta mark & {keep:#010x} | {bits:#010x}")
            }
            Self::MetaMarkFromCtMark { mask, shift } => {
                write!(f, "meta mark set (ct mark & {mask:#010x}) >> {shift}")
            }
            Self::TcpSyn => write!(f, "tcp flags syn / syn,rst"),
            Self::TcpMidstream => write!(f, "tcp flags != syn / fin,syn,rst,ack"),
            Self::ClampMss(size) => write!(f, "tcp option maxseg size set {size}"),
            Self::SnatToSaddr(family) => write!(f, "snat {0} to {0} saddr", header(*family)),
            Self::SnatMap(family, key, map) => write!(f, "snat {} to {key} map @{map}", header(*family)),
            Self::SnatPorts(address, ports) if address.is_ipv4() => {
                write!(f, "snat ip to {address}:{ports}")
            }
            Self::SnatPorts(address, ports) => write!(f, "snat ip6 to [{address}]:{ports}"),
            Self::Masquerade => write!(f, "masquerade fully-random"),
            Self::Notrack => write!(f, "notrack"),
            Self::RejectTcpReset => write!(f, "reject with tcp reset"),
            Self::Counter(name) => write!(f, "counter name \"{name}\""),
            Self::Verdict(verdict) => write!(f, "{verdict}"),
        }
    }
}

impl fmt::Display for Masked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cmp = match self.cmp {
            Cmp::Eq => "==",
            Cmp::Ne => "!=",
        };
        write!(f, "& {:#010x} {cmp} {:#010x}", self.mask, self.value)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Saddr(family) => write!(f, "{} saddr", header(*family)),
            Self::Daddr(family) => write!(f, "{} daddr", header(*family)),
            Self::EtherSaddr => write!(f, "ether saddr"),
            Self::Iif => write!(f, "iif"),
            Self::CtMark(mask) => write!(f, "ct mark & {mask:#010x}"),
            Self::MetaMark(mask) => write!(f, "meta mark & {mask:#010x}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => write!(f, "accept"),
            Self::Drop => write!(f, "drop"),
            Self::Return => write!(f, "return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}
