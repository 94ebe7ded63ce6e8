//! What a client knows of its ring: the layout, the way to each node, and how to learn of a newer
//! layout.

use super::calls::{made_here, timed_out_here};
use super::location;
use super::shun::Shun;
use crate::core::layout::{Layout, Phase};
use crate::core::node::Address;
use crate::core::record::MAX_VALUE_BYTES;
use crate::wire::location::GetLayoutRequest;
use crate::wire::{MAX_CONNECTION_BYTES, MAX_STREAMS, REQUEST_BYTES, channel, convert};
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// How long one node may take to give the layout.
const FETCH_TIMEOUT: Duration = Duration::from_secs(1);

/// The bytes for which a place is: where all places are taken, a node has no more memory for the
/// connections.
const PLACE_BYTES: usize = MAX_CONNECTION_BYTES / MAX_STREAMS as usize;

pub(super) struct Node {
    pub(super) address: Address,
    channels: Vec<Channel>,
    next: AtomicUsize,
    /// For requests, as many as the node takes on these connections at once. A large one takes several.
    places: Semaphore,
    /// What the value that a read brings may have, in bytes: the largest of late.
    found: AtomicUsize,
    /// The bits of a [`Shun`], in milliseconds since [`Ring::started`].
    shun: AtomicU64,
}

impl Node {
    fn new(address: &Address, connections: usize) -> Self {
        let channels: Vec<_> = (0..connections.max(1)).map(|_| channel::lazy(address)).collect();
        let places = Semaphore::new(channels.len() * MAX_STREAMS as usize);
        Node {
            address: address.clone(),
            channels,
            next: AtomicUsize::new(0),
            places,
            found: AtomicUsize::new(MAX_VALUE_BYTES),
            shun: AtomicU64::new(0),
        }
    }

    pub(super) fn channel(&self) -> Channel {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        self.channels[at].clone()
    }

    /// A connection with a place for one more request, whose message has so many bytes and which may
    /// bring a value. Past that requests would wait in the connection, and of one that ran out of time
    /// there nobody could say that it was not sent; or they would be refused for their bytes.
    pub(super) async fn place(&self, bytes: usize, brings: bool) -> (Channel, Option<SemaphorePermit<'_>>) {
        let found = if brings { self.found.load(Ordering::Relaxed) } else { 0 };
        let places = (REQUEST_BYTES + bytes + found).div_ceil(PLACE_BYTES).min(MAX_STREAMS as usize);
        let place = self.places.acquire_many(places as u32).await;
        (self.channel(), place.ok())
    }

    /// A read brought an answer of so many bytes. Small ones have the next ones expected to be smaller,
    /// too, but slowly: as long as some are large, room is left for them.
    pub(super) fn brought(&self, bytes: usize) {
        let before = self.found.load(Ordering::Relaxed);
        let found = bytes.max(before - before / 16);
        if found != before {
            self.found.store(found, Ordering::Relaxed);
        }
    }

    /// It is there: whatever was held against it is forgotten.
    pub(super) fn answered(&self) {
        if self.shun.load(Ordering::Relaxed) != 0 {
            self.shun.store(0, Ordering::Relaxed);
        }
    }

    /// Has what is held against it become something else; `None` leaves it as it is.
    fn judge(&self, change: impl Fn(Shun) -> Option<Shun>) -> bool {
        let change = |bits| change(Shun::from_bits(bits)).map(Shun::bits);
        self.shun.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

/// A layout, and beside each of its members the connections to it once they are needed: a request
/// then finds its way with one hash and two array indexes, without a lock.
struct Routes {
    layout: Arc<Layout>,
    nodes: Vec<OnceLock<Arc<Node>>>,
}

impl Routes {
    fn new(layout: Layout) -> Arc<Self> {
        let nodes = layout.members.iter().map(|_| OnceLock::new()).collect();
        Arc::new(Routes { layout: Arc::new(layout), nodes })
    }

    /// The index of the member that should coordinate requests for a key.
    fn coordinator(&self, key: &[u8]) -> usize {
        let segment = self.layout.segment(key);
        if self.layout.phase == Phase::Stable {
            return self.layout.current.row(segment).first().map_or(0, |cell| usize::from(cell.member));
        }
        let best = self.layout.coordinators(segment).first().copied();
        best.and_then(|id| self.layout.members.iter().position(|m| m.id == id)).unwrap_or(0)
    }
}

/// What a client knows of its ring. The client and its one task in the background share it.
pub(super) struct Ring {
    seeds: Vec<Address>,
    /// Connections per node.
    connections: usize,
    routes: ArcSwap<Routes>,
    nodes: Mutex<HashMap<Address, Arc<Node>>>,
    started: Instant,
}

impl Ring {
    pub(super) fn new(seeds: Vec<Address>, connections: usize, layout: Layout) -> Self {
        Ring {
            seeds,
            connections,
            routes: ArcSwap::new(Routes::new(layout)),
            nodes: Mutex::default(),
            started: Instant::now(),
        }
    }

    pub(super) fn layout(&self) -> Arc<Layout> {
        self.routes.load().layout.clone()
    }

    pub(super) fn epoch(&self) -> u64 {
        self.routes.load().layout.epoch
    }

    /// All addresses worth trying: those the client was given first, then the members'.
    pub(super) fn addresses(&self) -> Vec<Address> {
        let mut all = self.seeds.clone();
        for member in &self.layout().members {
            if !all.contains(&member.address) {
                all.push(member.address.clone());
            }
        }
        all
    }

    pub(super) fn node(&self, address: &Address) -> Arc<Node> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = nodes.get(address) {
            return node.clone();
        }
        let node = Arc::new(Node::new(address, self.connections));
        nodes.insert(address.clone(), node.clone());
        node
    }

    /// Whom a request for a key goes to first.
    pub(super) fn coordinator(&self, key: &[u8]) -> Arc<Node> {
        let routes = self.routes.load();
        self.member(&routes, routes.coordinator(key))
    }

    /// The member whose turn it is, where they are asked in turn.
    pub(super) fn any(&self, turn: usize) -> Arc<Node> {
        let routes = self.routes.load();
        self.member(&routes, turn % routes.nodes.len())
    }

    fn member(&self, routes: &Routes, at: usize) -> Arc<Node> {
        routes.nodes[at].get_or_init(|| self.node(&routes.layout.members[at].address)).clone()
    }

    /// Everybody who takes a request for a key: its coordinators, then all others.
    fn route(&self, key: &[u8]) -> Vec<Address> {
        let layout = self.layout();
        let owners = layout.coordinators(layout.segment(key)).into_iter();
        let mut all: Vec<Address> =
            owners.filter_map(|id| layout.member(id)).map(|m| m.address.clone()).collect();
        for address in self.addresses() {
            if !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }

    /// Everybody who takes a request for a key and is not among these.
    pub(super) fn untried(&self, key: &[u8], tried: &[Address]) -> Vec<Arc<Node>> {
        let others = self.route(key).into_iter().filter(|address| !tried.contains(address));
        others.map(|address| self.node(&address)).collect()
    }

    /// Whom a request for a key goes to now that was sent to these before: somebody new, and one who is
    /// not shunned if there is one.
    pub(super) fn another(&self, key: &[u8], tried: &[Address]) -> Option<Arc<Node>> {
        let others = self.untried(key, tried);
        others.iter().find(|node| self.may_ask(node)).or(others.first()).cloned()
    }

    fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// A node gave no good answer: if it gave none at all, it is shunned.
    pub(super) fn failed(&self, node: &Node, status: &Status) {
        if !made_here(status) {
            return node.answered();
        }
        let (now, silent) = (self.elapsed_ms(), timed_out_here(status));
        node.judge(|shun| Some(if silent { shun.was_silent(now) } else { shun.failed(now) }));
    }

    /// Whether a node may be asked now: it is not shunned, or it is time to see whether it is back. In
    /// that case nobody else may until that is known, so that it has to be sent something.
    pub(super) fn may_ask(&self, node: &Node) -> bool {
        node.shun.load(Ordering::Relaxed) == 0 || node.judge(|shun| shun.asked(self.elapsed_ms()))
    }

    /// Fetches a layout of at least this epoch from the first node that has it. It may be the one
    /// that is known: where a member has moved to another address, the layout then says so.
    async fn fetch(&self, epoch: u64) {
        let mut shunned = Vec::new();
        for node in self.addresses().into_iter().map(|address| self.node(&address)) {
            if !self.may_ask(&node) {
                shunned.push(node);
            } else if self.fetched_from(&node, epoch).await {
                return;
            }
        }
        for node in shunned {
            if self.fetched_from(&node, epoch).await {
                return;
            }
        }
    }

    /// Whether a node gave a layout of at least this epoch, by which requests then go.
    async fn fetched_from(&self, node: &Node, epoch: u64) -> bool {
        match fetch_layout(&node.channel(), epoch.saturating_sub(1)).await {
            Ok(Some(layout)) if layout.epoch >= epoch => {
                node.answered();
                self.routes.store(Routes::new(layout));
                return true;
            }
            Ok(_) => node.answered(),
            Err(status) => self.failed(node, &status),
        }
        false
    }
}

/// The fetch of the layout that is under way, if there is one: never two at once, and none that
/// outlives the client.
#[derive(Default)]
pub(super) struct Refresher(Mutex<Option<Refresh>>);

struct Refresh {
    task: AbortHandle,
    ended: watch::Receiver<()>,
}

impl Refresher {
    /// Fetches a layout of at least this epoch in the background, unless a fetch is under way.
    /// Either ends the returned channel when it ends, however it does.
    pub(super) fn start(&self, ring: &Arc<Ring>, epoch: u64) -> watch::Receiver<()> {
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(refresh) = under_way.as_ref().filter(|refresh| !refresh.task.is_finished()) {
            return refresh.ended.clone();
        }
        let (end, ended) = watch::channel(());
        let ring = ring.clone();
        let task = tokio::spawn(async move {
            ring.fetch(epoch).await;
            drop(end);
        });
        *under_way = Some(Refresh { task: task.abort_handle(), ended: ended.clone() });
        ended
    }
}

impl Drop for Refresher {
    fn drop(&mut self) {
        let under_way = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(refresh) = under_way {
            refresh.task.abort();
        }
    }
}

pub(super) async fn fetch_layout(channel: &Channel, have_epoch: u64) -> Result<Option<Layout>, Status> {
    let mut request = Request::new(GetLayoutRequest { have_epoch });
    request.set_timeout(FETCH_TIMEOUT);
    let mut client = location(channel.clone());
    let response = channel::within(FETCH_TIMEOUT, client.get_layout(request)).await?.into_inner();
    match response.layout {
        Some(layout) => convert::layout(layout).map(Some).map_err(|e| Status::internal(e.to_string())),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::layout::tests::ring_of;
    use futures_util::poll;
    use std::net::TcpListener;
    use std::pin::pin;
    use std::task::Poll;
    use tokio::task::unconstrained;

    #[tokio::test]
    async fn large_requests_take_the_places_of_several() {
        let check = async |node: &Node, bytes, brings, most: usize| {
            let mut places = Vec::new();
            while let Poll::Ready((_, place)) = poll!(pin!(unconstrained(node.place(bytes, brings)))) {
                places.push(place);
            }
            assert_eq!(places.len(), most, "{bytes} {brings}");
            let size = REQUEST_BYTES + bytes + usize::from(brings) * node.found.load(Ordering::Relaxed);
            assert!(most * size <= MAX_CONNECTION_BYTES);
        };
        let node = Node::new(&"127.0.0.1:1".parse().unwrap(), 1);
        check(&node, 100, false, 256).await;
        check(&node, MAX_VALUE_BYTES + 100, false, 28).await;
        check(&node, 100, true, 28).await;
        (0..100).for_each(|_| node.brought(50));
        check(&node, 100, true, 256).await;
        node.brought(500_000);
        check(&node, 100, true, 64).await;
    }

    #[tokio::test]
    async fn only_who_is_sent_something_is_probed() {
        let silent = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let seeds = silent.each_ref().map(|silent| Address::from(silent.local_addr().unwrap()));
        let mut ring = Ring::new(seeds.to_vec(), 1, ring_of(1, 1, 4));
        ring.started -= Duration::from_secs(1);
        let [first, second] = seeds.map(|seed| ring.node(&seed));
        for node in [&first, &second] {
            node.judge(|shun| Some(shun.failed(0)));
        }
        assert!(poll!(pin!(ring.fetch(2))).is_pending());
        assert!(!ring.may_ask(&first), "it is being asked");
        assert!(ring.may_ask(&second), "its turn has not come");
    }
}
