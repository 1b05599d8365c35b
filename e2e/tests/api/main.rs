//! The API server rung: a real etcd and API server on loopback with the chart installed by helm, and no
//! kubelet, controller or agent. What the cluster's API promises is tested here.

#![expect(
    clippy::unwrap_used,
    reason = "what a test needs and does not get ends the test"
)]

mod admission;
mod agent;
mod agent_identity;
mod cached_results;
mod chart;
mod cluster;
mod documentation;
mod gate;
mod kinds;
mod node;
mod operator;
mod operator_identity;
mod plugin;
mod pod_events;
mod repairs;
mod rights;
mod statuses;
mod support;
mod world;
