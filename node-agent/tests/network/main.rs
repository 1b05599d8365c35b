//! The kernel layer on a real kernel: tunnel, routes, rules, conntrack. Each test has a network namespace of
//! its own; other programs give the second opinion. Needs root.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod clash;
mod conntrack;
mod exits;
mod facts;
mod monitor;
mod netns;
mod oracle;
mod rtnl;
mod sample;
mod strays;
