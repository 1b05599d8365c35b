//! `explain`: what becomes of a pod's packets, and why.
//!
//! Which policy wins is the planner's answer, for the world as it is now. What each policy would take if it
//! were alone is the planner's answer for a world with that policy only; the difference is what it lost.

mod fate;
mod text;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::interval::Interval;
use egressnat_crds::plan::{PlanPolicy, Profile};
use egressnat_crds::policy::NoGateway;
use egressnat_operator::plan::{self, Outcome};
use egressnat_operator::world::{Pod, Policy, PolicySpec, World};
use serde::Serialize;

pub use fate::{Fate, Seen};

use crate::place::place;
use crate::progress::Progress;
use crate::snapshot::Snapshot;
use crate::words;

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
    /// The policy that captures it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub captured_by: Option<String>,
    /// Why none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_captured_because: Option<String>,
}

/// Explains the pod `key`, `namespace/name`, in general or for packets to one address; `None` where there is
/// no such pod.
pub fn explain(snapshot: &Snapshot, key: &str, to: Option<IpAddr>) -> Option<Explanation> {
    let world = &snapshot.world;
    let pod = world.pods.get(key)?;
    let outcome = plan::plan(world);
    let never = never(world, pod);
    let policies = match &never {
        None => selecting(world, &outcome, key, pod),
        Some(_) => Vec::new(),
    };
    let seen = fate::seen(world, pod, &policies);
    let to = to.map(|address| answer(snapshot, pod, never.as_deref(), &policies, address));
    let summary = text::summary(pod, &policies, &seen, never.as_deref(), to.as_ref());
    Some(Explanation {
        pod: PodFacts {
            name: key.to_owned(),
            node: pod.node.clone(),
            ips: pod.ips.iter().copied().collect(),
        },
        never,
        policies,
        refused: refused(world),
        seen,
        to,
        summary,
    })
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

fn selecting(world: &World, outcome: &Outcome, key: &str, pod: &Pod) -> Vec<Selecting> {
    let Some((node, planned)) = pod.node.as_deref().and_then(|n| outcome.plans.get_key_value(n)) else {
        return Vec::new();
    };
    let won = captured(planned, &pod.uid);
    let mut policies: Vec<(&String, &Policy)> = world.policies.iter().collect();
    policies.sort_by_key(|(name, p)| (Reverse(priority(p)), p.created, *name));
    policies
        .into_iter()
        .filter_map(|(name, policy)| {
            let own = alone(world, name, key, node)?;
            let made = outcome.policies.get(name)?;
            let won_here = won.get(name.as_str());
            let (gateway, addresses) = won_here
                .map(|w| gateway(outcome, planned, w.id))
                .unwrap_or_default();
            Some(Selecting {
                name: name.clone(),
                priority: priority(policy),
                created: policy.created.to_string(),
                invalid: (!made.accepted.holds).then(|| made.accepted.message.clone()),
                wins: won_here.map(|w| w.ranges.clone()).unwrap_or_default(),
                lost: lost(world, name, policy, &own, &won),
                nodes: match won_here {
                    Some(w) => nodes(world, outcome, pod, node, (w.id, gateway.as_deref())),
                    None => Vec::new(),
                },
                gateway,
                addresses,
                gateway_message: made.gateway_ready.message.clone(),
                no_gateway: won_here
                    .and_then(|w| part(planned, w.id)?.source.as_ref())
                    .map(|s| s.no_gateway)
                    .unwrap_or_default(),
            })
        })
        .collect()
}

fn priority(policy: &Policy) -> i32 {
    policy.in_force().map_or(i32::MIN, |spec| spec.priority)
}

/// What a policy captures of a pod.
#[derive(Clone, Debug, PartialEq)]
struct Captured {
    /// The id with which the packets travel: that of the policy, or of the pod's gateway among several.
    id: u16,
    /// Their destinations.
    ranges: Vec<Interval>,
}

/// What a plan does with a pod, by the name of the policy.
fn captured<'a>(plan: &'a EgressPlanSpec, uid: &str) -> BTreeMap<&'a str, Captured> {
    let mut policies: BTreeMap<&str, Captured> = BTreeMap::new();
    for destination in profile(plan, uid).into_iter().flat_map(|p| &p.destinations) {
        if let Some(policy) = part(plan, destination.policy) {
            let captured = policies.entry(&policy.name).or_insert(Captured {
                id: policy.id,
                ranges: Vec::new(),
            });
            captured.ranges.push(destination.range);
        }
    }
    policies
}

fn profile<'a>(plan: &'a EgressPlanSpec, uid: &str) -> Option<&'a Profile> {
    let pod = plan.pods.iter().find(|p| p.uid == uid)?;
    plan.profiles.iter().find(|p| p.id == pod.profile)
}

/// What the policy would capture of the pod's packets if there were no other; `None` if it does not select it.
fn alone(world: &World, policy: &str, pod: &str, node: &str) -> Option<Vec<Interval>> {
    let only = |name: &str| (name.to_owned(), world.policies[name].clone());
    let small = World {
        policies: BTreeMap::from([only(policy)]),
        pods: BTreeMap::from([(pod.to_owned(), world.pods[pod].clone())]),
        nodes: BTreeMap::from([(node.to_owned(), world.nodes[node].clone())]),
        namespaces: world.namespaces.clone(),
        ..World::default()
    };
    let outcome = plan::plan(&small);
    let own = captured(&outcome.plans[node], &world.pods[pod].uid).remove(policy)?;
    Some(own.ranges)
}

fn lost(
    world: &World,
    name: &str,
    policy: &Policy,
    own: &[Interval],
    won: &BTreeMap<&str, Captured>,
) -> Vec<Lost> {
    let mut lost: Vec<Lost> = won
        .iter()
        .filter(|(winner, _)| **winner != name)
        .map(|(winner, captured)| Lost {
            to: (*winner).to_owned(),
            because: because((winner, &world.policies[*winner]), (name, policy)),
            ranges: words::common(own, &captured.ranges),
        })
        .collect();
    lost.retain(|l| !l.ranges.is_empty());
    lost
}

/// Why one policy comes before another.
fn because((winner, w): (&str, &Policy), (loser, l): (&str, &Policy)) -> String {
    if priority(w) != priority(l) {
        format!("priority {} is above {}", priority(w), priority(l))
    } else if w.created != l.created {
        format!("both have priority {}, and {winner} is older", priority(w))
    } else {
        format!("they have the same priority and age, and {winner} sorts before {loser}")
    }
}

/// The gateway with this id, and the addresses with which it sends.
fn gateway(outcome: &Outcome, source: &EgressPlanSpec, id: u16) -> (Option<String>, Vec<IpAddr>) {
    let node = part(source, id).and_then(|p| p.source.as_ref()?.gateway.clone());
    let plan = node.as_ref().and_then(|n| outcome.plans.get(n));
    let role = plan.and_then(|p| part(p, id)?.gateway.as_ref());
    (node, role.map(|r| r.addresses.clone()).unwrap_or_default())
}

/// How far the pod's node and the gateway are.
fn nodes(
    world: &World,
    outcome: &Outcome,
    pod: &Pod,
    node: &str,
    (id, gateway): (u16, Option<&str>),
) -> Vec<NodeProgress> {
    let planned = &outcome.plans[node];
    let source = Progress::of(world.plans.get(node), |written| {
        captured(written, &pod.uid) == captured(planned, &pod.uid)
            && addresses_of(written, &pod.uid) == addresses_of(planned, &pod.uid)
            && part(written, id).map(|p| &p.source) == part(planned, id).map(|p| &p.source)
    });
    let mut nodes = vec![NodeProgress {
        node: node.to_owned(),
        role: "source",
        progress: source,
    }];
    if let Some((gateway, planned)) = gateway.and_then(|g| outcome.plans.get_key_value(g)) {
        let role = |plan: &EgressPlanSpec| part(plan, id).and_then(|p| p.gateway.clone());
        let peer = |plan: &EgressPlanSpec| plan.peers.iter().find(|p| p.node == node).cloned();
        let progress = Progress::of(world.plans.get(gateway), |written| {
            role(written) == role(planned) && peer(written) == peer(planned)
        });
        nodes.push(NodeProgress {
            node: gateway.clone(),
            role: "gateway",
            progress,
        });
    }
    nodes
}

fn part(plan: &EgressPlanSpec, id: u16) -> Option<&PlanPolicy> {
    plan.policies.iter().find(|p| p.id == id)
}

fn addresses_of<'a>(plan: &'a EgressPlanSpec, uid: &str) -> Option<&'a [IpAddr]> {
    plan.pods.iter().find(|p| p.uid == uid).map(|p| p.ips.as_slice())
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

fn answer(
    snapshot: &Snapshot,
    pod: &Pod,
    never: Option<&str>,
    policies: &[Selecting],
    address: IpAddr,
) -> Answer {
    let winner = policies.iter().find(|p| words::contain(&p.wins, address));
    let because = match (never, place(&snapshot.world, address)) {
        (Some(never), _) => Some(format!("no policy can select the pod: {never}")),
        (None, Some(place)) => Some(place.to_string()),
        (None, None)
            if !pod.ips.is_empty() && !pod.ips.iter().any(|ip| ip.is_ipv4() == address.is_ipv4()) =>
        {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            Some(format!("the pod has no {family} address to send from"))
        }
        (None, None) => winner.is_none().then(|| nobodys(snapshot, policies, address)),
    };
    Answer {
        address,
        captured_by: winner.filter(|_| because.is_none()).map(|p| p.name.clone()),
        not_captured_because: because,
    }
}

/// Why no policy has the destination.
fn nobodys(snapshot: &Snapshot, policies: &[Selecting], address: IpAddr) -> String {
    let excluded: Vec<String> = policies
        .iter()
        .filter_map(|policy| {
            let cidrs = &snapshot.specs.get(&policy.name)?.excluded_cidrs;
            let holds = |c: &&String| c.parse::<ipnet::IpNet>().is_ok_and(|net| net.contains(&address));
            let cidr = cidrs.iter().find(holds)?;
            Some(format!("policy {} excludes {cidr}", policy.name))
        })
        .collect();
    match (policies, excluded.is_empty()) {
        ([], _) => "no policy selects the pod".into(),
        (_, false) => format!(
            "{}, and no other policy of the pod has it",
            words::join(&excluded)
        ),
        (_, true) => {
            let names: Vec<&str> = policies.iter().map(|p| p.name.as_str()).collect();
            format!(
                "no policy that selects the pod ({}) has that destination",
                words::join(&names)
            )
        }
    }
}

#[cfg(test)]
mod tests;
