//! `plan`: what a node has to do, as its EgressPlan says it and as its kernel takes it; and what other
//! policies would change.

pub mod diff;
mod diff_text;
pub mod node;
