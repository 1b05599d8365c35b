//! Port ranges.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The ports from `first` to `last`, both included. Never port 0.
///
/// Written `20000-39999`, or `20000` for one port, as nft writes a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Why a text or a pair of numbers is not a port range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortRangeError {
    /// Not `FIRST-LAST` with two numbers of 1 to 65535.
    #[error("{0:?} is not a range of ports of 1 to 65535, such as 20000-39999")]
    Form(String),
    /// The ends are the wrong way round, or one is port 0.
    #[error("{0}-{1} is not a range of ports: write the lower one first, from 1")]
    Ends(u16, u16),
}

impl PortRange {
    /// The range from `first` to `last`, both included.
    pub fn new(first: u16, last: u16) -> Result<Self, PortRangeError> {
        if first == 0 || first > last {
            return Err(PortRangeError::Ends(first, last));
        }
        Ok(Self { first, last })
    }

    /// The lowest port.
    pub fn first(&self) -> u16 {
        self.first
    }

    /// The highest port.
    pub fn last(&self) -> u16 {
        self.last
    }

    /// How many ports there are.
    pub fn size(&self) -> u32 {
        u32::from(self.last - self.first) + 1
    }

    /// Whether a port is in it.
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Whether a port is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let port = |p: &str| match p.bytes().all(|b| b.is_ascii_digit()) {
            true => p.parse::<u16>().map_err(|_| PortRangeError::Form(s.into())),
            false => Err(PortRangeError::Form(s.into())),
        };
        let (first, last) = s.split_once('-').unwrap_or((s, s));
        Self::new(port(first)?, port(last)?)
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_and_written_alike() {
        for text in ["20000-39999", "1-65535", "443"] {
            assert_eq!(text.parse::<PortRange>().unwrap().to_string(), text);
        }
        assert_eq!("1-65535".parse::<PortRange>().unwrap().size(), 65535);
        for text in [
            "", "-", "1-", "0-9", "9-1", "1-65536", "+1-2", "1-2-3", "a-b", " 1-2",
        ] {
            assert!(text.parse::<PortRange>().is_err(), "{text:?}");
        }
    }
}
