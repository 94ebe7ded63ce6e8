//! One simulated node: a process that drives the core, over a disk that outlives it.
//!
//! The process is a shell like the real one, only that everything it would wait for is an event. It
//! carries out what the core says strictly in order, saves before it tells, and holds answers back
//! until they are durable. Whatever is in [`Process`] but not in [`Disk`] is gone after a crash.

use crate::collecting::Collecting;
use crate::coordinator::Requests;
use crate::counts::Kind;
use crate::disk::{Disk, SharedEngine};
use crate::env::{Env, Event, Index, MS, Micros, Packet, PageRefused, Timer, index_of};
use crate::handoff::Gathering;
use bytes::Bytes;
use std::sync::Arc;
use thrifty::core::clock::Clock;
use thrifty::core::layout::{Layout, Member, Phase};
use thrifty::core::membership::{Membership, Message, Output};
use thrifty::core::mutants::{Mutant, planted};
use thrifty::core::node::{Liveness, NodeId, RingId};
use thrifty::core::replica_request::Answer;
use thrifty::core::token::{Epoch, Segment};
use thrifty::replica::{Handled, Refusal, Replica, Request};

/// How long a node waits for a layout it asked for before it asks again.
const FETCH_TIMEOUT: Micros = 150 * MS;

/// How often requests and handoffs look at their deadlines.
const BEAT: Micros = 15 * MS;

/// Why a process ended by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// A Stable layout excludes it.
    Gone,
    /// All members leave at once.
    AllStop,
    /// Its disk failed, at something that was to be made durable.
    DiskFailed,
}

/// A question that came too early: its asker has a newer layout.
enum Early {
    Ask { from: Index, ask_id: u64, request: Request },
    Page { from: Index, ask_id: u64, epoch: Epoch, segment: Segment, after: Option<Bytes> },
}

/// A running node.
pub(crate) struct Process {
    pub(crate) index: Index,
    pub(crate) id: NodeId,
    pub(crate) life: u32,
    pub(crate) skew_ms: i64,
    pub(crate) disk: Disk,
    pub(crate) membership: Membership,
    pub(crate) replica: Replica<SharedEngine>,
    pub(crate) requests: Requests,
    pub(crate) gathering: Option<Gathering>,
    pub(crate) leaving: bool,
    pub(crate) ended: Option<Ended>,
    /// Answers that wait for a sync.
    pub(crate) held: Vec<(Index, u64, Answer)>,
    /// How many times as long syncs take, and until when.
    pub(crate) slow: (u64, Micros),
    /// How many more times something is made durable before the disk fails.
    pub(crate) fails_after: Option<u32>,
    /// When it compares with other owners next.
    pub(crate) compare_at: Micros,
    pub(crate) collecting: Collecting,
    sync_due: bool,
    beating: bool,
    early: Vec<Early>,
    /// A layout that is known to exist, at least of that epoch, and who has it.
    pub(crate) wanted: Option<(Index, Epoch)>,
    fetching_until: Micros,
    member: Member,
    ask_join_at: Micros,
}

impl Process {
    /// Starts a process over a disk that has a layout.
    pub(crate) fn start(
        index: Index,
        member: Member,
        life: u32,
        skew_ms: i64,
        disk: Disk,
        env: &mut Env,
    ) -> Self {
        let layout = disk.layout.clone().expect("a process needs a layout");
        let vote = disk.vote.clone().map(|(epoch, vote)| layout.recalls(epoch + 1, vote)).unwrap_or_default();
        let clock = Clock::resume(disk.mark);
        env.checker.installed(&layout, &env.gossip, &mut env.counts);
        let replica = Replica::new(member.id, disk.engine.clone(), layout.clone(), clock)
            .expect("no engine fails here");
        let mut process = Process {
            index,
            id: member.id,
            life,
            skew_ms,
            membership: Membership::new(member.id, layout, vote, env.plan.patience),
            replica,
            disk,
            requests: Requests::default(),
            gathering: None,
            leaving: false,
            ended: None,
            held: Vec::new(),
            slow: (1, 0),
            fails_after: None,
            compare_at: 0,
            collecting: Collecting::default(),
            sync_due: false,
            beating: false,
            early: Vec::new(),
            wanted: None,
            fetching_until: 0,
            member,
            ask_join_at: 0,
        };
        let first = env.rng.below(100 * MS);
        process.wake_after(first, Timer::Tick, env);
        process.stand(env);
        process.begin_gathering(env);
        process.drain(env);
        process
    }

    pub(crate) fn layout(&self) -> Arc<Layout> {
        self.membership.layout().clone()
    }

    fn wake_after(&self, delay: Micros, timer: Timer, env: &mut Env) {
        env.after(delay, Event::Wake { node: self.index, life: self.life, timer });
    }

    /// From now on it wants to leave.
    pub(crate) fn leave(&mut self) {
        self.leaving = true;
        self.membership.leave();
        self.offer();
    }

    /// It asks to become a member.
    pub(crate) fn is_joining(&self) -> bool {
        !self.leaving && !self.disk.settled
    }

    /// A timer of this life fired.
    pub(crate) fn wake(&mut self, timer: Timer, env: &mut Env) {
        match timer {
            Timer::Tick => {
                self.tick(env);
                self.compare(env);
                self.collect(env);
            }
            Timer::Tidy => self.replica.tidy().expect("no engine fails here"),
            Timer::Sync => {
                self.sync_due = false;
                self.sync(env);
            }
            Timer::Beat => {
                self.beating = false;
                self.beat_requests(env);
                self.beat_gathering(env);
                self.fetch_wanted(env);
            }
        }
        self.drain(env);
    }

    /// Makes sure that deadlines are looked at while there is anything that has one.
    pub(crate) fn keep_beating(&mut self, env: &mut Env) {
        let busy = !self.requests.is_idle() || self.gathering.is_some() || self.wanted.is_some();
        if busy && !self.beating {
            self.beating = true;
            self.wake_after(BEAT, Timer::Beat, env);
        }
    }

    fn tick(&mut self, env: &mut Env) {
        let again = env.rng.range(80 * MS, 120 * MS);
        self.wake_after(again, Timer::Tick, env);
        env.gossip.called_down(self.index, self.membership.layout().epoch, env.now);
        let view = env.gossip.view(self.index, env.now);
        let epoch = self.membership.layout().epoch;
        self.membership.found(self.collecting.found(epoch));
        let outputs = self.membership.tick(env.moment(), &|id| view.of(id));
        self.carry_out(outputs, env);
        // Gossip carries the epoch to anybody, so that who is behind finds out.
        let peer = env.rng.below(env.gossip.known() as u64) as Index;
        if env.rng.chance(250) && peer != self.index {
            let epoch = self.membership.layout().epoch;
            env.send(self.index, peer, Packet::Epoch(epoch));
        }
        if self.is_joining() && !self.membership.is_member() && env.now >= self.ask_join_at {
            self.ask_join_at = env.now + 400 * MS;
            let member = self.member.clone();
            let up: Vec<_> = self.layout().ids().filter(|id| view.of(*id) == Liveness::Up).collect();
            let up: Vec<Index> = match up.is_empty() {
                true => (0..env.gossip.known()).collect(),
                false => up.into_iter().map(index_of).collect(),
            };
            let to = env.rng.pick(&up);
            env.send(self.index, to, Packet::Membership(Message::Join(member)));
            env.send(self.index, to, Packet::GetLayout);
        }
    }

    /// A packet arrived.
    pub(crate) fn receive(
        &mut self,
        from: Index,
        ring: Option<RingId>,
        packet: Packet,
        sender: NodeId,
        env: &mut Env,
    ) {
        let layout = self.layout();
        if !self.concerns(ring, &packet) {
            if ring.is_some_and(|ring| layout.succeeds(ring)) {
                env.send(self.index, from, Packet::Layout(layout));
            }
            return;
        }
        match packet {
            Packet::Forced(forced) => self.survive(forced, env),
            Packet::Layout(theirs) if theirs.ring != layout.ring => self.meet_other_ring(theirs, env),
            Packet::Membership(message) => {
                env.gossip.called_down(self.index, self.membership.layout().epoch, env.now);
                let view = env.gossip.view(self.index, env.now);
                let outputs = self.membership.handle(sender, message, env.moment(), &|id| view.of(id));
                self.carry_out(outputs, env);
            }
            Packet::Epoch(epoch) => {
                let mut outputs = Vec::new();
                self.membership.meet(sender, epoch, &mut outputs);
                self.carry_out(outputs, env);
            }
            Packet::GetLayout => env.send(self.index, from, Packet::Layout(self.layout())),
            Packet::Layout(layout) => {
                self.fetching_until = 0;
                let view = env.gossip.view(self.index, env.now);
                let install = Message::Install(layout);
                let outputs = self.membership.handle(sender, install, env.moment(), &|id| view.of(id));
                self.carry_out(outputs, env);
                self.fetch_wanted(env);
            }
            Packet::Ask { ask_id, epoch, key, ask } => {
                self.serve(from, ask_id, Request { epoch, key, ask }, env)
            }
            Packet::Answer { ask_id, answer } => self.requests.answered(ask_id, answer),
            Packet::GetPage { ask_id, epoch, segment, after } => {
                self.serve_page(from, ask_id, epoch, segment, after, env)
            }
            Packet::Page { ask_id, page } => self.take_page(from, ask_id, page, env),
            Packet::Repair { epoch, segment, say } => self.hear_repair(from, epoch, segment, say, env),
            Packet::Collect { ask_id, epoch, ask } => self.serve_collector(from, ask_id, epoch, ask, env),
            Packet::Collected { ask_id, answer } => self.collected(ask_id, answer, env),
            Packet::Forward(command) => self.forwarded(from, command, env),
            Packet::Done { command, reply } => self.forward_ended(command, reply, env),
        }
        self.drain(env);
    }

    /// Carries out what membership says, in order.
    pub(crate) fn carry_out(&mut self, outputs: Vec<Output>, env: &mut Env) {
        for output in outputs {
            if self.has_failed() {
                return;
            }
            match output {
                Output::Persist if self.disk_fails() => return,
                Output::Persist if planted(Mutant::VotesNotDurable) => {}
                Output::Persist => {
                    let epoch = self.membership.layout().epoch;
                    self.disk.vote = Some((epoch, self.membership.vote().clone()));
                }
                Output::Send(to, message) => env.send(self.index, index_of(to), Packet::Membership(message)),
                Output::Install(layout) => self.install(layout, env),
                Output::Pull(from) => self.fetch(index_of(from), self.membership.layout().epoch + 1, env),
                Output::AllStop => self.ended = Some(Ended::AllStop),
                Output::GaveUp(blame, why) => {
                    env.note(|| format!("{} gives the transition up: {} {why}", self.index, index_of(blame)));
                }
            }
        }
    }

    fn install(&mut self, layout: Arc<Layout>, env: &mut Env) {
        let old = self.membership.layout();
        if layout.ring == old.ring && layout.epoch <= old.epoch {
            return;
        }
        if layout.ring != old.ring && !layout.succeeds(old.ring) {
            env.checker.fail(format!(
                "{} goes from ring {} to {}, which does not succeed it",
                self.index, old.ring, layout.ring
            ));
        }
        if self.disk_fails() {
            return;
        }
        env.note(|| format!("{} installs {} {}", self.index, layout.epoch, layout.phase.name()));
        if env.checker.installed(&layout, &env.gossip, &mut env.counts) && env.fate.chance(env.plan.ambush) {
            let delay = env.fate.below(150 * MS);
            env.after(delay, Event::Ambush);
        }
        if !planted(Mutant::LayoutNotDurable) {
            self.disk.layout = Some(layout.clone());
        }
        self.replica.install(layout.clone());
        match env.plan.tidies_within {
            0 => self.replica.tidy().expect("no engine fails here"),
            within => {
                let delay = env.rng.below(within);
                self.wake_after(delay, Timer::Tidy, env);
            }
        }
        self.membership.installed(layout.clone(), env.moment());
        self.wanted = self.wanted.filter(|(_, epoch)| *epoch > layout.epoch);
        self.stand(env);
        self.requests_installed(&layout, env);
        for early in std::mem::take(&mut self.early) {
            match early {
                Early::Ask { from, ask_id, request } => self.serve(from, ask_id, request, env),
                Early::Page { from, ask_id, epoch, segment, after } => {
                    self.serve_page(from, ask_id, epoch, segment, after, env);
                }
            }
        }
        self.begin_gathering(env);
    }

    /// Something is about to be made durable; whether the disk fails at it, and the process ends.
    pub(crate) fn disk_fails(&mut self) -> bool {
        if let Some(after) = &mut self.fails_after {
            match after.checked_sub(1) {
                Some(fewer) => *after = fewer,
                None => self.ended = Some(Ended::DiskFailed),
            }
        }
        self.has_failed()
    }

    /// From then on nothing that it would do counts.
    pub(crate) fn has_failed(&self) -> bool {
        self.ended == Some(Ended::DiskFailed)
    }

    /// Takes note of where the layout puts this node.
    fn stand(&mut self, env: &mut Env) {
        let layout = self.layout();
        let ring = (layout.is_member(self.id) || self.disk.settled).then_some(layout.ring);
        env.gossip.entered(self.index, ring, env.now);
        if layout.phase == Phase::Stable {
            if layout.is_member(self.id) {
                self.disk.settled = true;
            } else if self.disk.settled {
                if !self.leaving {
                    env.count(Kind::Removed);
                }
                self.ended = Some(Ended::Gone);
            }
        }
    }

    /// Fetches a layout of at least that epoch, one fetch at a time.
    pub(crate) fn fetch(&mut self, from: Index, epoch: Epoch, env: &mut Env) {
        if self.wanted.is_none_or(|(_, known)| known <= epoch) {
            self.wanted = Some((from, epoch));
        }
        self.fetch_wanted(env);
    }

    fn fetch_wanted(&mut self, env: &mut Env) {
        let Some((from, _)) = self.wanted else { return };
        if env.now >= self.fetching_until {
            self.fetching_until = env.now + FETCH_TIMEOUT;
            env.send(self.index, from, Packet::GetLayout);
        }
    }

    /// Answers a coordinator's question, now, after a sync, or once the layout is there.
    pub(crate) fn serve(&mut self, from: Index, ask_id: u64, request: Request, env: &mut Env) {
        let handled = self.replica.handle(std::slice::from_ref(&request)).expect("no engine fails here");
        self.keep_mark();
        if request.ask.record().is_some() {
            self.sync_soon(env);
        }
        match handled.into_iter().next() {
            Some(Handled::Now(answer)) => {
                match answer {
                    Answer::Stale(_) => env.count(Kind::Stale),
                    Answer::NoSpace => env.count(Kind::DiskFull),
                    _ => {}
                }
                self.answer(from, ask_id, answer, env);
            }
            Some(Handled::AfterSync(answer)) => {
                self.held.push((from, ask_id, answer));
                self.sync_soon(env);
            }
            Some(Handled::Behind) => {
                env.count(Kind::Behind);
                let epoch = request.epoch;
                self.early.push(Early::Ask { from, ask_id, request });
                self.fetch(from, epoch, env);
            }
            None => env.checker.fail("a request was not handled".into()),
        }
    }

    fn answer(&mut self, to: Index, ask_id: u64, answer: Answer, env: &mut Env) {
        env.note(|| format!("{} answers {to} #{ask_id}: {answer:?}", self.index));
        if to == self.index {
            self.requests.answered(ask_id, answer);
        } else {
            env.send(self.index, to, Packet::Answer { ask_id, answer });
        }
    }

    fn serve_page(
        &mut self,
        from: Index,
        ask_id: u64,
        epoch: Epoch,
        segment: Segment,
        after: Option<Bytes>,
        env: &mut Env,
    ) {
        let page = match self.replica.snapshot(epoch, segment, after.as_deref(), env.plan.page_bytes) {
            Ok(page) => Ok(page),
            Err(Refusal::Stale(epoch)) => Err(PageRefused::Stale(epoch)),
            Err(Refusal::NotHeld(_)) => Err(PageRefused::NotHeld),
            Err(Refusal::Behind(epoch)) => {
                env.count(Kind::Behind);
                self.early.push(Early::Page { from, ask_id, epoch, segment, after });
                return self.fetch(from, epoch, env);
            }
            Err(why @ (Refusal::Storage(_) | Refusal::Full | Refusal::NotCollecting(_))) => {
                return env.checker.fail(why.to_string());
            }
        };
        env.send(self.index, from, Packet::Page { ask_id, page });
    }

    /// Writes the clock's mark down where it no longer covers the clock: before anything is said.
    pub(crate) fn keep_mark(&mut self) {
        let mut clock = self.replica.clock();
        if let Some(mark) = clock.mark_due() {
            self.disk.mark = mark;
            clock.marked(mark);
        }
    }

    pub(crate) fn sync_soon(&mut self, env: &mut Env) {
        if !self.sync_due {
            self.sync_due = true;
            let mut delay = env.rng.range(env.plan.sync_delay / 8, env.plan.sync_delay * 2);
            if env.now < self.slow.1 {
                env.count(Kind::SlowSync);
                delay *= self.slow.0;
            }
            self.wake_after(delay, Timer::Sync, env);
        }
    }

    /// Makes durable what was written, and lets the answers go that waited for it.
    pub(crate) fn sync(&mut self, env: &mut Env) {
        if self.disk_fails() {
            return;
        }
        self.replica.sync().expect("no engine fails here");
        for (to, ask_id, answer) in std::mem::take(&mut self.held) {
            self.answer(to, ask_id, answer, env);
        }
    }

    /// The process dies. Of what was not synced, luck decides how much reached the disk.
    pub(crate) fn crash(self, env: &mut Env) -> Disk {
        let unsynced = self.disk.engine.0.unsynced() as u64;
        let keep = env.rng.below(unsynced + 1);
        env.counts.add(Kind::OperationsLost, unsynced - keep);
        env.counts.add(Kind::AnswersLost, self.held.len() as u64);
        self.disk.engine.0.crash(keep as usize).expect("no engine fails here");
        self.disk
    }
}
