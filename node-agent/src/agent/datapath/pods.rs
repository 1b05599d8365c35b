//! The shortcut: where only pods have come and gone, the rest is not compiled and compared again.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::{Family, NodeExit};

use super::{Datapath, Known, Report};
use crate::compile;
use crate::diff::nft;
use crate::diff::pods::{diff, same_but_pods, without_pods};
use crate::error::AgentError;
use crate::facts::{Facts, Masquerader};
use crate::model::Desired;

/// What the kernel's state was compiled from, and came out of it.
pub(super) struct Basis {
    /// Without its pods: those are in the table.
    plan: EgressPlanSpec,
    facts: Facts,
    missing: BTreeSet<IpAddr>,
    stranded: BTreeSet<(String, Family)>,
    left_to: Vec<Masquerader>,
}

impl Basis {
    pub(super) fn new(plan: &EgressPlanSpec, facts: Facts, desired: &Desired) -> Self {
        Self {
            plan: without_pods(plan),
            facts,
            missing: desired.missing.clone(),
            stranded: desired.stranded.clone(),
            left_to: desired.left_to.clone(),
        }
    }
}

impl Known {
    /// Whether it was last brought in step with a plan that differs from this one in its pods at most.
    pub(super) fn is_of(&self, plan: &EgressPlanSpec) -> bool {
        let basis = self.basis.as_ref();
        basis.is_some_and(|basis| same_but_pods(&basis.plan, plan))
    }

    /// Says what of the plan this node cannot do.
    pub(super) fn tell(&self, report: &mut Report) {
        if let Some(basis) = &self.basis {
            report.missing.clone_from(&basis.missing);
            report.stranded.clone_from(&basis.stranded);
            report.left_to.clone_from(&basis.left_to);
            report.exits = basis.facts.exits.iter().map(NodeExit::from).collect();
            report.exits.sort();
        }
    }
}

impl Datapath {
    /// Brings the pods in step, if nothing else has changed; otherwise changes nothing and says so.
    pub(super) async fn pods_only(
        &mut self,
        plan: &EgressPlanSpec,
        facts: &Facts,
        known: &mut Known,
        report: &mut Report,
    ) -> Result<bool, AgentError> {
        let (Some(basis), Some(table)) = (&known.basis, &mut known.table) else {
            return Ok(false);
        };
        if basis.facts != *facts || !same_but_pods(&basis.plan, plan) {
            return Ok(false);
        }
        // A pod may need a route of its own.
        if compile::network(plan, &self.node, facts, &self.numbers)? != known.network.net {
            return Ok(false);
        }
        let Some(change) = diff(plan, table) else {
            return Ok(false);
        };
        self.unjudged.sources.extend(&change.sources);
        let mut steps = nft::elements(&self.releases.sets(), table);
        steps.extend_from_slice(&change.steps);
        self.nft.apply(&steps)?;
        report.nft_steps += steps.len();
        change.apply(table);
        self.releases.fill(&mut table.sets);
        report.flows += self.forget(plan, Some(table)).await?;
        Ok(true)
    }
}
