//! What must hold, whatever happens.
//!
//! 1. *One layout per epoch*: any two layouts of one ring and one epoch that anybody installs are equal,
//!    and no ring has an epoch in common with one that it succeeds by a forced removal.
//! 2. *Linearizable*: every version is written once, so that operations on a key can be ordered by
//!    version, and all that is left to check is that real time agrees. A read returns at least the
//!    newest version that was acknowledged, or returned by a read, before the read began; an
//!    acknowledged write's version is greater than all such versions; values belong to their versions.
//! 3. *Nothing acknowledged is lost*: follows from the second for the reads that end each run.
//! 4. *Nothing done means nothing done*: no read returns a write that was refused so.
//! 5. *Only what is dead is forgotten*: deletes, and what has expired by the clocks of all owners. A read
//!    that finds nothing counts as one that found the delete, or the expired record, that was forgotten;
//!    nothing older is ever found again.
//! 6. *Only who is called down is removed*: by most of a majority of the voters, unless it asked to leave.
//! 7. *What a forced removal promises*, see [`Checker::forced`]. Nobody goes from a ring to one that does not succeed
//!    it, nor gives one up that has a majority; and survivors keep what they hold.
//!
//! The second is checked twice: by versions as the run goes on, and in the end by values alone, see
//! [`linear`]. That all owners of a segment hold the same in the end, deletes included, is the
//! [`cluster`](crate::cluster)'s to see.
//!
//! Operations are timed at the coordinator, which is stricter than at the client: the intervals are
//! shorter, so that fewer orders are allowed. What expires has keys of its own, which are checked by
//! versions alone: one coordinator's clock shows a value as absent while another's still shows it, so that
//! by values no order need explain them; the records themselves are returned whole, with the time from
//! which on they are absent, and that must be what was written. ONE is no part of this: such a write counts as one of
//! unknown outcome, and such a read is only checked for returning something that was written.

use crate::counts::{Counts, Kind};
use crate::env::Index;
use crate::gossip::Gossip;
use crate::linear::{self, Operation, Verdict, What};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use thrifty::core::layout::{Layout, Phase, Standing};
use thrifty::core::node::{NodeId, RingId};
use thrifty::core::quorum::majority;
use thrifty::core::record::{Record, Version};
use thrifty::core::token::{Epoch, Segment};

/// How long the search for an order may take: a hundred times what any run has needed.
const MOST_STEPS: usize = 1_000_000;

/// The number that a write wrote; `None` for a delete.
fn number(record: &Record) -> Option<u64> {
    let text = std::str::from_utf8(record.value.as_ref()?).ok()?;
    text.parse().ok()
}

/// What is known about one key.
#[derive(Clone, Debug, Default)]
struct Key {
    /// Which key this is about: after a forced removal there may be two accounts of one.
    of: usize,
    /// The newest version acknowledged or returned so far.
    floor: Version,
    /// Every version ever begun, with its record.
    written: BTreeMap<Version, Record>,
    /// Versions that some owner has forgotten.
    forgotten: BTreeSet<Version>,
    /// Versions of which it was said that nothing was done.
    refused: BTreeSet<Version>,
    /// Which operation wrote each version.
    writes: BTreeMap<Version, usize>,
    /// All operations, timed by their order.
    history: Vec<Operation>,
}

impl Key {
    /// Another account of the same key, in which nothing is sure.
    fn doubted(&self) -> Key {
        let mut key = Key { of: self.of, written: self.written.clone(), ..Key::default() };
        key.refused.clone_from(&self.refused);
        for (version, at) in &self.writes {
            key.writes.insert(*version, key.history.len());
            key.history.push(Operation { ended: None, ..self.history[*at] });
        }
        key
    }
}

/// A key whose account two rings share, since all owners that reads ask survive from the one into the other.
#[derive(Debug)]
struct Shared {
    key: usize,
    segment: Segment,
    /// The ring that was succeeded, and at which epoch.
    old: RingId,
    since: Epoch,
    new: RingId,
    /// Those owners.
    owners: Vec<NodeId>,
}

impl Shared {
    /// Whether the old ring goes on with the key: at this layout it has another owner, which may have gathered
    /// from one of them that had not followed yet.
    fn ends_at(&self, layout: &Layout) -> bool {
        let mut owners = layout.current_owners(self.segment).chain(layout.next_owners(self.segment));
        layout.ring == self.old && layout.epoch > self.since && owners.any(|id| !self.owners.contains(&id))
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Checker {
    keys: Vec<Key>,
    /// Which account of each key holds in a ring, where it isn't the first.
    accounts: BTreeMap<RingId, Vec<usize>>,
    shared: Vec<Shared>,
    layouts: BTreeMap<(RingId, Epoch), Arc<Layout>>,
    newest: Option<Arc<Layout>>,
    time: u64,
    /// How many of the keys, the first ones, hold nothing that expires.
    lasting: usize,
    /// The latest that each node's wall clock showed when it confirmed what is dead, in milliseconds.
    shown: BTreeMap<Index, u64>,
    /// The first thing that went wrong.
    pub(crate) failure: Option<String>,
}

impl Checker {
    pub(crate) fn new(keys: usize, lasting: usize) -> Self {
        let keys = (0..keys).map(|of| Key { of, ..Key::default() }).collect();
        let (layouts, shown) = (BTreeMap::new(), BTreeMap::new());
        Checker {
            keys,
            accounts: BTreeMap::new(),
            shared: Vec::new(),
            layouts,
            newest: None,
            time: 0,
            lasting,
            shown,
            failure: None,
        }
    }

    pub(crate) fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }

    /// A node installs a layout. Whether it is the first to install this one.
    pub(crate) fn installed(&mut self, layout: &Arc<Layout>, gossip: &Gossip, counts: &mut Counts) -> bool {
        let known = self.layouts.get(&(layout.ring, layout.epoch));
        if let Some(known) = known {
            if !Arc::ptr_eq(known, layout) && known != layout {
                self.fail(format!("two layouts of epoch {}: {known:?} and {layout:?}", layout.epoch));
            }
            return false;
        }
        counts.add(Kind::Epoch, 1);
        if layout.phase == Phase::Dual {
            let replaced = |segment| {
                let next: Vec<_> = layout.next_owners(segment).collect();
                layout.current_owners(segment).all(|id| !next.contains(&id))
            };
            if layout.segments.all().any(replaced) {
                counts.add(Kind::Replaced, 1);
            }
        }
        if let Err(why) = layout.validate() {
            self.fail(format!("the layout of epoch {} is invalid: {why}", layout.epoch));
        }
        let before = layout.epoch.checked_sub(1).and_then(|epoch| self.layouts.get(&(layout.ring, epoch)));
        let removed_by_few = before.and_then(|before| removed_by_few(before, layout, gossip));
        match (before.map(|before| before.phase), layout.phase) {
            (Some(Phase::ReadNew), Phase::Stable) => counts.add(Kind::Transition, 1),
            (Some(Phase::Dual), Phase::Stable) => counts.add(Kind::Aborted, 1),
            (Some(Phase::Stable), Phase::Stable) => counts.add(Kind::Collecting, 1),
            _ => {}
        }
        if let Some(id) = removed_by_few {
            self.fail(format!("epoch {} removes {id:?}, whom too few called down", layout.epoch));
        }
        let descent = |of: &Layout| of.former.iter().chain([&of.ring]).copied().collect::<Vec<_>>();
        let mine = descent(layout);
        let related = |other: &Layout| {
            other.ring != layout.ring && descent(other).iter().any(|ring| mine.contains(ring))
        };
        if self.layouts.values().any(|other| other.epoch == layout.epoch && related(other)) {
            self.fail(format!("epoch {} is in two rings of one descent", layout.epoch));
        }
        self.layouts.insert((layout.ring, layout.epoch), layout.clone());
        let (parted, shared) = std::mem::take(&mut self.shared).into_iter().partition(|s| s.ends_at(layout));
        self.shared = shared;
        self.part(parted);
        let age = |layout: &Layout| (layout.former.len(), layout.epoch);
        if self.newest.as_ref().is_none_or(|newest| age(newest) < age(layout)) {
            self.newest = Some(layout.clone());
        }
        true
    }

    /// The newest layout that anybody has installed.
    pub(crate) fn newest(&self) -> Option<&Arc<Layout>> {
        self.newest.as_ref()
    }

    /// A moment after all before.
    pub(crate) fn time(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    /// An operator has a ring go on without its majority.
    ///
    /// - A key all of whose owners survive keeps its account, in which the survivors' ring and the old one are
    ///   held against each other: as soon as one can answer for it the other can't, whoever is alive. Until
    ///   the old ring gives it to others, which takes a survivor that has not followed yet.
    /// - A key of whose owners enough survive ([`Layout::remains_whole`]) is as it was, in both rings: nothing
    ///   that was acknowledged is lost. From here on each ring has its own account of it, since the old one, if
    ///   it has its majority, may go on with the key beside the new one.
    /// - Of other keys what was acknowledged may be lost. In the new ring all that was ever written of them
    ///   counts as of unknown outcome, and is checked in full from then on. So it is with all keys if the
    ///   ring was succeeded before or has succeeded another, since two that succeed one need not share a node.
    ///
    /// What is written in one ring later may turn up in the other, with a survivor that follows late.
    /// The old ring keeps all it acknowledges, always: its account goes on unchanged.
    pub(crate) fn forced(&mut self, before: &Layout, layout: &Layout, names: &[Bytes]) {
        for segment in before.segments.all() {
            let mut survivors = before.read_owners(segment);
            survivors.retain(|id| layout.is_member(*id));
            if survivors.iter().any(|id| layout.slot(*id, segment) != before.slot(*id, segment)) {
                self.fail(format!("segment {segment} is taken from survivors that hold it: {layout:?}"));
            }
        }
        let first = before.former.is_empty() && !self.accounts.keys().any(|ring| *ring != before.ring);
        let gone: BTreeSet<_> = before.ids().filter(|id| !layout.is_member(*id)).collect();
        let mut shared = Vec::new();
        let account = |(key, name): (usize, &Bytes)| {
            let (old, segment) = (self.account(before.ring, key), before.segment(name));
            let owners = before.read_owners(segment);
            if first && owners.iter().all(|id| !gone.contains(id)) {
                let since = before.epoch;
                shared.push(Shared { key, segment, old: before.ring, since, new: layout.ring, owners });
                return old;
            }
            let whole = first && before.remains_whole(segment, &gone);
            let state = &self.keys[old];
            self.keys.push(if whole { state.clone() } else { state.doubted() });
            self.keys.len() - 1
        };
        let accounts = names.iter().enumerate().map(account).collect();
        self.accounts.insert(layout.ring, accounts);
        // Those that the operator could not reach may be ahead.
        let (parted, shared) =
            shared.into_iter().partition(|s: &Shared| self.layouts.values().any(|layout| s.ends_at(layout)));
        self.shared.extend::<Vec<_>>(shared);
        self.part(parted);
    }

    /// Gives both rings an account of their own. Operations under way go on in the one that was shared, which
    /// binds nobody any more.
    fn part(&mut self, keys: Vec<Shared>) {
        for Shared { key, old, new, .. } in keys {
            let state = self.keys[self.account(old, key)].clone();
            let many = self.accounts[&new].len();
            for ring in [old, new] {
                self.accounts.entry(ring).or_insert((0..many).collect())[key] = self.keys.len();
                self.keys.push(state.clone());
            }
        }
    }

    /// A survivor that had not followed is lost to the ring of this layout: nor is anything sure of what it
    /// owns there.
    pub(crate) fn set_aside(&mut self, node: NodeId, layout: &Layout, names: &[Bytes]) {
        for (key, name) in names.iter().enumerate() {
            if layout.slot(node, layout.segment(name)).is_some() {
                let doubted = self.keys[self.account(layout.ring, key)].doubted();
                let accounts = self.accounts.entry(layout.ring).or_insert((0..names.len()).collect());
                accounts[key] = self.keys.len();
                self.keys.push(doubted);
            }
        }
    }

    /// Which account of a key holds in a ring.
    pub(crate) fn account(&self, ring: RingId, key: usize) -> usize {
        self.accounts.get(&ring).map_or(key, |accounts| accounts[key])
    }

    /// An operation on a key begins. What it is given has to be handed in again at its end.
    pub(crate) fn floor(&self, key: usize) -> Version {
        self.keys[key].floor
    }

    /// A write gets its version.
    pub(crate) fn begins(&mut self, key: usize, record: &Record, begun: u64) {
        let of = self.keys[key].of;
        let mut known = None;
        // Until it is acknowledged in one ring, it may turn up in each.
        for state in self.keys.iter_mut().filter(|state| state.of == of) {
            state.writes.insert(record.version, state.history.len());
            state.history.push(Operation { begun, ended: None, what: What::Write(number(record)) });
            known = state.written.insert(record.version, record.clone());
        }
        if known.is_some() {
            self.fail(format!("key {key}: version {:?} was given to two writes", record.version));
        }
    }

    /// A write was acknowledged by a quorum. Whether it was a delete.
    pub(crate) fn acknowledged(&mut self, key: usize, version: Version, floor: Version) -> bool {
        let ended = Some(self.time());
        if version <= floor {
            self.fail(format!(
                "key {key}: write {version:?} acknowledged, though {floor:?} was there when it began"
            ));
        }
        let floor = &mut self.keys[key].floor;
        *floor = version.max(*floor);
        let state = &mut self.keys[key];
        if let Some(at) = state.writes.get(&version) {
            state.history[*at].ended = ended;
        }
        state.written.get(&version).is_some_and(|record| record.value.is_none())
    }

    /// A write was refused with the promise that nothing was done.
    pub(crate) fn refused(&mut self, key: usize, version: Version) {
        let of = self.keys[key].of;
        for state in self.keys.iter_mut().filter(|state| state.of == of) {
            state.refused.insert(version);
            // As if it had never begun: no read may return it.
            if let Some(at) = state.writes.get(&version) {
                state.history[*at].what = What::Read(None);
            }
        }
    }

    /// A read returned. At ONE it may be stale; else it began then. Whether it found nothing, as it may
    /// where something was forgotten.
    pub(crate) fn returned(
        &mut self,
        key: usize,
        record: Option<&Record>,
        floor: Version,
        linear_since: Option<u64>,
    ) -> bool {
        let ended = Some(self.time());
        let version = record.map_or(Version::ABSENT, |record| record.version);
        let gone = self.judge("read", key, record, linear_since.map(|_| floor));
        let state = &mut self.keys[key];
        if let Some(begun) = linear_since {
            let what = What::Read(record.and_then(number));
            state.history.push(Operation { begun, ended, what });
            state.floor = state.floor.max(gone.unwrap_or(version));
        }
        gone.is_some()
    }

    /// A scan met this, or nothing. It may not be older than what was there when it began, and binds nobody
    /// after it.
    pub(crate) fn scanned(&mut self, key: usize, record: Option<&Record>, floor: Option<Version>) {
        self.judge("scan", key, record, floor);
    }

    /// Checks what somebody met; with a floor, that it isn't older. Where nothing was met: the first that was
    /// forgotten since, which it is as if he had met.
    fn judge(
        &mut self,
        who: &str,
        key: usize,
        record: Option<&Record>,
        floor: Option<Version>,
    ) -> Option<Version> {
        let state = &self.keys[key];
        let version = record.map_or(Version::ABSENT, |record| record.version);
        let least = floor.unwrap_or_default();
        let gone = state.forgotten.range(least..).next().copied().filter(|_| record.is_none());
        let deleted = |version| state.written.get(version).is_some_and(|record| record.value.is_none());
        let wrong = if record.is_some_and(|record| state.written.get(&version) != Some(record)) {
            "which nobody wrote so"
        } else if state.refused.contains(&version) {
            "of which it was said that nothing was done"
        } else if version >= least || gone.is_some() {
            return gone;
        } else if deleted(&least) {
            "though the key had been deleted when it began"
        } else {
            "which was older than what was there when it began"
        };
        self.fail(format!("key {key}: a {who} returned {version:?}, {wrong} ({least:?})"));
        gone
    }

    /// A node's wall clock shows this when it is asked what has expired.
    pub(crate) fn shows(&mut self, node: Index, wall_ms: u64) {
        let shown = self.shown.entry(node).or_default();
        *shown = wall_ms.max(*shown);
    }

    /// One of these owners forgets a version. Whether it had expired; else it was a delete.
    pub(crate) fn forgets(&mut self, key: usize, version: Version, owners: &[Index]) -> bool {
        let state = &mut self.keys[key];
        state.forgotten.insert(version);
        let Some(record) = state.written.get(&version).filter(|record| record.value.is_some()) else {
            return false;
        };
        let earliest = owners.iter().map(|node| self.shown.get(node).copied().unwrap_or_default()).min();
        if record.visible(earliest.unwrap_or_default()).is_some() {
            self.fail(format!("key {key}: {version:?} is forgotten, which had not expired by all clocks"));
        }
        true
    }

    /// The run is over: searches each key's history for an order that explains it.
    pub(crate) fn search(&self, counts: &mut Counts) -> Result<(), String> {
        for (key, state) in self.keys.iter().enumerate().filter(|(_, state)| state.of < self.lasting) {
            counts.add(Kind::Searched, 1);
            match linear::check(&state.history, MOST_STEPS) {
                Verdict::Linearizable => {}
                Verdict::Not => return Err(format!("key {key}: no order of its operations explains them")),
                Verdict::Undecided => {
                    return Err(format!("key {key}: no order was found in {MOST_STEPS} steps"));
                }
            }
        }
        Ok(())
    }
}

/// A member that a Dual lets go though it did not ask to, and though too few voters can have called it
/// down: a majority of them.
fn removed_by_few(before: &Layout, layout: &Layout, gossip: &Gossip) -> Option<NodeId> {
    if layout.phase != Phase::Dual {
        return None;
    }
    let voters = before.voters();
    let leaving = layout.members.iter().filter(|member| member.standing == Standing::Leaving);
    leaving.map(|member| member.id).find(|id| {
        let called = voters.iter().filter(|voter| gossip.did_call(**voter, *id, before.epoch)).count();
        !gossip.asked_to_leave(*id) && called < majority(voters.len())
    })
}
