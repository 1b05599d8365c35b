//! Pods that do not get what a policy that selects them promises, for a reason of their own.
//!
//! What is the policy's trouble, or its gateway's, is said by the policy's conditions. This is said by an Event on
//! the pod, whose owner may not see policies.

use std::fmt;
use std::net::IpAddr;

use super::gateway::{Gateway, list};
use super::pods::Pods;
use super::select::Candidates;
use super::share::{SelectedPod, Share};
use super::shared::Shared;
use crate::hash::{fnv1a, mix};
use crate::world::{Pod, World};

/// Why a pod does not get what it might be thought to get: the reason of an Event on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodReason {
    /// Another pod has the address by now.
    AddressTakenOver,
    /// The gateway has no address of any family that the pod has.
    NoFamilyServed,
    /// The pod uses the network of its node.
    OnHostNetwork,
    /// The pod started without passing the start gate, when a policy selected it already.
    StartedUngated,
}

/// A pod that does not get what a policy promises.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault<'a> {
    /// Why.
    pub reason: PodReason,
    /// The pod.
    pub pod: &'a Pod,
    /// The first policy, in order of precedence, that it does not get.
    policy: &'a str,
    /// The addresses concerned.
    ips: Vec<IpAddr>,
    /// Who has them, or who cannot serve them.
    other: String,
}

impl Fault<'_> {
    /// The same fault of the same pod has the same number.
    pub fn number(&self) -> u64 {
        mix(fnv1a(self.pod.uid.bytes()) ^ self.reason as u64)
    }
}

impl fmt::Display for PodReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What is wrong, and what to do about it.
impl fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (policy, other, ips) = (self.policy, &self.other, list(&self.ips));
        match self.reason {
            PodReason::AddressTakenOver => write!(
                f,
                "pod {other} has {ips} by now: packets from there count as that pod's, and EgressNATPolicy {policy} does \
                 not apply to this one's"
            ),
            PodReason::NoFamilyServed => write!(
                f,
                "EgressNATPolicy {policy} selects the pod, but its gateway {other} has no address of the family of \
                 {ips} to send with"
            ),
            PodReason::OnHostNetwork => write!(
                f,
                "EgressNATPolicy {policy} selects the pod, but it uses the network of its node {other} (hostNetwork), \
                 and its packets keep that node's address"
            ),
            PodReason::StartedUngated => write!(
                f,
                "the pod started on {other} without passing the start gate, so that its first packets may have left with \
                 that node's address; now EgressNATPolicy {policy} applies"
            ),
        }
    }
}

/// The faults of all pods, those of a reason together. Pods that are being deleted are left in peace.
pub(super) fn of<'a>(
    world: &'a World,
    shared: &'a Shared,
    pods: &'a Pods,
    shares: impl Iterator<Item = &'a Share>,
) -> Vec<Fault<'a>> {
    let at_fault = shares.flat_map(|share| {
        share
            .at_fault
            .iter()
            .map(move |place| (share, &share.pods[*place]))
    });
    let live = at_fault.filter(|(_, selected)| !selected.pod.deleting);
    let of_selected = live.flat_map(|(share, selected)| {
        let taken = taken_over(selected, shared, pods);
        taken.into_iter().chain(unserved(share, selected, shared))
    });
    let mut faults: Vec<Fault> = of_selected
        .chain(on_host_network(world, shared, pods))
        .chain(ungated(world, shared))
        .collect();
    faults.sort_by_key(|fault| fault.reason);
    faults
}

/// Which of a node's pods [`of`] has to look at: a look at all pods of a large cluster holds the main loop up.
pub(super) fn places(share: &Share, shared: &Shared) -> Vec<usize> {
    let pods = share.pods.iter().enumerate();
    let at_fault = pods.filter(|(_, pod)| !pod.lost.is_empty() || unserved(share, pod, shared).is_some());
    at_fault.map(|(place, _)| place).collect()
}

fn taken_over<'a>(selected: &'a SelectedPod, shared: &'a Shared, pods: &Pods) -> Option<Fault<'a>> {
    let owner = pods.owner(*selected.lost.first()?)?;
    Some(Fault {
        reason: PodReason::AddressTakenOver,
        pod: &selected.pod,
        policy: &shared.in_force.policy_of(*selected.flat.used.first()?).name,
        ips: selected.lost.clone(),
        other: format!("{}/{}", owner.namespace, owner.name),
    })
}

/// Some of the pod's destinations are of a gateway that serves none of its families.
fn unserved<'a>(share: &Share, selected: &'a SelectedPod, shared: &'a Shared) -> Option<Fault<'a>> {
    let mut gateways = selected.flat.slots.iter().filter_map(|slot| {
        let gateway = shared.in_force.gateway_of(*slot, share.zone.as_deref())?;
        Some((slot, gateway))
    });
    let serves =
        |gateway: &Gateway, ip: IpAddr| gateway.addresses.iter().any(|a| a.is_ipv4() == ip.is_ipv4());
    // A pod that is still without an address may get one that is served.
    selected.ips().next()?;
    let (slot, gateway) = gateways.find(|(_, gateway)| !selected.ips().any(|ip| serves(gateway, ip)))?;
    Some(Fault {
        reason: PodReason::NoFamilyServed,
        pod: &selected.pod,
        policy: &shared.in_force.policy_of(*slot).name,
        ips: selected.ips().collect(),
        other: gateway.node.clone(),
    })
}

fn on_host_network<'a>(
    world: &'a World,
    shared: &'a Shared,
    pods: &'a Pods,
) -> impl Iterator<Item = Fault<'a>> {
    let mut candidates = Candidates::default();
    let live = pods.on_host().filter(|(_, pod)| !pod.deleting);
    live.filter_map(move |(name, pod)| {
        let node = world.nodes.get(name)?;
        let slots = candidates.slots(pod, node, &shared.in_force, world);
        Some(Fault {
            reason: PodReason::OnHostNetwork,
            pod,
            policy: &shared.in_force.policy_of(*slots.first()?).name,
            ips: Vec::new(),
            other: name.to_owned(),
        })
    })
}

/// What the agents have found. Pods that are older than the policy were not its own when they started.
fn ungated<'a>(world: &'a World, shared: &'a Shared) -> impl Iterator<Item = Fault<'a>> {
    let mut candidates = Candidates::default();
    let named = world.plans.iter().flat_map(|(node, plan)| {
        let names = plan.status.ungated.iter();
        names.map(move |name| (node.as_str(), name))
    });
    named.filter_map(move |(name, pod)| {
        let pod = world.pods.get(pod).filter(|pod| !pod.deleting)?;
        let is_here = pod.node.as_deref() == Some(name);
        let node = world.nodes.get(name).filter(|_| is_here)?;
        let slots = candidates.slots(pod, node, &shared.in_force, world);
        let mut policies = slots
            .iter()
            .map(|slot| shared.in_force.policy_of(*slot).name.as_str());
        let policy = policies.find(|policy| world.policies[*policy].created < pod.created)?;
        Some(Fault {
            reason: PodReason::StartedUngated,
            pod,
            policy,
            ips: Vec::new(),
            other: name.to_owned(),
        })
    })
}

#[cfg(test)]
mod tests {
    use crate::plan::Planner;
    use crate::testing;
    use crate::world::ExistingPlan;

    const WORLD: &str = r#"
kind: Node
metadata: {name: edge, uid: edge}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: egressnat.io/v1alpha1
kind: EgressNATPolicy
metadata: {name: all, uid: all, generation: 1}
spec: {selectors: [{podSelector: {matchLabels: {app: web}}}], egressSourceIP: 192.0.2.1}
---
kind: Pod
metadata: {namespace: apps, name: good, uid: good, labels: {app: web}, creationTimestamp: "2026-01-02T00:00:00Z"}
spec: {nodeName: edge}
status: {phase: Running, podIPs: [{ip: 10.0.0.5}, {ip: "fd00::5"}]}
---
kind: Pod
metadata: {namespace: apps, name: other, uid: other, labels: LABELS, creationTimestamp: "2026-01-01T00:00:00Z", deletionTimestamp: DELETED}
spec: {nodeName: edge, hostNetwork: HOST}
status: {phase: PHASE, podIPs: [IPS]}
"#;

    /// A pod: its labels, whether it is on the host's network, its phase, its addresses, whether it is being deleted.
    struct Other(&'static str, bool, &'static str, &'static str, bool);

    fn faults(other: Other) -> Vec<String> {
        let Other(app, host, phase, ips, deleted) = other;
        let deleted = if deleted { "'2026-01-03T00:00:00Z'" } else { "null" };
        let world = testing::world(
            &WORLD
                .replace("LABELS", &format!("{{app: {app}}}"))
                .replace("HOST", &host.to_string())
                .replace("PHASE", phase)
                .replace("IPS", ips)
                .replace("DELETED", deleted),
        );
        let planner = Planner::new(&world);
        let faults = planner.faults(&world);
        assert!(faults.iter().all(|fault| fault.pod.name == "other"));
        faults
            .iter()
            .map(|fault| format!("{}: {fault}", fault.reason))
            .collect()
    }

    #[test]
    fn a_pod_that_passed_no_gate_is_told_so_unless_it_is_older_than_its_policy() {
        for (created, told) in [("2026-01-02", true), ("2025-12-31", false)] {
            let mut world = testing::world(
                &WORLD
                    .replace(
                        "name: all, uid: all",
                        "name: all, uid: all, creationTimestamp: '2026-01-01T00:00:00Z'",
                    )
                    .replace("2026-01-02T00:00:00Z", &format!("{created}T00:00:00Z"))
                    .replace("LABELS", "{app: none}")
                    .replace("DELETED", "null")
                    .replace("HOST", "false")
                    .replace("PHASE", "Running")
                    .replace("IPS", ""),
            );
            let mut plan = ExistingPlan::default();
            plan.status.ungated = vec!["apps/good".into(), "apps/other".into(), "apps/gone".into()];
            world.plans.insert("edge".into(), plan);
            let planner = Planner::new(&world);
            let faults = planner.faults(&world);
            let texts: Vec<String> = faults.iter().map(|f| format!("{} {f}", f.pod.name)).collect();
            assert_eq!(texts.len(), usize::from(told), "{created}: {texts:?}");
            let text = "good the pod started on edge without passing the start gate";
            assert!(texts.iter().all(|t| t.starts_with(text)), "{texts:?}");
        }
    }

    #[test]
    fn a_fault_is_the_pods_own_and_says_why() {
        for (other, says) in [
            (Other("web", false, "Running", "{ip: 10.0.0.6}", false), None),
            (
                Other("web", true, "Running", "{ip: 192.0.2.1}", false),
                Some(
                    "OnHostNetwork: EgressNATPolicy all selects the pod, but it uses the network of its node edge",
                ),
            ),
            (
                Other("web", false, "Running", "{ip: 10.0.0.5}", false),
                Some(
                    "AddressTakenOver: pod apps/good has 10.0.0.5 by now: packets from there count as that pod's",
                ),
            ),
            (
                Other("web", false, "Running", "{ip: 'fd00::6'}", false),
                Some(
                    "NoFamilyServed: EgressNATPolicy all selects the pod, but its gateway edge has no address of the \
                      family of fd00::6",
                ),
            ),
            // One family is enough, and a pod that is still without an address may get one of it.
            (
                Other("web", false, "Running", "{ip: 'fd00::6'}, {ip: 10.0.0.6}", false),
                None,
            ),
            (Other("web", false, "Pending", "", false), None),
            // No policy, no promise; one that goes away needs no advice.
            (Other("none", true, "Running", "{ip: 192.0.2.1}", false), None),
            (Other("none", false, "Running", "{ip: 10.0.0.5}", false), None),
            (Other("web", true, "Succeeded", "{ip: 192.0.2.1}", false), None),
            (Other("web", true, "Running", "{ip: 192.0.2.1}", true), None),
            (Other("web", false, "Running", "{ip: 10.0.0.5}", true), None),
        ] {
            let found = faults(other);
            assert_eq!(found.len(), usize::from(says.is_some()), "{found:?} {says:?}");
            assert!(
                found
                    .iter()
                    .all(|fault| fault.starts_with(says.unwrap_or_default())),
                "{found:?}"
            );
        }
    }
}
