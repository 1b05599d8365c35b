//! The desired state of a node's kernel as plain values.
//!
//! `Display` prints what `nft` and `ip` would take: goldens, logs and docs use that text. Nothing here does
//! I/O; names and indexes of links are resolved before ([`crate::facts::Facts`]).

pub mod net;
pub mod rule;
pub mod ruleset;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use egressnat_crds::plan::Family;

use crate::facts::Masquerader;

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
    /// Links that take packets from whatever source: `rp_filter` is 2, where it was found to be this.
    pub loose: BTreeMap<Link, u8>,
    /// Egress addresses of the plan that the node does not hold.
    pub missing: BTreeSet<IpAddr>,
    /// Links that hold egress addresses and have no next hop: only their own networks are reached by them.
    pub stranded: BTreeSet<(String, Family)>,
    /// What the plan would have masqueraded, and somebody else translates already.
    pub left_to: Vec<Masquerader>,
}

impl fmt::Display for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            ruleset,
            net,
            loose,
            missing,
            stranded,
            left_to,
        } = self;
        write!(f, "{net}")?;
        for (link, found) in loose {
            writeln!(
                f,
                "sysctl -w net/ipv4/conf/{}/rp_filter=2 # found {found}",
                link.name
            )?;
        }
        if let Some(ruleset) = ruleset {
            write!(f, "{ruleset}")?;
        }
        for address in missing {
            writeln!(f, "# missing on this node: {address}")?;
        }
        for (link, family) in stranded {
            writeln!(f, "# no {family:?} next hop by {link}")?;
        }
        for by in left_to {
            writeln!(f, "# masqueraded already: {by}")?;
        }
        Ok(())
    }
}
