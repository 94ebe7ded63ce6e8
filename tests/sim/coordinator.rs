//! A node as coordinator: routes requests, drives the core's write and read machines, answers.
//!
//! Each question to a replica is answered at most once: by its answer, or by silence when time is
//! up, whichever comes first. What the machines want of this very node is a direct call.

use crate::client::{Command, Reply, Wish};
use crate::counts::Kind;
use crate::env::{Env, Event, Index, Micros, Packet, index_of};
use crate::node::Process;
use crate::scans::{Advance, Scanning};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use thrifty::core::layout::Layout;
use thrifty::core::node::{Liveness, NodeId};
use thrifty::core::quorum::Consistency;
use thrifty::core::read::Read;
use thrifty::core::record::{Record, Version};
use thrifty::core::replica_request::{Answer, Ask};
use thrifty::core::token::Epoch;
use thrifty::core::ttl::counts_from_ms;
use thrifty::core::write::{Action, Outcome, Terms, Write};
use thrifty::replica::Request;

/// How often a request that reached no owner is routed again: nothing was done, so that it may be.
const TRIES: u32 = 3;

enum Machine {
    Write(Write, Version),
    Read(Read),
    Scan(Box<Scanning>),
}

/// One request under way.
struct Operation {
    command: Command,
    /// The node that forwarded it, or this one.
    from: Index,
    machine: Machine,
    /// Which account of its key held in this node's ring, and the newest version acknowledged or returned
    /// in it, when it began.
    account: usize,
    floor: Version,
    /// When it began, in operations.
    begun: u64,
}

struct Asked {
    operation: u64,
    to: NodeId,
    epoch: Epoch,
    until: Micros,
}

/// All requests that a node coordinates or has forwarded.
#[derive(Default)]
pub(crate) struct Requests {
    operations: BTreeMap<u64, Operation>,
    asked: BTreeMap<u64, Asked>,
    answers: VecDeque<(u64, Answer)>,
    /// Keys with a request under way, and those that wait for their turn.
    turns: BTreeMap<usize, VecDeque<(Index, Command)>>,
    forwarded: BTreeMap<u64, (Command, u32)>,
}

impl Requests {
    pub(crate) fn is_idle(&self) -> bool {
        self.operations.is_empty() && self.asked.is_empty()
    }

    /// An answer came in; it is looked at when the event at hand is over.
    pub(crate) fn answered(&mut self, ask_id: u64, answer: Answer) {
        self.answers.push_back((ask_id, answer));
    }
}

impl Process {
    /// A client's request: forwards it to the key's first coordinator that is up.
    pub(crate) fn submit(&mut self, command: Command, env: &mut Env) {
        match command.wish {
            // Whoever is asked goes through a segment himself.
            Wish::Scan => self.begin(self.index, command, env),
            _ => self.route(command, TRIES, env),
        }
        self.drain(env);
    }

    fn route(&mut self, command: Command, tries: u32, env: &mut Env) {
        let layout = self.layout();
        let segment = layout.segment(&env.plan.keys[command.key]);
        let view = env.gossip.view(self.index, env.now);
        let coordinators = layout.coordinators(segment);
        let first_up = coordinators.iter().copied().find(|id| view.of(*id) == Liveness::Up);
        let mut to = first_up.unwrap_or(coordinators[0]);
        if !env.healed && env.rng.chance(env.plan.raced) {
            // Liveness differs from node to node, and so two owners coordinate one key at once.
            to = env.rng.pick(&coordinators);
            env.count(Kind::Raced);
        }
        if to == self.id {
            self.coordinate(self.index, command, env);
        } else {
            self.requests.forwarded.insert(command.number, (command, tries));
            env.send(self.index, index_of(to), Packet::Forward(command));
        }
    }

    /// Another node forwarded a request.
    pub(crate) fn forwarded(&mut self, from: Index, command: Command, env: &mut Env) {
        let layout = self.layout();
        if !layout.may_coordinate(self.id, layout.segment(&env.plan.keys[command.key])) {
            let reply = Reply::NotOwner(layout.epoch);
            return env.send(self.index, from, Packet::Done { command: command.number, reply });
        }
        self.coordinate(from, command, env);
    }

    /// What this node forwarded ended.
    pub(crate) fn forward_ended(&mut self, number: u64, reply: Reply, env: &mut Env) {
        let Some((command, tries)) = self.requests.forwarded.remove(&number) else { return };
        match reply {
            Reply::NotOwner(_) => {
                env.count(Kind::NotOwner);
                if tries > 1 {
                    self.route(command, tries - 1, env);
                } else {
                    env.after(0, Event::Replied { command: number, reply: Reply::Refused });
                }
            }
            reply => env.after(0, Event::Replied { command: number, reply }),
        }
    }

    fn coordinate(&mut self, from: Index, command: Command, env: &mut Env) {
        if env.plan.in_turn {
            if let Some(queue) = self.requests.turns.get_mut(&command.key) {
                return queue.push_back((from, command));
            }
            self.requests.turns.insert(command.key, VecDeque::new());
        }
        self.begin(from, command, env);
    }

    fn begin(&mut self, from: Index, command: Command, env: &mut Env) {
        let layout = self.layout();
        let key = env.plan.keys[command.key].clone();
        let segment = layout.segment(&key);
        let now = env.moment();
        let deadline = now + Duration::from_micros(command.patience);
        let terms = Terms::new(command.consistency, command.fallback, now, deadline);
        let view = env.gossip.view(self.index, env.now);
        let liveness = |id| view.of(id);
        let account = env.checker.account(layout.ring, command.key);
        let (floor, begun) = (env.checker.floor(account), env.checker.time());
        let mut actions = Vec::new();
        let machine = if command.wish == Wish::Scan {
            let (scanning, asks) = self.begin_scan(command, env);
            actions = asks;
            Machine::Scan(Box::new(scanning))
        } else if command.wish == Wish::Get {
            Machine::Read(Read::start(self.id, layout, segment, terms, now, &liveness, &mut actions))
        } else {
            let version = self.new_version(env);
            let record = match command.wish {
                Wish::Delete => Record::tombstone(version),
                _ => Record {
                    expires_at_ms: command
                        .ttl
                        .map(|ttl| ttl.expires_at_ms(counts_from_ms(version.hlc, env.wall_ms(self.skew_ms)))),
                    ..Record::value(version, command.number.to_string())
                },
            };
            env.checker.begins(account, &record, begun);
            Machine::Write(Write::start(layout, segment, record, terms, &liveness, &mut actions), version)
        };
        env.note(|| format!("{} begins {command:?} floor {floor:?} {}", self.index, describe(&machine)));
        let operation = Operation { command, from, machine, account, floor, begun };
        self.requests.operations.insert(command.number, operation);
        self.perform(command.number, actions, env);
        self.conclude(command.number, env);
    }

    /// A version above everything this node has seen.
    fn new_version(&mut self, env: &mut Env) -> Version {
        let Some(hlc) = self.replica.clock().tick(env.wall_ms(self.skew_ms)) else {
            unreachable!("clocks stay far from the end of time")
        };
        self.keep_mark();
        Version { hlc, node: self.id.low() }
    }

    fn perform(&mut self, operation: u64, actions: Vec<Action>, env: &mut Env) {
        for action in actions {
            if self.has_failed() {
                return;
            }
            match action {
                Action::Fetch(from, epoch) => self.fetch(index_of(from), epoch, env),
                Action::Ask(to, epoch, ask) => {
                    let Some(op) = self.requests.operations.get(&operation) else { return };
                    if matches!((&op.machine, &ask), (Machine::Read(_), Ask::WriteBack(_))) {
                        env.count(Kind::WriteBack);
                    }
                    let key: Bytes = env.plan.keys[op.command.key].clone();
                    let ask_id = env.fresh();
                    let until = env.now + env.plan.ask_timeout;
                    self.requests.asked.insert(ask_id, Asked { operation, to, epoch, until });
                    env.note(|| {
                        format!("{} asks {} #{ask_id} at {epoch}: {ask:?}", self.index, index_of(to))
                    });
                    if to == self.id {
                        self.serve(self.index, ask_id, Request { epoch, key, ask }, env);
                    } else {
                        env.send(self.index, index_of(to), Packet::Ask { ask_id, epoch, key, ask });
                    }
                }
            }
        }
    }

    /// Looks at all answers that came in, and at what follows from them, until nothing is left.
    pub(crate) fn drain(&mut self, env: &mut Env) {
        while let Some((ask_id, answer)) = self.requests.answers.pop_front().filter(|_| !self.has_failed()) {
            let Some(asked) = self.requests.asked.remove(&ask_id) else { continue };
            match &answer {
                Answer::Accepted(version) | Answer::Superseded(version) | Answer::Version(version) => {
                    self.replica.clock().observe(version.hlc);
                }
                Answer::Record(Some(record)) => self.replica.clock().observe(record.version.hlc),
                _ => {}
            }
            self.keep_mark();
            let Some(operation) = self.requests.operations.get_mut(&asked.operation) else { continue };
            let mut actions = Vec::new();
            let now = env.moment();
            match &mut operation.machine {
                Machine::Write(write, _) => write.answered(asked.to, asked.epoch, answer, now, &mut actions),
                Machine::Read(read) => read.answered(asked.to, asked.epoch, answer, now, &mut actions),
                Machine::Scan(scanning) => {
                    scanning.scan.answered(asked.to, asked.epoch, answer, now, &mut actions);
                }
            }
            self.perform(asked.operation, actions, env);
            self.conclude(asked.operation, env);
        }
        self.keep_beating(env);
    }

    /// Time passes: silences, retries, deadlines.
    pub(crate) fn beat_requests(&mut self, env: &mut Env) {
        let silent = self.requests.asked.iter().filter(|(_, asked)| asked.until <= env.now);
        let silent: Vec<u64> = silent.map(|(ask_id, _)| *ask_id).collect();
        silent.into_iter().for_each(|ask_id| self.requests.answered(ask_id, Answer::Silence));
        self.drain(env);
        let now = env.moment();
        for number in self.requests.operations.keys().copied().collect::<Vec<_>>() {
            let Some(operation) = self.requests.operations.get_mut(&number) else { continue };
            let mut actions = Vec::new();
            match &mut operation.machine {
                Machine::Write(write, _) => write.tick(now, &mut actions),
                Machine::Read(read) => read.tick(now, &mut actions),
                Machine::Scan(scanning) => scanning.scan.tick(now, &mut actions),
            }
            self.perform(number, actions, env);
            self.conclude(number, env);
        }
    }

    /// A newer layout is installed: all requests under way go on at it.
    pub(crate) fn requests_installed(&mut self, layout: &Arc<Layout>, env: &mut Env) {
        let view = env.gossip.view(self.index, env.now);
        let now = env.moment();
        for number in self.requests.operations.keys().copied().collect::<Vec<_>>() {
            let Some(operation) = self.requests.operations.get_mut(&number) else { continue };
            let mut actions = Vec::new();
            match &mut operation.machine {
                Machine::Write(write, _) => write.installed(layout.clone(), &mut actions),
                Machine::Read(read) => read.installed(layout.clone(), now, &|id| view.of(id), &mut actions),
                Machine::Scan(scanning) => {
                    scanning.scan.installed(layout.clone(), now, &|id| view.of(id), &mut actions);
                }
            }
            self.perform(number, actions, env);
            self.conclude(number, env);
        }
    }

    fn is_scan(&self, number: u64) -> bool {
        self.requests.operations.get(&number).is_some_and(|op| matches!(op.machine, Machine::Scan(_)))
    }

    /// If the stretch has ended, goes on with the next, or says how the scan ended.
    fn conclude_scan(&mut self, number: u64, env: &mut Env) {
        let Some(mut operation) = self.requests.operations.remove(&number) else { return };
        let Machine::Scan(scanning) = &mut operation.machine else { return };
        match self.advance_scan(scanning, env) {
            Advance::Waits => drop(self.requests.operations.insert(number, operation)),
            Advance::Asks(actions) => {
                self.requests.operations.insert(number, operation);
                self.perform(number, actions, env);
                self.conclude_scan(number, env);
            }
            Advance::Ended(reply) => {
                self.requests.asked.retain(|_, asked| asked.operation != number);
                env.after(0, Event::Replied { command: number, reply });
            }
        }
    }

    /// If the request has ended, says so and begins the next of its key.
    fn conclude(&mut self, number: u64, env: &mut Env) {
        if self.has_failed() {
            return;
        }
        if self.is_scan(number) {
            return self.conclude_scan(number, env);
        }
        let Some(operation) = self.requests.operations.get(&number) else { return };
        let (key, begun) = (operation.command.key, operation.begun);
        let account = env.checker.account(self.layout().ring, key);
        // What was there in the old ring when it began says nothing of a new one.
        let floor = if account == operation.account { operation.floor } else { Version::ABSENT };
        let reply = match &operation.machine {
            Machine::Write(write, version) => match write.outcome() {
                None => return,
                Some(outcome) => {
                    env.note(|| format!("{} ends {number}: write {version:?} {outcome:?}", self.index));
                    conclude_write(outcome, *version, account, floor, env)
                }
            },
            Machine::Scan(_) => return,
            Machine::Read(read) => match read.outcome() {
                None => return,
                Some(outcome) => {
                    env.note(|| format!("{} ends {number}: read {outcome:?}", self.index));
                    conclude_read(outcome, account, floor, begun, self.skew_ms, env)
                }
            },
        };
        let Some(operation) = self.requests.operations.remove(&number) else { return };
        self.requests.asked.retain(|_, asked| asked.operation != number);
        if operation.from == self.index {
            env.after(0, Event::Replied { command: number, reply });
        } else {
            env.send(self.index, operation.from, Packet::Done { command: number, reply });
        }
        let layout = self.layout();
        let owns = layout.may_coordinate(self.id, layout.segment(&env.plan.keys[key]));
        while let Some(queue) = self.requests.turns.get_mut(&key) {
            match queue.pop_front() {
                Some((from, command)) if owns => return self.begin(from, command, env),
                // Its clock need not be above what the owners have forgotten by now.
                Some((from, command)) if from != self.index => {
                    let reply = Reply::NotOwner(layout.epoch);
                    env.send(self.index, from, Packet::Done { command: command.number, reply });
                }
                Some((_, command)) => {
                    env.after(0, Event::Replied { command: command.number, reply: Reply::Refused });
                }
                None => drop(self.requests.turns.remove(&key)),
            }
        }
    }
}

fn describe(machine: &Machine) -> String {
    match machine {
        Machine::Write(write, version) => format!("as write {version:?} at {}", write.epoch()),
        Machine::Read(read) => format!("as read at {}", read.epoch()),
        Machine::Scan(scanning) => format!("as scan at {}", scanning.scan.epoch()),
    }
}

fn conclude_write(
    outcome: &Outcome<()>,
    version: Version,
    key: usize,
    floor: Version,
    env: &mut Env,
) -> Reply {
    match outcome {
        Outcome::Done((), Consistency::One) => {
            env.count(Kind::AckedOne);
            Reply::Done
        }
        Outcome::Done((), _) => {
            env.count(Kind::Acked);
            if env.checker.acknowledged(key, version, floor) {
                env.count(Kind::Deleted);
            }
            Reply::Done
        }
        Outcome::Unavailable | Outcome::NoSpace => {
            env.count(Kind::NothingDone);
            env.checker.refused(key, version);
            Reply::Refused
        }
        Outcome::Aborted | Outcome::Collected | Outcome::TimedOut => {
            env.count(Kind::Unknown);
            Reply::Unknown
        }
    }
}

fn conclude_read(
    outcome: &Outcome<Option<Record>>,
    key: usize,
    floor: Version,
    begun: u64,
    skew_ms: i64,
    env: &mut Env,
) -> Reply {
    match outcome {
        Outcome::Done(record, consistency) => {
            let linear = *consistency != Consistency::One;
            env.count(if linear { Kind::Read } else { Kind::ReadOne });
            if let Some(record) = record {
                match record.visible(env.wall_ms(skew_ms)) {
                    None if record.value.is_none() => env.count(Kind::FoundDeleted),
                    None => env.count(Kind::FoundExpired),
                    Some(_) => {}
                }
            }
            if env.checker.returned(key, record.as_ref(), floor, linear.then_some(begun)) {
                env.count(Kind::FoundForgotten);
            }
            Reply::Done
        }
        Outcome::Unavailable | Outcome::NoSpace => {
            env.count(Kind::NothingDone);
            Reply::Refused
        }
        Outcome::Aborted | Outcome::Collected | Outcome::TimedOut => {
            env.count(Kind::ReadFailed);
            Reply::Refused
        }
    }
}
