//! A host's disk as one life of its node has it. Whoever is killed takes its threads with it; here they
//! may go on for a moment, and must not write over what the next life writes.

use bytes::Bytes;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use thrifty::core::clock::Stamp;
use thrifty::core::record::{Record, Version};
use thrifty::core::token::Slot;
use thrifty::storage::StorageError;
use thrifty::storage::engine::{Dead, Engine, Entry, Merged, SlotStats};
use thrifty::storage::memory::MemoryEngine;
use thrifty::storage::vault::{MemoryVault, Vault};

/// Deletes that a host has forgotten, in all seeds.
pub(crate) static DELETES_FORGOTTEN: AtomicU64 = AtomicU64::new(0);

/// Expired values that a host has forgotten, in all seeds.
pub(crate) static EXPIRED_FORGOTTEN: AtomicU64 = AtomicU64::new(0);

/// From its end on a life changes nothing.
#[derive(Clone, Default)]
pub(crate) struct Life(Arc<RwLock<bool>>);

impl Life {
    /// What it is changing has been changed by then.
    pub(crate) fn end(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    fn change<T>(&self, change: impl FnOnce() -> Result<T, StorageError>) -> Result<T, StorageError> {
        let over = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if *over {
            let source = io::Error::other("this life is over");
            return Err(StorageError::Io { what: "changing a simulated disk".into(), source });
        }
        change()
    }
}

/// Something on a host's disk.
pub(crate) struct InLife<T> {
    pub(crate) on_disk: Arc<T>,
    pub(crate) life: Life,
}

impl Vault for InLife<MemoryVault> {
    fn load(&self, name: &str) -> Result<Option<Vec<u8>>, StorageError> {
        self.on_disk.load(name)
    }

    fn save(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.life.change(|| self.on_disk.save(name, bytes))
    }

    fn remove(&self, name: &str) -> Result<(), StorageError> {
        self.life.change(|| self.on_disk.remove(name))
    }
}

impl Engine for InLife<MemoryEngine> {
    fn get(&self, slot: Slot, key: &[u8]) -> Result<Option<Record>, StorageError> {
        self.on_disk.get(slot, key)
    }

    fn version(&self, slot: Slot, key: &[u8]) -> Result<Option<Version>, StorageError> {
        self.on_disk.version(slot, key)
    }

    fn merge(&self, entries: &[Entry]) -> Result<Vec<Merged>, StorageError> {
        self.life.change(|| self.on_disk.merge(entries))
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.life.change(|| self.on_disk.sync())
    }

    fn scan(
        &self,
        slot: Slot,
        from: Bound<&[u8]>,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Record)>, StorageError> {
        self.on_disk.scan(slot, from, max_bytes)
    }

    fn drop_slot(&self, slot: Slot) -> Result<(), StorageError> {
        self.life.change(|| self.on_disk.drop_slot(slot))
    }

    fn forget(&self, dead: &[Dead]) -> Result<(), StorageError> {
        self.life.change(|| {
            for Dead { slot, key, version, .. } in dead {
                if let Some(record) = self.on_disk.get(*slot, key)?.filter(|it| it.version == *version) {
                    let deleted = record.value.is_none();
                    let count = if deleted { &DELETES_FORGOTTEN } else { &EXPIRED_FORGOTTEN };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
            self.on_disk.forget(dead)
        })
    }

    fn slots(&self) -> Vec<(Slot, SlotStats)> {
        self.on_disk.slots()
    }

    fn stats(&self, slot: Slot) -> SlotStats {
        self.on_disk.stats(slot)
    }

    fn newest_at_open(&self) -> Stamp {
        self.on_disk.newest_at_open()
    }

    fn needs_sync(&self) -> bool {
        self.on_disk.needs_sync()
    }
}
