//! The node agent: renders the node's `EgressPlan` into the kernel.
//!
//! `plan + facts --compile--> desired --diff(observed)--> steps --kernel--> verify --> status`

pub mod diff;
pub mod facts;
pub mod model;
pub mod owned;
