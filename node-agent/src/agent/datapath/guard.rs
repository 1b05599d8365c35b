//! What stands before a tunnel device that comes up.
//!
//! Rules know the device by its index, and a new one has another: until the ruleset has it, what peers send would come
//! out of it and go on with its pod's address, or with the node's where the CNI masquerades. Peers do send, to a node that
//! has booted and to one whose device somebody has removed (two packets in a repair, before there was this).

use std::collections::BTreeSet;

use super::{Datapath, Known, Report};
use crate::compile;
use crate::diff::{NftStep, ObservedChain};
use crate::error::AgentError;
use crate::kernel::nft::Ownership;
use crate::model::{Link, Rule, Tunnel};
use crate::owned::{Drop, GUARD, TUNNEL};

impl Datapath {
    /// Sees to it that a device that is not up yet comes up behind a guard. The ruleset's own transaction takes the
    /// guard away, since it does not know it.
    pub(super) async fn guard(
        &mut self,
        tunnel: &Tunnel,
        known: &mut Known,
        report: &mut Report,
    ) -> Result<(), AgentError> {
        let present = known.network.tunnel_link().zip(known.network.net.tunnel.as_ref());
        if present.is_some_and(|(link, present)| link.up && present.same_device(tunnel)) {
            return Ok(());
        }
        let link = Link {
            name: TUNNEL.into(),
            index: self.rtnl.prepare_tunnel(tunnel).await?,
        };
        let guard = compile::guard(&link);
        self.adopt(known, report)?;
        let mut steps = Vec::new();
        if known.ownership == Ownership::Absent {
            steps.push(NftStep::AddTable);
        }
        let table = known.table.get_or_insert_default();
        for counter in Drop::by_rule().map(Drop::counter).collect::<BTreeSet<_>>() {
            if table.counters.insert(counter.into(), (0, 0)).is_none() {
                steps.push(NftStep::AddCounter(counter.into()));
            }
        }
        let observed = ObservedChain {
            base: guard.base,
            tags: guard.rules.iter().map(Rule::tag).collect(),
        };
        match table.chains.insert(GUARD.into(), observed) {
            Some(_) => steps.push(NftStep::FlushChain(GUARD.into())),
            None => steps.push(NftStep::AddChain(GUARD.into(), guard.base)),
        }
        let rules = guard.rules.into_iter();
        steps.extend(rules.map(|rule| NftStep::AddRule(GUARD.into(), rule)));
        self.nft.apply(&steps)?;
        known.ownership = self.nft.ownership()?;
        report.nft_steps += steps.len();
        Ok(())
    }
}
