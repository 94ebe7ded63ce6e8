//! A whole ring in one thread: the nodes, what strikes them, and how a run begins and ends.
//!
//! A run has three parts. Under fire, clients send and faults strike. Then the ring heals: the
//! network works, everybody who can comes back, and it must come to rest in a Stable layout of
//! exactly the nodes that live. At last every key is read, and the [checker](crate::checker)
//! knows what must be there.

use crate::client::{self, Client, Command, Reply};
use crate::counts::Kind;
use crate::disk::Disk;
use crate::env::{Env, Event, Index, MS, Micros, Packet, SECOND, Timer, node_id};
use crate::faults::Fault;
use crate::node::{Ended, Process};
use crate::rest::AFTERGLOW;
use crate::schedule::{Schedule, Strike};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use thrifty::core::layout::{Kind as RingKind, Layout, Member, Replicas, Standing};
use thrifty::core::node::RingId;
use thrifty::core::token::SegmentCount;

/// The most nodes that a run makes, ever; masks of nodes have 32 bits.
pub(crate) const MOST_NODES: usize = 30;

/// The most nodes that live in a ring at once.
const MOST_AT_ONCE: usize = 8;

/// How long a client waits for an answer.
const LONGEST_WAIT: Micros = 500 * MS;

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
    /// Until then its process stands still.
    pub(crate) paused_until: Micros,
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
    pub(crate) ended: BTreeMap<u64, Reply>,
    /// What was asked for, and which faults have struck so far.
    schedule: Schedule,
    pub(crate) struck: Vec<Strike>,
    /// A majority was lost on purpose.
    pub(crate) forcing: bool,
}

impl Cluster {
    pub(crate) fn new(schedule: &Schedule, traced: bool) -> Self {
        let env = Env::new(schedule, traced);
        let client = |client| Client::new(schedule.seed, client);
        let clients = (0..env.plan.clients).map(client).collect();
        let (seats, ended, struck) = (Vec::new(), BTreeMap::new(), Vec::new());
        let mut cluster =
            Cluster { env, seats, clients, ended, schedule: schedule.clone(), struck, forcing: false };
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

    /// What happened, so that it can be told apart from the seed.
    pub(crate) fn happened(&self) -> Schedule {
        Schedule {
            until: Some(self.env.plan.duration),
            clients: Some(self.schedule.clients.clone().unwrap_or((0..self.clients.len()).collect())),
            strikes: Some(self.struck.clone()),
            ..self.schedule.clone()
        }
    }

    pub(crate) fn take_seat(&mut self) {
        let index = self.seats.len();
        let env = &mut self.env;
        let skew = env.rng.below(env.plan.skew_ms + 1) as i64 - env.plan.skew_ms as i64 / 2;
        let member = Member {
            id: node_id(index, env.rng.next()),
            address: format!("10.0.0.{}:1", index + 1).parse().expect("an address"),
            zone: env.rng.pick(&["", "", "a", "b"]).to_owned(),
            weight: env.rng.range(1, 3) as u32,
            durable: env.rng.chance(700),
            standing: Standing::Staying,
        };
        self.seats.push(Seat {
            member,
            disk: Some(Disk::default()),
            process: None,
            alive: false,
            life: 0,
            skew_ms: skew,
            paused_until: 0,
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
        seat.paused_until = 0;
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
    pub(crate) fn look_after(&mut self, index: Index) {
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
            Ended::DiskFailed => {
                self.env.count(Kind::DiskFailed);
                seat.disk = Some(process.crash(&mut self.env));
                self.restart_later(index, self.env.plan.down);
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
        for client in 0..self.clients.len() {
            if self.schedule.clients.as_ref().is_none_or(|clients| clients.contains(&client)) {
                self.think(client);
            }
        }
        if let Some(strikes) = self.schedule.strikes.clone() {
            strikes.into_iter().for_each(|strike| self.env.after(strike.at, Event::Strike(strike)));
        } else {
            self.env.after(self.env.plan.fault_every, Event::Fault);
            if self.env.plan.churn_every > 0 {
                self.env.after(self.env.plan.churn_every, Event::Churn);
            }
        }
        let end = self.env.plan.duration;
        self.go_on_asking(1, |cluster| cluster.env.now >= end)?;
        self.end()
    }

    /// Lets events happen until `until` says so, which is asked now and then only: it may be costly.
    pub(crate) fn go_on(&mut self, until: impl Fn(&Cluster) -> bool) -> Result<(), String> {
        self.go_on_asking(16, until)
    }

    fn go_on_asking(&mut self, every: u64, until: impl Fn(&Cluster) -> bool) -> Result<(), String> {
        let mut number = 0;
        while number < MOST_EVENTS {
            if number % every == 0 && until(self) {
                return Ok(());
            }
            let Some(event) = self.env.next() else { return Ok(()) };
            // Those that a schedule does without must not decide when it is asked.
            number +=
                u64::from(!matches!(event, Event::Fault | Event::Churn | Event::Ambush | Event::Strike(_)));
            self.happen(event);
            if let Some(failure) = self.env.checker.failure.take() {
                return Err(failure);
            }
        }
        Err("too many events".into())
    }

    fn happen(&mut self, event: Event) {
        if let Event::Deliver { to: node, .. } | Event::Wake { node, .. } = &event
            && let Some(seat) = self.seats.get(*node).filter(|seat| seat.paused_until > self.env.now)
        {
            self.env.count(Kind::Waited);
            return self.env.after(seat.paused_until - self.env.now, event);
        }
        match event {
            Event::Deliver { from, to, ring, packet } => {
                let sender = self.seats[from].member.id;
                let Some(seat) = self.seats.get_mut(to).filter(|seat| seat.alive) else { return };
                match &mut seat.process {
                    Some(process) => {
                        process.receive(from, ring, packet, sender, &mut self.env);
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
                    if let Some(fault) = self.env.plan.clone().fault(&mut self.env.fate) {
                        let luck = self.env.fate.next();
                        self.strike(fault, luck);
                    }
                    let again = self.env.fate.range(1, self.env.plan.fault_every * 2);
                    self.env.after(again, Event::Fault);
                }
            }
            Event::Churn => {
                if !self.env.healed {
                    let fault = self.env.fate.pick(&[Fault::Join, Fault::Leave]);
                    let luck = self.env.fate.next();
                    self.strike(fault, luck);
                    let again = self.env.fate.range(1, self.env.plan.churn_every * 2);
                    self.env.after(again, Event::Churn);
                }
            }
            Event::Ambush => {
                if !self.env.healed && self.schedule.strikes.is_none() {
                    let fault = self.env.fate.pick(self.env.plan.ambushes);
                    let luck = self.env.fate.next();
                    self.strike(fault, luck);
                }
            }
            Event::Strike(strike) => {
                if !self.env.healed {
                    self.strike(strike.fault, strike.luck);
                }
            }
            Event::Force(at) => self.force(&at),
            Event::Operator => self.operate(),
            Event::CutEnds(cut) => self.env.gossip.mend(cut),
            Event::Resume(index) => {
                let seat = &self.seats[index];
                if seat.alive && seat.paused_until <= self.env.now {
                    self.env.gossip.turned(index, true, self.env.now);
                }
            }
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
        let luck = &mut self.clients[client].rng;
        let Some(node) = self.env.with_luck(luck, |env| client::choose(env, &running)) else {
            return self.think(client);
        };
        let command = self.env.with_luck(luck, client::command);
        self.clients[client].waits_for = Some(command.number);
        self.submit(node, command);
    }

    fn think(&mut self, client: usize) {
        let luck = &mut self.clients[client].rng;
        self.env.with_luck(luck, |env| client::think(env, client));
    }

    pub(crate) fn submit(&mut self, node: Index, command: Command) {
        // A client may give up long before the coordinator does.
        self.env.after(command.patience.min(LONGEST_WAIT), Event::GivenUp(command.number));
        let seat = &mut self.seats[node];
        // What is sent to a node that stands still is as good as lost: its client does not wait so long.
        if let Some(process) = seat.process.as_mut().filter(|_| seat.paused_until <= self.env.now) {
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
            self.think(client);
        }
    }
}
