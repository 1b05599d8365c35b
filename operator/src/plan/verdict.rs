//! What is said of a policy before any agent has said a word: the verdicts of its conditions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use egressnat_crds::plan::Family;
use egressnat_crds::policy::NoGateway;

use super::lost::Lost;
use super::outcome::Standing;
use super::policies::Slot;
use super::share::Share;
use crate::choice::GatewayChoice;
use crate::condition::{Reason, Verdict, some_of, some_of_with};
use crate::world::{Policy, PolicySpec};

/// Condition `Accepted` of a policy in force that selects so many pods, and loses so much to others.
pub fn accepted(policy: &Policy, matched_pods: usize, lost: &[Lost]) -> Verdict {
    match &policy.spec {
        PolicySpec::Valid(_) if matched_pods == 0 => Verdict::yes(
            Reason::Accepted,
            "the spec is in force, but no pod matches its selectors",
        ),
        PolicySpec::Valid(_) if lost.is_empty() => Verdict::yes(Reason::Accepted, "the spec is in force"),
        PolicySpec::Valid(_) => {
            let winners: Vec<String> = lost
                .iter()
                .map(|l| format!("{} ({})", l.policy, count_of(l.pods)))
                .collect();
            let winners = some_of(winners.iter().map(String::as_str));
            let message = format!(
                "the spec is in force, but other policies come first at some of its destinations: {winners}"
            );
            Verdict::yes(Reason::Accepted, message)
        }
        PolicySpec::Kept {
            generation, error, ..
        } => Verdict::no(
            Reason::InvalidSpec,
            format!("{error}. The spec of generation {generation} stays in force"),
        ),
        PolicySpec::Guarded { guard, error } => Verdict::no(
            Reason::InvalidSpec,
            format!(
                "{error}. The spec that was in force is not known any more: until this one is corrected, \
                 the packets of the selected pods {}",
                fate(guard.no_gateway)
            ),
        ),
        PolicySpec::Refused(error) => {
            Verdict::no(Reason::InvalidSpec, format!("{error}. Nothing is in force"))
        }
    }
}

/// Condition `Accepted` of a policy that is not in force.
pub fn not_in_force(policy: &Policy) -> Verdict {
    match &policy.spec {
        PolicySpec::Refused(_) => accepted(policy, 0, &[]),
        PolicySpec::Valid(_) | PolicySpec::Kept { .. } | PolicySpec::Guarded { .. } => Verdict::no(
            Reason::IdsExhausted,
            "all 16383 policy ids are taken, or may still be in use on a node whose agent has not reported since: \
             see that all agents run, delete policies, or say more in one",
        ),
    }
}

/// What becomes of packets that no gateway can take.
fn fate(no_gateway: NoGateway) -> &'static str {
    match no_gateway {
        NoGateway::Drop => "are dropped",
        NoGateway::NodeIP => "leave with their node's address",
    }
}

/// The resolver's verdict, and who else sends with the addresses. Where the user named no destinations, it also names
/// a family of the pods that is captured and not served: nothing is wrong with that, but it should not surprise.
pub fn gateway_ready(standing: &Standing<'_>) -> Verdict {
    let mut verdict = match standing.slots.as_slice() {
        [(slot, _)] => slot.resolution.verdict.clone(),
        _ => of_several(standing),
    };
    let surprise = standing.slots.iter().find_map(|(slot, matched)| {
        let unserved = unserved(standing, slot);
        let family = unserved
            .into_iter()
            .find(|family| matched.families.contains(family))?;
        Some((family, at_one_of_several(standing, slot)))
    });
    if let (None, Some((family, at))) = (&standing.policy.spec.named_families, surprise) {
        let fate = fate(standing.policy.spec.no_gateway);
        verdict.message.push_str(&format!(
            "; without an {family:?} address{at}, {family:?} packets {fate}"
        ));
    }
    if let Some(shared) = shared_addresses(standing) {
        verdict.message.push_str(&format!("; {shared}"));
    }
    verdict
}

/// Which other policies send with the policy's addresses.
fn shared_addresses(standing: &Standing<'_>) -> Option<String> {
    let shared = standing.sharing.with_others(&standing.policy.name);
    let sentence = |(others, addresses): (&Vec<&str>, &Vec<IpAddr>)| {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let send = if others.len() == 1 { "sends" } else { "send" };
        format!(
            "{} also {send} with {}",
            some_of(others.iter().copied()),
            some_of(addresses.iter().map(String::as_str))
        )
    };
    let sentences: Vec<String> = shared.iter().map(sentence).collect();
    (!sentences.is_empty()).then(|| join(&sentences))
}

/// One verdict for all gateways: what one of them can do, the policy can. Those that cannot are named first.
fn of_several(standing: &Standing<'_>) -> Verdict {
    let verdicts: Vec<(usize, &Verdict)> = verdicts(standing).enumerate().collect();
    let (ready, others): (Vec<_>, Vec<_>) = verdicts.iter().partition(|(_, v)| v.holds);
    let others = others.iter().map(|(i, v)| says(standing, *i, v));
    let reason = match ready.first() {
        Some(_) => Reason::GatewayReady,
        // One that is not Ready may well work, and so says more than one that is not there.
        None => verdicts
            .iter()
            .map(|(_, v)| v.reason)
            .min_by_key(|reason| *reason != Reason::GatewayNotReady)
            .unwrap_or(Reason::NoGatewayNode),
    };
    let ways = ready.iter().map(|(_, v)| v.message.clone());
    let details: Vec<String> = others.chain(ways).collect();
    Verdict {
        holds: !ready.is_empty(),
        reason,
        message: format!(
            "{} of {} gateways are ready: {}",
            ready.len(),
            verdicts.len(),
            join(&details)
        ),
    }
}

/// The verdicts on the policy's gateways, in the order of the spec.
fn verdicts<'a>(standing: &'a Standing<'_>) -> impl Iterator<Item = &'a Verdict> + Clone {
    standing.slots.iter().map(|(slot, _)| &slot.resolution.verdict)
}

/// What is said of one of several gateways. A pair of `egressSourceIPs` is named by its addresses, which the
/// message has.
fn says(standing: &Standing<'_>, index: usize, verdict: &Verdict) -> String {
    match standing
        .policy
        .spec
        .gateways
        .get(index)
        .map(|entry| &entry.choice)
    {
        Some(GatewayChoice::Labelled(..)) => format!("egressGateways[{index}]: {}", verdict.message),
        Some(GatewayChoice::HolderOf(_) | GatewayChoice::Nowhere) | None => verdict.message.clone(),
    }
}

/// The node of a gateway, where the policy has others.
fn at_one_of_several(standing: &Standing<'_>, slot: &Slot) -> String {
    match (standing.slots.len(), &slot.resolution.gateway) {
        (2.., Some(gateway)) => format!(" at {}", gateway.node),
        _ => String::new(),
    }
}

/// Families of the policy's destinations that a gateway of it has no address of.
fn unserved(standing: &Standing<'_>, slot: &Slot) -> Vec<Family> {
    let Some(gateway) = &slot.resolution.gateway else {
        return Vec::new();
    };
    let served = gateway.families();
    let destinations = standing.policy.spec.destinations.iter();
    let mut families: BTreeSet<Family> = destinations.map(|d| Family::from(d.first())).collect();
    families.retain(|f| !served.contains(f));
    families.into_iter().collect()
}

/// Condition `Degraded`: what works only in part.
pub fn degraded(standing: &Standing<'_>, shares: &BTreeMap<Arc<str>, Share>) -> Vec<(Reason, String)> {
    let conflicts = standing
        .slots
        .iter()
        .filter_map(|(slot, _)| slot.resolution.conflict.clone());
    family_not_served(standing)
        .into_iter()
        .chain(conflicts.map(|conflict| (Reason::AddressConflict, conflict)))
        .chain(gateway_missing(standing))
        .chain(zone_not_served(standing))
        .chain(ports_shared(standing))
        .chain(source_without_underlay(standing, shares))
        .collect()
}

fn family_not_served(standing: &Standing<'_>) -> Option<(Reason, String)> {
    standing.policy.spec.named_families.as_ref()?;
    let lacking = standing.slots.iter().find_map(|(slot, _)| {
        let family = *unserved(standing, slot).first()?;
        Some((slot.resolution.gateway.as_ref()?, family))
    });
    let (gateway, family) = lacking?;
    let node = &gateway.node;
    let message = format!(
        "destinationCIDRs name {family:?}, but {node} has no {family:?} address to send with: \
         such packets {}; add an address, or remove these CIDRs",
        fate(standing.policy.spec.no_gateway)
    );
    Some((Reason::FamilyNotServed, message))
}

/// Some of several gateways are not there. If none is, condition `GatewayReady` says so.
fn gateway_missing(standing: &Standing<'_>) -> Option<(Reason, String)> {
    let missing = verdicts(standing).enumerate().filter(|(_, v)| !v.holds);
    let missing: Vec<String> = missing.map(|(i, v)| says(standing, i, v)).collect();
    let some = !missing.is_empty() && verdicts(standing).any(|v| v.holds);
    let message = || format!("{}; pods use the gateways that are ready", join(&missing));
    some.then(|| (Reason::GatewayMissing, message()))
}

fn zone_not_served(standing: &Standing<'_>) -> Option<(Reason, String)> {
    let mut far: BTreeMap<&str, usize> = BTreeMap::new();
    for (node, pods) in standing.slots.iter().flat_map(|(_, matched)| &matched.far) {
        *far.entry(node).or_default() += pods;
    }
    let pods: usize = far.values().sum();
    let message = format!(
        "no gateway is in the zone of {}, and zoneAffinity is Require: packets of {} there {}; \
         add a gateway in that zone, or write zoneAffinity: Prefer",
        some_of(far.keys().copied()),
        count_of(pods),
        fate(standing.policy.spec.no_gateway)
    );
    (pods > 0).then_some((Reason::ZoneNotServed, message))
}

/// The policy promises ports that others may take as well.
fn ports_shared(standing: &Standing<'_>) -> Option<(Reason, String)> {
    let ports = standing.policy.spec.source_ports?;
    let others = standing.sharing.at_ports(&standing.policy.name, ports);
    let others: Vec<String> = others
        .iter()
        .map(|(other, theirs)| match theirs {
            Some(theirs) => format!("{other} ({theirs})"),
            None => format!("{other} (all ports)"),
        })
        .collect();
    let message = || {
        format!(
            "the outside cannot tell this policy by its ports {ports}: {} may take some of them with the same \
             address; write sourcePorts that do not overlap in each of them, or give one another address",
            some_of(others.iter().map(String::as_str))
        )
    };
    (!others.is_empty()).then(|| (Reason::PortsShared, message()))
}

fn source_without_underlay(
    standing: &Standing<'_>,
    shares: &BTreeMap<Arc<str>, Share>,
) -> Option<(Reason, String)> {
    let rootless = |node: &&str| shares.get(*node).is_some_and(|share| share.underlay.is_none());
    let rootless: Vec<&str> = standing.nodes.iter().copied().filter(rootless).collect();
    let message = format!(
        "{} have no InternalIP of the cluster's first family to tunnel from: packets of their pods {}",
        some_of(rootless.iter().copied()),
        fate(standing.policy.spec.no_gateway)
    );
    (!rootless.is_empty()).then_some((Reason::SourceWithoutUnderlay, message))
}

fn count_of(pods: usize) -> String {
    match pods {
        1 => "1 pod".into(),
        _ => format!("{pods} pods"),
    }
}

/// The first few sentences, and how many more there are.
fn join(sentences: &[String]) -> String {
    some_of_with("; ", sentences.iter().map(String::as_str))
}
