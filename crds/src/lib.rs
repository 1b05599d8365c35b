//! The API of egressnat, group `egressnat.io/v1alpha1`.
//!
//! [`EgressNATPolicy`] is what a user writes: which pods leave with which address. [`EgressPlan`] is what
//! the operator makes of all policies for one node, and the only contract between the operator and the
//! node agents: the operator owns its `spec`, the node's agent its `status`.

pub mod interval;
pub mod never;
pub mod plan;
pub mod policy;
pub mod ports;
pub mod selector;

pub use plan::{EgressPlan, EgressPlanSpec, EgressPlanStatus};
pub use policy::{EgressNATPolicy, EgressNATPolicySpec, EgressNATPolicyStatus};

/// API group of both kinds.
pub const GROUP: &str = "egressnat.io";

/// Field manager of the operator in server-side apply.
pub const OPERATOR_MANAGER: &str = "egressnat-operator";

/// Field manager of the node agents in server-side apply.
pub const AGENT_MANAGER: &str = "egressnat-agent";
