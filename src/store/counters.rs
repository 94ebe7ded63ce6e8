//! What is counted of clients' requests, for whoever asks how a node is doing.

use crate::core::latency::{BUCKETS, bucket};
use crate::wire::location::Requests;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Requests that this node coordinated and that have ended.
pub(super) struct Counters {
    took: [AtomicU64; BUCKETS],
    failed: AtomicU64,
}

impl Counters {
    /// None so far.
    pub(super) fn new() -> Self {
        Counters { took: [const { AtomicU64::new(0) }; BUCKETS], failed: AtomicU64::new(0) }
    }

    /// One has ended after so long, well or not.
    pub(super) fn ended(&self, took: Duration, failed: bool) {
        self.took[bucket(took)].fetch_add(1, Ordering::Relaxed);
        if failed {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// As it is told.
    pub(super) fn told(&self) -> Requests {
        let mut took: Vec<u64> = self.took.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        took.truncate(took.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1));
        Requests { failed: self.failed.load(Ordering::Relaxed), took }
    }
}
