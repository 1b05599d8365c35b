//! What other programs do on the node: to packets that come by, and with what is ours.

use std::future::pending;
use std::io;
use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::Family;

use super::{Datapath, Known};
use crate::error::AgentError;
use crate::kernel::clash::{self, Clash, Passages};
use crate::kernel::nft::{Foreign, ForeignMonitor};
use crate::kernel::rtnl::{MonitorError, Observed};

impl Datapath {
    /// Reads others' tables where the plan has something to do with packets, and from then on listens for changes.
    pub(super) fn foreign(&mut self, plan: &EgressPlanSpec) -> Result<Option<Foreign>, AgentError> {
        if !concerned(plan) {
            self.foreign_monitor = None;
            return Ok(None);
        }
        // It listens before the first look, so that no change is missed between.
        let mut monitor = match self.foreign_monitor.take() {
            Some(monitor) => monitor,
            None => ForeignMonitor::open().map_err(MonitorError::from)?,
        };
        let foreign = self.nft.foreign()?;
        monitor.watch(&foreign);
        self.foreign_monitor = Some(monitor);
        Ok(Some(foreign))
    }

    /// Reads what of links and settings is in the way of a plan. Pods that come and go are on their way for a moment: that
    /// they bypass the node is said when two looks at everything have found it.
    pub(super) async fn surroundings(
        &mut self,
        plan: &EgressPlanSpec,
        network: &Observed,
    ) -> Result<Vec<Clash>, AgentError> {
        let mut found = clash::surroundings(&mut self.rtnl, network, plan).await?;
        let astray = clash::astray(&mut self.rtnl, network, plan).await?;
        if self.verify {
            let again = |ip: &&IpAddr| self.suspects.contains(ip);
            self.astray = astray.keys().filter(again).copied().collect();
            self.suspects = astray.keys().copied().collect();
        }
        let mut sure = astray.iter().filter(|(ip, _)| self.astray.contains(ip));
        let count = sure.clone().count();
        found.extend(sure.next().map(|(_, example)| Clash::PodsBypass {
            count,
            example: example.clone(),
        }));
        Ok(found)
    }

    /// Looks for what is in our way: what keeps us from working is an error, the rest is remembered.
    pub(super) fn judge(&self, plan: &EgressPlanSpec, known: &mut Known) -> Result<(), AgentError> {
        let Some(families) = &known.checked else {
            known.warnings = Vec::new();
            return Ok(());
        };
        let mut clashes = clash::check(&known.network, &known.readings, &self.numbers, families);
        if let Some(foreign) = &known.foreign {
            let of =
                |family: &Family| clash::passages(&known.network, plan, &self.node, &self.numbers, *family);
            let passages: Passages = [Family::IPv4, Family::IPv6].map(|f| (f, of(&f))).into();
            clashes.extend(clash::marks(foreign, &passages, &self.numbers));
            clashes.extend(clash::drops(foreign, &passages));
        }
        clashes.extend(known.surroundings.iter().cloned());
        let blocks = if self.in_force {
            Clash::stops
        } else {
            Clash::blocks
        };
        let (blocking, rest): (Vec<_>, Vec<_>) = clashes.into_iter().partition(blocks);
        known.warnings = rest;
        match blocking.is_empty() {
            true => Ok(()),
            false => Err(AgentError::Clash(blocking)),
        }
    }
}

/// Whether what others do to packets matters to a plan.
pub(super) fn concerned(plan: &EgressPlanSpec) -> bool {
    plan.masquerade.is_some() || super::to_check(plan).is_some()
}

/// Waits for a change; for ever where nobody listens.
pub(super) async fn changed(monitor: &mut Option<ForeignMonitor>) -> Result<(), MonitorError> {
    let changed: io::Result<()> = match monitor {
        Some(monitor) => monitor.changed().await,
        None => pending().await,
    };
    Ok(changed?)
}
