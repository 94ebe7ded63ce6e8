//! The real core and replica as automata: states are numbered, and what each does with an input is
//! computed once, by the real code, and remembered.
//!
//! Neither [`Write`], [`Read`] nor [`Replica`] can be copied. So a state remembers the inputs that
//! led to it, and is built again from them whenever an input comes that it was not given before.
//! Two histories that end in the same state (by all that can be seen of it) get one number.

use crate::rank::{DELETE, KEY, Put, Rank, Said, node_id, node_of, rank, record, version};
use crate::scenario::Request;
use bytes::Bytes;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;
use thrifty::core::clock::Clock;
use thrifty::core::layout::Layout;
use thrifty::core::node::{Liveness, Moment, NodeId};
use thrifty::core::read::{HEDGE, Read};
use thrifty::core::record::Version;
use thrifty::core::replica_request::Answer;
use thrifty::core::token::{Epoch, Segment, Slot};
use thrifty::core::write::{Action, Outcome, Terms, Write};
use thrifty::replica::{self, Handled, Page, Replica};
use thrifty::storage::engine::Engine;
use thrifty::storage::memory::MemoryEngine;
use thrifty::storage::simulated::SimulatedEngine;

/// Which node: A is 0.
pub(crate) type Node = u8;

/// The number of a state.
pub(crate) type Id = u32;

/// The number of a layout in [`Layouts`].
pub(crate) type LayoutId = u8;

pub(crate) const SEGMENT: Segment = Segment(0);
const UP: &dyn Fn(NodeId) -> Liveness = &|_| Liveness::Up;
const SOUND: &str = "no engine fails here";

/// All layouts that were met, each once.
#[derive(Default)]
pub(crate) struct Layouts(Vec<Arc<Layout>>);

impl Layouts {
    pub(crate) fn id(&mut self, layout: Layout) -> LayoutId {
        let known = self.0.iter().position(|known| **known == layout);
        let id = known.unwrap_or_else(|| {
            layout.validate().expect("the core makes valid layouts");
            self.0.push(Arc::new(layout));
            self.0.len() - 1
        });
        LayoutId::try_from(id).expect("few layouts")
    }

    pub(crate) fn of(&self, id: LayoutId) -> &Arc<Layout> {
        &self.0[usize::from(id)]
    }
}

/// What happens to a replica.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Stimulus {
    Install(LayoutId),
    Handle(Epoch, Put),
    Absorb(Epoch, Slot, Found),
    Sync,
    /// It is asked whether it holds the delete, and would forget it.
    Confirm(Epoch),
    /// It is told to forget the delete.
    Forget(Epoch),
    /// It crashes, loses what was not synced, and starts again.
    Crash,
}

/// What is on a page: this version of the key, or nothing, and how far the sender's clock is, where
/// that matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Found {
    pub(crate) rank: Rank,
    pub(crate) clock: Rank,
}

/// What a replica says to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reply {
    Nothing,
    Now(Said),
    /// Once it is synced.
    Held(Said),
    Behind,
    Stale,
}

/// One state of one node's replica.
pub(crate) struct ReplicaState {
    node: Node,
    layout: LayoutId,
    before: Option<(Id, Stimulus)>,
    /// What it holds.
    pub(crate) holds: Vec<(Slot, Rank)>,
    /// What of it would be left after a crash.
    pub(crate) durable: Vec<(Slot, Rank)>,
    /// Whether there is something to sync.
    pub(crate) dirty: bool,
    /// The highest version that its clock has met, where that matters.
    pub(crate) clock: Rank,
}

impl ReplicaState {
    /// What it holds durably of the key in a slot.
    pub(crate) fn durable_in(&self, slot: Slot) -> Rank {
        self.durable.iter().find(|(of, _)| *of == slot).map_or(0, |(_, rank)| *rank)
    }
}

struct Running {
    replica: Replica<Arc<dyn Engine>>,
    disk: Option<Arc<SimulatedEngine>>,
}

impl Running {
    fn start(node: Node, layout: &Arc<Layout>, disks: bool) -> Self {
        let disk = disks.then(|| Arc::new(SimulatedEngine::new()));
        let engine: Arc<dyn Engine> = match &disk {
            Some(disk) => disk.clone(),
            None => Arc::new(MemoryEngine::new()),
        };
        let replica = Replica::new(node_id(node), engine, layout.clone(), Clock::resume(0));
        Running { replica: replica.expect(SOUND), disk }
    }

    fn give(&mut self, node: Node, stimulus: Stimulus, layouts: &Layouts) -> Reply {
        match stimulus {
            Stimulus::Install(layout) => {
                self.replica.install(layouts.of(layout).clone());
                self.replica.tidy().expect(SOUND);
                Reply::Nothing
            }
            Stimulus::Handle(epoch, put) => self.ask(epoch, put),
            Stimulus::Absorb(epoch, slot, Found { rank, clock }) => {
                let records = (rank > 0).then(|| (KEY.into(), record(rank))).into_iter().collect();
                let page = Page { records, last: true, clock: clock.into() };
                let _stale = self.replica.absorb(epoch, slot, page);
                Reply::Nothing
            }
            Stimulus::Confirm(epoch) => match self.replica.confirm(epoch, SEGMENT, &dead(), 0) {
                Ok(held) if held == [true] => Reply::Now(Said::Version(DELETE)),
                _ => Reply::Nothing,
            },
            Stimulus::Forget(epoch) => {
                let _refused = self.replica.forget(epoch, SEGMENT, &dead());
                Reply::Nothing
            }
            Stimulus::Sync => {
                self.replica.sync().expect(SOUND);
                Reply::Nothing
            }
            Stimulus::Crash => {
                self.lose_unsynced();
                let (engine, layout) = (self.replica.engine().clone(), self.replica.layout());
                // Its mark is durable above all that it met.
                let clock = Clock::resume(self.clock().into());
                self.replica = Replica::new(node_id(node), engine, layout, clock).expect(SOUND);
                Reply::Nothing
            }
        }
    }

    fn clock(&self) -> Rank {
        self.replica.clock().last() as Rank
    }

    fn lose_unsynced(&self) {
        self.disk.iter().for_each(|disk| disk.crash(0).expect(SOUND));
    }

    fn ask(&self, epoch: Epoch, put: Put) -> Reply {
        let request = replica::Request { epoch, key: KEY.into(), ask: put.ask() };
        let handled = self.replica.handle(&[request]).expect(SOUND).remove(0);
        let said = |answer| Said::of(&answer);
        match handled {
            Handled::Behind => Reply::Behind,
            Handled::Now(Answer::Stale(_)) => Reply::Stale,
            Handled::Now(answer) => said(answer).map_or(Reply::Nothing, Reply::Now),
            Handled::AfterSync(answer) => said(answer).map_or(Reply::Nothing, Reply::Held),
        }
    }

    fn holds(&self) -> Vec<(Slot, Rank)> {
        let engine = self.replica.engine();
        let held = |(slot, _)| (slot, rank(engine.version(slot, KEY).expect(SOUND).unwrap_or_default()));
        engine.slots().into_iter().map(held).collect()
    }

    fn dirty(&self) -> bool {
        matches!(self.ask(self.replica.layout().epoch, Put::Version), Reply::Held(_))
    }
}

fn dead() -> [(Bytes, Version); 1] {
    [(KEY.into(), version(DELETE))]
}

type ReplicaKey = (Node, LayoutId, Vec<(Slot, Rank)>, Vec<(Slot, Rank)>, bool, Rank);

/// All states of replicas that were met.
pub(crate) struct Replicas {
    disks: bool,
    clocks: bool,
    states: Vec<ReplicaState>,
    numbers: HashMap<ReplicaKey, Id>,
    known: HashMap<(Id, Stimulus), (Id, Reply)>,
    snapshots: HashMap<(Id, Epoch), Option<Found>>,
}

impl Replicas {
    /// With disks, a crash loses what was not synced; with clocks, these tell states apart.
    pub(crate) fn new(disks: bool, clocks: bool) -> Self {
        let (states, numbers) = (Vec::new(), HashMap::new());
        Replicas { disks, clocks, states, numbers, known: HashMap::new(), snapshots: HashMap::new() }
    }

    pub(crate) fn of(&self, id: Id) -> &ReplicaState {
        &self.states[id as usize]
    }

    /// A new node's.
    pub(crate) fn first(&mut self, node: Node, layout: LayoutId, layouts: &Layouts) -> Id {
        let running = Running::start(node, layouts.of(layout), self.disks);
        self.number(node, layout, None, &running, layouts)
    }

    fn build(&self, id: Id, layouts: &Layouts) -> Running {
        let state = self.of(id);
        match state.before {
            None => Running::start(state.node, layouts.of(state.layout), self.disks),
            Some((before, stimulus)) => {
                let mut running = self.build(before, layouts);
                running.give(state.node, stimulus, layouts);
                running
            }
        }
    }

    fn number(
        &mut self,
        node: Node,
        layout: LayoutId,
        before: Option<(Id, Stimulus)>,
        running: &Running,
        layouts: &Layouts,
    ) -> Id {
        let (holds, dirty) = (running.holds(), running.dirty());
        let durable = match before {
            Some((id, stimulus)) if self.disks => {
                let mut twin = self.build(id, layouts);
                twin.give(node, stimulus, layouts);
                twin.lose_unsynced();
                twin.holds()
            }
            _ => holds.clone(),
        };
        let clock = if self.clocks { running.clock() } else { 0 };
        let key = (node, layout, holds.clone(), durable.clone(), dirty, clock);
        let next = self.states.len() as Id;
        let id = *self.numbers.entry(key).or_insert(next);
        if id == next {
            self.states.push(ReplicaState { node, layout, before, holds, durable, dirty, clock });
        }
        id
    }

    /// What a state does with an input.
    pub(crate) fn give(&mut self, id: Id, stimulus: Stimulus, layouts: &Layouts) -> (Id, Reply) {
        if let Some(known) = self.known.get(&(id, stimulus)) {
            return *known;
        }
        let node = self.of(id).node;
        let mut running = self.build(id, layouts);
        let reply = running.give(node, stimulus, layouts);
        let layout = match stimulus {
            Stimulus::Install(layout) => layout,
            _ => self.of(id).layout,
        };
        let next = self.number(node, layout, Some((id, stimulus)), &running, layouts);
        self.known.insert((id, stimulus), (next, reply));
        (next, reply)
    }

    /// What a puller that is at `epoch` gets from a source; `None` if it is refused.
    pub(crate) fn snapshot(&mut self, id: Id, epoch: Epoch, layouts: &Layouts) -> Option<Found> {
        if let Some(known) = self.snapshots.get(&(id, epoch)) {
            return *known;
        }
        let page = self.build(id, layouts).replica.snapshot(epoch, SEGMENT, None, usize::MAX);
        let found = |page: Page| Found {
            rank: page.records.first().map_or(0, |(_, record)| rank(record.version)),
            clock: if self.clocks { page.clock as Rank } else { 0 },
        };
        let found = page.ok().map(found);
        self.snapshots.insert((id, epoch), found);
        found
    }
}

/// What happens to a request under way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Event {
    Answered(Node, Epoch, Said),
    Installed(LayoutId),
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    Acknowledged,
    Returned(Rank),
    Failed,
}

/// A question that it puts.
pub(crate) type Question = (Node, Epoch, Put);

/// A state, and what it puts on getting there.
type Asked = (Id, Arc<[Question]>);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Origin {
    request: Request,
    layout: LayoutId,
}

enum Machine {
    Write(Write),
    Read(Read),
}

impl Machine {
    fn start(origin: Origin, layouts: &Layouts) -> (Self, Vec<Action>) {
        let mut out = Vec::new();
        let layout = layouts.of(origin.layout).clone();
        let forever = Duration::from_secs(1 << 20);
        let terms = Terms::new(origin.request.consistency, false, Moment::ZERO, forever);
        let machine = match origin.request.writes {
            Some(rank) => Machine::Write(Write::start(layout, SEGMENT, record(rank), terms, UP, &mut out)),
            None => {
                let me = node_id(origin.request.at);
                let mut read = Read::start(me, layout, SEGMENT, terms, Moment::ZERO, UP, &mut out);
                // All are asked at once: a question that is late is like one put late.
                read.tick(HEDGE, &mut out);
                Machine::Read(read)
            }
        };
        (machine, out)
    }

    fn give(&mut self, event: Event, layouts: &Layouts) -> Vec<Action> {
        let mut out = Vec::new();
        match (self, event) {
            (Machine::Write(write), Event::Answered(from, epoch, said)) => {
                write.answered(node_id(from), epoch, said.answer(), Moment::ZERO, &mut out);
            }
            (Machine::Write(write), Event::Installed(id)) => {
                write.installed(layouts.of(id).clone(), &mut out);
            }
            (Machine::Read(read), Event::Answered(from, epoch, said)) => {
                read.answered(node_id(from), epoch, said.answer(), HEDGE, &mut out);
            }
            (Machine::Read(read), Event::Installed(id)) => {
                read.installed(layouts.of(id).clone(), Moment::ZERO, UP, &mut out);
                read.tick(HEDGE, &mut out);
            }
        }
        out
    }

    fn ended(&self) -> Option<Ended> {
        match self {
            Machine::Write(write) => write.outcome().map(|outcome| match outcome {
                Outcome::Done((), _) => Ended::Acknowledged,
                _ => Ended::Failed,
            }),
            Machine::Read(read) => read.outcome().map(|outcome| match outcome {
                Outcome::Done(found, _) => {
                    let version = found.as_ref().map_or(version(0), |found| found.version);
                    assert_eq!(*found, (rank(version) > 0).then(|| record(rank(version))), "as written");
                    Ended::Returned(rank(version))
                }
                _ => Ended::Failed,
            }),
        }
    }

    fn describe(&self) -> String {
        match self {
            Machine::Write(write) => format!("{write:?}"),
            Machine::Read(read) => format!("{read:?}"),
        }
    }
}

struct MachineState {
    origin: Origin,
    before: Option<(Id, Event)>,
    ended: Option<Ended>,
}

/// All states of requests that were met.
#[derive(Default)]
pub(crate) struct Machines {
    states: Vec<MachineState>,
    numbers: HashMap<(Origin, String), Id>,
    begun: HashMap<Origin, Asked>,
    known: HashMap<(Id, Event), Asked>,
}

impl Machines {
    pub(crate) fn ended(&self, id: Id) -> Option<Ended> {
        self.states[id as usize].ended
    }

    fn number(&mut self, origin: Origin, before: Option<(Id, Event)>, machine: &Machine) -> Id {
        let next = self.states.len() as Id;
        let id = *self.numbers.entry((origin, machine.describe())).or_insert(next);
        if id == next {
            self.states.push(MachineState { origin, before, ended: machine.ended() });
        }
        id
    }

    /// A request begins at a node.
    pub(crate) fn begin(&mut self, request: Request, layout: LayoutId, layouts: &Layouts) -> Asked {
        let origin = Origin { request, layout };
        if let Some(known) = self.begun.get(&origin) {
            return known.clone();
        }
        let (machine, out) = Machine::start(origin, layouts);
        let begun = (self.number(origin, None, &machine), questions(out));
        self.begun.insert(origin, begun.clone());
        begun
    }

    fn build(&self, id: Id, layouts: &Layouts) -> Machine {
        let state = &self.states[id as usize];
        match state.before {
            None => Machine::start(state.origin, layouts).0,
            Some((before, event)) => {
                let mut machine = self.build(before, layouts);
                machine.give(event, layouts);
                machine
            }
        }
    }

    /// What a state does with an event.
    pub(crate) fn give(&mut self, id: Id, event: Event, layouts: &Layouts) -> Asked {
        if let Some(known) = self.known.get(&(id, event)) {
            return known.clone();
        }
        let mut machine = self.build(id, layouts);
        let out = machine.give(event, layouts);
        let origin = self.states[id as usize].origin;
        let next = (self.number(origin, Some((id, event)), &machine), questions(out));
        self.known.insert((id, event), next.clone());
        next
    }
}

/// A wish to fetch a layout is left out: nodes install whatever was decided, at any time.
fn questions(actions: Vec<Action>) -> Arc<[Question]> {
    let question = |action| match action {
        Action::Ask(to, epoch, ask) => Some((node_of(to), epoch, Put::of(&ask))),
        Action::Fetch(..) => None,
    };
    actions.into_iter().filter_map(question).collect()
}
