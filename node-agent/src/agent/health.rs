//! What the probes answer.

use std::sync::{Arc, Mutex, PoisonError};

use super::Report;
use crate::error::AgentError;

/// Readiness, shared with the HTTP server.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum State {
    /// The plan is not known yet.
    #[default]
    Waiting,
    /// In force, with what hinders some traffic all the same, a line each.
    Ready(String),
    Failed(String),
}

impl Health {
    /// Takes note of the last try.
    pub fn synced(&self, result: &Result<Report, AgentError>) {
        let state = match result {
            Ok(report) => {
                let warnings = report.warnings.iter();
                State::Ready(warnings.map(|w| format!("{}: {w}\n", w.category())).collect())
            }
            Err(error) => State::Failed(format!("{}: {error}", error.category())),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// `Ok` when the kernel holds what the plan says, with what hinders some traffic, a line each; otherwise why not.
    pub fn ready(&self) -> Result<String, String> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Ready(warnings) => Ok(warnings.clone()),
            State::Waiting => Err("waiting for the plan of this node: is the operator running?".into()),
            State::Failed(why) => Err(why.clone()),
        }
    }
}
