//! Who is alive: SWIM (Das et al. 2002) by the `foca` crate, which does no I/O of its own.
//!
//! Its packets travel in the location service's `Gossip` call, its timers in the agent's loop. A
//! node's identity here is its id, its generation and its address, and nothing else: of two
//! identities of one node the higher generation wins, so that a restarted node, or one that was
//! wrongly declared down, is told from its former self.

use crate::core::node::{Address, Generation, Liveness, NodeId};
use bytes::Bytes;
use foca::{
    AccumulatingRuntime, Foca, Identity as FocaIdentity, Member, NoCustomBroadcast, OwnedNotification,
    PeriodicParams, PostcardCodec, State, Timer,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;
use tokio::time::Instant;

/// One life of a node, as gossip knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    id: u128,
    generation: Generation,
    address: String,
}

impl Identity {
    /// The identity of a node in one of its lives.
    pub fn new(id: NodeId, generation: Generation, address: &Address) -> Self {
        Identity { id: id.0, generation, address: address.to_string() }
    }
}

impl FocaIdentity for Identity {
    type Addr = u128;

    fn renew(&self) -> Option<Self> {
        Some(Identity { generation: self.generation + 1, ..self.clone() })
    }

    fn addr(&self) -> u128 {
        self.id
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.generation > adversary.generation
    }
}

/// How often each node probes another. A dead node is suspected within a round or two.
const PROBE_PERIOD: Duration = Duration::from_secs(1);

/// How long an answer to a probe may take before others are asked to probe as well: far more than
/// a network needs, and about what a process gets on a machine that is badly overloaded.
const PROBE_RTT: Duration = Duration::from_millis(400);

/// How long a suspect has to refute before it counts as down.
const SUSPECT_TO_DOWN: Duration = Duration::from_secs(3);

/// For how long a member that was never heard of counts as up: about what it takes to find out.
const GRACE: Duration = Duration::from_secs(4);

/// Packets are parts of a message with its own bound; no UDP datagram has to hold them.
const MAX_PACKET_BYTES: usize = 64 << 10;

fn config() -> foca::Config {
    let every = |frequency, members| {
        let num_members = NonZeroUsize::new(members).unwrap_or(NonZeroUsize::MIN);
        Some(PeriodicParams { frequency, num_members })
    };
    foca::Config {
        probe_period: PROBE_PERIOD,
        probe_rtt: PROBE_RTT,
        suspect_to_down_after: SUSPECT_TO_DOWN,
        max_packet_size: NonZeroUsize::new(MAX_PACKET_BYTES).unwrap_or(NonZeroUsize::MIN),
        max_transmissions: NonZeroU8::new(10).unwrap_or(NonZeroU8::MIN),
        notify_down_members: true,
        periodic_gossip: every(Duration::from_millis(200), 3),
        periodic_announce_to_down_members: every(Duration::from_secs(2), 2),
        ..foca::Config::simple()
    }
}

/// What this node's gossip has to do.
#[derive(Debug, Default)]
pub struct Errands {
    /// Packets to send.
    pub packets: Vec<Packet>,
    /// Timers to hand back after a while.
    pub timers: Vec<(Duration, Timer<Identity>)>,
    /// This node was declared down and isn't: its generation is this one from now on, and must be
    /// durable before the packets go out.
    pub renewed: Option<Generation>,
}

/// What one node's failure detector tells another's.
#[derive(Debug)]
pub struct Packet {
    /// Whom.
    pub to: NodeId,
    /// Where that node listens.
    pub address: Address,
    /// What.
    pub bytes: Bytes,
    /// In which incarnation the receiver is a suspect, if it is one.
    pub suspected: Option<u16>,
}

/// The failure detector of one node.
pub struct Gossip {
    foca: Foca<Identity, PostcardCodec, StdRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Identity>,
}

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gossip").field("identity", self.foca.identity()).finish_non_exhaustive()
    }
}

impl Gossip {
    /// A node that knows nobody yet.
    pub fn new(identity: Identity, seed: u64) -> Self {
        let foca = Foca::new(identity, config(), StdRng::seed_from_u64(seed), PostcardCodec);
        Gossip { foca, runtime: AccumulatingRuntime::new() }
    }

    /// A packet arrived. One that makes no sense changes nothing.
    pub fn receive(&mut self, packet: &[u8]) {
        if let Err(error) = self.foca.handle_data(packet, &mut self.runtime) {
            tracing::debug!(%error, "a gossip packet was of no use");
        }
    }

    /// Another node suspects this one in this incarnation. Suspicions are told a few times only, and a
    /// timer that makes one a certainty is dropped when its owner was itself declared down: so that
    /// none stays for ever, whoever has one tells the suspect with everything that it sends it.
    pub fn refute(&mut self, incarnation: u16) {
        let suspect = Member::new(self.foca.identity().clone(), incarnation, State::Suspect);
        if let Err(error) = self.foca.apply_many(std::iter::once(suspect), true, &mut self.runtime) {
            tracing::debug!(%error, "a suspicion could not be refuted");
        }
    }

    /// A node that goes on in a later life has dropped its timers, and sets them again only when it learns
    /// something about somebody. Where all have, nobody would ever hear of anything again.
    fn probe_again(&mut self) {
        if let Err(error) = self.foca.apply_many(std::iter::empty(), true, &mut self.runtime) {
            tracing::debug!(%error, "a failure detector could not go on");
        }
    }

    fn suspected(&self, identity: &Identity) -> Option<u16> {
        let mut members = self.foca.iter_membership_state();
        let suspect = members.find(|m| m.id() == identity && m.state() == State::Suspect)?;
        Some(suspect.incarnation())
    }

    /// A timer ran out.
    pub fn timer(&mut self, timer: Timer<Identity>) {
        if let Err(error) = self.foca.handle_timer(timer, &mut self.runtime) {
            tracing::debug!(%error, "a gossip timer was of no use");
        }
    }

    /// Greets a node, of which nothing but its id and address need be known.
    pub fn greet(&mut self, id: NodeId, address: &Address) {
        if let Err(error) = self.foca.announce(Identity::new(id, 0, address), &mut self.runtime) {
            tracing::debug!(%error, "a greeting could not be made");
        }
    }

    /// Tells others at once that this node goes.
    pub fn farewell(&mut self) {
        if let Err(error) = self.foca.leave_cluster(&mut self.runtime) {
            tracing::debug!(%error, "a farewell could not be said");
        }
    }

    /// What is to be done now.
    pub fn errands(&mut self) -> Errands {
        let mut errands = Errands::default();
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::Rejoin(identity) => {
                    errands.renewed = Some(identity.generation);
                    self.probe_again();
                }
                notification => tracing::debug!(?notification, "gossip"),
            }
        }
        while let Some((to, packet)) = self.runtime.to_send() {
            if let Ok(address) = to.address.parse() {
                let suspected = self.suspected(&to);
                errands.packets.push(Packet { to: NodeId(to.id), address, bytes: packet, suspected });
            }
        }
        while let Some(timer) = self.runtime.to_schedule() {
            errands.timers.push(timer);
        }
        errands
    }

    /// What it sees of the others.
    pub fn seen(&self) -> HashMap<NodeId, Seen> {
        let seen = |member: &Member<Identity>| {
            let liveness = match member.state() {
                State::Alive => Liveness::Up,
                State::Suspect => Liveness::Suspect,
                State::Down => Liveness::Down,
            };
            let identity = member.id();
            let address = identity.address.parse().ok()?;
            Some((NodeId(identity.id), Seen { liveness, address, generation: identity.generation }))
        };
        self.foca.iter_membership_state().filter_map(seen).collect()
    }
}

/// What gossip sees of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Whether it lives.
    pub liveness: Liveness,
    /// Where it last said it listens.
    pub address: Address,
    /// In which of its lives.
    pub generation: Generation,
}

/// What is known of all nodes, as of the last change.
#[derive(Debug, Default, Clone)]
pub struct Members {
    /// By gossip.
    pub seen: HashMap<NodeId, Seen>,
    /// Since when a node is expected to be heard of.
    pub expected: HashMap<NodeId, Instant>,
    /// When a node last sent anything.
    pub heard: HashMap<NodeId, Instant>,
}

impl Members {
    /// Whether a node lives, as far as one can say.
    pub fn liveness(&self, id: NodeId) -> Liveness {
        match (self.seen.get(&id), self.expected.get(&id)) {
            (Some(seen), _) => seen.liveness,
            (None, Some(since)) if since.elapsed() >= GRACE => Liveness::Down,
            (None, _) => Liveness::Up,
        }
    }

    /// Where a node said that it listens.
    pub fn address(&self, id: NodeId) -> Option<&Address> {
        self.seen.get(&id).map(|seen| &seen.address)
    }

    /// Whether a node is known in a later life than this.
    pub fn outlived(&self, id: NodeId, generation: Generation) -> bool {
        self.seen.get(&id).is_some_and(|seen| seen.generation > generation)
    }

    /// When it was last heard of.
    pub fn last_heard(&self, id: NodeId) -> Option<Instant> {
        self.heard.get(&id).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(id: u16) -> Identity {
        Identity::new(NodeId(id.into()), 1, &format!("127.0.0.1:{id}").parse().unwrap())
    }

    /// Has all timers run out that are set so far.
    fn time_out(gossip: &mut Gossip, errands: Errands) -> Errands {
        errands.timers.into_iter().for_each(|(_, timer)| gossip.timer(timer));
        gossip.errands()
    }

    fn liveness(gossip: &Gossip, id: u128) -> Liveness {
        gossip.seen()[&NodeId(id)].liveness
    }

    #[test]
    fn a_suspicion_whose_telling_was_lost_and_whose_timer_is_gone_is_refuted_all_the_same() {
        let (mut one, mut two) = (Gossip::new(identity(1), 1), Gossip::new(identity(2), 2));
        one.greet(NodeId(2), &"127.0.0.1:2".parse().unwrap());
        one.errands().packets.iter().for_each(|packet| two.receive(&packet.bytes));
        two.errands().packets.iter().for_each(|packet| one.receive(&packet.bytes));
        // Nothing of this one arrives any more: it suspects the other, and tells it in vain.
        let mut errands = one.errands();
        while liveness(&one, 2) == Liveness::Up {
            errands = time_out(&mut one, errands);
        }
        // The others call it down meanwhile, and it comes back as of a later life.
        let down = Member::down(one.foca.identity().clone());
        one.foca.apply_many(std::iter::once(down), true, &mut one.runtime).unwrap();
        errands = time_out(&mut one, errands);
        assert_eq!(liveness(&one, 2), Liveness::Suspect, "its timer ran out, and does not count");
        let suspected = errands.packets[0].suspected.expect("the suspect is told with every packet");
        two.refute(suspected);
        two.greet(NodeId(1), &"127.0.0.1:1".parse().unwrap());
        two.errands().packets.iter().for_each(|packet| one.receive(&packet.bytes));
        assert_eq!(liveness(&one, 2), Liveness::Up);
        // Another packet, on its way since before that, changes nothing.
        two.refute(suspected);
        assert!(one.errands().packets.iter().all(|packet| packet.suspected.is_none()));
    }

    #[test]
    fn who_was_called_down_probes_the_others_again() {
        let (mut one, mut two) = (Gossip::new(identity(1), 1), Gossip::new(identity(2), 2));
        one.greet(NodeId(2), &"127.0.0.1:2".parse().unwrap());
        one.errands().packets.iter().for_each(|packet| two.receive(&packet.bytes));
        two.errands().packets.iter().for_each(|packet| one.receive(&packet.bytes));
        let mut errands = one.errands();
        while liveness(&one, 2) != Liveness::Down {
            errands = time_out(&mut one, errands);
        }
        // The first thing that it hears after a while is that.
        two.errands();
        two.receive(&errands.packets.last().unwrap().bytes);
        let errands = two.errands();
        assert_eq!(errands.renewed, Some(2));
        assert!(errands.timers.iter().any(|(_, timer)| matches!(timer, Timer::ProbeRandomMember(_))));
    }
}
