//! Steps from the tunnel, routes and rules that are there to those that are wanted.

use std::fmt;

use crate::model::{Fdb, IpRule, Neighbour, Route, Sysctl, Tunnel};
use crate::owned;

/// One of the things that a [`crate::model::Net`] is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetObject {
    /// The tunnel device.
    Tunnel(Tunnel),
    /// A setting of it. Removing one does nothing: it goes with the device.
    Sysctl(Sysctl),
    /// An FDB entry.
    Fdb(Fdb),
    /// A neighbour entry.
    Neighbour(Neighbour),
    /// A route.
    Route(Route),
    /// An ip rule.
    IpRule(IpRule),
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetStep {
    /// Make it, or make it as it should be.
    Put(NetObject),
    /// Remove it.
    Remove(NetObject),
}

impl fmt::Display for NetObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tunnel(o) => write!(f, "{o}"),
            Self::Sysctl(o) => write!(f, "{o}"),
            Self::Fdb(o) => write!(f, "{o}"),
            Self::Neighbour(o) => write!(f, "{o}"),
            Self::Route(o) => write!(f, "{o}"),
            Self::IpRule(o) => write!(f, "{o}"),
        }
    }
}

impl fmt::Display for NetStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(object) => write!(f, "{object}"),
            Self::Remove(NetObject::Tunnel(_)) => write!(f, "ip link del {}", owned::TUNNEL),
            Self::Remove(object) => write!(f, "{}", object.to_string().replacen(" add ", " del ", 1)),
        }
    }
}
