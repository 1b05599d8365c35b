//! What a change did to the world, object by object.

use std::sync::Arc;

use egressnat_crds::selector::Labels;

use crate::world::{ExistingPlan, Node, Pod, Policy};

/// An object that is another than before. `None` before: it is new; `None` after: it is gone.
#[derive(Clone, Copy, Debug)]
pub enum Difference<'a> {
    /// A policy, by name.
    Policy(&'a str, Option<&'a Policy>, Option<&'a Policy>),
    /// A pod.
    Pod(Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>),
    /// A node.
    Node(Option<&'a Node>, Option<&'a Node>),
    /// The labels of a namespace, by name.
    Namespace(&'a str, Option<&'a Labels>, Option<&'a Labels>),
    /// Ranges of Services, or addresses of API servers.
    Cluster,
    /// A plan, by its node's name.
    Plan(&'a str, Option<&'a ExistingPlan>, Option<&'a ExistingPlan>),
}
