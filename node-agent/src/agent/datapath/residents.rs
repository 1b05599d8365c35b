//! Pods that are gone from the plan: what they send keeps its verdict until their network is gone.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::future::pending;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use egressnat_crds::EgressPlanSpec;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::{Datapath, Report};
use crate::agent::file::{read, write};
use crate::agent::residents::Residents;
use crate::cli::GateFlags;
use crate::compile;
use crate::diff::{ObservedTable, nft};
use crate::error::AgentError;
use crate::kernel::rtnl::Whereabouts;
use crate::model::ElementKey;
use crate::owned::POD_LINKS;

const FILE: &str = "residents.json";

/// How often it is looked where those are that are gone from the plan. That a link goes is told besides.
const LOOK: Duration = Duration::from_secs(1);

/// Residents, and where a process that comes after this one finds them.
pub(super) struct Kept {
    residents: Residents,
    /// What the file says.
    written: Residents,
    file: Option<PathBuf>,
    /// The pods that are gone from the plan, by name.
    departed: BTreeSet<String>,
    /// When to look again.
    due: Option<Instant>,
    /// The links that a process before us has left in the table, until this one has looked for them.
    adopted: Option<BTreeSet<u32>>,
}

impl Kept {
    /// Those that a former process has left in a folder that a boot empties.
    pub(super) fn read(flags: &GateFlags) -> Self {
        let file = flags.enabled.then(|| flags.run.join(FILE));
        let residents: Residents = file.as_deref().map(read).unwrap_or_default();
        Self {
            written: residents.clone(),
            residents,
            file,
            departed: BTreeSet::new(),
            due: None,
            adopted: None,
        }
    }

    /// Takes over the links that a process before us has left in the table, if nobody has looked at it yet.
    pub(super) fn adopt(&mut self, table: Option<&ObservedTable>) {
        let links = table.and_then(|table| table.sets.get(POD_LINKS));
        self.adopted.get_or_insert_with(|| {
            let keys = links.into_iter().flat_map(|set| set.elements.keys());
            keys.filter_map(|key| match key {
                ElementKey::Link(link) => Some(*link),
                _ => None,
            })
            .collect()
        });
    }

    /// The links by which nothing comes in but what one selected pod sends.
    pub(super) fn own_links(&self) -> BTreeSet<u32> {
        let adopted = self.adopted.iter().flatten().copied();
        self.residents.own_links().into_iter().chain(adopted).collect()
    }

    /// Waits until it is time to look again; for ever where all are in the plan.
    pub(super) async fn is_due(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => pending().await,
        }
    }

    fn write(&mut self) {
        if self.residents != self.written {
            self.file.iter().for_each(|file| write(file, &self.residents));
            self.written = self.residents.clone();
        }
    }

    fn tell(&mut self) {
        let departed = self.residents.departed();
        for pod in departed.difference(&self.departed) {
            info!(
                pod,
                "is gone from the plan: its verdict stays until its network is gone"
            );
        }
        for pod in self.departed.difference(&departed) {
            info!(pod, "its addresses are released");
        }
        self.departed = departed;
    }
}

impl Datapath {
    /// These addresses are of the pod of this uid, whatever was said of them before.
    pub fn give(&mut self, uid: &str, addresses: &BTreeSet<IpAddr>) {
        self.kept.residents.give(uid, addresses);
    }

    /// The plan with the pods that are gone from it, but not from the node. What is about to be programmed is on the
    /// disk before.
    pub(super) async fn with_departed<'a>(
        &mut self,
        plan: &'a EgressPlanSpec,
        report: &mut Report,
    ) -> Result<Cow<'a, EgressPlanSpec>, AgentError> {
        self.kept.residents.note(plan, now());
        for (address, link) in self.kept.residents.to_find() {
            let found = match link {
                Some(link) if self.rtnl.has_link(link).await? => continue,
                Some(_) => Whereabouts::Nowhere,
                None => self.rtnl.whereabouts(address, &self.uplinks).await?,
            };
            self.kept.residents.found(address, found, now());
        }
        self.kept.write();
        self.kept.tell();
        report.departed = self.kept.departed.len();
        self.kept.due = (report.departed > 0).then(|| Instant::now() + LOOK);
        self.monitor.watch_pods(self.kept.residents.links());
        Ok(self.kept.residents.complete(plan))
    }

    /// Whether nothing is said of a source by the link that it comes in by: nobody wants it, or the network plugin reaches
    /// pods otherwise than they send.
    pub(super) fn sources_unchecked(&self) -> bool {
        self.unchecked || self.kept.residents.beyond().is_some()
    }

    /// Finds the links of pods that have come, while it is certain whose they are, and lets the rules know. Whether there
    /// have to be others.
    pub(super) async fn place(&mut self, report: &mut Report) -> Result<bool, AgentError> {
        let unchecked = self.sources_unchecked();
        for address in self.kept.residents.unplaced() {
            let found = self.rtnl.whereabouts(address, &self.uplinks).await?;
            self.kept.residents.found(address, found, now());
        }
        self.kept.write();
        self.kept.adopted = Some(BTreeSet::new());
        let (name, links) = compile::pod_links(&self.kept.own_links());
        let table = self.known.as_mut().and_then(|known| known.table.as_mut());
        if let Some(table) = table.filter(|table| table.sets.contains_key(&name)) {
            let sets = [(name, links)];
            let steps = nft::elements(&sets, table);
            self.nft.apply(&steps)?;
            report.nft_steps += steps.len();
            report.changed |= !steps.is_empty();
            table.sets.extend(sets);
        }
        let others = unchecked != self.sources_unchecked();
        if others && let Some(address) = self.kept.residents.beyond() {
            info!(
                %address,
                "is not reached by a link of a pod's own: where packets come in says nothing of who sent them, and is not \
                 looked at on this node"
            );
        }
        Ok(others)
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
