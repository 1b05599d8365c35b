//! egressnat-operator: makes one EgressPlan per node of all EgressNATPolicies.
//!
//! ```text
//! watches --> store (World) --differences--> planner, rollout, backlog (pure) --> apply: plans that differ
//!                                                                            \--> status: policy statuses that differ, Events
//! ```
//!
//! - [`watch`] turns each kind's events into changes, by [`convert`] and [`wire`]; [`store`] keeps them as a
//!   [`world::World`] of plain values. A policy's spec is parsed once, on the way in ([`valid`]).
//! - [`plan`] makes everything that follows from the world: no client, no clock, no order of events. Its planner
//!   keeps up with the store's [`difference`]s; [`backlog`] knows what of the consequences is not yet written.
//! - [`controller`] is the loop, and the only writer. It writes nothing before every watch has synced, nothing
//!   while another process leads ([`leader`]), and only what differs ([`apply`], [`mod@status`], [`events`]).
//! - [`announced`] remembers of which faults of their own pods have been told ([`plan::faults`]).
//!
//! # Decisions
//!
//! - **A spec that becomes invalid** leaves the last accepted one in force, for as long as this process lives.
//!   After a restart that one is not known any more; then the same pods are captured without a gateway, so
//!   that their packets meet `noGateway` (by default: are dropped) instead of leaving with an address that
//!   nobody chose. A spec that was never accepted does nothing. See [`world::PolicySpec`].
//! - **The order across nodes**: a node's wanted plan is written in steps, as the agents of the others report: see
//!   [`rollout`].
//! - **Policy ids** are read back from statuses and plans, and not given again soon: see [`plan::ids`].
//! - **A gateway that is not Ready** stays while no Ready node can take its place: its kernel may well work.
//! - **A node without a part in any policy** has a plan without cluster ranges, so that it is not written
//!   again whenever another node comes or goes.
//! - **Statuses wait** 300 ms after a plan, so that the agents' answers go into one patch; one that a new spec
//!   waits for is written at once. `Programmed` can be late by that much.
//! - **One object that cannot be read** is that object's trouble: policies and plans are read one by one
//!   (`DeserializeGuard`), so that the watch goes on.
//!
//! # Rights
//!
//! | where | group | resources | verbs | why |
//! |---|---|---|---|---|
//! | cluster | egressnat.io | egressnatpolicies | list, watch | what is planned from |
//! | cluster | egressnat.io | egressnatpolicies/status | patch | conditions, gateway, id |
//! | cluster | egressnat.io | egressplans | list, watch, create, patch, delete | server-side apply; deletion when the node is gone |
//! | cluster | | pods, nodes, namespaces | list, watch | selection, gateways, ranges |
//! | cluster | events.k8s.io | events | create, patch | Events on policies (in `default`) and on pods (in their namespaces) |
//! | cluster | networking.k8s.io | servicecidrs | list, watch | ranges that are never captured |
//! | `default` | discovery.k8s.io | endpointslices | list, watch | addresses of the API server |
//! | own namespace | coordination.k8s.io | leases | create, get, update | leader election |

pub mod address;
pub mod announced;
pub mod apply;
pub mod backlog;
pub mod choice;
pub mod cli;
pub mod condition;
pub mod contradiction;
pub mod controller;
pub mod convert;
pub mod difference;
pub mod election;
pub mod error;
pub mod events;
mod exhausted;
mod gated;
pub mod hash;
pub mod health;
pub mod hindered;
pub mod http;
pub mod intern;
pub mod leader;
pub mod logging;
pub mod metrics;
mod missing;
pub mod next_hop;
pub mod plan;
mod programmed;
pub mod ranges;
pub mod repaired;
pub mod rollout;
pub mod run;
pub mod schedule;
pub mod status;
pub mod store;
pub mod teardown;
#[cfg(test)]
mod testing;
pub mod valid;
pub mod watch;
pub mod wire;
pub mod world;
