//! Whether the first packets of a policy's pods are covered.

use crate::condition::{Reason, Verdict, some_of};
use crate::plan::PolicyOutcome;
use crate::world::World;

/// Whether pods start only when their node knows them, on every node concerned. A node whose agent has not spoken yet
/// is not counted: condition Programmed waits for it.
pub fn verdict(outcome: &PolicyOutcome, world: &World) -> Verdict {
    if !outcome.accepted.holds {
        return Verdict::no(Reason::NotAccepted, "the spec is not accepted");
    }
    if !world.config.start_gate {
        return Verdict::no(
            Reason::GateOff,
            "the start gate is off (chart value startGate.enabled): the first packets of a pod are not covered, and \
             may leave with its node's address until the node has heard of the pod",
        );
    }
    let missing: Vec<(&str, &str)> = outcome
        .nodes
        .iter()
        .filter_map(|node| Some((node.as_str(), missing_on(node, world)?)))
        .collect();
    let Some((first, why)) = missing.first() else {
        return Verdict::yes(Reason::Gated, "pods start only when their node knows them");
    };
    let names = some_of(missing.iter().map(|(node, _)| *node));
    let message = format!("the first packets of pods on {names} are not covered; {first} says: {why}");
    Verdict::no(Reason::GateMissing, message)
}

/// Why the gate is not in place on a node, if its agent says so.
fn missing_on<'a>(node: &str, world: &'a World) -> Option<&'a str> {
    let conditions = &world.plans.get(node)?.status.conditions;
    let gate = conditions.iter().find(|c| c.type_ == "Gate")?;
    (gate.status == "False").then_some(gate.message.as_str())
}
