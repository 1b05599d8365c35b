//! Whether the operator is alive and ready.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// After this long without a sign of the main loop the process is better restarted. The loop wakes up by
/// itself far more often, and every request has a shorter timeout.
const STALLED: Duration = Duration::from_secs(120);

/// What the HTTP server says of the main loop.
#[derive(Debug)]
pub struct Health {
    synced: AtomicBool,
    last_sign: Mutex<Instant>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            synced: AtomicBool::new(false),
            last_sign: Mutex::new(Instant::now()),
        }
    }
}

impl Health {
    /// The main loop goes on.
    pub fn alive(&self) {
        *self.last_sign.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether every watch has listed all there is.
    pub fn set_synced(&self, synced: bool) {
        self.synced.store(synced, Ordering::Relaxed);
    }

    /// Live: the main loop goes on.
    pub fn is_live(&self) -> bool {
        let last = *self.last_sign.lock().unwrap_or_else(PoisonError::into_inner);
        last.elapsed() < STALLED
    }

    /// Ready: the world is known. A process that does not lead is ready as well: ready to take over.
    pub fn is_ready(&self) -> bool {
        self.synced.load(Ordering::Relaxed)
    }
}
