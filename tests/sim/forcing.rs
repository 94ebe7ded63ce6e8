//! Forced removals: a ring that lost its majority goes on without it, under a new id.
//!
//! Some members crash or are cut off, so many that no majority is left, and before long an operator has
//! all dropped that one survivor can't reach; now and then two operators do so at two survivors at once. Those
//! who were dropped return or never do, and some survivors hear of it late. The operator does not know who is
//! alive: where the others were only cut off, or come back all together, the old ring has its majority still and
//! goes on, and there are two rings for good, until a person sets the nodes of one aside.
//!
//! What is promised then, see [`Checker::forced`](crate::checker::Checker::forced).

use crate::client;
use crate::cluster::Cluster;
use crate::counts::Kind;
use crate::env::{Env, Event, Index, MS, Packet, SECOND, index_of};
use crate::gossip::{Broken, View};
use crate::node::Process;
use std::sync::Arc;
use thrifty::core::layout::Layout;
use thrifty::core::membership::{Message, Output};
use thrifty::core::node::{Liveness, NodeId, RingId};
use thrifty::core::quorum::majority;

impl Cluster {
    /// The majority, or two, which may be all that a segment can lose, crash or are cut off; once a run.
    pub(crate) fn lose_majority(&mut self) {
        let Some(layout) = self.env.checker.newest().cloned() else { return };
        let voters: Vec<Index> = layout.voters().into_iter().map(index_of).collect();
        let most = (majority(voters.len()) - 1).max(voters.len().saturating_sub(2));
        let mut survivors = self.running();
        survivors.retain(|index| voters.contains(index));
        if std::mem::replace(&mut self.forcing, true) || most == 0 || survivors.is_empty() {
            return;
        }
        // Mostly several, so that operators meet, and somebody hears late.
        let mut some = || self.env.rng.range(1, most as u64 + 1) as usize;
        let stay = some().max(some());
        while survivors.len() > stay {
            let at = self.env.rng.below(survivors.len() as u64) as usize;
            survivors.swap_remove(at);
        }
        let delay = 2 * self.env.plan.detect + self.env.rng.below(500 * MS);
        let others: Vec<Index> = (0..self.seats.len()).filter(|index| !survivors.contains(index)).collect();
        if self.env.rng.chance(400) {
            for index in others {
                self.crash(index);
                let back = delay + self.env.rng.below(5 * SECOND);
                self.env.after(back, Event::Restart(index));
            }
        } else {
            let side = survivors.iter().fold(0, |side, index| side | 1 << index);
            let cut = self.env.gossip.cut(Broken::Between(side), true, self.env.now);
            let longest = self.env.rng.pick(&[200 * MS, 2 * SECOND, 5 * SECOND]);
            let back = delay + self.env.rng.below(longest);
            self.env.after(back, Event::CutEnds(cut));
        }
        survivors.truncate(if self.env.rng.chance(500) { 2 } else { 1 });
        self.env.after(delay, Event::Force(survivors));
    }

    /// Operators have all dropped that these nodes can't reach.
    pub(crate) fn force(&mut self, at: &[Index]) {
        let forced: Vec<_> = at.iter().filter_map(|index| self.successor(*index)).collect();
        if forced.len() > 1 {
            self.env.count(Kind::ForcedTwice);
        }
        for (index, before, layout) in forced {
            self.env
                .note(|| format!("{index} is told to go on as {} with {:?}", layout.ring, layout.members));
            // Some never return, now and then none.
            let rate = self.env.rng.pick(&[300, 1000]);
            let others: Vec<Index> = layout.ids().map(index_of).filter(|other| *other != index).collect();
            for seat in &mut self.seats {
                let id = seat.member.id;
                let dropped = before.is_member(id) && !layout.is_member(id);
                if dropped && seat.alive {
                    self.env.count(Kind::ForcedWrongly);
                }
                seat.dead |= dropped && !seat.alive && self.env.rng.chance(rate);
            }
            self.env.count(Kind::Forced);
            self.env.checker.forced(&before, &layout, &self.env.plan.keys);
            if let Some(process) = &mut self.seats[index].process {
                process.survive(layout.clone(), &mut self.env);
            }
            self.look_after(index);
            others.into_iter().for_each(|to| self.env.send(index, to, Packet::Forced(layout.clone())));
        }
    }

    /// What an operator makes of the ring at a node that sees no majority: the layout before and after.
    fn successor(&mut self, index: Index) -> Option<(Index, Arc<Layout>, Arc<Layout>)> {
        let process = self.seats[index].process.as_ref()?;
        let (layout, view) = (process.layout(), self.env.gossip.view(index, self.env.now));
        if !layout.is_member(process.id) || can_go_on(&layout, view) {
            return None;
        }
        let answers = |id: NodeId| {
            let seat = &self.seats[index_of(id)];
            let gossip = &self.env.gossip;
            let apart = gossip.is_cut(index, index_of(id)) || gossip.is_cut(index_of(id), index);
            let awake = seat.alive && seat.paused_until <= self.env.now && !apart;
            let theirs = seat.process.as_ref().filter(|_| awake)?.layout();
            (theirs.ring == layout.ring || theirs.succeeds(layout.ring)).then_some(theirs.epoch)
        };
        let gone = layout.unreachable(process.id, answers)?;
        let forced = layout.forced(RingId(u128::from(self.env.rng.next())), &gone)?;
        (!gone.is_empty()).then(|| (index, layout, Arc::new(forced)))
    }

    /// After the faults an operator who finds two rings keeps the newest, and sets the nodes of the other aside
    /// which do not follow by themselves; if the one that is kept has no majority, its survivors go on without.
    pub(crate) fn unite(&mut self, kept: &Layout) {
        let mut survivors = Vec::new();
        for index in self.running() {
            let Some(process) = &self.seats[index].process else { continue };
            let (layout, view) = (process.layout(), self.env.gossip.view(index, self.env.now));
            let member = layout.is_member(process.id);
            if layout.ring == kept.ring {
                survivors.extend((member && !can_go_on(&layout, view)).then_some(index));
            } else if !kept.succeeds(layout.ring)
                || member && layout.has_majority(|id| view.of(id) != Liveness::Down)
            {
                self.env.count(Kind::SetAside);
                self.env.checker.set_aside(process.id, kept, &self.env.plan.keys);
                self.crash(index);
                self.seats[index].gone = true;
                self.join();
            }
        }
        if let Some(at) = client::choose(&mut self.env, &survivors) {
            self.force(&[at]);
        }
    }
}

/// Whether a ring could have those that are down removed without force.
fn can_go_on(layout: &Layout, view: View) -> bool {
    let alive = |id| view.of(id) != Liveness::Down;
    layout.has_majority(alive) && layout.can_be_gathered(alive)
}

impl Process {
    /// Whether what a member of the ring of that id sends is looked at. Calls name the ring; a link names it
    /// when it is opened, so that one from before a forced removal still brings questions. What answers a
    /// call comes back with it. Who is no member yet names none.
    pub(crate) fn concerns(&self, ring: Option<RingId>, packet: &Packet) -> bool {
        let layout = self.membership.layout();
        let same = ring.is_none_or(|ring| ring == layout.ring);
        let former = ring.is_some_and(|ring| layout.succeeds(ring));
        match packet {
            Packet::Membership(
                Message::Promise { .. } | Message::Accepted { .. } | Message::Refused { .. },
            )
            | Packet::Layout(_)
            | Packet::Answer { .. }
            | Packet::Page { .. }
            | Packet::Collected { .. }
            | Packet::Done { .. } => true,
            Packet::Ask { .. } | Packet::Forward(_) | Packet::GetLayout | Packet::Forced(_) => same || former,
            _ => same,
        }
    }

    /// An operator says that this is how the ring goes on.
    pub(crate) fn survive(&mut self, forced: Arc<Layout>, env: &mut Env) {
        if self.layout().survives_into(&forced, self.id) {
            self.carry_out(vec![Output::Install(forced)], env);
        }
    }

    /// A layout of another ring. If that is this one as it goes on without its majority, this node has missed
    /// it; else nothing is to be had there.
    pub(crate) fn meet_other_ring(&mut self, layout: Arc<Layout>, env: &mut Env) {
        self.wanted = None;
        let (old, view) = (self.layout(), env.gossip.view(self.index, env.now));
        let alive = |id| view.of(id) != Liveness::Down;
        let (member, there) =
            (old.is_member(self.id), old.voters().into_iter().filter(|id| alive(*id)).count());
        if !layout.succeeds(old.ring) {
            return;
        }
        if member && !old.gives_way_to(&layout, alive) {
            return env.count(Kind::NotFollowed);
        }
        if member {
            env.count(if layout.is_member(self.id) { Kind::Followed } else { Kind::Dropped });
            if there > old.voters().len() / 2 {
                env.checker.fail(format!("{} gives up a ring that has a majority", self.index));
            }
        }
        self.carry_out(vec![Output::Install(layout)], env);
    }
}
