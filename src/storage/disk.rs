//! Records on disk, in fjall: a log-structured merge tree with a write-ahead journal.
//!
//! Layout: one keyspace, `records`. A key is the slot's segment (2 bytes) and epoch (8 bytes),
//! big-endian, and then the key, so that a slot is one range in key order. A value is the codec's bytes.
//! Before all slots there is the number of the last batch.
//!
//! # What is durable when
//!
//! A `merge` writes one fjall batch, one checksummed unit in the journal: after a crash it is there
//! as a whole or not at all. It is *not* flushed; that is what `sync` is for, so that one `fsync`
//! serves all requests that wait. `sync` asks for `SyncData` (`fdatasync`), which is enough for this
//! journal (fjall 3.1, `journal/writer.rs`): each file is created at 64 MiB and synced whole, then
//! its folder; `fdatasync` also writes metadata without which the data could not be read, a grown
//! file size included (a journal reopened after a crash does grow); and fjall syncs the old file
//! with `SyncAll` before it turns to a new one. So a crash loses a suffix of what was not synced.
//!
//! # Costs
//!
//! - Opening scans every record once, to count and digest the slots: the stats are kept in memory
//!   only, since keeping them on disk would add a write to every write. Expect seconds per
//!   10 GB from an SSD.
//! - Merging reads what is there first: for a key that is new, mostly a Bloom filter's answer. Of keys
//!   that were written lately the heads are kept in memory and nothing is read, unless versions tie.
//! - Dropping a slot writes a tombstone per record, in batches, for fjall 3.1 has no journaled range
//!   delete; the space comes back with later compactions.
//!
//! # Failing
//!
//! After a failed write or sync the engine is poisoned: each later `merge`, `sync` and `drop_slot`
//! fails at once. Fjall's background thread can fail too (a full disk, mostly): the next call finds
//! out. Reads go on, since what they show was merged; the process is about to end anyway.
//!
//! # What fjall 3.1 does not notice, or notices too strictly
//!
//! After a crash fjall reads the journal up to the first thing that is no entry and cuts the rest
//! off, silently: right for a torn tail, but a bit that rotted inside an entry's frame in the
//! middle costs all unflushed writes behind it. `disk/synced` notices that, unless it was in a journal that is
//! older than the newest one (there is one only while a memtable is being flushed). The other way
//! round, a page inside a large value that never reached the disk while its neighbours did is a wrong
//! checksum, and opening fails as `Corrupt`, though nothing that was synced is missing.
//!
//! Left out on purpose: separate files for large values (fjall has them, at the price of a garbage
//! collection of their own; a megabyte is not large enough to need them), and tuning knobs: the
//! constants below serve a node with some gigabytes.

mod folder;
mod synced;
#[cfg(test)]
mod tests;

use crate::core::clock::Stamp;
use crate::core::mutants::{Mutant, planted};
use crate::core::record::{Record, Version};
use crate::core::token::{Segment, Slot, Token};
use crate::storage::StorageError;
use crate::storage::codec::{self, Head};
use crate::storage::engine::{Dead, Engine, Entry, Merged, SlotStats, check, decide, decide_by_version};
use crate::storage::vault::sync_folder;
use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable};
use quick_cache::Weighter;
use quick_cache::unsync::Cache;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::ErrorKind;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use synced::Synced;

/// Blocks of table files kept in memory, shared by data, indexes and filters. The kernel's page cache
/// stands behind it, so this only has to hold the hot part; a machine often runs several nodes.
const BLOCK_CACHE_BYTES: u64 = 64 << 20;

/// Background threads that flush memtables and compact tables. With two, fjall keeps the first one
/// free for flushes, so that writes needn't wait for a long compaction.
const WORKER_THREADS: usize = 2;

/// When a memtable is flushed. Up to four more wait sealed before fjall halts writes, so that this
/// times five is the most memory writes take. Fixed when the keyspace is created.
const MEMTABLE_BYTES: u64 = 32 << 20;

/// How much journal there may be; as much is replayed at the next start at worst.
const JOURNALS_BYTES: u64 = 256 << 20;

/// Open table files. Half of what many systems allow a process by default, for sockets need them too.
const OPEN_FILES: usize = 512;

/// How many records `drop_slot` removes in one batch: some hundred kilobytes of journal, during which
/// writers wait.
const DROP_BATCH: usize = 1024;

/// Memory for the heads of records that were written lately: some 120,000 with short keys.
const HEADS_BYTES: u64 = 16 << 20;

/// What a head costs beside its key: itself, and its place in the cache.
const HEAD_BYTES: u64 = 112;

/// The keyspace that holds everything.
const KEYSPACE: &str = "records";

/// Bytes of a slot in front of each key.
const SLOT_BYTES: usize = 10;

/// Where the slots begin.
const FIRST_SLOT: [u8; SLOT_BYTES] = [0; SLOT_BYTES];

/// A slot's records all begin with this.
fn prefix(slot: Slot) -> [u8; SLOT_BYTES] {
    let mut prefix = [0; SLOT_BYTES];
    prefix[..2].copy_from_slice(&slot.segment.0.to_be_bytes());
    prefix[2..].copy_from_slice(&slot.acquired.to_be_bytes());
    prefix
}

pub(crate) fn stored_key(slot: Slot, key: &[u8]) -> Vec<u8> {
    [&prefix(slot), key].concat()
}

pub(crate) fn split_stored_key(stored: &[u8]) -> Result<(Slot, &[u8]), StorageError> {
    let short = || StorageError::corrupt("a stored key is too short to name its slot");
    let (segment, rest) = stored.split_first_chunk::<2>().ok_or_else(short)?;
    let (acquired, key) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let segment = Segment(u16::from_be_bytes(*segment));
    Ok((Slot { segment, acquired: u64::from_be_bytes(*acquired) }, key))
}

/// Where the slot ends: the next prefix in byte order, if there is one.
fn end_of(slot: Slot) -> Bound<Vec<u8>> {
    let mut end = prefix(slot).to_vec();
    while end.last() == Some(&0xff) {
        end.pop();
    }
    match end.last_mut() {
        Some(last) => *last += 1,
        None => return Bound::Unbounded,
    }
    Bound::Excluded(end)
}

/// Heads of records by their stored keys: some of those that the tree has, and nothing else.
type Heads = Cache<Vec<u8>, Head, HeadWeight>;

#[derive(Clone)]
struct HeadWeight;

impl Weighter<Vec<u8>, Head> for HeadWeight {
    fn weight(&self, stored_key: &Vec<u8>, _: &Head) -> u64 {
        stored_key.len() as u64 + HEAD_BYTES
    }
}

/// As many as fit into so many bytes.
fn heads(bytes: u64) -> Heads {
    Cache::with_weighter((bytes / HEAD_BYTES) as usize, bytes, HeadWeight)
}

/// An engine in a folder of its own.
pub struct DiskEngine {
    folder: PathBuf,
    database: Database,
    records: Keyspace,
    /// Held while a merge reads, decides and writes, so that no two of them decide on the same state.
    /// Reads don't take it. Nor do syncs: fjall halts writes while flushes lag, for ever if the flushing
    /// thread died of a full disk, and then a sync is what finds out.
    ///
    /// What is inside follows each write that was committed, so that it never differs from the tree.
    writing: Mutex<Heads>,
    /// Slots that hold something.
    stats: Mutex<HashMap<Slot, SlotStats>>,
    newest_at_open: Stamp,
    /// The number of the last batch that was committed.
    batches: AtomicU64,
    synced: Synced,
    poisoned: AtomicBool,
}

impl DiskEngine {
    /// Opens the engine that a member of a ring has in `folder`: what is missing there was lost.
    pub fn reopen(folder: impl Into<PathBuf>) -> Result<Self, StorageError> {
        let folder = folder.into();
        folder::must_be_whole(&folder)?;
        DiskEngine::open(folder)
    }

    /// Opens the engine in `folder`, or creates it there if the folder is empty or missing.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, StorageError> {
        let folder = folder.into();
        folder::prepare(&folder)?;
        let database = Database::builder(&folder)
            .cache_size(BLOCK_CACHE_BYTES)
            .worker_threads(WORKER_THREADS)
            .max_journaling_size(JOURNALS_BYTES)
            .max_cached_files(Some(OPEN_FILES))
            .manual_journal_persist(true)
            .open()
            .map_err(|error| failed("opening", &folder, error))?;
        let options = || {
            KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES).manual_journal_persist(true)
        };
        let known = database.list_keyspace_names();
        if !known.is_empty() && known.iter().all(|name| &**name != KEYSPACE) {
            return Err(StorageError::Foreign { what: folder.display().to_string() });
        }
        let records =
            database.keyspace(KEYSPACE, options).map_err(|error| failed("opening", &folder, error))?;
        // Fjall syncs what is in the folders that it creates, but not where they are.
        if !planted(Mutant::EngineFoldersNotSynced) {
            sync_folder(&folder.join("keyspaces"))?;
            sync_folder(folder.parent().unwrap_or(Path::new(".")))?;
        }
        let (stats, newest_at_open) = count(&records, &folder)?;
        let number = records.get(synced::KEY).map_err(|error| failed("reading", &folder, error))?;
        let number = number.map(|number| number.as_ref().try_into().map(u64::from_be_bytes)).transpose();
        let number = number.map_err(|_error| StorageError::corrupt("a batch's number has not 8 bytes"))?;
        let batches = number.unwrap_or_default();
        Ok(DiskEngine {
            synced: Synced::open(&folder, batches)?,
            batches: batches.into(),
            folder,
            database,
            records,
            writing: Mutex::new(heads(HEADS_BYTES)),
            stats: Mutex::new(stats),
            newest_at_open,
            poisoned: AtomicBool::new(false),
        })
    }

    /// Takes the right to write, if writing still makes sense.
    fn write(&self) -> Result<MutexGuard<'_, Heads>, StorageError> {
        let guard = self.writing.lock().unwrap_or_else(|panicked| {
            // Perhaps between a commit and the heads that follow it.
            let mut guard = panicked.into_inner();
            guard.clear();
            guard
        });
        // Looked at under the mutex, or a write could follow one that failed meanwhile.
        self.check_poison().map(|()| guard)
    }

    fn check_poison(&self) -> Result<(), StorageError> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(StorageError::Poisoned { what: self.folder.display().to_string() });
        }
        Ok(())
    }

    /// Passes a write's result on; a failure is the last.
    fn written<T>(&self, doing: &str, result: fjall::Result<T>) -> Result<T, StorageError> {
        result.map_err(|error| {
            self.poisoned.store(true, Ordering::Release);
            failed(doing, &self.folder, error)
        })
    }

    /// Commits a batch under its number. Only whoever has the right to write may.
    fn commit(&self, mut batch: OwnedWriteBatch) -> Result<(), StorageError> {
        if batch.is_empty() {
            return Ok(());
        }
        let number = self.batches.load(Ordering::Relaxed) + 1;
        batch.insert(&self.records, synced::KEY, number.to_be_bytes());
        self.written("writing to", batch.commit())?;
        self.batches.store(number, Ordering::Release);
        Ok(())
    }

    fn read(&self, stored_key: &[u8]) -> Result<Option<fjall::Slice>, StorageError> {
        self.records.get(stored_key).map_err(|error| failed("reading", &self.folder, error))
    }

    fn all_stats(&self) -> MutexGuard<'_, HashMap<Slot, SlotStats>> {
        // Only ever changed by whole assignments.
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_stats(&self, slot: Slot, stats: SlotStats) {
        let mut all = self.all_stats();
        if stats.records == 0 {
            all.remove(&slot);
        } else {
            all.insert(slot, stats);
        }
    }

    /// Removes up to [`DROP_BATCH`] records of a slot; whether there may be more.
    fn drop_some(&self, slot: Slot) -> Result<bool, StorageError> {
        let mut heads = self.write()?;
        let mut stats = self.stats(slot);
        let mut batch = self.database.batch();
        let range = (Bound::Included(prefix(slot).to_vec()), end_of(slot));
        for record in self.records.range(range).take(DROP_BATCH) {
            let (stored, record) =
                record.into_inner().map_err(|error| failed("reading", &self.folder, error))?;
            let (_, key) = split_stored_key(&stored)?;
            stats.remove(Token::of(key), key, codec::parse(&record)?.head());
            // Even if the batch fails: what is not in there is read.
            heads.remove(&*stored);
            batch.remove(&self.records, stored.clone());
        }
        let removed = batch.len();
        self.commit(batch)?;
        self.set_stats(slot, stats);
        Ok(removed == DROP_BATCH)
    }
}

impl Engine for DiskEngine {
    fn get(&self, slot: Slot, key: &[u8]) -> Result<Option<Record>, StorageError> {
        let stored = self.read(&stored_key(slot, key))?;
        stored.map(|stored| codec::parse(&stored)?.to_record()).transpose()
    }

    fn version(&self, slot: Slot, key: &[u8]) -> Result<Option<Version>, StorageError> {
        let stored = self.read(&stored_key(slot, key))?;
        stored.map(|stored| codec::parse(&stored).map(|parts| parts.version)).transpose()
    }

    fn merge(&self, entries: &[Entry]) -> Result<Vec<Merged>, StorageError> {
        check(entries)?;
        let mut heads = self.write()?;
        let mut merged = Vec::with_capacity(entries.len());
        // What the batch will write, each key once: fjall gives all writes of a batch one sequence
        // number, so that two of the same key would be in no order.
        let mut winners: BTreeMap<Vec<u8>, (Head, Vec<u8>)> = BTreeMap::new();
        let mut stats: HashMap<Slot, SlotStats> = HashMap::new();
        for Entry { slot, token, key, record } in entries {
            let stored_key = stored_key(*slot, key);
            let winner = winners.get(&stored_key);
            let known = winner.map(|(head, _)| *head).or_else(|| heads.get(&stored_key).copied());
            let by_version =
                |head: Head| Some((decide_by_version(head.version, record.version)?, Some(head)));
            let (outcome, current) = match known.and_then(by_version) {
                Some(decided) => decided,
                None => {
                    let on_disk;
                    let current = match winner {
                        Some((_, encoded)) => Some(encoded.as_slice()),
                        None => {
                            on_disk = self.read(&stored_key)?;
                            on_disk.as_deref()
                        }
                    };
                    let current = current.map(codec::parse).transpose()?;
                    (decide(current.as_ref(), record)?, current.map(|current| current.head()))
                }
            };
            merged.push(outcome);
            if outcome == Merged::Newer {
                let stats = stats.entry(*slot).or_insert_with(|| self.stats(*slot));
                if let Some(current) = current {
                    stats.remove(*token, key, current);
                }
                let mut encoded = Vec::with_capacity(codec::encoded_len(record));
                codec::encode(record, &mut encoded);
                let head = codec::parse(&encoded)?.head();
                stats.add(*token, key, head);
                winners.insert(stored_key, (head, encoded));
            }
        }
        let mut batch = self.database.batch();
        let mut newest = Vec::with_capacity(winners.len());
        for (key, (head, record)) in winners {
            batch.insert(&self.records, key.as_slice(), record);
            newest.push((key, head));
        }
        self.commit(batch)?;
        for (key, head) in newest {
            heads.insert(key, head);
        }
        for (slot, stats) in stats {
            self.set_stats(slot, stats);
        }
        Ok(merged)
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.check_poison()?;
        if planted(Mutant::EngineSyncSkipped) {
            return Ok(());
        }
        let batches = self.batches.load(Ordering::Acquire);
        // Why `SyncData` is enough is told at the top of this file.
        self.written("syncing", self.database.persist(PersistMode::SyncData))?;
        self.written("noting what is synced by", self.synced.note(batches).map_err(fjall::Error::Io))
    }

    fn scan(
        &self,
        slot: Slot,
        from: Bound<&[u8]>,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Record)>, StorageError> {
        let start = match from {
            Bound::Excluded(after) => Bound::Excluded(stored_key(slot, after)),
            Bound::Included(first) => Bound::Included(stored_key(slot, first)),
            Bound::Unbounded => Bound::Included(prefix(slot).to_vec()),
        };
        let mut found = Vec::new();
        let mut left = max_bytes;
        // A snapshot, so that a page never shows half of a batch.
        for record in self.database.snapshot().range(&self.records, (start, end_of(slot))) {
            let (stored, record) =
                record.into_inner().map_err(|error| failed("reading", &self.folder, error))?;
            let (_, key) = split_stored_key(&stored)?;
            let size = codec::paged_len(key, &record);
            if size > left && !found.is_empty() {
                break;
            }
            left = left.saturating_sub(size);
            found.push((Bytes::copy_from_slice(key), codec::parse(&record)?.to_record()?));
        }
        Ok(found)
    }

    fn drop_slot(&self, slot: Slot) -> Result<(), StorageError> {
        // The mutex is given back between batches, so that other slots' writers get their turn.
        while self.drop_some(slot)? {}
        Ok(())
    }

    fn forget(&self, dead: &[Dead]) -> Result<(), StorageError> {
        let mut heads = self.write()?;
        let mut gone: BTreeSet<Vec<u8>> = BTreeSet::new();
        let mut stats: HashMap<Slot, SlotStats> = HashMap::new();
        for Dead { slot, token, key, version } in dead {
            let stored_key = stored_key(*slot, key);
            let Some(stored) = self.read(&stored_key)? else { continue };
            let head = codec::parse(&stored)?.head();
            if head.version == *version && gone.insert(stored_key) {
                stats.entry(*slot).or_insert_with(|| self.stats(*slot)).remove(*token, key, head);
            }
        }
        let mut batch = self.database.batch();
        for key in gone {
            heads.remove(&key);
            batch.remove(&self.records, key);
        }
        self.commit(batch)?;
        for (slot, stats) in stats {
            self.set_stats(slot, stats);
        }
        Ok(())
    }

    fn slots(&self) -> Vec<(Slot, SlotStats)> {
        let mut slots: Vec<_> = self.all_stats().iter().map(|(slot, stats)| (*slot, stats.clone())).collect();
        slots.sort_unstable_by_key(|(slot, _)| *slot);
        slots
    }

    fn stats(&self, slot: Slot) -> SlotStats {
        self.all_stats().get(&slot).cloned().unwrap_or_default()
    }

    fn newest_at_open(&self) -> Stamp {
        self.newest_at_open
    }

    fn needs_sync(&self) -> bool {
        true
    }
}

/// Counts and digests every slot.
fn count(records: &Keyspace, folder: &Path) -> Result<(HashMap<Slot, SlotStats>, Stamp), StorageError> {
    let (mut stats, mut newest): (HashMap<Slot, SlotStats>, Stamp) = Default::default();
    for record in records.range(FIRST_SLOT..) {
        let (stored, record) = record.into_inner().map_err(|error| failed("reading", folder, error))?;
        let (slot, key) = split_stored_key(&stored)?;
        let head = codec::parse(&record)?.head();
        stats.entry(slot).or_default().add(Token::of(key), key, head);
        newest = newest.max(head.version.hlc);
    }
    Ok((stats, newest))
}

/// What fjall's errors mean to us.
fn failed(doing: &str, folder: &Path, error: fjall::Error) -> StorageError {
    let what = format!("{doing} the engine in {} failed", folder.display());
    match error {
        fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source)) => {
            // Files that end early or are missing are damage, not trouble with the device.
            match source.kind() {
                ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::NotFound => {
                    StorageError::corrupt(format!("{what}: {source}"))
                }
                _ => StorageError::io(what, source),
            }
        }
        fjall::Error::Poisoned => StorageError::Poisoned { what: folder.display().to_string() },
        fjall::Error::Locked => StorageError::InUse { what: folder.display().to_string() },
        error => StorageError::corrupt(format!("{what}: {error}")),
    }
}
