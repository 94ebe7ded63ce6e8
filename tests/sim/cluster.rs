//! A whole ring in one thread: the nodes, what strikes them, and how a run begins and ends.
//!
//! A run has three parts. Under fire, clients send and faults strike. Then the ring heals: the
//! network works, everybody who can comes back, and it must come to rest in a Stable layout of
//! exactly the nodes that live. At last every key is read, and the [checker](crate::checker)
//! knows what must be there.

use crate::client::{self, Client, Command, Reply, Wish};
use crate::counts::Kind;
use crate::disk::Disk;
use crate::env::{Env, Event, Index, MS, Micros, Packet, SECOND, Timer, node_id};
use crate::faults::Fault;
use crate::node::{Ended, Process};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use thrifty::core::layout::{Kind as RingKind, Layout, Member, Phase, Replicas, Standing};
use thrifty::core::node::RingId;
use thrifty::core::quorum::Consistency;
use thrifty::core::token::SegmentCount;

/// The most nodes that a run makes, ever; masks of nodes have 32 bits.
const MOST_NODES: usize = 30;

/// The most nodes that live in a ring at once.
const MOST_AT_ONCE: usize = 8;

/// How long a healed ring may take to come to rest. The longest back-off is a minute, and it may be
/// met more than once.
const CONVERGE_WITHIN: Micros = 300 * SECOND;

/// How long a client waits for an answer.
const LONGEST_WAIT: Micros = 500 * MS;

/// How long clients go on sending after the faults have ended.
const AFTERGLOW: Micros = 300 * MS;

/// No run takes so many events, unless something runs in circles.
const MOST_EVENTS: u64 = 3_000_000;

/// A place for a node: what remains of it while no process runs.
pub(crate) struct Seat {
    pub(crate) member: Member,
    /// Present while no process runs that has taken it.
    pub(crate) disk: Option<Disk>,
    pub(crate) process: Option<Process>,
    /// It runs, or it looks for a ring.
    pub(crate) alive: bool,
    pub(crate) life: u32,
    pub(crate) skew_ms: i64,
    pub(crate) wants_out: bool,
    /// It is lost with its disk.
    pub(crate) dead: bool,
    /// It left, or was removed.
    pub(crate) gone: bool,
}

/// See the module's documentation.
pub(crate) struct Cluster {
    pub(crate) env: Env,
    pub(crate) seats: Vec<Seat>,
    clients: Vec<Client>,
    ended: BTreeMap<u64, Reply>,
}

impl Cluster {
    pub(crate) fn new(seed: u64, traced: bool) -> Self {
        let env = Env::new(seed, traced);
        let clients = vec![Client::default(); env.plan.clients];
        let mut cluster = Cluster { env, seats: Vec::new(), clients, ended: BTreeMap::new() };
        let plan = cluster.env.plan.clone();
        cluster.env.note(|| format!("{plan:?}"));
        cluster.found(plan.nodes, plan.replicas, plan.segments);
        cluster
    }

    /// The first ring, whose members were there all the time.
    fn found(&mut self, nodes: usize, replicas: Replicas, segments: u64) {
        (0..nodes).for_each(|_| self.take_seat());
        let mut members: Vec<Member> = self.seats.iter().map(|seat| seat.member.clone()).collect();
        let segments = SegmentCount::new(segments).expect("a power of two");
        let ring = RingId(u128::from(self.env.rng.next()));
        let first = members.pop().expect("a ring has members");
        let first = Layout::first(ring, "sim".into(), RingKind::Store, replicas, segments, first);
        let layout = match first.dual(&members, &BTreeSet::new()) {
            Some(dual) => dual.read_new().settled(),
            None => first,
        };
        let layout = Arc::new(layout);
        for index in 0..nodes {
            self.seats[index].disk = Some(Disk::of(layout.clone()));
            self.start(index);
        }
    }

    fn take_seat(&mut self) {
        let index = self.seats.len();
        let env = &mut self.env;
        let skew = env.rng.below(env.plan.skew_ms + 1) as i64 - env.plan.skew_ms as i64 / 2;
        let member = Member {
            id: node_id(index, env.rng.next()),
            address: format!("10.0.0.{}:1", index + 1).parse().expect("an address"),
            zone: env.rng.pick(&["", "", "a", "b"]).to_owned(),
            weight: env.rng.range(1, 3) as u32,
            durable: true,
            standing: Standing::Staying,
        };
        self.seats.push(Seat {
            member,
            disk: Some(Disk::default()),
            process: None,
            alive: false,
            life: 0,
            skew_ms: skew,
            wants_out: false,
            dead: false,
            gone: false,
        });
        self.env.gossip.turned(index, false, self.env.now);
    }

    /// Starts a node: as a process if its disk has a layout, else looking for a ring.
    fn start(&mut self, index: Index) {
        let seat = &mut self.seats[index];
        if seat.alive || seat.dead || seat.gone {
            return;
        }
        seat.alive = true;
        seat.life += 1;
        self.env.gossip.turned(index, true, self.env.now);
        self.env.note(|| format!("{index} starts"));
        if seat.disk.as_ref().is_some_and(|disk| disk.layout.is_some()) {
            self.run_process(index);
        } else {
            self.env.after(0, Event::Wake { node: index, life: seat.life, timer: Timer::Tick });
        }
    }

    fn run_process(&mut self, index: Index) {
        let seat = &mut self.seats[index];
        let disk = seat.disk.take().expect("no process has it");
        let mut process =
            Process::start(index, seat.member.clone(), seat.life, seat.skew_ms, disk, &mut self.env);
        if seat.wants_out {
            process.leave();
        }
        seat.process = Some(process);
        self.look_after(index);
    }

    /// Ends a process as a crash does.
    pub(crate) fn crash(&mut self, index: Index) {
        let seat = &mut self.seats[index];
        if !seat.alive {
            return;
        }
        self.env.count(Kind::Crash);
        self.env.note(|| format!("{index} crashes"));
        seat.alive = false;
        if let Some(process) = seat.process.take() {
            seat.disk = Some(process.crash(&mut self.env));
        }
        self.env.gossip.turned(index, false, self.env.now);
    }

    pub(crate) fn restart_later(&mut self, index: Index, within: Micros) {
        let delay = self.env.rng.range(5 * MS, within);
        self.env.after(delay, Event::Restart(index));
    }

    /// After each event of a node: did its process end by itself?
    fn look_after(&mut self, index: Index) {
        let seat = &mut self.seats[index];
        let Some(ended) = seat.process.as_ref().and_then(|process| process.ended) else { return };
        let Some(mut process) = seat.process.take() else { return };
        self.env.note(|| format!("{index} ends: {ended:?}"));
        seat.alive = false;
        seat.life += 1;
        self.env.gossip.turned(index, false, self.env.now);
        match ended {
            Ended::Gone => {
                seat.gone = true;
                if !seat.wants_out {
                    self.join();
                }
            }
            Ended::AllStop => {
                self.env.count(Kind::AllStop);
                process.sync(&mut self.env);
                seat.disk = Some(process.disk);
                seat.wants_out = false;
                self.restart_later(index, 2 * SECOND);
            }
        }
    }

    pub(crate) fn join(&mut self) {
        let there = self.seats.iter().filter(|seat| !seat.gone && !seat.dead).count();
        if self.seats.len() < MOST_NODES && there < MOST_AT_ONCE {
            self.env.count(Kind::Join);
            self.take_seat();
            self.start(self.seats.len() - 1);
        }
    }

    pub(crate) fn running(&self) -> Vec<Index> {
        (0..self.seats.len()).filter(|&index| self.seats[index].process.is_some()).collect()
    }

    /// The whole run; what went wrong, if anything did.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        (0..self.clients.len()).for_each(|client| client::think(&mut self.env, client));
        self.env.after(self.env.plan.fault_every, Event::Fault);
        if self.env.plan.churn_every > 0 {
            self.env.after(self.env.plan.churn_every, Event::Churn);
        }
        let end = self.env.plan.duration;
        self.go_on(|cluster| cluster.env.now >= end)?;
        self.heal();
        let latest = self.env.now + CONVERGE_WITHIN;
        self.go_on(|cluster| cluster.env.now >= latest || cluster.is_at_rest())?;
        if !self.is_at_rest() {
            return Err(format!("the ring does not come to rest:\n{}", self.describe()));
        }
        (0..self.env.plan.keys.len()).try_for_each(|key| self.read_at_last(key))
    }

    /// Lets events happen until `until` says so, which is asked now and then only: it may be costly.
    fn go_on(&mut self, until: impl Fn(&Cluster) -> bool) -> Result<(), String> {
        for number in 0..MOST_EVENTS {
            if number % 16 == 0 && until(self) {
                return Ok(());
            }
            let Some(event) = self.env.next() else { return Ok(()) };
            self.happen(event);
            if let Some(failure) = self.env.checker.failure.take() {
                return Err(failure);
            }
        }
        Err("too many events".into())
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, packet } => {
                let sender = self.seats[from].member.id;
                let Some(seat) = self.seats.get_mut(to).filter(|seat| seat.alive) else { return };
                match &mut seat.process {
                    Some(process) => {
                        process.receive(from, packet, sender, &mut self.env);
                        self.look_after(to);
                    }
                    None => {
                        if let (Packet::Layout(layout), Some(disk)) = (packet, &mut seat.disk) {
                            disk.layout = Some(layout);
                            self.run_process(to);
                        }
                    }
                }
            }
            Event::Wake { node, life, timer } => {
                let seat = &mut self.seats[node];
                if life != seat.life || !seat.alive {
                    return;
                }
                match &mut seat.process {
                    Some(process) => {
                        process.wake(timer, &mut self.env);
                        self.look_after(node);
                    }
                    None => self.seek(node),
                }
            }
            Event::Restart(index) => {
                let seat = &self.seats[index];
                if !seat.alive && !seat.dead && !seat.gone {
                    self.env.count(Kind::Restart);
                }
                self.start(index);
            }
            Event::Client(client) => self.send_request(client),
            Event::Replied { command, reply } => self.replied(command, Some(reply)),
            Event::GivenUp(command) => self.replied(command, None),
            Event::Fault => {
                if !self.env.healed {
                    if let Some(fault) = self.env.plan.clone().fault(&mut self.env.rng) {
                        self.strike(fault);
                    }
                    let again = self.env.rng.range(1, self.env.plan.fault_every * 2);
                    self.env.after(again, Event::Fault);
                }
            }
            Event::Churn => {
                if !self.env.healed {
                    let fault = self.env.rng.pick(&[Fault::Join, Fault::Leave]);
                    self.strike(fault);
                    let again = self.env.rng.range(1, self.env.plan.churn_every * 2);
                    self.env.after(again, Event::Churn);
                }
            }
            Event::Ambush => {
                if !self.env.healed {
                    let fault = self.env.rng.pick(self.env.plan.ambushes);
                    self.strike(fault);
                }
            }
            Event::Operator => self.operate(),
            Event::CutEnds => self.env.gossip.cut(None, self.env.now),
            Event::DiskEmptied(index) => {
                if let Some(process) = &self.seats[index].process {
                    process.replica.set_full(false);
                }
            }
        }
    }

    /// A joiner looks for anybody who has a layout.
    fn seek(&mut self, index: Index) {
        let running = self.running();
        if !running.is_empty() {
            let to = self.env.rng.pick(&running);
            self.env.send(index, to, Packet::GetLayout);
        }
        let life = self.seats[index].life;
        self.env.after(200 * MS, Event::Wake { node: index, life, timer: Timer::Tick });
    }

    fn send_request(&mut self, client: usize) {
        if self.env.healed && self.env.now > self.env.plan.duration + AFTERGLOW {
            return;
        }
        let running = self.running();
        let Some(node) = client::choose(&mut self.env, &running) else {
            return client::think(&mut self.env, client);
        };
        let command = client::command(&mut self.env);
        self.clients[client].waits_for = Some(command.number);
        self.submit(node, command);
    }

    fn submit(&mut self, node: Index, command: Command) {
        // A client may give up long before the coordinator does.
        self.env.after(command.patience.min(LONGEST_WAIT), Event::GivenUp(command.number));
        if let Some(process) = &mut self.seats[node].process {
            process.submit(command, &mut self.env);
            self.look_after(node);
        }
    }

    fn replied(&mut self, command: u64, reply: Option<Reply>) {
        if let Some(reply) = reply {
            self.ended.entry(command).or_insert(reply);
        }
        if let Some(client) = self.clients.iter().position(|client| client.waits_for == Some(command)) {
            if reply.is_none() {
                self.env.count(Kind::NoAnswer);
            }
            self.clients[client].waits_for = None;
            client::think(&mut self.env, client);
        }
    }

    /// The faults are over: the network works and everybody who can comes back.
    fn heal(&mut self) {
        self.env.note(|| "the faults are over".into());
        self.env.healed = true;
        self.env.gossip.heal();
        for index in 0..self.seats.len() {
            if let Some(process) = &self.seats[index].process {
                process.replica.set_full(false);
            }
            self.restart_later(index, 200 * MS);
        }
        self.env.after(SECOND, Event::Operator);
    }

    /// After the faults an operator has those removed that are lost, again and again: the wish is
    /// kept by whoever hears it, and a crash forgets it.
    fn operate(&mut self) {
        let Some(layout) = self.env.checker.newest().cloned() else { return };
        for index in 0..self.seats.len() {
            if self.seats[index].dead && layout.is_member(self.seats[index].member.id) {
                self.ask_removal(index);
            }
        }
        self.env.after(SECOND, Event::Operator);
    }

    /// Whether one Stable layout of exactly the nodes that live is installed on all of them, and
    /// nobody wants anything any more.
    fn is_at_rest(&self) -> bool {
        if self.env.now < self.env.plan.duration + AFTERGLOW {
            return false;
        }
        let Some(layout) = self.env.checker.newest() else { return false };
        let here: Vec<&Seat> = self.seats.iter().filter(|seat| !seat.gone && !seat.dead).collect();
        layout.phase == Phase::Stable
            && layout.members.len() == here.len()
            && here.iter().all(|seat| {
                seat.process.as_ref().is_some_and(|process| {
                    process.membership.layout().epoch == layout.epoch
                        && process.membership.is_member()
                        && !process.leaving
                        && process.requests.is_idle()
                })
            })
    }

    /// A read at QUORUM, sent until it is answered, as a person would.
    fn read_at_last(&mut self, key: usize) -> Result<(), String> {
        for _ in 0..5 {
            let number = self.env.fresh();
            let running = self.running();
            let node = self.env.rng.pick(&running);
            let patience = 2 * SECOND;
            let consistency = Consistency::Quorum;
            self.submit(
                node,
                Command { number, key, wish: Wish::Get, consistency, fallback: false, patience },
            );
            let latest = self.env.now + 3 * SECOND;
            self.go_on(|cluster| cluster.env.now >= latest || cluster.ended.contains_key(&number))?;
            if self.ended.get(&number) == Some(&Reply::Done) {
                return Ok(());
            }
        }
        Err(format!("key {key} can't be read in the end:\n{}", self.describe()))
    }

    fn describe(&self) -> String {
        let seat = |(index, seat): (Index, &Seat)| {
            let layout = seat.process.as_ref().map(Process::layout);
            let at = layout.map(|layout| (layout.epoch, layout.phase, layout.members.len()));
            let Seat { alive, wants_out, dead, gone, .. } = seat;
            format!("{index}: {at:?} alive {alive} wants out {wants_out} dead {dead} gone {gone}\n")
        };
        self.seats.iter().enumerate().map(seat).collect()
    }
}
