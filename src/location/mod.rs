//! The location service: who is in the ring, and who owns this key.
//!
//! An async shell around the core's [`Membership`](crate::core::membership): it moves its messages
//! over gRPC, makes its votes and layouts durable, and feeds it what gossip says of the members.
//! It knows nothing of keys' values. Whoever has something to hand over when segments change owner
//! says how as a [`SegmentHost`]; a program that only wants to know who owns what uses
//! [`NoSegments`] and watches [`Location::watch`].
//!
//! One task, the [`agent`], owns all state that decides; [`Location`] is the cheap handle to it.
//! What requests need on their way (the layout, who is alive) is published in swapped pointers and
//! read without a lock.
//!
//! - [`state`]: what a node must remember, on disk or not
//! - [`peers`]: calls to other nodes
//! - [`gossip`]: SWIM by the `foca` crate, and what it sees of the members
//! - [`discovery`]: finding a ring, or that there is none
//! - [`lan`]: announcements on the local network, for those who want them
//! - `entry`: being taken into a ring, or making one
//! - [`agent`]: the event loop
//! - [`pulse`]: what a node is at, and whether it lives
//! - [`service`]: the gRPC services

pub mod agent;
pub mod discovery;
mod entry;
pub mod gossip;
pub mod lan;
pub mod peers;
pub mod pulse;
pub mod service;
pub mod state;

use crate::core::collection::Found;
use crate::core::layout::{Kind, Layout, Replicas};
use crate::core::node::{Address, Liveness, NodeId};
use crate::core::token::{Epoch, SegmentCount};
use crate::core::transition::Patience;
use crate::storage::StorageError;
use crate::wire::convert::Malformed;
use crate::wire::location::Requests;
use arc_swap::{ArcSwap, ArcSwapOption};
use gossip::Members;
use peers::Peers;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Says something that a person who watches the server wants to know, in one line.
#[macro_export]
macro_rules! news {
    ($($what:tt)*) => { tracing::info!(target: "thrifty::news", $($what)*) };
}

/// Milliseconds since 1970 by this machine's clock.
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// How a node takes part in a ring.
#[derive(Clone, Debug)]
pub struct LocationConfig {
    /// The ring to find or make. Nodes of other names are strangers.
    pub ring_name: String,
    /// What its members are; kinds never mix.
    pub kind: Kind,
    /// Owners per segment: more survive more failures and cost more writes. Counts when the ring
    /// is made; a ring that has others refuses this node. `None`: what the ring has, or 3.
    pub replicas: Option<Replicas>,
    /// Number of segments: more spread finer over many nodes and make a bigger table. Counts when
    /// the ring is made. `None`: what the ring has, or 1024.
    pub segments: Option<SegmentCount>,
    /// Owners of a segment are spread over distinct zones while there are enough.
    pub zone: String,
    /// This node's share of the segments, relative to the others'.
    pub weight: u32,
    /// Nodes to ask, instead of scanning the loopback ports.
    pub peers: Vec<Address>,
    /// Announce this node on the local network, and ask those that are announced there instead of
    /// scanning the loopback ports.
    pub discover: bool,
    /// Make a new ring at once, alone.
    pub bootstrap: bool,
    /// A member that is gone for good, whose place this node takes: its removal is asked for once it is
    /// down, unless it is heard of before.
    pub replaces: Option<NodeId>,
    /// How patient the ring is with its members.
    pub patience: Patience,
    /// How long a leaver waits for its segments to be taken over before it goes all the same.
    pub leave_timeout: Duration,
}

impl Default for LocationConfig {
    fn default() -> Self {
        LocationConfig {
            ring_name: "thrifty".into(),
            kind: Kind::Location,
            replicas: None,
            segments: None,
            zone: String::new(),
            weight: 1,
            peers: Vec::new(),
            discover: false,
            bootstrap: false,
            replaces: None,
            patience: Patience::default(),
            leave_timeout: Duration::from_secs(60),
        }
    }
}

/// Owners per segment of a ring whose founder asked for nothing else: the least number that
/// survives one failure without losing its majority.
pub const DEFAULT_REPLICAS: Replicas = Replicas::Count(3);

/// A layout that was asked for and has not come is asked for again after this.
const FETCH_AGAIN: Duration = Duration::from_millis(250);

/// All who wait for one layout ask no more often than this together: seldom enough to cost nothing,
/// and soon enough when the fetch that was under way brought an older one.
const FETCH_APART: Duration = Duration::from_millis(20);

/// What went wrong for good: the node can't go on.
#[derive(Debug, thiserror::Error)]
pub enum LocationError {
    /// Two rings bear the name that this node looks for. Nothing was changed.
    #[error(
        "two rings named {name:?} answer: {first} (id {first_id}) and {second} (id {second_id}); rings never merge: \
         choose one with --peer, or give one another name with --ring"
    )]
    TwoRings {
        /// The name.
        name: String,
        /// A member of the one.
        first: Address,
        /// Its id.
        first_id: String,
        /// A member of the other.
        second: Address,
        /// Its id.
        second_id: String,
    },
    /// The ring refuses this node, and says why. Nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// The local network can't be used for finding others.
    #[error(
        "nothing can be announced on the LAN ({0}): leave --discover out and give --peer HOST:PORT instead"
    )]
    Lan(#[from] mdns_sd::Error),
    /// The node's own state can't be written or read. It must stop: what it says can't be relied on.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The node's own state is not what this program wrote.
    #[error(
        "the state in the data directory is damaged ({0}): start with --replace to set it aside and join as a new node"
    )]
    Damaged(#[from] Malformed),
}

/// Why a node's part in the ring ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Departure {
    /// It handed everything over and is no member any more.
    Left,
    /// It was removed while it was away, and has to start over as a new node.
    Removed,
    /// It stops and remains a member.
    Stopped,
}

/// How far a gathering has got; shared with the agent.
#[derive(Debug, Default)]
pub struct Progress {
    /// Segments done.
    pub done: AtomicU64,
    /// Segments to do.
    pub total: AtomicU64,
    /// Grows with every page, so that slow is not taken for stuck.
    pub steps: AtomicU64,
}

impl Progress {
    /// One more page.
    pub fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }
}

/// A future in a box.
pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a host holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Keys.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Reads that it answered from its cache, if it has one.
    pub cache_hits: Option<u64>,
    /// Reads that its cache could have answered and did not.
    pub cache_misses: Option<u64>,
}

/// Whoever keeps something for segments, and hands it over when they change owner.
pub trait SegmentHost: Send + Sync + 'static {
    /// The layout is durable. From its return on, nothing of an older epoch may be served. May
    /// block. An error ends the node.
    fn install(&self, layout: Arc<Layout>) -> Result<(), StorageError>;

    /// In a Dual: gathers what this node must from the old owners, durably; or, as a leaver, offers
    /// what only it holds. Dropped as soon as another layout is installed. `false`: it couldn't.
    fn gather(&self, location: Location, layout: Arc<Layout>, progress: Arc<Progress>) -> Boxed<bool>;

    /// What this node holds, if that means anything.
    fn holdings(&self) -> Option<Holdings>;

    /// What has become of clients' requests so far, if there are any.
    fn requests(&self) -> Option<Requests>;

    /// What can be collected that it found and waits with at this epoch.
    fn found(&self, epoch: Epoch) -> Found;
}

/// Nothing is kept for segments.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSegments;

impl SegmentHost for NoSegments {
    fn install(&self, _: Arc<Layout>) -> Result<(), StorageError> {
        Ok(())
    }

    fn gather(&self, _: Location, _: Arc<Layout>, _: Arc<Progress>) -> Boxed<bool> {
        Box::pin(std::future::ready(true))
    }

    fn holdings(&self) -> Option<Holdings> {
        None
    }

    fn requests(&self) -> Option<Requests> {
        None
    }

    fn found(&self, _: Epoch) -> Found {
        Found::Nothing
    }
}

/// Where a node is on its way into a ring, for those that probe it.
#[derive(Debug, Clone)]
enum Stage {
    /// It looks for a ring. Others that do so, too, have probed it at these times.
    Seeking(Vec<(Address, Instant)>),
    /// It waits to be taken in.
    Waiting,
    /// It is a member.
    Member,
}

#[derive(Debug)]
struct Shared {
    me: NodeId,
    address: Address,
    config: LocationConfig,
    durable: bool,
    layout: ArcSwapOption<Layout>,
    layouts: watch::Sender<Option<Arc<Layout>>>,
    members: ArcSwap<Members>,
    stage: Mutex<Stage>,
    /// Whom it asks while it seeks, by the names that they have themselves.
    asked: Mutex<Vec<Address>>,
    /// While it seeks: it goes by who is the lowest, rather than wait for a certain ring.
    elects: AtomicBool,
    progress: ArcSwapOption<Progress>,
    holdings: HoldingsSource,
    peers: Peers,
    fetches: Mutex<HashMap<NodeId, Fetch>>,
    events: mpsc::Sender<agent::Event>,
    /// The agent waits for the disk.
    at_disk: AtomicBool,
    departed: watch::Sender<Option<Departure>>,
}

/// A newer layout of which a node told, and that is being asked for: once for all who wait for it.
#[derive(Debug)]
struct Fetch {
    epoch: Epoch,
    asked: Instant,
    tries: usize,
}

/// Weak, since hosts hold on to their [`Location`].
struct HoldingsSource(Weak<dyn SegmentHost>);

impl std::fmt::Debug for HoldingsSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SegmentHost")
    }
}

/// The handle to a node's part in a ring. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Location {
    shared: Arc<Shared>,
}

impl Location {
    /// This node's id.
    pub fn me(&self) -> NodeId {
        self.shared.me
    }

    /// Where this node listens.
    pub fn address(&self) -> &Address {
        &self.shared.address
    }

    /// The installed layout; `None` until this node is part of a ring.
    pub fn layout(&self) -> Option<Arc<Layout>> {
        self.shared.layout.load_full()
    }

    /// The layout now, and each one that follows.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Layout>>> {
        self.shared.layouts.subscribe()
    }

    /// What gossip says of a node. One that was never heard of counts as up until there was time
    /// to hear of it.
    pub fn liveness(&self, id: NodeId) -> Liveness {
        if id == self.shared.me { Liveness::Up } else { self.shared.members.load().liveness(id) }
    }

    /// Where a node can be reached: what it last said itself, or else what the layout says.
    pub fn address_of(&self, id: NodeId) -> Option<Address> {
        if id == self.shared.me {
            return Some(self.shared.address.clone());
        }
        if let Some(address) = self.shared.members.load().address(id) {
            return Some(address.clone());
        }
        self.layout()?.member(id).map(|member| member.address.clone())
    }

    /// How often what was deleted is looked for, at most.
    pub fn collect_every(&self) -> Duration {
        self.shared.config.patience.collect_every
    }

    /// Calls to other nodes.
    pub fn peers(&self) -> &Peers {
        &self.shared.peers
    }

    /// Fetches the layout of at least this epoch, from the node that told of it or else from other
    /// members, and waits until it is installed here. `None` if that took too long.
    pub async fn catch_up(&self, from: NodeId, epoch: Epoch, deadline: Instant) -> Option<Arc<Layout>> {
        let mut layouts = self.watch();
        while Instant::now() < deadline {
            if self.layout().is_none_or(|layout| layout.epoch < epoch)
                && let Some(whom) = self.whom_to_ask(from, epoch, Instant::now())
            {
                let ask = self.shared.events.send(agent::Event::Pull(whom));
                tokio::time::timeout_at(deadline, ask).await.ok()?.ok()?;
            }
            let there = layouts.wait_for(|layout| layout.as_ref().is_some_and(|l| l.epoch >= epoch));
            let again = deadline.min(Instant::now() + FETCH_AGAIN);
            if let Ok(layout) = tokio::time::timeout_at(again, there).await {
                return layout.ok()?.clone();
            }
        }
        None
    }

    /// Who is to be asked now for a layout of which `from` told: `from` itself, then in turn with the
    /// other members. `None`: somebody has just been asked.
    fn whom_to_ask(&self, from: NodeId, epoch: Epoch, now: Instant) -> Option<NodeId> {
        let mut fetches = self.shared.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        fetches.retain(|_, fetch| now < fetch.asked + 2 * FETCH_AGAIN);
        let Some(fetch) = fetches.get_mut(&from).filter(|fetch| fetch.epoch >= epoch) else {
            fetches.insert(from, Fetch { epoch, asked: now, tries: 0 });
            return Some(from);
        };
        if now < fetch.asked + FETCH_APART {
            return None;
        }
        *fetch = Fetch { epoch: fetch.epoch, asked: now, tries: fetch.tries + 1 };
        let layout = self.layout()?;
        let other = |id: &NodeId| *id != self.me() && *id != from && self.liveness(*id) != Liveness::Down;
        let others: Vec<NodeId> = layout.ids().filter(other).collect();
        match fetch.tries % 2 {
            1 if !others.is_empty() => Some(others[fetch.tries / 2 % others.len()]),
            _ => Some(from),
        }
    }

    /// Asks the ring to let this node go. It goes on until its segments are taken over; see
    /// [`Location::departed`].
    pub async fn leave(&self) {
        let _gone_if_closed = self.shared.events.send(agent::Event::Leave).await;
    }

    /// Stops this node's part in the ring; it remains a member.
    pub async fn stop(&self) {
        let _gone_if_closed = self.shared.events.send(agent::Event::Stop).await;
    }

    /// Waits until this node's part in the ring has ended.
    pub async fn departed(&self) -> Departure {
        let mut departed = self.shared.departed.subscribe();
        match departed.wait_for(Option::is_some).await {
            Ok(departure) => departure.unwrap_or(Departure::Stopped),
            Err(_) => Departure::Stopped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::layout::tests::ring_of;
    use crate::storage::vault::MemoryVault;

    #[test]
    fn a_newer_layout_is_asked_for_once_for_all_and_then_of_others_too() {
        let mut state = state::NodeState::open(Arc::new(MemoryVault::new())).unwrap();
        state.id = NodeId(1);
        let address = "127.0.0.1:1".parse().unwrap();
        let (location, _agent) =
            agent::start(address, LocationConfig::default(), state, false, Arc::new(NoSegments));
        location.shared.layout.store(Some(Arc::new(ring_of(3, 3, 4))));
        let start = Instant::now();
        let ask = |at, from, epoch| location.whom_to_ask(NodeId(from), epoch, start + at).map(|id| id.0);
        let at = Duration::ZERO;
        assert_eq!((ask(at, 2, 9), ask(at, 2, 9), ask(at, 2, 8)), (Some(2), None, None));
        assert_eq!((ask(at, 3, 9), ask(at, 2, 10)), (Some(3), Some(2)), "who tells more is asked again");
        let at = at + FETCH_APART;
        assert_eq!((ask(at, 2, 10), ask(at, 2, 10)), (Some(3), None), "it may have died meanwhile");
        let at = at + FETCH_AGAIN;
        assert_eq!(ask(at, 2, 10), Some(2));
        let at = at + 2 * FETCH_AGAIN;
        assert_eq!(ask(at, 2, 10), Some(2), "begins afresh");
        assert_eq!(location.shared.fetches.lock().unwrap().len(), 1, "old ones are forgotten");
    }
}
