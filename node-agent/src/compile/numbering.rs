//! Numbers for gateways and exits, which share them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::CompileError;
use crate::facts::{Exit, Facts};
use crate::owned::RoutingMark;

/// Who has which number.
pub(super) struct Assigned<'a> {
    /// By node.
    pub gateways: BTreeMap<&'a str, u8>,
    /// By number.
    pub exits: BTreeMap<u8, &'a Exit>,
}

/// Gives each gateway (by node, with its underlay address) and each exit a number. One that is in use under a
/// number keeps it; a new one gets the lowest that none holds or held, so that a packet already marked is never
/// led elsewhere.
pub(super) fn assign<'a>(
    gateways: &BTreeMap<&'a str, IpAddr>,
    facts: &'a Facts,
) -> Result<Assigned<'a>, CompileError> {
    let Facts {
        gateway_numbers,
        exit_numbers,
        exits,
        ..
    } = facts;
    let mut taken: BTreeSet<u8> = gateway_numbers
        .values()
        .chain(exit_numbers.values())
        .copied()
        .collect();
    let too_many = CompileError::TooManyGateways(gateways.len() + exits.len());
    let mut number = |in_use: Option<&u8>| {
        let lowest = || (1..=RoutingMark::MAX_NUMBER).find(|n| !taken.contains(n));
        let number = in_use.copied().or_else(lowest)?;
        taken.insert(number);
        Some(number)
    };
    let of_gateways = gateways
        .iter()
        .map(|(node, underlay)| Some((*node, number(gateway_numbers.get(underlay))?)))
        .collect::<Option<_>>();
    let of_exits = exits
        .iter()
        .map(|exit| Some((number(exit_numbers.get(&exit.link.index))?, exit)))
        .collect::<Option<_>>();
    match (of_gateways, of_exits) {
        (Some(gateways), Some(exits)) => Ok(Assigned { gateways, exits }),
        _ => Err(too_many),
    }
}
