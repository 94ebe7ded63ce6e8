//! Records in memory, gone with the process.
//!
//! For caches, tests and rings that trust their replicas more than their disks. What matters is
//! how many records fit: each is a single allocation that holds key, version, flags and
//! value side by side (the codec's bytes), in a B-tree per slot. A key of 16 bytes with
//! a value of 100 costs about 170 bytes, so that a million of them stay far below 300 MB.
//!
//! Values are copied in and copied out. Keeping the caller's `Bytes` would be free at first, but a
//! `Bytes` is a slice of the network buffer it came in, and a 100-byte value would keep
//! the whole buffer alive for years.
//!
//! Each slot has its own lock, so that requests for different segments don't meet. The outer lock
//! is only held to find a slot or to create one. A write that races with `drop_slot` may land in
//! a table that is already unhooked, which is as if it had come just before.
//!
//! Left out on purpose: a size limit with eviction. A store that forgets acknowledged writes when it
//! is full would be a different product.

use crate::core::clock::Stamp;
use crate::core::record::{Record, Version};
use crate::core::token::{Slot, Token};
use crate::storage::engine::{Dead, Engine, Entry, Merged, SlotStats, check, decide};
use crate::storage::{StorageError, codec};
use bytes::Bytes;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A key and its encoded record in one allocation: the key's length, the key, the record. Cells are
/// ordered by key alone.
pub(super) struct Cell(Box<[u8]>);

impl Cell {
    /// Of an entry that was checked, so that its key's length fits two bytes.
    pub(super) fn new(key: &[u8], record: &Record) -> Self {
        let mut bytes = Vec::with_capacity(2 + key.len() + codec::encoded_len(record));
        bytes.extend_from_slice(&(key.len() as u16).to_be_bytes());
        bytes.extend_from_slice(key);
        codec::encode(record, &mut bytes);
        Cell(bytes.into_boxed_slice())
    }

    /// How long the key is, plus the two bytes that say so.
    fn record_at(&self) -> usize {
        2 + usize::from(u16::from_be_bytes([self.0[0], self.0[1]]))
    }

    /// The key.
    pub(super) fn key(&self) -> &[u8] {
        &self.0[2..self.record_at()]
    }

    fn encoded(&self) -> &[u8] {
        &self.0[self.record_at()..]
    }

    /// The record, taken apart.
    pub(super) fn parts(&self) -> Result<codec::Parts<'_>, StorageError> {
        codec::parse(self.encoded())
    }
}

impl Borrow<[u8]> for Cell {
    fn borrow(&self) -> &[u8] {
        self.key()
    }
}

impl Ord for Cell {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(other.key())
    }
}

impl PartialOrd for Cell {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Cell {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Cell {}

/// The records of one slot, with their numbers.
#[derive(Default)]
pub(super) struct Table {
    cells: BTreeSet<Cell>,
    stats: SlotStats,
}

impl Table {
    /// A key's record, taken apart.
    pub(super) fn parts(&self, key: &[u8]) -> Result<Option<codec::Parts<'_>>, StorageError> {
        self.cells.get(key).map(Cell::parts).transpose()
    }

    /// The newest stamp of all.
    pub(super) fn newest(&self) -> Stamp {
        let stamps = self.cells.iter().filter_map(|cell| cell.parts().ok());
        stamps.map(|parts| parts.version.hlc).max().unwrap_or_default()
    }

    /// Stores an entry if it wins. The second half is what it replaced.
    pub(super) fn merge(&mut self, entry: &Entry) -> Result<(Merged, Option<Cell>), StorageError> {
        let merged = decide(self.parts(&entry.key)?.as_ref(), &entry.record)?;
        let replaced = match merged {
            Merged::Newer => self.put(entry.token, Cell::new(&entry.key, &entry.record))?,
            Merged::Equal | Merged::Older(_) => None,
        };
        Ok((merged, replaced))
    }

    /// Puts a cell in, whether it wins or not, and gives back what was there.
    pub(super) fn put(&mut self, token: Token, cell: Cell) -> Result<Option<Cell>, StorageError> {
        let old = self.take(token, cell.key())?;
        self.stats.add(token, cell.key(), cell.parts()?.head());
        self.cells.insert(cell);
        Ok(old)
    }

    /// Takes a key out.
    pub(super) fn take(&mut self, token: Token, key: &[u8]) -> Result<Option<Cell>, StorageError> {
        let old = self.cells.take(key);
        if let Some(old) = &old {
            self.stats.remove(token, key, old.parts()?.head());
        }
        Ok(old)
    }

    /// Takes a record out if it is of this version still.
    pub(super) fn forget(&mut self, dead: &Dead) -> Result<Option<Cell>, StorageError> {
        let there = self.parts(&dead.key)?.is_some_and(|parts| parts.version == dead.version);
        if there { self.take(dead.token, &dead.key) } else { Ok(None) }
    }

    /// As [`Engine::scan`].
    pub(super) fn scan(
        &self,
        from: Bound<&[u8]>,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Record)>, StorageError> {
        let mut found = Vec::new();
        let mut left = max_bytes;
        for cell in self.cells.range::<[u8], _>((from, Bound::Unbounded)) {
            let size = codec::paged_len(cell.key(), cell.encoded());
            if size > left && !found.is_empty() {
                break;
            }
            left = left.saturating_sub(size);
            found.push((Bytes::copy_from_slice(cell.key()), cell.parts()?.to_record()?));
        }
        Ok(found)
    }

    /// Its numbers.
    pub(super) fn stats(&self) -> SlotStats {
        self.stats.clone()
    }
}

/// An engine that keeps everything in memory and nothing anywhere else.
#[derive(Default)]
pub struct MemoryEngine {
    slots: RwLock<HashMap<Slot, Arc<RwLock<Table>>>>,
}

impl MemoryEngine {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn table(&self, slot: Slot) -> Option<Arc<RwLock<Table>>> {
        read(&self.slots).get(&slot).cloned()
    }

    fn table_or_new(&self, slot: Slot) -> Arc<RwLock<Table>> {
        self.table(slot).unwrap_or_else(|| write(&self.slots).entry(slot).or_default().clone())
    }
}

impl Engine for MemoryEngine {
    fn get(&self, slot: Slot, key: &[u8]) -> Result<Option<Record>, StorageError> {
        let Some(table) = self.table(slot) else { return Ok(None) };
        let table = read(&table);
        table.parts(key)?.map(codec::Parts::to_record).transpose()
    }

    fn version(&self, slot: Slot, key: &[u8]) -> Result<Option<Version>, StorageError> {
        let Some(table) = self.table(slot) else { return Ok(None) };
        let table = read(&table);
        Ok(table.parts(key)?.map(|parts| parts.version))
    }

    fn merge(&self, entries: &[Entry]) -> Result<Vec<Merged>, StorageError> {
        check(entries)?;
        let mut merged = Vec::with_capacity(entries.len());
        // One lock per run of a slot: a batch mostly has few slots, and holding two locks at once
        // could deadlock with a batch that has them the other way round.
        for run in entries.chunk_by(|a, b| a.slot == b.slot) {
            let table = self.table_or_new(run[0].slot);
            let mut table = write(&table);
            for entry in run {
                merged.push(table.merge(entry)?.0);
            }
        }
        Ok(merged)
    }

    fn sync(&self) -> Result<(), StorageError> {
        Ok(())
    }

    fn scan(
        &self,
        slot: Slot,
        from: Bound<&[u8]>,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Record)>, StorageError> {
        self.table(slot).map_or(Ok(Vec::new()), |table| read(&table).scan(from, max_bytes))
    }

    fn drop_slot(&self, slot: Slot) -> Result<(), StorageError> {
        let table = write(&self.slots).remove(&slot);
        // Freeing many records takes a while, so it happens after the lock is given back.
        drop(table);
        Ok(())
    }

    fn forget(&self, dead: &[Dead]) -> Result<(), StorageError> {
        for dead in dead {
            if let Some(table) = self.table(dead.slot) {
                write(&table).forget(dead)?;
            }
        }
        Ok(())
    }

    fn slots(&self) -> Vec<(Slot, SlotStats)> {
        let tables: Vec<_> = read(&self.slots).iter().map(|(slot, table)| (*slot, table.clone())).collect();
        let mut slots: Vec<_> =
            tables.into_iter().map(|(slot, table)| (slot, read(&table).stats())).collect();
        slots.retain(|(_, stats)| stats.records > 0);
        slots.sort_unstable_by_key(|(slot, _)| *slot);
        slots
    }

    fn stats(&self, slot: Slot) -> SlotStats {
        self.table(slot).map_or_else(SlotStats::default, |table| read(&table).stats())
    }

    fn newest_at_open(&self) -> Stamp {
        0
    }

    fn needs_sync(&self) -> bool {
        false
    }
}

// Nothing under these locks panics halfway through a change, so that a lock poisoned by some other
// panic (out of memory, say) still guards whole data.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::engine::conformance::{self, entry};

    conformance::suite!((MemoryEngine::new(), ()));

    #[test]
    fn a_stored_value_keeps_no_buffer_of_its_caller_alive() {
        let engine = MemoryEngine::new();
        let buffer = Bytes::from(vec![7; 4096]);
        let mut write = entry(1, "k", 1, Some(""));
        write.record.value = Some(buffer.slice(10..20));
        engine.merge(std::slice::from_ref(&write)).unwrap();
        drop(write);
        assert!(buffer.is_unique());
    }

    #[test]
    fn writers_of_many_threads_all_arrive() {
        let engine = MemoryEngine::new();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let engine = &engine;
                scope.spawn(move || {
                    for i in 0..200u64 {
                        let write = entry(1 + i % 3, format!("{i}"), 1 + thread, Some("v"));
                        engine.merge(&[write]).unwrap();
                    }
                });
            }
        });
        assert_eq!(engine.slots().iter().map(|(_, stats)| stats.keys).sum::<u64>(), 200);
        assert!((0..200u64).all(|i| {
            let slot = conformance::slot(1 + i % 3);
            engine.version(slot, i.to_string().as_bytes()).unwrap().unwrap().hlc == 4
        }));
    }
}
