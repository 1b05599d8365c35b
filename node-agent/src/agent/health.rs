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
    Ready,
    Failed(String),
}

impl Health {
    /// Takes note of the last try.
    pub fn synced(&self, result: &Result<Report, AgentError>) {
        let state = match result {
            Ok(_) => State::Ready,
            Err(error) => State::Failed(format!("{}: {error}", error.category())),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// `Ok` when the kernel holds what the plan says, otherwise why not.
    pub fn ready(&self) -> Result<(), String> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Ready => Ok(()),
            State::Waiting => Err("waiting for the plan of this node: is the operator running?".into()),
            State::Failed(why) => Err(why.clone()),
        }
    }
}
