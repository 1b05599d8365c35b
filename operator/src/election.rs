//! The rules of leader election, without a clock or a client.
//!
//! As in client-go, a lease counts as dead when *this* process has seen it unchanged for its whole duration,
//! by its own monotonic clock: the clocks of two machines are never compared. A holder that could not renew in
//! time has lost, before anybody else may take over. The libraries at hand break one of these rules: they
//! compare clocks, or go on as leaders while the API server is out of reach.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;

/// The Lease's name.
pub const LEASE_NAME: &str = "egressnat-operator";

/// How a Lease is held.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// The Lease's namespace.
    pub namespace: String,
    /// This process, among all that may want the Lease.
    pub identity: String,
    /// How long the Lease lives unrenewed.
    pub duration: Duration,
    /// How long the holder tries to renew it before it gives up: less than `duration`.
    pub renew_deadline: Duration,
    /// Pause between two attempts: less than `renew_deadline`.
    pub retry_period: Duration,
}

/// What to do about the Lease that was read.
#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    /// There is none: create it.
    Create(Lease),
    /// It is ours, or nobody's: replace it. It carries the resourceVersion that was read, so that of two
    /// processes that do so one fails.
    Replace(Lease),
    /// Another process holds it.
    Wait,
}

/// What one process knows of the Lease.
#[derive(Debug)]
pub struct Election {
    config: LeaseConfig,
    seen: Option<Seen>,
    renewed: Option<Instant>,
}

/// The Lease as last read, and since when its spec has been what it is.
#[derive(Debug)]
struct Seen {
    lease: Lease,
    since: Instant,
}

impl Election {
    /// Knows nothing yet.
    pub fn new(config: LeaseConfig) -> Self {
        Self {
            config,
            seen: None,
            renewed: None,
        }
    }

    /// What to do, `lease` being what was read at `now`; `time` goes into the Lease, for people.
    pub fn decide(&mut self, lease: Option<Lease>, now: Instant, time: Timestamp) -> Move {
        let Some(lease) = lease else {
            return Move::Create(self.ours(None, time));
        };
        self.see(lease.clone(), now);
        let holder = holder(&lease);
        if holder.is_none() || holder == Some(self.config.identity.as_str()) || self.is_dead(now) {
            Move::Replace(self.ours(Some(lease), time))
        } else {
            Move::Wait
        }
    }

    /// The Lease was written by an attempt that began at `begun`. It counts from there: it may have been
    /// written long before the answer came.
    pub fn won(&mut self, lease: Lease, begun: Instant) {
        self.see(lease, begun);
        self.renewed = Some(begun);
    }

    /// How long an attempt that begins at `begun` may take: not so long that there is no time for another, by another
    /// connection, should this one's have been lost.
    pub fn patience(&self, begun: Instant) -> Instant {
        let half = begun + self.config.renew_deadline / 2;
        half.min(self.deadline(begun))
    }

    /// Until when renewals may fail.
    pub fn deadline(&self, begun: Instant) -> Instant {
        self.renewed.unwrap_or(begun) + self.config.renew_deadline
    }

    /// When to try again; `None` when the Lease was held and is lost.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let next = now + self.config.retry_period;
        match self.renewed {
            None => Some(next),
            Some(_) if self.is_lost(now) => None,
            Some(_) => Some(next.min(self.deadline(now))),
        }
    }

    /// Whether the Lease was held and another process has it, or could have it before long.
    pub fn is_lost(&self, now: Instant) -> bool {
        let holder = self.seen.as_ref().and_then(|s| holder(&s.lease));
        self.renewed.is_some()
            && (now >= self.deadline(now) || holder.is_some_and(|h| h != self.config.identity))
    }

    /// Whether the Lease is held.
    pub fn leads(&self, now: Instant) -> bool {
        self.renewed.is_some() && !self.is_lost(now)
    }

    /// The Lease given up, so that another process need not wait for its end. `None` when it is not ours.
    pub fn release(&self, now: Instant, time: Timestamp) -> Option<Lease> {
        let mut lease = self.seen.as_ref().filter(|_| self.leads(now))?.lease.clone();
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = None;
        spec.renew_time = Some(MicroTime(time));
        Some(lease)
    }

    fn see(&mut self, lease: Lease, now: Instant) {
        let unchanged = self.seen.as_ref().filter(|s| s.lease.spec == lease.spec);
        let since = unchanged.map_or(now, |s| s.since);
        self.seen = Some(Seen { lease, since });
    }

    /// Whether the Lease has been unchanged for longer than it lives.
    fn is_dead(&self, now: Instant) -> bool {
        self.seen.as_ref().is_some_and(|seen| {
            let seconds = seen.lease.spec.as_ref().and_then(|s| s.lease_duration_seconds);
            let life = Duration::from_secs(seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0));
            now.duration_since(seen.since) > life
        })
    }

    /// The Lease as ours, in place of `old`.
    fn ours(&self, old: Option<Lease>, time: Timestamp) -> Lease {
        let mut lease = old.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(LEASE_NAME.into()),
                namespace: Some(self.config.namespace.clone()),
                ..ObjectMeta::default()
            },
            ..Lease::default()
        });
        let old = lease.spec.take().unwrap_or_default();
        let same = old.holder_identity.as_deref() == Some(self.config.identity.as_str());
        let transitions = old.lease_transitions.unwrap_or(0);
        let seconds = self.config.duration.as_secs().max(1);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.config.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            acquire_time: old.acquire_time.filter(|_| same).or(Some(MicroTime(time))),
            renew_time: Some(MicroTime(time)),
            lease_transitions: Some(transitions.saturating_add(i32::from(!same))),
            ..LeaseSpec::default()
        });
        lease
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    let spec = lease.spec.as_ref()?;
    spec.holder_identity.as_deref().filter(|h| !h.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const DURATION: u64 = 15;
    const RENEW_DEADLINE: u64 = 10;
    const RETRY_PERIOD: u64 = 2;

    /// A Lease on a server that keeps to resourceVersions, and a clock.
    struct World {
        start: Instant,
        seconds: u64,
        lease: Option<Lease>,
        version: u64,
    }

    fn election(identity: &str) -> Election {
        Election::new(LeaseConfig {
            namespace: "default".into(),
            identity: identity.into(),
            duration: Duration::from_secs(DURATION),
            renew_deadline: Duration::from_secs(RENEW_DEADLINE),
            retry_period: Duration::from_secs(RETRY_PERIOD),
        })
    }

    impl World {
        fn new() -> Self {
            Self {
                start: Instant::now(),
                seconds: 0,
                lease: None,
                version: 0,
            }
        }

        fn now(&self) -> Instant {
            self.start + Duration::from_secs(self.seconds)
        }

        fn time(&self) -> Timestamp {
            testing::time(i64::try_from(self.seconds).unwrap())
        }

        fn decide(&self, election: &mut Election) -> Move {
            election.decide(self.lease.clone(), self.now(), self.time())
        }

        /// Writes, unless somebody else has since the Lease was read.
        fn write(&mut self, mut lease: Lease) -> Option<Lease> {
            let held = self
                .lease
                .as_ref()
                .and_then(|l| l.metadata.resource_version.as_ref());
            if lease.metadata.resource_version.as_ref() != held {
                return None;
            }
            self.version += 1;
            lease.metadata.resource_version = Some(self.version.to_string());
            self.lease = Some(lease.clone());
            Some(lease)
        }

        /// One whole attempt.
        fn attempt(&mut self, election: &mut Election) {
            if let Move::Create(lease) | Move::Replace(lease) = self.decide(election)
                && let Some(lease) = self.write(lease)
            {
                election.won(lease, self.now());
            }
        }

        fn holder(&self) -> Option<&str> {
            self.lease.as_ref().and_then(holder)
        }

        /// Lets time go by, `elections` making an attempt every [`RETRY_PERIOD`].
        fn run(&mut self, seconds: u64, elections: &mut [&mut Election]) {
            for _ in 0..seconds {
                self.seconds += 1;
                if self.seconds.is_multiple_of(RETRY_PERIOD) {
                    for election in elections.iter_mut() {
                        self.attempt(election);
                    }
                }
            }
        }
    }

    #[test]
    fn the_first_leads_and_gives_the_lease_back() {
        let (mut world, mut first, mut second) = (World::new(), election("first"), election("second"));
        world.attempt(&mut first);
        assert!(first.leads(world.now()));
        assert_eq!(world.holder(), Some("first"));
        let released = first.release(world.now(), world.time()).unwrap();
        world.write(released).unwrap();
        assert_eq!(world.holder(), None);
        world.attempt(&mut second);
        assert!(second.leads(world.now()));
        assert_eq!(
            second
                .release(world.now(), world.time())
                .unwrap()
                .spec
                .unwrap()
                .lease_transitions,
            Some(2)
        );
    }

    #[test]
    fn nobody_takes_a_lease_that_is_renewed() {
        let (mut world, mut first, mut second) = (World::new(), election("first"), election("second"));
        world.attempt(&mut first);
        world.run(DURATION * 10, &mut [&mut first, &mut second]);
        assert!(first.leads(world.now()) && !second.leads(world.now()));
        assert_eq!(
            second.release(world.now(), world.time()),
            None,
            "what is not held cannot be given back"
        );
    }

    #[test]
    fn a_holder_that_is_silent_has_given_up_before_it_is_succeeded() {
        let (mut world, mut first, mut second) = (World::new(), election("first"), election("second"));
        world.attempt(&mut first);
        let mut gave_up = None;
        for _ in 0..DURATION * 2 {
            world.run(1, &mut [&mut second]);
            assert!(
                !(first.leads(world.now()) && second.leads(world.now())),
                "two lead"
            );
            if first.is_lost(world.now()) {
                gave_up.get_or_insert(world.seconds);
                assert_eq!(first.next(world.now()), None);
            }
            if second.leads(world.now()) {
                break;
            }
        }
        assert_eq!(gave_up, Some(RENEW_DEADLINE));
        assert!(second.leads(world.now()));
        assert!(
            (DURATION..=DURATION + 2 * RETRY_PERIOD).contains(&(world.seconds - 1)),
            "{}",
            world.seconds
        );
    }

    #[test]
    fn the_time_in_the_lease_does_not_matter() {
        let (mut world, mut second) = (World::new(), election("second"));
        let ancient = election("first").ours(None, testing::time(-1_000_000));
        world.write(ancient).unwrap();
        world.attempt(&mut second);
        assert!(
            !second.leads(world.now()),
            "the holder's clock may be wrong: it gets its whole duration"
        );
    }

    #[test]
    fn of_two_that_read_the_same_one_wins() {
        let (mut world, mut first, mut second) = (World::new(), election("first"), election("second"));
        let (one, two) = (world.decide(&mut first), world.decide(&mut second));
        let (Move::Create(one), Move::Create(two)) = (one, two) else {
            panic!("both should create");
        };
        assert!(world.write(one).is_some());
        assert!(world.write(two).is_none());
    }

    #[test]
    fn a_holder_sees_that_it_was_robbed() {
        let (mut world, mut first) = (World::new(), election("first"));
        world.attempt(&mut first);
        let mut robbed = election("robber").ours(world.lease.clone(), world.time());
        robbed.metadata.resource_version = Some("1".into());
        world.write(robbed).unwrap();
        world.attempt(&mut first);
        assert!(first.is_lost(world.now()) && !first.leads(world.now()));
    }

    #[test]
    fn a_restarted_holder_takes_its_own_lease_at_once() {
        let (mut world, mut first, mut again) = (World::new(), election("same"), election("same"));
        world.attempt(&mut first);
        world.attempt(&mut again);
        assert!(again.leads(world.now()));
    }

    #[test]
    fn of_two_attempts_that_are_not_answered_the_second_is_in_time() {
        let (mut world, mut first) = (World::new(), election("first"));
        let half = Duration::from_secs(RENEW_DEADLINE / 2);
        assert_eq!(first.patience(world.now()), world.now() + half);
        world.attempt(&mut first);
        let gave_up = first.patience(world.now());
        let again = first.next(gave_up).unwrap();
        assert!(again < first.deadline(again));
        assert_eq!(first.patience(again), first.deadline(again));
    }

    #[test]
    fn the_holder_never_sleeps_past_its_deadline() {
        let (mut world, mut first) = (World::new(), election("first"));
        world.attempt(&mut first);
        world.seconds = RENEW_DEADLINE - 1;
        assert_eq!(first.next(world.now()), Some(first.deadline(world.now())));
    }
}
