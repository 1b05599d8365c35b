//! `kubectl egressnat`: what egressnat does with a pod's packets, and why.
//!
//! ```text
//! API server --cluster--> Snapshot --explain, status, plan, diff (pure)--> a value --> text, JSON or YAML
//! ```
//!
//! The answers come from the operator's own planner and the agent's own compiler, run here on what the API
//! server shows; what is in force comes from the EgressPlans and their status. Nothing is ever written.

pub mod cli;
pub mod cluster;
pub mod documents;
pub mod error;
pub mod explain;
pub mod lint;
pub mod migrate;
pub mod output;
pub mod place;
pub mod plan;
pub mod progress;
pub mod run;
pub mod services;
pub mod snapshot;
pub mod status;
#[cfg(test)]
mod testing;
pub mod watch;
pub mod words;
