//! The disk engine, and the committer on top of it.

use crate::disk::Luck;
use crate::mount::Mount;
use crate::{Failure, ME, Run, layout, must};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, LazyLock, mpsc};
use thrifty::core::clock::Clock;
use thrifty::core::record::{Record, Version};
use thrifty::core::replica_request::{Answer, Ask};
use thrifty::core::token::{Segment, Slot, Token};
use thrifty::location::state::{NodeState, save_layout};
use thrifty::replica::{Replica, Request};
use thrifty::storage::StorageError;
use thrifty::storage::data_dir::DataDir;
use thrifty::storage::disk::DiskEngine;
use thrifty::storage::engine::{Engine, Entry};
use thrifty::store::commit::{AnyEngine, Asked, Committer};
use thrifty::store::room::Room;
use tokio::sync::watch;

const SLOTS: u16 = 3;
const KEYS: u8 = 8;

/// Values are cut out of it, for it can't be compressed.
static NOISE: LazyLock<Bytes> = LazyLock::new(|| {
    let mut noise = vec![0; 2 << 20];
    StdRng::seed_from_u64(0).fill(&mut noise[..]);
    noise.into()
});

type Records = BTreeMap<(Slot, Bytes), Record>;

fn slot(segment: u16) -> Slot {
    Slot { segment: Segment(segment), acquired: 1 }
}

fn everything(engine: &DiskEngine) -> Result<Records, StorageError> {
    let mut all = Records::new();
    for (slot, _) in engine.slots() {
        let found = engine.scan(slot, Bound::Unbounded, usize::MAX)?;
        all.extend(found.into_iter().map(|(key, record)| ((slot, key), record)));
    }
    Ok(all)
}

/// A merge of some records, each newer than all before.
fn some_entries(rng: &mut StdRng, clock: &mut u64, large: bool) -> Vec<Entry> {
    let many = if large { 1 } else { rng.random_range(1..6) };
    let entry = |_| {
        let key = Bytes::from(vec![rng.random_range(0..KEYS)]);
        *clock += 1;
        let version = Version { hlc: *clock, node: 1 };
        let len = match rng.random_range(0..10) {
            _ if large => 1 << 20,
            0 => rng.random_range(0..100_000),
            _ => rng.random_range(0..300),
        };
        let from = rng.random_range(0..NOISE.len() - len);
        let value = NOISE.slice(from..from + len);
        let record =
            if rng.random_bool(0.1) { Record::tombstone(version) } else { Record::value(version, value) };
        Entry { slot: slot(rng.random_range(0..SLOTS)), token: Token::of(&key), key, record }
    };
    (0..many).map(entry).collect()
}

/// After every kill and every cut the engine opens, and holds what some first merges left, among them
/// all before the last sync that returned. What it showed once after opening stays, too.
///
/// One thing is let pass, see `storage/disk.rs`: where pages of a file survived in no order, opening may
/// fail as `Corrupt`. It must not lose anything silently even then.
pub(crate) fn engine(mount: &Mount, seed: u64) -> Result<Run, Failure> {
    let mut rng = StdRng::seed_from_u64(seed);
    mount.clear();
    // A few runs write as much as makes the engine flush and turn to a new journal.
    let large = seed % 64 == 63;
    let folder = mount.path().join("engine");
    let mut clock = 0;
    // What each merge since the last known state left behind; the first is sure.
    let mut states = vec![Records::new()];
    let mut scattered = false;
    for life in 0..4 {
        // The creation of an engine has a test of its own.
        let while_opening = life > 0 && rng.random_bool(0.3);
        let most = [8, 40, 400][if large { 2 } else { rng.random_range(0..2) }];
        let changes = rng.random_range(1..most);
        if while_opening {
            mount.stop_after(changes);
        }
        let engine = match DiskEngine::open(&folder) {
            Ok(engine) => Some(engine),
            Err(_) if mount.stopped() => None,
            Err(StorageError::Corrupt { .. }) if scattered => return Ok(Run::Corrupt),
            Err(error) => return Err(format!("opening again: {error}")),
        };
        if !while_opening {
            mount.stop_after(changes);
        }
        if let Some(engine) = &engine {
            match everything(engine) {
                Ok(found) => {
                    if !states.contains(&found) {
                        let versions = |records: &Records| -> Vec<u64> {
                            records.values().map(|record| record.version.hlc).collect()
                        };
                        let (found, sure) = (versions(&found), versions(&states[0]));
                        return Err(format!("found {found:?}, synced {sure:?}"));
                    }
                    states = vec![found];
                }
                Err(_) if mount.stopped() => {}
                Err(error) => return Err(format!("reading: {error}")),
            }
            while !mount.stopped() {
                let done = if rng.random_bool(0.3) {
                    engine.sync().map(|()| drop(states.drain(..states.len() - 1)))
                } else {
                    let entries = some_entries(&mut rng, &mut clock, large);
                    let mut state = states.last().cloned().unwrap_or_default();
                    state.extend(entries.iter().map(|e| ((e.slot, e.key.clone()), e.record.clone())));
                    states.push(state);
                    engine.merge(&entries).map(drop)
                };
                if let (Err(error), false) = (done, mount.stopped()) {
                    return Err(format!("writing: {error}"));
                }
            }
        }
        drop(engine);
        if rng.random() {
            let luck = Luck::any(&mut rng);
            scattered |= luck == Luck::Scattered;
            mount.cut(luck, &mut rng);
        } else {
            mount.kill();
        }
    }
    Ok(Run::Whole)
}

/// An engine whose creation was cut short at any point can be created again, or is the one that was
/// created.
pub(crate) fn creation(mount: &Mount, seed: u64) -> Result<Run, Failure> {
    let mut rng = StdRng::seed_from_u64(seed);
    mount.clear();
    let folder = mount.path().join("engine");
    mount.stop_after(1 + seed % 48);
    drop(DiskEngine::open(&folder));
    match rng.random_range(0..4) {
        0 => mount.kill(),
        _ => mount.cut(Luck::any(&mut rng), &mut rng),
    }
    let engine = must("opening again", DiskEngine::open(&folder))?;
    let entries = some_entries(&mut rng, &mut 0, false);
    must("writing", engine.merge(&entries).and_then(|_| engine.sync()))?;
    Ok(Run::Whole)
}

/// A node answers `Accepted` only to what is still there after a cut, and its clock starts above it.
pub(crate) fn committer(mount: &Mount, seed: u64) -> Result<Run, Failure> {
    let runtime = must("a runtime", tokio::runtime::Builder::new_multi_thread().worker_threads(1).build())?;
    let mut rng = StdRng::seed_from_u64(seed);
    mount.clear();
    let path = mount.path().join("node");
    let layout = Arc::new(layout());
    let (accepted, answers) = mpsc::channel();
    {
        let dir = must("a folder", DataDir::open(&path))?;
        let vault = Arc::new(dir.vault());
        must("a node", NodeState::open(vault.clone()))?;
        must("a layout", save_layout(&*vault, &layout))?;
        let engine: AnyEngine = Arc::new(must("an engine", DiskEngine::open(dir.engine_path()))?);
        let replica = Replica::new(ME, engine, layout.clone(), Clock::resume(0));
        let (failed, mut told) = watch::channel(None);
        let guard = runtime.enter();
        let committer =
            Committer::start(Arc::new(must("a replica", replica)?), vault, Arc::new(Room::new(None)), failed);
        let committer = must("a committer", committer)?;
        drop(guard);
        mount.stop_after(rng.random_range(1..80));
        runtime.block_on(async {
            let mut clock = 0;
            let load = async {
                loop {
                    clock += rng.random_range(1..1_u64 << 30);
                    let key = Bytes::from(vec![rng.random_range(0..KEYS)]);
                    let record = Record::value(Version { hlc: clock, node: 1 }, vec![0; 100]);
                    let ask = Ask::Write(record);
                    let (accepted, known) = (accepted.clone(), key.clone());
                    let (heard, hear) = tokio::sync::oneshot::channel();
                    let done = Box::new(move |answer| {
                        if let Answer::Accepted(version) = answer {
                            let _nobody = accepted.send((known, version));
                        }
                        let _gone = heard.send(());
                    });
                    let asked = committer.ask(Request { epoch: 1, key, ask }, || done);
                    debug_assert!(matches!(asked, Asked::Later));
                    // Sometimes several are on their way at the same time.
                    if rng.random() && hear.await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! {
                () = load => {}
                _ = told.wait_for(Option::is_some) => {}
            }
        });
    }
    drop((accepted, runtime));
    let luck = Luck::any(&mut rng);
    mount.cut(luck, &mut rng);
    let dir = must("the folder", DataDir::open(&path))?;
    let state = must("what the node remembers", NodeState::open(Arc::new(dir.vault())))?;
    let engine = match DiskEngine::open(dir.engine_path()) {
        Ok(engine) => engine,
        // See `engine`.
        Err(StorageError::Corrupt { .. }) if luck == Luck::Scattered => return Ok(Run::Corrupt),
        Err(error) => return Err(format!("opening again: {error}")),
    };
    for (key, version) in answers {
        let slot = layout.slot(ME, layout.segment(&key)).ok_or("a slot")?;
        let found = must("reading", engine.version(slot, &key))?;
        if found < Some(version) {
            return Err(format!("{version:?} of {key:?} was accepted, {found:?} is there"));
        }
        if state.clock_mark < version.hlc {
            return Err(format!("{version:?} was accepted, the clock starts at {}", state.clock_mark));
        }
    }
    Ok(Run::Whole)
}
