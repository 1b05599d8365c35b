//! The main loop: takes in what the watches say, plans, and writes what differs.
//!
//! One task owns the world, and nothing else writes. Until every watch has synced, and while another process
//! leads, it only listens.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::apply::{self, Writer};
use crate::error::{Error, chain};
use crate::events::{self, Events};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::plan::{Outcome, plan};
use crate::schedule::Schedule;
use crate::status;
use crate::store::{Change, Store};

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
            let tick = Instant::now() + SIGN_OF_LIFE;
            let next = if may_write {
                schedule.next().min(tick)
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
            changed |= self.store.apply(change);
        }
        if changed {
            schedule.changed(Instant::now());
        }
        self.health.set_synced(self.store.synced());
    }

    /// Does what is due.
    async fn work(&mut self, schedule: &mut Schedule) {
        let now = Instant::now();
        if !schedule.plan_due(now) && !schedule.status_due(now) {
            return;
        }
        let outcome = self.plan();
        let mut ok = self.write_plans(&outcome).await;
        if schedule.status_due(Instant::now()) || self.is_waited_for() {
            schedule.status_done();
            ok &= self.write_statuses(&outcome).await;
        } else {
            schedule.status_changed(Instant::now());
        }
        match ok {
            true => schedule.planned(Instant::now()),
            false => schedule.failed(Instant::now()),
        }
    }

    fn plan(&self) -> Outcome {
        let begun = std::time::Instant::now();
        let world = self.store.world();
        let outcome = plan(world);
        let took = begun.elapsed();
        self.metrics.planned(took);
        self.metrics.policies.set(count(world.policies.len()));
        self.metrics.plans.set(count(outcome.plans.len()));
        let selected = outcome.plans.values().map(|p| p.pods.len()).sum();
        self.metrics.pods_selected.set(count(selected));
        tracing::debug!(?took, plans = outcome.plans.len(), "planned");
        outcome
    }

    /// Whether a policy's spec is newer than its status: its user waits for an answer.
    fn is_waited_for(&self) -> bool {
        self.store.world().policies.values().any(|policy| {
            let conditions = &policy.status.conditions;
            conditions.is_empty()
                || conditions
                    .iter()
                    .any(|c| c.observed_generation != Some(policy.generation))
        })
    }

    /// Writes the plans that differ. Whether all went well.
    async fn write_plans(&mut self, outcome: &Outcome) -> bool {
        let mut ok = true;
        for wave in apply::due(self.store.world(), outcome) {
            let writer = &self.writer;
            let writes = wave.into_iter().map(|write| writer.plan(write));
            let mut results = futures::stream::iter(writes).buffer_unordered(IN_FLIGHT);
            while let Some(result) = results.next().await {
                self.health.alive();
                self.metrics.plan_written(result.is_ok());
                match result {
                    Ok(change) => {
                        self.store.apply(change);
                    }
                    Err(error) => {
                        self.report(&error);
                        ok = false;
                    }
                }
            }
        }
        ok
    }

    /// Writes the statuses that differ, and sends Events of what they say anew. Whether all went well.
    async fn write_statuses(&mut self, outcome: &Outcome) -> bool {
        let mut ok = true;
        for (name, status) in status::due(self.store.world(), outcome, Timestamp::now()) {
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
                    self.store.apply(change);
                    self.send_events(&name, &uid, notes).await;
                }
                Err(error) => {
                    self.report(&error);
                    ok = false;
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
