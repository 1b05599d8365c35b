//! What new or changed policies would change: the world is planned twice, without and with them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::interval::Interval;
use egressnat_crds::ports::PortRange;
use egressnat_crds::{EgressNATPolicy, EgressPlanSpec};
use egressnat_operator::plan::{self, Outcome};
use egressnat_operator::world::World;
use egressnat_operator::{convert, ranges};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::core::DeserializeGuard;
use serde::Serialize;

use crate::words;

/// What would change.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diff {
    /// The policies asked for.
    pub policies: Vec<PolicyDiff>,
    /// The nodes for which something would change, by name.
    pub nodes: Vec<NodeDiff>,
}

/// A policy asked for.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyDiff {
    /// Its name.
    pub name: String,
    /// There is none of this name yet.
    pub new: bool,
    /// How many pods it would capture anything of.
    pub pods: usize,
    /// Why it would not work, if it would not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrong: Option<String>,
}

/// A node for which something would change.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeDiff {
    /// Its name.
    pub name: String,
    /// Its plan would be written anew. Where the packets of its pods only leave the gateway with another
    /// address, it is not.
    pub rewritten: bool,
    /// The policies whose gateway it would become, with the addresses.
    pub gateway_of: BTreeMap<String, Vec<IpAddr>>,
    /// The policies whose gateway it would no longer be.
    pub no_longer_gateway_of: BTreeSet<String>,
    /// What would change for its pods: pods of the same changes together.
    pub pods: Vec<PodsDiff>,
}

/// What would change for some pods.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PodsDiff {
    /// The pods, `namespace/name`.
    pub pods: Vec<String>,
    /// What would change for each.
    pub changes: Vec<Change>,
}

/// What would change for packets to some ranges.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Change {
    /// Destinations.
    pub ranges: Vec<Interval>,
    /// What becomes of them now; not captured if there is nothing.
    pub before: Option<Way>,
    /// What would become of them.
    pub after: Option<Way>,
}

/// How a policy's packets leave.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Way {
    /// The policy.
    pub policy: String,
    /// The gateway's node; without one they meet `noGateway`.
    pub gateway: Option<String>,
    /// The addresses that the outside sees.
    pub addresses: Vec<IpAddr>,
    /// The source ports that it sees; any where the policy does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ports: Option<PortRange>,
}

impl Diff {
    /// Whether a policy asked for would not work.
    pub fn is_wrong(&self) -> bool {
        self.policies.iter().any(|p| p.wrong.is_some())
    }
}

/// What `policies` would change if they were applied at `now`.
pub fn diff(world: &World, policies: &[EgressNATPolicy], now: Timestamp) -> Diff {
    let before = plan::plan(world);
    let after = plan::plan(&with(world, policies, now));
    let policies = policies
        .iter()
        .map(|raw| policy_diff(&raw.name_any(), world, &after));
    let nodes = after.plans.keys().map(|node| node_diff(node, &before, &after));
    Diff {
        policies: policies.collect(),
        nodes: nodes.filter(|n| n.rewritten || !n.pods.is_empty()).collect(),
    }
}

/// The world with the policies applied. One that is there keeps its age, id and gateway.
fn with(world: &World, policies: &[EgressNATPolicy], now: Timestamp) -> World {
    let mut world = world.clone();
    for raw in policies {
        let name = raw.name_any();
        let mut raw = raw.clone();
        let present = world.policies.get(&name);
        raw.metadata.uid = Some(present.map_or_else(|| format!("new {name}"), |p| p.uid.clone()));
        raw.metadata.generation = Some(present.map_or(1, |p| p.generation + 1));
        raw.metadata.creation_timestamp = Some(Time(present.map_or(now, |p| p.created)));
        raw.status = present.map(|p| p.status.clone());
        let policy = convert::policy(DeserializeGuard(Ok(raw))).after(present);
        world.policies.insert(name, policy);
    }
    world
}

fn policy_diff(name: &str, world: &World, after: &Outcome) -> PolicyDiff {
    let made = after.policies.get(name);
    let verdicts = made.into_iter().flat_map(|m| [&m.accepted, &m.gateway_ready]);
    let captures = |ways: &Ways| ways.keys().flatten().any(|w| w.policy == name);
    let plans = after.plans.values();
    PolicyDiff {
        name: name.to_owned(),
        new: !world.policies.contains_key(name),
        pods: plans
            .map(|p| ways(p, after).values().filter(|w| captures(w)).count())
            .sum(),
        wrong: verdicts.filter(|v| !v.holds).map(|v| v.message.clone()).next(),
    }
}

fn node_diff(node: &str, before: &Outcome, after: &Outcome) -> NodeDiff {
    let (old, new) = (before.plans.get(node), after.plans.get(node));
    let gateways = |plan: Option<&EgressPlanSpec>| -> BTreeMap<String, Vec<IpAddr>> {
        // A policy of several gateways is here once for each that the node is.
        let mut roles: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for policy in plan.into_iter().flat_map(|p| &p.policies) {
            if let Some(role) = &policy.gateway {
                roles
                    .entry(policy.name.clone())
                    .or_default()
                    .extend(&role.addresses);
            }
        }
        roles
    };
    let (was, mut is) = (gateways(old), gateways(new));
    let no_longer: BTreeSet<String> = was.keys().filter(|p| !is.contains_key(*p)).cloned().collect();
    is.retain(|policy, addresses| was.get(policy) != Some(addresses));
    let pods_before = old.map(|p| ways(p, before)).unwrap_or_default();
    let pods_after = new.map(|p| ways(p, after)).unwrap_or_default();
    NodeDiff {
        name: node.to_owned(),
        rewritten: old != new,
        gateway_of: is,
        no_longer_gateway_of: no_longer,
        pods: pods_diff(&pods_before, &pods_after),
    }
}

/// What becomes of a pod's packets: everything, split by how it leaves.
type Ways = BTreeMap<Option<Way>, Vec<Interval>>;

/// The ways of a node's captured pods, by name.
fn ways<'a>(plan: &'a EgressPlanSpec, outcome: &Outcome) -> BTreeMap<&'a str, Ways> {
    let of_profile: BTreeMap<u32, Ways> = plan
        .profiles
        .iter()
        .map(|profile| {
            let mut ways = Ways::new();
            for destination in &profile.destinations {
                let way = way(plan, outcome, destination.policy);
                ways.entry(way).or_default().push(destination.range);
            }
            let captured = ranges::merge(profile.destinations.iter().map(|d| d.range));
            ways.insert(None, ranges::subtract(&ranges::everything(), &captured));
            (profile.id, ways)
        })
        .collect();
    let pods = plan.pods.iter();
    pods.filter_map(|p| Some((p.name.as_str(), of_profile.get(&p.profile)?.clone())))
        .collect()
}

fn way(plan: &EgressPlanSpec, outcome: &Outcome, id: u16) -> Option<Way> {
    let policy = plan.policies.iter().find(|p| p.id == id)?;
    let gateway = policy.source.as_ref().and_then(|s| s.gateway.clone());
    let there = gateway.as_ref().and_then(|g| outcome.plans.get(g));
    let role = there.and_then(|p| p.policies.iter().find(|p| p.id == id)?.gateway.as_ref());
    Some(Way {
        policy: policy.name.clone(),
        addresses: role.map(|r| r.addresses.clone()).unwrap_or_default(),
        source_ports: role.and_then(|r| r.source_ports),
        gateway,
    })
}

fn pods_diff(before: &BTreeMap<&str, Ways>, after: &BTreeMap<&str, Ways>) -> Vec<PodsDiff> {
    let uncaptured = Ways::from([(None, ranges::everything())]);
    let names: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
    let mut same: BTreeMap<Vec<Change>, Vec<String>> = BTreeMap::new();
    for name in names {
        let changes = changes(
            before.get(name).unwrap_or(&uncaptured),
            after.get(name).unwrap_or(&uncaptured),
        );
        if !changes.is_empty() {
            same.entry(changes).or_default().push(name.to_owned());
        }
    }
    same.into_iter()
        .map(|(changes, pods)| PodsDiff { pods, changes })
        .collect()
}

fn changes(before: &Ways, after: &Ways) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for (old, from) in before {
        for (new, to) in after.iter().filter(|(new, _)| *new != old) {
            let ranges = words::common(from, to);
            if !ranges.is_empty() {
                changes.push(Change {
                    ranges,
                    before: old.clone(),
                    after: new.clone(),
                });
            }
        }
    }
    changes.sort_unstable();
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const WORLD: &str = include_str!("../../testdata/explain/world.yaml");

    fn would(yaml: &str) -> Diff {
        let policy: EgressNATPolicy = serde_yaml_ng::from_str(&format!(
            "{{apiVersion: egressnat.io/v1alpha1, kind: EgressNATPolicy, {yaml}}}"
        ))
        .unwrap();
        let now = "2026-06-01T00:00:00Z".parse().unwrap();
        diff(&testing::snapshot(WORLD).world, &[policy], now)
    }

    #[test]
    fn a_new_policy_says_what_it_takes_from_whom() {
        let diff = would(
            "metadata: {name: extra}, spec: {priority: 150, selectors: [{podSelector: {matchLabels: {app: web}}}], \
             destinationCIDRs: [198.51.100.0/24, 203.0.113.0/25], egressSourceIP: 172.18.0.2}",
        );
        assert_eq!(
            diff.to_string(),
            "\
Policy extra would be new: it would capture packets of 1 pod.

Node worker, whose plan would be written anew
  becomes the gateway of extra, with 172.18.0.2
  Pod apps/web
    198.51.100.128/25: not captured -> extra, 172.18.0.2 by worker
    203.0.113.0/25: older, 192.0.2.2 with ports 20000-39999 by edge -> extra, 172.18.0.2 by worker
"
        );
        assert!(!diff.is_wrong());
    }

    #[test]
    fn a_policy_as_it_is_changes_nothing() {
        let diff = would(
            "metadata: {name: older}, spec: {selectors: [{podSelector: {matchLabels: {app: web}}}], \
             destinationCIDRs: [198.51.100.0/25, 203.0.113.0/24], egressSourceIP: 192.0.2.2, sourcePorts: 20000-39999}",
        );
        assert_eq!(diff.nodes, []);
        assert!(diff.to_string().ends_with("Nothing would change.\n"), "{diff}");
    }

    #[test]
    fn a_changed_policy_keeps_its_age() {
        // Both have priority 100: `older` keeps 203.0.113.0/24 against `newer` only by its age.
        let diff = would(
            "metadata: {name: older}, spec: {selectors: [{podSelector: {matchLabels: {app: web}}}], \
             destinationCIDRs: [203.0.113.0/24], egressSourceIP: 192.0.2.1}",
        );
        let changes: Vec<&Change> = diff
            .nodes
            .iter()
            .flat_map(|n| &n.pods)
            .flat_map(|p| &p.changes)
            .collect();
        assert_eq!(changes.len(), 1, "{diff}");
        assert_eq!(changes[0].after.as_ref().unwrap().policy, "older");
        let lines = diff.to_string();
        assert!(
            lines.contains(
                "203.0.113.0/24: older, 192.0.2.2 with ports 20000-39999 by edge -> older, 192.0.2.1 by edge"
            ),
            "{lines}"
        );
    }

    #[test]
    fn a_policy_that_would_not_work_says_why() {
        let diff = would(
            "metadata: {name: lost}, spec: {selectors: [{podSelector: {}}], egressSourceIP: 192.0.2.77}",
        );
        assert!(diff.is_wrong());
        assert!(
            diff.to_string()
                .contains("would not work: no node holds 192.0.2.77"),
            "{diff}"
        );
        assert!(
            diff.to_string().contains("not captured -> lost, by no gateway"),
            "{diff}"
        );
    }
}
