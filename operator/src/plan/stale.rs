//! What a difference may make another: the least that is sure to be enough.
//!
//! What the operator writes comes back as a difference, and so does every word of an agent: neither may cost more
//! than a look at the node and at the policies that it concerns.

use std::collections::BTreeSet;

use egressnat_crds::plan::NodeInterface;

use crate::world::{ExistingPlan, Node, Policy};

/// What may be another since the planner last caught up.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stale {
    /// Everything.
    pub all: bool,
    /// What is the same for all nodes; everything, if it is another.
    pub shared: bool,
    /// The namespaces whose labels are others.
    pub namespaces: BTreeSet<String>,
    /// The nodes whose pods are others.
    pub nodes: BTreeSet<String>,
    /// The nodes of which the API server has another plan, or of which the agent says something else.
    pub plans: BTreeSet<String>,
    /// The policies that are others, in whatever.
    pub policies: BTreeSet<String>,
}

impl Stale {
    /// A node is another. Whether it is Ready matters only to the choice of gateways; its taint, to no plan.
    pub fn node(&mut self, before: Option<&Node>, after: Option<&Node>) {
        let as_ready = |node: &Node| Node {
            ready: true,
            startup_taint: None,
            ..node.clone()
        };
        match before.map(as_ready) == after.map(as_ready) {
            true => self.shared = true,
            false => self.all = true,
        }
    }

    /// A namespace's labels are others.
    pub fn namespace(&mut self, name: &str) {
        self.namespaces.insert(name.to_owned());
    }

    /// A policy is another. Most of its status is what the operator said of it; ids and gateways are read again.
    pub fn policy(&mut self, name: &str, before: Option<&Policy>, after: Option<&Policy>) {
        self.policies.insert(name.to_owned());
        self.shared |= before.map(read) != after.map(read);
    }

    /// A plan of the API server is another.
    pub fn plan(
        &mut self,
        name: &str,
        before: Option<&ExistingPlan>,
        after: Option<&ExistingPlan>,
        mentions_others: bool,
    ) {
        fn interfaces(plan: Option<&ExistingPlan>) -> &[NodeInterface] {
            plan.map_or(&[], |plan| &plan.status.interfaces)
        }
        self.plans.insert(name.to_owned());
        self.shared |= mentions_others || interfaces(before) != interfaces(after);
    }
}

/// What is read of a policy.
fn read(policy: &Policy) -> impl PartialEq + use<'_> {
    let gateways = policy.status.gateways.iter();
    let gateways: Vec<_> = gateways.map(|g| (&g.node, &g.key, g.id)).collect();
    (
        &policy.uid,
        policy.created,
        &policy.spec,
        policy.status.id,
        gateways,
    )
}
