//! When a tombstone may be forgotten.
//!
//! A tombstone holds back every older value of its key that still travels or lies somewhere. It may
//! go once nothing older can turn up any more, and then all at once: at a *collecting* layout,
//! which is Stable, has the table of the one before it, and differs from it in that
//!
//! - requests begun before it are not sent again at it ([`Write::installed`](super::write::Write::installed)),
//! - and what is still on its way from before it is fenced, as at every new layout.
//!
//! Only what every owner of the segment was found to hold, durably, at an earlier layout goes: an
//! owner that holds a version takes no older one in its place, so that no older one is left with any
//! owner. And it goes only when all members have installed the collecting layout, so that none serves at
//! an older epoch any more, nor comes back to one. Whether it goes everywhere does not matter: what one
//! owner still holds is that very record, which reads as absent and spreads to the others again.
//!
//! A record that has expired is collected likewise, if all owners' clocks say that it has.
//!
//! [`Collector`] is what one node does about it, from looking to forgetting: questions out, answers in.

use crate::core::layout::{Cell, Layout, Phase};
use crate::core::node::NodeId;
use crate::core::record::{Record, Version};
use crate::core::token::{Epoch, Segment};
use bytes::Bytes;
use std::sync::Arc;

/// What one question may carry.
const CALL_BYTES: usize = 256 << 10;

/// What a record on a list costs beside its key.
const DEAD_BYTES: usize = 64;

/// No question lists more records.
pub const MAX_LISTED: usize = CALL_BYTES / DEAD_BYTES;

/// How often in a row a question may fail. The shell pauses in between.
const TRIES: usize = 10;

/// Records of one segment that are deleted or have expired.
pub type Dead = Vec<(Bytes, Version)>;

impl Layout {
    /// The collecting layout that may follow this Stable one.
    pub fn collecting(&self) -> Layout {
        debug_assert_eq!(self.phase, Phase::Stable);
        Layout { epoch: self.epoch + 1, collected: self.epoch + 1, ..self.clone() }
    }

    /// Whether this is a collecting layout.
    pub fn collects(&self) -> bool {
        self.phase == Phase::Stable && self.collected == self.epoch
    }

    /// Whether what all owners of a segment were found to hold at the layout `found` may be dropped
    /// at this one, once all members have installed it.
    pub fn may_drop(&self, found: &Layout, segment: Segment) -> bool {
        let owners = |layout: &Layout| -> Vec<(NodeId, Epoch)> {
            let owner = |cell: &Cell| (layout.members[usize::from(cell.member)].id, cell.acquired);
            let mut owners: Vec<_> = layout.current.row(segment).iter().map(owner).collect();
            owners.sort_unstable();
            owners
        };
        self.collects()
            && found.phase == Phase::Stable
            && found.ring == self.ring
            && found.epoch < self.epoch
            && owners(found) == owners(self)
    }
}

/// What a [`Collector`] wants to know, or wants done, at its [layout](Collector::layout).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// The next records that this node itself holds of a segment, after a key.
    Page(Segment, Option<Bytes>),
    /// Which of these records an owner holds, durably, and takes for dead as well.
    Confirm(NodeId, Segment, Dead),
    /// Whether a member has installed the collecting layout.
    Installed(NodeId),
    /// That an owner forgets these records.
    Forget(NodeId, Segment, Dead),
}

/// What became of an [`Ask`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// These records, none if there are no more, and what this node's clock shows, in milliseconds since 1970.
    Page(Vec<(Bytes, Record)>, u64),
    /// For each record, whether it is held.
    Held(Vec<bool>),
    /// It has, or it did.
    Done,
    /// It was refused, or nothing was heard in time.
    Failed,
}

/// What a node has found and waits with for a collecting layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Found {
    /// Nothing so far, or it still looks.
    #[default]
    Nothing,
    /// All that there is.
    All,
    /// As much as a list may hold: it looks on when that is forgotten.
    Full,
}

/// One node looks once through the segments of which it is the first owner, and has forgotten what it
/// found there: all at once, or as much as a list holds and then the rest.
///
/// It asks in rounds: all of [`Collector::asks`] at once, then [`Collector::answered`], until it asks no more.
/// A round in which a question fails is asked again; after so many in a row it ends and its list is lost.
/// It goes on where the ring comes to a later layout of the same table, as a collecting one is that comes
/// while it still looks: what it has found by then may go at any collecting layout that comes later yet.
/// Any other change of the ring ends it. Owners that were told and owners that were not then differ until
/// they compare themselves, and what some have forgotten is back with all.
#[derive(Debug)]
pub struct Collector {
    /// At which it asks. What is on its list was found at this one or an earlier one while it looks, and
    /// at an earlier one when it forgets.
    layout: Arc<Layout>,
    step: Step,
    /// To be looked through yet, the last one first; and that from after this key on.
    left: Vec<Segment>,
    after: Option<Bytes>,
    /// In lists that fit a question.
    found: Vec<(Segment, Dead)>,
    found_bytes: usize,
    list_bytes: usize,
    /// How many rounds have failed in a row.
    failed: usize,
    forgotten: usize,
}

#[derive(Debug)]
enum Step {
    Look,
    /// Owners are asked about these lists.
    Confirm(Vec<Dead>),
    /// It waits for a collecting layout.
    Found,
    /// It waits until all members have installed that.
    Install,
    Forget,
    Over,
}

impl Collector {
    /// Begins to look at a Stable layout, as the node `me`, for no more at a time than takes so many bytes.
    pub fn look(me: NodeId, layout: Arc<Layout>, list_bytes: usize) -> Self {
        debug_assert_eq!(layout.phase, Phase::Stable);
        let mut left: Vec<Segment> =
            layout.segments.all().filter(|at| layout.current_owners(*at).next() == Some(me)).collect();
        left.reverse();
        let mut collector = Collector {
            layout,
            step: Step::Look,
            left,
            after: None,
            found: Vec::new(),
            found_bytes: 0,
            list_bytes,
            failed: 0,
            forgotten: 0,
        };
        collector.move_on();
        collector
    }

    /// The layout of all its questions.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What it waits with for a collecting layout, for which the node should ask.
    pub fn found(&self) -> Found {
        match (&self.step, self.left.is_empty()) {
            (Step::Found, true) => Found::All,
            (Step::Found, false) => Found::Full,
            _ => Found::Nothing,
        }
    }

    /// Once it is over: how many records it had all owners forget.
    pub fn forgotten(&self) -> Option<usize> {
        matches!(self.step, Step::Over).then_some(self.forgotten)
    }

    /// What to ask now, all at once. Nothing while it waits for a layout or is over.
    pub fn asks(&self) -> Vec<Ask> {
        match &self.step {
            Step::Look => self.left.last().map(|at| Ask::Page(*at, self.after.clone())).into_iter().collect(),
            Step::Confirm(lists) => {
                let (Some(at), Some(dead)) = (self.left.last(), lists.last()) else { return Vec::new() };
                self.layout.current_owners(*at).map(|owner| Ask::Confirm(owner, *at, dead.clone())).collect()
            }
            Step::Install => self.layout.ids().map(Ask::Installed).collect(),
            Step::Forget => {
                let Some((at, dead)) = self.found.last() else { return Vec::new() };
                self.layout.current_owners(*at).map(|owner| Ask::Forget(owner, *at, dead.clone())).collect()
            }
            Step::Found | Step::Over => Vec::new(),
        }
    }

    /// What became of [all that was asked](Collector::asks), in the same order.
    pub fn answered(&mut self, answers: Vec<Answer>) {
        if answers.contains(&Answer::Failed) {
            self.failed += 1;
            if self.failed == TRIES {
                self.step = Step::Over;
            }
            return;
        }
        self.failed = 0;
        self.step = match std::mem::replace(&mut self.step, Step::Over) {
            Step::Look => self.looked(answers),
            Step::Confirm(lists) => self.confirmed(lists, &answers),
            Step::Install => Step::Forget,
            Step::Forget => {
                self.forgotten += self.found.pop().map_or(0, |(_, dead)| dead.len());
                Step::Forget
            }
            Step::Found | Step::Over => Step::Over,
        };
        self.move_on();
    }

    fn looked(&mut self, mut answers: Vec<Answer>) -> Step {
        let Some(Answer::Page(records, now_ms)) = answers.pop() else { return Step::Over };
        self.after = records.last().map(|(key, _)| key.clone());
        if self.after.is_none() {
            self.left.pop();
        }
        let dead = records.into_iter().filter(|(_, record)| record.visible(now_ms).is_none());
        let lists = batches(dead.map(|(key, record)| (key, record.version)).collect());
        if lists.is_empty() { Step::Look } else { Step::Confirm(lists) }
    }

    /// Of a list that remains which every owner holds.
    fn confirmed(&mut self, mut lists: Vec<Dead>, answers: &[Answer]) -> Step {
        let (Some(segment), Some(mut dead)) = (self.left.last(), lists.pop()) else { return Step::Over };
        for answer in answers {
            let Answer::Held(held) = answer else { return Step::Over };
            if held.len() != dead.len() {
                // It is about other records than were asked for.
                return Step::Over;
            }
        }
        let by_all =
            |at: usize| answers.iter().all(|answer| matches!(answer, Answer::Held(held) if held[at]));
        let mut at = 0..dead.len();
        dead.retain(|_| at.next().is_some_and(by_all));
        self.found_bytes += bytes(&dead);
        match self.found.last_mut() {
            Some((at, list)) if at == segment && bytes(list) + bytes(&dead) <= CALL_BYTES => {
                list.extend(dead)
            }
            _ if dead.is_empty() => {}
            _ => self.found.push((*segment, dead)),
        }
        if lists.is_empty() { Step::Look } else { Step::Confirm(lists) }
    }

    /// If all that was found is forgotten, it looks on. If that was all, or as much as a list may hold, it
    /// waits for a layout.
    fn move_on(&mut self) {
        if matches!(self.step, Step::Forget) && self.found.is_empty() {
            self.step = Step::Look;
            self.found_bytes = 0;
        }
        if matches!(self.step, Step::Look) && (self.left.is_empty() || self.found_bytes >= self.list_bytes) {
            self.step = if self.found.is_empty() { Step::Over } else { Step::Found };
        }
    }

    /// What the node's layout is now. Where it looks it goes on at that, and where it has found something
    /// and that collects, it forgets, unless the ring has changed in another way.
    pub fn installed(&mut self, layout: Arc<Layout>) {
        if (layout.ring, layout.epoch) == (self.layout.ring, self.layout.epoch) {
            return;
        }
        let before = std::mem::replace(&mut self.layout, layout);
        let now = &self.layout;
        let same_table =
            now.phase == Phase::Stable && now.members == before.members && now.current == before.current;
        if now.ring != before.ring || !same_table {
            self.step = Step::Over;
        }
        if !matches!(self.step, Step::Found | Step::Install | Step::Forget) {
            return;
        }
        // All of it was found at the layout before or at an earlier one of the same table.
        self.step = if now.collects() { Step::Install } else { Step::Found };
        if now.collects() {
            self.found.retain(|(at, _)| self.layout.may_drop(&before, *at));
        }
    }
}

fn bytes(dead: &[(Bytes, Version)]) -> usize {
    dead.iter().map(cost).sum()
}

fn cost((key, _): &(Bytes, Version)) -> usize {
    key.len() + DEAD_BYTES
}

/// Lists that fit a question.
fn batches(dead: Dead) -> Vec<Dead> {
    let (mut batches, mut room): (Vec<Dead>, usize) = (Vec::new(), 0);
    for one in dead {
        match batches.last_mut() {
            Some(last) if cost(&one) <= room => {
                room -= cost(&one);
                last.push(one);
            }
            _ => {
                room = CALL_BYTES - cost(&one);
                batches.push(vec![one]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests;
