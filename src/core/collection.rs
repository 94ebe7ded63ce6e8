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
use std::collections::BTreeMap;
use std::sync::Arc;

/// What one question may carry, and what a list may take in memory: the rest is for the next time.
const CALL_BYTES: usize = 256 << 10;
const LIST_BYTES: usize = 16 << 20;

/// What a record on a list costs beside its key.
const DEAD_BYTES: usize = 64;

/// No question lists more records.
pub const MAX_LISTED: usize = CALL_BYTES / DEAD_BYTES;

/// How often the members are asked whether they have installed a collecting layout.
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

/// One node looks once through the segments of which it is the first owner, and has forgotten what it
/// found there.
///
/// It asks in rounds: all of [`Collector::asks`] at once, then [`Collector::answered`], until it asks no more.
/// At any trouble, and at any other change of the ring, it ends and its list is lost: next time it is
/// made anew. Owners that were told and owners that were not then differ until they compare
/// themselves, and what some have forgotten is back with all.
#[derive(Debug)]
pub struct Collector {
    /// The Stable layout at which it looks; then the one at which it collects.
    layout: Arc<Layout>,
    step: Step,
    found: BTreeMap<Segment, Dead>,
    found_bytes: usize,
    forgotten: usize,
}

#[derive(Debug)]
enum Step {
    /// Through these segments, the last one first; and from after this key on.
    Look(Vec<Segment>, Option<Bytes>),
    /// The same, while owners are asked about these lists.
    Confirm(Vec<Segment>, Option<Bytes>, Vec<Dead>),
    /// It waits for a collecting layout.
    Found,
    /// It waits until all members have installed that; so many times they will be asked.
    Install(usize),
    /// These lists are left.
    Forget(Vec<(Segment, Dead)>),
    Over,
}

impl Collector {
    /// Begins to look at a Stable layout, as the node `me`.
    pub fn look(me: NodeId, layout: Arc<Layout>) -> Self {
        debug_assert_eq!(layout.phase, Phase::Stable);
        let mut segments: Vec<Segment> =
            layout.segments.all().filter(|at| layout.current_owners(*at).next() == Some(me)).collect();
        segments.reverse();
        let (found, step) = (BTreeMap::new(), Step::Look(segments, None));
        let mut collector = Collector { layout, step, found, found_bytes: 0, forgotten: 0 };
        collector.end_look();
        collector
    }

    /// The layout of all its questions.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether it has found something and waits for a collecting layout, for which the node should ask.
    pub fn has_found(&self) -> bool {
        matches!(self.step, Step::Found)
    }

    /// Once it is over: how many records it had all owners forget.
    pub fn forgotten(&self) -> Option<usize> {
        matches!(self.step, Step::Over).then_some(self.forgotten)
    }

    /// What to ask now, all at once. Nothing while it waits for a layout or is over.
    pub fn asks(&self) -> Vec<Ask> {
        match &self.step {
            Step::Look(segments, after) => {
                segments.last().map(|at| Ask::Page(*at, after.clone())).into_iter().collect()
            }
            Step::Confirm(segments, _, lists) => {
                let (Some(at), Some(dead)) = (segments.last(), lists.last()) else { return Vec::new() };
                self.layout.current_owners(*at).map(|owner| Ask::Confirm(owner, *at, dead.clone())).collect()
            }
            Step::Install(_) => self.layout.ids().map(Ask::Installed).collect(),
            Step::Forget(lists) => {
                let Some((at, dead)) = lists.last() else { return Vec::new() };
                self.layout.current_owners(*at).map(|owner| Ask::Forget(owner, *at, dead.clone())).collect()
            }
            Step::Found | Step::Over => Vec::new(),
        }
    }

    /// What became of [all that was asked](Collector::asks), in the same order.
    pub fn answered(&mut self, answers: Vec<Answer>) {
        let failed = answers.contains(&Answer::Failed);
        self.step = match (std::mem::replace(&mut self.step, Step::Over), failed) {
            (Step::Look(segments, _), false) => Self::looked(segments, answers),
            (Step::Confirm(segments, after, lists), false) => {
                self.confirmed(segments, after, lists, &answers)
            }
            (Step::Install(_), false) => Step::Forget(self.lists()),
            (Step::Install(tries), true) if tries > 1 => Step::Install(tries - 1),
            (Step::Forget(mut lists), false) => {
                self.forgotten += lists.pop().map_or(0, |(_, dead)| dead.len());
                if lists.is_empty() { Step::Over } else { Step::Forget(lists) }
            }
            _ => Step::Over,
        };
        self.end_look();
    }

    fn looked(mut segments: Vec<Segment>, mut answers: Vec<Answer>) -> Step {
        let Some(Answer::Page(records, now_ms)) = answers.pop() else { return Step::Over };
        let Some((last, _)) = records.last() else {
            segments.pop();
            return Step::Look(segments, None);
        };
        let after = Some(last.clone());
        let dead = records.into_iter().filter(|(_, record)| record.visible(now_ms).is_none());
        let lists = batches(dead.map(|(key, record)| (key, record.version)).collect());
        if lists.is_empty() { Step::Look(segments, after) } else { Step::Confirm(segments, after, lists) }
    }

    /// Of a list that remains which every owner holds.
    fn confirmed(
        &mut self,
        segments: Vec<Segment>,
        after: Option<Bytes>,
        mut lists: Vec<Dead>,
        answers: &[Answer],
    ) -> Step {
        let (Some(segment), Some(mut dead)) = (segments.last(), lists.pop()) else { return Step::Over };
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
        self.found_bytes += dead.iter().map(cost).sum::<usize>();
        if !dead.is_empty() {
            self.found.entry(*segment).or_default().extend(dead);
        }
        if lists.is_empty() { Step::Look(segments, after) } else { Step::Confirm(segments, after, lists) }
    }

    /// If that was all, or as much as a list may hold, it waits for a layout.
    fn end_look(&mut self) {
        if let Step::Look(segments, _) = &self.step
            && (segments.is_empty() || self.found_bytes >= LIST_BYTES)
        {
            self.step = if self.found.is_empty() { Step::Over } else { Step::Found };
        }
    }

    /// What the node's layout is now. If that collects what was found, it goes on; any other new one ends it.
    pub fn installed(&mut self, layout: Arc<Layout>) {
        if (layout.ring, layout.epoch) == (self.layout.ring, self.layout.epoch) {
            return;
        }
        let found_at = std::mem::replace(&mut self.layout, layout);
        self.found.retain(|at, _| self.layout.may_drop(&found_at, *at));
        self.step = match self.step {
            Step::Found if self.found.is_empty() => Step::Over,
            Step::Found => Step::Install(TRIES),
            _ => Step::Over,
        };
    }

    /// What was found, as lists that fit a question.
    fn lists(&mut self) -> Vec<(Segment, Dead)> {
        let found = std::mem::take(&mut self.found);
        found
            .into_iter()
            .flat_map(|(at, dead)| batches(dead).into_iter().map(move |some| (at, some)))
            .collect()
    }
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
mod tests {
    use super::*;
    use crate::core::layout::tests::{member, ring_of};
    use crate::core::node::RingId;
    use std::collections::BTreeSet;

    #[test]
    fn a_collecting_layout_has_the_same_table_and_is_remembered() {
        let ring = ring_of(3, 3, 8);
        let collecting = ring.collecting();
        collecting.validate().unwrap();
        assert!(collecting.collects() && !ring.collects());
        assert_eq!((collecting.epoch, &collecting.current), (ring.epoch + 1, &ring.current));
        let dual = collecting.dual(&[member(4)], &BTreeSet::new()).unwrap();
        for later in [dual.clone(), dual.read_new(), dual.read_new().settled(), dual.aborted()] {
            assert_eq!(later.collected, collecting.epoch);
            assert!(!later.collects());
        }
    }

    #[test]
    fn only_what_the_same_owners_held_at_an_earlier_stable_layout_is_dropped() {
        let ring = ring_of(3, 3, 8);
        let collecting = ring.collecting();
        let at = Segment(0);
        assert!(collecting.may_drop(&ring, at));
        assert!(collecting.collecting().may_drop(&ring, at));
        assert!(!collecting.may_drop(&collecting, at), "not what was found at this very layout");
        assert!(!collecting.may_drop(&collecting.collecting(), at));
        assert!(!ring.may_drop(&ring, at), "this one does not collect");
        assert!(!collecting.may_drop(&Layout { ring: RingId(99), ..ring.clone() }, at));
        let dual = ring.dual(&[member(4)], &BTreeSet::from([NodeId(1)])).unwrap();
        let settled = dual.read_new().settled();
        assert!(!settled.collecting().may_drop(&ring, at), "another node has come");
        assert!(!settled.collecting().may_drop(&dual, at), "that was not Stable");
        assert!(settled.collecting().may_drop(&settled, at));
        // The same node, but it was away in between.
        let back = settled.dual(&[member(1)], &BTreeSet::from([NodeId(4)])).unwrap().read_new().settled();
        assert!(!back.collecting().may_drop(&ring, at));
        let aborted = ring.dual(&[member(4)], &BTreeSet::new()).unwrap().aborted();
        assert!(aborted.collecting().may_drop(&ring, at), "nobody came or went");
    }

    const EXPIRES: u64 = 100;

    fn version(hlc: u64) -> Version {
        Version { hlc, node: 1 }
    }

    fn dead(keys: &[&str]) -> Dead {
        keys.iter().map(|key| (Bytes::from((*key).to_owned()), version(7))).collect()
    }

    /// The node 1, of a ring of three with one segment, after it has looked at a time and all but the
    /// node 3 hold all that is dead.
    fn found(ring: &Layout, now_ms: u64) -> (Collector, Dead) {
        let me = ring.current_owners(Segment(0)).next().unwrap();
        let mut collector = Collector::look(me, Arc::new(ring.clone()));
        assert_eq!(collector.asks(), [Ask::Page(Segment(0), None)]);
        let expiring = Record { expires_at_ms: Some(EXPIRES), ..Record::value(version(7), "v") };
        let [gone, live] = [Record::tombstone(version(7)), Record::value(version(7), "v")];
        let records = [("a", gone.clone()), ("b", live), ("c", expiring), ("d", gone)];
        let records = records.into_iter().map(|(key, record)| (Bytes::from(key), record)).collect();
        collector.answered(vec![Answer::Page(records, now_ms)]);
        let asks = collector.asks();
        let Some(Ask::Confirm(_, _, asked)) = asks.first() else { panic!("{asks:?}") };
        let asked = asked.clone();
        let owners = ring.current_owners(Segment(0));
        let expected: Vec<_> = owners.map(|owner| Ask::Confirm(owner, Segment(0), asked.clone())).collect();
        assert_eq!(asks, expected);
        let held = |owner: u128| asked.iter().map(|(key, _)| owner != 3 || key != "d").collect();
        collector.answered((1..=3).map(|owner| Answer::Held(held(owner))).collect());
        assert_eq!(collector.asks(), [Ask::Page(Segment(0), Some("d".into()))]);
        collector.answered(vec![Answer::Page(Vec::new(), now_ms)]);
        assert!(collector.asks().is_empty() && collector.has_found());
        (collector, asked)
    }

    #[test]
    fn what_all_owners_confirm_is_forgotten_once_all_have_installed() {
        let ring = ring_of(3, 3, 1);
        assert_eq!(found(&ring, EXPIRES - 1).1, dead(&["a", "d"]));
        let (mut collector, asked) = found(&ring, EXPIRES);
        assert_eq!(asked, dead(&["a", "c", "d"]));
        collector.installed(Arc::new(ring.clone()));
        assert!(collector.has_found(), "nothing is new");
        collector.installed(Arc::new(ring.collecting()));
        assert_eq!(collector.layout().epoch, ring.epoch + 1);
        let installed: Vec<_> = ring.ids().map(Ask::Installed).collect();
        assert_eq!(collector.asks(), installed);
        collector.answered(vec![Answer::Done, Answer::Failed, Answer::Done]);
        assert_eq!(collector.asks(), installed, "one has not");
        collector.answered(vec![Answer::Done; 3]);
        let owners = ring.current_owners(Segment(0));
        let forget: Vec<_> = owners.map(|id| Ask::Forget(id, Segment(0), dead(&["a", "c"]))).collect();
        assert_eq!(collector.asks(), forget);
        assert_eq!(collector.forgotten(), None);
        collector.answered(vec![Answer::Done; 3]);
        assert_eq!((collector.asks(), collector.forgotten()), (Vec::new(), Some(2)));
    }

    #[test]
    fn any_trouble_ends_it() {
        let ring = ring_of(3, 3, 1);
        let me = ring.current_owners(Segment(0)).next().unwrap();
        let look = || Collector::look(me, Arc::new(ring.clone()));
        let page = || Answer::Page(vec![("k".into(), Record::tombstone(version(7)))], 0);
        for answers in [
            vec![vec![Answer::Failed]],
            vec![vec![Answer::Page(Vec::new(), 0)]],
            vec![vec![page()], vec![Answer::Held(vec![true]), Answer::Failed, Answer::Held(vec![true])]],
            vec![vec![page()], vec![Answer::Held(vec![true, true]); 3]],
        ] {
            let mut collector = look();
            answers.into_iter().for_each(|round| collector.answered(round));
            assert_eq!((collector.asks(), collector.forgotten()), (Vec::new(), Some(0)));
        }
        let mut moved = look();
        moved.installed(Arc::new(ring.collecting()));
        assert_eq!(moved.forgotten(), Some(0), "it was still looking");
        let (mut changed, _) = found(&ring, 0);
        changed.installed(Arc::new(ring.dual(&[member(4)], &BTreeSet::new()).unwrap()));
        assert_eq!(changed.forgotten(), Some(0));
        let (mut waited, _) = found(&ring, 0);
        waited.installed(Arc::new(ring.collecting()));
        for tries in 1..=TRIES {
            assert_eq!(waited.forgotten(), None, "{tries}");
            waited.answered(vec![Answer::Failed; 3]);
        }
        assert_eq!(waited.forgotten(), Some(0));
        let (mut told, _) = found(&ring, 0);
        told.installed(Arc::new(ring.collecting()));
        told.answered(vec![Answer::Done; 3]);
        told.answered(vec![Answer::Done, Answer::Done, Answer::Failed]);
        assert_eq!(told.forgotten(), Some(0));
    }

    #[test]
    fn lists_are_cut_to_what_a_question_may_carry() {
        let dead: Dead = (0..20_000).map(|i| (Bytes::from(format!("{i}")), Version::ABSENT)).collect();
        let batches = batches(dead.clone());
        assert!(batches.len() > 1 && batches.iter().all(|b| b.iter().map(cost).sum::<usize>() <= CALL_BYTES));
        assert!(batches.iter().all(|batch| batch.len() <= MAX_LISTED));
        assert_eq!(batches.concat(), dead);
    }
}
