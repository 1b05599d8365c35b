//! What can go wrong in the agent.

use std::net::SocketAddr;

use crate::compile::CompileError;
use crate::kernel::clash::{Clash, ReadingsError};
use crate::kernel::conntrack::ConntrackError;
use crate::kernel::nft::NftError;
use crate::kernel::rtnl::{MonitorError, NetError};
use crate::kernel::sysctl::SysctlError;

/// Any failure of the agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No way to the API server.
    #[error("failed to configure the Kubernetes client: {0}")]
    Client(#[source] kube::Error),
    /// The plan's status could not be written.
    #[error("failed to write the plan's status: {0}")]
    Status(#[source] kube::Error),
    /// The watch of the plan ended, which it never does.
    #[error("the watch of the plan has ended")]
    WatchEnded,
    /// The probes' and metrics' address is taken.
    #[error("failed to listen on {address}: {source}; set --http-address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The start gate's folders or socket.
    #[error("failed to open the start gate: {0}")]
    Gate(#[source] std::io::Error),
    /// Signals cannot be handled.
    #[error("failed to handle signals: {0}")]
    Signal(#[source] std::io::Error),
    /// The plan does not fit this node.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Something else on the node uses what is ours. Nothing was changed.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Clash(Vec<Clash>),
    /// nftables.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Links, neighbours, routes, rules.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Settings of the node.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// What others hold could not be read.
    #[error(transparent)]
    Readings(#[from] ReadingsError),
    /// Changes of the node's network are no longer told.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// Connections.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    /// What the kernel shows after the change is not what was asked of it.
    #[error("the kernel does not hold what was written: {0}")]
    Verify(String),
}

impl AgentError {
    /// The error's category: metric label and reason of the plan's condition.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Client(_) | Self::Status(_) | Self::WatchEnded => "ApiServer",
            Self::Listen { .. } | Self::Gate(_) | Self::Signal(_) => "Process",
            Self::Compile(error) => error.category(),
            Self::Clash(clashes) => clashes.first().map_or("Clash", Clash::category),
            Self::Nft(error) => error.category(),
            Self::Net(error) => error.category(),
            Self::Sysctl(_) => "Sysctl",
            Self::Readings(_) => "Readings",
            Self::Monitor(_) => "Monitor",
            Self::Conntrack(error) => error.category(),
            Self::Verify(_) => "Verify",
        }
    }
}
