//! Numbers for gateways.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::CompileError;
use crate::owned::RoutingMark;

/// Gives each gateway (by node, with its underlay address) a number. One that is in use under a number keeps
/// it; a new one gets the lowest that no gateway holds or held, so that a packet already marked is never
/// led elsewhere.
pub(super) fn assign<'a>(
    gateways: &BTreeMap<&'a str, IpAddr>,
    in_use: &BTreeMap<IpAddr, u8>,
) -> Result<BTreeMap<&'a str, u8>, CompileError> {
    let mut taken: BTreeSet<u8> = in_use.values().copied().collect();
    let mut numbers = BTreeMap::new();
    for (node, underlay) in gateways {
        let number = match in_use.get(underlay) {
            Some(number) => *number,
            None => (1..=RoutingMark::MAX_GATEWAY)
                .find(|n| !taken.contains(n))
                .ok_or(CompileError::TooManyGateways(gateways.len()))?,
        };
        taken.insert(number);
        numbers.insert(*node, number);
    }
    Ok(numbers)
}
