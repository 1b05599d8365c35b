//! Addresses of the topology: every host has one of each family, and tests run over both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both families, the order in which tests take them.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A host's two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dual {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Dual {
    /// The pair of two literal addresses' octets and segments.
    #[must_use]
    pub const fn new(v4: [u8; 4], v6: [u16; 8]) -> Self {
        let [a, b, c, d] = v4;
        let [s, t, u, v, w, x, y, z] = v6;
        Self {
            v4: Ipv4Addr::new(a, b, c, d),
            v6: Ipv6Addr::new(s, t, u, v, w, x, y, z),
        }
    }

    /// The address of a family.
    #[must_use]
    pub fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Both addresses.
    #[must_use]
    pub fn both(self) -> [IpAddr; 2] {
        FAMILIES.map(|family| self.of(family))
    }
}

/// On the external segment, 172.30.0.0/24 and fd00:172:30::/64.
#[must_use]
pub const fn on_segment(host: u8) -> Dual {
    Dual::new(
        [172, 30, 0, host],
        [0xfd00, 0x172, 0x30, 0, 0, 0, 0, hex_as_decimal(host)],
    )
}

/// In a node's pod range, 10.241.N.0/24 and fd00:10:241:N::/64.
#[must_use]
pub const fn in_pod_range(node: u8, host: u8) -> Dual {
    Dual::new(
        [10, 241, node, host],
        [0xfd00, 0x10, 0x241, node as u16, 0, 0, 0, hex_as_decimal(host)],
    )
}

/// The number whose hexadecimal digits are the decimal digits of `number`: host 100 is `::100` too.
const fn hex_as_decimal(number: u8) -> u16 {
    let number = number as u16;
    ((number / 100) << 8) | ((number / 10 % 10) << 4) | (number % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_of_a_host_end_in_the_same_digits() {
        assert_eq!(
            on_segment(100).both().map(|a| a.to_string()),
            ["172.30.0.100", "fd00:172:30::100"]
        );
        assert_eq!(
            in_pod_range(2, 11).both().map(|a| a.to_string()),
            ["10.241.2.11", "fd00:10:241:2::11"]
        );
    }
}
