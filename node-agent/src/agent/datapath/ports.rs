//! The look at the ports that policies give: whether any were lacking, and to whom.

use std::time::Instant;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::ExhaustedPorts;

use super::Datapath;
use crate::error::AgentError;
use crate::exhaustion::{Census, Exhaustion, Outside, Ranges};
use crate::kernel::conntrack::{Filter, Flow, Layer4};

/// How much longer than a census took nobody makes another: it reads every connection.
const REST: u32 = 20;

/// The ports that policies give at this gateway, and who lacks some.
#[derive(Default)]
pub(super) struct Ports {
    ranges: Ranges,
    exhaustion: Exhaustion,
    rest_until: Option<Instant>,
}

impl Ports {
    pub(super) fn dropped(&self) -> u64 {
        self.exhaustion.dropped()
    }

    pub(super) fn lacking(&self) -> Vec<ExhaustedPorts> {
        self.exhaustion.lacking()
    }
}

impl Datapath {
    /// Looks whether connections were refused since the last look, and for want of which policy's ports. Says
    /// whether [`Report::exhausted`](super::Report) has changed.
    pub async fn look_at_ports(&mut self) -> Result<bool, AgentError> {
        if self.ports.ranges.is_empty() {
            return Ok(false);
        }
        let before = self.ports.lacking();
        let refused = self.conntrack.refused().await?;
        let now = Instant::now();
        let rested = self.ports.rest_until.is_none_or(|until| until <= now);
        if self.ports.exhaustion.has_grown(refused) && rested {
            let mut census = Census::new(&self.ports.ranges);
            let count = |flow: &Flow| {
                if let Some(connection) = outside(flow) {
                    census.count(connection);
                }
            };
            self.conntrack.for_each(Filter::default(), count).await?;
            self.ports.exhaustion.note(refused, &census, now);
            self.ports.rest_until = Some(Instant::now() + now.elapsed() * REST);
        }
        self.ports.exhaustion.forget(&self.ports.ranges, now);
        Ok(self.ports.lacking() != before)
    }

    /// The ports of another plan. What conntrack refused before there were any is nobody's.
    pub(super) async fn set_ports(&mut self, plan: &EgressPlanSpec) -> Result<(), AgentError> {
        let ranges = Ranges::of(plan);
        if ranges == self.ports.ranges {
            return Ok(());
        }
        let first = self.ports.ranges.is_empty();
        self.ports.ranges = ranges;
        if first {
            let refused = self.conntrack.refused().await?;
            self.ports.exhaustion.start(refused);
        }
        self.ports.exhaustion.forget(&self.ports.ranges, Instant::now());
        Ok(())
    }
}

fn outside(flow: &Flow) -> Option<Outside> {
    let (address, port) = flow.source_seen();
    let destination_port = match flow.reply.layer4 {
        Layer4::Ports { source, .. } => Some(source),
        Layer4::Icmp { .. } | Layer4::Alone => None,
    };
    Some(Outside {
        protocol: flow.protocol,
        source: (address, port?),
        destination: (flow.reply.source, destination_port),
    })
}
