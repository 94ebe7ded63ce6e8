//! The Rust client: finds a node, learns the layout, and goes straight to a key's owner.
//!
//! A client holds one layout and some connections per node. A request goes to the key's first
//! coordinator; every reply carries the epoch, and where that is newer the client fetches the
//! layout in the background, while the reply is handed back. A request that can't go on without
//! a newer layout waits for that same fetch, for no longer than it has time. If the owner can't be
//! reached at all, any other node is as good, since every node forwards.
//!
//! A node that let a request run out of time is shunned for a few seconds, and one that could not be
//! reached for a short time that grows with each failure; then one request finds out whether it is
//! back. So a node that hangs or is gone costs each client one request and not a share of all.
//!
//! What is safe to try again is tried again here, with another node first, and within the caller's
//! time: a request of which nothing was done, and any read. A write whose outcome is unknown is
//! handed back as such ([`ClientError::OutcomeUnknown`]): sending it again would make a second
//! version of one request, and only the caller knows whether it minds.

mod batch;
mod calls;
mod routes;
mod scan;
mod shun;

pub use batch::{Done, Item};
pub use scan::{Scan, ScanOptions, Scanned};

use crate::core::layout::{Kind, Layout};
use crate::core::node::{Address, NodeId};
use crate::core::quorum::Consistency;
use crate::core::record::Version;
use crate::core::ttl::Ttl;
use crate::wire::channel::{self, LOOPBACK_PORTS};
use crate::wire::location::location_client::LocationClient;
use crate::wire::location::{self as pb, ProbeRequest};
use crate::wire::store::store_client::StoreClient;
use crate::wire::store::{DeleteRequest, GetRequest, GetResponse, Options, PutRequest};
use crate::wire::{MAX_MESSAGE_BYTES, convert};
use bytes::Bytes;
use calls::{Op, never_sent, retryable};
use routes::{Refresher, Ring, fetch_layout};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;
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
    /// knows no layout. Slower, since most are then forwarded; but reads at ONE of keys that are read all
    /// the time are then answered by all nodes, each from its cache.
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
    /// A node has more to do than it can, or the disks are full. Nothing was done; it may be sent
    /// again later, and not at once, which would add to the load.
    #[error("{0}")]
    Exhausted(String),
    /// A write may have happened or not. Read before writing again, if that matters.
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(String),
    /// Something else, as the server put it.
    #[error("{0}")]
    Refused(String),
}

impl ClientError {
    /// Of a request that changes nothing: however it ended, nothing was done.
    fn of_read(status: Status) -> Self {
        match status.into() {
            ClientError::OutcomeUnknown(message) => ClientError::Unavailable(message),
            other => other,
        }
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::InvalidArgument | Code::OutOfRange => ClientError::Invalid(message),
            // Nothing was done: it was turned away, says so, or never left.
            Code::ResourceExhausted => ClientError::Exhausted(message),
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

/// How a value is to be put, and what is to be kept beside it. The default is nothing, and for ever.
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    /// How many owners must have it, if not as many as the client's requests usually ask for.
    pub consistency: Option<Consistency>,
    /// For how long the value is to be kept; `None` = for ever.
    pub ttl: Option<Ttl>,
    /// What kind of bytes the value is (a MIME type), at most 255 bytes.
    pub content_type: String,
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
    /// When it expires, in milliseconds since 1970; `None` = never.
    pub expires_at_ms: Option<u64>,
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

/// See the module's documentation. Cheap to share behind an `Arc`; all methods take `&self`. What
/// it does in the background ends with it.
pub struct Client {
    config: ClientConfig,
    ring: Arc<Ring>,
    refresher: Refresher,
    turn: AtomicUsize,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Finds the nodes of a ring on this machine. Without a name, there must be one ring only.
pub async fn find_on_loopback(kind: Kind, ring_name: Option<&str>) -> Result<Vec<Address>, ClientError> {
    let found = channel::scan_loopback(kind, ring_name.unwrap_or_default(), None).await;
    let addresses = members_of_one(&found, kind, ring_name, "this machine")?;
    if addresses.is_empty() {
        let program = program(kind);
        return Err(ClientError::NoNode(format!(
            "no node found on 127.0.0.1, ports {} to {}: start one with `{program}`, or say where one is with --peer HOST:PORT",
            LOOPBACK_PORTS.start(),
            LOOPBACK_PORTS.end()
        )));
    }
    Ok(addresses)
}

/// What starts a node of this kind.
pub(crate) fn program(kind: Kind) -> &'static str {
    match kind {
        Kind::Store => "storeserver",
        Kind::Location => "location",
    }
}

/// Where the members of the ring that is meant are, of all who answered in this place. Without a name,
/// there must be one ring only.
pub(crate) fn members_of_one(
    found: &[pb::ProbeResponse],
    kind: Kind,
    ring_name: Option<&str>,
    place: &str,
) -> Result<Vec<Address>, ClientError> {
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
            "several rings on {place} ({names}): choose one with --peer HOST:PORT"
        )));
    }
    Ok(members.iter().filter_map(|r| r.address.parse().ok()).collect())
}

impl Client {
    /// Connects to a ring by any of its nodes, and learns its layout.
    pub async fn connect(seeds: Vec<Address>, config: ClientConfig) -> Result<Self, ClientError> {
        let mut last = ClientError::NoNode("no address given".into());
        for seed in &seeds {
            match fetch_layout(&channel::lazy(seed), 0).await {
                Ok(Some(layout)) => {
                    let ring = Arc::new(Ring::new(seeds, config.connections, layout));
                    return Ok(Client {
                        config,
                        ring,
                        refresher: Refresher::default(),
                        turn: AtomicUsize::new(0),
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
        self.ring.layout()
    }

    /// Stores a value under a key.
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Written, ClientError> {
        self.put_with(key, value, PutOptions::default()).await
    }

    /// Stores a value under a key, with more to be said of it.
    pub async fn put_with(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: PutOptions,
    ) -> Result<Written, ClientError> {
        let request = self.put_request(key.into(), value.into(), options);
        let key = request.key.clone();
        let response =
            self.call(&key, Op::Write, request, |channel, request| async move {
                store(channel).put(request).await
            })
            .await?;
        self.seen(response.epoch);
        Ok(written(response.version, response.consistency))
    }

    /// The value under a key, if there is one.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Found>, ClientError> {
        let key = key.into();
        let request = GetRequest { key: key.clone(), options: self.options(), local: false };
        let result =
            self.call(&key, Op::Read, request, |channel, request| async move {
                store(channel).get(request).await
            })
            .await;
        self.got(result)
    }

    /// What one node holds itself under a key, as an owner of it. Nobody else is asked.
    pub async fn get_local(
        &self,
        node: &Address,
        key: impl Into<Bytes>,
    ) -> Result<Option<Found>, ClientError> {
        let request = GetRequest { key: key.into(), options: None, local: true };
        let request = self.request(request, self.config.timeout);
        let answer = channel::within(self.config.timeout, self.store_at(node).get(request)).await;
        self.got(answer.map(tonic::Response::into_inner))
    }

    fn got(&self, result: Result<GetResponse, Status>) -> Result<Option<Found>, ClientError> {
        match result {
            Ok(response) => {
                self.seen(response.epoch);
                Ok(Some(found(response)))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(ClientError::of_read(status)),
        }
    }

    /// Deletes a key.
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Written, ClientError> {
        let key = key.into();
        let request = DeleteRequest { key: key.clone(), options: self.options() };
        let response =
            self.call(&key, Op::Write, request, |channel, request| async move {
                store(channel).delete(request).await
            })
            .await?;
        self.seen(response.epoch);
        Ok(written(response.version, response.consistency))
    }

    /// How the ring and its nodes are doing, as any reachable node sees it.
    pub async fn status(&self) -> Result<pb::StatusResponse, ClientError> {
        let mut last = ClientError::NoNode("no node of the ring can be reached".into());
        for address in self.addresses() {
            let mut client = location(self.ring.node(&address).channel());
            match client.status(self.request(pb::StatusRequest { local: false }, self.config.timeout)).await {
                Ok(response) => {
                    let status = response.into_inner();
                    self.seen(status.epoch);
                    return Ok(status);
                }
                Err(status) => last = ClientError::of_read(status),
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
            let mut client = location(self.ring.node(&address).channel());
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
        Ok(location(self.ring.node(&member.address).channel()))
    }

    /// A location client for the service at one address.
    pub fn location_at(&self, address: &Address) -> LocationClient<Channel> {
        location(self.ring.node(address).channel())
    }

    /// A store client for the service at one address, for what is asked of a node and not of the ring.
    pub fn store_at(&self, address: &Address) -> StoreClient<Channel> {
        store(self.ring.node(address).channel())
    }

    /// All addresses worth trying: those the client was given first, then the members'.
    pub fn addresses(&self) -> Vec<Address> {
        self.ring.addresses()
    }

    fn put_request(&self, key: Bytes, value: Bytes, options: PutOptions) -> PutRequest {
        let PutOptions { consistency, ttl, content_type } = options;
        let wanted =
            |wanted| Options { consistency: convert::consistency_to(wanted), fallback_to_one: false };
        let options = consistency.map(wanted).or(self.options());
        PutRequest { key, value, options, content_type, ttl_ms: ttl.map(Ttl::as_ms) }
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
}

fn written(version: Option<crate::wire::store::Version>, consistency: i32) -> Written {
    Written { version: convert::version(version), consistency: achieved(consistency) }
}

pub(crate) fn found(response: GetResponse) -> Found {
    Found {
        value: response.value,
        version: convert::version(response.version),
        content_type: response.content_type,
        expires_at_ms: response.expires_at_ms,
        consistency: achieved(response.consistency),
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
