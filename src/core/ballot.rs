//! Single-decree Paxos (Lamport 1998): how the voters of one layout choose the one that follows.
//!
//! A [`Vote`] is what one voter must remember; the caller makes it durable before it lets an
//! answer out. A [`Proposal`] is one attempt of one proposer. Both are about one epoch only: when
//! its layout is installed they are forgotten, and the next epoch starts with fresh ones.
//!
//! Acceptors never judge what is proposed. What they do contribute is their view of who is down,
//! so that a proposer that is free to choose removes only members whom a majority calls down.
//!
//! Left out on purpose: leases, leader election, multi-decree pipelining. Layouts change rarely.

use crate::core::mutants::{Mutant, planted};
use crate::core::node::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// The number of an attempt: higher ones win, and no two nodes share one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Ballot {
    /// Counts up.
    pub round: u64,
    /// Whose attempt; 0 in the ballot below all others.
    pub node: u128,
}

impl Ballot {
    /// A node's ballot of a round.
    pub fn new(round: u64, node: NodeId) -> Self {
        Ballot { round, node: node.0 }
    }
}

/// A voter's memory for one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote<V> {
    /// It answers no ballot below this one.
    pub promised: Ballot,
    /// What it accepted last, if anything.
    pub accepted: Option<(Ballot, V)>,
}

impl<V> Default for Vote<V> {
    fn default() -> Self {
        Vote { promised: Ballot::default(), accepted: None }
    }
}

impl<V: Clone> Vote<V> {
    /// Promises to answer nothing below `ballot`, and tells what was accepted so far. `Err` names
    /// the higher ballot that was promised already.
    pub fn prepare(&mut self, ballot: Ballot) -> Result<Option<(Ballot, V)>, Ballot> {
        if ballot < self.promised {
            return Err(self.promised);
        }
        if !planted(Mutant::PromiseForgotten) {
            self.promised = ballot;
        }
        Ok(self.accepted.clone())
    }

    /// Accepts `value` unless a higher ballot was promised.
    pub fn accept(&mut self, ballot: Ballot, value: V) -> Result<(), Ballot> {
        if ballot < self.promised {
            return Err(self.promised);
        }
        self.promised = ballot;
        self.accepted = Some((ballot, value));
        Ok(())
    }
}

/// What a proposer may propose once a majority has promised.
#[derive(Debug, PartialEq, Eq)]
pub enum Mandate<V> {
    /// This: some voter accepted it, so that it may be chosen already.
    Bound(V),
    /// Whatever it likes. These are the nodes that a majority of the voters called down.
    Free(BTreeSet<NodeId>),
}

/// What a promise told: what its voter accepted last, and whom it takes to be down.
type Promise<V> = (Option<(Ballot, V)>, BTreeSet<NodeId>);

/// One attempt.
#[derive(Debug, Clone)]
pub struct Proposal<V> {
    ballot: Ballot,
    voters: Vec<NodeId>,
    promises: BTreeMap<NodeId, Promise<V>>,
    value: Option<V>,
    accepts: BTreeSet<NodeId>,
}

impl<V: Clone> Proposal<V> {
    /// An attempt at `ballot`, to be put to these voters.
    pub fn new(ballot: Ballot, voters: Vec<NodeId>) -> Self {
        Proposal { ballot, voters, promises: BTreeMap::new(), value: None, accepts: BTreeSet::new() }
    }

    /// Its ballot.
    pub fn ballot(&self) -> Ballot {
        self.ballot
    }

    /// To whom it is put.
    pub fn voters(&self) -> &[NodeId] {
        &self.voters
    }

    fn is_majority(&self, count: usize) -> bool {
        count > self.voters.len() / 2
    }

    /// A voter promised. Answers once, when the majority is there.
    pub fn promised(
        &mut self,
        from: NodeId,
        accepted: Option<(Ballot, V)>,
        down: BTreeSet<NodeId>,
    ) -> Option<Mandate<V>> {
        if self.value.is_some() || !self.voters.contains(&from) {
            return None;
        }
        self.promises.insert(from, (accepted, down));
        if !self.is_majority(self.promises.len()) {
            return None;
        }
        let accepted = self.promises.values().filter_map(|(accepted, _)| accepted.as_ref());
        if let Some((_, value)) = accepted.max_by_key(|(ballot, _)| *ballot)
            && !planted(Mutant::AcceptedIgnored)
        {
            return Some(Mandate::Bound(value.clone()));
        }
        let mut called: BTreeMap<NodeId, usize> = BTreeMap::new();
        for id in self.promises.values().flat_map(|(_, down)| down) {
            *called.entry(*id).or_default() += 1;
        }
        let enough = |count: usize| planted(Mutant::RemovedByOne) || self.is_majority(count);
        called.retain(|_, count| enough(*count));
        Some(Mandate::Free(called.into_keys().collect()))
    }

    /// What is proposed from now on; to be called with the mandate's consent, once.
    pub fn propose(&mut self, value: V) {
        self.value = Some(value);
    }

    /// A voter accepted. Answers the chosen value once a majority has.
    pub fn accepted(&mut self, from: NodeId) -> Option<&V> {
        if self.voters.contains(&from) {
            self.accepts.insert(from);
        }
        if self.is_majority(self.accepts.len()) || planted(Mutant::WonWithoutMajority) {
            self.value.as_ref()
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ballot(round: u64, node: u128) -> Ballot {
        Ballot::new(round, NodeId(node))
    }

    #[test]
    fn a_voter_answers_no_lower_ballot() {
        let mut vote = Vote::default();
        assert_eq!(vote.prepare(ballot(2, 1)), Ok(None));
        assert_eq!(vote.prepare(ballot(1, 9)), Err(ballot(2, 1)));
        assert_eq!(vote.accept(ballot(1, 9), 'x'), Err(ballot(2, 1)));
        assert_eq!(vote.accept(ballot(2, 1), 'y'), Ok(()));
        assert_eq!(vote.prepare(ballot(3, 2)), Ok(Some((ballot(2, 1), 'y'))));
    }

    #[test]
    fn a_proposer_takes_over_the_highest_that_was_accepted() {
        let mut proposal = Proposal::new(ballot(5, 1), vec![NodeId(1), NodeId(2), NodeId(3)]);
        assert_eq!(proposal.promised(NodeId(9), None, BTreeSet::new()), None, "no voter");
        assert_eq!(proposal.promised(NodeId(1), Some((ballot(1, 1), 'a')), BTreeSet::new()), None);
        let mandate = proposal.promised(NodeId(2), Some((ballot(2, 2), 'b')), BTreeSet::new());
        assert_eq!(mandate, Some(Mandate::Bound('b')));
    }

    #[test]
    fn only_whom_a_majority_calls_down_is_down() {
        let down = |ids: &[u128]| ids.iter().map(|&id| NodeId(id)).collect::<BTreeSet<_>>();
        let mut proposal = Proposal::<char>::new(ballot(1, 1), (1..=5).map(NodeId).collect());
        assert_eq!(proposal.promised(NodeId(1), None, down(&[4, 5])), None);
        assert_eq!(proposal.promised(NodeId(2), None, down(&[4, 5])), None);
        // Of node 4 only a majority of the promises says so, which is less than one of the voters.
        assert_eq!(proposal.promised(NodeId(3), None, down(&[5])), Some(Mandate::Free(down(&[5]))));
    }

    /// Every interleaving of two proposers over three voters that a random walk meets: never are
    /// two values chosen.
    #[test]
    fn at_most_one_value_is_chosen_whatever_the_order() {
        let voters: Vec<_> = (0..3).map(NodeId).collect();
        for seed in 0..20_000u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut random = |n: usize| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state % n as u64) as usize
            };
            let mut votes = [Vote::default(), Vote::default(), Vote::default()];
            let mut rounds = [0, 0];
            let mut proposals: [Option<Proposal<usize>>; 2] = [None, None];
            let mut open: [bool; 2] = [false; 2];
            let mut chosen = BTreeSet::new();
            for _ in 0..30 {
                let (who, voter) = (random(2), random(3));
                if random(6) == 0 || proposals[who].is_none() {
                    rounds[who] += 1 + random(2) as u64;
                    proposals[who] = Some(Proposal::new(ballot(rounds[who], who as u128), voters.clone()));
                    open[who] = false;
                }
                let Some(proposal) = &mut proposals[who] else { continue };
                if open[who] {
                    let Some(value) = proposal.value else { continue };
                    if votes[voter].accept(proposal.ballot(), value).is_ok() {
                        chosen.extend(proposal.accepted(voters[voter]).copied());
                    }
                } else if let Ok(accepted) = votes[voter].prepare(proposal.ballot()) {
                    match proposal.promised(voters[voter], accepted, BTreeSet::new()) {
                        Some(Mandate::Bound(value)) => proposal.propose(value),
                        Some(Mandate::Free(_)) => proposal.propose(who * 1000 + random(1000)),
                        None => continue,
                    }
                    open[who] = true;
                }
            }
            assert!(chosen.len() <= 1, "seed {seed}: {chosen:?}");
        }
    }
}
