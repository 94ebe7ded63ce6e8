//! What the ring's own nodes ask each other.

use super::Service;
use crate::core::layout::Layout;
use crate::core::membership::Message;
use crate::core::node::{Address, NodeId};
use crate::location::Stage;
use crate::location::agent::Event;
use crate::location::peers::Reply;
use crate::wire::convert::{self, Malformed, id_bytes};
use crate::wire::location as pb;
use crate::wire::location::location_peer_server::LocationPeer;
use crate::wire::status;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// How many other seekers a seeker remembers: the loopback range and then some.
const MAX_SEEKERS: usize = 64;

#[tonic::async_trait]
impl LocationPeer for Service {
    async fn probe(&self, request: Request<pb::ProbeRequest>) -> Result<Response<pb::ProbeResponse>, Status> {
        let shared = &self.location.shared;
        let request = request.into_inner();
        let layout = self.location.layout();
        let same = request.ring_name == shared.config.ring_name
            && request.kind == convert::kind_to(shared.config.kind);
        let (stage, seekers) = {
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
                (Stage::Seeking(by), _) => {
                    let asked = shared.asked.lock().unwrap_or_else(PoisonError::into_inner);
                    let seekers = asked.iter().chain(by.iter().map(|(address, _)| address));
                    (pb::Stage::Seeking, seekers.map(Address::to_string).collect())
                }
                (Stage::Member, Some(_)) => (pb::Stage::Member, Vec::new()),
                (Stage::Waiting, _) | (Stage::Member, None) => (pb::Stage::Waiting, Vec::new()),
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
            seekers,
            elects: shared.elects.load(Ordering::Acquire),
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
            let suspected = request.suspected.and_then(|incarnation| u16::try_from(incarnation).ok());
            self.tell(Event::Packets(from, request.packets, suspected)).await?;
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
        if !old.survives_into(&layout, self.location.me()) {
            return Err(Status::failed_precondition("this node does not survive into that lineage"));
        }
        self.tell_forced(layout.clone()).await?;
        Ok(Response::new(pb::InstallResponse { epoch: layout.epoch, from: self.me_bytes() }))
    }
}

impl Service {
    fn me_bytes(&self) -> bytes::Bytes {
        id_bytes(self.location.me().0)
    }

    /// Puts a message to the agent and waits for its answer.
    async fn ask(&self, from: NodeId, message: Message) -> Result<Reply, Status> {
        let (reply, answer) = oneshot::channel();
        self.tell(Event::Message(from, message, Some(reply))).await?;
        answer.await.map_err(|_error| status::unavailable("this node is stopping"))
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
