//! Conntrack's attributes on their way out.

use netlink_packet_core::{Emitable, Nla};

/// An attribute with its type.
pub(super) enum Attribute {
    Octets(u16, Vec<u8>),
    Nested(u16, Vec<Attribute>),
}

impl Attribute {
    /// A number of 32 bits in network byte order, as conntrack has nearly all its numbers.
    pub(super) fn u32(kind: u16, number: u32) -> Self {
        Self::Octets(kind, number.to_be_bytes().to_vec())
    }

    pub(super) fn u16(kind: u16, number: u16) -> Self {
        Self::Octets(kind, number.to_be_bytes().to_vec())
    }

    pub(super) fn u8(kind: u16, number: u8) -> Self {
        Self::Octets(kind, vec![number])
    }
}

impl Nla for Attribute {
    fn value_len(&self) -> usize {
        match self {
            Self::Octets(_, value) => value.len(),
            Self::Nested(_, attributes) => attributes.as_slice().buffer_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Octets(kind, _) | Self::Nested(kind, _) => *kind,
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Octets(_, value) => buffer.copy_from_slice(value),
            Self::Nested(_, attributes) => attributes.as_slice().emit(buffer),
        }
    }

    fn is_nested(&self) -> bool {
        matches!(self, Self::Nested(..))
    }
}
