//! What befalls the hosts, one thing after the other, and how a seed goes.

use crate::ring::{Ring, name};
use crate::rng::Rng;
use crate::{Counts, UNPOISONED, load};
use std::rc::Rc;
use std::sync::Mutex;
use std::time::Duration;
use thrifty::node::Command;
use turmoil::Sim;

/// One step of the simulation, and so what every timer and message is rounded to.
const STEP: Duration = Duration::from_millis(5);

/// The usual latency, at the most.
const LATENCY: Duration = Duration::from_millis(10);

/// How long the ring may take to come to rest once nothing strikes any more: some transitions that are
/// given up and tried again.
const TO_REST: Duration = Duration::from_secs(120);

/// How long owners at rest may take to hold the same: they compare themselves every ten seconds, or
/// after twice that if one was away, and may be told to forget in between.
const TO_AGREE: Duration = Duration::from_secs(60);

/// How long what the client has begun may take to end, in milliseconds.
const LAST_REQUESTS: u64 = 2_500;

/// A seed that takes longer than this has lost its way.
const TOO_LONG: Duration = Duration::from_secs(1800);

const CLIENT: &str = "client";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Strike {
    /// Nothing gets through between a host and all others.
    CutOff,
    /// Nothing gets through between two hosts.
    Cut,
    /// Nothing gets through from one host to the others; it hears them.
    Mute,
    /// What a host sends and is sent waits, and then arrives.
    Held,
    /// A link is slow.
    Slow,
    /// Some hosts crash, or all; they keep their disks.
    Crash,
    /// A host vanishes without a word, and comes back.
    Unplugged,
    /// A host restarts at once.
    Bounce,
    /// A host crashes and loses its disk; a new node comes in its place.
    DiskLost,
    /// A node is stopped and started.
    Stop,
    /// A node leaves, and joins again.
    Leave,
}

impl Strike {
    pub(crate) const ALL: [Strike; 11] = [
        Strike::CutOff,
        Strike::Cut,
        Strike::Mute,
        Strike::Held,
        Strike::Slow,
        Strike::Crash,
        Strike::Unplugged,
        Strike::Bounce,
        Strike::DiskLost,
        Strike::Stop,
        Strike::Leave,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Strike::CutOff => "cut off",
            Strike::Cut => "cut",
            Strike::Mute => "mute",
            Strike::Held => "held",
            Strike::Slow => "slow",
            Strike::Crash => "crash",
            Strike::Unplugged => "unplugged",
            Strike::Bounce => "bounce",
            Strike::DiskLost => "disk lost",
            Strike::Stop => "stop",
            Strike::Leave => "leave",
        }
    }
}

struct Run<'a> {
    sim: Sim<'a>,
    ring: Rc<Ring>,
    rng: Rng,
}

impl Run<'_> {
    /// Whether the client has come to its end.
    fn step(&mut self) -> Result<bool, String> {
        let stepped = self.sim.step().map_err(|error| error.to_string());
        self.ring.check()?;
        stepped
    }

    fn pass(&mut self, millis: u64) -> Result<(), String> {
        let end = self.sim.elapsed() + Duration::from_millis(millis);
        while self.sim.elapsed() < end {
            self.step()?;
        }
        Ok(())
    }

    fn rest(&mut self) -> Result<(), String> {
        let end = self.sim.elapsed() + TO_REST;
        while let Some(unrest) = self.ring.unrest() {
            if self.sim.elapsed() > end {
                return Err(format!("the ring does not come to rest: {unrest}"));
            }
            self.pass(100)?;
        }
        Ok(())
    }

    fn agree(&mut self) -> Result<(), String> {
        let end = self.sim.elapsed() + TO_AGREE;
        while let Some(difference) = self.ring.difference() {
            if self.sim.elapsed() > end {
                return Err(format!("the hosts of a ring at rest do not agree: {difference}"));
            }
            self.pass(500)?;
        }
        Ok(())
    }

    fn tell(&self, what: &str) {
        self.ring.tell(format_args!("{:9.3} ---- {what}", self.sim.elapsed().as_secs_f64()));
    }

    fn strike(&mut self) -> Result<(), String> {
        let strike = self.rng.pick(&Strike::ALL);
        let host = self.rng.below(self.ring.len() as u64) as usize;
        let other = (host + self.rng.range(1, self.ring.len() as u64) as usize) % self.ring.len();
        // Of one disk at a time can the ring do without, and of none that it still counts on.
        if matches!(strike, Strike::DiskLost | Strike::Leave) {
            self.rest()?;
        }
        // Long enough, now and then, for the others to go on without it.
        let millis =
            if self.rng.chance(200) { self.rng.range(8_000, 20_000) } else { self.rng.range(50, 5_000) };
        // Of these it depends on the host whether, and when, they come to pass: it counts them.
        if !matches!(strike, Strike::Stop | Strike::Leave) {
            self.ring.count(strike.name());
        }
        self.tell(&format!("{} for {millis} ms: {} ({})", strike.name(), name(host), name(other)));
        let everyone = (0..self.ring.len()).filter(|other| *other != host).map(name);
        let (me, all) = (name(host), everyone.chain([CLIENT.to_owned()]).collect::<Vec<_>>());
        let all = || all.iter().map(String::as_str);
        let sim = &mut self.sim;
        match strike {
            Strike::CutOff => all().for_each(|other| sim.partition(&*me, other)),
            Strike::Cut => sim.partition(&*me, name(other)),
            Strike::Mute => all().for_each(|other| sim.partition_oneway(&*me, other)),
            Strike::Held => all().for_each(|other| sim.hold(&*me, other)),
            Strike::Slow => {
                sim.set_link_latency(&*me, name(other), Duration::from_millis(self.rng.range(20, 600)));
            }
            Strike::Crash => {
                for host in (0..self.ring.len()).filter(|other| *other == host || self.rng.chance(300)) {
                    sim.crash(name(host));
                    self.ring.crashed(host, false);
                }
            }
            Strike::Unplugged | Strike::DiskLost => {
                all().for_each(|other| sim.partition(&*me, other));
                sim.crash(&*me);
                self.ring.crashed(host, strike == Strike::DiskLost);
            }
            Strike::Bounce => {
                self.ring.crashed(host, false);
                sim.bounce(&*me);
            }
            Strike::Stop => self.ring.command(host, Command::Stop),
            Strike::Leave => self.ring.command(host, Command::Leave),
        }
        self.pass(millis)?;
        self.tell("over");
        let sim = &mut self.sim;
        match strike {
            Strike::CutOff | Strike::Cut | Strike::Mute => all().for_each(|other| sim.repair(&*me, other)),
            Strike::Held => all().for_each(|other| sim.release(&*me, other)),
            Strike::Slow => sim.set_link_latency(&*me, name(other), LATENCY),
            Strike::Crash => {
                for host in (0..self.ring.len())
                    .map(name)
                    .filter(|host| !sim.is_host_running(&**host))
                    .collect::<Vec<_>>()
                {
                    sim.bounce(host);
                }
            }
            Strike::Unplugged | Strike::DiskLost => {
                all().for_each(|other| sim.repair(&*me, other));
                sim.bounce(&*me);
            }
            Strike::Bounce | Strike::Stop | Strike::Leave => {}
        }
        if strike == Strike::DiskLost {
            self.rest()?;
        }
        let quiet = self.rng.below(4_000);
        self.pass(quiet)
    }

    fn go(&mut self) -> Result<(), String> {
        self.rest()?;
        self.pass(500)?;
        for _ in 0..self.rng.range(2, 6) {
            self.strike()?;
        }
        self.tell("nothing strikes any more");
        self.rest()?;
        self.ring.over.set(true);
        self.pass(LAST_REQUESTS)?;
        self.agree()?;
        self.ring.agreed.set(true);
        while !self.step()? {}
        Ok(())
    }
}

fn prepare<'a>(seed: u64) -> Run<'a> {
    let mut rng = Rng::new(seed);
    let ring = Rc::new(Ring::new(rng.range(3, 6) as usize));
    let mut sim = turmoil::Builder::new()
        .tick_duration(STEP)
        .simulation_duration(TOO_LONG)
        .max_message_latency(LATENCY)
        .tcp_capacity(4096)
        .enable_random_order()
        .rng_seed(seed)
        .build();
    for host in 0..ring.len() {
        let ring = ring.clone();
        sim.host(name(host), move || ring.clone().live(host));
    }
    sim.client(CLIENT, load::run(ring.clone(), seed));
    Run { sim, ring, rng }
}

/// Runs a seed to its end.
pub(crate) fn run(seed: u64, told: &Mutex<Counts>) -> Result<(), String> {
    let mut run = prepare(seed);
    let result = run.go();
    let mut told = told.lock().expect(UNPOISONED);
    *told = run.ring.counts();
    *told.entry("simulated seconds").or_default() += run.sim.elapsed().as_secs();
    result.map_err(|why| format!("{}\n{why}", run.ring.log()))
}

/// All hosts are silent for so long that the client's connections to them are given up.
pub(crate) fn all_silent() -> Result<(), String> {
    let mut run = prepare(0);
    let result = (|| {
        run.rest()?;
        run.pass(1_000)?;
        let hosts = || (0..run.ring.len()).map(name);
        // Not cut: the simulated network refuses at once to connect over a link that is.
        hosts().for_each(|host| run.sim.hold(CLIENT, host));
        run.pass(30_000)?;
        let hosts = || (0..run.ring.len()).map(name);
        hosts().for_each(|host| run.sim.release(CLIENT, host));
        run.ring.over.set(true);
        run.ring.agreed.set(true);
        while !run.step()? {}
        Ok(())
    })();
    result.map_err(|why: String| format!("{}\n{why}", run.ring.log()))
}

/// All hosts are stopped and started, one after the other, in a process that goes on.
pub(crate) fn all_stopped_in_turn() -> Result<(), String> {
    let mut run = prepare(0);
    let result = (|| {
        run.rest()?;
        for host in 0..run.ring.len() {
            run.ring.command(host, Command::Stop);
            run.pass(5_000)?;
            run.rest()?;
        }
        let unknown = |run: &Run<'_>| run.ring.counts().get(load::UNKNOWN).copied();
        let before = unknown(&run);
        run.pass(5_000)?;
        if unknown(&run) != before {
            return Err("nothing strikes any more, and writes are of unknown outcome".into());
        }
        run.ring.over.set(true);
        run.ring.agreed.set(true);
        while !run.step()? {}
        Ok(())
    })();
    result.map_err(|why: String| format!("{}\n{why}", run.ring.log()))
}
