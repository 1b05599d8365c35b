//! The kernel: read and written by netlink and `/proc/sys`, never by another program.
//!
//! All of it works in the network namespace of the thread that opens it, which is the node's.

pub mod clash;
pub mod conntrack;
mod listener;
pub mod netlink;
pub mod nft;
pub mod observe_exits;
pub mod observe_facts;
pub mod rtnl;
pub mod settings;
pub mod sysctl;
