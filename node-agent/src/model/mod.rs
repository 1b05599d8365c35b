//! The desired state of a node's kernel as plain values.
//!
//! `Display` prints what `nft` and `ip` would take: goldens, logs and docs use that text. Nothing here does
//! I/O; names and indexes of links are resolved before ([`crate::facts::Facts`]).

pub mod net;
pub mod rule;
pub mod ruleset;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

pub use net::{Fdb, IpRule, MacAddr, Neighbour, Net, Route, RouteKind, Sysctl, Tunnel};
pub use rule::{Cmp, Direction, Key, Link, Rule, Statement, Verdict};
pub use ruleset::{BaseChain, Chain, ChainKind, Data, DataType, ElementKey, Hook, KeyType, Ruleset, Set};

/// All that a node's kernel has to hold for its plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The nft table, absent where the plan asks for nothing.
    pub ruleset: Option<Ruleset>,
    /// Tunnel device, neighbours, routes, rules, sysctls.
    pub net: Net,
    /// Egress addresses of the plan that the node does not hold.
    pub missing: BTreeSet<IpAddr>,
}

impl fmt::Display for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            ruleset,
            net,
            missing,
        } = self;
        write!(f, "{net}")?;
        if let Some(ruleset) = ruleset {
            write!(f, "{ruleset}")?;
        }
        for address in missing {
            writeln!(f, "# missing on this node: {address}")?;
        }
        Ok(())
    }
}
