//! One caller: the loop that everything else is about.

use crate::random::Random;
use crate::schedule::Schedule;
use crate::tally::Tally;
use crate::workload::{Ask, Workload};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use thrifty::client::Client;

/// Sends a request whenever it is its turn, until there are no more. All callers share a tally: its
/// histograms take half a megabyte, and there may be very many callers.
pub(crate) async fn call(
    client: Arc<Client>,
    workload: Arc<Workload>,
    schedule: Arc<Schedule>,
    seed: u64,
    tally: Arc<Mutex<Tally>>,
) {
    let tally = || tally.lock().unwrap_or_else(PoisonError::into_inner);
    let mut random = Random::new(seed);
    // The clock is read once a request: the end of one is the start of the next.
    let mut now = Instant::now();
    while let Some(turn) = schedule.take(now).await {
        match workload.ask(turn.number, &mut random) {
            Ask::Put(key, value) => {
                let result = client.put(key, value).await;
                now = Instant::now();
                tally().write(now.saturating_duration_since(turn.start), result.map(|_| ()));
            }
            Ask::Get(key) => {
                let result = client.get(key).await;
                now = Instant::now();
                tally().read(now.saturating_duration_since(turn.start), result.map(|found| found.is_some()));
            }
        }
    }
}
