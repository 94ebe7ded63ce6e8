//! A whole run: connect, store the keys, warm up, measure, report.

use crate::args::Load;
use crate::caller::call;
use crate::common::options::must_store;
use crate::common::{Exit, Failure};
use crate::progress;
use crate::report::{self, Outcome};
use crate::schedule::{Extent, Schedule};
use crate::tally::Tally;
use crate::workload::{Mode, Workload};
use std::sync::{Arc, Mutex, PoisonError};
use thrifty::client::{Client, ClientConfig};
use tokio::task::JoinSet;

/// Runs a load against a ring and prints what came of it.
pub(crate) async fn run(load: Load, mode: Mode) -> Result<(), Failure> {
    let workload = Arc::new(Workload::new(&load, mode)?);
    let config = ClientConfig {
        consistency: load.consistency.into(),
        fallback_to_one: false,
        timeout: load.connect.timeout,
        connections: load.connections.into(),
        any_node: load.any_node,
    };
    let client = Arc::new(must_store(load.connect.client(config).await?)?);
    if load.preload {
        let all = Extent::Requests(load.keys);
        let stored = phase("preload", &load, &client, Arc::new(workload.preload()), all, None).await?;
        if let Some(example) = stored.tally.example {
            return Err(Failure::new(
                Exit::Unavailable,
                format!("not all keys could be stored first: {example}"),
            ));
        }
    }
    if !load.warmup.is_zero() {
        phase("warm-up", &load, &client, workload.clone(), Extent::Time(load.warmup), load.rate).await?;
    }
    let extent = load.requests.map_or(Extent::Time(load.seconds), Extent::Requests);
    let outcome = phase("measure", &load, &client, workload, extent, load.rate).await?;
    report::print(&load, mode, client.layout().members.len(), outcome)
}

async fn phase(
    name: &'static str,
    load: &Load,
    client: &Arc<Client>,
    workload: Arc<Workload>,
    extent: Extent,
    rate: Option<f64>,
) -> Result<Outcome, Failure> {
    let schedule = Schedule::start(extent, rate, load.callers);
    let shown = tokio::spawn(progress::show(name, schedule.clone()));
    let tally = Arc::new(Mutex::new(Tally::new()));
    let mut callers = JoinSet::new();
    for seed in 0..load.callers {
        let (client, workload, schedule) = (client.clone(), workload.clone(), schedule.clone());
        callers.spawn(call(client, workload, schedule, seed.into(), tally.clone()));
    }
    while let Some(one) = callers.join_next().await {
        one.map_err(|error| Failure::new(Exit::Unknown, format!("a caller failed: {error}")))?;
    }
    let tally = std::mem::replace(&mut *tally.lock().unwrap_or_else(PoisonError::into_inner), Tally::new());
    let elapsed = schedule.began().elapsed();
    shown.abort();
    // An aborted task has dropped, and so cleared, its progress line once it was waited for.
    let _ = shown.await;
    let unsent = rate.and(schedule.limit()).map(|limit| limit - schedule.taken());
    Ok(Outcome { tally, elapsed, unsent })
}
