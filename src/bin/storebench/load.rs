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
use tokio::task::{JoinHandle, JoinSet};

/// Runs a load against a ring and prints what came of it.
pub(crate) async fn run(load: Load, mode: Mode) -> Result<(), Failure> {
    let (client, workload) = prepare(&load, mode).await?;
    let extent = load.requests.map_or(Extent::Time(load.seconds), Extent::Requests);
    let outcome = Phase::start("measure", &load, &client, workload, extent).end().await?;
    report::print(&load, mode, client.layout().members.len(), outcome)
}

/// Connects, stores the keys and warms up, as far as a load wants that.
pub(crate) async fn prepare(load: &Load, mode: Mode) -> Result<(Arc<Client>, Arc<Workload>), Failure> {
    let workload = Arc::new(Workload::new(load, mode)?);
    let client = connect(load).await?;
    if load.preload {
        let (all, closed_loop) = (Extent::Requests(load.keys), Load { rate: None, ..load.clone() });
        let all = Phase::start("preload", &closed_loop, &client, Arc::new(workload.preload()), all);
        if let Some(example) = all.end().await?.tally.example {
            return Err(Failure::new(
                Exit::Unavailable,
                format!("not all keys could be stored first: {example}"),
            ));
        }
    }
    if !load.warmup.is_zero() {
        Phase::start("warm-up", load, &client, workload.clone(), Extent::Time(load.warmup)).end().await?;
    }
    Ok((client, workload))
}

/// A client as a load wants it.
pub(crate) async fn connect(load: &Load) -> Result<Arc<Client>, Failure> {
    let config = ClientConfig {
        consistency: load.consistency.into(),
        fallback_to_one: false,
        timeout: load.connect.timeout,
        connections: load.connections.into(),
        any_node: load.any_node,
    };
    Ok(Arc::new(must_store(load.connect.client(config).await?)?))
}

/// Callers at work.
pub(crate) struct Phase {
    schedule: Arc<Schedule>,
    paced: bool,
    tally: Arc<Mutex<Tally>>,
    callers: JoinSet<()>,
    shown: JoinHandle<()>,
}

impl Phase {
    /// Starts as many callers as the load has, at its rate if it has one.
    pub(crate) fn start(
        name: &'static str,
        load: &Load,
        client: &Arc<Client>,
        workload: Arc<Workload>,
        extent: Extent,
    ) -> Self {
        let schedule = Schedule::start(extent, load.rate, load.callers);
        let shown = tokio::spawn(progress::show(name, schedule.clone()));
        let tally = Arc::new(Mutex::new(Tally::new()));
        let mut callers = JoinSet::new();
        for seed in 0..load.callers {
            let (client, workload, schedule) = (client.clone(), workload.clone(), schedule.clone());
            callers.spawn(call(client, workload, schedule, seed.into(), tally.clone()));
        }
        Phase { schedule, paced: load.rate.is_some(), tally, callers, shown }
    }

    /// How many requests were answered well up to now.
    pub(crate) fn answered(&self) -> u64 {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).answered()
    }

    /// Waits for the last answer.
    pub(crate) async fn end(mut self) -> Result<Outcome, Failure> {
        while let Some(one) = self.callers.join_next().await {
            one.map_err(|error| Failure::new(Exit::Unknown, format!("a caller failed: {error}")))?;
        }
        let tally =
            std::mem::replace(&mut *self.tally.lock().unwrap_or_else(PoisonError::into_inner), Tally::new());
        let elapsed = self.schedule.began().elapsed();
        self.shown.abort();
        // An aborted task has dropped, and so cleared, its progress line once it was waited for.
        let _ = self.shown.await;
        let limit = self.schedule.limit().filter(|_| self.paced);
        let unsent = limit.map(|limit| limit - self.schedule.taken());
        Ok(Outcome { tally, elapsed, unsent })
    }
}
