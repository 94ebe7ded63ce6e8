//! The Rust client: finds a node, learns the layout, and goes straight to a key's owner.
//!
//! A client holds one layout and some connections per node. A request goes to the key's first
//! coordinator; every reply carries the epoch, and where that is newer the client fetches the
//! layout in the background of the next request. If the owner can't be reached at all, any other
//! node is as good, since every node forwards.
//!
//! A node that let a request run out of time is shunned for a few seconds, so that one that hangs
//! costs each client one request and not a share of all.
//!
//! What is safe to try again is tried again here: a request of which nothing was done. A request
//! whose outcome is unknown is handed back as such ([`ClientError::OutcomeUnknown`]): sending it
//! again would make a second version of one request, and only the caller knows whether it minds.

use crate::core::layout::{Kind, Layout, Phase};
use crate::core::node::{Address, NodeId};
use crate::core::quorum::Consistency;
use crate::core::record::Version;
use crate::wire::channel::{self, LOOPBACK_PORTS};
use crate::wire::location::location_client::LocationClient;
use crate::wire::location::{self as pb, GetLayoutRequest, ProbeRequest};
use crate::wire::store::store_client::StoreClient;
use crate::wire::store::{DeleteRequest, GetRequest, Options, PutRequest};
use crate::wire::{MAX_MESSAGE_BYTES, convert};
use arc_swap::ArcSwap;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// How a client behaves. The defaults suit programs; the tools set `fallback_to_one`.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// How many owners must answer. More is safer and slower.
    pub consistency: Consistency,
    /// Where no quorum is up, be content with one owner: available for longer, perhaps stale.
    pub fallback_to_one: bool,
    /// How long a request may take, tries and all.
    pub timeout: Duration,
    /// Connections per node. One carries some ten thousand requests a second; more spread the
    /// work over more cores.
    pub connections: usize,
    /// Send requests to all nodes in turn rather than to the key's owner, as a client would that
    /// knows no layout. Slower, since most are then forwarded; made for measuring that.
    pub any_node: bool,
}

impl Default for ClientConfig {
    fn default() -> Self {
        ClientConfig {
            consistency: Consistency::Quorum,
            fallback_to_one: false,
            timeout: Duration::from_secs(2),
            connections: 1,
            any_node: false,
        }
    }
}

/// Why a request did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody was found. Nothing was done; start a node, or say where one is.
    #[error("{0}")]
    NoNode(String),
    /// The request is wrong, and would be wrong again. Nothing was done.
    #[error("{0}")]
    Invalid(String),
    /// The ring can't do it now. Nothing was done; it may be sent again later.
    #[error("{0}")]
    Unavailable(String),
    /// It may have happened or not. Read before writing again, if that matters.
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(String),
    /// Something else, as the server put it.
    #[error("{0}")]
    Refused(String),
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::InvalidArgument | Code::OutOfRange => ClientError::Invalid(message),
            // Nothing was done: it was turned away, says so, or never left.
            Code::ResourceExhausted => ClientError::Unavailable(message),
            Code::Unavailable if retryable(&status) || never_sent(&status) => {
                ClientError::Unavailable(message)
            }
            Code::PermissionDenied | Code::FailedPrecondition | Code::NotFound | Code::Unimplemented => {
                ClientError::Refused(message)
            }
            _ => ClientError::OutcomeUnknown(message),
        }
    }
}

/// What a put or delete achieved.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Of the record stored.
    pub version: Version,
    /// How many owners hold it for sure.
    pub consistency: Consistency,
}

/// What a get found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The value.
    pub value: Bytes,
    /// Of the record.
    pub version: Version,
    /// As its writer said; may be empty.
    pub content_type: String,
    /// How many owners agreed on it.
    pub consistency: Consistency,
}

/// What a removal did.
#[derive(Clone, Debug)]
pub struct Removed {
    /// The epoch at which it was asked for.
    pub epoch: u64,
    /// With force: everybody who was dropped.
    pub dropped: Vec<NodeId>,
}

/// For how long a node that let a request run out of time is asked only if no other is left: about
/// what the ring itself takes to see that it hangs.
const SHUN_MS: u64 = 3_000;

struct Node {
    address: Address,
    channels: Vec<Channel>,
    next: AtomicUsize,
    /// Until when it is shunned, in milliseconds since the client was made.
    shunned_until: AtomicU64,
}

impl Node {
    fn new(address: &Address, connections: usize) -> Self {
        let channels = (0..connections.max(1)).map(|_| channel::lazy(address)).collect();
        Node {
            address: address.clone(),
            channels,
            next: AtomicUsize::new(0),
            shunned_until: AtomicU64::new(0),
        }
    }

    fn channel(&self) -> Channel {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        self.channels[at].clone()
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

/// See the module's documentation. Cheap to share behind an `Arc`; all methods take `&self`.
pub struct Client {
    config: ClientConfig,
    seeds: Vec<Address>,
    routes: ArcSwap<Routes>,
    nodes: Mutex<HashMap<Address, Arc<Node>>>,
    turn: AtomicUsize,
    started: Instant,
    refreshing: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("config", &self.config)
            .field("seeds", &self.seeds)
            .finish_non_exhaustive()
    }
}

/// Finds the nodes of a ring on this machine. Without a name, there must be one ring only.
pub async fn find_on_loopback(kind: Kind, ring_name: Option<&str>) -> Result<Vec<Address>, ClientError> {
    let found = channel::scan_loopback(kind, ring_name.unwrap_or_default(), None).await;
    let fits = |r: &&pb::ProbeResponse| {
        r.kind == convert::kind_to(kind)
            && r.stage() == pb::Stage::Member
            && ring_name.is_none_or(|name| name == r.ring_name)
    };
    let members: Vec<_> = found.iter().filter(fits).collect();
    let mut names: Vec<_> = members.iter().map(|r| (r.ring_name.as_str(), &r.ring_id)).collect();
    names.sort();
    names.dedup();
    if names.len() > 1 {
        let names: Vec<_> = names.into_iter().map(|(name, _)| name).collect();
        let names = names.join(", ");
        return Err(ClientError::Invalid(format!(
            "several rings on this machine ({names}): choose one with --peer HOST:PORT"
        )));
    }
    let addresses: Vec<Address> = members.iter().filter_map(|r| r.address.parse().ok()).collect();
    if addresses.is_empty() {
        let program = if kind == Kind::Store { "storeserver" } else { "location" };
        return Err(ClientError::NoNode(format!(
            "no node found on 127.0.0.1, ports {} to {}: start one with `{program}`, or say where one is with --peer HOST:PORT",
            LOOPBACK_PORTS.start(),
            LOOPBACK_PORTS.end()
        )));
    }
    Ok(addresses)
}

impl Client {
    /// Connects to a ring by any of its nodes, and learns its layout.
    pub async fn connect(seeds: Vec<Address>, config: ClientConfig) -> Result<Self, ClientError> {
        let mut last = ClientError::NoNode("no address given".into());
        for seed in &seeds {
            match fetch_layout(&channel::lazy(seed), 0).await {
                Ok(Some(layout)) => {
                    return Ok(Client {
                        config,
                        seeds,
                        routes: ArcSwap::new(Routes::new(layout)),
                        nodes: Mutex::default(),
                        turn: AtomicUsize::new(0),
                        started: Instant::now(),
                        refreshing: tokio::sync::Mutex::new(()),
                    });
                }
                Ok(None) => last = ClientError::Unavailable(format!("{seed} has no layout yet")),
                Err(status) => last = ClientError::NoNode(unreachable_message(seed, &status).await),
            }
        }
        Err(last)
    }

    /// Connects to the ring on this machine.
    pub async fn connect_on_loopback(config: ClientConfig) -> Result<Self, ClientError> {
        Client::connect(find_on_loopback(Kind::Store, None).await?, config).await
    }

    /// The layout that this client routes by.
    pub fn layout(&self) -> Arc<Layout> {
        self.routes.load().layout.clone()
    }

    /// Stores a value under a key.
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Written, ClientError> {
        let (key, value) = (key.into(), value.into());
        let request =
            PutRequest { key: key.clone(), value, options: self.options(), content_type: String::new() };
        let response = self
            .call(&key, request, |channel, request| async move { store(channel).put(request).await })
            .await?;
        self.seen(response.epoch).await;
        Ok(Written {
            version: convert::version(response.version),
            consistency: achieved(response.consistency),
        })
    }

    /// The value under a key, if there is one.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Found>, ClientError> {
        let key = key.into();
        let request = GetRequest { key: key.clone(), options: self.options() };
        let result = self
            .call(&key, request, |channel, request| async move { store(channel).get(request).await })
            .await;
        match result {
            Ok(response) => {
                self.seen(response.epoch).await;
                Ok(Some(Found {
                    value: response.value,
                    version: convert::version(response.version),
                    content_type: response.content_type,
                    consistency: achieved(response.consistency),
                }))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    /// Deletes a key.
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Written, ClientError> {
        let key = key.into();
        let request = DeleteRequest { key: key.clone(), options: self.options() };
        let response = self
            .call(&key, request, |channel, request| async move { store(channel).delete(request).await })
            .await?;
        self.seen(response.epoch).await;
        Ok(Written {
            version: convert::version(response.version),
            consistency: achieved(response.consistency),
        })
    }

    /// How the ring and its nodes are doing, as any reachable node sees it.
    pub async fn status(&self) -> Result<pb::StatusResponse, ClientError> {
        let mut last = ClientError::NoNode("no node of the ring can be reached".into());
        for address in self.addresses() {
            let mut client = location(self.node(&address).channel());
            match client.status(self.request(pb::StatusRequest { local: false }, self.config.timeout)).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => last = status.into(),
            }
        }
        Err(last)
    }

    /// Stops a member. It keeps its data and stays a member.
    pub async fn shutdown(&self, id: NodeId) -> Result<(), ClientError> {
        let mut client = self.member(id)?;
        client.shutdown(self.request(pb::ShutdownRequest {}, self.config.timeout)).await?;
        Ok(())
    }

    /// Has a member hand its keys over and leave the ring.
    pub async fn leave(&self, id: NodeId) -> Result<(), ClientError> {
        let mut client = self.member(id)?;
        client.leave(self.request(pb::LeaveRequest {}, self.config.timeout)).await?;
        Ok(())
    }

    /// Has the ring drop a member that is down, on the word of any node that can be reached. With
    /// `force` it is dropped even though its data can't be gathered.
    pub async fn remove(&self, id: NodeId, force: bool) -> Result<Removed, ClientError> {
        let mut last = ClientError::NoNode("no node of the ring can be reached".into());
        for address in self.addresses() {
            let message = pb::RemoveRequest { id: convert::id_bytes(id.0), force };
            let mut client = location(self.node(&address).channel());
            match client.remove(self.request(message, self.config.timeout)).await {
                Ok(response) => {
                    let pb::RemoveResponse { epoch, dropped } = response.into_inner();
                    let dropped = dropped.iter().filter_map(|id| convert::node_id(id).ok()).collect();
                    return Ok(Removed { epoch, dropped });
                }
                Err(status) if never_sent(&status) => last = status.into(),
                Err(status) => return Err(status.into()),
            }
        }
        Err(last)
    }

    fn member(&self, id: NodeId) -> Result<LocationClient<Channel>, ClientError> {
        let layout = self.layout();
        let member = layout
            .member(id)
            .ok_or_else(|| ClientError::Invalid(format!("{id} is no member of the ring")))?;
        Ok(location(self.node(&member.address).channel()))
    }

    /// A location client for the service at one address.
    pub fn location_at(&self, address: &Address) -> LocationClient<Channel> {
        location(self.node(address).channel())
    }

    /// All addresses worth trying: those the client was given first, then the members'.
    pub fn addresses(&self) -> Vec<Address> {
        let mut all = self.seeds.clone();
        for member in &self.layout().members {
            if !all.contains(&member.address) {
                all.push(member.address.clone());
            }
        }
        all
    }

    fn options(&self) -> Option<Options> {
        Some(Options {
            consistency: convert::consistency_to(self.config.consistency),
            fallback_to_one: self.config.fallback_to_one,
        })
    }

    fn request<T>(&self, message: T, timeout: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        request
    }

    fn node(&self, address: &Address) -> Arc<Node> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = nodes.get(address) {
            return node.clone();
        }
        let node = Arc::new(Node::new(address, self.config.connections));
        nodes.insert(address.clone(), node.clone());
        node
    }

    /// Whom a request for a key goes to first.
    fn coordinator(&self, key: &[u8]) -> Arc<Node> {
        let routes = self.routes.load();
        let member = if self.config.any_node {
            self.turn.fetch_add(1, Ordering::Relaxed) % routes.nodes.len()
        } else {
            routes.coordinator(key)
        };
        routes.nodes[member].get_or_init(|| self.node(&routes.layout.members[member].address)).clone()
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

    /// Sends a request to the key's coordinators in turn, then to anybody, for as long as nothing
    /// was done and there is time.
    async fn call<Q: Clone, A, F>(
        &self,
        key: &[u8],
        message: Q,
        send: impl Fn(Channel, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let deadline = Instant::now() + self.config.timeout;
        let mut first = self.coordinator(key);
        if self.is_shunned(&first) {
            let others = self.route(key).into_iter().map(|address| self.node(&address));
            first = others.into_iter().find(|node| !self.is_shunned(node)).unwrap_or(first);
        }
        match send(first.channel(), self.request(message.clone(), self.config.timeout)).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) if never_sent(&status) => {
                let others =
                    self.route(key).into_iter().filter(|address| *address != first.address).collect();
                Box::pin(self.call_again(
                    key,
                    message,
                    send,
                    deadline,
                    others,
                    explained(status, &first.address),
                ))
                .await
            }
            Err(status) if retryable(&status) => {
                Box::pin(self.call_again(key, message, send, deadline, Vec::new(), status)).await
            }
            Err(status) => {
                if timed_out_here(&status) {
                    first.shunned_until.store(self.elapsed_ms() + SHUN_MS, Ordering::Relaxed);
                }
                Err(explained(status, &first.address))
            }
        }
    }

    fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn is_shunned(&self, node: &Node) -> bool {
        let until = node.shunned_until.load(Ordering::Relaxed);
        until > 0 && self.elapsed_ms() < until
    }

    /// The rest of [`Client::call`] after a first try that did nothing and ended with `last`:
    /// first `round` is asked, then everybody, again and again. It is boxed by its callers, so that
    /// the usual future stays small.
    async fn call_again<Q: Clone, A, F>(
        &self,
        key: &[u8],
        message: Q,
        send: impl Fn(Channel, Request<Q>) -> F,
        deadline: Instant,
        mut round: Vec<Address>,
        mut last: Status,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let mut pause = Duration::from_millis(10);
        loop {
            for address in &round {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(last);
                }
                match send(self.node(address).channel(), self.request(message.clone(), left)).await {
                    Ok(response) => return Ok(response.into_inner()),
                    Err(status) if never_sent(&status) => last = explained(status, address),
                    Err(status) if retryable(&status) => {
                        last = status;
                        break;
                    }
                    Err(status) => return Err(explained(status, address)),
                }
            }
            if Instant::now() + pause >= deadline {
                return Err(last);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
            self.refresh(None).await;
            round = self.route(key);
        }
    }

    /// A reply named an epoch: fetch the layout if it is newer than this client's.
    async fn seen(&self, epoch: u64) {
        if epoch > self.routes.load().layout.epoch {
            self.refresh(Some(epoch)).await;
        }
    }

    async fn refresh(&self, wanted: Option<u64>) {
        let _one_at_a_time = self.refreshing.lock().await;
        let have = self.routes.load().layout.epoch;
        if wanted.is_some_and(|epoch| epoch <= have) {
            return;
        }
        // Without a wanted epoch something failed: the layout may be the same, but a member may have
        // moved to another address, which the layout then says.
        let (have, enough) = wanted.map_or((0, have), |epoch| (have, epoch));
        for address in self.addresses() {
            match fetch_layout(&self.node(&address).channel(), have).await {
                Ok(Some(layout)) if layout.epoch >= enough => return self.routes.store(Routes::new(layout)),
                Ok(_) | Err(_) => {}
            }
        }
    }
}

fn achieved(number: i32) -> Consistency {
    convert::consistency(number).unwrap_or(Consistency::One)
}

fn store(channel: Channel) -> StoreClient<Channel> {
    StoreClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn location(channel: Channel) -> LocationClient<Channel> {
    LocationClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// The connection could not even be made.
fn never_sent(status: &Status) -> bool {
    crate::wire::status::never_connected(status)
}

/// No answer came in time: this side says so, not a node.
fn timed_out_here(status: &Status) -> bool {
    let made_here = std::error::Error::source(status).is_some();
    made_here && matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded)
}

/// A status that this side made, because no answer came, says in words of its own who gave none.
fn explained(status: Status, address: &Address) -> Status {
    if std::error::Error::source(&status).is_none() {
        return status;
    }
    let message = match status.code() {
        _ if never_sent(&status) => format!("can't connect to {address}"),
        Code::Cancelled | Code::DeadlineExceeded => format!("{address} did not answer in time"),
        _ => format!("the connection to {address} broke"),
    };
    Status::new(status.code(), message)
}

/// The server says that nothing was done.
fn retryable(status: &Status) -> bool {
    status.code() == Code::Unavailable && crate::wire::status::nothing_done(status)
}

async fn fetch_layout(channel: &Channel, have_epoch: u64) -> Result<Option<Layout>, Status> {
    let mut request = Request::new(GetLayoutRequest { have_epoch });
    request.set_timeout(Duration::from_secs(1));
    let response = location(channel.clone()).get_layout(request).await?.into_inner();
    match response.layout {
        Some(layout) => convert::layout(layout).map(Some).map_err(|e| Status::internal(e.to_string())),
        None => Ok(None),
    }
}

/// Says what is at an address that did not give its layout.
async fn unreachable_message(address: &Address, status: &Status) -> String {
    match channel::probe(address, ProbeRequest::default()).await {
        Ok(answer) if answer.stage() != pb::Stage::Member => {
            format!("the node at {address} is not yet part of a ring: try again in a moment")
        }
        Ok(_) => format!("the node at {address} did not give its layout: {}", status.message()),
        Err(_) if never_sent(status) => format!("nobody listens at {address}: is a node running there?"),
        Err(_) => format!("what listens at {address} does not speak thrifty's protocol, or does not answer"),
    }
}
