//! Which policies select a pod, where each applies, and what it lost.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::interval::Interval;
use egressnat_crds::plan::{GatewayRole, PlanPolicy, Profile};
use egressnat_operator::condition::ConditionType;
use egressnat_operator::plan::{self, Outcome};
use egressnat_operator::world::{Pod, Policy, World};

use super::{Lost, NodeProgress, Selecting};
use crate::progress::Progress;
use crate::words;

/// The policies that select the pod, in order of precedence.
pub(super) fn selecting(world: &World, outcome: &Outcome, key: &str, pod: &Pod) -> Vec<Selecting> {
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
            let (gateway, role) = won_here
                .map(|w| gateway(outcome, planned, w.id))
                .unwrap_or_default();
            Some(Selecting {
                name: name.clone(),
                priority: priority(policy),
                created: policy.created.to_string(),
                invalid: (!made.accepted.holds).then(|| {
                    operators_words(policy)
                        .unwrap_or(&made.accepted.message)
                        .to_owned()
                }),
                wins: won_here.map(|w| w.ranges.clone()).unwrap_or_default(),
                lost: lost(world, name, policy, &own, &won),
                nodes: match won_here {
                    Some(w) => nodes(world, outcome, pod, node, (w.id, gateway.as_deref())),
                    None => Vec::new(),
                },
                gateway,
                addresses: role.map(|r| r.addresses.clone()).unwrap_or_default(),
                source_ports: role.and_then(|r| r.source_ports),
                gateway_message: made.gateway_ready.message.clone(),
                no_gateway: won_here
                    .and_then(|w| part(planned, w.id)?.source.as_ref())
                    .map(|s| s.no_gateway)
                    .unwrap_or_default(),
            })
        })
        .collect()
}

/// What the operator says of the present spec: it may know more than what is planned from here.
fn operators_words(policy: &Policy) -> Option<&str> {
    let accepted = ConditionType::Accepted.to_string();
    let current = Some(policy.generation);
    let mut conditions = policy.status.conditions.iter();
    let condition = conditions.find(|c| c.type_ == accepted && c.observed_generation == current)?;
    Some(&condition.message)
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
    let namespace = &world.pods[pod].namespace;
    let small = World {
        policies: BTreeMap::from([only(policy)]),
        pods: BTreeMap::from([(pod.to_owned(), world.pods[pod].clone())]),
        nodes: BTreeMap::from([(node.to_owned(), world.nodes[node].clone())]),
        namespaces: world
            .namespaces
            .get_key_value(namespace)
            .map(|(n, l)| (n.clone(), l.clone()))
            .into_iter()
            .collect(),
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
    let others = won.iter().filter(|(winner, _)| **winner != name);
    let mut lost: Vec<Lost> = others
        .filter_map(|(winner, captured)| {
            Some(Lost {
                to: (*winner).to_owned(),
                because: because((winner, world.policies.get(*winner)?), (name, policy)),
                ranges: words::common(own, &captured.ranges),
            })
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

/// The gateway with this id, and what it does.
fn gateway<'a>(
    outcome: &'a Outcome,
    source: &EgressPlanSpec,
    id: u16,
) -> (Option<String>, Option<&'a GatewayRole>) {
    let node = part(source, id).and_then(|p| p.source.as_ref()?.gateway.clone());
    let plan = node.as_ref().and_then(|n| outcome.plans.get(n));
    let role = plan.and_then(|p| part(p, id)?.gateway.as_ref());
    (node, role)
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
