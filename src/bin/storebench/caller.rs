//! One caller: the loop that everything else is about.

use crate::random::Random;
use crate::schedule::Schedule;
use crate::tally::Tally;
use crate::workload::{Ask, Workload};
use std::sync::Arc;
use std::time::Instant;
use thrifty::client::Client;

/// Sends a request whenever it is its turn, until there are no more.
pub(crate) async fn call(
    client: Arc<Client>,
    workload: Arc<Workload>,
    schedule: Arc<Schedule>,
    seed: u64,
) -> Tally {
    let mut tally = Tally::new();
    let mut random = Random::new(seed);
    // The clock is read once a request: the end of one is the start of the next.
    let mut now = Instant::now();
    while let Some(turn) = schedule.take(now).await {
        match workload.ask(turn.number, &mut random) {
            Ask::Put(key, value) => {
                let result = client.put(key, value).await;
                now = Instant::now();
                tally.write(now.saturating_duration_since(turn.start), result.map(|_| ()));
            }
            Ask::Get(key) => {
                let result = client.get(key).await;
                now = Instant::now();
                tally.read(now.saturating_duration_since(turn.start), result.map(|found| found.is_some()));
            }
        }
    }
    tally
}
