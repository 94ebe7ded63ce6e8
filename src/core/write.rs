//! One write, from the coordinator's side: events in, questions to replicas and an outcome out.
//!
//! The record with its version is made once and never changes: after a stale epoch or a silence
//! the *same* version is sent again, which a replica accepts as often as it comes. A new version
//! for one request could let a reader see A, B, A.
//!
//! Accepts are counted at one epoch only. When the layout turns out to be newer, the tally starts
//! afresh and all owners of the new layout are asked, also those that accepted before.
//!
//! Once anything was sent, an outcome that is not success is *unknown*: never "failed".

use crate::core::layout::Layout;
use crate::core::mutants::{Mutant, planted};
use crate::core::node::{Liveness, Moment, NodeId};
use crate::core::quorum::{Consistency, Tally, Verdict, all_meet, everyone};
use crate::core::record::Record;
use crate::core::replica_request::{Answer, Ask};
use crate::core::token::{Epoch, Segment};
use std::sync::Arc;
use std::time::Duration;

/// How long after a silence the same question is put to the same replica again.
pub const RETRY: Duration = Duration::from_millis(50);

/// What the shell has to do for a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Ask a replica, at this epoch.
    Ask(NodeId, Epoch, Ask),
    /// Fetch the layout of at least this epoch, of which this node told, and hand it in.
    Fetch(NodeId, Epoch),
}

/// How a request is to be carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// How many owners must answer.
    pub consistency: Consistency,
    /// Where no quorum is up, or none answers in time, be content with one.
    pub fallback_to_one: bool,
    /// When to give up.
    pub deadline: Moment,
    /// From when on one owner is enough, if `fallback_to_one`.
    pub patience: Moment,
}

impl Terms {
    /// Terms that begin at `now`: the fallback comes at half of the time there is.
    pub fn new(consistency: Consistency, fallback_to_one: bool, now: Moment, deadline: Moment) -> Self {
        let patience = now + deadline.saturating_sub(now) / 2;
        Terms { consistency, fallback_to_one, deadline, patience }
    }
}

/// How a request ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome<T> {
    /// As asked, or at the lesser consistency that is named.
    Done(T, Consistency),
    /// Too few owners are up. Nothing was done.
    Unavailable,
    /// The owners have no room. Nothing was done.
    NoSpace,
    /// A quorum became impossible, or a read met newer and newer versions. Of a write, the
    /// outcome is unknown.
    Aborted,
    /// The ring came to forget what was deleted, and a write that began before is not sent on: its outcome is
    /// unknown. Not even where all owners call it stale is nothing done: of a question that came to one of them
    /// twice, the answer that it was accepted may be lost.
    Collected,
    /// Time ran out. Of a write, the outcome is unknown.
    TimedOut,
}

/// The first choice of consistency that the owners which are up allow. `None`: not even one.
pub(crate) fn achievable(
    terms: &Terms,
    layout: &Layout,
    segment: Segment,
    liveness: &dyn Fn(NodeId) -> Liveness,
) -> Option<Consistency> {
    let sets = layout.live_sets(segment);
    let may_answer = |id| liveness(id) != Liveness::Down;
    if all_meet(&sets, terms.consistency, may_answer) {
        Some(terms.consistency)
    } else {
        (terms.fallback_to_one && all_meet(&sets, Consistency::One, may_answer)).then_some(Consistency::One)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Write {
    segment: Segment,
    record: Record,
    terms: Terms,
    consistency: Consistency,
    began: Epoch,
    layout: Arc<Layout>,
    tally: Tally,
    no_space: Vec<NodeId>,
    touched: bool,
    retry: Vec<(NodeId, Moment)>,
    outcome: Option<Outcome<()>>,
}

impl Write {
    /// Starts writing `record`, or finds at once that it can't be done.
    pub fn start(
        layout: Arc<Layout>,
        segment: Segment,
        record: Record,
        terms: Terms,
        liveness: &dyn Fn(NodeId) -> Liveness,
        out: &mut Vec<Action>,
    ) -> Self {
        let achievable = achievable(&terms, &layout, segment, liveness);
        let mut write = Write {
            segment,
            record,
            terms,
            consistency: achievable.unwrap_or(terms.consistency),
            began: layout.epoch,
            tally: Tally::new(layout.live_sets(segment)),
            layout,
            no_space: Vec::new(),
            touched: false,
            retry: Vec::new(),
            outcome: None,
        };
        if achievable.is_none() {
            write.outcome = Some(Outcome::Unavailable);
        } else {
            write.ask_everyone(out);
        }
        write
    }

    /// How it ended; `None` while it goes on.
    pub fn outcome(&self) -> Option<&Outcome<()>> {
        self.outcome.as_ref()
    }

    /// The epoch at which owners are being asked.
    pub fn epoch(&self) -> Epoch {
        self.layout.epoch
    }

    /// The owners that refused for want of room.
    pub fn without_space(&self) -> &[NodeId] {
        &self.no_space
    }

    fn lacks_space(&self) -> bool {
        !self.no_space.is_empty()
    }

    fn ask_everyone(&mut self, out: &mut Vec<Action>) {
        self.retry.clear();
        for id in everyone(&self.layout.live_sets(self.segment)) {
            out.push(Action::Ask(id, self.layout.epoch, Ask::Write(self.record.clone())));
        }
    }

    /// `from` answered what it was asked at `epoch`.
    pub fn answered(
        &mut self,
        from: NodeId,
        epoch: Epoch,
        answer: Answer,
        now: Moment,
        out: &mut Vec<Action>,
    ) {
        if self.outcome.is_some() {
            return;
        }
        if let Answer::Stale(newer) = answer {
            if newer > self.layout.epoch {
                out.push(Action::Fetch(from, newer));
            }
            return;
        }
        // Silence and accepts of another epoch count for nothing here, but they may have left
        // something behind.
        self.touched |= !matches!(answer, Answer::NoSpace);
        if epoch != self.layout.epoch && !planted(Mutant::AcceptsAddedAcrossEpochs) {
            return;
        }
        match answer {
            Answer::Accepted(_) => self.tally.yes(from),
            Answer::Superseded(_) if planted(Mutant::SupersededCountsAsAccepted) => self.tally.yes(from),
            Answer::Superseded(_) => self.tally.no(from),
            Answer::NoSpace => {
                self.no_space.push(from);
                self.tally.no(from);
            }
            Answer::Silence if !self.tally.has(from) => self.retry.push((from, now + RETRY)),
            Answer::Silence | Answer::Stale(_) | Answer::Record(_) | Answer::Version(_) | Answer::Page(_) => {
            }
        }
        self.judge(now);
    }

    /// A newer layout is installed here.
    pub fn installed(&mut self, layout: Arc<Layout>, out: &mut Vec<Action>) {
        if self.outcome.is_some() || layout.epoch <= self.layout.epoch {
            return;
        }
        if layout.collected > self.began && !planted(Mutant::LateAfterCollection) {
            // The tombstone that a late copy of this write should lose to may be gone.
            self.outcome = Some(Outcome::Collected);
            return;
        }
        self.touched = true;
        let sets = layout.live_sets(self.segment);
        self.tally = match planted(Mutant::AcceptsAddedAcrossEpochs) {
            true => self.tally.over(sets),
            false => Tally::new(sets),
        };
        self.record.version.hlc += u64::from(planted(Mutant::RetriedUnderNewVersion));
        self.layout = layout;
        self.ask_everyone(out);
    }

    /// Time passes.
    pub fn tick(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.outcome.is_some() {
            return;
        }
        let (due, later) = std::mem::take(&mut self.retry).into_iter().partition(|(_, at)| *at <= now);
        self.retry = later;
        for (id, _) in due {
            out.push(Action::Ask(id, self.layout.epoch, Ask::Write(self.record.clone())));
        }
        self.judge(now);
    }

    fn judge(&mut self, now: Moment) {
        let met = |consistency| self.tally.verdict(consistency) == Verdict::Met;
        let fallback = self.terms.fallback_to_one && now >= self.terms.patience;
        self.outcome = if met(self.consistency) {
            Some(Outcome::Done((), self.consistency))
        } else if fallback && met(Consistency::One) {
            Some(Outcome::Done((), Consistency::One))
        } else if self.tally.verdict(self.consistency) == Verdict::Lost && !self.may_end_well() {
            Some(if self.lacks_space() && (!self.touched || planted(Mutant::RefusedAfterSending)) {
                Outcome::NoSpace
            } else {
                Outcome::Aborted
            })
        } else if now >= self.terms.deadline {
            Some(Outcome::TimedOut)
        } else {
            None
        };
    }

    /// Whether waiting on after a lost quorum helps: ONE may still be met, or it may still turn out
    /// that every owner refused for want of room, which is a clearer answer than "unknown".
    fn may_end_well(&self) -> bool {
        let one = self.terms.fallback_to_one && self.tally.verdict(Consistency::One) != Verdict::Lost;
        let unheard =
            || everyone(&self.layout.live_sets(self.segment)).into_iter().any(|id| !self.tally.has(id));
        one || (self.lacks_space() && !self.touched && unheard())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::layout::tests::{member, ring_of};
    use crate::core::record::Version;
    use std::collections::BTreeSet;

    const UP: &dyn Fn(NodeId) -> Liveness = &|_| Liveness::Up;
    const T0: Moment = Duration::ZERO;
    const V: Version = Version { hlc: 9, node: 1 };

    fn start(layout: &Layout, consistency: Consistency, fallback: bool) -> (Write, Vec<Action>) {
        let mut out = Vec::new();
        let terms = Terms::new(consistency, fallback, T0, Duration::from_secs(2));
        let record = Record::value(V, "x");
        let write = Write::start(Arc::new(layout.clone()), Segment(0), record, terms, UP, &mut out);
        (write, out)
    }

    fn answer(write: &mut Write, from: u128, epoch: Epoch, answer: Answer, at: Moment) -> Vec<Action> {
        let mut out = Vec::new();
        write.answered(NodeId(from), epoch, answer, at, &mut out);
        out
    }

    #[test]
    fn it_asks_all_owners_and_is_done_with_a_majority() {
        let ring = ring_of(3, 3, 4);
        let (mut write, asked) = start(&ring, Consistency::Quorum, false);
        assert_eq!(asked.len(), 3);
        answer(&mut write, 1, ring.epoch, Answer::Accepted(V), T0);
        assert_eq!(write.outcome(), None);
        answer(&mut write, 3, ring.epoch, Answer::Accepted(V), T0);
        assert_eq!(write.outcome(), Some(&Outcome::Done((), Consistency::Quorum)));
    }

    #[test]
    fn accepts_of_two_epochs_are_never_added_up() {
        let ring = ring_of(3, 3, 4);
        let dual = Arc::new(ring.dual(&[member(4)], &BTreeSet::new()).unwrap());
        let (mut write, _) = start(&ring, Consistency::Quorum, false);
        answer(&mut write, 1, ring.epoch, Answer::Accepted(V), T0);
        let fetch = answer(&mut write, 2, ring.epoch, Answer::Stale(dual.epoch), T0);
        assert_eq!(fetch, [Action::Fetch(NodeId(2), dual.epoch)]);
        let mut again = Vec::new();
        write.installed(dual.clone(), &mut again);
        let owners = everyone(&dual.live_sets(Segment(0)));
        assert_eq!(again.len(), owners.len());
        assert!(
            again
                .iter()
                .all(|a| matches!(a, Action::Ask(_, e, Ask::Write(r)) if *e == dual.epoch && r.version == V))
        );
        answer(&mut write, 2, dual.epoch, Answer::Accepted(V), T0);
        answer(&mut write, 3, ring.epoch, Answer::Accepted(V), T0);
        assert_eq!(write.outcome(), None);
        for id in owners {
            answer(&mut write, id.0, dual.epoch, Answer::Accepted(V), T0);
        }
        assert_eq!(write.outcome(), Some(&Outcome::Done((), Consistency::Quorum)));
    }

    #[test]
    fn what_began_before_a_collecting_layout_is_not_sent_again_at_it_or_later() {
        let ring = ring_of(3, 3, 4);
        let collecting = ring.collecting();
        let dual = collecting.dual(&[member(4)], &BTreeSet::new()).unwrap();
        for (began, then, ends) in
            [(&ring, &collecting, true), (&ring, &dual, true), (&collecting, &dual, false)]
        {
            let (mut write, _) = start(began, Consistency::Quorum, false);
            let mut again = Vec::new();
            write.installed(Arc::new(then.clone()), &mut again);
            assert_eq!(write.outcome(), ends.then_some(&Outcome::Collected));
            assert_eq!(again.is_empty(), ends);
        }
    }

    #[test]
    fn a_lost_race_is_aborted_and_a_silence_is_asked_again() {
        let ring = ring_of(3, 3, 4);
        let (mut write, _) = start(&ring, Consistency::Quorum, false);
        answer(&mut write, 1, ring.epoch, Answer::Silence, T0);
        let mut out = Vec::new();
        write.tick(RETRY, &mut out);
        assert!(matches!(out[..], [Action::Ask(NodeId(1), _, _)]), "{out:?}");
        let newer = Answer::Superseded(Version { hlc: 10, node: 2 });
        answer(&mut write, 2, ring.epoch, newer.clone(), RETRY);
        assert_eq!(write.outcome(), None);
        answer(&mut write, 3, ring.epoch, newer, RETRY);
        assert_eq!(write.outcome(), Some(&Outcome::Aborted));
    }

    #[test]
    fn without_a_quorum_nothing_is_done_or_one_is_enough_if_the_caller_said_so() {
        let ring = Arc::new(ring_of(3, 3, 4));
        let alone: &dyn Fn(NodeId) -> Liveness = &|id| if id.0 == 1 { Liveness::Up } else { Liveness::Down };
        for (fallback, expected) in [(false, Some(Outcome::Unavailable)), (true, None)] {
            let (mut out, record) = (Vec::new(), Record::value(V, "x"));
            let terms = Terms::new(Consistency::Quorum, fallback, T0, Duration::from_secs(2));
            let mut write = Write::start(ring.clone(), Segment(0), record, terms, alone, &mut out);
            assert_eq!(write.outcome(), expected.as_ref());
            assert_eq!(out.is_empty(), !fallback);
            answer(&mut write, 1, ring.epoch, Answer::Accepted(V), T0);
            if fallback {
                assert_eq!(write.outcome(), Some(&Outcome::Done((), Consistency::One)));
            }
        }
    }

    #[test]
    fn a_quorum_that_does_not_answer_in_time_falls_back_or_times_out() {
        let ring = ring_of(3, 3, 4);
        for (fallback, half, end) in
            [(true, Some(Outcome::Done((), Consistency::One)), None), (false, None, Some(Outcome::TimedOut))]
        {
            let (mut write, _) = start(&ring, Consistency::Quorum, fallback);
            answer(&mut write, 2, ring.epoch, Answer::Accepted(V), T0);
            write.tick(Duration::from_secs(1), &mut Vec::new());
            assert_eq!(write.outcome(), half.as_ref());
            write.tick(Duration::from_secs(2), &mut Vec::new());
            assert_eq!(write.outcome(), end.as_ref().or(half.as_ref()));
        }
    }

    #[test]
    fn full_disks_alone_mean_that_nothing_was_done() {
        let ring = ring_of(3, 3, 4);
        let (mut write, _) = start(&ring, Consistency::Quorum, false);
        answer(&mut write, 2, ring.epoch, Answer::NoSpace, T0);
        answer(&mut write, 3, ring.epoch, Answer::NoSpace, T0);
        assert_eq!(write.outcome(), None, "the first may have kept it");
        answer(&mut write, 1, ring.epoch, Answer::NoSpace, T0);
        assert_eq!(write.outcome(), Some(&Outcome::NoSpace));
        let (mut write, _) = start(&ring, Consistency::Quorum, false);
        answer(&mut write, 1, ring.epoch, Answer::Accepted(V), T0);
        answer(&mut write, 2, ring.epoch, Answer::NoSpace, T0);
        answer(&mut write, 3, ring.epoch, Answer::NoSpace, T0);
        assert_eq!(write.outcome(), Some(&Outcome::Aborted));
        assert_eq!(write.without_space(), [NodeId(2), NodeId(3)], "which is why");
    }
}
