//! What others do to the sources of packets: a masquerade of ours is for nodes where nobody else has one.

use std::future::pending;
use std::io;

use egressnat_crds::EgressPlanSpec;

use super::Datapath;
use crate::error::AgentError;
use crate::kernel::nft::{ForeignNat, NatMonitor};
use crate::kernel::rtnl::MonitorError;

impl Datapath {
    /// Reads it where the plan asks for a masquerade, and from then on listens for changes.
    pub(super) fn foreign_nat(&mut self, plan: &EgressPlanSpec) -> Result<Option<ForeignNat>, AgentError> {
        if plan.masquerade.is_none() {
            self.nat_monitor = None;
            return Ok(None);
        }
        // It listens before the first look, so that no change is missed between.
        let mut monitor = match self.nat_monitor.take() {
            Some(monitor) => monitor,
            None => NatMonitor::open().map_err(MonitorError::from)?,
        };
        let nat = self.nft.foreign_nat()?;
        monitor.watch(&nat);
        self.nat_monitor = Some(monitor);
        Ok(Some(nat))
    }
}

/// Waits for a change; for ever where nobody listens.
pub(super) async fn changed(monitor: &mut Option<NatMonitor>) -> Result<(), MonitorError> {
    let changed: io::Result<()> = match monitor {
        Some(monitor) => monitor.changed().await,
        None => pending().await,
    };
    Ok(changed?)
}
