//! Connections that do not keep their verdict are forgotten by conntrack.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::interval::Interval;

use super::{Datapath, Report};
use crate::diff::flows::{Concerned, Verdicts};
use crate::diff::{self, ObservedTable};
use crate::error::AgentError;
use crate::kernel::conntrack::{Filter, Flow};
use crate::model::{Desired, Ruleset};
use crate::owned::{CT_MARK_MASK, ct_mark};

/// What it costs to be told of a connection, in buckets of the kernel's hash table: each question walks all of them,
/// however little it asks for. Measured: 40 ns a bucket, 10 ms for 262,144; some 2.6 us a connection.
const ENTRY: u64 = 64;

/// How large conntrack's table is where that cannot be read: as many connections as make one look at all as dear as 16
/// questions.
const UNKNOWN: Size = Size {
    entries: 15,
    buckets: ENTRY,
};

/// How large conntrack's table is.
#[derive(Clone, Copy)]
struct Size {
    /// Connections of this network namespace.
    entries: u64,
    /// Of the hash table, which all namespaces share.
    buckets: u64,
}

impl Datapath {
    /// Takes in which connections the change to this ruleset concerns.
    pub(super) fn concern(
        &mut self,
        plan: &EgressPlanSpec,
        ruleset: Option<&Ruleset>,
        table: Option<&ObservedTable>,
    ) {
        self.unjudged.merge(diff::flows::concerned(ruleset, table));
        if std::mem::take(&mut self.judge_all) {
            self.unjudged.merge(diff::flows::everything(plan, ruleset, table));
        }
    }

    /// Before anything else goes: connections that have the pod's address for the tunnel's sake.
    pub(super) async fn leave_tunnel(
        &mut self,
        plan: &EgressPlanSpec,
        desired: &mut Desired,
        table: Option<&mut ObservedTable>,
        report: &mut Report,
    ) -> Result<(), AgentError> {
        let Some(table) = table else {
            return Ok(());
        };
        let (ids, steps) = diff::flows::leave_tunnel(desired.ruleset.as_ref(), table);
        if !steps.is_empty() {
            self.nft.apply(&steps)?;
            report.nft_steps += steps.len();
        }
        let verdicts = Verdicts::new(plan);
        for id in ids {
            self.forget_policy(id, &verdicts, Some(table)).await?;
        }
        self.releases.complete(desired.ruleset.as_mut());
        Ok(())
    }

    /// Deletes the connections whose verdict has changed, so that their next packet is judged anew.
    pub(super) async fn forget(
        &mut self,
        plan: &EgressPlanSpec,
        mut table: Option<&mut ObservedTable>,
    ) -> Result<usize, AgentError> {
        if self.unjudged.is_empty() {
            return Ok(0);
        }
        let verdicts = Verdicts::new(plan);
        for id in self.unjudged.ids.clone() {
            self.forget_policy(id, &verdicts, table.as_deref_mut()).await?;
        }
        let unjudged = self.unjudged.clone();
        // The destination after DNAT is where replies come from.
        let stale = |flow: &Flow| {
            let (source, destination) = (flow.original.source, flow.reply.source);
            let (seen, port) = flow.source_seen();
            let in_vain = !flow.is_source_translated() && !flow.is_answered();
            unjudged.concerns(source) && verdicts.contradicts(source, destination, flow.mark)
                || unjudged.mistranslated(flow.mark, seen, port)
                || in_vain && unjudged.unmasqueraded(source)
        };
        let mut deleted = 0;
        for filter in filters(&unjudged, self.size()) {
            let flows = self.conntrack.flows(filter, stale).await?;
            self.release(&flows, &verdicts, table.as_deref_mut())?;
            self.conntrack.delete(&flows).await?;
            deleted += flows.len();
        }
        self.unjudged = Concerned::default();
        Ok(deleted)
    }

    fn size(&self) -> Size {
        let read = |name: &str| {
            let value = self
                .rtnl
                .sysctls()
                .read(&format!("netfilter/nf_conntrack_{name}"));
            value.ok().flatten()?.parse().ok()
        };
        match (read("count"), read("buckets")) {
            (Some(entries), Some(buckets)) => Size { entries, buckets },
            _ => UNKNOWN,
        }
    }

    /// Deletes all connections of a policy.
    async fn forget_policy(
        &mut self,
        id: u16,
        verdicts: &Verdicts<'_>,
        table: Option<&mut ObservedTable>,
    ) -> Result<(), AgentError> {
        if self.unjudged.has_sources() {
            let unjudged = &self.unjudged;
            let own = |flow: &Flow| unjudged.concerns(flow.original.source);
            let flows = self.conntrack.flows(by_policy(id), own).await?;
            self.release(&flows, verdicts, table)?;
        }
        Ok(self.conntrack.delete_by_mark(ct_mark(id), CT_MARK_MASK).await?)
    }
}

fn by_policy(id: u16) -> Filter {
    Filter {
        source: None,
        mark: Some((ct_mark(id), CT_MARK_MASK)),
    }
}

/// What conntrack is asked for: a few sources and policies one by one, or all by one look where that is less work.
fn filters(unjudged: &Concerned, size: Size) -> Vec<Filter> {
    let single = |range: &Interval| (range.first() == range.last()).then(|| range.first());
    let (masqueraded, wide): (Vec<_>, Vec<_>) =
        unjudged.masqueraded.iter().map(single).partition(Option::is_some);
    let masqueraded = masqueraded.into_iter().flatten();
    let sources: BTreeSet<IpAddr> = unjudged.sources.iter().copied().chain(masqueraded).collect();
    let questions = (sources.len() + unjudged.translations.len()) as u64;
    let by_all = size.buckets.saturating_add(size.entries.saturating_mul(ENTRY));
    if unjudged.all_but.is_some() || !wide.is_empty() || questions.saturating_mul(size.buckets) > by_all {
        return vec![Filter::default()];
    }
    let by_source = sources.iter().map(|source| Filter {
        source: Some(*source),
        mark: None,
    });
    let by_policy = unjudged.translations.keys().map(|id| by_policy(*id));
    by_source.chain(by_policy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_look_at_all_is_taken_where_it_is_less_work_than_many_questions() {
        let asked = |sources: u8, entries: u64, buckets: u64| {
            let sources = (1..=sources).map(|n| IpAddr::from([10, 0, 0, n]));
            let unjudged = Concerned {
                sources: sources.collect(),
                ..Concerned::default()
            };
            filters(&unjudged, Size { entries, buckets }).len()
        };
        assert_eq!(asked(2, 100, 262_144), 1, "few connections in a large table");
        assert_eq!(asked(2, 4_095, 262_144), 1);
        assert_eq!(asked(2, 4_096, 262_144), 2);
        assert_eq!(asked(2, 100, 1_024), 2, "a small table");
        assert_eq!(asked(1, 0, 262_144), 1);
        assert_eq!(asked(17, 60_000, 65_536), 17);
        assert_eq!(asked(80, 60_000, 65_536), 1);
        let unknown = |sources| asked(sources, UNKNOWN.entries, UNKNOWN.buckets);
        assert_eq!((unknown(16), unknown(17)), (16, 1));
    }
}
