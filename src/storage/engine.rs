//! What a store of records must do, and the one suite that all of them must pass.
//!
//! An engine is a set of slots, each an ordered map from key to record. It is a *join*: a write
//! says "at least this", and what is there afterwards is the winner of what was there and what
//! came. Writes may therefore arrive twice, late and in any order, and replicas that were told the
//! same things hold the same things.
//!
//! Beside the records an engine keeps the [`SlotStats`] of each slot up to date write by write:
//! counting and digesting must not cost a scan, for replicas compare digests all the time.
//! Invariants, checked by the `conformance` suite for every engine:
//!
//! - what `merge` returned `Ok` for is what `get`, `version`, `scan` and `stats` show at once;
//! - a failed `merge` stored nothing, or the engine is poisoned and the process is about to end;
//! - stats are exactly what a full scan would count;
//! - a slot that holds nothing doesn't exist: it is in no list and its stats are all zero.
//!
//! Left out on purpose: any notion of time, of who owns a slot, and of when a tombstone may be
//! [forgotten](Engine::forget): early, that would bring values back to life.

use crate::core::clock::Stamp;
use crate::core::digest::Parts;
use crate::core::record::{MAX_CONTENT_TYPE_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, Record, Version};
use crate::core::token::{Slot, Token};
use crate::storage::{StorageError, codec};
use bytes::Bytes;
use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

#[cfg(test)]
pub(crate) mod conformance;

/// One write: `record` under `key` in `slot`.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where to.
    pub slot: Slot,
    /// [`Token::of`] the key: whoever routes a key has computed it already.
    pub token: Token,
    /// Under which key.
    pub key: Bytes,
    /// What.
    pub record: Record,
}

impl Entry {
    /// Whether an engine stores it: [`StorageError::TooLarge`] says why not.
    pub fn check(&self) -> Result<(), StorageError> {
        let Entry { token, key, record, .. } = self;
        debug_assert_eq!(*token, Token::of(key), "stats are rebuilt from keys alone");
        let fits = |what, bytes, limit| {
            if bytes > limit { Err(StorageError::TooLarge { what, bytes, limit }) } else { Ok(()) }
        };
        fits("a key", key.len(), MAX_KEY_BYTES)?;
        fits("a value", record.value.as_ref().map_or(0, Bytes::len), MAX_VALUE_BYTES)?;
        fits("a content type", record.content_type.len(), MAX_CONTENT_TYPE_BYTES)
    }
}

/// A record that may be forgotten.
#[derive(Clone, Debug)]
pub struct Dead {
    /// Where it is.
    pub slot: Slot,
    /// [`Token::of`] the key.
    pub token: Token,
    /// Under which key.
    pub key: Bytes,
    /// Nothing but this version.
    pub version: Version,
}

/// What became of one entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Merged {
    /// It was stored: it wins over what was there.
    Newer,
    /// This very record was there already.
    Equal,
    /// It was not stored: the engine has a record of this version that wins over it. The version is
    /// newer, or in a tie that should never be, the same.
    Older(Version),
}

/// A slot in numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SlotStats {
    /// Keys that have a value: tombstones don't count, expired values do.
    pub keys: u64,
    /// Records of both kinds.
    pub records: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Digests of all keys with their versions.
    pub parts: Parts,
}

impl SlotStats {
    /// Counts a record in.
    pub(super) fn add(&mut self, token: Token, key: &[u8], record: codec::Head) {
        self.keys += u64::from(record.value_bytes.is_some());
        self.records += 1;
        self.bytes += size(key, record);
        self.parts.add(token, record.version);
    }

    /// Counts it out again.
    pub(super) fn remove(&mut self, token: Token, key: &[u8], record: codec::Head) {
        self.keys -= u64::from(record.value_bytes.is_some());
        self.records -= 1;
        self.bytes -= size(key, record);
        self.parts.remove(token, record.version);
    }
}

fn size(key: &[u8], record: codec::Head) -> u64 {
    (key.len() + record.value_bytes.unwrap_or(0)) as u64
}

/// A store of records.
pub trait Engine: Send + Sync + 'static {
    /// The record of a key, tombstones and expired ones included.
    fn get(&self, slot: Slot, key: &[u8]) -> Result<Option<Record>, StorageError>;

    /// Its version only, which is cheaper.
    fn version(&self, slot: Slot, key: &[u8]) -> Result<Option<Version>, StorageError>;

    /// Stores each record that wins ([`Record::precedence`]) over what is there, in order: of entries
    /// for the same key the later see the earlier. Visible on return, durable after
    /// [`sync`](Engine::sync). All or nothing on error.
    fn merge(&self, entries: &[Entry]) -> Result<Vec<Merged>, StorageError>;

    /// All that was merged or dropped before, and all that a read showed before, is durable on return.
    fn sync(&self) -> Result<(), StorageError>;

    /// Records of a slot in key order from `from` on, as many as take `max_bytes` in a message;
    /// at least one record if there is any. An empty answer means the end of the slot.
    fn scan(
        &self,
        slot: Slot,
        from: Bound<&[u8]>,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Record)>, StorageError>;

    /// Forgets everything in a slot. What is merged into it meanwhile may or may not stay, and a crash
    /// may leave part of it: a slot is dropped when nobody will ask for it again, and dropped again
    /// at the next start if it is still there.
    fn drop_slot(&self, slot: Slot) -> Result<(), StorageError>;

    /// Removes each of these that is still what is under its key. Visible on return, durable after
    /// [`sync`](Engine::sync). All or nothing on error.
    fn forget(&self, dead: &[Dead]) -> Result<(), StorageError>;

    /// The slots that hold something, in order.
    fn slots(&self) -> Vec<(Slot, SlotStats)>;

    /// One slot's numbers; all zero if it holds nothing.
    fn stats(&self, slot: Slot) -> SlotStats;

    /// No record that was there when the engine was opened has a newer stamp: from there a node's
    /// clock goes on, whatever became of its own mark.
    fn newest_at_open(&self) -> Stamp;

    /// Whether [`sync`](Engine::sync) does anything: `false` for an engine that never makes
    /// anything durable, whose callers need not call it.
    fn needs_sync(&self) -> bool;
}

/// A shared engine of a kind that is known only when the program runs.
impl Engine for Arc<dyn Engine> {
    fn get(&self, slot: Slot, key: &[u8]) -> Result<Option<Record>, StorageError> {
        (**self).get(slot, key)
    }

    fn version(&self, slot: Slot, key: &[u8]) -> Result<Option<Version>, StorageError> {
        (**self).version(slot, key)
    }

    fn merge(&self, entries: &[Entry]) -> Result<Vec<Merged>, StorageError> {
        (**self).merge(entries)
    }

    fn sync(&self) -> Result<(), StorageError> {
        (**self).sync()
    }

    fn scan(
        &self,
        slot: Slot,
        from: Bound<&[u8]>,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Record)>, StorageError> {
        (**self).scan(slot, from, max_bytes)
    }

    fn drop_slot(&self, slot: Slot) -> Result<(), StorageError> {
        (**self).drop_slot(slot)
    }

    fn forget(&self, dead: &[Dead]) -> Result<(), StorageError> {
        (**self).forget(dead)
    }

    fn slots(&self) -> Vec<(Slot, SlotStats)> {
        (**self).slots()
    }

    fn stats(&self, slot: Slot) -> SlotStats {
        (**self).stats(slot)
    }

    fn newest_at_open(&self) -> Stamp {
        (**self).newest_at_open()
    }

    fn needs_sync(&self) -> bool {
        (**self).needs_sync()
    }
}

/// Refuses entries that are larger than an engine stores, before anything is changed.
pub(super) fn check(entries: &[Entry]) -> Result<(), StorageError> {
    entries.iter().try_for_each(Entry::check)
}

/// What becomes of `incoming` where `stored` is (or nothing is).
pub(super) fn decide(stored: Option<&codec::Parts<'_>>, incoming: &Record) -> Result<Merged, StorageError> {
    let Some(stored) = stored else { return Ok(Merged::Newer) };
    if let Some(merged) = decide_by_version(stored.version, incoming.version) {
        return Ok(merged);
    }
    // Only a tie needs the whole record, so that the value is copied in this rare case alone.
    Ok(match incoming.precedence(&stored.to_record()?) {
        Ordering::Greater => Merged::Newer,
        Ordering::Equal => Merged::Equal,
        Ordering::Less => Merged::Older(stored.version),
    })
}

/// The same, as far as versions tell; `None` for a tie.
pub(super) fn decide_by_version(stored: Version, incoming: Version) -> Option<Merged> {
    match incoming.cmp(&stored) {
        Ordering::Greater => Some(Merged::Newer),
        Ordering::Equal => None,
        Ordering::Less => Some(Merged::Older(stored)),
    }
}
