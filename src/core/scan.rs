//! One stretch of a scan, from the coordinator's side: events in, questions to replicas and a page out.
//!
//! A segment is scanned in key order. Of each stretch as many owners of each live set give a page as the
//! consistency asks for, all at one epoch, and the newest record of each key is taken. (At ONE it is the read
//! set alone, since newcomers are empty.) Only the part that every page covers counts: where one ends early,
//! what the others have beyond is asked for again, with the next stretch. So each key comes once, and none is
//! missed that a quorum holds.
//!
//! It is no read: nothing is written back, so that of a write that is just under way one scan may show the
//! value and a later one not. But what was acknowledged before is met. The read set alone would do for that,
//! were it not for forced removals: a majority that was dropped by one may go on, to a ReadNew of which no
//! read succeeds, since old owners have followed the other ring; nor must a scan.

use crate::core::layout::Layout;
use crate::core::mutants::{Mutant, planted};
use crate::core::node::{Liveness, Moment, NodeId};
use crate::core::quorum::{Consistency, LiveSet, all_meet, everyone};
use crate::core::read::HEDGE;
use crate::core::record::Record;
use crate::core::replica_request::{Answer, Ask, Page, Stretch};
use crate::core::token::Epoch;
use crate::core::write::{Action, Outcome, RETRY, Terms};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is known of one owner at the current epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    Unasked,
    Asked,
    /// To be asked again from then on.
    Silent(Moment),
    Gave(Page),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Scan {
    me: NodeId,
    stretch: Stretch,
    /// Only what this very node holds.
    local: bool,
    terms: Terms,
    consistency: Consistency,
    layout: Arc<Layout>,
    sets: Vec<LiveSet>,
    known: Vec<(NodeId, Known)>,
    hedge_at: Moment,
    outcome: Option<Outcome<Page>>,
}

impl Scan {
    /// Starts on a stretch, or finds at once that it can't be done.
    pub fn start(
        me: NodeId,
        layout: Arc<Layout>,
        stretch: Stretch,
        terms: Terms,
        now: Moment,
        liveness: &dyn Fn(NodeId) -> Liveness,
        out: &mut Vec<Action>,
    ) -> Self {
        let mut scan = Scan::new(me, layout, stretch, terms);
        let may_answer = |consistency| {
            all_meet(&scan.sets_at(consistency), consistency, |id| liveness(id) != Liveness::Down)
        };
        if !may_answer(terms.consistency) {
            if !terms.fallback_to_one || !may_answer(Consistency::One) {
                scan.outcome = Some(Outcome::Unavailable);
                return scan;
            }
            scan.consistency = Consistency::One;
        }
        scan.begin(now, liveness, out);
        scan
    }

    /// The same of what this node holds itself, be it ever so old: an empty page where it is no owner.
    pub fn local(
        me: NodeId,
        layout: Arc<Layout>,
        stretch: Stretch,
        terms: Terms,
        now: Moment,
        out: &mut Vec<Action>,
    ) -> Self {
        let mut scan = Scan::new(me, layout, stretch, terms);
        (scan.local, scan.consistency) = (true, Consistency::One);
        scan.begin(now, &|_| Liveness::Up, out);
        scan
    }

    fn new(me: NodeId, layout: Arc<Layout>, stretch: Stretch, terms: Terms) -> Self {
        let sets = Vec::new();
        let (consistency, hedge_at) = (terms.consistency, Moment::ZERO);
        let (local, known, outcome) = (false, Vec::new(), None);
        Scan { me, stretch, local, terms, consistency, layout, sets, known, hedge_at, outcome }
    }

    /// How it ended; `None` while it goes on. A page holds deleted and expired records, too, so that the
    /// next stretch goes on after its last; with an empty one the segment ends.
    pub fn outcome(&self) -> Option<&Outcome<Page>> {
        self.outcome.as_ref()
    }

    /// The epoch at which owners are being asked.
    pub fn epoch(&self) -> Epoch {
        self.layout.epoch
    }

    fn begin(&mut self, now: Moment, liveness: &dyn Fn(NodeId) -> Liveness, out: &mut Vec<Action>) {
        self.sets = self.sets_at(self.consistency);
        let kept = planted(Mutant::PagesOfTwoEpochs);
        let gave = |id: &NodeId| {
            let before = self.known.iter().find(|(known, _)| known == id).map(|(_, known)| known.clone());
            before.filter(|known| kept && matches!(known, Known::Gave(_))).unwrap_or(Known::Unasked)
        };
        self.known = everyone(&self.sets).into_iter().map(|id| (id, gave(&id))).collect();
        self.hedge_at = now + HEDGE;
        // This node first, which costs nothing, then those that are up; of each set as many as it takes.
        let mut asked: Vec<NodeId> = Vec::with_capacity(4);
        for set in self.sets.clone() {
            let mut order = set.owners().to_vec();
            order.sort_by_key(|id| (*id != self.me, !asked.contains(id), liveness(*id) != Liveness::Up));
            order.truncate(self.consistency.need(order.len()));
            asked.extend(order.into_iter().filter(|id| !asked.contains(id)).collect::<Vec<_>>());
        }
        for id in asked {
            self.ask(id, out);
        }
        self.conclude(now);
    }

    /// The sets of owners of which so many must give a page.
    fn sets_at(&self, consistency: Consistency) -> Vec<LiveSet> {
        let segment = self.stretch.segment;
        match (self.local, consistency) {
            (true, _) => {
                vec![LiveSet::new(self.layout.slot(self.me, segment).map(|_| self.me).into_iter().collect())]
            }
            (false, Consistency::One) => vec![LiveSet::new(self.layout.read_owners(segment))],
            (false, _) => self.layout.live_sets(segment),
        }
    }

    fn ask(&mut self, id: NodeId, out: &mut Vec<Action>) {
        if let Some((_, known)) = self.known.iter_mut().find(|(known, _)| *known == id)
            && !matches!(known, Known::Gave(_))
        {
            *known = Known::Asked;
            out.push(Action::Ask(id, self.layout.epoch, Ask::Page(self.stretch.clone())));
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
        if epoch != self.layout.epoch {
            return;
        }
        let Some((_, known)) = self.known.iter_mut().find(|(id, _)| *id == from) else { return };
        match answer {
            Answer::Page(page) if page.is_of(&self.stretch) => *known = Known::Gave(page),
            _ if *known == Known::Asked => {
                *known = Known::Silent(now + RETRY);
                self.hedge_at = self.hedge_at.min(now);
            }
            _ => {}
        }
        self.tick(now, out);
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
        self.conclude(now);
        if self.outcome.is_some() {
            return;
        }
        let due = |known: &Known| match known {
            Known::Unasked => now >= self.hedge_at,
            Known::Silent(at) => now >= *at,
            Known::Asked | Known::Gave(_) => false,
        };
        let due: Vec<NodeId> = self.known.iter().filter(|(_, known)| due(known)).map(|(id, _)| *id).collect();
        due.into_iter().for_each(|id| self.ask(id, out));
    }

    fn conclude(&mut self, now: Moment) {
        if self.outcome.is_some() {
            return;
        }
        let gave =
            |id: NodeId| self.known.iter().any(|(of, known)| *of == id && matches!(known, Known::Gave(_)));
        let need = if planted(Mutant::PageOfOne) { Consistency::One } else { self.consistency };
        let one = || all_meet(&self.sets_at(Consistency::One), Consistency::One, gave);
        let fallback = self.terms.fallback_to_one && now >= self.terms.patience && one();
        if all_meet(&self.sets, need, gave) {
            self.outcome = Some(Outcome::Done(self.merged(), self.consistency));
        } else if fallback {
            self.outcome = Some(Outcome::Done(self.merged(), Consistency::One));
        } else if now >= self.terms.deadline {
            self.outcome = Some(Outcome::TimedOut);
        }
    }

    /// The newest of each key, as far as all pages go.
    fn merged(&self) -> Page {
        let pages = || {
            self.known.iter().filter_map(|(_, known)| match known {
                Known::Gave(page) => Some(page),
                _ => None,
            })
        };
        let ends = pages().filter(|page| !page.last && !planted(Mutant::ShortPagesTrusted));
        let end = ends.filter_map(|page| page.records.last()).map(|(key, _)| key).min();
        let mut newest: BTreeMap<Bytes, Record> = BTreeMap::new();
        let covered = |(key, _): &&(Bytes, Record)| end.is_none_or(|end| key <= end);
        for (key, record) in pages().flat_map(|page| &page.records).filter(covered) {
            let merged = match newest.remove(key) {
                Some(other) => other.merge(record.clone()),
                None => record.clone(),
            };
            newest.insert(key.clone(), merged);
        }
        Page { records: newest.into_iter().collect(), last: pages().all(|page| page.last) }
    }
}

#[cfg(test)]
mod tests;
