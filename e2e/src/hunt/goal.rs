//! When a hunt ends.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What is to be reached, and what has been.
#[derive(Debug)]
pub struct Goal {
    wanted: (usize, usize),
    pods: AtomicUsize,
    changes: AtomicUsize,
    given_up: AtomicBool,
}

impl Goal {
    /// At least so many pods and changes.
    pub fn new(wanted: (usize, usize)) -> Self {
        Self {
            wanted,
            pods: AtomicUsize::new(0),
            changes: AtomicUsize::new(0),
            given_up: AtomicBool::new(false),
        }
    }

    /// How many pods and changes there have been.
    pub fn reached(&self) -> (usize, usize) {
        (
            self.pods.load(Ordering::Relaxed),
            self.changes.load(Ordering::Relaxed),
        )
    }

    /// Whether it is the end.
    pub fn is_reached(&self) -> bool {
        let (pods, changes) = self.reached();
        self.given_up.load(Ordering::Relaxed) || pods >= self.wanted.0 && changes >= self.wanted.1
    }

    /// It is the end, whatever was wanted.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// More pods.
    pub fn add_pods(&self, count: usize) {
        self.pods.fetch_add(count, Ordering::Relaxed);
    }

    /// More changes.
    pub fn add_changes(&self, count: usize) {
        self.changes.fetch_add(count, Ordering::Relaxed);
    }
}
