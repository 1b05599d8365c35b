//! One line per step on standard error, with the time since the start.

use std::time::Instant;

/// Tells a person what is going on.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
    quiet: bool,
}

impl Progress {
    /// Starts the clock. `quiet` says nothing.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        Self {
            start: Instant::now(),
            quiet,
        }
    }

    /// Announces what comes next, or reports what was done.
    pub fn step(&self, what: &str) {
        if !self.quiet {
            eprintln!("[{:6.1}s] {what}", self.start.elapsed().as_secs_f64());
        }
    }
}
