//! Writers and readers that never stop, and the reading back at the end.

use crate::rig::{PATIENCE, Rig, until};
use crate::torture::history::{History, Op};
use crate::torture::judge::{Verdict, judge};
use std::fs::File;
use std::io::BufReader;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use thrifty::client::{Client, ClientConfig};
use tokio::task::JoinHandle;

/// Writers of unique keys: enough that at every moment some writes are under way.
const WRITERS: usize = 16;

/// Keys that several write and read at a time.
const CONTENDED_KEYS: u64 = 8;

/// The same, deleted again and again as well.
const DELETED_KEYS: u64 = 32;

/// Who writes, and who reads, the contended keys. Of each kind there is one for those that are deleted.
const CONTENDERS: usize = 3;

/// Who reads back when all is over.
const LAST_READERS: usize = 64;

/// How long one request may take: longer than it takes the ring to see that a node is dead.
const TRY: Duration = Duration::from_secs(2);

/// Before a process that was refused asks again.
const PAUSE: Duration = Duration::from_millis(50);

/// Between two requests for contended keys, so that they don't make up the whole history.
const BREATH: Duration = Duration::from_millis(5);

struct Shared {
    history: Arc<History>,
    stop: AtomicBool,
    /// Names of unique keys given out.
    keys: AtomicU64,
    /// Unique keys acknowledged, and how many there may be for now.
    acknowledged: AtomicU64,
    wanted: AtomicU64,
    processes: AtomicUsize,
}

/// Processes at work.
pub(crate) struct Work {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

fn client(rig: &Rig, seeds: &[String]) -> Arc<Client> {
    Arc::new(rig.client_with(seeds, ClientConfig { timeout: TRY, ..ClientConfig::default() }))
}

impl Work {
    /// Starts all, by way of these nodes first. Unique keys are written only as far as they are
    /// wanted.
    pub(crate) fn start(rig: &Rig, seeds: &[String], history: Arc<History>) -> Self {
        let shared = Arc::new(Shared {
            history,
            stop: AtomicBool::new(false),
            keys: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            processes: AtomicUsize::new(0),
        });
        let process = || Process {
            number: shared.processes.fetch_add(1, Ordering::Relaxed),
            client: client(rig, seeds),
            shared: shared.clone(),
        };
        let mut tasks = Vec::new();
        for _ in 0..WRITERS {
            tasks.push(rig.runtime().spawn(process().writes_unique_keys()));
        }
        for _ in 0..CONTENDERS {
            for op in [Op::Write, Op::Read] {
                tasks.push(rig.runtime().spawn(process().contends(op, contended, CONTENDED_KEYS)));
            }
        }
        for op in [Op::Write, Op::Read, Op::Delete] {
            tasks.push(rig.runtime().spawn(process().contends(op, deleted, DELETED_KEYS)));
        }
        tasks.push(rig.runtime().spawn(process().reads_unique_keys()));
        Work { shared, tasks }
    }

    /// Unique keys acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Lets so many unique keys be written in all.
    pub(crate) fn wants(&self, keys: u64) {
        self.shared.wanted.store(keys, Ordering::Relaxed);
    }

    /// Waits until so many are.
    #[track_caller]
    pub(crate) fn reaches(&self, keys: u64) {
        until(&format!("{keys} unique keys are written"), || (self.acknowledged() >= keys).then_some(()));
    }

    /// Lets so many more be written each second from now on.
    pub(crate) fn wants_each_second(&mut self, rig: &Rig, keys: u64) {
        let shared = self.shared.clone();
        self.tasks.push(rig.runtime().spawn(async move {
            let mut tenth_of_a_second = tokio::time::interval(Duration::from_millis(100));
            while !shared.stop.load(Ordering::Relaxed) {
                tenth_of_a_second.tick().await;
                shared.wanted.fetch_add(keys / 10, Ordering::Relaxed);
            }
        }));
    }

    /// Ends all, has all owners compared, reads every key that was ever written, and holds the history
    /// against the promise.
    pub(crate) fn judged(mut self, rig: &Rig, seeds: &[String]) -> Verdict {
        let history = self.shared.history.clone();
        self.end(rig);
        // Before anything is read, for that would mend what differs.
        let wait = PATIENCE.as_secs().to_string();
        let verified = rig.tool("storectl", &["--peer", &seeds[0], "verify", "--wait", &wait]);
        history.note(verified.ok().trim());
        self.read_back(rig, seeds);
        history.flush();
        judge(BufReader::new(File::open(history.path()).unwrap()))
    }

    fn end(&mut self, rig: &Rig) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            rig.wait(task).unwrap();
        }
    }

    /// Reads every key that was ever written, at QUORUM. What can't be read within the patience of a test is
    /// missing in the history.
    fn read_back(self, rig: &Rig, seeds: &[String]) {
        let shared = &self.shared;
        shared.history.note("healed");
        let names: Arc<Vec<String>> = Arc::new(
            (0..shared.keys.load(Ordering::Relaxed))
                .map(unique)
                .chain((0..CONTENDED_KEYS).map(contended))
                .chain((0..DELETED_KEYS).map(deleted))
                .collect(),
        );
        let next = Arc::new(AtomicUsize::new(0));
        let readers: Vec<_> = (0..LAST_READERS)
            .map(|_| {
                let process = Process {
                    number: shared.processes.fetch_add(1, Ordering::Relaxed),
                    client: client(rig, seeds),
                    shared: shared.clone(),
                };
                let (names, next) = (names.clone(), next.clone());
                rig.runtime().spawn(async move {
                    while let Some(key) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let end = Instant::now() + PATIENCE;
                        while !process.read(key).await && Instant::now() < end {
                            tokio::time::sleep(PAUSE).await;
                        }
                    }
                })
            })
            .collect();
        for reader in readers {
            rig.wait(reader).unwrap();
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn unique(number: u64) -> String {
    format!("u/{number}")
}

fn contended(number: u64) -> String {
    format!("c/{number}")
}

fn deleted(number: u64) -> String {
    format!("d/{number}")
}

/// One that does one thing after the other.
struct Process {
    number: usize,
    client: Arc<Client>,
    shared: Arc<Shared>,
}

impl Process {
    fn goes_on(&self) -> bool {
        !self.shared.stop.load(Ordering::Relaxed)
    }

    async fn write(&self, key: &str) -> bool {
        let call = self.shared.history.invoke(self.number, Op::Write, key);
        let result = self.client.put(key.to_owned(), call.value()).await;
        self.shared.history.wrote(call, &result);
        result.is_ok()
    }

    async fn delete(&self, key: &str) -> bool {
        let call = self.shared.history.invoke(self.number, Op::Delete, key);
        let result = self.client.delete(key.to_owned()).await;
        self.shared.history.wrote(call, &result);
        result.is_ok()
    }

    async fn read(&self, key: &str) -> bool {
        let call = self.shared.history.invoke(self.number, Op::Read, key);
        let result = self.client.get(key.to_owned()).await;
        self.shared.history.read(call, &result);
        result.is_ok()
    }

    async fn writes_unique_keys(self) {
        let shared = &self.shared;
        while self.goes_on() {
            let wanted = shared.wanted.load(Ordering::Relaxed);
            if shared.acknowledged.load(Ordering::Relaxed) >= wanted {
                tokio::time::sleep(BREATH).await;
                continue;
            }
            // A key that was refused is not tried again: it must never appear.
            if self.write(&unique(shared.keys.fetch_add(1, Ordering::Relaxed))).await {
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
            } else {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn reads_unique_keys(self) {
        while self.goes_on() {
            let keys = self.shared.keys.load(Ordering::Relaxed);
            let fine = keys == 0 || self.read(&unique(rand::random_range(0..keys))).await;
            tokio::time::sleep(if fine { BREATH } else { PAUSE }).await;
        }
    }

    async fn contends(self, op: Op, name: fn(u64) -> String, keys: u64) {
        while self.goes_on() {
            let key = name(rand::random_range(0..keys));
            let fine = match op {
                Op::Write => self.write(&key).await,
                Op::Read => self.read(&key).await,
                Op::Delete => self.delete(&key).await,
            };
            tokio::time::sleep(if fine { BREATH } else { PAUSE }).await;
        }
    }
}
