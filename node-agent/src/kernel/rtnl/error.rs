//! Why the network could not be read or written.

use std::io;

use nix::errno::Errno;

use crate::kernel::netlink::NetlinkError;
use crate::kernel::sysctl::SysctlError;
use crate::owned::TUNNEL;

/// Why the network could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No socket.
    #[error("failed to open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// A dump failed.
    #[error("failed to read the node's {what}: {source}")]
    Read {
        /// What was read.
        what: &'static str,
        /// Why.
        source: NetlinkError,
    },
    /// A change was refused.
    #[error("failed to {step}: {source}")]
    Refused {
        /// The change, as `ip` would take it.
        step: String,
        /// Why.
        source: NetlinkError,
    },
    /// The tunnel's name belongs to a device of another kind. It is not touched.
    #[error("failed to make the tunnel device: {TUNNEL} exists and is of kind {kind}")]
    NameTaken {
        /// Its kind.
        kind: String,
    },
    /// A change needs the tunnel device, which is not there.
    #[error("failed to {step}: there is no tunnel device")]
    NoTunnel {
        /// The change, as `ip` would take it.
        step: String,
    },
    /// A setting could not be read or written.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

impl NetError {
    /// One word for metrics and events.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Open(_) => "NetSocket",
            Self::Read { .. } => "NetRead",
            Self::Refused { source, .. } => match source.errno() {
                Some(Errno::EPERM | Errno::EACCES) => "NetForbidden",
                Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => "NetUnsupported",
                Some(Errno::EADDRINUSE) => "NetPortInUse",
                _ => "NetRefused",
            },
            Self::NameTaken { .. } => "NetNameTaken",
            Self::NoTunnel { .. } => "NetNoTunnel",
            Self::Sysctl(_) => "NetSysctl",
        }
    }
}
