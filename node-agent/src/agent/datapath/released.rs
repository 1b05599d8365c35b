//! What is remembered of connections that a policy has given up with their pod (`compile/released.rs`).
//!
//! We keep the time, and not the kernel, which has sets with timeouts: an element that went by itself could not be
//! told from one that another hand took, and the table would have to be kept for what nobody can see to be over.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Datapath;
use crate::compile;
use crate::diff::flows::Verdicts;
use crate::diff::{ObservedTable, nft};
use crate::error::AgentError;
use crate::facts::Released;
use crate::kernel::conntrack::Flow;
use crate::model::{ElementKey, Ruleset, Set};
use crate::owned::{RELEASED, RELEASED_TO};

/// With `tcp_retries2` at its default the kernel repeats what nobody acknowledges for 924 s.
const HOLD: Duration = Duration::from_secs(16 * 60);

/// Until when ends of connections are remembered.
#[derive(Debug, Default)]
pub(super) struct Releases {
    pods: BTreeMap<IpAddr, Instant>,
    servers: BTreeMap<IpAddr, Instant>,
}

impl Releases {
    pub(super) fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    fn add(
        &mut self,
        pods: impl IntoIterator<Item = IpAddr>,
        servers: impl IntoIterator<Item = IpAddr>,
        now: Instant,
    ) {
        let until = now + HOLD;
        self.pods.extend(pods.into_iter().map(|pod| (pod, until)));
        self.servers
            .extend(servers.into_iter().map(|server| (server, until)));
    }

    /// Takes over what a process before us has left in the table. When that was, nobody knows.
    fn adopt(&mut self, table: &ObservedTable, now: Instant) {
        let addresses = |of: &str| {
            let sets = ['4', '6'].map(|family| table.sets.get(&format!("{of}{family}")));
            let keys = sets.into_iter().flatten().flat_map(|set| set.elements.keys());
            let address = |key: &ElementKey| match key {
                ElementKey::Addr(address) => Some(*address),
                _ => None,
            };
            keys.filter_map(address).collect::<Vec<_>>()
        };
        self.add(addresses(RELEASED), addresses(RELEASED_TO), now);
    }

    /// Brings it in step before a plan is carried out: `table` is that of a process before us, if nobody has looked at it
    /// yet; with the plan, all goes.
    pub(super) fn settle(&mut self, table: Option<&ObservedTable>, stays: bool) {
        let now = Instant::now();
        if let Some(table) = table {
            self.adopt(table, now);
        }
        self.expire(now);
        if !stays {
            *self = Self::default();
        }
    }

    fn expire(&mut self, now: Instant) {
        self.pods.retain(|_, until| *until > now);
        self.servers.retain(|_, until| *until > now);
    }

    /// When the next is over.
    pub(super) fn next(&self) -> Option<Instant> {
        self.pods.values().chain(self.servers.values()).min().copied()
    }

    /// What the rules have to know.
    pub(super) fn ends(&self) -> Released {
        Released {
            pods: self.pods.keys().copied().collect(),
            servers: self.servers.keys().copied().collect(),
        }
    }

    /// The sets of the table.
    pub(super) fn sets(&self) -> [(String, Set); 4] {
        compile::released(&self.ends())
    }

    /// Puts what has come since a ruleset was compiled into it.
    pub(super) fn complete(&self, ruleset: Option<&mut Ruleset>) {
        if let Some(ruleset) = ruleset {
            self.fill(&mut ruleset.sets);
        }
    }

    /// Fills those of the sets that are there.
    pub(super) fn fill(&self, sets: &mut BTreeMap<String, Set>) {
        for (name, set) in self.sets() {
            if let Some(there) = sets.get_mut(&name) {
                *there = set;
            }
        }
    }
}

/// At the given time; never without one.
pub(super) async fn over(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

impl Datapath {
    /// Lets the rules know of those of these connections that a policy gives up, before conntrack forgets them: until
    /// then they live on as they were, so that there is no moment between.
    pub(super) fn release(
        &mut self,
        flows: &[Flow],
        verdicts: &Verdicts<'_>,
        table: Option<&mut ObservedTable>,
    ) -> Result<(), AgentError> {
        // At a gateway, connections of other nodes' pods carry the policy's mark too.
        let given_up = |flow: &&Flow| {
            let (pod, server) = (flow.original.source, flow.reply.source);
            self.unjudged.concerns(pod) && flow.may_go_on() && verdicts.gives_up(pod, server, flow.mark)
        };
        let (mut pods, mut servers) = (Vec::new(), Vec::new());
        for flow in flows.iter().filter(given_up) {
            pods.push(flow.original.source);
            // Nobody undoes a Service's address for what conntrack cannot place.
            servers.extend([flow.original.destination, flow.reply.source]);
        }
        let Some(table) = table.filter(|table| table.remembers() && !pods.is_empty()) else {
            return Ok(());
        };
        self.releases.add(pods, servers, Instant::now());
        self.nft.apply(&nft::elements(&self.releases.sets(), table))?;
        self.releases.fill(&mut table.sets);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Ruleset;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_remembered_is_over_after_its_time_and_renewed_by_another_release() {
        let began = Instant::now();
        let (pod, server, other) = (ip("10.0.0.1"), ip("192.0.2.1"), ip("2001:db8::1"));
        let mut releases = Releases::default();
        assert_eq!(releases.next(), None);
        releases.add([pod], [server], began);
        assert_eq!(releases.next(), Some(began + HOLD));
        let later = began + HOLD / 2;
        releases.add([pod], [other], later);
        releases.expire(began + HOLD);
        assert_eq!(
            releases.ends(),
            Released {
                pods: [pod].into(),
                servers: [other].into()
            }
        );
        assert_eq!(releases.next(), Some(later + HOLD));
        releases.expire(later + HOLD);
        assert!(releases.is_empty());
        assert_eq!(releases.next(), None);
    }

    #[test]
    fn a_fresh_process_takes_over_what_is_in_the_table() {
        let now = Instant::now();
        let mut releases = Releases::default();
        releases.add([ip("10.0.0.1"), ip("fd00::1")], [ip("192.0.2.1")], now);
        let ruleset = Ruleset {
            sets: releases.sets().into(),
            ..Ruleset::default()
        };
        let mut fresh = Releases::default();
        fresh.adopt(&ObservedTable::from(&ruleset), now);
        assert_eq!(fresh.ends(), releases.ends());
        fresh.settle(None, false);
        assert!(fresh.is_empty(), "it goes with the plan");
    }
}
