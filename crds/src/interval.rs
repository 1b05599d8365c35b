//! Address intervals, the shape in which destinations reach the kernel.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The addresses from `first` to `last`, both included, of one family.
///
/// Written `192.0.2.0-192.0.2.255`, as nft writes a range. Ordered by family, then by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval {
    first: IpAddr,
    last: IpAddr,
}

/// Why a text or a pair of addresses is not an interval.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IntervalError {
    /// No `-` between two addresses.
    #[error("{0:?} is not of the form FIRST-LAST")]
    Form(String),
    /// One end is not an address.
    #[error("{0:?} is not an IP address")]
    Address(String),
    /// The ends are of two families, or the wrong way round.
    #[error("{0}-{1} is not an interval: both ends must be of one family, the lower one first")]
    Ends(IpAddr, IpAddr),
}

impl Interval {
    /// The interval from `first` to `last`, both included.
    pub fn new(first: IpAddr, last: IpAddr) -> Result<Self, IntervalError> {
        if first.is_ipv4() != last.is_ipv4() || first > last {
            return Err(IntervalError::Ends(first, last));
        }
        Ok(Self { first, last })
    }

    /// The lowest address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The highest address.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether `address` lies inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.first.is_ipv4() == address.is_ipv4() && self.first <= address && address <= self.last
    }
}

impl From<IpNet> for Interval {
    fn from(net: IpNet) -> Self {
        Self {
            first: net.network(),
            last: net.broadcast(),
        }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for Interval {
    type Err = IntervalError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (first, last) = s.split_once('-').ok_or_else(|| IntervalError::Form(s.into()))?;
        let address = |a: &str| a.parse::<IpAddr>().map_err(|_| IntervalError::Address(a.into()));
        Self::new(address(first)?, address(last)?)
    }
}

impl Serialize for Interval {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The address one above, `None` above the family's last.
pub fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => u32::from(a).checked_add(1).map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(a) => u128::from(a).checked_add(1).map(|n| Ipv6Addr::from(n).into()),
    }
}

/// The address one below, `None` below the family's first.
pub fn previous(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => u32::from(a).checked_sub(1).map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(a) => u128::from(a).checked_sub(1).map(|n| Ipv6Addr::from(n).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for text in [
            "192.0.2.0-192.0.2.255",
            "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "10.0.0.1-10.0.0.1",
        ] {
            assert_eq!(text.parse::<Interval>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn refuses_what_is_no_interval() {
        for text in [
            "",
            "10.0.0.1",
            "10.0.0.2-10.0.0.1",
            "10.0.0.1-::1",
            "a-b",
            "10.0.0.0/8-10.0.0.1",
        ] {
            assert!(text.parse::<Interval>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_cidr_is_the_interval_of_its_addresses() {
        let net: IpNet = "2001:db8::/126".parse().unwrap();
        assert_eq!(Interval::from(net).to_string(), "2001:db8::-2001:db8::3");
    }

    #[test]
    fn neighbours_stop_at_the_ends_of_the_family() {
        assert_eq!(next("255.255.255.255".parse().unwrap()), None);
        assert_eq!(previous("::".parse().unwrap()), None);
        assert_eq!(
            next("10.0.0.255".parse().unwrap()),
            Some("10.0.1.0".parse().unwrap())
        );
    }
}
