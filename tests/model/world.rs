//! A state of the whole ring, the steps that can follow, and what must hold.

use crate::collect::Collecting;
use crate::parts::{Ended, Event, Found, Id, LayoutId, Node, Reply, SEGMENT, Stimulus};
use crate::rank::{Put, Rank, Said, node_id};
use crate::ring::Parts;
use crate::scenario::Request;
use crate::steps::Step;
use std::collections::BTreeSet;
use thrifty::core::layout::Phase;
use thrifty::core::quorum::majority;
use thrifty::core::token::Epoch;
use thrifty::core::transition::Change;

/// The number of a layout in the order in which they were decided.
pub(crate) type At = u8;

/// Who put a question that nobody listens to.
pub(crate) const NOBODY: u8 = u8::MAX;

/// A page on its way from a source to a puller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum PageState {
    Awaited,
    /// The snapshot was made, with this on it.
    Made(Found),
    Taken,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct NodeState {
    pub(crate) replica: Id,
    pub(crate) at: At,
    /// One for each source, while there is something to gather.
    pub(crate) pages: Vec<(Node, PageState)>,
    /// The Dual for which it last reported that it has gathered everything.
    pub(crate) synced: At,
    /// Answers that wait for a sync.
    pub(crate) held: Vec<(u8, At, Put, Said)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Op {
    Waiting,
    Running { machine: Id, floor: Rank },
    Over,
}

/// A message in flight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Mail {
    /// `mute`: nobody waits for the answer any more.
    Question {
        op: u8,
        to: Node,
        at: At,
        put: Put,
        mute: bool,
    },
    Answer {
        op: u8,
        from: Node,
        at: At,
        put: Put,
        said: Said,
    },
}

/// See the module's documentation.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) decided: Vec<LayoutId>,
    /// How many transitions were carried through.
    pub(crate) done: u8,
    pub(crate) nodes: Vec<NodeState>,
    pub(crate) ops: Vec<Op>,
    pub(crate) mail: Vec<Mail>,
    /// The newest version that was acknowledged or returned.
    pub(crate) floor: Rank,
    /// Whether a request may begin now: see [`World::settle`].
    pub(crate) fresh: bool,
    pub(crate) doubles: u8,
    pub(crate) aborts: u8,
    pub(crate) crashes: u8,
    pub(crate) collecting: Collecting,
}

impl World {
    pub(crate) fn first(parts: &mut Parts) -> Result<World, String> {
        let first = parts.scenario.first();
        let id = parts.learn(first);
        let held = Stimulus::Handle(parts.epoch(id), Put::Write(1));
        let mut replica = |node| {
            let first = parts.replicas.first(node, id, &parts.layouts);
            if !parts.scenario.held.contains(&node) {
                return first;
            }
            let (holds, _) = parts.replicas.give(first, held, &parts.layouts);
            parts.replicas.give(holds, Stimulus::Sync, &parts.layouts).0
        };
        let node = |node| NodeState {
            replica: replica(node),
            at: 0,
            pages: Vec::new(),
            synced: 0,
            held: Vec::new(),
        };
        let mut world = World {
            decided: vec![id],
            done: 0,
            nodes: (0..parts.scenario.nodes).map(node).collect(),
            ops: parts.scenario.requests.iter().map(|_| Op::Waiting).collect(),
            mail: Vec::new(),
            floor: parts.scenario.floor(),
            fresh: true,
            doubles: parts.bounds.doubles,
            aborts: parts.scenario.aborts,
            crashes: u8::from(parts.scenario.disks),
            collecting: Collecting::new(&parts.scenario),
        };
        world.settle(parts)?;
        Ok(world)
    }

    pub(crate) fn newest(&self) -> LayoutId {
        self.decided[self.decided.len() - 1]
    }

    pub(crate) fn request(&self, parts: &Parts, op: u8) -> Request {
        parts.scenario.requests[usize::from(op)]
    }

    pub(crate) fn layout_at(&self, at: At) -> LayoutId {
        self.decided[usize::from(at)]
    }

    pub(crate) fn at_of(&self, parts: &Parts, epoch: Epoch) -> At {
        (epoch - parts.epoch(self.decided[0])) as At
    }

    pub(crate) fn node(&self, node: Node) -> &NodeState {
        &self.nodes[usize::from(node)]
    }

    pub(crate) fn may_begin(&self, parts: &Parts, op: u8) -> bool {
        let Request { at, writes, .. } = self.request(parts, op);
        self.fresh
            && self.ops[usize::from(op)] == Op::Waiting
            && self.may_coordinate(parts, at)
            // Its version is above what the clock has met.
            && writes.is_none_or(|rank| rank > parts.replicas.of(self.node(at).replica).clock)
    }

    /// Owners that reads ask coordinate; here the newcomers of a Dual as well, unless clocks matter:
    /// theirs have yet to meet what the others know.
    fn may_coordinate(&self, parts: &Parts, node: Node) -> bool {
        let facts = &parts.facts[&self.layout_at(self.node(node).at)];
        match parts.scenario.collects {
            0 => facts.owns[usize::from(node)],
            _ => facts.read_owners.contains(&node),
        }
    }

    pub(crate) fn begin(&mut self, parts: &mut Parts, op: u8) {
        let request = self.request(parts, op);
        let layout = self.layout_at(self.node(request.at).at);
        let (machine, asked) = parts.machines.begin(request, layout, &parts.layouts);
        self.ops[usize::from(op)] = Op::Running { machine, floor: self.floor };
        self.send(parts, op, &asked);
    }

    fn send(&mut self, parts: &Parts, op: u8, asked: &[(Node, Epoch, Put)]) {
        let question = |&(to, epoch, put): &(Node, Epoch, Put)| {
            let at = self.at_of(parts, epoch);
            Mail::Question { op, to, at, put, mute: false }
        };
        let questions: Vec<_> = asked.iter().map(question).collect();
        self.mail.extend(questions);
    }

    /// What a question would be answered here and now.
    pub(crate) fn reply(&self, parts: &mut Parts, to: Node, at: At, put: Put) -> (Id, Reply) {
        let stimulus = Stimulus::Handle(parts.epoch(self.layout_at(at)), put);
        parts.replicas.give(self.node(to).replica, stimulus, &parts.layouts)
    }

    /// Whether an answer would end the request.
    fn would_end(&self, parts: &mut Parts, op: u8, from: Node, at: At, said: Said) -> bool {
        let Op::Running { machine, .. } = self.ops[usize::from(op)] else { return false };
        let event = Event::Answered(from, parts.epoch(self.layout_at(at)), said);
        let (next, _) = parts.machines.give(machine, event, &parts.layouts);
        parts.machines.ended(next).is_some()
    }

    /// All steps that can be taken.
    pub(crate) fn steps(&self, parts: &mut Parts) -> Vec<Step> {
        let mut steps = Vec::new();
        for op in 0..self.ops.len() as u8 {
            if self.may_begin(parts, op) {
                steps.push(Step::Begin(op));
            }
        }
        for (i, mail) in self.mail.iter().enumerate().filter(|(i, m)| !self.mail[..*i].contains(m)) {
            let i = i as u8;
            match *mail {
                Mail::Answer { .. } => steps.push(Step::Answer(i)),
                Mail::Question { op, to, at, put, mute } => {
                    let (_, reply) = self.reply(parts, to, at, put);
                    if reply == Reply::Behind {
                        continue;
                    }
                    steps.push(Step::Ask { i, lost: false, again: false });
                    if self.doubles > 0 && put.writes() {
                        steps.push(Step::Ask { i, lost: false, again: true });
                    }
                    // Of a write's answers only the one that ends it may be lost: the others change
                    // nothing but what the last has to bring.
                    if let Reply::Now(said) = reply
                        && !mute
                        && self.answers_at_once(parts)
                        && put.writes()
                        && (matches!(said, Said::Superseded(_)) || self.would_end(parts, op, to, at, said))
                    {
                        steps.push(Step::Ask { i, lost: true, again: false });
                    }
                }
            }
        }
        for node in 0..self.nodes.len() as Node {
            let state = self.node(node);
            steps.extend((state.at + 1..self.decided.len() as At).map(|at| Step::Install(node, at)));
            for (source, page) in &state.pages {
                let epoch = parts.epoch(self.layout_at(state.at));
                match page {
                    PageState::Awaited => {
                        let replica = self.node(*source).replica;
                        if parts.replicas.snapshot(replica, epoch, &parts.layouts).is_some() {
                            steps.push(Step::Snapshot(node, *source));
                        }
                    }
                    PageState::Made(_) => steps.push(Step::Page(node, *source)),
                    PageState::Taken => {}
                }
            }
            if parts.replicas.of(state.replica).dirty {
                steps.push(Step::Sync(node));
            }
            if self.crashes > 0 {
                steps.push(Step::Crash(node));
            }
        }
        if parts.phase(self.newest()) == Phase::Dual && self.aborts > 0 {
            steps.push(Step::Abort);
        }
        if self.may_also(parts) && self.next(parts).is_some() {
            steps.push(Step::Decide);
        }
        self.collecting_steps(parts, &mut steps);
        steps
    }

    /// Whether something else than what comes next may be decided.
    pub(crate) fn may_also(&self, parts: &Parts) -> bool {
        match parts.phase(self.newest()) {
            Phase::Stable => self.collecting.left > 0,
            Phase::Dual => self.aborts > 0,
            Phase::ReadNew => false,
        }
    }

    /// Whether a request's answers arrive with the question, or get lost.
    pub(crate) fn answers_at_once(&self, parts: &Parts) -> bool {
        !parts.bounds.late
    }

    /// Takes a step. `Err`: something that must hold does not.
    pub(crate) fn take(&mut self, parts: &mut Parts, step: Step) -> Result<(), String> {
        let (floor, waiting) = (self.floor, self.can_coordinate(parts));
        match step {
            Step::Begin(op) => self.begin(parts, op),
            Step::Ask { i, lost, again } => self.ask(parts, usize::from(i), lost, again)?,
            Step::Answer(i) => {
                let Mail::Answer { op, from, at, put, said } = self.mail.remove(usize::from(i)) else {
                    unreachable!("a step names what is there")
                };
                self.answer(parts, op, from, at, put, said)?;
            }
            Step::Install(node, at) => self.install(parts, node, at)?,
            Step::Snapshot(node, source) => {
                let epoch = parts.epoch(self.layout_at(self.node(node).at));
                let made = parts.replicas.snapshot(self.node(source).replica, epoch, &parts.layouts);
                let pages = &mut self.nodes[usize::from(node)].pages;
                for page in pages.iter_mut().filter(|(of, _)| *of == source) {
                    page.1 = PageState::Made(made.expect("a step that can be taken"));
                }
            }
            Step::Page(node, source) => self.absorb(parts, node, source)?,
            Step::Sync(node) => self.sync(parts, node)?,
            Step::Crash(node) => self.crash(parts, node),
            Step::Abort => {
                let blame = node_id(0);
                let change = Change::Abort { blame, why: "" };
                let layout = change.apply(parts.layouts.of(self.newest()), &BTreeSet::new());
                let id = parts.learn(layout.expect("a Dual can be given up"));
                self.decided.push(id);
                self.aborts -= 1;
            }
            Step::Decide => {
                let next = self.next(parts).expect("a step names what can be decided");
                self.decided.push(next);
            }
            Step::Confirm(_) | Step::Collect | Step::Forget(_) | Step::Copy(..) | Step::Copied(_) => {
                self.collecting_step(parts, step)?;
            }
        }
        // A request that begins later at the same floor can do nothing that it could not have done,
        // begun at once, with questions that are late.
        self.fresh =
            floor != self.floor || waiting != self.can_coordinate(parts) || matches!(step, Step::Begin(_));
        // What was forgotten makes it matter.
        self.fresh |= parts.scenario.collects > 0;
        self.settle(parts)?;
        self.check(parts)
    }

    fn can_coordinate(&self, parts: &Parts) -> Vec<bool> {
        (0..self.ops.len() as u8).map(|op| self.may_coordinate(parts, self.request(parts, op).at)).collect()
    }

    pub(crate) fn ask(&mut self, parts: &mut Parts, i: usize, lost: bool, again: bool) -> Result<(), String> {
        let Mail::Question { op, to, at, put, mute } = self.mail[i] else {
            unreachable!("a step names what is there")
        };
        if again {
            self.doubles -= 1;
        } else {
            self.mail.remove(i);
        }
        let (replica, reply) = self.reply(parts, to, at, put);
        self.nodes[usize::from(to)].replica = replica;
        if mute || lost {
            return Ok(());
        }
        match reply {
            Reply::Now(said) if self.answers_at_once(parts) => {
                self.answer(parts, op, to, at, put, said)?;
            }
            Reply::Now(said) => self.mail.push(Mail::Answer { op, from: to, at, put, said }),
            Reply::Held(said) => self.nodes[usize::from(to)].held.push((op, at, put, said)),
            Reply::Nothing | Reply::Behind | Reply::Stale => {}
        }
        Ok(())
    }

    pub(crate) fn answer(
        &mut self,
        parts: &mut Parts,
        op: u8,
        from: Node,
        at: At,
        put: Put,
        said: Said,
    ) -> Result<(), String> {
        // A question is answered once: other copies of it are carried out, but nobody listens.
        for mail in &mut self.mail {
            if let Mail::Question { op: of, to, at: when, put: what, mute } = mail {
                *mute |= (*of, *to, *when, *what) == (op, from, at, put);
            }
        }
        let same = |op: u8, from: Node, at: At, put: Put| {
            move |mail: &Mail| match *mail {
                Mail::Answer { op: o, from: f, at: a, put: p, .. } => (o, f, a, p) == (op, from, at, put),
                Mail::Question { .. } => false,
            }
        };
        let doubled = same(op, from, at, put);
        self.mail.retain(|mail| !doubled(mail));
        let event = Event::Answered(from, parts.epoch(self.layout_at(at)), said);
        self.feed(parts, op, event)
    }

    /// A request under way hears something.
    pub(crate) fn feed(&mut self, parts: &mut Parts, op: u8, event: Event) -> Result<(), String> {
        let Op::Running { machine, floor } = self.ops[usize::from(op)] else { return Ok(()) };
        let (machine, asked) = parts.machines.give(machine, event, &parts.layouts);
        self.ops[usize::from(op)] = Op::Running { machine, floor };
        self.send(parts, op, &asked);
        let Some(ended) = parts.machines.ended(machine) else { return Ok(()) };
        self.ops[usize::from(op)] = Op::Over;
        let request = self.request(parts, op);
        match ended {
            Ended::Failed => {}
            Ended::Acknowledged => {
                let rank = request.writes.unwrap_or_default();
                if rank <= floor {
                    return Err(format!("v{rank} is acknowledged, though v{floor} was there when it began"));
                }
                self.floor = self.floor.max(rank);
            }
            Ended::Returned(rank) => {
                if rank < floor && !self.is_forgotten(rank) {
                    return Err(format!("the read returns v{rank}, though v{floor} was there when it began"));
                }
                self.floor = self.floor.max(rank);
            }
        }
        Ok(())
    }

    /// What the claimant would decide if it saw all nodes as they are. Reports that are late only
    /// make it decide later.
    pub(crate) fn next(&self, parts: &mut Parts) -> Option<LayoutId> {
        let newest = self.newest();
        if parts.phase(newest) == Phase::Stable {
            let change = parts.scenario.changes.get(usize::from(self.done))?;
            let layout = parts.scenario.change(*change, parts.layouts.of(newest));
            return Some(parts.learn(layout));
        }
        let epoch = |at: At| parts.epoch(self.layout_at(at));
        let report =
            |node: &NodeState| (epoch(node.at), if node.synced == 0 { 0 } else { epoch(node.synced) });
        let reports = self.nodes.iter().map(report).collect();
        parts.next(newest, reports)
    }

    /// Every quorum that a read begun now could ask has, durably, what was acknowledged or returned.
    fn check(&self, parts: &Parts) -> Result<(), String> {
        let layout = parts.layouts.of(self.newest());
        let owners = &parts.facts[&self.newest()].read_owners;
        let has = |node: Node| {
            let slot = layout.slot(node_id(node), SEGMENT);
            slot.map_or(0, |slot| parts.replicas.of(self.node(node).replica).durable_in(slot))
        };
        let without: Vec<Node> = owners.iter().copied().filter(|node| has(*node) < self.floor).collect();
        let forgotten = without.iter().all(|node| self.is_forgotten(has(*node)));
        if without.len() < majority(owners.len()) || forgotten {
            return Ok(());
        }
        let names: Vec<_> = without.iter().map(|node| crate::steps::name(*node)).collect();
        Err(format!(
            "v{} is acknowledged or was returned, and a read at epoch {} that asks {} would miss it",
            self.floor,
            layout.epoch,
            names.join(" and ")
        ))
    }
}
