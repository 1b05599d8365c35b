//! The tunnel device, its FDB and neighbours, routes and ip rules, by rtnetlink.

mod apply;
mod error;
mod link;
mod monitor;
mod neighbour;
mod observe;
mod observed;
mod route;
mod rule;
mod stray;
mod tc;
mod whereabouts;
mod wire;

pub use error::NetError;
pub use monitor::{Monitor, MonitorError};
pub use observed::{ForeignRoute, ForeignRule, NodeAddress, NodeLink, NodeRoute, Observed, Vxlan};
pub use stray::Stray;
pub use tc::TcHook;
pub use whereabouts::Whereabouts;

use egressnat_crds::plan::Family;

use self::wire::Wire;
use crate::kernel::sysctl::Sysctls;
use crate::owned::Numbers;

/// The node's network, to look at and to change.
pub struct Rtnl {
    wire: Wire,
    numbers: Numbers,
    sysctls: Sysctls,
}

impl Rtnl {
    /// Opens a socket in the calling thread's network namespace. Needs a tokio runtime.
    pub fn open(numbers: Numbers, sysctls: Sysctls) -> Result<Self, NetError> {
        Ok(Self {
            wire: Wire::open()?,
            numbers,
            sysctls,
        })
    }

    /// The numbers by which ours is told from others'.
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// The settings.
    pub fn sysctls(&self) -> &Sysctls {
        &self.sysctls
    }

    /// The families that the kernel has. Asked for another one it fails, or answers with something else.
    fn families(&self) -> &'static [Family] {
        match self.sysctls.has_ipv6() {
            true => &[Family::IPv4, Family::IPv6],
            false => &[Family::IPv4],
        }
    }
}
