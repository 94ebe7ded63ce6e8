//! One node's part in agreeing on layouts: voter, proposer, claimant and learner, sans I/O.
//!
//! Messages and ticks go in, [`Output`]s come out, to be carried out *in order*: `Persist` comes
//! before the `Send` that tells somebody of it, and an `Install` is durable before
//! [`Membership::installed`] is called, so that nothing is ever said that a crash could take back.
//! The real shell (`location`) and the simulator drive the same code.
//!
//! Messages may be lost, late, doubled or reordered. Everything here is repeated by ticks until a
//! newer layout makes it moot.
//!
//! Left out on purpose: who is alive. That comes in as a function of the member, from gossip.

use crate::core::ballot::{Ballot, Mandate, Proposal, Vote};
use crate::core::collection::Found;
use crate::core::layout::{Layout, Member};
use crate::core::mutants::{Mutant, planted};
use crate::core::node::{Liveness, Moment, NodeId};
use crate::core::token::Epoch;
use crate::core::transition::{Change, Desk, MAX_REMOVALS, Patience, Report};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How often a node reports to the claimant. Well under what the claimant forgets by.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// How long a proposer waits for a majority before it tries a higher ballot. Each node adds up to
/// as much again, by its id, so that two proposers don't keep outbidding each other.
const PROPOSAL_TIMEOUT_MS: u64 = 600;

/// What nodes tell each other about layouts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Will you vote on the layout of epoch `target` at this ballot?
    Prepare {
        /// The epoch of the layout to choose.
        target: Epoch,
        /// The attempt.
        ballot: Ballot,
    },
    /// I will, and at no lower one. Here is what I accepted so far, and whom I take to be down.
    Promise {
        /// As asked.
        target: Epoch,
        /// As asked.
        ballot: Ballot,
        /// The voter's last accepted proposal.
        accepted: Option<(Ballot, Arc<Layout>)>,
        /// The members that the voter's gossip calls down.
        down: BTreeSet<NodeId>,
    },
    /// Do you accept this layout at this ballot?
    Accept {
        /// The attempt.
        ballot: Ballot,
        /// The proposed layout; its epoch is the target.
        layout: Arc<Layout>,
    },
    /// I did.
    Accepted {
        /// As asked.
        target: Epoch,
        /// As asked.
        ballot: Ballot,
    },
    /// I promised a higher ballot.
    Refused {
        /// As asked.
        target: Epoch,
        /// The ballot it promised.
        promised: Ballot,
    },
    /// This layout was chosen.
    Install(Arc<Layout>),
    /// How I am getting on; to the claimant.
    Report(Report),
    /// Somebody (perhaps not the sender) wishes to join.
    Join(Member),
    /// Everyone is leaving at once, so nobody hands anything over: just stop.
    AllStop,
}

/// What the driver has to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Write [`Membership::vote`] down durably before going on.
    Persist,
    /// Send a message; it may get lost.
    Send(NodeId, Message),
    /// Install this layout durably, then call [`Membership::installed`].
    Install(Arc<Layout>),
    /// This node knows a newer layout: fetch it.
    Pull(NodeId),
    /// All members leave at once: stop, and stay a member.
    AllStop,
    /// For the log: a transition is given up on account of a node.
    GaveUp(NodeId, &'static str),
}

#[derive(Debug, Clone)]
struct Attempt {
    proposal: Proposal<Arc<Layout>>,
    change: Change,
    since: Moment,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Membership {
    me: NodeId,
    layout: Arc<Layout>,
    vote: Vote<Arc<Layout>>,
    desk: Desk,
    attempt: Option<Attempt>,
    highest_round: u64,
    report: Report,
    reported: Option<(Moment, Report)>,
}

type View<'a> = &'a dyn Fn(NodeId) -> Liveness;

impl Membership {
    /// A node that has `layout` installed and `vote` on record for the epoch after it.
    pub fn new(me: NodeId, layout: Arc<Layout>, vote: Vote<Arc<Layout>>, patience: Patience) -> Self {
        let report = Report { installed: layout.epoch, ..Report::default() };
        let highest_round = vote.promised.round;
        Membership {
            me,
            layout,
            vote,
            desk: Desk::new(patience),
            attempt: None,
            highest_round,
            report,
            reported: None,
        }
    }

    /// The installed layout.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// What this voter must remember about the epoch after the installed one.
    pub fn vote(&self) -> &Vote<Arc<Layout>> {
        &self.vote
    }

    /// Whether this node is in the installed layout.
    pub fn is_member(&self) -> bool {
        self.layout.is_member(self.me)
    }

    /// From now on this node asks to leave.
    pub fn leave(&mut self) {
        self.report.leaving = true;
    }

    /// How gathering (or, for a leaver, offering) for the Dual of `epoch` is getting on.
    pub fn pulled(&mut self, epoch: Epoch, progress: u64) {
        if epoch == self.layout.epoch {
            self.report.progress = progress;
        }
    }

    /// Gathering for the Dual of `epoch` is done: all of it durable, or it failed.
    pub fn pull_ended(&mut self, epoch: Epoch, complete: bool) {
        if complete {
            self.report.synced = epoch;
        } else {
            self.report.failed = epoch;
        }
    }

    /// What there is to collect, found and waited with at the installed epoch.
    pub fn found(&mut self, found: Found) {
        self.report.found = found;
    }

    /// An operator says that a member is gone. This node reports the wish until the member is out, or
    /// up again after all; `false` if it reports as many already as it can.
    pub fn ask_removal(&mut self, id: NodeId) -> bool {
        let room = self.report.removals.len() < MAX_REMOVALS;
        room && {
            self.report.removals.insert(id);
            true
        }
    }

    /// The layout is installed, durably: votes of older epochs are void.
    pub fn installed(&mut self, layout: Arc<Layout>, now: Moment) {
        self.desk.installed(&self.layout, &layout, now);
        self.report.installed = layout.epoch;
        self.report.found = Found::Nothing;
        self.layout = layout;
        self.vote = Vote::default();
        self.attempt = None;
        self.highest_round = 0;
        self.reported = None;
    }

    /// The live voter with the lowest id, who acts by convention.
    pub fn claimant(&self, view: View) -> Option<NodeId> {
        let live = |id: &NodeId| *id == self.me || view(*id) != Liveness::Down;
        self.layout.voters().into_iter().find(live)
    }

    fn others(&self) -> impl Iterator<Item = NodeId> {
        self.layout.ids().filter(|id| *id != self.me)
    }

    fn target(&self) -> Epoch {
        self.layout.epoch + 1
    }

    fn votes(&self) -> bool {
        self.layout.voters().contains(&self.me)
    }

    /// Time passes: report, propose, try again.
    pub fn tick(&mut self, now: Moment, view: View) -> Vec<Output> {
        let mut out = Vec::new();
        self.send_report(now, view, &mut out);
        if self.claimant(view) != Some(self.me) || !self.votes() {
            self.attempt = None;
            return out;
        }
        if self.desk.everyone_leaves(&self.layout, now, view) {
            out.extend(self.others().map(|id| Output::Send(id, Message::AllStop)));
            out.push(Output::AllStop);
            return out;
        }
        let timeout = Duration::from_millis(PROPOSAL_TIMEOUT_MS + self.me.low() % PROPOSAL_TIMEOUT_MS);
        match &self.attempt {
            Some(attempt) if now.saturating_sub(attempt.since) < timeout => {}
            Some(attempt) => {
                let change = attempt.change.clone();
                self.attempt(change, now, view, &mut out);
            }
            None => {
                if let Some(change) = self.desk.next(&self.layout, now, view) {
                    if let Change::Abort { blame, why } = change {
                        out.push(Output::GaveUp(blame, why));
                    }
                    self.attempt(change, now, view, &mut out);
                }
            }
        }
        out
    }

    fn send_report(&mut self, now: Moment, view: View, out: &mut Vec<Output>) {
        let layout = &self.layout;
        self.report.removals.retain(|id| layout.is_member(*id) && view(*id) == Liveness::Down);
        // News is due at once, progress too: a claimant that is impatient must not miss it.
        let due =
            |(at, said): &(Moment, Report)| now.saturating_sub(*at) >= HEARTBEAT || *said != self.report;
        let due = self.reported.as_ref().is_none_or(due);
        if !due || !self.is_member() {
            return;
        }
        self.reported = Some((now, self.report.clone()));
        match self.claimant(view) {
            Some(id) if id != self.me => out.push(Output::Send(id, Message::Report(self.report.clone()))),
            _ => self.desk.hear_report(self.me, self.report.clone(), now),
        }
    }

    fn attempt(&mut self, change: Change, now: Moment, view: View, out: &mut Vec<Output>) {
        // Ballots come from outside: an absurd one must not overflow. It can't be outbid either.
        self.highest_round = self.highest_round.saturating_add(1);
        let ballot = Ballot::new(self.highest_round, self.me);
        let proposal = Proposal::new(ballot, self.layout.voters());
        self.attempt = Some(Attempt { proposal, change, since: now });
        self.broadcast(&Message::Prepare { target: self.target(), ballot }, now, view, out);
    }

    /// Puts a message to all voters of the current attempt; this node's own answer comes at once.
    fn broadcast(&mut self, message: &Message, now: Moment, view: View, out: &mut Vec<Output>) {
        let Some(attempt) = &self.attempt else { return };
        let others = attempt.proposal.voters().iter().filter(|id| **id != self.me);
        out.extend(others.map(|id| Output::Send(*id, message.clone())));
        let own = self.handle(self.me, message.clone(), now, view);
        for output in own {
            match output {
                Output::Send(to, answer) if to == self.me => {
                    out.extend(self.handle(self.me, answer, now, view))
                }
                // What a vote of this node's own leads to must not leave before the vote is durable.
                output => out.push(output),
            }
        }
    }

    /// A message of `from` arrived.
    pub fn handle(&mut self, from: NodeId, message: Message, now: Moment, view: View) -> Vec<Output> {
        let mut out = Vec::new();
        match message {
            Message::Prepare { target, ballot } => {
                if self.may_vote(from, target, &mut out) {
                    let answer = match self.vote.prepare(ballot) {
                        Ok(accepted) => {
                            out.push(Output::Persist);
                            let down =
                                self.layout.ids().filter(|id| *id != self.me && view(*id) == Liveness::Down);
                            Message::Promise { target, ballot, accepted, down: down.collect() }
                        }
                        Err(promised) => Message::Refused { target, promised },
                    };
                    out.push(Output::Send(from, answer));
                }
            }
            Message::Accept { ballot, layout } => {
                let target = layout.epoch;
                if self.may_vote(from, target, &mut out) {
                    let answer = match self.vote.accept(ballot, layout) {
                        Ok(()) => {
                            out.push(Output::Persist);
                            Message::Accepted { target, ballot }
                        }
                        Err(promised) => Message::Refused { target, promised },
                    };
                    out.push(Output::Send(from, answer));
                }
            }
            Message::Promise { target, ballot, accepted, down } => {
                self.on_promise(from, target, ballot, accepted, down, now, view, &mut out);
            }
            Message::Accepted { target, ballot } => {
                let Some(attempt) = &mut self.attempt else { return out };
                if target == self.layout.epoch + 1
                    && ballot == attempt.proposal.ballot()
                    && let Some(chosen) = attempt.proposal.accepted(from).cloned()
                {
                    self.attempt = None;
                    let everyone: BTreeSet<_> = self.layout.ids().chain(chosen.ids()).collect();
                    let others = everyone.into_iter().filter(|id| *id != self.me);
                    // First here: whoever is told can rely on this node knowing it too.
                    out.push(Output::Install(chosen.clone()));
                    out.extend(others.map(|id| Output::Send(id, Message::Install(chosen.clone()))));
                }
            }
            Message::Refused { target, promised } => {
                if target == self.target() {
                    self.highest_round = self.highest_round.max(promised.round);
                }
            }
            Message::Install(layout) => {
                if layout.epoch > self.layout.epoch && layout.ring == self.layout.ring {
                    out.push(Output::Install(layout));
                }
            }
            Message::Report(report) => {
                self.meet(from, report.installed, &mut out);
                // Only of members: what strangers call themselves must not fill memory.
                if self.layout.is_member(from) {
                    self.desk.hear_report(from, report, now);
                }
            }
            Message::Join(member) => self.on_join(from, member, now, view, &mut out),
            Message::AllStop => {
                if self.report.leaving {
                    out.push(Output::AllStop);
                }
            }
        }
        out
    }

    /// News that a node has installed `epoch`: whoever is behind is helped.
    pub fn meet(&mut self, from: NodeId, epoch: Epoch, out: &mut Vec<Output>) {
        if epoch > self.layout.epoch {
            out.push(Output::Pull(from));
        } else if epoch < self.layout.epoch {
            out.push(Output::Send(from, Message::Install(self.layout.clone())));
        }
    }

    fn may_vote(&mut self, from: NodeId, target: Epoch, out: &mut Vec<Output>) -> bool {
        if target != self.target() {
            self.meet(from, target.saturating_sub(1), out);
        }
        let past = planted(Mutant::VotesForPastEpochs) && target < self.target();
        (target == self.target() || past) && self.votes()
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one message, and where it goes")]
    fn on_promise(
        &mut self,
        from: NodeId,
        target: Epoch,
        ballot: Ballot,
        accepted: Option<(Ballot, Arc<Layout>)>,
        down: BTreeSet<NodeId>,
        now: Moment,
        view: View,
        out: &mut Vec<Output>,
    ) {
        let current = target == self.target();
        let Some(attempt) = self.attempt.as_mut().filter(|a| current && ballot == a.proposal.ballot()) else {
            return;
        };
        let value = match attempt.proposal.promised(from, accepted, down) {
            None => return,
            Some(Mandate::Bound(value)) => Some(value),
            Some(Mandate::Free(down)) => attempt.change.apply(&self.layout, &down).map(Arc::new),
        };
        match value {
            Some(layout) => {
                attempt.proposal.propose(layout.clone());
                self.broadcast(&Message::Accept { ballot, layout }, now, view, out);
            }
            // The wish came to nothing, for instance a removal to which no majority agrees.
            None => self.attempt = None,
        }
    }

    fn on_join(&mut self, from: NodeId, member: Member, now: Moment, view: View, out: &mut Vec<Output>) {
        if self.layout.is_member(member.id) {
            if from == member.id {
                out.push(Output::Send(from, Message::Install(self.layout.clone())));
            }
            return;
        }
        match self.claimant(view) {
            Some(id) if id != self.me && id != from => out.push(Output::Send(id, Message::Join(member))),
            _ => self.desk.hear_join(member, now),
        }
    }
}
