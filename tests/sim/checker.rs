//! What must hold, whatever happens.
//!
//! 1. *One layout per epoch*: any two layouts of one ring and one epoch that anybody installs are equal.
//! 2. *Linearizable*: every version is written once, so that operations on a key can be ordered by
//!    version, and all that is left to check is that real time agrees. A read returns at least the
//!    newest version that was acknowledged, or returned by a read, before the read began; an
//!    acknowledged write's version is greater than all such versions; values belong to their versions.
//! 3. *Nothing acknowledged is lost*: follows from the second for the reads that end each run.
//! 4. *Nothing done means nothing done*: no read returns a write that was refused so.
//!
//! Operations are timed at the coordinator, which is stricter than at the client: the intervals are
//! shorter, so that fewer orders are allowed. ONE is no part of this: such a write counts as one of
//! unknown outcome, and such a read is only checked for returning something that was written.

use crate::counts::{Counts, Kind};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use thrifty::core::layout::{Layout, Phase};
use thrifty::core::node::RingId;
use thrifty::core::record::{Record, Version};
use thrifty::core::token::Epoch;

/// What is known about one key.
#[derive(Debug, Default)]
struct Key {
    /// The newest version acknowledged or returned so far.
    floor: Version,
    /// Every version ever begun, with its value.
    written: BTreeMap<Version, Option<Bytes>>,
    /// Versions of which it was said that nothing was done.
    refused: BTreeSet<Version>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Checker {
    keys: Vec<Key>,
    layouts: BTreeMap<(RingId, Epoch), Arc<Layout>>,
    newest: Option<Arc<Layout>>,
    /// The first thing that went wrong.
    pub(crate) failure: Option<String>,
}

impl Checker {
    pub(crate) fn new(keys: usize) -> Self {
        let keys = (0..keys).map(|_| Key::default()).collect();
        Checker { keys, layouts: BTreeMap::new(), newest: None, failure: None }
    }

    pub(crate) fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }

    /// A node installs a layout. Whether it is the first to install this one.
    pub(crate) fn installed(&mut self, layout: &Arc<Layout>, counts: &mut Counts) -> bool {
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
        match (before.map(|before| before.phase), layout.phase) {
            (Some(Phase::ReadNew), Phase::Stable) => counts.add(Kind::Transition, 1),
            (Some(Phase::Dual), Phase::Stable) => counts.add(Kind::Aborted, 1),
            _ => {}
        }
        self.layouts.insert((layout.ring, layout.epoch), layout.clone());
        if self.newest.as_ref().is_none_or(|newest| newest.epoch < layout.epoch) {
            self.newest = Some(layout.clone());
        }
        true
    }

    /// The newest layout that anybody has installed.
    pub(crate) fn newest(&self) -> Option<&Arc<Layout>> {
        self.newest.as_ref()
    }

    /// An operation on a key begins. What it is given has to be handed in again at its end.
    pub(crate) fn floor(&self, key: usize) -> Version {
        self.keys[key].floor
    }

    /// A write gets its version.
    pub(crate) fn begins(&mut self, key: usize, record: &Record) {
        let known = self.keys[key].written.insert(record.version, record.value.clone());
        if known.is_some() {
            self.fail(format!("key {key}: version {:?} was given to two writes", record.version));
        }
    }

    /// A write was acknowledged by a quorum.
    pub(crate) fn acknowledged(&mut self, key: usize, version: Version, floor: Version) {
        if version <= floor {
            self.fail(format!(
                "key {key}: write {version:?} acknowledged, though {floor:?} was there when it began"
            ));
        }
        let floor = &mut self.keys[key].floor;
        *floor = version.max(*floor);
    }

    /// A write was refused with the promise that nothing was done.
    pub(crate) fn refused(&mut self, key: usize, version: Version) {
        self.keys[key].refused.insert(version);
    }

    /// A read returned. At ONE (`linear` is false) it may be stale.
    pub(crate) fn returned(&mut self, key: usize, record: Option<&Record>, floor: Version, linear: bool) {
        let version = record.map_or(Version::ABSENT, |record| record.version);
        let state = &mut self.keys[key];
        let value = record.and_then(|record| record.value.clone());
        let wrong = if version != Version::ABSENT && state.written.get(&version) != Some(&value) {
            Some("which nobody wrote so")
        } else if state.refused.contains(&version) {
            Some("of which it was said that nothing was done")
        } else if linear && version < floor {
            Some("which was older than what was there when it began")
        } else {
            None
        };
        if linear {
            state.floor = state.floor.max(version);
        }
        if let Some(wrong) = wrong {
            self.fail(format!("key {key}: a read returned {version:?}, {wrong} ({floor:?})"));
        }
    }
}
