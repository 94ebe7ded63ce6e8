//! One read, from the coordinator's side: events in, questions to replicas and an outcome out.
//!
//! First a quorum of the read set says which version it has. The greatest one met is the *target*.
//! It is returned only once a quorum of **each** live set is known to hold exactly the target, by
//! answering so or by accepting its write-back: then every later read meets it, whichever table
//! it asks. A newer version met on the way never counts for the older one; it becomes the target.
//!
//! What is known counts at one epoch only; with a new layout the read starts over. Rounds are
//! bounded: under a storm of concurrent writers a read aborts, having changed nothing.

use crate::core::layout::Layout;
use crate::core::mutants::{Mutant, planted};
use crate::core::node::{Liveness, Moment, NodeId};
use crate::core::quorum::{Consistency, LiveSet, all_meet, everyone};
use crate::core::record::{Record, Version};
use crate::core::replica_request::{Answer, Ask};
use crate::core::token::{Epoch, Segment};
use crate::core::write::{Action, Outcome, RETRY, Terms, achievable};
use std::sync::Arc;
use std::time::Duration;

/// At first only as many owners are asked as are needed. If they take so long, all the others are
/// asked as well: a few times what a healthy replica takes on one machine or in one data centre.
pub const HEDGE: Duration = Duration::from_millis(30);

/// How many targets a read goes after before it gives up.
pub const MAX_ROUNDS: u32 = 16;

/// What is known of one owner at the current epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    /// Not asked yet.
    Unasked,
    /// Asked for what it has.
    Asked,
    /// Silent; to be asked again from then on.
    Silent(Moment),
    /// It holds this version.
    Holds(Version),
    /// It holds this version, and is being sent the target's record.
    Behind { version: Version, sent: Version },
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Read {
    me: NodeId,
    segment: Segment,
    terms: Terms,
    consistency: Consistency,
    layout: Arc<Layout>,
    sets: Vec<LiveSet>,
    read_set: LiveSet,
    known: Vec<(NodeId, Knowledge)>,
    /// The newest record that reached this coordinator at this epoch.
    record: Option<Record>,
    /// Set while the target's record is being fetched: from whom.
    fetching: Option<NodeId>,
    hedge_at: Moment,
    rounds: u32,
    target: Option<Version>,
    outcome: Option<Outcome<Option<Record>>>,
}

impl Read {
    /// Starts reading, or finds at once that it can't be done. `me` is asked first where it owns
    /// the segment, as that costs nothing.
    pub fn start(
        me: NodeId,
        layout: Arc<Layout>,
        segment: Segment,
        terms: Terms,
        now: Moment,
        liveness: &dyn Fn(NodeId) -> Liveness,
        out: &mut Vec<Action>,
    ) -> Self {
        let achievable = achievable(&terms, &layout, segment, liveness);
        let mut read = Read {
            me,
            segment,
            terms,
            consistency: achievable.unwrap_or(terms.consistency),
            sets: Vec::new(),
            read_set: LiveSet::new(Vec::new()),
            layout,
            known: Vec::new(),
            record: None,
            fetching: None,
            hedge_at: now,
            rounds: 0,
            target: None,
            outcome: None,
        };
        if achievable.is_none() {
            read.outcome = Some(Outcome::Unavailable);
        } else {
            read.begin(now, liveness, out);
        }
        read
    }

    /// How it ended; `None` while it goes on.
    pub fn outcome(&self) -> Option<&Outcome<Option<Record>>> {
        self.outcome.as_ref()
    }

    /// The epoch at which owners are being asked.
    pub fn epoch(&self) -> Epoch {
        self.layout.epoch
    }

    fn begin(&mut self, now: Moment, liveness: &dyn Fn(NodeId) -> Liveness, out: &mut Vec<Action>) {
        self.sets = self.layout.live_sets(self.segment);
        self.read_set = LiveSet::new(self.layout.read_owners(self.segment));
        self.known = everyone(&self.sets).into_iter().map(|id| (id, Knowledge::Unasked)).collect();
        self.record = None;
        self.fetching = None;
        self.target = None;
        self.hedge_at = now + HEDGE;

        // This node first, then those that are up, in preference order; of each set as many as it
        // takes. At ONE the read set alone matters: newcomers are empty.
        let only_read_set = [self.read_set.clone()];
        let sets = if self.consistency == Consistency::One { &only_read_set[..] } else { &self.sets };
        let mut ask: Vec<NodeId> = Vec::with_capacity(4);
        for set in sets {
            let mut owners = set.owners().to_vec();
            owners.sort_by_key(|id| (*id != self.me, !ask.contains(id), liveness(*id) != Liveness::Up));
            for id in owners.into_iter().take(self.consistency.need(set.owners().len())) {
                if !ask.contains(&id) {
                    ask.push(id);
                }
            }
        }
        // The full record from one: this node if it is among them, else the first of the read set.
        ask.sort_by_key(|id| (*id != self.me, !self.read_set.owners().contains(id)));
        for (i, id) in ask.into_iter().enumerate() {
            self.ask(id, if i == 0 { Ask::Read } else { Ask::Version }, out);
        }
    }

    fn ask(&mut self, id: NodeId, ask: Ask, out: &mut Vec<Action>) {
        self.set(id, Knowledge::Asked);
        out.push(Action::Ask(id, self.layout.epoch, ask));
    }

    fn set(&mut self, id: NodeId, knowledge: Knowledge) {
        if let Some(entry) = self.known.iter_mut().find(|(known, _)| *known == id) {
            entry.1 = knowledge;
        }
    }

    fn version_at(&self, id: NodeId) -> Option<Version> {
        self.known.iter().find(|(known, _)| *known == id).and_then(|(_, knowledge)| match knowledge {
            Knowledge::Holds(version) | Knowledge::Behind { version, .. } => Some(*version),
            Knowledge::Unasked | Knowledge::Asked | Knowledge::Silent(_) => None,
        })
    }

    fn take(&mut self, record: Record) {
        self.record = Some(match self.record.take() {
            Some(other) => other.merge(record),
            None => record,
        });
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
        if epoch != self.layout.epoch {
            return;
        }
        let before = self.version_at(from);
        match answer {
            Answer::Record(record) => {
                let version = record.as_ref().map_or(Version::ABSENT, |r| r.version);
                self.set(from, Knowledge::Holds(version.max(before.unwrap_or_default())));
                self.fetching = self.fetching.filter(|id| *id != from);
                if let Some(record) = record {
                    self.take(record);
                }
            }
            Answer::Version(version) | Answer::Superseded(version) => {
                self.set(from, Knowledge::Holds(version.max(before.unwrap_or_default())));
            }
            Answer::Accepted(version) => {
                // It may hold something newer by now, but only of what was met is anything known.
                if before.is_none_or(|known| known <= version) {
                    self.set(from, Knowledge::Holds(version));
                }
            }
            Answer::Silence | Answer::NoSpace => {
                // Whatever it was asked, what it *holds* is no longer known for sure to be asked of
                // it again; it is asked afresh a little later, and others at once.
                self.fetching = self.fetching.filter(|id| *id != from);
                self.set(from, Knowledge::Silent(now + RETRY));
                self.hedge_at = self.hedge_at.min(now);
            }
            Answer::Stale(_) => {}
        }
        self.advance(now, out);
    }

    /// A newer layout is installed here: start over at it.
    pub fn installed(
        &mut self,
        layout: Arc<Layout>,
        now: Moment,
        liveness: &dyn Fn(NodeId) -> Liveness,
        out: &mut Vec<Action>,
    ) {
        if self.outcome.is_none() && layout.epoch > self.layout.epoch {
            self.layout = layout;
            self.begin(now, liveness, out);
        }
    }

    /// Time passes.
    pub fn tick(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.outcome.is_none() {
            self.advance(now, out);
        }
    }

    fn advance(&mut self, now: Moment, out: &mut Vec<Action>) {
        self.conclude(now);
        if self.outcome.is_some() {
            return;
        }
        for (id, knowledge) in self.known.clone() {
            let due = match knowledge {
                Knowledge::Unasked => now >= self.hedge_at,
                Knowledge::Silent(at) => now >= at,
                _ => false,
            };
            if due && (self.consistency != Consistency::One || self.read_set.owners().contains(&id)) {
                // Once the target is settled its record is sent instead: that asks and mends in one.
                self.ask(id, Ask::Version, out);
            }
        }
        if self.consistency == Consistency::One {
            self.fetch_record(out);
        } else if self.settle_target() {
            self.fetch_record(out);
            self.write_back(out);
            self.conclude(now);
        }
        if self.outcome.is_none() && self.rounds > MAX_ROUNDS {
            self.outcome = Some(Outcome::Aborted);
        }
    }

    /// The greatest version that was met, be its holder silent by now.
    fn greatest(&self) -> Option<Version> {
        let known = self.known.iter().filter_map(|(id, _)| self.version_at(*id)).max();
        known.max(self.record.as_ref().map(|record| record.version))
    }

    /// Whether a quorum of the read set has answered, so that the greatest version met is the one
    /// to go after.
    fn settle_target(&mut self) -> bool {
        if !self.read_set.meets(self.consistency, |id| self.version_at(id).is_some()) {
            return false;
        }
        let greatest = self.greatest();
        if greatest != self.target {
            self.target = greatest;
            self.rounds += 1;
        }
        true
    }

    /// Makes sure that the record of the greatest version is here or on its way.
    fn fetch_record(&mut self, out: &mut Vec<Action>) {
        let Some(greatest) = self.greatest().filter(|v| *v != Version::ABSENT) else { return };
        let here = self.record.as_ref().is_some_and(|r| r.version >= greatest);
        if here || self.fetching.is_some() {
            return;
        }
        let holder = self.known.iter().map(|(id, _)| *id).find(|id| self.version_at(*id) == Some(greatest));
        if let Some(id) = holder {
            self.fetching = Some(id);
            out.push(Action::Ask(id, self.layout.epoch, Ask::Read));
        }
    }

    /// Sends the target's record to owners that hold less, so that a quorum of each set holds it.
    fn write_back(&mut self, out: &mut Vec<Action>) {
        let Some(target) = self.target else { return };
        let Some(record) = self.record.clone().filter(|r| r.version == target) else {
            if target == Version::ABSENT {
                // Nothing to send: the rest of each set has to say so itself.
                self.hedge_at = Moment::ZERO;
                for (id, knowledge) in self.known.clone() {
                    if knowledge == Knowledge::Unasked {
                        self.ask(id, Ask::Version, out);
                    }
                }
            }
            return;
        };
        for (id, knowledge) in self.known.clone() {
            let send = match knowledge {
                Knowledge::Holds(version) => version < target,
                Knowledge::Behind { sent, .. } => sent < target,
                Knowledge::Unasked | Knowledge::Asked => !self.quorum_holds(target),
                Knowledge::Silent(_) => false,
            };
            if send {
                let version = self.version_at(id).unwrap_or_default();
                self.set(id, Knowledge::Behind { version, sent: target });
                out.push(Action::Ask(id, self.layout.epoch, Ask::Write(record.clone())));
            }
        }
    }

    fn holds(&self, id: NodeId, target: Version) -> bool {
        self.known.contains(&(id, Knowledge::Holds(target)))
    }

    fn quorum_holds(&self, target: Version) -> bool {
        if planted(Mutant::ReadWithoutWriteBack) {
            return true;
        }
        all_meet(&self.sets, self.consistency, |id| self.holds(id, target))
    }

    fn conclude(&mut self, now: Moment) {
        let fallback = self.terms.fallback_to_one && now >= self.terms.patience;
        if (self.consistency == Consistency::One || fallback)
            && let Some(record) = self.best_of_one()
        {
            self.outcome = Some(Outcome::Done(record, Consistency::One));
            return;
        }
        if self.consistency != Consistency::One
            && self.read_set.meets(self.consistency, |id| self.version_at(id).is_some())
            && let Some(greatest) = self.greatest()
            && self.quorum_holds(greatest)
        {
            let record = self.record.clone().filter(|r| r.version == greatest);
            if record.is_some() || greatest == Version::ABSENT {
                self.outcome = Some(Outcome::Done(record, self.consistency));
                return;
            }
        }
        if now >= self.terms.deadline {
            self.outcome = Some(Outcome::TimedOut);
        }
    }

    /// What a read at ONE may return: the newest record of any owner of the read set that answered.
    fn best_of_one(&self) -> Option<Option<Record>> {
        let answered = |id: &&NodeId| self.version_at(**id).is_some();
        let greatest =
            self.read_set.owners().iter().filter(answered).filter_map(|id| self.version_at(*id)).max()?;
        match &self.record {
            Some(record) => Some(Some(record.clone())),
            None => (greatest == Version::ABSENT).then_some(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::layout::tests::{member, ring_of};
    use std::collections::BTreeSet;

    const T0: Moment = Duration::ZERO;
    const S: Segment = Segment(0);

    fn record(hlc: u64) -> Record {
        Record::value(Version { hlc, node: 1 }, format!("v{hlc}"))
    }

    fn version(hlc: u64) -> Version {
        record(hlc).version
    }

    fn start(layout: &Layout, consistency: Consistency, fallback: bool) -> (Read, Vec<Action>) {
        let mut out = Vec::new();
        let terms = Terms::new(consistency, fallback, T0, Duration::from_secs(2));
        let me = layout.coordinators(S)[0];
        let read = Read::start(me, Arc::new(layout.clone()), S, terms, T0, &|_| Liveness::Up, &mut out);
        (read, out)
    }

    fn answer(read: &mut Read, from: NodeId, answer: Answer) -> Vec<Action> {
        let mut out = Vec::new();
        read.answered(from, read.epoch(), answer, T0, &mut out);
        out
    }

    fn done(read: &Read) -> Option<Option<u64>> {
        match read.outcome() {
            Some(Outcome::Done(record, _)) => Some(record.as_ref().map(|r| r.version.hlc)),
            _ => None,
        }
    }

    #[test]
    fn a_settled_key_takes_one_question_to_a_quorum() {
        let ring = ring_of(3, 3, 4);
        let me = ring.coordinators(S)[0];
        let (mut read, asked) = start(&ring, Consistency::Quorum, false);
        assert!(
            matches!(asked[..], [Action::Ask(a, _, Ask::Read), Action::Ask(_, _, Ask::Version)] if a == me)
        );
        let Action::Ask(other, ..) = asked[1] else { panic!() };
        assert_eq!(answer(&mut read, me, Answer::Record(Some(record(5)))), []);
        assert_eq!(done(&read), None);
        answer(&mut read, other, Answer::Version(version(5)));
        assert_eq!(done(&read), Some(Some(5)));
    }

    #[test]
    fn an_absent_key_is_absent_once_a_quorum_says_so() {
        let ring = ring_of(3, 3, 4);
        let (mut read, asked) = start(&ring, Consistency::Quorum, false);
        for action in asked {
            let Action::Ask(id, _, ask) = action else { panic!() };
            let nothing =
                if ask == Ask::Read { Answer::Record(None) } else { Answer::Version(Version::ABSENT) };
            answer(&mut read, id, nothing);
        }
        assert_eq!(done(&read), Some(None));
    }

    #[test]
    fn a_newer_version_elsewhere_is_fetched_and_written_back_before_it_is_returned() {
        let ring = ring_of(3, 3, 4);
        let (mut read, asked) = start(&ring, Consistency::Quorum, false);
        let [Action::Ask(me, ..), Action::Ask(other, ..)] = asked[..] else { panic!() };
        answer(&mut read, me, Answer::Record(Some(record(3))));
        let fetch = answer(&mut read, other, Answer::Version(version(8)));
        assert_eq!(fetch, [Action::Ask(other, ring.epoch, Ask::Read)]);
        let back = answer(&mut read, other, Answer::Record(Some(record(8))));
        assert!(back.contains(&Action::Ask(me, ring.epoch, Ask::Write(record(8)))), "{back:?}");
        assert_eq!(done(&read), None);
        answer(&mut read, me, Answer::Accepted(version(8)));
        assert_eq!(done(&read), Some(Some(8)));
    }

    #[test]
    fn a_newer_copy_never_counts_as_a_write_back_of_the_older() {
        let ring = ring_of(3, 3, 4);
        let (mut read, asked) = start(&ring, Consistency::Quorum, false);
        let [Action::Ask(me, ..), Action::Ask(other, ..)] = asked[..] else { panic!() };
        answer(&mut read, me, Answer::Record(Some(record(8))));
        answer(&mut read, other, Answer::Version(version(3)));
        answer(&mut read, other, Answer::Superseded(version(9)));
        assert_eq!(done(&read), None, "one holds 8, one 9: neither is known to a quorum");
        let back = answer(&mut read, other, Answer::Record(Some(record(9))));
        assert!(back.contains(&Action::Ask(me, ring.epoch, Ask::Write(record(9)))), "{back:?}");
        answer(&mut read, me, Answer::Accepted(version(9)));
        assert_eq!(done(&read), Some(Some(9)));
    }

    #[test]
    fn in_a_transition_a_quorum_of_both_sets_must_hold_it() {
        let dual = ring_of(1, 3, 4).dual(&[member(2)], &BTreeSet::new()).unwrap();
        let (mut read, asked) = start(&dual, Consistency::Quorum, false);
        assert_eq!(asked.len(), 2);
        answer(&mut read, NodeId(1), Answer::Record(Some(record(5))));
        assert_eq!(done(&read), None);
        let back = answer(&mut read, NodeId(2), Answer::Version(Version::ABSENT));
        assert_eq!(back, [Action::Ask(NodeId(2), dual.epoch, Ask::Write(record(5)))]);
        answer(&mut read, NodeId(2), Answer::Accepted(version(5)));
        assert_eq!(done(&read), Some(Some(5)));
    }

    #[test]
    fn a_new_layout_starts_it_over() {
        let ring = ring_of(3, 3, 4);
        let (mut read, asked) = start(&ring, Consistency::Quorum, false);
        let Action::Ask(me, old, _) = asked[0] else { panic!() };
        answer(&mut read, me, Answer::Record(Some(record(5))));
        let dual = ring.dual(&[], &BTreeSet::from([NodeId(3)])).unwrap();
        let mut out = Vec::new();
        read.installed(Arc::new(dual.clone()), T0, &|_| Liveness::Up, &mut out);
        assert!(out.iter().all(|a| matches!(a, Action::Ask(_, e, _) if *e == dual.epoch)));
        read.answered(NodeId(2), old, Answer::Version(version(5)), T0, &mut out);
        assert_eq!(done(&read), None);
    }

    #[test]
    fn silence_makes_it_ask_the_others() {
        let ring = ring_of(3, 3, 4);
        let (mut read, asked) = start(&ring, Consistency::Quorum, false);
        let [Action::Ask(me, ..), Action::Ask(other, ..)] = asked[..] else { panic!() };
        answer(&mut read, me, Answer::Record(Some(record(5))));
        let more = answer(&mut read, other, Answer::Silence);
        let [Action::Ask(third, _, Ask::Version)] = more[..] else { panic!("{more:?}") };
        answer(&mut read, third, Answer::Version(version(5)));
        assert_eq!(done(&read), Some(Some(5)));
    }

    #[test]
    fn a_record_whose_holder_falls_silent_is_still_written_back() {
        let ring = ring_of(3, 3, 4);
        let (mut read, asked) = start(&ring, Consistency::Quorum, false);
        let [Action::Ask(me, ..), Action::Ask(other, ..)] = asked[..] else { panic!() };
        answer(&mut read, me, Answer::Record(Some(record(5))));
        answer(&mut read, me, Answer::Silence);
        let third = everyone(&read.sets).into_iter().find(|id| *id != me && *id != other).unwrap();
        answer(&mut read, other, Answer::Version(version(3)));
        answer(&mut read, third, Answer::Version(version(3)));
        for id in [other, third] {
            answer(&mut read, id, Answer::Accepted(version(5)));
        }
        assert_eq!(done(&read), Some(Some(5)));
    }

    #[test]
    fn one_is_content_with_the_first_answer_of_the_read_set() {
        let dual = ring_of(1, 3, 4).dual(&[member(2)], &BTreeSet::new()).unwrap();
        let (mut read, asked) = start(&dual, Consistency::One, false);
        assert_eq!(asked, [Action::Ask(NodeId(1), dual.epoch, Ask::Read)]);
        answer(&mut read, NodeId(1), Answer::Record(Some(record(5))));
        assert_eq!(done(&read), Some(Some(5)));
    }

    #[test]
    fn a_quorum_that_stays_silent_falls_back_or_times_out() {
        for (fallback, expected) in [(true, Some(Some(5))), (false, None)] {
            let (mut read, asked) = start(&ring_of(3, 3, 4), Consistency::Quorum, fallback);
            let Action::Ask(me, ..) = asked[0] else { panic!() };
            answer(&mut read, me, Answer::Record(Some(record(5))));
            read.tick(Duration::from_secs(1), &mut Vec::new());
            assert_eq!(done(&read), expected);
            read.tick(Duration::from_secs(2), &mut Vec::new());
            assert!(fallback || read.outcome() == Some(&Outcome::TimedOut));
        }
    }
}
