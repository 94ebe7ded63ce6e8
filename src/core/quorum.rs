//! Counting who said yes, over every set of owners that a request must satisfy.
//!
//! During a transition two sets of owners are live, and a quorum is a majority of *each*. All
//! answers in a tally are of one epoch: whoever sends again at another epoch starts a new tally.

use crate::core::mutants::{Mutant, planted};
use crate::core::node::NodeId;

/// The least number of `n` owners such that any two such choices meet.
pub fn majority(n: usize) -> usize {
    n / 2 + 1
}

/// How many owners must answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub enum Consistency {
    /// One owner of each live set. Fast and always available; may be stale.
    One,
    /// A majority of each live set: linearizable.
    Quorum,
    /// Every owner of each live set.
    All,
}

impl Consistency {
    /// As it is printed and sent.
    pub fn name(self) -> &'static str {
        match self {
            Consistency::One => "one",
            Consistency::Quorum => "quorum",
            Consistency::All => "all",
        }
    }

    /// How many of `n` owners.
    pub fn need(self, n: usize) -> usize {
        match self {
            Consistency::One => 1.min(n),
            Consistency::Quorum => majority(n),
            Consistency::All => n,
        }
    }
}

/// One set of owners, each of which counts once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LiveSet {
    owners: Vec<NodeId>,
}

impl LiveSet {
    /// The set of these owners, in preference order.
    pub fn new(owners: Vec<NodeId>) -> Self {
        LiveSet { owners }
    }

    /// The owners in preference order.
    pub fn owners(&self) -> &[NodeId] {
        &self.owners
    }

    /// Whether enough of the owners fulfil `holds`.
    pub fn meets(&self, consistency: Consistency, holds: impl Fn(NodeId) -> bool) -> bool {
        let there = self.owners.iter().filter(|id| holds(**id)).count();
        there >= consistency.need(self.owners.len())
    }
}

/// All distinct owners of several sets, in preference order.
pub fn everyone(sets: &[LiveSet]) -> Vec<NodeId> {
    let mut all: Vec<NodeId> = Vec::with_capacity(4);
    for id in sets.iter().flat_map(LiveSet::owners) {
        if !all.contains(id) {
            all.push(*id);
        }
    }
    all
}

/// Whether each set has enough owners that fulfil `holds`.
pub fn all_meet(sets: &[LiveSet], consistency: Consistency, holds: impl Fn(NodeId) -> bool) -> bool {
    sets.iter().all(|set| set.meets(consistency, &holds))
}

/// What a tally says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// More answers are needed, and may come.
    Pending,
    /// Enough owners of each set said yes.
    Met,
    /// Too many said no: it can't be met any more.
    Lost,
}

/// Who said what, of one request at one epoch.
#[derive(Clone, Debug)]
pub struct Tally {
    sets: Vec<LiveSet>,
    yes: Vec<NodeId>,
    no: Vec<NodeId>,
}

impl Tally {
    /// Nobody said anything yet.
    pub fn new(sets: Vec<LiveSet>) -> Self {
        Tally { sets, yes: Vec::new(), no: Vec::new() }
    }

    /// The same answers counted over other sets: the mistake that a tally exists to prevent.
    pub(crate) fn over(&self, sets: Vec<LiveSet>) -> Self {
        Tally { sets, ..self.clone() }
    }

    /// The node said yes. Saying so twice counts once.
    pub fn yes(&mut self, node: NodeId) {
        if !self.yes.contains(&node) {
            self.yes.push(node);
        }
    }

    /// The node said no, for good.
    pub fn no(&mut self, node: NodeId) {
        if !self.no.contains(&node) {
            self.no.push(node);
        }
    }

    /// Whether the node answered.
    pub fn has(&self, node: NodeId) -> bool {
        self.yes.contains(&node) || self.no.contains(&node)
    }

    /// Whether it is met, or can still be.
    pub fn verdict(&self, consistency: Consistency) -> Verdict {
        let said_yes = |id| self.yes.contains(&id);
        let any =
            planted(Mutant::AnySetIsEnough) && self.sets.iter().any(|set| set.meets(consistency, said_yes));
        if any || all_meet(&self.sets, consistency, said_yes) {
            Verdict::Met
        } else if all_meet(&self.sets, consistency, |id| !self.no.contains(&id)) {
            Verdict::Pending
        } else {
            Verdict::Lost
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u128]) -> LiveSet {
        LiveSet::new(ids.iter().map(|&id| NodeId(id)).collect())
    }

    fn check(sets: &[&[u128]], consistency: Consistency, yes: &[u128], no: &[u128], expected: Verdict) {
        let mut tally = Tally::new(sets.iter().map(|ids| set(ids)).collect());
        yes.iter().for_each(|&id| tally.yes(NodeId(id)));
        no.iter().for_each(|&id| tally.no(NodeId(id)));
        assert_eq!(tally.verdict(consistency), expected, "{sets:?} {consistency:?} +{yes:?} -{no:?}");
    }

    #[test]
    fn a_quorum_is_a_majority_of_each_set() {
        use Consistency::*;
        use Verdict::*;
        check(&[&[1, 2, 3]], Quorum, &[1], &[], Pending);
        check(&[&[1, 2, 3]], Quorum, &[1, 1], &[], Pending);
        check(&[&[1, 2, 3]], Quorum, &[1, 3], &[2], Met);
        check(&[&[1, 2, 3]], Quorum, &[1], &[2, 3], Lost);
        check(&[&[1, 2, 3], &[2, 3, 4]], Quorum, &[1, 2], &[], Pending);
        check(&[&[1, 2, 3], &[2, 3, 4]], Quorum, &[2, 3], &[1, 4], Met);
        check(&[&[1, 2, 3], &[4, 5, 6]], Quorum, &[1, 2, 3], &[4, 5], Lost);
        check(&[&[1, 2]], Quorum, &[1], &[2], Lost);
        check(&[&[1]], Quorum, &[1], &[], Met);
    }

    #[test]
    fn one_and_all_count_in_each_set_too() {
        use Consistency::*;
        use Verdict::*;
        check(&[&[1, 2, 3], &[4]], One, &[1], &[], Pending);
        check(&[&[1, 2, 3], &[4]], One, &[3, 4], &[1, 2], Met);
        check(&[&[1, 2, 3]], One, &[], &[1, 2, 3], Lost);
        check(&[&[1, 2, 3]], All, &[1, 2], &[], Pending);
        check(&[&[1, 2, 3]], All, &[1, 2, 3], &[], Met);
        check(&[&[1, 2, 3]], All, &[1, 2], &[3], Lost);
    }

    #[test]
    fn any_two_majorities_meet() {
        for n in 1..=9 {
            assert!(2 * majority(n) > n && 2 * (majority(n) - 1) <= n);
        }
    }
}
