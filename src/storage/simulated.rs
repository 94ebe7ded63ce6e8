//! An engine for the simulator: like a disk, it can lose what was not synced; unlike a disk, it
//! does so when told, and the same way every time.
//!
//! What a journal loses in a crash is a suffix: operations reach it in order, and the tail that
//! had not reached the platter is gone. How long that tail is, is luck; here it is the argument of
//! [`crash`](SimulatedEngine::crash), so that a seed decides and can be replayed.
//!
//! The records are held once, in their newest state, with an *undo log* beside them: for every
//! operation since the last sync, what it replaced. A sync empties the log, a crash walks
//! it backwards. Both cost what was written since the last sync, and never the size of the store, so
//! that the simulator can crash nodes a hundred thousand times.
//!
//! Invariants: an operation is one `merge` that stored something or one `drop_slot` or `forget` that
//! forgot something, and it is kept or lost as a whole; after a crash nothing is unsynced; only ordered maps
//! inside, so that no answer depends on a hash seed.
//!
//! Left out on purpose: failing writes. An engine whose write failed is poisoned and its process
//! ends, which to all others is a crash with some `keep`. And a drop that a crash cuts in half: the
//! caller repeats it at the next start, as the [trait](Engine::drop_slot) asks.

use crate::core::clock::Stamp;
use crate::core::record::{Record, Version};
use crate::core::token::{Slot, Token};
use crate::storage::engine::{Dead, Engine, Entry, Merged, SlotStats, check};
use crate::storage::memory::{Cell, Table};
use crate::storage::{StorageError, codec};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How to take one operation back.
enum Undo {
    /// Restore what each entry replaced or removed, last entry first.
    Restore(Vec<Replaced>),
    /// Put the whole table back.
    Drop(Slot, Box<Table>),
}

/// A key that was written or forgotten, and what it had held.
struct Replaced {
    slot: Slot,
    token: Token,
    key: Bytes,
    old: Option<Cell>,
}

#[derive(Default)]
struct State {
    slots: BTreeMap<Slot, Table>,
    unsynced: Vec<Undo>,
}

impl State {
    fn undo(&mut self, undo: Undo) -> Result<(), StorageError> {
        match undo {
            Undo::Restore(replaced) => {
                for Replaced { slot, token, key, old } in replaced.into_iter().rev() {
                    let table = self.slots.entry(slot).or_default();
                    match old {
                        Some(cell) => table.put(token, cell)?,
                        None => table.take(token, &key)?,
                    };
                    if table.stats().records == 0 {
                        self.slots.remove(&slot);
                    }
                }
            }
            Undo::Drop(slot, table) => {
                self.slots.insert(slot, *table);
            }
        }
        Ok(())
    }
}

/// Memory that forgets like a disk.
#[derive(Default)]
pub struct SimulatedEngine {
    state: Mutex<State>,
}

impl SimulatedEngine {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many operations a crash could lose.
    pub fn unsynced(&self) -> usize {
        self.state().unsynced.len()
    }

    /// The process dies and starts again: of the unsynced operations the first `keep` happen to have
    /// reached the disk, the others are lost. What is there afterwards is durable.
    pub fn crash(&self, keep: usize) -> Result<(), StorageError> {
        let mut state = self.state();
        while state.unsynced.len() > keep {
            if let Some(undo) = state.unsynced.pop() {
                state.undo(undo)?;
            }
        }
        state.unsynced.clear();
        Ok(())
    }

    /// The disk is gone: everything is lost, durable or not.
    pub fn lose_everything(&self) {
        *self.state() = State::default();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock panics halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for SimulatedEngine {
    fn get(&self, slot: Slot, key: &[u8]) -> Result<Option<Record>, StorageError> {
        let state = self.state();
        let Some(table) = state.slots.get(&slot) else { return Ok(None) };
        table.parts(key)?.map(codec::Parts::to_record).transpose()
    }

    fn version(&self, slot: Slot, key: &[u8]) -> Result<Option<Version>, StorageError> {
        let state = self.state();
        let Some(table) = state.slots.get(&slot) else { return Ok(None) };
        Ok(table.parts(key)?.map(|parts| parts.version))
    }

    fn merge(&self, entries: &[Entry]) -> Result<Vec<Merged>, StorageError> {
        check(entries)?;
        let mut state = self.state();
        let mut merged = Vec::with_capacity(entries.len());
        let mut undo = Vec::new();
        for entry in entries {
            let (outcome, old) = state.slots.entry(entry.slot).or_default().merge(entry)?;
            if outcome == Merged::Newer {
                // The key is copied, as the value was: the caller's buffer is not ours to keep.
                let key = Bytes::copy_from_slice(&entry.key);
                undo.push(Replaced { slot: entry.slot, token: entry.token, key, old });
            }
            merged.push(outcome);
        }
        if !undo.is_empty() {
            state.unsynced.push(Undo::Restore(undo));
        }
        Ok(merged)
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.state().unsynced.clear();
        Ok(())
    }

    fn scan(
        &self,
        slot: Slot,
        from: Bound<&[u8]>,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Record)>, StorageError> {
        self.state().slots.get(&slot).map_or(Ok(Vec::new()), |table| table.scan(from, max_bytes))
    }

    fn drop_slot(&self, slot: Slot) -> Result<(), StorageError> {
        let mut state = self.state();
        if let Some(table) = state.slots.remove(&slot) {
            state.unsynced.push(Undo::Drop(slot, Box::new(table)));
        }
        Ok(())
    }

    fn forget(&self, dead: &[Dead]) -> Result<(), StorageError> {
        let mut state = self.state();
        let mut undo = Vec::new();
        for dead in dead {
            let slot = dead.slot;
            let Some(table) = state.slots.get_mut(&slot) else { continue };
            let old = table.forget(dead)?;
            if table.stats().records == 0 {
                state.slots.remove(&slot);
            }
            if old.is_some() {
                let key = Bytes::copy_from_slice(&dead.key);
                undo.push(Replaced { slot, token: dead.token, key, old });
            }
        }
        if !undo.is_empty() {
            state.unsynced.push(Undo::Restore(undo));
        }
        Ok(())
    }

    fn slots(&self) -> Vec<(Slot, SlotStats)> {
        self.state().slots.iter().map(|(slot, table)| (*slot, table.stats())).collect()
    }

    fn stats(&self, slot: Slot) -> SlotStats {
        self.state().slots.get(&slot).map_or_else(SlotStats::default, Table::stats)
    }

    fn newest_at_open(&self) -> Stamp {
        self.state().slots.values().map(Table::newest).max().unwrap_or_default()
    }

    fn needs_sync(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::engine::conformance::{self, all, dead, entry, slot};
    use proptest::prelude::*;

    conformance::suite!((SimulatedEngine::new(), ()));

    #[test]
    fn a_crash_keeps_what_was_synced_and_the_first_of_the_rest() {
        let engine = SimulatedEngine::new();
        engine.merge(&[entry(1, "a", 1, Some("synced"))]).unwrap();
        engine.sync().unwrap();
        engine.merge(&[entry(1, "a", 2, Some("kept")), entry(1, "b", 2, Some("kept"))]).unwrap();
        engine.merge(&[entry(1, "a", 1, Some("refused, so no operation"))]).unwrap();
        engine.merge(&[entry(1, "a", 3, None)]).unwrap();
        engine.drop_slot(slot(1)).unwrap();
        assert_eq!(engine.unsynced(), 3);
        engine.crash(1).unwrap();
        assert_eq!(engine.get(slot(1), b"a").unwrap().unwrap().value.unwrap(), "kept");
        assert_eq!((engine.unsynced(), engine.stats(slot(1)).records), (0, 2));
        engine.crash(0).unwrap();
        assert_eq!(engine.stats(slot(1)).records, 2);
        engine.lose_everything();
        assert_eq!(engine.slots(), []);
    }

    #[test]
    fn what_was_forgotten_is_back_after_a_crash_unless_it_was_synced() {
        let engine = SimulatedEngine::new();
        engine.merge(&[entry(1, "a", 1, None), entry(1, "b", 1, None)]).unwrap();
        engine.sync().unwrap();
        let before = image(&engine);
        engine.forget(&[dead(1, "a", 1), dead(1, "b", 2)]).unwrap();
        let after = image(&engine);
        engine.merge(&[entry(1, "a", 5, Some("v"))]).unwrap();
        engine.crash(1).unwrap();
        assert_eq!(image(&engine), after);
        engine.forget(&[dead(1, "b", 1)]).unwrap();
        assert_eq!((engine.slots(), engine.unsynced()), (vec![], 1));
        engine.crash(0).unwrap();
        assert_eq!(image(&engine), after);
        assert_ne!(after, before);
    }

    type Image = Vec<(Slot, SlotStats, Vec<(Bytes, Record)>)>;

    fn image(engine: &SimulatedEngine) -> Image {
        let slots = engine.slots().into_iter();
        slots.map(|(slot, stats)| (slot, stats, all(engine, slot, 1000))).collect()
    }

    proptest! {
        #[test]
        fn a_crash_restores_exactly_the_image_it_says(
            batches in proptest::collection::vec(
                proptest::collection::vec((0..2u64, "[xy]", 0..5u64, proptest::option::of("[ab]")), 0..4),
                1..10,
            ),
            synced in 0..4usize,
            keep in 0..10usize,
        ) {
            let engine = SimulatedEngine::new();
            // The image after each operation since the sync; an empty batch stands for a drop.
            let mut images = vec![image(&engine)];
            for (number, batch) in batches.iter().enumerate() {
                if batch.is_empty() {
                    engine.drop_slot(slot(0)).unwrap();
                } else {
                    let entries: Vec<_> = batch
                        .iter()
                        .map(|(which, key, hlc, value)| entry(*which, key, *hlc, value.as_deref()))
                        .collect();
                    engine.merge(&entries).unwrap();
                }
                if number == synced {
                    engine.sync().unwrap();
                    images = vec![image(&engine)];
                } else if engine.unsynced() == images.len() {
                    images.push(image(&engine));
                }
            }
            engine.crash(keep).unwrap();
            prop_assert_eq!(image(&engine), images[keep.min(images.len() - 1)].clone());
        }
    }
}
