//! The world as the planner sees it: plain values, trimmed to what is used.
//!
//! [`World`] holds at most one value per object of the API server. It is filled by [`crate::store`] from
//! the watches and read by [`crate::plan`]; nothing here knows a client or a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use egressnat_crds::plan::{EgressPlanStatus, Family, NodeInterface};
use egressnat_crds::selector::Labels;
use egressnat_crds::{EgressNATPolicyStatus, EgressPlanSpec};
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;

use crate::valid::{InvalidSpec, ValidPolicy};

/// Everything that plans are made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// What the command line says of the cluster.
    pub config: ClusterConfig,
    /// Policies by name.
    pub policies: BTreeMap<String, Policy>,
    /// Pods by `namespace/name`.
    pub pods: BTreeMap<String, Arc<Pod>>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Labels of the namespaces, by name.
    pub namespaces: BTreeMap<String, Labels>,
    /// Service ranges, by the name of their ServiceCIDR.
    pub service_cidrs: BTreeMap<String, Vec<IpNet>>,
    /// Addresses of API servers, by the name of their EndpointSlice.
    pub api_servers: BTreeMap<String, BTreeSet<IpAddr>>,
    /// The plans that exist, by node name.
    pub plans: BTreeMap<String, ExistingPlan>,
}

/// Ranges that the API server does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Ranges inside the cluster, besides those that nodes, Services and the API server show.
    pub cluster_cidrs: Vec<IpNet>,
    /// Service ranges, for API servers without ServiceCIDR objects.
    pub service_cidrs: Vec<IpNet>,
    /// The default local egress, where the installation asks for it.
    pub masquerade: Option<MasqueradeConfig>,
    /// Pods start only when their node knows whether a policy selects them.
    pub start_gate: bool,
    /// What is left undone. Empty, except where a test wants to see what goes wrong then.
    pub unsafe_without: BTreeSet<Safeguard>,
}

/// Something without which packets may leave with a wrong address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Safeguard {
    /// Nodes follow one another, each when the agents of the others have reported.
    Order,
    /// The id of a policy that is gone is given to another only when no node can use it any more.
    Quarantine,
}

impl ClusterConfig {
    /// Whether a safeguard is in place.
    pub fn guards(&self, safeguard: Safeguard) -> bool {
        !self.unsafe_without.contains(&safeguard)
    }
}

/// What is asked of the masquerade of packets that no policy captures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MasqueradeConfig {
    /// Destinations to which packets keep their source, besides those in the cluster.
    pub except: Vec<IpNet>,
    /// Link-local destinations are masqueraded, too.
    pub link_local: bool,
}

/// An EgressNATPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its uid.
    pub uid: String,
    /// The generation last seen.
    pub generation: i64,
    /// When it was created: among equal priorities, the older policy wins.
    pub created: Timestamp,
    /// What is in force of its spec.
    pub spec: PolicySpec,
    /// Its status as it stands on the API server.
    pub status: EgressNATPolicyStatus,
}

/// What is in force of a policy's spec.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicySpec {
    /// The spec, as it is.
    Valid(ValidPolicy),
    /// The spec is invalid; the last accepted one stays in force. Known only to the process that saw it.
    Kept {
        /// The last accepted spec.
        last: ValidPolicy,
        /// The generation of that spec.
        generation: i64,
        /// What is wrong with the present one.
        error: InvalidSpec,
    },
    /// The spec is invalid, an earlier one was accepted, but this process never saw that one. The guard
    /// takes its place: the same pods, no gateway. Their packets meet `noGateway` instead of leaving with an
    /// address that nobody chose.
    Guarded {
        /// Selectors, destinations as far as they can be read, and no gateway.
        guard: ValidPolicy,
        /// What is wrong with the spec.
        error: InvalidSpec,
    },
    /// The spec is invalid and none was ever accepted: the policy does nothing.
    Refused(InvalidSpec),
}

/// A pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels, shared with other pods that have the same.
    pub labels: Arc<Labels>,
    /// The node it is bound to.
    pub node: Option<String>,
    /// Its addresses, sorted; none while it is pending.
    pub ips: Vec<IpAddr>,
    /// When it was created: an address claimed twice belongs to the newer pod.
    pub created: Timestamp,
    /// It uses its node's network: never captured.
    pub host_network: bool,
    /// It has ended (phase Succeeded or Failed): its addresses may already be another pod's.
    pub ended: bool,
    /// It is being deleted, and may still send.
    pub deleting: bool,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Its uid.
    pub uid: String,
    /// Its labels.
    pub labels: Labels,
    /// Its pod ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// Its addresses of type InternalIP, in the kubelet's order: the cluster's primary family first.
    pub internal_ips: Vec<IpAddr>,
    /// All its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Its condition Ready is True.
    pub ready: bool,
    /// Where among its taints [`STARTUP_TAINT`] is.
    pub startup_taint: Option<usize>,
}

/// The key of the taint by which a new node keeps pods away until its start gate is in place.
pub const STARTUP_TAINT: &str = "egressnat.io/agent-not-ready";

/// An EgressPlan as it stands on the API server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExistingPlan {
    /// Its uid.
    pub uid: String,
    /// The uid of the Node that owns it.
    pub owner: Option<String>,
    /// The generation of its spec.
    pub generation: i64,
    /// Its spec.
    pub spec: EgressPlanSpec,
    /// What the node's agent says.
    pub status: EgressPlanStatus,
}

impl World {
    /// The nodes that need [`STARTUP_TAINT`] no more, and where it is among their taints: their agents hold the present
    /// plan, and the start gate is in place where there is to be one.
    pub fn started(&self) -> impl Iterator<Item = (&str, usize)> {
        let tainted = self.nodes.iter().filter_map(|(name, node)| {
            let plan = self
                .plans
                .get(name)
                .filter(|plan| plan.owner.as_ref() == Some(&node.uid))?;
            Some((name.as_str(), node.startup_taint?, plan))
        });
        let wanted: &[&str] = match self.config.start_gate {
            true => &["Ready", "Gate"],
            false => &["Ready"],
        };
        let is_started = move |plan: &ExistingPlan| {
            let holds = |type_: &&str| {
                plan.status
                    .conditions
                    .iter()
                    .any(|c| c.type_ == **type_ && c.status == "True")
            };
            plan.status.observed_generation == Some(plan.generation) && wanted.iter().all(holds)
        };
        tainted
            .filter(move |(.., plan)| is_started(plan))
            .map(|(name, place, _)| (name, place))
    }

    /// The interfaces that a node's agent reports; empty while it has not.
    pub fn interfaces(&self, node: &str) -> &[NodeInterface] {
        self.plans.get(node).map_or(&[], |p| &p.status.interfaces)
    }

    /// The family of the tunnel: that of the first internal address of most nodes, IPv4 when undecided.
    pub fn underlay_family(&self) -> Family {
        let firsts = self.nodes.values().filter_map(|n| n.internal_ips.first());
        let (v4, v6): (Vec<&IpAddr>, Vec<&IpAddr>) = firsts.partition(|a| a.is_ipv4());
        if v6.len() > v4.len() {
            Family::IPv6
        } else {
            Family::IPv4
        }
    }
}

impl Policy {
    /// What of the policy is in force, if anything.
    pub fn in_force(&self) -> Option<&ValidPolicy> {
        match &self.spec {
            PolicySpec::Valid(p)
            | PolicySpec::Kept { last: p, .. }
            | PolicySpec::Guarded { guard: p, .. } => Some(p),
            PolicySpec::Refused(_) => None,
        }
    }

    /// The next state of the same object: an invalid spec leaves the last accepted one in force.
    pub fn after(self, previous: Option<&Self>) -> Self {
        let Some(previous) = previous.filter(|p| p.uid == self.uid) else {
            return self;
        };
        let error = match &self.spec {
            PolicySpec::Valid(_) => return self,
            PolicySpec::Kept { error, .. }
            | PolicySpec::Guarded { error, .. }
            | PolicySpec::Refused(error) => error.clone(),
        };
        let spec = match &previous.spec {
            PolicySpec::Valid(last) => PolicySpec::Kept {
                last: last.clone(),
                generation: previous.generation,
                error,
            },
            PolicySpec::Kept { last, generation, .. } => PolicySpec::Kept {
                last: last.clone(),
                generation: *generation,
                error,
            },
            PolicySpec::Guarded { .. } | PolicySpec::Refused(_) => return self,
        };
        Self { spec, ..self }
    }
}

impl Pod {
    /// Whether a policy can select it: it has a network of its own, and may send.
    pub fn eligible(&self) -> bool {
        !self.host_network && !self.ended
    }
}

impl Node {
    /// The address to which other nodes tunnel.
    pub fn underlay(&self, family: Family) -> Option<IpAddr> {
        self.internal_ips
            .iter()
            .copied()
            .find(|a| Family::from(*a) == family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::{GatewayChoice, GatewayEntry};
    use crate::testing;

    fn invalid(generation: i64, accepted_before: bool) -> Policy {
        let yaml = format!(
            "{{apiVersion: egressnat.io/v1alpha1, kind: EgressNATPolicy, \
              metadata: {{name: p, uid: p, generation: {generation}}}, \
              spec: {{selectors: [{{podSelector: {{}}}}], egressSourceIP: nonsense}}, \
              status: {{id: {}}}}}",
            if accepted_before { "7" } else { "null" }
        );
        testing::world(&yaml).policies.remove("p").unwrap()
    }

    #[test]
    fn the_last_accepted_spec_stays_in_force_through_any_number_of_invalid_ones() {
        let valid = testing::policy("p");
        let first = invalid(2, true).after(Some(&valid));
        let second = invalid(3, true).after(Some(&first));
        for (policy, seen) in [(&first, 2), (&second, 3)] {
            assert_eq!(policy.generation, seen);
            assert_eq!(policy.in_force(), valid.in_force());
            assert!(matches!(policy.spec, PolicySpec::Kept { generation: 1, .. }));
        }
        let corrected = testing::policy("p").after(Some(&second));
        assert!(matches!(corrected.spec, PolicySpec::Valid(_)));
    }

    #[test]
    fn another_policy_of_the_same_name_inherits_nothing() {
        let mut deleted = testing::policy("p");
        deleted.uid = "another".into();
        assert_eq!(invalid(1, false).after(Some(&deleted)).in_force(), None);
    }

    #[test]
    fn a_spec_that_was_in_force_before_this_process_is_guarded() {
        let policy = invalid(2, true).after(None);
        let guard = policy.in_force().unwrap();
        let nowhere = GatewayEntry::only(GatewayChoice::Nowhere);
        assert_eq!(guard.gateways, [nowhere]);
        assert_eq!(
            invalid(2, false).after(None).in_force(),
            None,
            "one that never was, is not"
        );
    }
}
