//! Group commit: one thread through which all writes of a node pass, so that those which wait at
//! the same time share one fsync.
//!
//! While the disk is busy with one batch the next one gathers in the queue; that alone makes
//! batches as large as the load asks for, and adds no wait where there is none. An engine that
//! keeps nothing needs no thread: its writes are done on the spot.

use super::room::Room;
use super::slow::Slow;
use crate::core::clock::{Clock, Stamp};
use crate::core::mutants::{Mutant, planted};
use crate::core::replica_request::Answer;
use crate::location::state::save_clock;
use crate::replica::{Handled, Replica, Request};
use crate::storage::StorageError;
use crate::storage::engine::Engine;
use crate::storage::vault::Vault;
use crate::wire::budget::{Budget, Held};
use bytes::Bytes;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Writes, and answers that wait for them, that the committer may have before it. What comes on top is
/// refused: nobody knows how long a disk that hangs will do so.
const QUEUE: usize = 16_384;

/// The same in bytes of keys and values.
const QUEUE_BYTES: usize = 64 << 20;

/// When who is refused is told so: there may be room again by then, and until then he does not send
/// a megabyte again for nothing.
const REFUSED_AFTER: Duration = Duration::from_millis(200);

/// The most writes of one batch: enough that the fsync is shared by all that a node has in flight,
/// small enough that the first of them does not wait long for the last.
const MAX_BATCH: usize = 1024;

/// After a batch of at least so many writes the next one is given [`GATHER`] to grow: there are as
/// many callers, and what they wait longer for one fsync they save on having fewer of them. Below,
/// nobody waits.
const MANY: usize = 8;

/// About what an fsync takes on a fast disk.
const GATHER: Duration = Duration::from_micros(200);

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
    Write(Request, Asker),
    /// This answer names something that isn't durable yet: let it out when it is.
    Hold(Answer, Asker),
}

/// Who waits for the committer.
struct Asker {
    done: Done,
    /// Of the queue's bytes.
    _held: Held,
}

/// Writes the clock's mark down. One at a time: of two that overtake each other the lower mark could
/// be the one that stays, and a restart would repeat stamps.
struct Marker {
    replica: Arc<Replica<AnyEngine>>,
    vault: Arc<dyn Vault>,
    saving: Mutex<()>,
}

impl Marker {
    /// Saves the mark that `due` asks for, if it does. Blocks, but not while nothing is due.
    fn raise(&self, due: fn(&Clock) -> Option<Stamp>) -> Result<(), StorageError> {
        if due(&self.replica.clock()).is_none() {
            return Ok(());
        }
        let _one_by_one = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked again: whoever was here before may have saved enough.
        let mark = due(&self.replica.clock());
        if let Some(mark) = mark {
            save_clock(&*self.vault, mark)?;
            self.replica.clock().marked(mark);
        }
        Ok(())
    }
}

/// See the module's documentation.
pub struct Committer {
    replica: Arc<Replica<AnyEngine>>,
    marker: Arc<Marker>,
    jobs: Option<mpsc::Sender<Job>>,
    budget: Arc<Budget>,
    slow: Arc<Slow>,
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
        room: Arc<Room>,
        failed: watch::Sender<Option<String>>,
    ) -> Result<Self, StorageError> {
        let marker = Arc::new(Marker { replica: replica.clone(), vault, saving: Mutex::default() });
        let (budget, slow) = (Budget::new(QUEUE_BYTES), Arc::new(Slow::default()));
        let mut committer = Committer { replica, marker, jobs: None, budget, slow, failed };
        if committer.replica.engine().needs_sync() {
            let (jobs, inbox) = mpsc::channel(QUEUE);
            let (release, released) = mpsc::unbounded_channel();
            tokio::spawn(let_out(released));
            let (marker, failed) = (committer.marker.clone(), committer.failed.clone());
            let slow = committer.slow.clone();
            // A bug is planted in a thread, which is not the committer's.
            let unsynced = planted(Mutant::AnsweredUnsynced);
            let commit = move || {
                let all = || commit_all(&marker, &room, &slow, inbox, &release, unsynced);
                let why = match catch_unwind(AssertUnwindSafe(all)) {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error.to_string(),
                    Err(panic) => format!("the committer's thread panicked: {}", said(&*panic)),
                };
                failed.send_replace(Some(why));
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
    pub fn ask(&self, request: Request, done: impl FnOnce() -> Done) -> Asked {
        if self.jobs.is_some() && request.ask.record().is_some() {
            if request.epoch > self.replica.layout().epoch {
                return Asked::Behind(request);
            }
            let bytes = request.key.len() + value_bytes(&request);
            return self.commit(bytes, done(), |asker| Job::Write(request, asker));
        }
        let handled = self.replica.handle(std::slice::from_ref(&request));
        match handled.map(|mut all| all.pop()) {
            Ok(Some(Handled::Now(answer))) => Asked::Now(answer),
            Ok(Some(Handled::AfterSync(answer))) => {
                let bytes = match &answer {
                    Answer::Record(Some(record)) => record.value.as_ref().map_or(0, Bytes::len),
                    Answer::Page(page) => page.bytes(),
                    _ => 0,
                };
                self.commit(bytes, done(), |asker| Job::Hold(answer, asker))
            }
            Ok(Some(Handled::Behind)) => Asked::Behind(request),
            Ok(None) => Asked::Now(Answer::Silence),
            Err(error) => {
                self.fail(&error);
                Asked::Now(Answer::Silence)
            }
        }
    }

    /// Queues a job of so many bytes. Where there is no room for it nothing is done, and its asker hears
    /// silence after [`REFUSED_AFTER`].
    fn commit(&self, bytes: usize, done: Done, job: impl FnOnce(Asker) -> Job) -> Asked {
        let Some(jobs) = &self.jobs else { return Asked::Now(Answer::Silence) };
        match (self.budget.hold(size_of::<Job>() + bytes), jobs.try_reserve()) {
            (Ok(_held), Ok(place)) => place.send(job(Asker { done, _held })),
            _ => drop(tokio::spawn(async move {
                tokio::time::sleep(REFUSED_AFTER).await;
                done(Answer::Silence);
            })),
        }
        Asked::Later
    }

    /// What is known of how the disk gets on.
    pub(super) fn slow(&self) -> &Slow {
        &self.slow
    }

    /// The engine failed: nothing that this node says can be relied on any more.
    pub fn fail(&self, error: &StorageError) {
        self.failed.send_replace(Some(error.to_string()));
    }

    /// Raises the clock's mark, if it has to be raised before a stamp is told to anybody.
    pub async fn cover_clock(&self) -> Result<(), StorageError> {
        self.raise_mark(Clock::mark_due).await
    }

    /// Raises the clock's mark in good time, so that no request has to wait for it.
    pub async fn cover_clock_ahead(&self, now_ms: u64) -> Result<(), StorageError> {
        self.replica.clock().observe(crate::core::clock::at_ms(now_ms));
        self.raise_mark(Clock::mark_soon).await
    }

    async fn raise_mark(&self, due: fn(&Clock) -> Option<Stamp>) -> Result<(), StorageError> {
        // Most often nothing is, and nobody has to move to a thread that may block.
        if due(&self.replica.clock()).is_none() {
            return Ok(());
        }
        let marker = self.marker.clone();
        match tokio::task::spawn_blocking(move || marker.raise(due)).await {
            Ok(saved) => saved,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

fn commit_all(
    marker: &Marker,
    room: &Room,
    slow: &Slow,
    mut inbox: mpsc::Receiver<Job>,
    release: &mpsc::UnboundedSender<Batch>,
    unsynced: bool,
) -> Result<(), StorageError> {
    let replica = &*marker.replica;
    let (mut requests, mut askers, mut held) = (Vec::new(), Vec::new(), Vec::new());
    let mut last_batch = 0;
    while let Some(first) = inbox.blocking_recv() {
        if last_batch >= MANY {
            std::thread::sleep(GATHER);
        }
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(job) = next.take() {
            match job {
                Job::Write(request, asker) => {
                    bytes += value_bytes(&request);
                    requests.push(request);
                    askers.push(asker);
                }
                Job::Hold(answer, asker) => held.push((answer, asker)),
            }
            if requests.len() + held.len() < MAX_BATCH && bytes < MAX_BATCH_BYTES {
                next = inbox.try_recv().ok();
            }
        }
        last_batch = requests.len();
        slow.begins();
        room.look(replica);
        let handled = replica.handle(&requests)?;
        requests.clear();
        if !unsynced {
            replica.sync()?;
        }
        marker.raise(Clock::mark_due)?;
        slow.ends();
        let answered = handled.into_iter().map(|handled| match handled {
            Handled::Now(answer) | Handled::AfterSync(answer) => answer,
            // Its epoch was checked before it was queued and layouts only move forward; should it
            // happen all the same, the asker asks again.
            Handled::Behind => Answer::Silence,
        });
        let _node_gone = release.send(answered.zip(askers.drain(..)).chain(held.drain(..)).collect());
    }
    Ok(())
}

/// Answers that have become durable together.
type Batch = Vec<(Answer, Asker)>;

/// Hands answers out on the runtime's own threads: the committer wakes it once a batch, not once an
/// answer, and what is answered together travels together.
async fn let_out(mut released: mpsc::UnboundedReceiver<Batch>) {
    while let Some(batch) = released.recv().await {
        for (answer, asker) in batch {
            (asker.done)(answer);
        }
    }
}

/// Bytes of the value that a question brings along.
pub(super) fn value_bytes(request: &Request) -> usize {
    request.ask.record().and_then(|record| record.value.as_ref()).map_or(0, Bytes::len)
}

/// What somebody who panicked said.
pub(crate) fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::layout::tests::ring_of;
    use crate::core::node::NodeId;
    use crate::core::record::{Record, Version};
    use crate::core::replica_request::Ask;
    use crate::location::state::NodeState;
    use crate::storage::memory::MemoryEngine;
    use crate::storage::simulated::SimulatedEngine;
    use crate::storage::vault::MemoryVault;
    use crate::store::room::FreeSpace;
    use tokio::sync::oneshot;

    /// A vault whose first save takes as long as the second, if there is a second meanwhile.
    struct Overtaken {
        vault: Arc<MemoryVault>,
        first: Mutex<Option<(std::sync::mpsc::Sender<()>, std::sync::mpsc::Receiver<()>)>>,
        second: Mutex<Option<std::sync::mpsc::Sender<()>>>,
    }

    impl Vault for Overtaken {
        fn load(&self, name: &str) -> Result<Option<Vec<u8>>, StorageError> {
            self.vault.load(name)
        }

        fn save(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
            let first = self.first.lock().unwrap().take();
            match first {
                Some((begun, overtaken)) => {
                    begun.send(()).unwrap();
                    // Whoever waits for its turn is not waited for in vain.
                    let _in_turn = overtaken.recv_timeout(Duration::from_millis(200));
                    self.vault.save(name, bytes)
                }
                None => {
                    self.vault.save(name, bytes)?;
                    let overtaken = self.second.lock().unwrap().take();
                    let _in_turn = overtaken.map(|overtaken| overtaken.send(()));
                    Ok(())
                }
            }
        }

        fn remove(&self, name: &str) -> Result<(), StorageError> {
            self.vault.remove(name)
        }
    }

    /// A committer whose disk is asked for its room before each batch, which may hang or panic.
    fn committer(
        bytes: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> (Committer, watch::Receiver<Option<String>>) {
        let engine: AnyEngine = Arc::new(SimulatedEngine::new());
        let layout = Arc::new(ring_of(1, 1, 8));
        let replica = Arc::new(Replica::new(NodeId(1), engine, layout, Clock::resume(0)).unwrap());
        let free_space = FreeSpace { folder: "data/1".into(), bytes: Box::new(move || Ok(bytes())) };
        let (failed, told) = watch::channel(None);
        let room = Arc::new(Room::new(Some(free_space)));
        (Committer::start(replica, Arc::new(MemoryVault::new()), room, failed).unwrap(), told)
    }

    /// Has a value of so many bytes written.
    fn write(committer: &Committer, hlc: u64, bytes: usize) -> oneshot::Receiver<Answer> {
        let (done, answer) = oneshot::channel();
        let ask = Ask::Write(Record::value(Version { hlc, node: 1 }, vec![0; bytes]));
        let request = Request { epoch: committer.replica().layout().epoch, key: "k".into(), ask };
        let asked = committer.ask(request, || Box::new(move |answer| _ = done.send(answer)));
        assert!(matches!(asked, Asked::Later));
        answer
    }

    #[tokio::test]
    async fn what_waits_for_a_disk_that_hangs_is_bounded_in_bytes_and_the_rest_refused() {
        let (go_on, hangs) = std::sync::mpsc::channel::<()>();
        let hangs = Mutex::new(hangs);
        let (committer, _) = committer(move || {
            let _until_dropped = hangs.lock().unwrap().recv();
            u64::MAX
        });
        let most = QUEUE_BYTES >> 20;
        let mut answers: Vec<_> = (1..=2 * most as u64).map(|hlc| write(&committer, hlc, 1 << 20)).collect();
        for refused in answers.split_off(most) {
            assert_eq!(refused.await, Ok(Answer::Silence));
        }
        assert!(committer.budget.hold(1 << 20).is_err());
        drop(go_on);
        // Not even the last of so many fits, since what is counted is more than values.
        assert_eq!(answers.pop().unwrap().await, Ok(Answer::Silence));
        for (hlc, answer) in (1..).zip(answers) {
            assert_eq!(answer.await, Ok(Answer::Accepted(Version { hlc, node: 1 })));
        }
        let later = write(&committer, 1000, 1 << 20).await;
        assert_eq!(later, Ok(Answer::Accepted(Version { hlc: 1000, node: 1 })), "there is room again");
    }

    #[tokio::test]
    async fn a_committer_that_panics_fails_as_a_disk_does() {
        let (committer, mut told) = committer(|| panic!("a mistake"));
        let _never_answered = write(&committer, 1, 1);
        let why = told.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert_eq!(why, "the committer's thread panicked: a mistake");
    }

    #[test]
    fn of_two_marks_that_are_raised_at_once_the_higher_stays() {
        let vault = Arc::new(MemoryVault::new());
        let (begun, first_begun) = std::sync::mpsc::channel();
        let (overtake, overtaken) = std::sync::mpsc::channel();
        let slow = Overtaken {
            vault: vault.clone(),
            first: Mutex::new(Some((begun, overtaken))),
            second: Mutex::new(Some(overtake)),
        };
        let engine: AnyEngine = Arc::new(MemoryEngine::new());
        let layout = Arc::new(ring_of(1, 1, 8));
        let replica = Arc::new(Replica::new(NodeId(1), engine, layout, Clock::resume(0)).unwrap());
        let marker = Marker { replica: replica.clone(), vault: Arc::new(slow), saving: Mutex::default() };
        replica.clock().tick(1_000);
        std::thread::scope(|scope| {
            let lower = scope.spawn(|| marker.raise(Clock::mark_due).unwrap());
            first_begun.recv().unwrap();
            let told = replica.clock().tick(50_000).unwrap();
            marker.raise(Clock::mark_due).unwrap();
            lower.join().unwrap();
            assert!(replica.clock().mark_due().is_none());
            let saved = NodeState::open(vault).unwrap().clock_mark;
            assert!(Clock::resume(saved).tick(0) > Some(told), "a restart would repeat stamps");
        });
    }
}
