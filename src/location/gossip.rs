//! Who is alive: SWIM (Das et al. 2002) by the `foca` crate, which does no I/O of its own.
//!
//! Its packets travel in the location service's `Gossip` call, its timers in the agent's loop. A
//! node's identity here is its id, its generation and its address, and nothing else: of two
//! identities of one node the higher generation wins, so that a restarted node, or one that was
//! wrongly declared down, is told from its former self.
//!
//! Anybody who reaches the port can send a packet, so nothing reaches `foca` of one whose source is not
//! the member that called, nor of nodes outside the installed layout: what it keeps and probes stays as
//! large as the ring. Whoever is a member by a layout that is not installed here yet is heard once it is:
//! the calls that bring packets tell the epoch, and whoever is behind is sent the layout.

use crate::core::node::{Address, Generation, Liveness, NodeId};
use bytes::{Buf, Bytes};
use foca::{
    AccumulatingRuntime, Codec, Foca, Header, Identity as FocaIdentity, Member, Message, NoCustomBroadcast,
    OwnedNotification, PeriodicParams, PostcardCodec, State, Timer,
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

/// How many lives a node that is not down may have had unnoticed: it takes seconds to notice one's end,
/// and few starts fit into that.
const UNNOTICED_LIVES: Generation = 8;

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

    /// A packet arrived in a call of `from`. What it says of nodes that are no members, or of lives that
    /// can't be, is left out. One that makes no sense, or that is not of a member, changes nothing.
    pub fn receive(&mut self, from: NodeId, packet: &[u8], is_member: impl Fn(NodeId) -> bool) {
        let Some(packet) = self.sifted(from, packet, is_member) else {
            return tracing::debug!(%from, "a gossip packet was not a member's, or made no sense");
        };
        if let Err(error) = self.foca.handle_data(&packet, &mut self.runtime) {
            tracing::debug!(%error, "a gossip packet was of no use");
        }
    }

    /// What is left of a packet: its head, how many updates there are in two bytes, and these.
    fn sifted(&self, from: NodeId, packet: &[u8], is_member: impl Fn(NodeId) -> bool) -> Option<Vec<u8>> {
        let believed = |identity: &Identity| is_member(NodeId(identity.id)) && self.may_live(identity);
        let mut rest = packet;
        let header: Header<Identity> = PostcardCodec.decode_header(&mut rest).ok()?;
        let third = match &header.message {
            Message::PingReq { target, .. } | Message::IndirectAck { target, .. } => Some(target),
            Message::IndirectPing { origin, .. } | Message::ForwardedAck { origin, .. } => Some(origin),
            _ => None,
        };
        if header.src.id != from.0 || !believed(&header.src) || !third.is_none_or(believed) {
            return None;
        }
        let mut sifted = packet[..packet.len() - rest.len()].to_vec();
        if rest.len() < 2 {
            sifted.extend_from_slice(rest);
            return Some(sifted);
        }
        let (mut kept, mut updates) = (0u16, Vec::new());
        for _ in 0..rest.get_u16() {
            let before = rest;
            let update: Member<Identity> = PostcardCodec.decode_member(&mut rest).ok()?;
            if believed(update.id()) {
                kept += 1;
                updates.extend_from_slice(&before[..before.len() - rest.len()]);
            }
        }
        sifted.extend_from_slice(&kept.to_be_bytes());
        sifted.extend_from_slice(&updates);
        sifted.extend_from_slice(rest);
        Some(sifted)
    }

    /// Whether a node may be in this life. Who calls is as easily made up as what is said, so that what
    /// counts is what probes show: the generation rises by one a life, and a node that had many which
    /// nobody noticed was down meanwhile, while one that answers can't be far ahead of what is known.
    fn may_live(&self, identity: &Identity) -> bool {
        let me = self.foca.identity();
        let known = match identity.id == me.id {
            true => Some(me),
            false => self.foca.iter_members().map(Member::id).find(|known| known.id == identity.id),
        };
        known.is_none_or(|known| identity.generation <= known.generation.saturating_add(UNNOTICED_LIVES))
    }

    /// Forgets whoever is no member any more.
    pub fn forget_strangers(&mut self, is_member: impl Fn(NodeId) -> bool) {
        let known = self.foca.iter_membership_state().map(Member::id);
        let strangers: Vec<Identity> = known.filter(|id| !is_member(NodeId(id.id))).cloned().collect();
        for stranger in strangers {
            // Only who is down can be forgotten; nobody is told.
            let down = std::iter::once(Member::down(stranger.clone()));
            if let Err(error) = self.foca.apply_many(down, false, &mut self.runtime) {
                tracing::debug!(%error, "a stranger could not be forgotten");
            }
            self.timer(Timer::RemoveDown(stranger));
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

    const ANYBODY: fn(NodeId) -> bool = |_| true;

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
        one.errands().packets.iter().for_each(|packet| two.receive(NodeId(1), &packet.bytes, ANYBODY));
        two.errands().packets.iter().for_each(|packet| one.receive(NodeId(2), &packet.bytes, ANYBODY));
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
        two.errands().packets.iter().for_each(|packet| one.receive(NodeId(2), &packet.bytes, ANYBODY));
        assert_eq!(liveness(&one, 2), Liveness::Up);
        // Another packet, on its way since before that, changes nothing.
        two.refute(suspected);
        assert!(one.errands().packets.iter().all(|packet| packet.suspected.is_none()));
    }

    #[test]
    fn who_was_called_down_probes_the_others_again() {
        let (mut one, mut two) = (Gossip::new(identity(1), 1), Gossip::new(identity(2), 2));
        one.greet(NodeId(2), &"127.0.0.1:2".parse().unwrap());
        one.errands().packets.iter().for_each(|packet| two.receive(NodeId(1), &packet.bytes, ANYBODY));
        two.errands().packets.iter().for_each(|packet| one.receive(NodeId(2), &packet.bytes, ANYBODY));
        let mut errands = one.errands();
        while liveness(&one, 2) != Liveness::Down {
            errands = time_out(&mut one, errands);
        }
        // The first thing that it hears after a while is that.
        two.errands();
        two.receive(NodeId(1), &errands.packets.last().unwrap().bytes, ANYBODY);
        let errands = two.errands();
        assert_eq!(errands.renewed, Some(2));
        assert!(errands.timers.iter().any(|(_, timer)| matches!(timer, Timer::ProbeRandomMember(_))));
    }

    /// What a node in one of its lives greets another with.
    fn greeting(id: u128, generation: Generation, to: u128) -> Bytes {
        let me = Identity::new(NodeId(id), generation, &"127.0.0.1:9".parse().unwrap());
        let mut gossip = Gossip::new(me, 9);
        gossip.greet(NodeId(to), &"127.0.0.1:8".parse().unwrap());
        gossip.errands().packets.remove(0).bytes
    }

    #[test]
    fn strangers_are_neither_kept_nor_answered() {
        let mut one = Gossip::new(identity(1), 1);
        let members = |id: NodeId| id.0 <= 3;
        for stranger in 100..200 {
            one.receive(NodeId(stranger), &greeting(stranger, 1, 1), members);
            one.receive(NodeId(2), &greeting(stranger, 1, 1), members);
        }
        assert!(one.seen().is_empty() && one.errands().packets.is_empty());
        one.receive(NodeId(2), &greeting(2, 1, 1), members);
        assert_eq!((liveness(&one, 2), one.errands().packets.len()), (Liveness::Up, 1));
    }

    #[test]
    fn what_a_member_says_of_strangers_is_left_out_and_the_rest_counts() {
        let (mut one, mut two) = (Gossip::new(identity(1), 1), Gossip::new(identity(2), 2));
        for id in [3, 100, 101] {
            two.receive(NodeId(id), &greeting(id, 1, 2), ANYBODY);
        }
        two.errands();
        // It answers a greeting with all that it knows.
        one.greet(NodeId(2), &"127.0.0.1:2".parse().unwrap());
        two.receive(NodeId(1), &one.errands().packets[0].bytes, ANYBODY);
        let told = two.errands().packets.remove(0).bytes;
        one.receive(NodeId(2), &told, |id| id.0 <= 3);
        assert_eq!((one.seen().len(), liveness(&one, 3)), (2, Liveness::Up));
        // What is of no use to one node is so only until it has the layout that the other has.
        one.receive(NodeId(2), &told, ANYBODY);
        assert_eq!(one.seen().len(), 4);
        // And no longer than these are members.
        one.forget_strangers(|id| id.0 <= 3);
        assert_eq!((one.seen().len(), liveness(&one, 3)), (2, Liveness::Up));
        one.forget_strangers(|id| id.0 == 1);
        assert!(one.seen().is_empty());
        let errands = one.errands();
        assert!(time_out(&mut one, errands).packets.is_empty(), "nobody is left to be probed");
    }

    #[test]
    fn a_life_far_ahead_is_believed_only_of_who_was_down() {
        let mut one = Gossip::new(identity(1), 1);
        let generation = |one: &Gossip| one.seen()[&NodeId(2)].generation;
        for (told, believed) in [(70, 70), (72, 72), (1_000_000, 72), (u64::MAX, 72), (73, 73)] {
            one.receive(NodeId(2), &greeting(2, told, 1), ANYBODY);
            assert_eq!(generation(&one), believed);
        }
        let mut errands = one.errands();
        while liveness(&one, 2) != Liveness::Down {
            errands = time_out(&mut one, errands);
        }
        one.receive(NodeId(2), &greeting(2, 1_000_000, 1), ANYBODY);
        assert_eq!((generation(&one), liveness(&one, 2)), (1_000_000, Liveness::Up));
    }
}
