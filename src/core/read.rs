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
        let before = std::mem::take(&mut self.known);
        self.known = everyone(&self.sets).into_iter().map(|id| (id, Knowledge::Unasked)).collect();
        if planted(Mutant::ReadKnowledgeKept) {
            let holds = |(_, knowledge): &(NodeId, Knowledge)| matches!(knowledge, Knowledge::Holds(_));
            before.into_iter().filter(holds).for_each(|(id, holds)| self.set(id, holds));
        }
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
            Answer::Superseded(_) if planted(Mutant::SupersededReadCounted) => {
                self.set(from, Knowledge::Holds(self.target.unwrap_or_default()));
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
            Answer::Silence | Answer::NoSpace | Answer::Page(_) => {
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
                out.push(Action::Ask(id, self.layout.epoch, Ask::WriteBack(record.clone())));
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
        if planted(Mutant::AbsentByReadSet) && target == Version::ABSENT {
            return self.read_set.meets(self.consistency, |id| self.holds(id, target));
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
mod tests;
