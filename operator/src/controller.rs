//! The main loop: takes in what the watches say, plans, and writes what differs.
//!
//! One task owns the world, and nothing else writes. Until every watch has synced, and while another process
//! leads, it only listens: what follows from the world is worked out once it may write.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::apply::Writer;
use crate::backlog::Backlog;
use crate::error::{Error, chain};
use crate::events::{self, Events};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::schedule::Schedule;
use crate::status;
use crate::store::{Change, Store};
use crate::{hindered, repaired};

/// Longest sleep, so that the loop is seen to live.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// Requests in flight.
const IN_FLIGHT: usize = 16;
/// Changes taken in at once.
const AT_ONCE: usize = 1024;

/// The main loop and all it needs.
pub struct Controller {
    /// The world.
    pub store: Store,
    /// What follows from it, while this process writes.
    pub backlog: Option<Backlog>,
    /// What the watches say.
    pub changes: mpsc::Receiver<Change>,
    /// Whether this process leads.
    pub leads: watch::Receiver<bool>,
    /// Writes.
    pub writer: Writer,
    /// Sends Events.
    pub events: Events,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Health.
    pub health: Arc<Health>,
}

impl Controller {
    /// Runs until `stop` is cancelled or the watches have ended.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Error> {
        let mut schedule = Schedule::new(Instant::now());
        let mut changes = Vec::with_capacity(AT_ONCE);
        loop {
            self.health.alive();
            let leads = *self.leads.borrow_and_update();
            self.metrics.leader.set(i64::from(leads));
            let may_write = leads && self.store.synced();
            if !may_write && self.backlog.take().is_some() {
                schedule = Schedule::new(Instant::now());
            }
            let tick = Instant::now() + SIGN_OF_LIFE;
            let next = if may_write {
                let next = schedule.next().min(tick);
                self.events.next_on_nodes().map_or(next, |look| next.min(look))
            } else {
                tick
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Ok(()) = self.leads.changed() => {}
                () = sleep_until(next) => if may_write {
                    // A write that is given up half way is made again by the next leader.
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = self.work(&mut schedule) => {}
                    }
                },
                n = self.changes.recv_many(&mut changes, AT_ONCE) => {
                    if n == 0 {
                        return Err(Error::TaskEnded("every watch"));
                    }
                    self.take_in(&mut changes, &mut schedule);
                }
            }
        }
    }

    fn take_in(&mut self, changes: &mut Vec<Change>, schedule: &mut Schedule) {
        let mut changed = false;
        for change in changes.drain(..) {
            changed |= self.apply(change);
        }
        if changed {
            self.events.world_changed();
            schedule.changed(Instant::now());
        }
        self.health.set_synced(self.store.synced());
    }

    /// Takes in one change. Whether the world is now another.
    fn apply(&mut self, change: Change) -> bool {
        match &mut self.backlog {
            Some(backlog) => self
                .store
                .apply_noting(change, |difference| backlog.note(difference)),
            None => self.store.apply(change),
        }
    }

    /// Does what is due.
    async fn work(&mut self, schedule: &mut Schedule) {
        if schedule.is_due(Instant::now()) {
            self.write(schedule).await;
        }
        self.send_events_on_pods().await;
        self.send_events_on_nodes().await;
    }

    /// Writes what is due.
    async fn write(&mut self, schedule: &mut Schedule) {
        let now = Instant::now();
        if schedule.anew_due(now) {
            self.backlog = None;
            schedule.planned_anew(now);
        }
        self.catch_up();
        let mut ok = self.write_plans().await;
        ok &= self.remove_taints().await;
        if schedule.status_due(Instant::now()) || self.is_waited_for() {
            schedule.status_done();
            ok &= self.write_statuses().await;
        }
        let backlog = self.catch_up();
        if ok && !backlog.policies().is_empty() {
            schedule.status_changed(Instant::now());
        }
        // What was written may ask for more.
        match ok && !backlog.has_plans() {
            true => schedule.planned(),
            false => schedule.failed(Instant::now()),
        }
    }

    /// Brings what follows from the world up to date.
    fn catch_up(&mut self) -> &mut Backlog {
        let begun = std::time::Instant::now();
        let world = self.store.world();
        let backlog = match self.backlog.take() {
            None => Backlog::new(world),
            Some(backlog) if backlog.is_current() => return self.backlog.insert(backlog),
            Some(mut backlog) => {
                backlog.catch_up(world);
                backlog
            }
        };
        let took = begun.elapsed();
        self.metrics.planned(took);
        self.metrics.policies.set(count(world.policies.len()));
        self.metrics.plans.set(count(world.nodes.len()));
        self.metrics
            .pods_selected
            .set(count(backlog.planner().captured()));
        tracing::debug!(?took, "planned");
        self.backlog.insert(backlog)
    }

    /// Whether a policy's spec is newer than its status: its user waits for an answer.
    fn is_waited_for(&self) -> bool {
        let policies = &self.store.world().policies;
        let touched = self.backlog.iter().flat_map(Backlog::policies);
        touched.filter_map(|name| policies.get(name)).any(|policy| {
            let conditions = &policy.status.conditions;
            conditions.is_empty()
                || conditions
                    .iter()
                    .any(|c| c.observed_generation != Some(policy.generation))
        })
    }

    /// Writes the plans that differ. Whether all went well.
    async fn write_plans(&mut self) -> bool {
        let mut ok = true;
        for wave in self.backlog.as_ref().map(Backlog::waves).unwrap_or_default() {
            let mut in_flight = FuturesUnordered::new();
            for node in wave {
                let world = self.store.world();
                // Each plan is made when its turn comes: all of them together would take much memory.
                let write = self.backlog.as_mut().and_then(|b| b.write(&node, world));
                let writer = self.writer.clone();
                in_flight.extend(write.map(|write| async move { writer.plan(write).await }));
                if in_flight.len() == IN_FLIGHT {
                    ok &= self.plan_written(in_flight.next().await);
                }
            }
            while !in_flight.is_empty() {
                ok &= self.plan_written(in_flight.next().await);
            }
        }
        ok
    }

    /// Takes in what became of a plan's write. Whether that is good news.
    fn plan_written(&mut self, result: Option<Result<Change, Error>>) -> bool {
        let Some(result) = result else { return true };
        self.health.alive();
        self.metrics.plan_written(result.is_ok());
        match result {
            Ok(change) => {
                self.apply(change);
                true
            }
            Err(error) => {
                self.report(&error);
                false
            }
        }
    }

    /// Opens the nodes whose start gate is in place by now. Whether all went well.
    async fn remove_taints(&mut self) -> bool {
        let started = self.store.world().started();
        let started: Vec<_> = started.map(|(node, place)| (node.to_owned(), place)).collect();
        let mut ok = true;
        for (node, place) in started {
            let removed = self.writer.remove_taint(&node, place).await;
            self.health.alive();
            match removed {
                Ok(change) => {
                    tracing::info!(node, "the node's agent is ready: its start-up taint is gone");
                    self.apply(change);
                }
                Err(error) => {
                    self.report(&error);
                    ok = false;
                }
            }
        }
        ok
    }

    /// Writes the statuses that differ, and sends Events of what they say anew. Whether all went well.
    async fn write_statuses(&mut self) -> bool {
        // Whether a plan is written shows in the statuses.
        let policies = self.catch_up().take_policies();
        let Some(backlog) = &self.backlog else { return true };
        let due = status::due(&policies, self.store.world(), backlog, Timestamp::now());
        let mut ok = true;
        for (name, status) in due {
            let Some(policy) = self.store.world().policies.get(&name) else {
                continue;
            };
            let uid = policy.uid.clone();
            let notes = events::notes(&policy.status.conditions, &status.conditions);
            let written = self.writer.status(&name, &uid, &status).await;
            self.health.alive();
            self.metrics.status_written(written.is_ok());
            match written {
                Ok(change) => {
                    self.apply(change);
                    self.send_events(&name, &uid, notes).await;
                }
                Err(error) => {
                    self.report(&error);
                    ok = false;
                    self.backlog.iter_mut().for_each(|b| b.put_back(name.clone()));
                }
            }
        }
        ok
    }

    /// An Event that is lost is not sent again: the condition says the same.
    async fn send_events(&self, policy: &str, uid: &str, notes: Vec<events::Note>) {
        for note in notes {
            tracing::info!(policy, condition = %note.condition, reason = note.reason, message = note.message);
            if let Err(error) = self.events.send(policy, uid, note).await {
                self.report(&error);
            }
        }
    }

    /// Sends Events on pods that do not get what a policy promises them, for a reason of their own.
    async fn send_events_on_pods(&mut self) {
        let Some(backlog) = self.backlog.as_ref().filter(|backlog| backlog.is_current()) else {
            return;
        };
        let faults = || backlog.planner().faults(self.store.world());
        let failed = self.events.send_on_pods(Instant::now(), faults).await;
        self.health.alive();
        failed.iter().for_each(|error| self.report(error));
    }

    /// Sends Events on nodes where agents have repaired something, or find something in the way.
    async fn send_events_on_nodes(&mut self) {
        let repairs = || repaired::latest(self.store.world(), Timestamp::now());
        let mut failed = self.events.send_repairs(Instant::now(), repairs).await;
        let hindrances = || hindered::all(self.store.world());
        failed.extend(self.events.send_hindrances(Instant::now(), hindrances).await);
        self.health.alive();
        failed.iter().for_each(|error| self.report(error));
    }

    fn report(&self, error: &Error) {
        self.metrics.failed(error.category());
        tracing::warn!(
            category = error.category(),
            error = chain(error),
            "will be tried again"
        );
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
