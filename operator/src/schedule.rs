//! When the main loop does what: pauses that let events gather, and pauses after failures.

use std::time::Duration;

use tokio::time::Instant;

/// Quiet time after a change before plans are made: changes come in groups.
const QUIET: Duration = Duration::from_millis(10);
/// Longest time that a change waits for quiet. A pod may wait for its node's plan at the start gate, and where 20 pods start
/// in a second it is never quiet; what came while plans were written is in the next ones in any case.
const LONGEST_WAIT: Duration = Duration::from_millis(40);
/// Time from a plan to the policies' statuses: most agents have answered by then, and one patch tells what
/// would have taken two.
const STATUS_DELAY: Duration = Duration::from_millis(300);
/// Plans are made from scratch after this long, whatever the watches say.
const RECHECK: Duration = Duration::from_secs(300);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// When plans and statuses are due.
#[derive(Debug)]
pub struct Schedule {
    /// Plans have to be brought up to date, and what of them differs to be written.
    plan: Option<Instant>,
    /// Plans have to be made from scratch.
    anew: Instant,
    first_change: Option<Instant>,
    status: Option<Instant>,
    retry: Option<Duration>,
}

impl Schedule {
    /// Plans are due at once.
    pub fn new(now: Instant) -> Self {
        Self {
            plan: Some(now),
            anew: now,
            first_change: None,
            status: None,
            retry: None,
        }
    }

    /// The world has changed. After a failure this does not shorten the pause.
    pub fn changed(&mut self, now: Instant) {
        let first = *self.first_change.get_or_insert(now);
        let due = (now + QUIET).min(first + LONGEST_WAIT);
        if self.retry.is_none() {
            self.plan = Some(due);
        }
    }

    /// Plans were made from scratch.
    pub fn planned_anew(&mut self, now: Instant) {
        self.anew = now + RECHECK;
    }

    /// Plans are up to date and written.
    pub fn planned(&mut self) {
        self.first_change = None;
        self.retry = None;
        self.plan = None;
    }

    /// Something was not written: that is tried again after a pause that grows.
    pub fn failed(&mut self, now: Instant) {
        let pause = self.retry.map_or(FIRST_RETRY, |r| (r * 2).min(LONGEST_RETRY));
        self.first_change = None;
        self.retry = Some(pause);
        self.plan = Some(now + pause);
    }

    /// Statuses may have changed.
    pub fn status_changed(&mut self, now: Instant) {
        self.status.get_or_insert(now + STATUS_DELAY);
    }

    /// Statuses were written, or are not due.
    pub fn status_done(&mut self) {
        self.status = None;
    }

    /// Whether anything is due.
    pub fn is_due(&self, now: Instant) -> bool {
        self.next() <= now
    }

    /// Whether plans have to be made from scratch.
    pub fn anew_due(&self, now: Instant) -> bool {
        self.anew <= now
    }

    /// Whether statuses are due.
    pub fn status_due(&self, now: Instant) -> bool {
        self.status.is_some_and(|at| at <= now)
    }

    /// When the next thing is due.
    pub fn next(&self) -> Instant {
        let times = [self.plan, self.status].into_iter().flatten();
        times.fold(self.anew, Instant::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Nothing is due but plans from scratch, in a while.
    fn settled(now: Instant) -> Schedule {
        let mut schedule = Schedule::new(now);
        schedule.planned_anew(now);
        schedule.planned();
        schedule
    }

    #[test]
    fn changes_gather_but_do_not_wait_for_ever() {
        let start = Instant::now();
        let mut schedule = settled(start);
        let mut now = start;
        while now < start + LONGEST_WAIT * 5 {
            schedule.changed(now);
            assert_eq!(schedule.next(), (now + QUIET).min(start + LONGEST_WAIT));
            now += QUIET / 2;
        }
        assert!(schedule.is_due(start + LONGEST_WAIT));
        assert!(!schedule.is_due(start + LONGEST_WAIT - MS));
    }

    #[test]
    fn pauses_after_failures_grow_to_a_bound_and_changes_do_not_shorten_them() {
        let now = Instant::now();
        let mut schedule = settled(now);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            schedule.failed(now);
            schedule.changed(now);
            pauses.push(schedule.next() - now);
        }
        assert_eq!(pauses[0], FIRST_RETRY);
        assert_eq!(pauses[1], FIRST_RETRY * 2);
        assert_eq!(pauses[11], LONGEST_RETRY);
        schedule.planned();
        assert_eq!(schedule.next() - now, RECHECK);
    }

    #[test]
    fn statuses_wait_once_however_many_changes_come() {
        let now = Instant::now();
        let mut schedule = settled(now);
        schedule.status_changed(now);
        schedule.status_changed(now + STATUS_DELAY - MS);
        assert!(schedule.status_due(now + STATUS_DELAY));
        schedule.status_done();
        assert!(!schedule.status_due(now + RECHECK));
    }
}
