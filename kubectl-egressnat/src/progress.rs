//! How far a node is with what it has to do, by its EgressPlan.

use std::fmt;

use egressnat_crds::EgressPlanSpec;
use egressnat_operator::world::ExistingPlan;
use serde::Serialize;

/// How far a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state")]
pub enum Progress {
    /// It has no plan.
    NoPlan,
    /// Its plan does not yet say it.
    NotWritten,
    /// Its plan says it, but the agent has not yet reported that generation.
    Behind {
        /// The plan's generation.
        generation: i64,
        /// The generation that the kernel holds, as far as it is known.
        programmed: Option<i64>,
    },
    /// Its agent says why it cannot.
    Failed {
        /// The condition's reason.
        reason: String,
        /// The condition's message.
        message: String,
    },
    /// Its agent says that its kernel holds it.
    Programmed {
        /// The plan's generation.
        generation: i64,
    },
}

impl Progress {
    /// How far the node of this plan is with what `says` finds in a plan.
    pub fn of(plan: Option<&ExistingPlan>, says: impl FnOnce(&EgressPlanSpec) -> bool) -> Self {
        let Some(plan) = plan else {
            return Self::NoPlan;
        };
        if !says(&plan.spec) {
            return Self::NotWritten;
        }
        let generation = plan.generation;
        let programmed = plan.status.observed_generation;
        let ready = plan.status.conditions.iter().find(|c| c.type_ == "Ready");
        match ready {
            Some(c) if c.status == "True" && programmed == Some(generation) => {
                Self::Programmed { generation }
            }
            Some(c) if c.status == "False" => Self::Failed {
                reason: c.reason.clone(),
                message: c.message.clone(),
            },
            _ => Self::Behind {
                generation,
                programmed,
            },
        }
    }

    /// Whether there is nothing to wait for.
    pub fn is_programmed(&self) -> bool {
        matches!(self, Self::Programmed { .. })
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPlan => write!(f, "no EgressPlan: see that the operator runs"),
            Self::NotWritten => write!(
                f,
                "not yet in its EgressPlan: see that the gateway's agent has reported, and that the operator runs"
            ),
            Self::Behind {
                generation,
                programmed: Some(programmed),
            } => write!(
                f,
                "not yet programmed: at generation {programmed} of {generation}"
            ),
            Self::Behind { .. } => write!(f, "not yet programmed: see that the node's agent runs"),
            Self::Failed { reason, message } => write!(f, "failed, {reason}: {message}"),
            Self::Programmed { generation } => write!(f, "programmed (generation {generation})"),
        }
    }
}
