//! The node agent: renders the node's `EgressPlan` into the kernel.
//!
//! `plan + facts --compile--> desired --diff(observed)--> steps --kernel--> verify --> status`
//!
//! Everything up to the steps is pure. Without the default feature `kernel` the crate is that part only.

#[cfg(feature = "kernel")]
pub mod agent;
#[cfg(feature = "kernel")]
pub mod cli;
#[cfg(feature = "cni")]
pub mod cni;
pub mod compile;
pub mod diff;
#[cfg(feature = "kernel")]
pub mod error;
#[cfg(feature = "kernel")]
pub mod exhaustion;
pub mod facts;
#[cfg(feature = "kernel")]
pub mod kernel;
pub mod model;
pub mod owned;
