//! What clients may ask: the layout, the status, and changes of the membership.

use super::Service;
use crate::core::layout::{Layout, Member, Phase, Standing};
use crate::core::node::{Liveness, NodeId, RingId};
use crate::core::token::{Epoch, Token};
use crate::location::agent::Event;
use crate::location::{Holdings, wall_ms};
use crate::wire::channel::within;
use crate::wire::convert::{self, id_bytes};
use crate::wire::location as pb;
use crate::wire::location::location_server::Location as LocationApi;
use crate::wire::status;
use futures_util::future::try_join_all;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

/// How long another node may take to say what it holds before the answer goes out without it.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);

/// How long members that are not down may take to say that they can follow a forced removal. The call
/// that wants it has time left then.
const SURVIVORS_TIMEOUT: Duration = Duration::from_millis(1500);

/// Pause before one that did not is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

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
                    node.cache_hits = answer.cache_hits;
                    node.cache_misses = answer.cache_misses;
                    node.requests = answer.requests;
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
            let host = shared.holdings.0.upgrade();
            let Holdings { keys, bytes, cache_hits, cache_misses } =
                host.as_ref().and_then(|host| host.holdings()).unwrap_or_default();
            entry.requests = host.and_then(|host| host.requests());
            entry.keys = Some(keys);
            entry.bytes = Some(bytes);
            entry.cache_hits = cache_hits;
            entry.cache_misses = cache_misses;
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

    /// The epoch that a member answers with for a forced removal, none if it is down and silent. One that is
    /// not down must not be dropped only because it is slow to answer: then nothing is done at all.
    async fn answers(&self, layout: &Layout, member: &Member) -> Result<Option<Epoch>, Status> {
        let down = self.location.liveness(member.id) == Liveness::Down;
        let address = self.location.address_of(member.id).unwrap_or_else(|| member.address.clone());
        let end = Instant::now() + SURVIVORS_TIMEOUT;
        loop {
            let pull = self.location.shared.peers.pull_layout(&address, layout.ring);
            let why = match within(end.saturating_duration_since(Instant::now()), pull).await {
                Ok(theirs) if theirs.ring != layout.ring => return Err(changing()),
                Ok(theirs) if theirs.epoch >= layout.epoch => return Ok(Some(theirs.epoch)),
                Ok(theirs) => format!("it is at epoch {}, and others at {}", theirs.epoch, layout.epoch),
                Err(_) if down => return Ok(None),
                Err(status) => status.message().to_owned(),
            };
            if Instant::now() + ASK_AGAIN >= end {
                return Err(status::unavailable(format!(
                    "nothing was done: node {:.8} at {address} is not down, but can't be asked to follow ({why}): try \
                     again, or when it is down",
                    member.id
                )));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Starts a new lineage among the members that survive.
    async fn force(&self, layout: &Arc<Layout>, id: NodeId) -> Result<pb::RemoveResponse, Status> {
        let me = self.location.me();
        let others: Vec<&Member> = layout.members.iter().filter(|m| m.id != me && m.id != id).collect();
        let answers = try_join_all(others.iter().map(|member| self.answers(layout, member))).await?;
        let answers: BTreeMap<NodeId, Option<Epoch>> =
            others.iter().map(|member| member.id).zip(answers).collect();
        let gone = layout.unreachable(me, |id| answers.get(&id).copied().flatten()).ok_or_else(changing)?;
        let forced = layout.forced(RingId(rand::random()), &gone);
        let forced = Arc::new(forced.ok_or_else(|| Status::failed_precondition("nobody would remain"))?);
        self.tell_forced(forced.clone()).await?;
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

fn changing() -> Status {
    status::unavailable("the ring is changing: try again in a moment")
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
