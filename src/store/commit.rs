//! Group commit: one thread through which all writes of a node pass, so that those which wait at
//! the same time share one fsync.
//!
//! While the disk is busy with one batch the next one gathers in the queue; that alone makes
//! batches as large as the load asks for, and adds no wait where there is none. An engine that
//! keeps nothing needs no thread: its writes are done on the spot.

use crate::core::replica_request::{Answer, Ask};
use crate::location::state::save_clock;
use crate::replica::{Handled, Replica, Request};
use crate::storage::StorageError;
use crate::storage::engine::Engine;
use crate::storage::vault::Vault;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Writes that may wait for the committer. Past that their senders wait, and so on up to the door.
const QUEUE: usize = 16_384;

/// The most writes of one batch: enough that the fsync is shared by all that a node has in flight,
/// small enough that the first of them does not wait long for the last.
const MAX_BATCH: usize = 1024;

/// After a batch of at least so many writes the next one is given [`GATHER`] to grow: there are as
/// many callers, and what they wait longer for one fsync they save on having fewer of them. Below,
/// nobody waits.
const MANY: usize = 8;

/// About what an fsync takes on a fast disk.
const GATHER: std::time::Duration = std::time::Duration::from_micros(200);

/// The same in bytes of values.
const MAX_BATCH_BYTES: usize = 16 << 20;

/// The engine of a running node.
pub type AnyEngine = Arc<dyn Engine>;

/// What is done with an answer that had to wait. Dropped unused, it means silence.
pub type Done = Box<dyn FnOnce(Answer) + Send>;

/// What becomes of a question to the node's own replica.
#[derive(Debug)]
pub enum Asked {
    /// It is answered.
    Now(Answer),
    /// It will be, to the [`Done`] that the asker gave.
    Later,
    /// The asker's epoch is newer: install its layout, then ask again.
    Behind(Request),
}

enum Job {
    /// Do this, and answer when it is durable.
    Write(Request, Done),
    /// This answer names something that isn't durable yet: let it out when it is.
    Hold(Answer, Done),
}

/// See the module's documentation.
pub struct Committer {
    replica: Arc<Replica<AnyEngine>>,
    vault: Arc<dyn Vault>,
    jobs: Option<mpsc::Sender<Job>>,
    failed: watch::Sender<Option<String>>,
}

impl std::fmt::Debug for Committer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Committer").finish_non_exhaustive()
    }
}

impl Committer {
    /// Starts the committer's thread, if the engine needs one. After an error of the engine nothing
    /// is acknowledged any more, and `failed` says why: the process has to end.
    pub fn start(
        replica: Arc<Replica<AnyEngine>>,
        vault: Arc<dyn Vault>,
        failed: watch::Sender<Option<String>>,
    ) -> Result<Self, StorageError> {
        let mut committer = Committer { replica, vault, jobs: None, failed };
        if committer.replica.engine().needs_sync() {
            let (jobs, inbox) = mpsc::channel(QUEUE);
            let (release, released) = mpsc::unbounded_channel();
            tokio::spawn(let_out(released));
            let (replica, vault, failed) =
                (committer.replica.clone(), committer.vault.clone(), committer.failed.clone());
            let commit = move || {
                if let Err(error) = commit_all(&replica, &*vault, inbox, &release) {
                    failed.send_replace(Some(error.to_string()));
                }
            };
            let thread = std::thread::Builder::new().name("committer".into()).spawn(commit);
            thread.map_err(|source| StorageError::Io {
                what: "starting the committer's thread".into(),
                source,
            })?;
            committer.jobs = Some(jobs);
        }
        Ok(committer)
    }

    /// The replica.
    pub fn replica(&self) -> &Arc<Replica<AnyEngine>> {
        &self.replica
    }

    /// Puts a question to the replica; `done` is made only if the answer has to wait.
    pub async fn ask(&self, request: Request, done: impl FnOnce() -> Done) -> Asked {
        if self.jobs.is_some() && matches!(request.ask, Ask::Write(_)) {
            if request.epoch > self.replica.layout().epoch {
                return Asked::Behind(request);
            }
            return self.commit(Job::Write(request, done())).await;
        }
        let handled = self.replica.handle(std::slice::from_ref(&request));
        match handled.map(|mut all| all.pop()) {
            Ok(Some(Handled::Now(answer))) => Asked::Now(answer),
            Ok(Some(Handled::AfterSync(answer))) => self.commit(Job::Hold(answer, done())).await,
            Ok(Some(Handled::Behind)) => Asked::Behind(request),
            Ok(None) => Asked::Now(Answer::Silence),
            Err(error) => {
                self.fail(&error);
                Asked::Now(Answer::Silence)
            }
        }
    }

    async fn commit(&self, job: Job) -> Asked {
        if let Some(jobs) = &self.jobs {
            // A committer that is gone drops the job, which means silence.
            let _gone = jobs.send(job).await;
        }
        Asked::Later
    }

    /// The engine failed: nothing that this node says can be relied on any more.
    pub fn fail(&self, error: &StorageError) {
        self.failed.send_replace(Some(error.to_string()));
    }

    /// Raises the clock's mark, if it has to be raised before a stamp is told to anybody.
    pub async fn cover_clock(&self) -> Result<(), StorageError> {
        let due = self.replica.clock().mark_due();
        self.raise_mark(due).await
    }

    /// Raises the clock's mark in good time, so that no request has to wait for it.
    pub async fn cover_clock_ahead(&self, now_ms: u64) -> Result<(), StorageError> {
        let soon = {
            let mut clock = self.replica.clock();
            clock.observe(crate::core::clock::at_ms(now_ms));
            clock.mark_soon()
        };
        self.raise_mark(soon).await
    }

    async fn raise_mark(&self, mark: Option<u64>) -> Result<(), StorageError> {
        let Some(mark) = mark else { return Ok(()) };
        let vault = self.vault.clone();
        match tokio::task::spawn_blocking(move || save_clock(&*vault, mark)).await {
            Ok(saved) => saved?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
        self.replica.clock().marked(mark);
        Ok(())
    }
}

fn commit_all(
    replica: &Replica<AnyEngine>,
    vault: &dyn Vault,
    mut inbox: mpsc::Receiver<Job>,
    release: &mpsc::UnboundedSender<Batch>,
) -> Result<(), StorageError> {
    let (mut requests, mut writers, mut held) = (Vec::new(), Vec::new(), Vec::new());
    let mut last_batch = 0;
    while let Some(first) = inbox.blocking_recv() {
        if last_batch >= MANY {
            std::thread::sleep(GATHER);
        }
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(job) = next.take() {
            match job {
                Job::Write(request, done) => {
                    bytes += value_bytes(&request);
                    requests.push(request);
                    writers.push(done);
                }
                Job::Hold(answer, done) => held.push((answer, done)),
            }
            if requests.len() + held.len() < MAX_BATCH && bytes < MAX_BATCH_BYTES {
                next = inbox.try_recv().ok();
            }
        }
        last_batch = requests.len();
        let handled = replica.handle(&requests)?;
        requests.clear();
        replica.sync()?;
        let due = replica.clock().mark_due();
        if let Some(mark) = due {
            save_clock(vault, mark)?;
            replica.clock().marked(mark);
        }
        let answered = handled.into_iter().map(|handled| match handled {
            Handled::Now(answer) | Handled::AfterSync(answer) => answer,
            // Its epoch was checked before it was queued and layouts only move forward; should it
            // happen all the same, the asker asks again.
            Handled::Behind => Answer::Silence,
        });
        let _node_gone = release.send(answered.zip(writers.drain(..)).chain(held.drain(..)).collect());
    }
    Ok(())
}

/// Answers that have become durable together.
type Batch = Vec<(Answer, Done)>;

/// Hands answers out on the runtime's own threads: the committer wakes it once a batch, not once an
/// answer, and what is answered together travels together.
async fn let_out(mut released: mpsc::UnboundedReceiver<Batch>) {
    while let Some(batch) = released.recv().await {
        for (answer, done) in batch {
            done(answer);
        }
    }
}

/// Bytes of the value that a question brings along.
pub(super) fn value_bytes(request: &Request) -> usize {
    match &request.ask {
        Ask::Write(record) => record.value.as_ref().map_or(0, bytes::Bytes::len),
        Ask::Read | Ask::Version => 0,
    }
}
