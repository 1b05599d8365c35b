//! What another hand does to ours: it is noticed, put right with all else, and told.

use std::collections::BTreeSet;
use std::future::pending;

use egressnat_crds::plan::RepairedObject;

use super::{Datapath, Known, Report};
use crate::diff::{NftStep, ObservedTable, Touched, touched};
use crate::error::AgentError;
use crate::kernel::nft::{Ownership, TableMonitor};
use crate::kernel::observe_exits::rp_filter;
use crate::kernel::rtnl::{ForeignRoute, MonitorError, NodeLink, Observed, Stray};
use crate::model::{Desired, Link, Net, Sysctl};
use crate::owned::TUNNEL;

const LOOSE: &str = "2";

/// What we last left in the kernel.
pub(super) struct Held {
    net: Net,
    table: Option<ObservedTable>,
    loose: BTreeSet<Link>,
    /// The tunnel device's index.
    tunnel: Option<u32>,
    /// What is there instead, once that has been looked at.
    found: Option<(Net, Vec<Stray>)>,
}

impl From<Known> for Held {
    fn from(known: Known) -> Self {
        Self {
            tunnel: known.network.tunnel_link().map(|link| link.index),
            net: known.network.net,
            table: known.table,
            loose: known.loose,
            found: None,
        }
    }
}

impl Held {
    pub(super) fn net(&self) -> &Net {
        &self.net
    }

    pub(super) fn table(&self) -> Option<&ObservedTable> {
        self.table.as_ref()
    }
}

impl Datapath {
    /// It is not known any more whether the kernel holds what we left in it.
    pub(super) fn doubt(&mut self) {
        if let Some(known) = self.known.take() {
            self.held = Some(known.into());
        }
    }

    /// Keeps what is found for [`Datapath::touched`], before anything of it is changed. A route of another program in
    /// the place of one of ours is not in our way, but in for repair: what we put takes its place. So is our device
    /// where it has been renamed.
    pub(super) fn compare(&mut self, network: &mut Observed) -> Result<(), AgentError> {
        let Some(held) = &mut self.held else {
            return Ok(());
        };
        let has = |net: &Net, place: &ForeignRoute| {
            let mut routes = net.routes.iter();
            routes.any(|route| (route.table, route.to) == (place.table, place.to))
        };
        let Observed {
            net,
            foreign_routes,
            links,
            strays,
            ..
        } = network;
        let renamed = |link: &mut NodeLink| Some(link.index) == held.tunnel && link.name != TUNNEL;
        strays.extend(
            links
                .extract_if(.., renamed)
                .map(|NodeLink { index, name, .. }| Stray::Tunnel { index, name }),
        );
        foreign_routes.retain(|route| !has(&held.net, route) || has(net, route));
        // A device's settings come with it: those of one that we have yet to make nobody has touched.
        let found = Net {
            sysctls: self.rtnl.sysctls().observe(&held.net.sysctls)?,
            ..net.clone()
        };
        held.found = Some((found, strays.clone()));
        Ok(())
    }

    /// Reports what another hand has done since we last left the kernel as it should be.
    pub(super) fn touched(
        &mut self,
        desired: &Desired,
        known: &Known,
        report: &mut Report,
    ) -> Result<(), AgentError> {
        let Some(held) = self.held.take() else {
            return Ok(());
        };
        if let Some((found, strays)) = &held.found {
            report.touched = touched::net(&held.net, found, &desired.net);
            report.touched.extend(strays.iter().filter_map(touched_by));
        }
        let strict = self.strict(desired)?.into_iter();
        let touched = strict.filter(|link| held.loose.contains(link));
        report
            .touched
            .extend(touched.map(|link| Touched::new(RepairedObject::Sysctl, rp_filter(&link.name))));
        if let (Some(table), Some(wanted)) = (&held.table, &desired.ruleset) {
            let found = known
                .table
                .as_ref()
                .filter(|_| known.ownership != Ownership::Dormant);
            report.touched.extend(touched::table(table, found, wanted));
        }
        Ok(())
    }

    /// Takes over the table that a former process has left. In a transaction of its own: the kernel refuses a new base chain
    /// in one that changes the table's flags (EINVAL, `nf_tables_addchain`).
    pub(super) fn adopt(&mut self, known: &mut Known, report: &mut Report) -> Result<(), AgentError> {
        if known.ownership == Ownership::Orphan && self.nft.can_own() {
            self.nft.apply(&[NftStep::AddTable])?;
            known.ownership = self.nft.ownership()?;
            report.nft_steps += 1;
        }
        Ok(())
    }

    /// Whether a table that is there can be made right only by making it anew.
    pub(super) fn is_made_anew(&self, ownership: Ownership) -> bool {
        match ownership {
            Ownership::Dormant => true,
            Ownership::Unprotected => self.nft.can_own(),
            Ownership::Orphan => !self.nft.can_own(),
            Ownership::Absent | Ownership::Ours | Ownership::Other(_) => false,
        }
    }

    /// Whatever becomes of these settings is noticed.
    pub(super) fn watch_settings(&mut self, known: &Known) {
        let loose = known.loose.iter().map(|link| Sysctl {
            path: rp_filter(&link.name),
            value: LOOSE.into(),
        });
        let wanted = known.network.net.sysctls.iter().cloned().chain(loose).collect();
        let tunnel = known.network.tunnel_link().map(|link| link.index);
        let under = known.network.net.tunnel.as_ref();
        let uplinks = known.network.default_routes().map(|route| route.link);
        let links = tunnel
            .into_iter()
            .chain(known.loose.iter().map(|link| link.index))
            .chain(under.map(|tunnel| tunnel.underlay.index))
            .chain(uplinks);
        self.settings.watch(wanted, links.collect());
    }
}

impl Touched {
    /// Whether it is a part of the nft table: packets may have passed by without it.
    pub(super) fn is_of_table(&self) -> bool {
        use RepairedObject::{Chain, Element, Rule, Set, Table};
        matches!(self.object, Table | Chain | Rule | Set | Element)
    }
}

/// What somebody has put among ours. The device under another name is missed under its own.
fn touched_by(stray: &Stray) -> Option<Touched> {
    let object = match stray {
        Stray::Route(_) => RepairedObject::Route,
        Stray::Rule(_) => RepairedObject::IpRule,
        Stray::Neighbour(_) => RepairedObject::Neighbour,
        Stray::Tunnel { .. } => return None,
    };
    Some(Touched::new(object, stray))
}

/// Waits for a change of our table by another hand; for ever where nobody listens, since nobody can.
pub(super) async fn changed(monitor: &mut Option<TableMonitor>) -> Result<(), MonitorError> {
    match monitor {
        Some(monitor) => Ok(monitor.changed().await?),
        None => pending().await,
    }
}
