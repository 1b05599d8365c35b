//! A policy's status: its outcome, and how far the agents are with it.
//!
//! Pure: the time is an argument, and enters only where a condition changes its status. A status that says
//! the same as the one on the API server is equal to it, times included, and is not written.

use std::collections::{BTreeMap, BTreeSet};

use egressnat_crds::EgressNATPolicyStatus;
use egressnat_crds::policy::GatewayStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::backlog::Backlog;
use crate::condition::{ConditionType, Reason, Verdict};
use crate::missing::{self, Missing};
use crate::plan::{GatewayOutcome, PolicyOutcome, lost};
use crate::programmed::{self, Progress};
use crate::world::{Policy, World};
use crate::{exhausted, gated, next_hop};

/// The statuses of the policies `names` that differ from those on the API server, by policy name.
pub fn due(
    names: &BTreeSet<String>,
    world: &World,
    backlog: &Backlog,
    now: Timestamp,
) -> BTreeMap<String, EgressNATPolicyStatus> {
    let outcomes = backlog
        .planner()
        .policies(names.iter().map(String::as_str), world);
    let mut due = BTreeMap::new();
    for (name, outcome) in outcomes {
        let policy = &world.policies[&name];
        let exhausted = exhausted::message(&name, &outcome, world);
        let status = status(policy, &outcome, backlog, world, exhausted, now);
        if status != policy.status {
            due.insert(name, status);
        }
    }
    due
}

fn status(
    policy: &Policy,
    outcome: &PolicyOutcome,
    backlog: &Backlog,
    world: &World,
    exhausted: Option<String>,
    now: Timestamp,
) -> EgressNATPolicyStatus {
    let missing = missing::addresses(outcome, world);
    let nodes = outcome.nodes.iter().map(String::as_str);
    let nodes: Vec<(&str, Progress)> = nodes
        .map(|node| (node, programmed::progress(node, outcome, world, backlog)))
        .collect();
    let programmed = nodes.iter().filter(|(_, p)| *p == Progress::Programmed).count();
    let degraded = degraded_verdict(outcome, &missing, next_hop::message(outcome, world), exhausted);
    let verdict = |of: ConditionType| match of {
        ConditionType::Accepted => outcome.accepted.clone(),
        ConditionType::GatewayReady => outcome.gateway_ready.clone(),
        ConditionType::Programmed => programmed::verdict(outcome, &nodes, programmed, &missing),
        ConditionType::Degraded => degraded.clone(),
        ConditionType::Gated => gated::verdict(outcome, world),
    };
    let condition = |of| condition(of, verdict(of), policy, now);
    let gateways: Vec<_> = outcome.gateways.iter().filter_map(gateway_status).collect();
    let (lost, more_lost) = lost::status(&outcome.lost);
    EgressNATPolicyStatus {
        conditions: ConditionType::ALL.into_iter().map(condition).collect(),
        id: outcome.id,
        gateway_nodes: gateway_nodes(&gateways),
        addresses: gateways
            .iter()
            .flat_map(|g| g.addresses.clone())
            .collect::<Vec<_>>()
            .join(","),
        gateways,
        matched_pods: count(outcome.matched_pods),
        nodes_concerned: count(nodes.len()),
        nodes_programmed: count(programmed),
        lost,
        more_lost,
    }
}

/// The nodes of the gateways that have one, each once.
fn gateway_nodes(gateways: &[GatewayStatus]) -> String {
    let nodes = gateways.iter().map(|g| g.node.as_str());
    let distinct: BTreeSet<&str> = nodes.filter(|node| !node.is_empty()).collect();
    Vec::from_iter(distinct).join(",")
}

/// A gateway in force; where there may be several also one that is not, since its id must not be forgotten.
fn gateway_status(outcome: &GatewayOutcome) -> Option<GatewayStatus> {
    let gateway = outcome.gateway.as_ref();
    let addresses = gateway.into_iter().flat_map(|g| &g.addresses);
    (gateway.is_some() || outcome.key.is_some()).then(|| GatewayStatus {
        node: gateway.map(|g| g.node.clone()).unwrap_or_default(),
        addresses: addresses.map(ToString::to_string).collect(),
        ready: gateway.is_some_and(|g| g.ready),
        pods: count(outcome.pods),
        key: outcome.key.map(|key| key.to_string()),
        id: outcome.key.map(|_| outcome.id),
    })
}

/// The condition with its time: that of the condition that is there, unless its status changes.
fn condition(of: ConditionType, verdict: Verdict, policy: &Policy, now: Timestamp) -> Condition {
    let status = if verdict.holds { "True" } else { "False" };
    let type_ = of.to_string();
    let old = policy
        .status
        .conditions
        .iter()
        .find(|c| c.type_ == type_ && c.status == status);
    Condition {
        last_transition_time: old.map_or(Time(now), |c| c.last_transition_time.clone()),
        message: verdict.message,
        observed_generation: Some(policy.generation),
        reason: verdict.reason.to_string(),
        status: status.into(),
        type_,
    }
}

fn degraded_verdict(
    outcome: &PolicyOutcome,
    missing: &Missing<'_>,
    stranded: Option<String>,
    exhausted: Option<String>,
) -> Verdict {
    let mut reasons = outcome.degraded.clone();
    if !missing.is_empty() {
        reasons.push((Reason::AddressMissing, missing::message(missing)));
    }
    reasons.extend(stranded.map(|message| (Reason::NextHopMissing, message)));
    reasons.extend(exhausted.map(|message| (Reason::PortsExhausted, message)));
    match reasons.first() {
        None => Verdict::no(Reason::AsSpecified, ""),
        Some((reason, _)) => {
            let messages: Vec<&str> = reasons.iter().map(|(_, m)| m.as_str()).collect();
            Verdict::yes(*reason, messages.join(". "))
        }
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use egressnat_crds::plan::{ExhaustedPorts, Family, NextHop, NodeExit};

    use super::*;
    use crate::plan::plan;
    use crate::testing;
    use crate::world::ExistingPlan;

    const WORLD: &str = r#"
kind: Node
metadata: {name: gateway, uid: gateway}
status: {addresses: [{type: InternalIP, address: 172.18.0.1}, {type: InternalIP, address: "fc00::1"}], conditions: [{type: Ready, status: "True"}]}
---
kind: Node
metadata: {name: source, uid: source}
status: {addresses: [{type: InternalIP, address: 172.18.0.2}, {type: InternalIP, address: "fc00::2"}], conditions: [{type: Ready, status: "True"}]}
---
kind: Pod
metadata: {namespace: default, name: p, uid: p}
spec: {nodeName: source}
status: {phase: Running, podIPs: [{ip: 10.0.0.5}, {ip: "fd00::5"}]}
---
apiVersion: egressnat.io/v1alpha1
kind: EgressNATPolicy
metadata: {name: policy, uid: policy, generation: 3}
spec: {selectors: [{podSelector: {}}], egressSourceIPs: [172.18.0.1, "fc00::1"]}
"#;

    /// The world, with every plan written and what the agents say of them: by node, the generation, the
    /// status of condition Ready, and the addresses that are missing.
    fn world(agents: &[(&str, i64, &str, &[&str])]) -> World {
        let mut world = testing::world(WORLD);
        for (node, spec) in plan(&world).plans {
            let plan = ExistingPlan {
                owner: Some(node.clone()),
                generation: 2,
                spec,
                ..ExistingPlan::default()
            };
            world.plans.insert(node, plan);
        }
        for (node, generation, ready, missing) in agents {
            let status = &mut world.plans.get_mut(*node).unwrap().status;
            status.observed_generation = Some(*generation);
            status.conditions = vec![Condition {
                last_transition_time: Time(testing::time(0)),
                message: "no tunnel".into(),
                observed_generation: Some(*generation),
                reason: "PortTaken".into(),
                status: ready.to_string(),
                type_: "Ready".into(),
            }];
            status.missing_addresses = missing.iter().map(|a| a.parse().unwrap()).collect();
        }
        world
    }

    /// The statuses of all policies that differ.
    fn all_due(world: &World, now: Timestamp) -> BTreeMap<String, EgressNATPolicyStatus> {
        let backlog = Backlog::new(world);
        due(backlog.policies(), world, &backlog, now)
    }

    fn status_of(world: &World) -> EgressNATPolicyStatus {
        all_due(world, testing::time(0)).remove("policy").unwrap()
    }

    fn says(status: &EgressNATPolicyStatus, type_: ConditionType) -> (&str, &str) {
        let condition = status
            .conditions
            .iter()
            .find(|c| c.type_ == type_.to_string())
            .unwrap();
        assert_eq!(condition.observed_generation, Some(3));
        (&condition.status, &condition.reason)
    }

    #[test]
    fn a_gateway_without_ports_degrades_the_policy_that_lacks_them() {
        let mut world = world(&[("gateway", 2, "True", &[]), ("source", 2, "True", &[])]);
        let mut lacks = |policy: &str| {
            let exhausted = ExhaustedPorts {
                policy: policy.into(),
                address: "172.18.0.1".parse().unwrap(),
                source_ports: "20000-20999".parse().unwrap(),
                protocol: 6,
                destination: "192.0.2.9".parse().unwrap(),
                port: Some(443),
            };
            world.plans.get_mut("gateway").unwrap().status.exhausted_ports = vec![exhausted];
            status_of(&world)
        };
        let status = lacks("policy");
        assert_eq!(says(&status, ConditionType::Degraded), ("True", "PortsExhausted"));
        assert_eq!(
            status.conditions.last().unwrap().message,
            "gateway has no source port of 20000-20999 left on 172.18.0.1 for TCP to 192.0.2.9 port 443: further \
             connections there are dropped; widen sourcePorts, or use more egressSourceIPs or egressGateways"
        );
        assert_eq!(says(&status, ConditionType::Programmed), ("True", "Programmed"));
        let status = lacks("another");
        assert_eq!(says(&status, ConditionType::Degraded), ("False", "AsSpecified"));
    }

    #[test]
    fn every_gateway_node_is_named_once() {
        let gateways = ["b", "", "a", "b"].map(|node| GatewayStatus {
            node: node.into(),
            ..GatewayStatus::default()
        });
        assert_eq!(gateway_nodes(&gateways), "a,b");
        assert_eq!(gateway_nodes(&gateways[1..2]), "");
    }

    #[test]
    fn programmed_when_all_nodes_concerned_say_so_of_this_plan() {
        for (agents, programmed, reason) in [
            (&[][..], 0, ("False", "Progressing")),
            (&[("gateway", 2, "True", &[][..])], 1, ("False", "Progressing")),
            (
                &[("gateway", 2, "True", &[]), ("source", 1, "True", &[])],
                1,
                ("False", "Progressing"),
            ),
            (
                &[("gateway", 2, "True", &[]), ("source", 2, "Unknown", &[])],
                1,
                ("False", "Progressing"),
            ),
            (
                &[("gateway", 2, "True", &[]), ("source", 2, "False", &[])],
                1,
                ("False", "NodeFailed"),
            ),
            (
                &[("gateway", 2, "True", &["fc00::1"]), ("source", 2, "True", &[])],
                2,
                ("False", "AddressMissing"),
            ),
            (
                &[("gateway", 2, "True", &["fc00::9"]), ("source", 2, "True", &[])],
                2,
                ("True", "Programmed"),
            ),
        ] {
            let status = status_of(&world(agents));
            assert_eq!(status.nodes_concerned, 2);
            assert_eq!(status.nodes_programmed, programmed, "{agents:?}");
            assert_eq!(says(&status, ConditionType::Programmed), reason, "{agents:?}");
        }
    }

    #[test]
    fn a_node_is_not_programmed_with_a_plan_that_is_not_the_one_it_should_have() {
        let mut world = world(&[("gateway", 2, "True", &[]), ("source", 2, "True", &[])]);
        world.plans.get_mut("source").unwrap().spec.pods.clear();
        let status = status_of(&world);
        assert_eq!(says(&status, ConditionType::Programmed), ("False", "Progressing"));
        let message = &status.conditions[2].message;
        assert!(message.ends_with("waiting for source"), "{message}");
    }

    #[test]
    fn an_address_without_a_next_hop_degrades_and_names_node_interface_and_address() {
        let mut world = world(&[("gateway", 2, "True", &[]), ("source", 2, "True", &[])]);
        let mut exit = NodeExit {
            interface: "eth1".into(),
            addresses: vec!["172.18.0.1".parse().unwrap(), "fc00::1".parse().unwrap()],
            next_hops: vec![NextHop {
                family: Family::IPv6,
                via: Some("fe80::1".parse().unwrap()),
            }],
        };
        let mut status = |exit: &NodeExit| {
            world.plans.get_mut("gateway").unwrap().status.exits = vec![exit.clone()];
            status_of(&world)
        };
        let stranded = status(&exit);
        assert_eq!(
            says(&stranded, ConditionType::Degraded),
            ("True", "NextHopMissing")
        );
        assert_eq!(says(&stranded, ConditionType::Programmed), ("True", "Programmed"));
        let message = &stranded.conditions.last().unwrap().message;
        let expected = "172.18.0.1 is on eth1 of gateway, which has no IPv4 next hop: packets with it";
        assert!(
            message.starts_with(expected) && !message.contains("fc00"),
            "{message}"
        );

        exit.next_hops.insert(
            0,
            NextHop {
                family: Family::IPv4,
                via: None,
            },
        );
        assert_eq!(
            says(&status(&exit), ConditionType::Degraded),
            ("False", "AsSpecified")
        );
        exit.next_hops.clear();
        exit.addresses = vec!["192.0.2.1".parse().unwrap()];
        assert_eq!(
            says(&status(&exit), ConditionType::Degraded),
            ("False", "AsSpecified"),
            "another's"
        );
    }

    #[test]
    fn a_missing_address_degrades_and_names_node_and_address() {
        let world = world(&[("gateway", 2, "True", &["172.18.0.1"])]);
        let status = status_of(&world);
        assert_eq!(says(&status, ConditionType::Degraded), ("True", "AddressMissing"));
        let message = &status.conditions.last().unwrap().message;
        assert!(
            message.starts_with("gateway does not hold 172.18.0.1"),
            "{message}"
        );
    }

    #[test]
    fn time_alone_changes_nothing_and_only_a_change_of_status_sets_it() {
        let mut world = world(&[]);
        let first = status_of(&world);
        world.policies.get_mut("policy").unwrap().status = first.clone();
        let later = testing::time(1000);
        assert!(all_due(&world, later).is_empty());

        let mut done = self::world(&[("gateway", 2, "True", &[]), ("source", 2, "True", &[])]);
        done.policies = world.policies.clone();
        let second = all_due(&done, later).remove("policy").unwrap();
        for (before, after) in first.conditions.iter().zip(&second.conditions) {
            let moved = before.status != after.status;
            assert_eq!(after.last_transition_time.0 == later, moved, "{}", after.type_);
        }
    }

    #[test]
    fn what_no_gateway_takes_is_not_programmed() {
        let mut world = world(&[("gateway", 2, "True", &[]), ("source", 2, "True", &[])]);
        world.nodes.remove("gateway");
        let status = status_of(&world);
        assert_eq!(says(&status, ConditionType::Programmed), ("False", "NoGateway"));
        assert_eq!(
            says(&status, ConditionType::GatewayReady),
            ("False", "AddressNotFound")
        );
        let waits = |g: &GatewayStatus| g.node.is_empty() && g.addresses.is_empty() && g.id.is_some();
        assert!(status.gateways.iter().all(waits), "{:?}", status.gateways);
    }
}
