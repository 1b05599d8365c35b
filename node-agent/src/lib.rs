//! The node agent: renders the node's `EgressPlan` into the kernel.
//!
//! `plan + facts --compile--> desired --diff(observed)--> steps --kernel--> verify --> status`

pub mod agent;
pub mod cli;
pub mod compile;
pub mod diff;
pub mod error;
pub mod facts;
pub mod kernel;
pub mod model;
pub mod owned;
