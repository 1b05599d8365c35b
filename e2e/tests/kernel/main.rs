//! The kernel rung: the agent's datapath in the kernel of bare namespaces, judged by what the outside sees.
//!
//! Each test has a topology of its own, and takes IPv4 and IPv6 by the same code. A test of absence first
//! shows that its probe sees presence.

mod agent;
mod lab;
mod plan;
mod programs;
mod sender;
mod snapshot;

mod api_client;
mod bulk;
mod clash;
mod cluster_traffic;
mod coexistence;
mod connections;
mod denials;
mod departed;
mod errors;
mod exits;
mod families;
mod fuzz;
mod lifecycle;
mod masquerade;
mod masquerade_refused;
mod no_gateway;
mod on_change;
mod others;
mod ports;
mod protocols;
mod released;
mod repair;
mod scale;
mod spoofed_pods;
mod transitions;
mod tunnel_input;
mod unplaced;
mod way;
