//! When to try again.

use std::time::Duration;

use tokio::time::Instant;

/// Between tries after a failure: doubled each time, up to the limit.
const FIRST: Duration = Duration::from_millis(500);
const LIMIT: Duration = Duration::from_secs(30);

/// Failures in a row, and when to try again after the last of them.
#[derive(Debug, Default)]
pub(super) struct Retry {
    failures: u32,
    due: Option<Instant>,
}

impl Retry {
    /// When to try again; `None` after a success.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A try has come to its end.
    pub(super) fn note(&mut self, ok: bool, now: Instant) {
        if ok {
            *self = Self::default();
            return;
        }
        let doubled = FIRST.saturating_mul(1 << self.failures.min(6));
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + doubled.min(LIMIT));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_pause_up_to_the_limit() {
        let now = Instant::now();
        let mut retry = Retry::default();
        let mut pause = || {
            retry.note(false, now);
            retry.due().unwrap() - now
        };
        assert_eq!(pause(), FIRST);
        assert_eq!(pause(), 2 * FIRST);
        assert_eq!((0..40).map(|_| pause()).last(), Some(LIMIT));
        retry.note(true, now);
        assert_eq!(retry.due(), None);
        retry.note(false, now);
        assert_eq!(retry.due(), Some(now + FIRST));
    }
}
