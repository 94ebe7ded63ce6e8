//! A writer that never stops, a reader beside it, and what they know.
//!
//! Each key is written by one task, so that its writes never overlap. It notes which write was
//! acknowledged last, under which version, and which had an unknown outcome. Whatever is read
//! later must be that write, or a greater version of one whose outcome was unknown. The reader
//! holds that against all it sees while the writes go on.

use crate::rig::{Rig, until};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use thrifty::client::{Client, ClientConfig, ClientError, Found};
use thrifty::core::quorum::Consistency;
use thrifty::core::record::Version;
use tokio::task::JoinHandle;

/// Keys that are written: enough to be in segments of all owners.
const KEYS: usize = 60;

/// Tasks that write, each to keys of its own.
const WRITERS: usize = 3;

/// How long one try may take.
const TRY: Duration = Duration::from_secs(2);

/// Within which a request has to succeed, tries and all: what the tools allow by default.
const DEADLINE: Duration = Duration::from_secs(5);

/// Between two tries of one request.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Default)]
struct History {
    attempts: u64,
    newest: Option<(Version, u64)>,
    unknown: BTreeSet<u64>,
}

/// What is known of what was written.
#[derive(Default)]
pub(crate) struct Ledger {
    keys: Vec<Mutex<History>>,
    writes: AtomicU64,
    reads: AtomicU64,
    cured: AtomicU64,
    failures: Mutex<Vec<String>>,
}

fn key(at: usize) -> String {
    format!("load/{at}")
}

impl Ledger {
    fn new() -> Self {
        Ledger { keys: (0..KEYS).map(|_| Mutex::default()).collect(), ..Ledger::default() }
    }

    /// How many writes were acknowledged.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// How many reads succeeded.
    fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    fn fail(&self, what: String) {
        self.failures.lock().unwrap().push(what);
    }

    /// Asserts that no request failed for longer than its deadline, and none read what it must not.
    #[track_caller]
    pub(crate) fn nothing_failed(&self) {
        let failures = self.failures.lock().unwrap();
        let count = failures.len();
        let some: Vec<_> = failures.iter().take(10).collect();
        assert_eq!(count, 0, "after {} writes and {} reads: {some:#?}", self.writes(), self.reads());
    }

    /// Whether what was found under a key is what must be there, given what was acknowledged before
    /// the read began.
    fn judge(&self, at: usize, floor: Option<(Version, u64)>, found: Option<&Found>) -> Result<(), String> {
        let key = key(at);
        let Some((least, number)) = floor else { return Ok(()) };
        let Some(found) = found else {
            return Err(format!("{key}: write {number} ({least}) was acknowledged, and there is nothing"));
        };
        let text = String::from_utf8_lossy(&found.value);
        let Some(read) = text.strip_prefix(&format!("{key} ")).and_then(|n| n.parse::<u64>().ok()) else {
            return Err(format!("{key}: {text:?} was never written"));
        };
        let history = self.keys[at].lock().unwrap();
        let ours =
            if found.version == least { read == number } else { read <= history.attempts && read != number };
        match found.version >= least && ours {
            true => Ok(()),
            false => Err(format!(
                "{key}: write {number} ({least}) was acknowledged, and write {read} ({}) was read",
                found.version
            )),
        }
    }

    /// Reads everything, and asserts that each key has the write that was acknowledged last, or a
    /// later one whose outcome is unknown.
    #[track_caller]
    pub(crate) fn nothing_missing(&self, rig: &Rig, seeds: &[String]) {
        let client = rig.client(seeds);
        let mut wrong = Vec::new();
        for (at, history) in self.keys.iter().enumerate() {
            let (newest, unknown) = {
                let history = history.lock().unwrap();
                (history.newest, history.unknown.clone())
            };
            let found = until(&format!("{} can be read", key(at)), || rig.wait(client.get(key(at))).ok());
            let known = |found: &Found| {
                let is = |n: u64| found.value == format!("{} {n}", key(at));
                newest.is_some_and(|(version, n)| version == found.version && is(n))
                    || unknown.iter().any(|n| is(*n))
            };
            if let Err(why) = self.judge(at, newest, found.as_ref()) {
                wrong.push(why);
            } else if found.as_ref().is_some_and(|found| !known(found)) {
                wrong.push(format!("{}: {found:?} was never attempted after {newest:?}", key(at)));
            }
        }
        assert!(wrong.is_empty(), "after {} acknowledged writes: {wrong:#?}", self.writes());
    }
}

/// A writer and a reader at work.
pub(crate) struct Load {
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts writing and reading at QUORUM, by way of these nodes first.
    pub(crate) fn start(rig: &Rig, seeds: &[String]) -> Self {
        let (ledger, stop) = (Arc::new(Ledger::new()), Arc::new(AtomicBool::new(false)));
        let client = || rig.client_with(seeds, ClientConfig { timeout: TRY, ..ClientConfig::default() });
        let writer = |first| rig.runtime().spawn(write(first, client(), ledger.clone(), stop.clone()));
        let mut tasks: Vec<_> = (0..WRITERS).map(writer).collect();
        tasks.push(rig.runtime().spawn(read(client(), ledger.clone(), stop.clone())));
        let load = Load { ledger, stop, tasks };
        load.goes_on(KEYS as u64);
        load
    }

    /// Waits until so many more writes were acknowledged, and a read as well.
    #[track_caller]
    pub(crate) fn goes_on(&self, writes: u64) {
        let (before, reads) = (self.ledger.writes(), self.ledger.reads());
        until("writes and reads go on", || {
            (self.ledger.writes() >= before + writes && self.ledger.reads() > reads).then_some(())
        });
    }

    /// Stops, and returns what is known now.
    pub(crate) fn finish(mut self, rig: &Rig) -> Arc<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            rig.wait(task).unwrap();
        }
        let (writes, reads) = (self.ledger.writes(), self.ledger.reads());
        println!("{writes} writes, {reads} reads, {} tries cured", self.ledger.cured.load(Ordering::Relaxed));
        self.ledger.clone()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn write(first: usize, client: Client, ledger: Arc<Ledger>, stop: Arc<AtomicBool>) {
    for at in (first..KEYS).step_by(WRITERS).cycle() {
        let end = Instant::now() + DEADLINE;
        let mut tries = 0;
        loop {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            tries += 1;
            let number = {
                let mut history = ledger.keys[at].lock().unwrap();
                history.attempts += 1;
                history.attempts
            };
            match client.put(key(at), format!("{} {number}", key(at))).await {
                Ok(written) => {
                    let mut history = ledger.keys[at].lock().unwrap();
                    if written.consistency < Consistency::Quorum {
                        ledger.fail(format!("{}: written at {}", key(at), written.consistency.name()));
                    }
                    if history.newest.is_some_and(|(version, _)| version >= written.version) {
                        ledger.fail(format!("{}: {} follows {:?}", key(at), written.version, history.newest));
                    }
                    history.newest = Some((written.version, number));
                    ledger.writes.fetch_add(1, Ordering::Relaxed);
                    ledger.cured.fetch_add(u64::from(tries > 1), Ordering::Relaxed);
                    break;
                }
                Err(error) => {
                    // Everything else says that nothing was done.
                    if matches!(error, ClientError::OutcomeUnknown(_)) {
                        ledger.keys[at].lock().unwrap().unknown.insert(number);
                    }
                    if Instant::now() >= end {
                        ledger.fail(format!("{}: {tries} tries to write: {error}", key(at)));
                        break;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn read(client: Client, ledger: Arc<Ledger>, stop: Arc<AtomicBool>) {
    for at in (0..KEYS).cycle() {
        let end = Instant::now() + DEADLINE;
        let mut tries = 0;
        loop {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            tries += 1;
            let floor = ledger.keys[at].lock().unwrap().newest;
            match client.get(key(at)).await {
                Ok(found) => {
                    if let Err(why) = ledger.judge(at, floor, found.as_ref()) {
                        ledger.fail(why);
                    }
                    ledger.reads.fetch_add(1, Ordering::Relaxed);
                    ledger.cured.fetch_add(u64::from(tries > 1), Ordering::Relaxed);
                    break;
                }
                Err(error) if Instant::now() >= end => {
                    ledger.fail(format!("{}: {tries} tries to read: {error}", key(at)));
                    break;
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

#[test]
fn the_ledger_tells_a_lost_write_from_a_good_read() {
    let ledger = Ledger::new();
    ledger.keys[0].lock().unwrap().attempts = 5;
    let version = |hlc| Version { hlc, node: 1 };
    let floor = Some((version(30), 3));
    let check = |hlc, number: u64, good: bool| {
        let value = format!("{} {number}", key(0)).into();
        let found = Found {
            value,
            version: version(hlc),
            content_type: String::new(),
            expires_at_ms: None,
            consistency: Consistency::Quorum,
        };
        let judged = ledger.judge(0, floor, Some(&found));
        assert_eq!(judged.is_ok(), good, "write {number} under {hlc}: {judged:?}");
    };
    check(30, 3, true);
    check(40, 4, true);
    check(20, 2, false);
    check(30, 4, false);
    check(40, 3, false);
    check(40, 6, false);
    assert!(ledger.judge(0, floor, None).is_err());
    assert!(ledger.judge(0, None, None).is_ok());
}
