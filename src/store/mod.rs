//! The store: keys and values on top of the location service.
//!
//! An async shell. What a coordinator does next is decided by the core's `Write` and `Read`, what a
//! replica accepts by [`Replica`]; here their questions travel, and their
//! answers wait until they are durable.
//!
//! - [`commit`]: group commit, and questions to this node's own replica
//! - [`link`]: questions to other nodes
//! - [`answers`]: the answering end of a link
//! - `callers`: who has a link to this node, and for how long
//! - `admission`: how many requests are taken in, and worked on at once
//! - [`room`]: writes that are refused before the disk is full
//! - `slow`: a disk that hangs is told of
//! - [`turns`]: requests for one key in turn
//! - `coordinator`: drives one request
//! - [`routing`]: from a client's request to the node that should coordinate it
//! - [`handoff`]: segments that change their owner
//! - [`repair`]: owners that catch up on each other
//! - `collect`: what was deleted or has expired is forgotten
//! - `cached`: reads at ONE that this node answers from its cache
//! - `batch`: many requests in one call
//! - `scan`: all keys, or those of a prefix
//! - [`service`]: the gRPC services

mod admission;
pub mod answers;
pub(crate) mod batch;
mod cached;
mod callers;
mod collect;
pub mod commit;
mod coordinator;
mod counters;
pub mod handoff;
pub mod link;
pub mod repair;
pub mod room;
pub mod routing;
mod scan;
pub mod service;
mod slow;
pub mod turns;

use crate::cache::{Cache, CacheConfig};
use crate::core::clock::Clock;
use crate::core::collection::Found;
use crate::core::layout::Layout;
use crate::core::node::NodeId;
use crate::core::record::Version;
use crate::core::replica_request::Answer;
use crate::core::token::Epoch;
use crate::location::state::NodeState;
use crate::location::{Boxed, Holdings, Location, Progress, SegmentHost, wall_ms};
use crate::replica::Replica;
use crate::storage::StorageError;
use crate::storage::vault::Vault;
use crate::wire::MAX_CONNECTION_BYTES;
use crate::wire::budget::Budget;
use crate::wire::convert;
use crate::wire::location::Requests;
use crate::wire::status;
use crate::wire::store as pb;
use admission::Admission;
use callers::Callers;
use commit::{AnyEngine, Committer};
use counters::Counters;
use handoff::Clients;
use link::Links;
use room::{FreeSpace, Room};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use turns::Turns;

/// What clients' requests and their answers may take in memory, all together: 256 of the largest.
const MAX_BYTES: usize = 8 * MAX_CONNECTION_BYTES;

/// How often the clock's mark and the free space are looked after.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

struct Inner {
    engine: AnyEngine,
    vault: Arc<dyn Vault>,
    me: NodeId,
    clock_mark: u64,
    /// It is no member of a ring yet: whatever the engine holds is of a former life.
    fresh: bool,
    started: Instant,
    location: OnceLock<Location>,
    committer: OnceLock<Committer>,
    links: Links,
    callers: Callers,
    turns: Turns,
    admission: Arc<Admission>,
    counters: Counters,
    budget: Arc<Budget>,
    /// Room for questions of a newer epoch.
    ahead: Arc<Semaphore>,
    /// Room for pullers.
    pullers: Arc<Semaphore>,
    /// Room for scans, and for their pages.
    scans: Arc<Semaphore>,
    pages: Arc<Semaphore>,
    /// What this node found that can be collected, and the epoch at which it waits with it.
    found: watch::Sender<(Epoch, Found)>,
    /// For whoever compares this node with other owners: his connections to them.
    repairing: tokio::sync::Mutex<Clients>,
    room: Arc<Room>,
    cache: Cache,
    failed: watch::Sender<Option<String>>,
}

/// One node's part in the store. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("me", &self.0.me).finish_non_exhaustive()
    }
}

impl Store {
    /// A store that serves from `engine` as soon as it has a layout. `free_space` is asked before
    /// each batch of writes; without it there is always room.
    pub fn new(
        state: &NodeState,
        engine: AnyEngine,
        free_space: Option<FreeSpace>,
        cache: CacheConfig,
    ) -> Self {
        Store(Arc::new(Inner {
            engine,
            vault: state.vault(),
            me: state.id,
            clock_mark: state.clock_mark,
            fresh: state.layout.is_none(),
            started: Instant::now(),
            location: OnceLock::new(),
            committer: OnceLock::new(),
            links: Links::new(state.id),
            callers: Callers::default(),
            turns: Turns::default(),
            admission: Admission::new(),
            counters: Counters::new(),
            budget: Budget::new(MAX_BYTES),
            ahead: Arc::new(Semaphore::new(service::MAX_AHEAD)),
            pullers: Arc::new(Semaphore::new(handoff::MAX_PULLERS)),
            scans: Arc::new(Semaphore::new(scan::MAX_SCANS)),
            pages: Arc::new(Semaphore::new(service::MAX_PAGES)),
            found: watch::Sender::default(),
            repairing: tokio::sync::Mutex::default(),
            room: Arc::new(Room::new(free_space)),
            cache: Cache::new(cache),
            failed: watch::channel(None).0,
        }))
    }

    /// Drops what a former life of this directory's node left behind: it left its ring, and what it
    /// had may not come back to life in another, whose epochs begin anew. May block; to be called
    /// before the node is part of a ring.
    pub fn forget_former_life(&self) -> Result<(), StorageError> {
        if self.0.fresh {
            for (slot, _) in self.0.engine.slots() {
                self.0.engine.drop_slot(slot)?;
            }
            self.0.engine.sync()?;
        }
        Ok(())
    }

    /// Tells the store of its place in the ring. Called once, before it serves.
    pub fn attach(&self, location: Location) {
        let _only_once = self.0.location.set(location);
    }

    pub(crate) fn location(&self) -> &Location {
        match self.0.location.get() {
            Some(location) => location,
            None => unreachable!("a store is attached to its location before it is asked anything"),
        }
    }

    fn layout(&self) -> Result<Arc<Layout>, tonic::Status> {
        self.location().layout().ok_or_else(|| status::unavailable("this node is not yet part of a ring"))
    }

    fn committer(&self) -> Result<&Committer, tonic::Status> {
        self.0.committer.get().ok_or_else(|| status::unavailable("this node is not yet part of a ring"))
    }

    fn replica(&self) -> Result<&Replica<AnyEngine>, tonic::Status> {
        self.committer().map(|committer| &**committer.replica())
    }

    async fn cover_clock(&self) -> Result<(), tonic::Status> {
        let covered = self.committer()?.cover_clock().await;
        covered.map_err(|error| self.broken(&error))
    }

    /// Makes durable what was pulled, and the clock that moved with it.
    async fn keep_pulled(&self) -> Result<(), tonic::Status> {
        self.blocking(|store| store.replica()?.sync().map_err(|error| store.broken(&error))).await?;
        self.cover_clock().await
    }

    /// Has work done that may not hold up the runtime. A panic in it is an error of the work alone.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, tonic::Status> + Send + 'static,
    ) -> Result<T, tonic::Status> {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.map_err(|error| tonic::Status::internal(format!("this node failed at it: {error}")))?
    }

    /// The engine or the node's state failed: the node says no more. Unless it only refused what is
    /// too large.
    fn broken(&self, error: &StorageError) -> tonic::Status {
        if !error.is_fatal() {
            return tonic::Status::invalid_argument(error.to_string());
        }
        self.0.failed.send_replace(Some(error.to_string()));
        status::unknown(tonic::Code::Aborted, "this node's storage failed and it is stopping")
    }

    /// Whether this node is part of a ring, so that it can serve.
    pub fn is_ready(&self) -> bool {
        self.0.committer.get().is_some()
    }

    /// What clients' requests and their answers may take in memory.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.0.budget
    }

    /// How many client requests were taken in and have not ended.
    pub fn in_flight(&self) -> usize {
        self.0.admission.in_flight()
    }

    /// Waits until the storage fails, and says why. The process has to end then: nothing that it
    /// says can be relied on.
    pub async fn failed(&self) -> String {
        let mut failed = self.0.failed.subscribe();
        let why = failed.wait_for(Option::is_some).await.map(|why| why.clone());
        match why {
            Ok(why) => why.unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Looks after the clock's mark, the free space and the links, for as long as the node runs.
    pub async fn housekeeping(self) {
        let (repair, collect) = (repair::run(self.clone()), collect::run(self.clone()));
        tokio::join!(repair, collect, self.look_after(), self.watch_disk());
    }

    /// Beside [`Store::look_after`], which may have to wait for the disk itself.
    async fn watch_disk(&self) {
        let mut every = tokio::time::interval(HOUSEKEEPING);
        loop {
            every.tick().await;
            if let Some(committer) = self.0.committer.get() {
                committer.slow().look(&self.0.room);
            }
        }
    }

    async fn look_after(&self) {
        let mut every = tokio::time::interval(HOUSEKEEPING);
        loop {
            every.tick().await;
            let Some(committer) = self.0.committer.get() else { continue };
            if let Err(error) = committer.cover_clock_ahead(wall_ms()).await {
                committer.fail(&error);
            }
            if let Some(layout) = self.location().layout() {
                self.0.links.retain(|id| layout.is_member(id));
            }
            self.0.room.look(committer.replica());
        }
    }

    /// Ends the links of other nodes to this one, which is over: where the process goes on, they would
    /// otherwise ask it for ever, and never who comes after it at its address.
    pub(crate) fn end_links(&self) {
        self.0.callers.end();
    }

    /// Makes everything durable that was written.
    pub fn flush(&self) -> Result<(), StorageError> {
        self.0.engine.sync()
    }
}

impl SegmentHost for Store {
    fn install(&self, layout: Arc<Layout>) -> Result<(), StorageError> {
        if let Some(committer) = self.0.committer.get() {
            committer.replica().install(layout);
            // Dropping what others own by now may take long, and nobody has to wait for it.
            let store = self.clone();
            tokio::task::spawn_blocking(move || {
                let Some(committer) = store.0.committer.get() else { return };
                if let Err(error) = committer.replica().tidy() {
                    committer.fail(&error);
                }
            });
            return Ok(());
        }
        let clock = Clock::resume(self.0.clock_mark);
        let replica = Arc::new(Replica::new(self.0.me, self.0.engine.clone(), layout, clock)?);
        self.0.room.look(&replica);
        let (vault, room) = (self.0.vault.clone(), self.0.room.clone());
        let committer = Committer::start(replica, vault, room, self.0.failed.clone())?;
        let _only_once = self.0.committer.set(committer);
        Ok(())
    }

    fn gather(&self, location: Location, layout: Arc<Layout>, progress: Arc<Progress>) -> Boxed<bool> {
        let store = self.clone();
        Box::pin(async move {
            debug_assert_eq!(location.me(), store.0.me);
            handoff::gather(&store, &layout, &progress).await
        })
    }

    fn holdings(&self) -> Option<Holdings> {
        let totals = self.0.committer.get()?.replica().totals();
        let used = self.0.cache.used();
        Some(Holdings {
            keys: totals.keys,
            bytes: totals.bytes,
            cache_hits: used.map(|used| used.hits),
            cache_misses: used.map(|used| used.misses),
        })
    }

    fn requests(&self) -> Option<Requests> {
        Some(self.0.counters.told())
    }

    fn found(&self, epoch: Epoch) -> Found {
        let (at, found) = *self.0.found.borrow();
        if at == epoch { found } else { Found::Nothing }
    }
}

/// A replica's answer as it came over a link. One that makes no sense is as good as none.
pub(crate) fn answer_from_wire(answer: pb::answer::Answer, now_ms: u64) -> Answer {
    use pb::answer::Answer as Wire;
    let of = |answer: fn(Version) -> Answer, version: pb::Version| {
        let credible = convert::stamp(version.hlc, now_ms);
        credible.map_or(Answer::Silence, |_| answer(convert::version(Some(version))))
    };
    match answer {
        Wire::Accepted(version) => of(Answer::Accepted, version),
        Wire::Superseded(version) => of(Answer::Superseded, version),
        Wire::Record(record) if record.version.is_none() => Answer::Record(None),
        Wire::Record(record) => {
            convert::record(record, now_ms).map_or(Answer::Silence, |record| Answer::Record(Some(record)))
        }
        Wire::Version(version) => of(Answer::Version, version),
        Wire::Page(page) => convert::page(page, now_ms).map_or(Answer::Silence, Answer::Page),
        Wire::StaleEpoch(epoch) => Answer::Stale(epoch),
        Wire::NoSpace(_) => Answer::NoSpace,
        Wire::Silence(_)
        | Wire::Put(_)
        | Wire::Get(_)
        | Wire::Delete(_)
        | Wire::Failure(_)
        | Wire::NotOwnerEpoch(_) => Answer::Silence,
    }
}

/// The reverse of [`answer_from_wire`].
pub(crate) fn answer_to_wire(answer: Answer) -> pb::answer::Answer {
    use pb::answer::Answer as Wire;
    match answer {
        Answer::Accepted(version) => Wire::Accepted(convert::version_to(version)),
        Answer::Superseded(version) => Wire::Superseded(convert::version_to(version)),
        Answer::Record(record) => Wire::Record(record.map(convert::record_to).unwrap_or_default()),
        Answer::Version(version) => Wire::Version(convert::version_to(version)),
        Answer::Page(page) => Wire::Page(convert::page_to(page)),
        Answer::Stale(epoch) => Wire::StaleEpoch(epoch),
        Answer::NoSpace => Wire::NoSpace(pb::Nothing {}),
        Answer::Silence => Wire::Silence(pb::Nothing {}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::layout::Kind;
    use crate::core::record::Record;
    use crate::core::token::{Segment, Slot, Token};
    use crate::location::{LocationConfig, agent};
    use crate::storage::engine::{Engine, Entry};
    use crate::storage::memory::MemoryEngine;
    use crate::storage::vault::MemoryVault;

    /// The store of the node 1, without a disk, in the ring of this layout. Its other members answer
    /// nothing.
    pub(super) async fn member_of(layout: Layout) -> Store {
        member_with(layout, Arc::new(MemoryEngine::new())).await
    }

    /// The same, with this engine.
    pub(super) async fn member_with(layout: Layout, engine: AnyEngine) -> Store {
        let mut state = NodeState::open(Arc::new(MemoryVault::new())).unwrap();
        (state.id, state.layout) = (NodeId(1), Some(Arc::new(layout)));
        let store = Store::new(&state, engine, None, CacheConfig::default());
        let config = LocationConfig { kind: Kind::Store, ..LocationConfig::default() };
        let address = "127.0.0.1:1".parse().unwrap();
        let (location, agent) = agent::start(address, config, state, false, Arc::new(store.clone()));
        store.attach(location.clone());
        tokio::spawn(agent);
        location.watch().wait_for(Option::is_some).await.unwrap();
        store
    }

    #[test]
    fn what_a_former_life_left_behind_is_forgotten_before_a_new_one_begins() {
        let engine: AnyEngine = Arc::new(MemoryEngine::new());
        let slot = Slot { segment: Segment(3), acquired: 1 };
        let (key, record) = (bytes::Bytes::from("k"), Record::value(Version { hlc: 5, node: 1 }, "old"));
        engine.merge(&[Entry { slot, token: Token::of(&key), key, record }]).unwrap();
        let state = NodeState::open(Arc::new(MemoryVault::new())).unwrap();
        let store = Store::new(&state, engine.clone(), None, CacheConfig::default());
        store.forget_former_life().unwrap();
        assert!(engine.slots().is_empty());
    }
}
