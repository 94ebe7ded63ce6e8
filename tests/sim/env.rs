//! What all simulated nodes share: time, the network, the queue of what is to come, and the books.
//!
//! Time is a number of microseconds that jumps from one event to the next. Nodes never touch each
//! other; whatever one wants of another becomes an event in the queue, after a delay, and perhaps
//! never, and perhaps twice. Events of one instant come in the order in which they were made, so
//! that a seed determines the whole run.

use crate::checker::Checker;
use crate::client::{Command, Reply};
use crate::counts::{Counts, Kind};
use crate::faults::Plan;
use crate::gossip::Gossip;
use crate::repair::Repair;
use crate::rng::Rng;
use crate::schedule::{Schedule, Strike};
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use thrifty::core::collection;
use thrifty::core::layout::Layout;
use thrifty::core::membership::Message;
use thrifty::core::node::{Moment, NodeId, RingId};
use thrifty::core::replica_request::{Answer, Ask};
use thrifty::core::token::{Epoch, Segment};
use thrifty::replica::Page;

/// Microseconds since the start of the run.
pub(crate) type Micros = u64;

pub(crate) const MS: Micros = 1_000;
pub(crate) const SECOND: Micros = 1_000_000;

/// Wall clocks start here: some day in 2001, in milliseconds since 1970.
const WALL_START_MS: u64 = 1_000_000_000_000;

/// How much of a trace is kept for printing.
const TAIL: usize = 400;

/// The place of a node in the simulation. Its id ends in it, so that the one is found from the other.
pub(crate) type Index = usize;

/// An id whose order is random but whose end names the index.
pub(crate) fn node_id(index: Index, random: u64) -> NodeId {
    NodeId(u128::from(random >> 16) << 64 | u128::from(random & 0xffff) << 16 | (index as u128 + 1))
}

/// The index of a node.
pub(crate) fn index_of(id: NodeId) -> Index {
    (id.0 & 0xffff) as Index - 1
}

/// Why a page was not served.
#[derive(Clone, Debug)]
pub(crate) enum PageRefused {
    /// The source has a newer layout.
    Stale(Epoch),
    /// The source does not hold the segment.
    NotHeld,
}

/// What travels between nodes.
#[derive(Clone, Debug)]
pub(crate) enum Packet {
    /// About layouts.
    Membership(Message),
    /// An operator says that the ring goes on so, without its majority.
    Forced(Arc<Layout>),
    /// I am at this epoch, said by gossip.
    Epoch(Epoch),
    /// Which layout do you have?
    GetLayout,
    /// This one.
    Layout(Arc<Layout>),
    /// A question to a replica.
    Ask { ask_id: u64, epoch: Epoch, key: Bytes, ask: Ask },
    /// Its answer.
    Answer { ask_id: u64, answer: Answer },
    /// The records of a segment after a key, please.
    GetPage { ask_id: u64, epoch: Epoch, segment: Segment, after: Option<Bytes> },
    /// Here they are, or not.
    Page { ask_id: u64, page: Result<Page, PageRefused> },
    /// Owners compare a segment.
    Repair { epoch: Epoch, segment: Segment, say: Repair },
    /// A node that collects wants this.
    Collect { ask_id: u64, epoch: Epoch, ask: collection::Ask },
    /// What became of it.
    Collected { ask_id: u64, answer: collection::Answer },
    /// Coordinate this.
    Forward(Command),
    /// It ended so.
    Done { command: u64, reply: Reply },
}

/// What a node wakes up for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Timer {
    /// Membership's clock ticks.
    Tick,
    /// What was written goes to disk.
    Sync,
    /// What others own is dropped.
    Tidy,
    /// Requests and handoffs look at their deadlines.
    Beat,
}

/// What happens next.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Deliver {
        from: Index,
        to: Index,
        /// Of which ring the sender was a member then.
        ring: Option<RingId>,
        packet: Packet,
    },
    Wake {
        node: Index,
        life: u32,
        timer: Timer,
    },
    /// A node that crashed is started again.
    Restart(Index),
    /// A client sends its next request.
    Client(usize),
    /// A client's request ended.
    Replied {
        command: u64,
        reply: Reply,
    },
    /// A client waits no longer.
    GivenUp(u64),
    /// Something goes wrong on purpose.
    Fault,
    /// The same, as a schedule has it.
    Strike(Strike),
    /// Somebody joins or leaves.
    Churn,
    /// Something goes wrong because a layout is new.
    Ambush,
    /// Operators force a removal at these nodes.
    Force(Vec<Index>),
    /// After the faults, an operator looks after what remains to be done.
    Operator,
    /// The cut of this number ends.
    CutEnds(u64),
    DiskEmptied(Index),
    Resume(Index),
}

struct Scheduled {
    at: Micros,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What happened, in words. Costs nothing unless it is switched on, which a run that failed is
/// when it is repeated.
#[derive(Default)]
pub(crate) struct Trace {
    pub(crate) on: bool,
    pub(crate) tail: VecDeque<String>,
    /// FNV-1a over every line there ever was.
    pub(crate) hash: u64,
}

impl Trace {
    fn add(&mut self, now: Micros, line: String) {
        let mut text = String::with_capacity(line.len() + 16);
        let _ = write!(text, "{:>9.3} {line}", now as f64 / SECOND as f64);
        for byte in text.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(text);
    }
}

/// See the module's documentation.
pub(crate) struct Env {
    pub(crate) now: Micros,
    /// What the network, the disks and the nodes draw from.
    pub(crate) rng: Rng,
    /// What decides when which fault strikes: apart, so that the rest goes the same way where faults
    /// are given.
    pub(crate) fate: Rng,
    pub(crate) plan: Plan,
    pub(crate) gossip: Gossip,
    pub(crate) checker: Checker,
    pub(crate) counts: Counts,
    pub(crate) trace: Trace,
    /// Set once the heal phase begins: nothing goes wrong any more.
    pub(crate) healed: bool,
    queue: BinaryHeap<Reverse<Scheduled>>,
    numbers: u64,
    events: u64,
}

impl Env {
    pub(crate) fn new(schedule: &Schedule, traced: bool) -> Self {
        let mut rng = Rng::new(schedule.seed);
        let mut plan = Plan::random(&mut rng);
        let fate = Rng::new(rng.next());
        plan.calm(&schedule.calm);
        plan.duration = schedule.until.unwrap_or(plan.duration);
        if schedule.salt > 0 {
            rng = Rng::new(rng.next() ^ schedule.salt);
        }
        Env {
            now: 0,
            gossip: Gossip::new(plan.detect, plan.suspicion),
            checker: Checker::new(plan.keys.len(), plan.lasting),
            plan,
            rng,
            fate,
            counts: Counts::default(),
            trace: Trace { on: traced, ..Trace::default() },
            healed: false,
            queue: BinaryHeap::new(),
            numbers: 0,
            events: 0,
        }
    }

    /// Monotonic time, as the core wants it.
    pub(crate) fn moment(&self) -> Moment {
        Moment::from_micros(self.now)
    }

    /// What a wall clock that is `skew_ms` off shows.
    pub(crate) fn wall_ms(&self, skew_ms: i64) -> u64 {
        (WALL_START_MS + self.now / MS).saturating_add_signed(skew_ms)
    }

    /// A number that was never given before.
    pub(crate) fn fresh(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Notes an event in the trace.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.trace.on {
            self.trace.add(self.now, line());
        }
    }

    pub(crate) fn count(&mut self, kind: Kind) {
        self.counts.add(kind, 1);
    }

    /// Does something with other luck than that of the network.
    pub(crate) fn with_luck<T>(&mut self, luck: &mut Rng, does: impl FnOnce(&mut Env) -> T) -> T {
        std::mem::swap(&mut self.rng, luck);
        let done = does(self);
        std::mem::swap(&mut self.rng, luck);
        done
    }

    /// Makes an event happen after a delay.
    pub(crate) fn after(&mut self, delay: Micros, event: Event) {
        self.events += 1;
        let number = self.events;
        self.queue.push(Reverse(Scheduled { at: self.now + delay, number, event }));
    }

    /// The next event; time moves on to it.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let Reverse(scheduled) = self.queue.pop()?;
        self.now = scheduled.at;
        Some(scheduled.event)
    }

    /// Sends a packet. The network decides when it arrives, and how often.
    pub(crate) fn send(&mut self, from: Index, to: Index, packet: Packet) {
        // A stream's frames are not doubled, and of requests that must not be doubled nobody else
        // makes copies either: a forwarded request that ran twice would have two versions.
        let once = matches!(packet, Packet::Forward(_) | Packet::Done { .. });
        if !self.healed && !once && self.rng.chance(self.plan.doubled) {
            self.count(Kind::Doubled);
            self.transmit(from, to, packet.clone());
        }
        self.transmit(from, to, packet);
    }

    fn transmit(&mut self, from: Index, to: Index, packet: Packet) {
        let of_layouts = matches!(
            packet,
            Packet::Membership(_) | Packet::Layout(_) | Packet::Epoch(_) | Packet::Forced(_)
        );
        let asks = matches!(packet, Packet::Ask { .. });
        let unheard = match self.gossip.cut_between(from, to) {
            None if of_layouts && self.gossip.is_deaf(to, self.now) => Some(Kind::Deaf),
            None if asks && self.gossip.is_numb(to, self.now) => Some(Kind::Numb),
            cut => cut,
        };
        let writes = matches!(&packet, Packet::Ask { ask, .. } if ask.record().is_some());
        let brings =
            matches!(packet, Packet::Membership(Message::Install(_)) | Packet::Layout(_) | Packet::Forced(_));
        let lost = match () {
            () if writes => self.plan.lost + self.plan.lost_writes,
            () if brings => self.plan.lost + self.plan.lost_layouts,
            () => self.plan.lost,
        };
        if !self.healed
            && let Some(cause) = unheard.or_else(|| self.rng.chance(lost).then_some(Kind::Lost))
        {
            self.count(cause);
            self.note(|| format!("lost ({cause:?}) {from} -> {to} {packet:?}"));
            return;
        }
        let mut delay = self.rng.range(self.plan.delay / 4, self.plan.delay * 2);
        if !self.healed && self.rng.chance(self.plan.late) {
            self.count(Kind::Late);
            delay += self.rng.below(self.plan.lateness);
        }
        let ring = self.gossip.ring(from);
        self.after(delay, Event::Deliver { from, to, ring, packet });
    }
}
