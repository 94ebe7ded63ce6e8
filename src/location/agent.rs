//! The event loop that owns everything which decides: the membership, the failure detector, the
//! gathering under way.
//!
//! Outputs of the membership are carried out strictly in order, and what has to be durable is so
//! before the loop goes on: a vote is on disk before anybody hears of it, a layout before anything
//! is answered at its epoch. Calls to other nodes run beside the loop and come back as events.

mod calls;
mod install;

use super::gossip::{Gossip, Identity, Members};
use super::lan::Lan;
use super::peers::Reply;
use super::state::{self, NodeState};
use super::{
    Departure, HoldingsSource, Location, LocationConfig, LocationError, SegmentHost, Shared, Stage, entry,
};
use crate::core::layout::{Layout, Replicas};
use crate::core::membership::{Membership, Message, Output};
use crate::core::node::{Address, Generation, Liveness, Moment, NodeId};
use crate::core::token::Epoch;
use crate::news;
use bytes::Bytes;
use foca::Timer;
use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// How often time passes for the membership.
const TICK: Duration = Duration::from_millis(100);

/// How often members that gossip doesn't know as alive are greeted.
const GREET: Duration = Duration::from_secs(1);

/// Events that may queue up: a burst of every member's messages. Past that, callers wait.
const EVENTS: usize = 4096;

/// What happens to an agent.
#[derive(Debug)]
pub enum Event {
    /// A message of another node, which may want an answer.
    Message(NodeId, Message, Option<oneshot::Sender<Reply>>),
    /// Packets of the failure detector, and in which incarnation it suspects this node, if it does.
    Packets(NodeId, Vec<Bytes>, Option<u16>),
    /// A node told its epoch.
    Met(NodeId, Epoch),
    /// A timer of the failure detector ran out.
    Timer(Timer<Identity>),
    /// A layout is to be fetched from a node.
    Pull(NodeId),
    /// A layout was fetched, or chosen.
    Layout(Arc<Layout>),
    /// A forced removal makes this the layout of the survivors. Whoever wants it is told whether it is
    /// installed: not if it was made of another layout than this node has by now.
    Forced(Arc<Layout>, oneshot::Sender<bool>),
    /// Gathering for the Dual of an epoch has ended.
    Gathered(Epoch, bool),
    /// A member is to be removed.
    Remove(NodeId),
    /// A node knows this one in a later life than the one that was told.
    Outlived(Generation),
    /// This node is to leave.
    Leave,
    /// This node is to stop.
    Stop,
    /// Whoever waits for this to be dropped knows that the loop turns.
    Alive(oneshot::Sender<Infallible>),
}

/// Starts a node's part in a ring: returns at once, with the handle and the task that finds a ring
/// or resumes its membership, and then runs until this node leaves, stops or is removed.
pub fn start(
    address: Address,
    config: LocationConfig,
    state: NodeState,
    durable: bool,
    host: Arc<dyn SegmentHost>,
) -> (Location, impl Future<Output = Result<Departure, LocationError>> + Send) {
    let (events, inbox) = mpsc::channel(EVENTS);
    let stage = if state.layout.is_some() { Stage::Member } else { Stage::Seeking(Vec::new()) };
    let shared = Shared {
        me: state.id,
        address,
        config,
        durable,
        layout: Default::default(),
        layouts: watch::channel(None).0,
        members: Default::default(),
        stage: stage.into(),
        asked: Default::default(),
        elects: Default::default(),
        progress: Default::default(),
        holdings: HoldingsSource(Arc::downgrade(&host)),
        peers: Default::default(),
        fetches: Default::default(),
        events,
        at_disk: Default::default(),
        departed: watch::channel(None).0,
    };
    let location = Location { shared: Arc::new(shared) };
    let agent = run(location.clone(), state, host, inbox);
    (location, agent)
}

async fn run(
    location: Location,
    state: NodeState,
    host: Arc<dyn SegmentHost>,
    inbox: mpsc::Receiver<Event>,
) -> Result<Departure, LocationError> {
    let discover = location.shared.config.discover;
    // It says goodbye when this ends, however it does.
    let lan = discover.then(|| Lan::announce(&location)).transpose()?;
    let part = take_part(&location, lan.as_ref(), state, host, inbox);
    let departure = match &lan {
        None => part.await?,
        Some(lan) => tokio::select! {
            departure = part => departure?,
            never = lan.keep_small() => match never {},
        },
    };
    location.shared.departed.send_replace(Some(departure));
    Ok(departure)
}

async fn take_part(
    location: &Location,
    lan: Option<&Lan>,
    mut state: NodeState,
    host: Arc<dyn SegmentHost>,
    mut inbox: mpsc::Receiver<Event>,
) -> Result<Departure, LocationError> {
    loop {
        let (layout, founded) = match state.layout.take() {
            Some(layout) => {
                if !layout.is_member(state.id) {
                    // It stopped between installing this layout and noting what it means.
                    let vault = state.vault();
                    location.at_disk(move || state::save_removal(&*vault, &layout)).await?;
                    return Ok(Departure::Removed);
                }
                news!("resuming as a member of ring {} ({} members)", layout.name, layout.members.len());
                (layout, false)
            }
            None => match entry::enter_ring(location, lan, &state, &mut inbox).await? {
                Some(entered) => entered,
                None => return Ok(Departure::Stopped),
            },
        };
        let agent = Agent::enter(location.clone(), state, host.clone(), layout, founded).await?;
        match agent.run(&mut inbox).await? {
            End::Departed(departure) => return Ok(departure),
            End::NotTakenIn(again) => state = again,
        }
    }
}

/// How an agent's part in a ring ended.
enum End {
    Departed(Departure),
    /// The transition that took this node in was given up: it asks again, as who it is, for it has
    /// not voted yet.
    NotTakenIn(NodeState),
}

struct Agent {
    location: Location,
    host: Arc<dyn SegmentHost>,
    state: NodeState,
    membership: Membership,
    gossip: Gossip,
    members: Members,
    started: Instant,
    greeted: Instant,
    pulling: Option<AbortHandle>,
    gathering: Option<(Epoch, AbortHandle)>,
    leaving_since: Option<Instant>,
    /// A member that is to be removed as soon as it is down. Not for ever: see [`Agent::replace`].
    replaces: Option<NodeId>,
    /// Since when a ring is known that succeeds this one but to which it doesn't give way, and whether a
    /// person was told.
    rival: Option<(Instant, bool)>,
}

impl Agent {
    /// Makes this node a member of the ring of this layout, which becomes durable first.
    async fn enter(
        location: Location,
        state: NodeState,
        host: Arc<dyn SegmentHost>,
        layout: Arc<Layout>,
        founded: bool,
    ) -> Result<Agent, LocationError> {
        let (vault, saved) = (state.vault(), layout.clone());
        location.at_disk(move || state::save_layout(&*vault, &saved)).await?;
        let identity = Identity::new(state.id, state.generation, location.address());
        let patience = location.shared.config.patience;
        let membership = Membership::new(state.id, layout.clone(), state.vote.clone(), patience);
        let mut agent = Agent {
            gossip: Gossip::new(identity, rand::random()),
            membership,
            members: Members::default(),
            host,
            state,
            started: Instant::now(),
            greeted: Instant::now() - GREET,
            pulling: None,
            gathering: None,
            leaving_since: None,
            replaces: location.shared.config.replaces,
            rival: None,
            location,
        };
        if founded {
            let replicas = match layout.replicas {
                Replicas::All => "all".to_owned(),
                Replicas::Count(count) => count.to_string(),
            };
            news!("started ring {} ({replicas} replicas, {} segments)", layout.name, layout.segments.get());
        }
        agent.apply(layout).await?;
        *agent.location.shared.stage.lock().unwrap_or_else(PoisonError::into_inner) = Stage::Member;
        Ok(agent)
    }

    fn now(&self) -> Moment {
        self.started.elapsed()
    }

    /// Drives the membership with what this node knows of the others.
    fn decide<T>(
        &mut self,
        step: impl FnOnce(&mut Membership, Moment, &dyn Fn(NodeId) -> Liveness) -> T,
    ) -> T {
        let (now, me, members) = (self.now(), self.state.id, &self.members);
        step(&mut self.membership, now, &|id| if id == me { Liveness::Up } else { members.liveness(id) })
    }

    async fn run(mut self, inbox: &mut mpsc::Receiver<Event>) -> Result<End, LocationError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let departure = tokio::select! {
                event = inbox.recv() => match event {
                    Some(event) => self.on(event).await?,
                    None => Some(Departure::Stopped),
                },
                _ = tick.tick() => self.tick().await?,
            };
            self.run_errands().await?;
            if let Some(departure) = departure {
                self.abort_gathering();
                if departure == Departure::Stopped {
                    self.gossip.farewell();
                    self.run_errands().await?;
                }
                return Ok(End::Departed(departure));
            }
            if !self.membership.is_member() {
                return self.seek_again().await.map(End::NotTakenIn);
            }
        }
    }

    /// Forgets the ring's layout, but not the ring.
    async fn seek_again(mut self) -> Result<NodeState, LocationError> {
        news!("this node was not taken in, for the change of the ring was given up: asking again");
        self.abort_gathering();
        *self.location.shared.stage.lock().unwrap_or_else(PoisonError::into_inner) =
            Stage::Seeking(Vec::new());
        let (mut state, last) = (self.state, self.membership.layout().clone());
        state.left = Some(last.clone());
        let begin_again = move || {
            state::save_departure(&*state.vault(), &last)?;
            // Another life of the same node, for gossip to tell them apart.
            state.raise_generation(state.generation + 1).map(|()| state)
        };
        self.location.at_disk(begin_again).await.map_err(LocationError::from)
    }

    async fn on(&mut self, event: Event) -> Result<Option<Departure>, LocationError> {
        match event {
            Event::Message(from, message, reply) => {
                self.heard(from);
                let outputs = self.decide(|m, now, view| m.handle(from, message, now, view));
                return self.carry_out(outputs, reply.map(|reply| (from, reply))).await;
            }
            Event::Packets(from, packets, suspected) => {
                self.heard(from);
                let layout = self.membership.layout().clone();
                let is_member = |id| layout.is_member(id);
                packets.iter().for_each(|packet| self.gossip.receive(from, packet, is_member));
                let suspected = suspected.filter(|_| is_member(from));
                suspected.into_iter().for_each(|incarnation| self.gossip.refute(incarnation));
                self.publish_members();
            }
            Event::Met(from, epoch) => {
                self.heard(from);
                let mut outputs = Vec::new();
                self.membership.meet(from, epoch, &mut outputs);
                return self.carry_out(outputs, None).await;
            }
            Event::Timer(timer) => {
                self.gossip.timer(timer);
                self.publish_members();
            }
            Event::Pull(from) => self.pull(from),
            Event::Layout(layout) => {
                self.pulling = None;
                let me = self.state.id;
                if layout.succeeds(self.membership.layout().ring) {
                    return self.succeeded(layout).await;
                }
                let outputs = self.decide(|m, now, view| m.handle(me, Message::Install(layout), now, view));
                return self.carry_out(outputs, None).await;
            }
            Event::Forced(layout, reply) => {
                // Another may have come between since the call was answered.
                let fits = self.membership.layout().survives_into(&layout, self.state.id);
                let outputs = fits.then_some(Output::Install(layout));
                let departure = self.carry_out(outputs.into_iter().collect(), None).await?;
                let _caller_gone = reply.send(fits);
                return Ok(departure);
            }
            Event::Gathered(epoch, complete) => {
                if self.gathering.take_if(|(of, _)| *of == epoch).is_some() {
                    self.membership.pull_ended(epoch, complete);
                    return self.tick().await;
                }
            }
            Event::Remove(id) => {
                if !self.membership.ask_removal(id) {
                    tracing::warn!(node = %id, "too many removals are under way: this one is forgotten");
                }
            }
            Event::Outlived(generation) => {
                if generation == self.state.generation {
                    return Err(LocationError::Refused(
                        "the ring knows this node in a later life: its data directory is an older copy (a restored \
                         backup, say), and what it forgot could be held against it. Start with another --data-dir"
                            .into(),
                    ));
                }
            }
            Event::Leave => {
                if self.leaving_since.is_none() {
                    self.leaving_since = Some(Instant::now());
                    self.membership.leave();
                    let others = self.membership.layout().members.len() - 1;
                    if others > 0 {
                        let nodes = if others == 1 { "node" } else { "nodes" };
                        news!("leaving: handing over to {others} other {nodes}");
                    }
                    return self.tick().await;
                }
            }
            Event::Stop => return Ok(Some(Departure::Stopped)),
            Event::Alive(_) => {}
        }
        Ok(None)
    }

    async fn tick(&mut self) -> Result<Option<Departure>, LocationError> {
        if let (Some((epoch, _)), Some(progress)) = (&self.gathering, &*self.location.shared.progress.load())
        {
            self.membership.pulled(*epoch, progress.steps.load(Ordering::Relaxed));
        }
        let layout = self.membership.layout().clone();
        self.membership.found(self.host.found(layout.epoch));
        // Not as soon as a layout is installed: whom it leaves out is sent it first.
        self.gossip.forget_strangers(|id| layout.is_member(id));
        if self.greeted.elapsed() >= GREET {
            self.greeted = Instant::now();
            for member in &layout.members {
                let known =
                    self.members.seen.get(&member.id).is_some_and(|seen| seen.liveness != Liveness::Down);
                if member.id != self.state.id && !known {
                    let address = self.members.address(member.id).unwrap_or(&member.address).clone();
                    self.gossip.greet(member.id, &address);
                }
            }
        }
        self.publish_members();
        self.replace();
        let timeout = self.location.shared.config.leave_timeout;
        if self.leaving_since.is_some_and(|since| since.elapsed() >= timeout) {
            news!(
                "stopping without having handed over, as nobody took over in time; this node stays a member"
            );
            return Ok(Some(Departure::Stopped));
        }
        let outputs = self.decide(|m, now, view| m.tick(now, view));
        self.carry_out(outputs, None).await
    }

    /// Asks for the removal of the member whose place this node takes, unless that turns out to live: then
    /// the wish was a mistake, or is one by now, and must not wait for the next time that it is down. Only
    /// a call of its own shows that; what others say may be from before its end.
    fn replace(&mut self) {
        let Some(id) = self.replaces.filter(|id| self.membership.layout().is_member(*id)) else { return };
        if self.members.last_heard(id).is_some() {
            self.replaces = None;
            return news!(
                "{} lives, so that nothing replaces it: --replace counts no more",
                self.name_of(id)
            );
        }
        if self.members.liveness(id) == Liveness::Down {
            self.membership.ask_removal(id);
        }
    }

    fn heard(&mut self, from: NodeId) {
        // Only of members: what strangers call themselves must not fill memory.
        if self.membership.layout().is_member(from) {
            self.members.heard.insert(from, Instant::now());
        }
    }

    fn publish_members(&mut self) {
        self.members.seen = self.gossip.seen();
        self.location.shared.members.store(Arc::new(self.members.clone()));
    }

    /// Carries out what the membership wants, in order. `reply` is the call that is waiting for the
    /// answer to its message.
    async fn carry_out(
        &mut self,
        outputs: Vec<Output>,
        mut reply: Option<(NodeId, oneshot::Sender<Reply>)>,
    ) -> Result<Option<Departure>, LocationError> {
        let mut departure = None;
        for output in outputs {
            match output {
                Output::Persist => {
                    let (vault, vote) = (self.state.vault(), self.membership.vote().clone());
                    let target = self.membership.layout().epoch + 1;
                    self.location.at_disk(move || state::save_vote(&*vault, target, &vote)).await?;
                }
                Output::Send(to, message) => {
                    let answers = matches!(
                        message,
                        Message::Promise { .. } | Message::Accepted { .. } | Message::Refused { .. }
                    );
                    match reply.take_if(|(from, _)| answers && *from == to) {
                        Some((_, reply)) => {
                            let epoch = self.membership.layout().epoch;
                            let _caller_gone = reply.send(Reply { message: Some(message), epoch });
                        }
                        None => self.send(to, message),
                    }
                }
                Output::Install(layout) => {
                    let before = self.membership.layout().clone();
                    if self.install(layout).await? {
                        departure = self.departure(&before).await?;
                    }
                }
                Output::Pull(from) => self.pull(from),
                Output::AllStop => {
                    let keeps = match self.location.shared.durable {
                        true => "it stays a member, and keeps what it has until it is started again",
                        false => "what it had was in memory only, and is gone",
                    };
                    match self.membership.layout().members.len() {
                        1 => news!("the last node of its ring: {keeps}"),
                        _ => news!("no member stays to hand anything over to: {keeps}"),
                    }
                    departure = Some(Departure::Stopped);
                }
                Output::GaveUp(id, why) => {
                    news!("the change of the ring is put off for {}: {why}", self.name_of(id));
                }
            }
        }
        if let Some((_, reply)) = reply {
            let _caller_gone = reply.send(Reply { message: None, epoch: self.membership.layout().epoch });
        }
        Ok(departure)
    }
}
