//! How far the nodes that a policy concerns are with it.

use crate::backlog::Backlog;
use crate::condition::{Reason, Verdict, some_of};
use crate::missing::{self, Missing};
use crate::plan::PolicyOutcome;
use crate::world::World;

/// How far a node is with its plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Its agent says that the kernel holds the plan.
    Programmed,
    /// The plan is not yet written, or the agent has not yet said so.
    Pending,
    /// Its agent says why it cannot.
    Failed(String),
}

/// How far a node is with a policy, by what its agent says of the plan that it should have. One that waits for a
/// gateway is not yet where it should be.
pub fn progress(node: &str, outcome: &PolicyOutcome, world: &World, backlog: &Backlog) -> Progress {
    let Some(existing) = world.plans.get(node).filter(|_| backlog.is_written(node)) else {
        return Progress::Pending;
    };
    let ready = existing.status.conditions.iter().find(|c| c.type_ == "Ready");
    let current = existing.status.observed_generation == Some(existing.generation);
    let mut gateways = outcome.gateways.iter();
    let waits = gateways.any(|gateway| backlog.rollout().waits(node, gateway.id));
    match ready {
        Some(c) if c.status == "True" && current && !waits => Progress::Programmed,
        Some(c) if c.status == "False" => Progress::Failed(format!("{}: {}", c.reason, c.message)),
        _ => Progress::Pending,
    }
}

/// Whether every node concerned holds the policy, and the gateways its addresses.
pub fn verdict(
    outcome: &PolicyOutcome,
    nodes: &[(&str, Progress)],
    programmed: usize,
    missing: &Missing<'_>,
) -> Verdict {
    if !outcome.accepted.holds {
        return Verdict::no(Reason::NotAccepted, "the spec is not accepted");
    }
    if outcome.gateways.iter().all(|g| g.gateway.is_none()) {
        return Verdict::no(
            Reason::NoGateway,
            "there is no gateway: see condition GatewayReady",
        );
    }
    let failed = nodes.iter().filter_map(|(name, p)| match p {
        Progress::Failed(why) => Some((*name, why)),
        Progress::Programmed | Progress::Pending => None,
    });
    let failed: Vec<(&str, &String)> = failed.collect();
    if let Some((first, why)) = failed.first() {
        let names = some_of(failed.iter().map(|(name, _)| *name));
        let message = format!("{names} cannot program it; {first} says: {why}");
        return Verdict::no(Reason::NodeFailed, message);
    }
    if !missing.is_empty() {
        return Verdict::no(Reason::AddressMissing, missing::message(missing));
    }
    let concerned = nodes.len();
    if programmed < concerned {
        let waiting = nodes
            .iter()
            .filter(|(_, p)| *p != Progress::Programmed)
            .map(|(name, _)| *name);
        let message = format!(
            "{programmed} of {concerned} nodes are programmed; waiting for {}",
            some_of(waiting)
        );
        return Verdict::no(Reason::Progressing, message);
    }
    Verdict::yes(
        Reason::Programmed,
        format!("{concerned} of {concerned} nodes are programmed"),
    )
}
