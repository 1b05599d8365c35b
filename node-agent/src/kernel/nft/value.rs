//! A value as an nf_tables register or a set's key holds it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::MacAddr;

/// Up to 16 octets. Addresses are in network byte order, marks, indexes and states in the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value {
    // Compared in this order, values of one length are in the order of the addresses.
    octets: [u8; 16],
    length: usize,
}

impl Value {
    /// The value of these octets.
    pub const fn new<const N: usize>(octets: [u8; N]) -> Self {
        const { assert!(N <= 16, "a register holds 16 octets") };
        let mut value = [0; 16];
        value.split_at_mut(N).0.copy_from_slice(&octets);
        Self {
            octets: value,
            length: N,
        }
    }

    /// The value that the kernel sent; `None` where it is longer than a register.
    pub fn from_slice(octets: &[u8]) -> Option<Self> {
        let mut value = [0; 16];
        value.get_mut(..octets.len())?.copy_from_slice(octets);
        Some(Self {
            octets: value,
            length: octets.len(),
        })
    }

    /// A number in host byte order.
    pub const fn host(number: u32) -> Self {
        Self::new(number.to_ne_bytes())
    }

    /// Zeroes, at most 16.
    pub fn zero(length: u32) -> Self {
        Self::new([0; 16]).truncated(length)
    }

    /// The first octets of it. Those beyond are zero, so that equal values are equal.
    pub fn truncated(mut self, length: u32) -> Self {
        self.length = self.length.min(length as usize);
        self.octets[self.length..].fill(0);
        self
    }

    /// The octets.
    pub fn as_slice(&self) -> &[u8] {
        &self.octets[..self.length]
    }

    /// As an address of the family that has this length.
    pub fn addr(&self) -> Option<IpAddr> {
        let octets = self.as_slice();
        let v4 = || Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into());
        let v6 = || Some(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?).into());
        v4().or_else(v6)
    }

    /// As a mark.
    pub fn mark(&self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.as_slice().try_into().ok()?))
    }

    /// As a MAC address.
    pub fn mac(&self) -> Option<MacAddr> {
        Some(MacAddr(self.as_slice().try_into().ok()?))
    }
}

impl From<IpAddr> for Value {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(a) => Self::new(a.octets()),
            IpAddr::V6(a) => Self::new(a.octets()),
        }
    }
}

impl From<MacAddr> for Value {
    fn from(mac: MacAddr) -> Self {
        Self::new(mac.0)
    }
}
