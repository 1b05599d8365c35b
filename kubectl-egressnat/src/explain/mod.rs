//! `explain`: what becomes of a pod's packets, and why.
//!
//! Which policy wins is the planner's answer, for the world as it is now. What each policy would take if it
//! were alone is the planner's answer for a world with that policy only; the difference is what it lost.

mod answer;
mod fate;
mod selecting;
mod text;

use std::collections::BTreeMap;
use std::net::IpAddr;

use egressnat_crds::interval::Interval;
use egressnat_crds::policy::NoGateway;
use egressnat_crds::ports::PortRange;
use egressnat_operator::plan::{self, Outcome};
use egressnat_operator::world::{Pod, Policy, PolicySpec, World};
use serde::Serialize;

pub use fate::{Fate, Seen};

use crate::cli::Destination;
use crate::progress::Progress;
use crate::snapshot::Snapshot;

/// What becomes of a pod's packets.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The pod.
    pub pod: PodFacts,
    /// Why no policy can select the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub never: Option<String>,
    /// The policies that select it, in order of precedence.
    pub policies: Vec<Selecting>,
    /// Policies that are not in force, with the reason: one of them may have been meant.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, String>,
    /// What the outside sees, by destination; what no policy captures is left out.
    pub seen: Vec<Seen>,
    /// The answer for one destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Answer>,
    /// What the outside sees, in one sentence.
    pub summary: String,
}

/// The pod asked for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PodFacts {
    /// `namespace/name`.
    pub name: String,
    /// Its node.
    pub node: Option<String>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// A policy that selects the pod.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Selecting {
    /// Its name.
    pub name: String,
    /// Its priority.
    pub priority: i32,
    /// When it was created.
    pub created: String,
    /// What is wrong with its spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invalid: Option<String>,
    /// Where it applies.
    pub wins: Vec<Interval>,
    /// Where another one applies in its place.
    pub lost: Vec<Lost>,
    /// The gateway's node.
    pub gateway: Option<String>,
    /// The addresses that the outside sees.
    pub addresses: Vec<IpAddr>,
    /// The source ports that it sees; any where the policy does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ports: Option<PortRange>,
    /// What the operator says of the gateway.
    pub gateway_message: String,
    /// What happens to packets that no gateway can take.
    pub no_gateway: NoGateway,
    /// How far the nodes concerned with this pod are.
    pub nodes: Vec<NodeProgress>,
}

/// Ranges that a policy lost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lost {
    /// To this policy.
    pub to: String,
    /// Because of this.
    pub because: String,
    /// These.
    pub ranges: Vec<Interval>,
}

/// How far a node is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeProgress {
    /// Its name.
    pub node: String,
    /// `source` or `gateway`.
    pub role: &'static str,
    /// How far it is.
    #[serde(flatten)]
    pub progress: Progress,
}

/// The answer for one destination.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The destination.
    pub address: IpAddr,
    /// Its port; any where none was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The policy that captures it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub captured_by: Option<String>,
    /// Why none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_captured_because: Option<String>,
}

/// Explains the pod `key`, `namespace/name`, in general or for packets to one destination; `None` where there
/// is no such pod.
pub fn explain(snapshot: &Snapshot, key: &str, to: Option<Destination>) -> Option<Explanation> {
    let world = &snapshot.world;
    let pod = world.pods.get(key)?;
    let outcome = in_force(world);
    let never = never(world, pod);
    let policies = match &never {
        None => selecting::selecting(world, &outcome, key, pod),
        Some(_) => Vec::new(),
    };
    let seen = fate::seen(world, pod, &policies);
    let to = to.map(|to| answer::answer(snapshot, pod, never.as_deref(), &policies, to));
    let summary = text::summary(pod, &policies, &seen, never.as_deref(), to.as_ref());
    Some(Explanation {
        pod: PodFacts {
            name: key.to_owned(),
            node: pod.node.clone(),
            ips: pod.ips.clone(),
        },
        never,
        policies,
        refused: refused(world),
        seen,
        to,
        summary,
    })
}

/// What follows from the world. What stays in force of a spec that has become invalid is known to the operator
/// only, so that its plans are taken as they are written while there is such a spec.
fn in_force(world: &World) -> Outcome {
    let mut outcome = plan::plan(world);
    let guarded = |p: &Policy| matches!(p.spec, PolicySpec::Guarded { .. });
    if world.policies.values().any(guarded) {
        for (node, plan) in &mut outcome.plans {
            if let Some(written) = world.plans.get(node) {
                plan.clone_from(&written.spec);
            }
        }
    }
    outcome
}

/// Why no policy can select the pod.
fn never(world: &World, pod: &Pod) -> Option<String> {
    if pod.host_network {
        return Some(
            "it uses the network of its node (hostNetwork): policies are for pods with their own".into(),
        );
    }
    if pod.ended {
        return Some("it has ended: it sends nothing".into());
    }
    match pod.node.as_deref() {
        None => Some("it is not yet bound to a node".into()),
        Some(node) if !world.nodes.contains_key(node) => Some(format!("its node {node} is gone")),
        Some(_) => None,
    }
}

fn refused(world: &World) -> BTreeMap<String, String> {
    let why = |policy: &Policy| match &policy.spec {
        PolicySpec::Refused(error) => Some(error.to_string()),
        PolicySpec::Valid(_) | PolicySpec::Kept { .. } | PolicySpec::Guarded { .. } => None,
    };
    let policies = world.policies.iter();
    policies
        .filter_map(|(name, p)| Some((name.clone(), why(p)?)))
        .collect()
}

#[cfg(test)]
mod tests;
