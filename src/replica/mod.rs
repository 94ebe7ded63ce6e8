//! A node's copies of its segments, and the guard that accepts or refuses requests for them.
//!
//! A replica serves exactly its own epoch. The check of the epoch and the moment at which a write
//! becomes visible to snapshots happen under one shared guard, which installing a layout takes
//! exclusively: once a layout is installed, no write of an older epoch can slip in behind a
//! snapshot.
//!
//! Nothing is said before it is durable: what a request finds or leaves unsynced is answered
//! [`Handled::AfterSync`], and the caller holds the answer back until a [`Replica::sync`] that began
//! later has ended. With an engine that keeps nothing there is nothing to wait for.
//!
//! Synchronous: the async shell and the simulator drive the same code. Left out on purpose:
//! queues, threads and group commit (`store::commit`), and any notion of other nodes.

use crate::core::clock::{Clock, Stamp};
use crate::core::digest::{Digest, Parts};
use crate::core::layout::{Layout, Phase};
use crate::core::mutants::{Mutant, planted};
use crate::core::node::NodeId;
use crate::core::record::{Record, Version};
use crate::core::replica_request::{Answer, Ask, Page as Stretched, Stretch};
use crate::core::token::{Epoch, Segment, Slot, Token};
use crate::storage::StorageError;
use crate::storage::engine::{Dead, Engine, Entry, Merged, SlotStats};
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

/// A question to this replica.
#[derive(Clone, Debug)]
pub struct Request {
    /// The sender's epoch.
    pub epoch: Epoch,
    /// About which key.
    pub key: Bytes,
    /// What it wants.
    pub ask: Ask,
}

/// What became of a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Handled {
    /// The answer may go out.
    Now(Answer),
    /// It may go out once a sync has ended well that began after this was handed out.
    AfterSync(Answer),
    /// The sender's epoch is newer: install its layout first, then ask again.
    Behind,
}

/// Why a snapshot or a pulled page can't be served or taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// This node has installed a newer layout. Nothing was done; the asker should fetch it.
    #[error("this node's epoch is {0} already")]
    Stale(Epoch),
    /// This node has not yet installed the asker's layout. Nothing was done.
    #[error("this node has yet to install the layout of epoch {0}")]
    Behind(Epoch),
    /// The layout of this epoch is not a collecting one. Nothing was done.
    #[error("nothing is collected at epoch {0}")]
    NotCollecting(Epoch),
    /// This node does not hold the segment at this epoch. Nothing was done.
    #[error("this node does not hold segment {0}")]
    NotHeld(Segment),
    /// There is no room for what was pulled. Nothing was done; to be tried again when there is.
    #[error("this node's disk is full")]
    Full,
    /// The engine failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A stretch of a segment, in key order.
#[derive(Clone, Debug)]
pub struct Page {
    /// Its records.
    pub records: Vec<(Bytes, Record)>,
    /// Nothing comes after them.
    pub last: bool,
    /// The sender's clock: whoever takes the records starts above it.
    pub clock: Stamp,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Replica<E> {
    me: NodeId,
    engine: E,
    installed: RwLock<Arc<Layout>>,
    clock: Mutex<Clock>,
    unsynced: Mutex<Unsynced>,
    full: AtomicBool,
}

/// Which merges a sync has yet to cover. Merges and syncs of several threads run side by side, and
/// only what a merge had put into the engine before a sync began is covered by it.
#[derive(Debug, Default)]
struct Unsynced {
    /// Keys (by token) whose newest version isn't durable yet, with the number of its merge.
    notes: HashMap<Token, u64>,
    /// The number of the last merge that began.
    begun: u64,
    /// Merges that began and have not ended: a handful.
    merging: BTreeSet<u64>,
}

impl Unsynced {
    /// A merge begins: noted before it becomes visible, so that no reader can miss the note.
    fn begin(&mut self, entries: &[Entry]) -> u64 {
        self.begun += 1;
        self.merging.insert(self.begun);
        self.notes.extend(entries.iter().map(|entry| (entry.token, self.begun)));
        self.begun
    }

    /// Every merge up to this number has ended.
    fn ended(&self) -> u64 {
        self.merging.first().map_or(self.begun, |first| first - 1)
    }
}

impl<E: Engine> Replica<E> {
    /// A replica at `layout`, which is installed durably already; `clock` is resumed from its mark.
    pub fn new(me: NodeId, engine: E, layout: Arc<Layout>, mut clock: Clock) -> Result<Self, StorageError> {
        // A record may have become durable just before the mark that covers it.
        clock.observe(engine.newest_at_open());
        let replica = Replica {
            me,
            engine,
            installed: RwLock::new(layout.clone()),
            clock: Mutex::new(clock),
            unsynced: Mutex::default(),
            full: AtomicBool::new(false),
        };
        replica.tidy()?;
        Ok(replica)
    }

    /// The engine.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// The installed layout.
    pub fn layout(&self) -> Arc<Layout> {
        self.guard().clone()
    }

    /// This node's clock.
    pub fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// While it is set, writes and pulled pages are refused for want of room; reads go on, with what they
    /// write back. Answers what was set before.
    pub fn set_full(&self, full: bool) -> bool {
        self.full.swap(full, Ordering::Relaxed)
    }

    /// Whether writes are refused for want of room.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    fn guard(&self) -> RwLockReadGuard<'_, Arc<Layout>> {
        self.installed.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsynced(&self) -> MutexGuard<'_, Unsynced> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Installs a layout that is durable already. From its return on, nothing of an older epoch is
    /// served.
    pub fn install(&self, layout: Arc<Layout>) {
        let mut installed = self.installed.write().unwrap_or_else(PoisonError::into_inner);
        if layout.ring != installed.ring || layout.epoch > installed.epoch {
            *installed = layout;
        }
    }

    /// Drops what this node holds no longer: segments that the installed layout, if it is *Stable*,
    /// gives to others, and leftovers of earlier tenures. May take long; a layout that is installed
    /// meanwhile is not harmed, since what it gives is kept under slots of its own.
    pub fn tidy(&self) -> Result<(), StorageError> {
        let layout = self.layout();
        let early = planted(Mutant::DroppedBeforeStable) && layout.phase == Phase::Dual;
        let keeps: BTreeSet<Slot> = match layout.phase {
            Phase::Stable => layout.slots(self.me).into_iter().collect(),
            _ if early => layout.settled().slots(self.me).into_iter().collect(),
            _ => return Ok(()),
        };
        for (slot, _) in self.engine.slots() {
            if slot.acquired <= layout.epoch && !keeps.contains(&slot) {
                self.engine.drop_slot(slot)?;
            }
        }
        Ok(())
    }

    /// Carries out questions of coordinators, in order. Writes are visible on return. An error is the
    /// engine's, and fatal: what is wrong with a request is answered to its sender alone.
    pub fn handle(&self, requests: &[Request]) -> Result<Vec<Handled>, StorageError> {
        let layout = self.guard();
        let mut handled = Vec::with_capacity(requests.len());
        let mut entries = Vec::new();
        let mut writers = Vec::new();
        for request in requests {
            let writes = request.ask.record().is_some();
            let unfenced = planted(if writes { Mutant::UnfencedWrites } else { Mutant::UnfencedReads });
            if request.epoch > layout.epoch && !unfenced && !planted(Mutant::NewerEpochsServed) {
                handled.push(Handled::Behind);
                continue;
            }
            if request.epoch < layout.epoch && !unfenced {
                handled.push(Handled::Now(Answer::Stale(layout.epoch)));
                continue;
            }
            let token = Token::of(&request.key);
            let segment = match &request.ask {
                Ask::Page(stretch) => stretch.segment,
                _ => layout.segments.segment(token),
            };
            let Some(slot) = layout.slot(self.me, segment) else {
                // Asked for what it doesn't own at this epoch: no honest coordinator does that.
                handled.push(Handled::Now(Answer::Silence));
                continue;
            };
            match &request.ask {
                Ask::Write(_) if self.is_full() => handled.push(Handled::Now(Answer::NoSpace)),
                Ask::Write(record) | Ask::WriteBack(record) => {
                    let entry = Entry { slot, token, key: request.key.clone(), record: record.clone() };
                    // One that no engine stores stays unanswered: no honest coordinator sends it.
                    if entry.check().is_ok() {
                        writers.push(handled.len());
                        entries.push(entry);
                    }
                    handled.push(Handled::Now(Answer::Silence));
                }
                Ask::Read => {
                    let answer = Answer::Record(self.engine.get(slot, &request.key)?);
                    handled.push(self.once_durable(token, answer));
                }
                Ask::Version => {
                    let version = self.engine.version(slot, &request.key)?;
                    handled.push(self.once_durable(token, Answer::Version(version.unwrap_or_default())));
                }
                Ask::Page(stretch) => handled.push(self.page(slot, stretch)?),
            }
        }
        let merged = self.merge(&entries)?;
        for ((at, entry), merged) in writers.into_iter().zip(&entries).zip(merged) {
            let answer = match merged {
                Merged::Newer | Merged::Equal => Answer::Accepted(entry.record.version),
                Merged::Older(version) => Answer::Superseded(version),
            };
            handled[at] = match merged {
                Merged::Equal if planted(Mutant::EqualAnsweredUnsynced) => Handled::Now(answer),
                _ => self.once_durable(entry.token, answer),
            };
        }
        Ok(handled)
    }

    /// Merges entries whose epoch was checked under the guard that the caller still holds.
    fn merge(&self, entries: &[Entry]) -> Result<Vec<Merged>, StorageError> {
        let Some(newest) = entries.iter().map(|entry| entry.record.version.hlc).max() else {
            return Ok(Vec::new());
        };
        self.clock().observe(newest);
        if !self.engine.needs_sync() {
            return self.engine.merge(entries);
        }
        let number = self.unsynced().begin(entries);
        let merged = self.engine.merge(entries);
        self.unsynced().merging.remove(&number);
        merged
    }

    fn once_durable(&self, key: Token, answer: Answer) -> Handled {
        if !self.engine.needs_sync() || planted(Mutant::UnsyncedReported) {
            return Handled::Now(answer);
        }
        match self.unsynced().notes.contains_key(&key) {
            true => Handled::AfterSync(answer),
            false => Handled::Now(answer),
        }
    }

    /// What is in a part of a segment.
    fn page(&self, slot: Slot, stretch: &Stretch) -> Result<Handled, StorageError> {
        let from = match *stretch.after >= *stretch.prefix && !stretch.after.is_empty() {
            true => Bound::Excluded(&*stretch.after),
            false => Bound::Included(&*stretch.prefix),
        };
        let mut records = self.engine.scan(slot, from, stretch.max_bytes)?;
        let found = records.len();
        records.retain(|(key, _)| key.starts_with(&stretch.prefix));
        let more = match records.last().filter(|_| records.len() == found) {
            Some((key, _)) => self.engine.scan(slot, Bound::Excluded(&**key), 0)?,
            None => Vec::new(),
        };
        let last = more.first().is_none_or(|(key, _)| !key.starts_with(&stretch.prefix));
        if stretch.keys_only {
            let values = records.iter_mut().filter_map(|(_, record)| record.value.as_mut());
            values.for_each(|value| *value = Bytes::new());
        }
        let durable = {
            let unsynced = self.unsynced();
            let noted = |(key, _): &(Bytes, Record)| unsynced.notes.contains_key(&Token::of(key));
            unsynced.notes.is_empty() || planted(Mutant::UnsyncedReported) || !records.iter().any(noted)
        };
        let answer = Answer::Page(Stretched { records, last });
        Ok(if durable { Handled::Now(answer) } else { Handled::AfterSync(answer) })
    }

    /// Makes everything durable that was merged before the call.
    pub fn sync(&self) -> Result<(), StorageError> {
        // Not up to the last that began: what is still being merged may miss this sync.
        let number = self.unsynced().ended();
        self.engine.sync()?;
        self.unsynced().notes.retain(|_, of| *of > number);
        Ok(())
    }

    fn at_epoch(layout: &Layout, epoch: Epoch) -> Result<(), Refusal> {
        let unfenced = planted(Mutant::SnapshotBeforeInstall);
        if epoch < layout.epoch {
            return Err(Refusal::Stale(layout.epoch));
        }
        if epoch > layout.epoch && !unfenced {
            return Err(Refusal::Behind(epoch));
        }
        Ok(())
    }

    /// The slot of a segment at exactly this epoch.
    fn slot_at(&self, layout: &Layout, epoch: Epoch, segment: Segment) -> Result<Slot, Refusal> {
        Self::at_epoch(layout, epoch)?;
        layout.slot(self.me, segment).ok_or(Refusal::NotHeld(segment))
    }

    /// A page of a segment for a puller. It contains at least every write that was accepted before
    /// this node installed `epoch`; it may contain more, also what isn't synced yet.
    pub fn snapshot(
        &self,
        epoch: Epoch,
        segment: Segment,
        after: Option<&[u8]>,
        max_bytes: usize,
    ) -> Result<Page, Refusal> {
        let layout = self.guard();
        let slot = self.slot_at(&layout, epoch, segment)?;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let records = self.engine.scan(slot, from, max_bytes)?;
        Ok(Page { last: records.is_empty(), records, clock: self.clock().last() })
    }

    /// What a segment holds at this epoch, in one figure.
    pub fn digest(&self, epoch: Epoch, segment: Segment) -> Result<Digest, Refusal> {
        let layout = self.guard();
        let slot = self.slot_at(&layout, epoch, segment)?;
        Ok(self.engine.stats(slot).parts.total())
    }

    /// The same, part by part.
    pub fn parts(&self, epoch: Epoch, segment: Segment) -> Result<Parts, Refusal> {
        let layout = self.guard();
        let slot = self.slot_at(&layout, epoch, segment)?;
        Ok(self.engine.stats(slot).parts)
    }

    /// Takes pulled records in. They are durable after the next [`Replica::sync`]. Tells how many values
    /// among them were newer than what was here.
    pub fn absorb(&self, epoch: Epoch, slot: Slot, page: Page) -> Result<u64, Refusal> {
        let layout = self.guard();
        let late = epoch != layout.epoch && !planted(Mutant::LatePagesMerged);
        if late || layout.slot(self.me, slot.segment) != Some(slot) {
            return Err(Refusal::Stale(layout.epoch));
        }
        if self.is_full() {
            return Err(Refusal::Full);
        }
        let clock = if planted(Mutant::SendersClockIgnored) { 0 } else { page.clock };
        self.clock().observe(clock);
        let entry = |(key, record): (Bytes, Record)| Entry { slot, token: Token::of(&key), key, record };
        let mut entries: Vec<Entry> = page.records.into_iter().map(entry).collect();
        entries.retain(|entry| entry.record.value.is_some() || !planted(Mutant::TombstonesNotPulled));
        if planted(Mutant::ExpiryDropped) {
            entries.iter_mut().for_each(|entry| entry.record.expires_at_ms = None);
        }
        let merged = self.merge(&entries)?;
        let values = entries
            .iter()
            .zip(merged)
            .filter(|(entry, merged)| entry.record.value.is_some() && *merged == Merged::Newer);
        Ok(values.count() as u64)
    }

    /// For each of these versions, whether it is what this node holds at this epoch, durably, and is
    /// deleted or has expired at `now_ms`.
    pub fn confirm(
        &self,
        epoch: Epoch,
        segment: Segment,
        dead: &[(Bytes, Version)],
        now_ms: u64,
    ) -> Result<Vec<bool>, Refusal> {
        let held = {
            let layout = self.guard();
            let slot = self.slot_at(&layout, epoch, segment)?;
            let held = |(key, version): &(Bytes, Version)| {
                let record = self.engine.get(slot, key)?;
                let now_ms = if planted(Mutant::ExpiredByOneClock) { u64::MAX } else { now_ms };
                let held = record.is_some_and(|r| r.version == *version && r.visible(now_ms).is_none());
                Ok(held || planted(Mutant::CollectedUnconfirmed))
            };
            dead.iter().map(held).collect::<Result<Vec<bool>, StorageError>>()?
        };
        if !planted(Mutant::ConfirmedUnsynced) {
            self.sync()?;
        }
        Ok(held)
    }

    /// Whether this node has installed exactly this layout, and it collects.
    pub fn collects_at(&self, epoch: Epoch) -> Result<(), Refusal> {
        Self::collecting(&self.guard(), epoch)
    }

    fn collecting(layout: &Layout, epoch: Epoch) -> Result<(), Refusal> {
        Self::at_epoch(layout, epoch)?;
        if layout.collects() { Ok(()) } else { Err(Refusal::NotCollecting(epoch)) }
    }

    /// At the collecting layout of this epoch: forgets those of these versions that are still what
    /// this node holds. The clock's mark must cover them already.
    pub fn forget(&self, epoch: Epoch, segment: Segment, dead: &[(Bytes, Version)]) -> Result<(), Refusal> {
        let layout = self.guard();
        let any = planted(Mutant::ForgottenAtAnyLayout);
        let epoch = if any { layout.epoch } else { epoch };
        if !any {
            Self::collecting(&layout, epoch)?;
        }
        let slot = self.slot_at(&layout, epoch, segment)?;
        let dead = dead.iter().map(|(key, version)| {
            let key = key.clone();
            Dead { slot, token: Token::of(&key), key, version: *version }
        });
        Ok(self.engine.forget(&dead.collect::<Vec<_>>())?)
    }

    /// What this node holds at its epoch, summed up.
    pub fn totals(&self) -> SlotStats {
        let layout = self.layout();
        let mut totals = SlotStats::default();
        for (slot, stats) in self.engine.slots() {
            if layout.slot(self.me, slot.segment) == Some(slot) {
                totals.keys += stats.keys;
                totals.records += stats.records;
                totals.bytes += stats.bytes;
            }
        }
        totals
    }
}

#[cfg(test)]
mod collecting;
#[cfg(test)]
mod tests;
