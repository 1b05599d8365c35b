//! nf_tables expressions: what a rule consists of in the kernel.
#![expect(unsafe_code, reason = "libnftnl is a C library")]

use std::ffi::CStr;
use std::ptr::NonNull;

use egressnat_crds::plan::Family;
use nftnl_sys as sys;

use super::name::Name;
use super::value::Value;

/// One of the four 16-octet registers, 1 to 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg(pub u32);

/// The register that a verdict goes to.
pub const VERDICT: Reg = Reg(libc::NFT_REG_VERDICT as u32);

/// The register that all work is done in: each statement is done with it before the next.
pub const R1: Reg = Reg(libc::NFT_REG_1 as u32);

/// The register for what must not be lost meanwhile.
pub const R2: Reg = Reg(libc::NFT_REG_2 as u32);

/// The register for what comes along with that.
pub const R3: Reg = Reg(libc::NFT_REG_3 as u32);

/// An expression. All work in [`R1`] except where a register is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Load packet metadata.
    Meta(i32, Reg),
    /// Store packet metadata.
    SetMeta(i32, Reg),
    /// Load from the conntrack entry; the rule ends where there is none.
    Ct(i32),
    /// Store into the conntrack entry.
    SetCt(i32),
    /// Load octets of the packet.
    Payload {
        /// The header that the offset counts from.
        base: i32,
        /// First octet.
        offset: u32,
        /// How many.
        length: u32,
    },
    /// Go on if the register compares so with the value.
    Cmp {
        /// `NFT_CMP_*`.
        op: i32,
        /// The value.
        value: Value,
    },
    /// `register & mask ^ xor`; both are of the register's length.
    Bitwise {
        /// Bits that stay.
        mask: Value,
        /// Bits that are flipped then.
        xor: Value,
    },
    /// `register >> N` of a 32-bit number; N is below 32.
    ShiftRight(u32),
    /// Load a constant.
    Immediate(Value, Reg),
    /// Give a verdict, one of `NF_*` and `NFT_*`, with a chain for jumps.
    Verdict(i32, Option<Name>),
    /// Look the register up; the rule ends where there is no such element. In a map, the data goes to the
    /// second register.
    Lookup(Name, Option<Reg>),
    /// Type of the destination address (`RTN_*`) in the routing tables.
    FibDaddrType,
    /// Whether a route leads to the source address by the link that the packet came in by: 0 or 1, a number in host
    /// byte order.
    FibSaddrByIif,
    /// SNAT to the address in the register.
    Snat(Family),
    /// The same, with a port from that in [`R2`] to that in [`R3`], both in network byte order.
    SnatPorts(Family),
    /// Masquerade, the port chosen at random.
    Masquerade,
    /// Write the register's two octets to the size of TCP's option `maxseg`.
    WriteMss,
    /// Answer with a TCP reset, and drop.
    RejectTcpReset,
    /// Count in a named counter.
    Counter(Name),
    /// No conntrack for the packet.
    Notrack,
}

// linux/netfilter/nf_tables.h and linux/tcp.h, as far as libc has them not.
const NFT_BITWISE_RSHIFT: u32 = 2;
const NFT_FIB_RESULT_OIF: u32 = 1;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_SADDR: u32 = 1 << 0;
const NFTA_FIB_F_DADDR: u32 = 1 << 1;
const NFTA_FIB_F_IIF: u32 = 1 << 3;
const NFTA_FIB_F_PRESENT: u32 = 1 << 5;
const NFT_EXTHDR_OP_TCPOPT: u32 = 1;
const NFT_OBJECT_COUNTER: u32 = 1;
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;
const TCPOPT_MSS: u8 = 2;

impl Expr {
    /// The expression as libnftnl's object. The caller owns it.
    pub(super) fn into_raw(self) -> NonNull<sys::nftnl_expr> {
        let r1 = R1.0;
        match self {
            Self::Meta(key, reg) => Raw::new(c"meta")
                .u32(sys::NFTNL_EXPR_META_KEY, key as u32)
                .u32(sys::NFTNL_EXPR_META_DREG, reg.0),
            Self::SetMeta(key, reg) => Raw::new(c"meta")
                .u32(sys::NFTNL_EXPR_META_KEY, key as u32)
                .u32(sys::NFTNL_EXPR_META_SREG, reg.0),
            Self::Ct(key) => Raw::new(c"ct")
                .u32(sys::NFTNL_EXPR_CT_KEY, key as u32)
                .u32(sys::NFTNL_EXPR_CT_DREG, r1),
            Self::SetCt(key) => Raw::new(c"ct")
                .u32(sys::NFTNL_EXPR_CT_KEY, key as u32)
                .u32(sys::NFTNL_EXPR_CT_SREG, r1),
            Self::Payload { base, offset, length } => Raw::new(c"payload")
                .u32(sys::NFTNL_EXPR_PAYLOAD_BASE, base as u32)
                .u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset)
                .u32(sys::NFTNL_EXPR_PAYLOAD_LEN, length)
                .u32(sys::NFTNL_EXPR_PAYLOAD_DREG, r1),
            Self::Cmp { op, value } => Raw::new(c"cmp")
                .u32(sys::NFTNL_EXPR_CMP_SREG, r1)
                .u32(sys::NFTNL_EXPR_CMP_OP, op as u32)
                .value(sys::NFTNL_EXPR_CMP_DATA, value),
            Self::Bitwise { mask, xor } => Raw::new(c"bitwise")
                .u32(sys::NFTNL_EXPR_BITWISE_SREG, r1)
                .u32(sys::NFTNL_EXPR_BITWISE_DREG, r1)
                .u32(sys::NFTNL_EXPR_BITWISE_LEN, mask.as_slice().len() as u32)
                .value(sys::NFTNL_EXPR_BITWISE_MASK, mask)
                .value(sys::NFTNL_EXPR_BITWISE_XOR, xor),
            Self::ShiftRight(bits) => Raw::new(c"bitwise")
                .u32(sys::NFTNL_EXPR_BITWISE_SREG, r1)
                .u32(sys::NFTNL_EXPR_BITWISE_DREG, r1)
                .u32(sys::NFTNL_EXPR_BITWISE_LEN, 4)
                .u32(sys::NFTNL_EXPR_BITWISE_OP, NFT_BITWISE_RSHIFT)
                .value(sys::NFTNL_EXPR_BITWISE_DATA, Value::host(bits)),
            Self::Immediate(value, reg) => Raw::new(c"immediate")
                .u32(sys::NFTNL_EXPR_IMM_DREG, reg.0)
                .value(sys::NFTNL_EXPR_IMM_DATA, value),
            Self::Verdict(code, chain) => verdict(code, chain.as_ref()),
            Self::Lookup(set, data) => lookup(&set, data),
            Self::FibDaddrType => fib(NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR),
            Self::FibSaddrByIif => fib(
                NFT_FIB_RESULT_OIF,
                NFTA_FIB_F_SADDR | NFTA_FIB_F_IIF | NFTA_FIB_F_PRESENT,
            ),
            Self::Snat(family) => snat(family),
            Self::SnatPorts(family) => snat(family)
                .u32(sys::NFTNL_EXPR_NAT_REG_PROTO_MIN, R2.0)
                .u32(sys::NFTNL_EXPR_NAT_REG_PROTO_MAX, R3.0),
            Self::Masquerade => {
                Raw::new(c"masq").u32(sys::NFTNL_EXPR_MASQ_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY)
            }
            Self::WriteMss => Raw::new(c"exthdr")
                .u8(sys::NFTNL_EXPR_EXTHDR_TYPE, TCPOPT_MSS)
                .u32(sys::NFTNL_EXPR_EXTHDR_OP, NFT_EXTHDR_OP_TCPOPT)
                .u32(sys::NFTNL_EXPR_EXTHDR_OFFSET, 2)
                .u32(sys::NFTNL_EXPR_EXTHDR_LEN, 2)
                .u32(sys::NFTNL_EXPR_EXTHDR_SREG, r1),
            Self::RejectTcpReset => Raw::new(c"reject")
                .u32(sys::NFTNL_EXPR_REJECT_TYPE, libc::NFT_REJECT_TCP_RST as u32)
                .u8(sys::NFTNL_EXPR_REJECT_CODE, 0),
            Self::Counter(name) => Raw::new(c"objref")
                .u32(sys::NFTNL_EXPR_OBJREF_IMM_TYPE, NFT_OBJECT_COUNTER)
                .text(sys::NFTNL_EXPR_OBJREF_IMM_NAME, &name),
            Self::Notrack => Raw::new(c"notrack"),
        }
        .0
    }
}

/// `NFPROTO_*` of a family.
pub fn nfproto(family: Family) -> u8 {
    match family {
        Family::IPv4 => libc::NFPROTO_IPV4 as u8,
        Family::IPv6 => libc::NFPROTO_IPV6 as u8,
    }
}

fn verdict(code: i32, chain: Option<&Name>) -> Raw {
    let raw = Raw::new(c"immediate")
        .u32(sys::NFTNL_EXPR_IMM_DREG, VERDICT.0)
        .u32(sys::NFTNL_EXPR_IMM_VERDICT, code as u32);
    match chain {
        Some(chain) => raw.text(sys::NFTNL_EXPR_IMM_CHAIN, chain),
        None => raw,
    }
}

fn fib(result: u32, flags: u32) -> Raw {
    Raw::new(c"fib")
        .u32(sys::NFTNL_EXPR_FIB_RESULT, result)
        .u32(sys::NFTNL_EXPR_FIB_FLAGS, flags)
        .u32(sys::NFTNL_EXPR_FIB_DREG, R1.0)
}

fn snat(family: Family) -> Raw {
    Raw::new(c"nat")
        .u32(sys::NFTNL_EXPR_NAT_TYPE, libc::NFT_NAT_SNAT as u32)
        .u32(sys::NFTNL_EXPR_NAT_FAMILY, nfproto(family).into())
        .u32(sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, R1.0)
}

fn lookup(set: &Name, data: Option<Reg>) -> Raw {
    let raw = Raw::new(c"lookup")
        .u32(sys::NFTNL_EXPR_LOOKUP_SREG, R1.0)
        .text(sys::NFTNL_EXPR_LOOKUP_SET, set);
    match data {
        Some(reg) => raw.u32(sys::NFTNL_EXPR_LOOKUP_DREG, reg.0),
        None => raw,
    }
}

/// An expression while it is put together. libnftnl copies each attribute by the length that the attribute's
/// field has, so the setter's type must be the field's: that is what this file has to get right.
struct Raw(NonNull<sys::nftnl_expr>);

impl Raw {
    fn new(kind: &CStr) -> Self {
        // SAFETY: the name is a C string, which the call only reads.
        let raw = unsafe { sys::nftnl_expr_alloc(kind.as_ptr()) };
        Self(NonNull::new(raw).expect("libnftnl knows the expression, and there is memory for it"))
    }

    fn u8(self, attr: u32, value: u8) -> Self {
        // SAFETY: the object is live and ours; the attribute is one of its own, of eight bits.
        unsafe { sys::nftnl_expr_set_u8(self.0.as_ptr(), attr as u16, value) };
        self
    }

    fn u32(self, attr: u32, value: u32) -> Self {
        // SAFETY: the object is live and ours; the attribute is one of its own, of 32 bits.
        unsafe { sys::nftnl_expr_set_u32(self.0.as_ptr(), attr as u16, value) };
        self
    }

    fn text(self, attr: u32, text: &Name) -> Self {
        // SAFETY: the object is live and ours; the attribute is one of its own, a text, which is copied.
        unsafe { sys::nftnl_expr_set_str(self.0.as_ptr(), attr as u16, text.as_ptr()) };
        self
    }

    fn value(self, attr: u32, value: Value) -> Self {
        let octets = value.as_slice();
        // SAFETY: the object is live and ours; the attribute is one of its own, a register's data of up to
        // 64 octets, of which a `Value` has at most 16, and which are copied.
        unsafe {
            sys::nftnl_expr_set(
                self.0.as_ptr(),
                attr as u16,
                octets.as_ptr().cast(),
                octets.len() as u32,
            )
        };
        self
    }
}
