//! The gRPC services `Location` and `LocationPeer`: checks what comes from outside, hands it to the
//! agent, and answers what can be read off without it.

use super::agent::Event;
use super::peers::Reply;
use super::{Holdings, Location, Stage, wall_ms};
use crate::core::layout::{Layout, Member, Phase, Standing};
use crate::core::membership::Message;
use crate::core::node::{Address, Liveness, NodeId, RingId};
use crate::core::token::Token;
use crate::wire::convert::{self, Malformed, id_bytes};
use crate::wire::location as pb;
use crate::wire::location::location_peer_server::{LocationPeer, LocationPeerServer};
use crate::wire::location::location_server::{Location as LocationApi, LocationServer};
use crate::wire::{MAX_MESSAGE_BYTES, status};
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

/// How long another node may take to say what it holds before the answer goes out without it.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);

/// How many other seekers a seeker remembers: the loopback range and then some.
const MAX_SEEKERS: usize = 64;

impl From<Malformed> for Status {
    fn from(error: Malformed) -> Self {
        Status::invalid_argument(error.to_string())
    }
}

/// The service for clients.
pub fn location_service(location: Location) -> LocationServer<Service> {
    LocationServer::new(Service { location })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// The service for the ring's own nodes.
pub fn peer_service(location: Location) -> LocationPeerServer<Service> {
    LocationPeerServer::new(Service { location })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Service {
    location: Location,
}

impl Service {
    fn layout(&self) -> Result<Arc<Layout>, Status> {
        self.location.layout().ok_or_else(|| status::unavailable("this node is not yet part of a ring"))
    }

    /// The layout, if the caller means this ring. To a caller that goes by a former id of it, the
    /// error says that it has been succeeded, and it may pull the layout that succeeds.
    fn same_ring(&self, ring_id: &[u8]) -> Result<Arc<Layout>, Status> {
        let layout = self.layout()?;
        let theirs: RingId = convert::ring_id(ring_id)?;
        if theirs == layout.ring {
            return Ok(layout);
        }
        if layout.succeeds(theirs) {
            return Err(Status::out_of_range(format!(
                "ring {} goes on as {:.8} after a forced removal that the caller has missed",
                layout.name, layout.ring
            )));
        }
        Err(Status::failed_precondition(format!(
            "this node is in ring {} (id {:.8}), the caller in one of id {theirs:.8}: rings never merge",
            layout.name, layout.ring
        )))
    }

    /// The layout, if the caller means this ring by any of its ids, or gives none.
    fn same_or_former_ring(&self, ring_id: &[u8]) -> Result<Arc<Layout>, Status> {
        let layout = self.layout()?;
        match ring_id.is_empty() || layout.succeeds(convert::ring_id(ring_id)?) {
            true => Ok(layout),
            false => self.same_ring(ring_id),
        }
    }

    async fn tell(&self, event: Event) -> Result<(), Status> {
        self.location
            .shared
            .events
            .send(event)
            .await
            .map_err(|_error| status::unavailable("this node is stopping"))
    }

    /// A member with the address that it last said itself: in the layout there is only a hint.
    fn whereabouts(&self, mut member: pb::Member) -> pb::Member {
        let id = convert::node_id(&member.id).ok();
        if let Some(address) = id.and_then(|id| self.location.address_of(id)) {
            member.address = address.to_string();
        }
        member
    }

    /// A layout with the addresses at which its members can be reached now.
    fn for_clients(&self, layout: &Layout) -> pb::Layout {
        let mut layout = convert::layout_to(layout);
        layout.members = layout.members.into_iter().map(|member| self.whereabouts(member)).collect();
        layout
    }

    fn me_bytes(&self) -> bytes::Bytes {
        id_bytes(self.location.me().0)
    }

    /// Puts a message to the agent and waits for its answer.
    async fn ask(&self, from: NodeId, message: Message) -> Result<Reply, Status> {
        let (reply, answer) = oneshot::channel();
        self.tell(Event::Message(from, message, Some(reply))).await?;
        answer.await.map_err(|_error| status::unavailable("this node is stopping"))
    }

    fn node_status(&self, layout: &Layout, member: &Member, segments: usize) -> pb::NodeStatus {
        let shared = &self.location.shared;
        let members = shared.members.load();
        let mut entry = pb::NodeStatus {
            id: id_bytes(member.id.0),
            address: self.location.address_of(member.id).unwrap_or(member.address.clone()).to_string(),
            state: (match (self.location.liveness(member.id), member.standing) {
                (Liveness::Down, _) => pb::NodeState::Down,
                (Liveness::Suspect, _) => pb::NodeState::Suspect,
                (Liveness::Up, Standing::Joining) => pb::NodeState::Joining,
                (Liveness::Up, Standing::Leaving) => pb::NodeState::Leaving,
                (Liveness::Up, Standing::Staying) => pb::NodeState::Up,
            })
            .into(),
            segments: segments as u32,
            last_heard_ms: members.last_heard(member.id).map(|at| at.elapsed().as_millis() as u64),
            zone: member.zone.clone(),
            weight: member.weight,
            durable: member.durable,
            ..Default::default()
        };
        if member.id == shared.me {
            let Holdings { keys, bytes } =
                shared.holdings.0.upgrade().and_then(|host| host.holdings()).unwrap_or_default();
            entry.keys = Some(keys);
            entry.bytes = Some(bytes);
            entry.last_heard_ms = Some(0);
            entry.clock_ms = Some(wall_ms());
            entry.skew_ms = Some(0);
            if let (Phase::Dual, Some(progress)) = (layout.phase, &*shared.progress.load()) {
                entry.pulled = progress.done.load(Ordering::Relaxed) as u32;
                entry.to_pull = progress.total.load(Ordering::Relaxed) as u32;
            }
        }
        entry
    }

    /// Asks a node what it says of itself.
    async fn ask_status(&self, member: &Member) -> Option<pb::NodeStatus> {
        let address = self.location.address_of(member.id)?;
        let channel = self.location.shared.peers.channel(&address);
        let mut client = pb::location_client::LocationClient::new(channel);
        let mut request = Request::new(pb::StatusRequest { local: true });
        request.set_timeout(ASK_TIMEOUT);
        let asked = wall_ms();
        let answer = tokio::time::timeout(ASK_TIMEOUT, client.status(request)).await.ok()?.ok()?;
        let half_way = asked.midpoint(wall_ms());
        let mut nodes = answer.into_inner().nodes.into_iter();
        let mut node = nodes.find(|node| node.id == id_bytes(member.id.0))?;
        node.skew_ms = node.clock_ms.map(|theirs| theirs.wrapping_sub(half_way).cast_signed());
        Some(node)
    }

    fn check_join(&self, request: &pb::JoinRequest) -> Result<Arc<Layout>, Status> {
        let layout = self.layout()?;
        let refuse = |why: String| Err(Status::failed_precondition(why));
        if request.ring_name != layout.name {
            return refuse(format!(
                "this is ring {:?}, not {:?}: give --ring {:?}",
                layout.name, request.ring_name, layout.name
            ));
        }
        if convert::kind(request.kind)? != layout.kind {
            let kind = layout.kind.name();
            return refuse(format!(
                "ring {:?} is of {kind} nodes: location and store nodes are never in one ring",
                layout.name
            ));
        }
        self.same_or_former_ring(&request.ring_id)?;
        let settings = request.settings.unwrap_or_default();
        let replicas = convert::replicas_to(layout.replicas);
        if settings.replicas.is_some_and(|asked| asked != replicas) {
            let has = if replicas == 0 { "all".to_owned() } else { replicas.to_string() };
            return refuse(format!(
                "ring {:?} was made with --replicas {has}, which can't be changed: leave the option out",
                layout.name
            ));
        }
        let segments = layout.segments.get();
        if settings.segments.is_some_and(|asked| asked as usize != segments) {
            return refuse(format!(
                "ring {:?} was made with --segments {segments}, which can't be changed: leave the option out",
                layout.name
            ));
        }
        Ok(layout)
    }
}

#[tonic::async_trait]
impl LocationApi for Service {
    async fn get_layout(
        &self,
        request: Request<pb::GetLayoutRequest>,
    ) -> Result<Response<pb::GetLayoutResponse>, Status> {
        let layout = self.layout()?;
        let newer = layout.epoch > request.into_inner().have_epoch;
        Ok(Response::new(pb::GetLayoutResponse {
            epoch: layout.epoch,
            layout: newer.then(|| self.for_clients(&layout)),
        }))
    }

    async fn locate(
        &self,
        request: Request<pb::LocateRequest>,
    ) -> Result<Response<pb::LocateResponse>, Status> {
        let layout = self.layout()?;
        let key = request.into_inner().key;
        convert::key(&key)?;
        let token = Token::of(&key);
        let segment = layout.segments.segment(token);
        let owners = layout.read_owners(segment).into_iter().filter_map(|id| layout.member(id));
        Ok(Response::new(pb::LocateResponse {
            token: id_bytes(token.0),
            segment: segment.0.into(),
            owners: owners.map(|member| self.whereabouts(convert::member_to(member))).collect(),
            epoch: layout.epoch,
        }))
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let layout = self.layout()?;
        let me = self.location.me();
        let own = layout.members.iter().zip(layout.shares());
        let mut nodes: Vec<pb::NodeStatus> =
            own.map(|(member, segments)| self.node_status(&layout, member, segments)).collect();
        if !request.into_inner().local {
            let others: Vec<&Member> = layout
                .members
                .iter()
                .filter(|m| m.id != me && self.location.liveness(m.id) != Liveness::Down)
                .collect();
            let answers = futures_util::future::join_all(others.iter().map(|m| self.ask_status(m))).await;
            for answer in answers.into_iter().flatten() {
                if let Some(node) = nodes.iter_mut().find(|node| node.id == answer.id) {
                    node.keys = answer.keys;
                    node.bytes = answer.bytes;
                    node.pulled = answer.pulled;
                    node.to_pull = answer.to_pull;
                    node.clock_ms = answer.clock_ms;
                    node.skew_ms = answer.skew_ms;
                    node.last_heard_ms = Some(0);
                }
            }
        }
        let (moving, moving_least) = moving(&layout);
        Ok(Response::new(pb::StatusResponse {
            ring: layout.name.clone(),
            ring_id: id_bytes(layout.ring.0),
            epoch: layout.epoch,
            phase: convert::phase_to(layout.phase),
            replicas: convert::replicas_to(layout.replicas),
            segments: layout.segments.get() as u32,
            may_lose: layout.may_lose(|id| self.location.liveness(id) == Liveness::Up) as u32,
            nodes,
            moving,
            moving_least,
        }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let layouts = tokio_stream::wrappers::WatchStream::new(self.location.watch());
        let service = self.clone();
        let response =
            move |layout: Arc<Layout>| Ok(pb::WatchResponse { layout: Some(service.for_clients(&layout)) });
        Ok(Response::new(Box::pin(layouts.filter_map(move |layout| layout.map(&response)))))
    }

    async fn leave(&self, _: Request<pb::LeaveRequest>) -> Result<Response<pb::LeaveResponse>, Status> {
        self.tell(Event::Leave).await?;
        Ok(Response::new(pb::LeaveResponse {}))
    }

    async fn remove(
        &self,
        request: Request<pb::RemoveRequest>,
    ) -> Result<Response<pb::RemoveResponse>, Status> {
        let request = request.into_inner();
        let (layout, id) = (self.layout()?, convert::node_id(&request.id)?);
        let Some(member) = layout.member(id) else {
            return Err(Status::not_found(format!("{id:.8} is no member of ring {}", layout.name)));
        };
        if id == self.location.me() {
            return Err(Status::invalid_argument("a node can't remove itself: use `storectl leave`"));
        }
        let alive = |id: NodeId| self.location.liveness(id) != Liveness::Down;
        if alive(id) {
            return Err(Status::failed_precondition(format!(
                "the node at {} is not down (it takes some seconds to be sure): to take a live node out, use `storectl leave`",
                member.address
            )));
        }
        if request.force {
            return self.force(&layout, id).await.map(Response::new);
        }
        if !layout.has_majority(alive) || !layout.can_be_gathered(alive) {
            return Err(Status::failed_precondition(
                "too few nodes are up to take over without risk: bring some back, or use --force, which drops all \
                 nodes that are down, and what only they hold is lost",
            ));
        }
        self.tell(Event::Remove(id)).await?;
        Ok(Response::new(pb::RemoveResponse { epoch: layout.epoch, dropped: Vec::new() }))
    }

    async fn shutdown(
        &self,
        _: Request<pb::ShutdownRequest>,
    ) -> Result<Response<pb::ShutdownResponse>, Status> {
        self.tell(Event::Stop).await?;
        Ok(Response::new(pb::ShutdownResponse {}))
    }
}

impl Service {
    /// Starts a new lineage among the survivors that answer.
    async fn force(&self, layout: &Arc<Layout>, id: NodeId) -> Result<pb::RemoveResponse, Status> {
        let me = self.location.me();
        let mut gone = BTreeSet::from([id]);
        for member in layout.members.iter().filter(|m| m.id != me && m.id != id) {
            let answer = match self.location.address_of(member.id) {
                Some(address) => self.location.shared.peers.pull_layout(&address, layout.ring).await,
                None => Err(Status::unavailable("no address")),
            };
            match answer {
                Ok(theirs) if theirs.epoch > layout.epoch => {
                    return Err(status::unavailable("the ring is changing: try again in a moment"));
                }
                Ok(_) => {}
                Err(_) => _ = gone.insert(member.id),
            }
        }
        let forced = layout.forced(RingId(rand::random()), &gone);
        let forced = Arc::new(forced.ok_or_else(|| Status::failed_precondition("nobody would remain"))?);
        self.tell(Event::Forced(forced.clone())).await?;
        for member in forced.members.iter().filter(|m| m.id != me) {
            if let Some(address) = self.location.address_of(member.id) {
                let told = self
                    .location
                    .shared
                    .peers
                    .install(member.id, &address, me, &forced, Some(layout.ring))
                    .await;
                if let Err(status) = told {
                    tracing::warn!(%address, %status, "a survivor could not be told of the new lineage");
                }
            }
        }
        let dropped = layout.ids().filter(|id| !forced.is_member(*id)).map(|id| id_bytes(id.0)).collect();
        Ok(pb::RemoveResponse { epoch: forced.epoch, dropped })
    }
}

/// How many segment replicas the transition under way copies, and the least that the new shares
/// require: the sum over members of what their share grows by.
fn moving(layout: &Layout) -> (u64, u64) {
    let Some(next) = &layout.next else { return (0, 0) };
    let mut copied = 0;
    let mut grows = vec![0i64; layout.members.len()];
    for (old, new) in layout.current.rows().zip(next.rows()) {
        copied += new.iter().filter(|cell| !old.iter().any(|c| c.member == cell.member)).count() as u64;
        new.iter().for_each(|cell| grows[usize::from(cell.member)] += 1);
        old.iter().for_each(|cell| grows[usize::from(cell.member)] -= 1);
    }
    (copied, grows.into_iter().filter(|n| *n > 0).sum::<i64>() as u64)
}

#[tonic::async_trait]
impl LocationPeer for Service {
    async fn probe(&self, request: Request<pb::ProbeRequest>) -> Result<Response<pb::ProbeResponse>, Status> {
        let shared = &self.location.shared;
        let request = request.into_inner();
        let layout = self.location.layout();
        let same = request.ring_name == shared.config.ring_name
            && request.kind == convert::kind_to(shared.config.kind);
        let stage = {
            let mut stage = shared.stage.lock().unwrap_or_else(PoisonError::into_inner);
            if let (Stage::Seeking(by), Ok(seeker), true) =
                (&mut *stage, request.seeker_address.parse::<Address>(), same)
            {
                by.retain(|(address, _)| *address != seeker);
                if by.len() < MAX_SEEKERS && seeker != shared.address {
                    by.push((seeker, Instant::now()));
                }
            }
            match (&*stage, &layout) {
                (Stage::Seeking(_), _) => pb::Stage::Seeking,
                (Stage::Member, Some(_)) => pb::Stage::Member,
                (Stage::Waiting, _) | (Stage::Member, None) => pb::Stage::Waiting,
            }
        };
        Ok(Response::new(pb::ProbeResponse {
            ring_name: shared.config.ring_name.clone(),
            kind: convert::kind_to(shared.config.kind),
            stage: stage.into(),
            ring_id: layout.as_ref().map(|layout| id_bytes(layout.ring.0)).unwrap_or_default(),
            address: shared.address.to_string(),
            node_id: id_bytes(shared.me.0),
            epoch: layout.as_ref().map_or(0, |layout| layout.epoch),
            former_ring_ids: layout
                .map_or(Vec::new(), |layout| layout.former.iter().map(|ring| id_bytes(ring.0)).collect()),
        }))
    }

    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinResponse>, Status> {
        let mut request = request.into_inner();
        let member = convert::member(request.member.take().ok_or(Malformed::Missing("the member"))?)?;
        let layout = self.check_join(&request)?;
        if !layout.is_member(member.id) {
            self.tell(Event::Message(member.id, Message::Join(member), None)).await?;
        }
        Ok(Response::new(pb::JoinResponse { layout: Some(convert::layout_to(&layout)) }))
    }

    async fn gossip(
        &self,
        request: Request<pb::GossipRequest>,
    ) -> Result<Response<pb::GossipResponse>, Status> {
        let request = request.into_inner();
        let layout = self.same_ring(&request.ring_id)?;
        let from = convert::node_id(&request.from)?;
        if self.location.shared.members.load().outlived(from, request.generation) {
            return Err(Status::already_exists(format!("node {from:.8} is known in a later life")));
        }
        if !request.packets.is_empty() {
            self.tell(Event::Packets(from, request.packets)).await?;
        }
        if let Some(report) = request.report {
            self.tell(Event::Message(from, Message::Report(convert::report(report)?), None)).await?;
        } else if request.epoch != layout.epoch {
            self.tell(Event::Met(from, request.epoch)).await?;
        }
        if let Some(member) = request.join {
            self.tell(Event::Message(from, Message::Join(convert::member(member)?), None)).await?;
        }
        if request.all_stop {
            self.tell(Event::Message(from, Message::AllStop, None)).await?;
        }
        Ok(Response::new(pb::GossipResponse { epoch: layout.epoch, from: self.me_bytes() }))
    }

    async fn pull_layout(
        &self,
        request: Request<pb::PullLayoutRequest>,
    ) -> Result<Response<pb::PullLayoutResponse>, Status> {
        let ring_id = request.into_inner().ring_id;
        let layout = self.same_or_former_ring(&ring_id)?;
        Ok(Response::new(pb::PullLayoutResponse { layout: Some(convert::layout_to(&layout)) }))
    }

    async fn prepare(
        &self,
        request: Request<pb::PrepareRequest>,
    ) -> Result<Response<pb::PrepareResponse>, Status> {
        let request = request.into_inner();
        self.same_ring(&request.ring_id)?;
        let from = convert::node_id(&request.from)?;
        let ballot = convert::ballot(request.ballot)?;
        let reply = self.ask(from, Message::Prepare { target: request.target, ballot }).await?;
        let mut response =
            pb::PrepareResponse { epoch: reply.epoch, promise: None, refused: None, from: self.me_bytes() };
        match reply.message {
            Some(Message::Promise { accepted, down, .. }) => {
                response.promise = Some(pb::Promise {
                    accepted: convert::accepted_to(&accepted),
                    down: down.iter().map(|id| id_bytes(id.0)).collect(),
                });
            }
            Some(Message::Refused { promised, .. }) => response.refused = Some(convert::ballot_to(promised)),
            _ => {}
        }
        Ok(Response::new(response))
    }

    async fn accept(
        &self,
        request: Request<pb::AcceptRequest>,
    ) -> Result<Response<pb::AcceptResponse>, Status> {
        let request = request.into_inner();
        let from = convert::node_id(&request.from)?;
        let ballot = convert::ballot(request.ballot)?;
        let layout = convert::layout(request.layout.ok_or(Malformed::Missing("the layout"))?)?;
        self.same_ring(&layout.ring.0.to_be_bytes())?;
        let reply = self.ask(from, Message::Accept { ballot, layout: Arc::new(layout) }).await?;
        let refused = match reply.message {
            Some(Message::Refused { promised, .. }) => Some(convert::ballot_to(promised)),
            _ => None,
        };
        let accepted = matches!(reply.message, Some(Message::Accepted { .. }));
        Ok(Response::new(pb::AcceptResponse { epoch: reply.epoch, accepted, refused, from: self.me_bytes() }))
    }

    async fn install(
        &self,
        request: Request<pb::InstallRequest>,
    ) -> Result<Response<pb::InstallResponse>, Status> {
        let request = request.into_inner();
        let from = convert::node_id(&request.from)?;
        let layout = Arc::new(convert::layout(request.layout.ok_or(Malformed::Missing("the layout"))?)?);
        if request.succeeds_ring_id.is_empty() {
            self.same_ring(&layout.ring.0.to_be_bytes())?;
            let reply = self.ask(from, Message::Install(layout)).await?;
            return Ok(Response::new(pb::InstallResponse { epoch: reply.epoch, from: self.me_bytes() }));
        }
        let old = self.same_ring(&request.succeeds_ring_id)?;
        if layout.epoch <= old.epoch || !layout.is_member(self.location.me()) {
            return Err(Status::failed_precondition("this node does not survive into that lineage"));
        }
        self.tell(Event::Forced(layout.clone())).await?;
        Ok(Response::new(pb::InstallResponse { epoch: layout.epoch, from: self.me_bytes() }))
    }
}
