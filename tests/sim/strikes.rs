//! What each fault does to the ring.
//!
//! Faults choose their victims among whatever is there when they strike. Two limits are kept, because
//! the design promises nothing beyond them: disks are lost one at a time and only where every set
//! of owners keeps a majority, and somebody always stays when the others leave (but for the one
//! fault that asks all to leave, which the ring must refuse by stopping).

use crate::client;
use crate::cluster::{Cluster, MOST_NODES, Seat};
use crate::counts::Kind;
use crate::env::{Event, Index, MS, SECOND, index_of};
use crate::faults::Fault;
use crate::gossip::Broken;
use crate::rng::Rng;
use crate::schedule::Strike;
use thrifty::core::layout::{Phase, Replicas};
use thrifty::core::token::Segment;

impl Cluster {
    /// Lets something go wrong.
    pub(crate) fn strike(&mut self, fault: Fault, luck: u64) {
        self.struck.push(Strike { at: self.env.now, fault, luck });
        let network = std::mem::replace(&mut self.env.rng, Rng::new(luck));
        self.strike_by_luck(fault);
        self.env.rng = network;
    }

    fn strike_by_luck(&mut self, fault: Fault) {
        let running = self.running();
        let Some(victim) = client::choose(&mut self.env, &running) else { return };
        self.env.note(|| format!("fault: {fault:?}, perhaps of {victim}"));
        match fault {
            Fault::Crash => {
                self.crash(victim);
                self.restart_later(victim, self.env.plan.down);
            }
            Fault::CrashAll => {
                self.env.count(Kind::CrashAll);
                for index in running {
                    self.crash(index);
                    self.restart_later(index, self.env.plan.down);
                }
            }
            Fault::Kill => _ = self.kill(victim),
            Fault::Wipe => self.wipe(victim),
            Fault::Cut => {
                let side = match self.env.rng.below(3) {
                    0 => 1 << victim,
                    _ => self.env.rng.next() as u32,
                };
                self.cut(Broken::Between(side), true);
            }
            Fault::CutOneWay => {
                let (side, noticed) = (self.some_nodes(victim), self.env.rng.chance(500));
                self.cut(Broken::From(side), noticed);
            }
            Fault::CutToRing => {
                if running.len() >= 4 {
                    let noticed = self.env.rng.chance(300);
                    self.cut(Broken::Across(running), noticed);
                }
            }
            Fault::Pause => {
                self.env.count(Kind::Paused);
                let longest = self.env.rng.pick(&[200 * MS, SECOND, 3 * SECOND]);
                let pause = self.env.rng.range(20 * MS, longest);
                self.seats[victim].paused_until = self.env.now + pause;
                self.env.gossip.turned(victim, false, self.env.now);
                self.env.after(pause, Event::Resume(victim));
            }
            Fault::Deaf => {
                let nodes = self.some_nodes(victim);
                let longest = self.env.rng.pick(&[500 * MS, 2 * SECOND, 6 * SECOND]);
                let until = self.env.now + self.env.rng.range(50 * MS, longest);
                self.env.gossip.deafen(nodes, until);
            }
            Fault::Numb => {
                let nodes = self.some_nodes(victim);
                let until = self.env.now + self.env.rng.range(50 * MS, 2 * SECOND);
                self.env.gossip.numb(nodes, until);
            }
            Fault::Doubt => {
                self.env.count(Kind::Doubt);
                let subject = self.some_puller().unwrap_or(victim);
                let until = self.env.now + self.env.rng.range(100 * MS, 400 * MS);
                for observer in running {
                    self.env.gossip.mistake(observer, subject, until);
                }
            }
            Fault::Mistake => {
                self.env.count(Kind::Mistake);
                let observer = self.env.rng.pick(&running);
                let until = self.env.now + self.env.rng.range(50 * MS, 2 * SECOND);
                self.env.gossip.mistake(observer, victim, until);
            }
            Fault::ClockJump => {
                self.env.count(Kind::ClockJump);
                let skew = self.env.rng.below(20_000) as i64 - 10_000;
                self.set_clock(victim, skew);
            }
            Fault::ClockLeap => {
                self.env.count(Kind::ClockLeap);
                let skew = self.env.rng.below(20_000_000) as i64 - 10_000_000;
                self.set_clock(victim, skew);
            }
            Fault::DiskFull => {
                let victim = self.some_puller().unwrap_or(victim);
                if let Some(process) = &self.seats[victim].process {
                    process.replica.set_full(true);
                }
                let delay = self.env.rng.range(50 * MS, SECOND);
                self.env.after(delay, Event::DiskEmptied(victim));
            }
            Fault::DiskSlow => {
                self.env.count(Kind::DiskSlow);
                let (times, until) =
                    (self.env.rng.range(5, 100), self.env.now + self.env.rng.range(MS, SECOND));
                if let Some(process) = &mut self.seats[victim].process {
                    process.slow = (times, until);
                }
            }
            Fault::DiskFails => {
                let victim = self.some_puller().unwrap_or(victim);
                let uses = self.env.rng.below(6) as u32;
                if let Some(process) = &mut self.seats[victim].process {
                    process.fails_after = Some(uses);
                }
            }
            // Several at once make one transition that replaces several owners of a segment.
            Fault::Join => (0..=self.env.rng.below(3)).for_each(|_| self.join()),
            Fault::Leave => self.some_leave(),
            Fault::LeaveAll => running.into_iter().for_each(|index| self.leave(index)),
            Fault::ForcedRemoval => self.lose_majority(),
            Fault::Removal => {
                let down: Vec<Index> =
                    (0..self.seats.len()).filter(|&index| !self.seats[index].alive).collect();
                if let Some(index) = client::choose(&mut self.env, &down) {
                    self.ask_removal(index);
                }
            }
        }
    }

    fn cut(&mut self, broken: Broken, noticed: bool) {
        let cut = self.env.gossip.cut(broken, noticed, self.env.now);
        let delay = self.env.rng.range(50 * MS, 2 * SECOND);
        self.env.after(delay, Event::CutEnds(cut));
    }

    fn set_clock(&mut self, index: Index, skew_ms: i64) {
        self.seats[index].skew_ms = skew_ms;
        if let Some(process) = &mut self.seats[index].process {
            process.skew_ms = skew_ms;
        }
    }

    /// A node loses its disk. Its address answers again, under another id, and where it kept nothing on
    /// purpose, or an operator says so, its old id is removed.
    fn wipe(&mut self, index: Index) {
        if self.seats.len() < MOST_NODES && self.kill(index) {
            self.env.count(Kind::Wiped);
            let address = self.seats[index].member.address.clone();
            self.take_seat();
            let index = self.seats.len() - 1;
            self.seats[index].member.address = address;
            self.restart_later(index, self.env.plan.down);
        }
    }

    /// One of those that run and that the newest layout has gather segments.
    fn some_puller(&mut self) -> Option<Index> {
        let pullers = self.env.checker.newest().map(|layout| layout.all_pullers()).unwrap_or_default();
        let mut pullers: Vec<Index> = pullers.into_iter().map(index_of).collect();
        pullers.retain(|index| self.seats[*index].process.is_some());
        client::choose(&mut self.env, &pullers)
    }

    /// One node, or with it about a quarter of the others.
    fn some_nodes(&mut self, one: Index) -> u32 {
        let few = self.env.rng.next() & self.env.rng.next();
        1 << one | if self.env.rng.chance(500) { 0 } else { few as u32 }
    }

    /// Owners of one segment leave, one of them or several, as long as somebody stays.
    fn some_leave(&mut self) {
        let Some(layout) = self.env.checker.newest().cloned() else { return };
        let segment = Segment(self.env.rng.below(layout.segments.get() as u64) as u16);
        let mut owners: Vec<Index> = layout.current_owners(segment).map(index_of).collect();
        for _ in 0..=self.env.rng.below(3) {
            let staying = |seat: &&Seat| !seat.gone && !seat.dead && !seat.wants_out;
            if self.seats.iter().filter(staying).count() > 1 && !owners.is_empty() {
                let at = self.env.rng.below(owners.len() as u64) as usize;
                self.leave(owners.swap_remove(at));
            }
        }
    }

    fn leave(&mut self, index: Index) {
        let seat = &mut self.seats[index];
        let Some(process) = seat.process.as_mut().filter(|process| process.disk.settled) else { return };
        if !seat.wants_out {
            self.env.count(Kind::Leave);
            seat.wants_out = true;
            self.env.gossip.leaves(index);
            process.leave();
        }
    }

    /// An operator says everywhere that a node is gone. Only a majority that agrees makes it so.
    pub(crate) fn ask_removal(&mut self, index: Index) {
        self.env.count(Kind::Removal);
        let id = self.seats[index].member.id;
        for seat in &mut self.seats {
            if let Some(process) = &mut seat.process {
                process.membership.ask_removal(id);
            }
        }
    }

    /// A node is lost with all it had, if each set of owners keeps a majority without it, now and
    /// in a change that may be under way, and if no other that was lost is still counted on.
    fn kill(&mut self, index: Index) -> bool {
        let Some(layout) = self.env.checker.newest().cloned() else { return false };
        let counted_on = |seat: &Seat| seat.dead && layout.is_member(seat.member.id);
        let leaving =
            self.seats.iter().filter(|seat| seat.wants_out && layout.is_member(seat.member.id)).count();
        let enough = match layout.replicas {
            Replicas::Count(count) => count >= 3,
            Replicas::All => true,
        };
        let staying = layout.members.len().saturating_sub(leaving);
        if layout.phase != Phase::Stable || staying < 4 || !enough || self.seats.iter().any(counted_on) {
            return false;
        }
        self.env.count(Kind::Killed);
        self.env.note(|| format!("{index} is lost for good"));
        self.crash(index);
        self.seats[index].dead = true;
        self.seats[index].disk = None;
        true
    }
}
