//! The reference model: what the API's text says becomes of a packet, slowly and obviously, against what the
//! planner says, what the compiled rules do, and what the kernel does.
//!
//! ```text
//!              ┌─ expected: the model ──────────────────────────────────────────────> verdict
//! random world ┼─ planner ─> plans ─ planned: read by hand ─────────────────────────> verdict
//!              ├─ planner ─> plans ─ compiler ─> rules ─ journey: one packet's way ─> verdict
//!              └─ planner ─> plans ─ agents ─> kernel ─ outside: a real packet ─────> whom the outside sees
//! ```
//!
//! All verdicts of one world must be the same. A world on which they are not is shrunk and printed as a file that
//! can be kept in `testdata/worlds`, where [`worlds`] finds it. `PROPTEST_CASES` sets the number of worlds.

#![expect(
    clippy::unwrap_used,
    reason = "what a test needs and does not get ends the test"
)]

#[path = "../kernel/agent.rs"]
#[expect(dead_code, reason = "shared with the kernel rung, which asks more of it")]
mod agent;

mod expected;
mod gateway;
mod generate;
mod history;
mod host;
mod journey;
mod outside;
mod planned;
mod policy_seed;
mod probes;
mod properties;
mod ruleset;
mod selector;
mod world;
mod worlds;
