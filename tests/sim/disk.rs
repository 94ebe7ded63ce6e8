//! What a simulated node keeps over a crash: an engine that loses what was not synced, and the few
//! facts that were written down before anything was said that depends on them.

use bytes::Bytes;
use std::ops::Bound;
use std::sync::Arc;
use thrifty::core::ballot::Vote;
use thrifty::core::clock::Stamp;
use thrifty::core::layout::Layout;
use thrifty::core::record::{Record, Version};
use thrifty::core::token::{Epoch, Slot};
use thrifty::storage::StorageError;
use thrifty::storage::engine::{Dead, Engine, Entry, Merged, SlotStats};
use thrifty::storage::simulated::SimulatedEngine;

/// The engine of a node, which its processes share one after the other.
#[derive(Clone, Default)]
pub(crate) struct SharedEngine(pub(crate) Arc<SimulatedEngine>);

impl Engine for SharedEngine {
    fn get(&self, slot: Slot, key: &[u8]) -> Result<Option<Record>, StorageError> {
        self.0.get(slot, key)
    }

    fn version(&self, slot: Slot, key: &[u8]) -> Result<Option<Version>, StorageError> {
        self.0.version(slot, key)
    }

    fn merge(&self, entries: &[Entry]) -> Result<Vec<Merged>, StorageError> {
        self.0.merge(entries)
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.0.sync()
    }

    fn scan(&self, slot: Slot, from: Bound<&[u8]>, max: usize) -> Result<Vec<(Bytes, Record)>, StorageError> {
        self.0.scan(slot, from, max)
    }

    fn drop_slot(&self, slot: Slot) -> Result<(), StorageError> {
        self.0.drop_slot(slot)
    }

    fn forget(&self, dead: &[Dead]) -> Result<(), StorageError> {
        self.0.forget(dead)
    }

    fn slots(&self) -> Vec<(Slot, SlotStats)> {
        self.0.slots()
    }

    fn stats(&self, slot: Slot) -> SlotStats {
        self.0.stats(slot)
    }

    fn newest_at_open(&self) -> Stamp {
        self.0.newest_at_open()
    }

    fn needs_sync(&self) -> bool {
        self.0.needs_sync()
    }
}

/// What a crash leaves.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) engine: SharedEngine,
    /// The installed layout; none before a joiner met anybody.
    pub(crate) layout: Option<Arc<Layout>>,
    /// The vote, and at which installed epoch it was cast.
    pub(crate) vote: Option<(Epoch, Vote<Arc<Layout>>)>,
    /// The clock's mark.
    pub(crate) mark: Stamp,
    /// The Dual that it gathered for last, for the statistics only.
    pub(crate) gathered_at: Option<Epoch>,
    /// It was a member of a Stable layout once: if it no longer is, its time is over.
    pub(crate) settled: bool,
}

impl Disk {
    /// Of a member of this layout.
    pub(crate) fn of(layout: Arc<Layout>) -> Self {
        Disk { layout: Some(layout), ..Disk::default() }
    }
}
