//! What became of the requests.

use hdrhistogram::Histogram;
use std::time::Duration;
use thrifty::client::ClientError;

/// The kinds of errors, in the order of their counters.
pub(crate) const ERRORS: [&str; 6] =
    ["no_node", "invalid", "unavailable", "outcome_unknown", "refused", "turned_away"];

/// Latencies above this are counted as this: two minutes.
const MAX_NANOS: u64 = 120_000_000_000;

/// What all callers saw.
pub(crate) struct Tally {
    /// Latencies of reads that were answered, in nanoseconds.
    pub(crate) reads: Histogram<u64>,
    /// Latencies of writes that were answered, in nanoseconds.
    pub(crate) writes: Histogram<u64>,
    /// How many requests failed, by kind.
    pub(crate) errors: [u64; ERRORS.len()],
    /// Reads of keys that weren't there; they are among the answered.
    pub(crate) not_found: u64,
    /// What the first failure said.
    pub(crate) example: Option<String>,
}

impl Tally {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Tally {
            reads: histogram(),
            writes: histogram(),
            errors: Default::default(),
            not_found: 0,
            example: None,
        }
    }

    /// A read ended; `true` if there was something.
    pub(crate) fn read(&mut self, latency: Duration, result: Result<bool, ClientError>) {
        match result {
            Ok(found) => {
                self.reads.saturating_record(latency.as_nanos() as u64);
                self.not_found += u64::from(!found);
            }
            Err(error) => self.failed(&error),
        }
    }

    /// A write ended.
    pub(crate) fn write(&mut self, latency: Duration, result: Result<(), ClientError>) {
        match result {
            Ok(()) => self.writes.saturating_record(latency.as_nanos() as u64),
            Err(error) => self.failed(&error),
        }
    }

    /// All latencies.
    pub(crate) fn all(&self) -> Histogram<u64> {
        let mut all = self.reads.clone();
        let _ = all.add(&self.writes);
        all
    }

    /// How many requests were answered well.
    pub(crate) fn answered(&self) -> u64 {
        self.reads.len() + self.writes.len()
    }

    /// How many requests failed.
    pub(crate) fn failures(&self) -> u64 {
        self.errors.iter().sum()
    }

    fn failed(&mut self, error: &ClientError) {
        self.errors[match error {
            ClientError::NoNode(_) => 0,
            ClientError::Invalid(_) => 1,
            ClientError::Unavailable(_) => 2,
            ClientError::OutcomeUnknown(_) => 3,
            ClientError::Refused(_) => 4,
            ClientError::Exhausted(_) => 5,
        }] += 1;
        self.example.get_or_insert_with(|| error.to_string());
    }
}

fn histogram() -> Histogram<u64> {
    #[allow(clippy::expect_used, reason = "bounds are constants, and fit")]
    Histogram::new_with_bounds(1, MAX_NANOS, 3).expect("the bounds of a histogram fit")
}
