//! As much of the location service as a client needs to find the null server: a ring of one.

use super::EPOCH;
use std::net::SocketAddr;
use std::sync::Arc;
use thrifty::core::layout::{Kind, Layout, Member, Replicas, Standing};
use thrifty::core::node::{NodeId, RingId};
use thrifty::core::token::SegmentCount;
use thrifty::wire::convert;
use thrifty::wire::location as pb;
use thrifty::wire::location::location_peer_server::LocationPeer;
use thrifty::wire::location::location_server::Location;
use tonic::{Request, Response, Status};

/// Knows one layout, which never changes.
#[derive(Clone)]
pub(super) struct NullLocation {
    layout: Arc<Layout>,
}

impl NullLocation {
    /// The ring of one whose node listens there.
    pub(super) fn new(listen: SocketAddr) -> Self {
        let member = Member {
            id: NodeId(1),
            address: listen.into(),
            zone: String::new(),
            weight: 1,
            durable: false,
            standing: Standing::Staying,
        };
        let (name, segments) = ("null".to_owned(), SegmentCount::DEFAULT);
        let layout = Layout::first(RingId(1), name, Kind::Store, Replicas::Count(1), segments, member);
        NullLocation { layout: Arc::new(layout) }
    }
}

pub(super) fn nothing<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this is a null server: it takes gets and puts and keeps nothing"))
}

#[tonic::async_trait]
impl Location for NullLocation {
    type WatchStream = tokio_stream::Empty<Result<pb::WatchResponse, Status>>;

    async fn get_layout(
        &self,
        request: Request<pb::GetLayoutRequest>,
    ) -> Result<Response<pb::GetLayoutResponse>, Status> {
        let layout = (request.get_ref().have_epoch < EPOCH).then(|| convert::layout_to(&self.layout));
        Ok(Response::new(pb::GetLayoutResponse { layout, epoch: EPOCH }))
    }
    async fn locate(&self, _: Request<pb::LocateRequest>) -> Result<Response<pb::LocateResponse>, Status> {
        nothing()
    }
    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        nothing()
    }
    async fn watch(&self, _: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        nothing()
    }
    async fn leave(&self, _: Request<pb::LeaveRequest>) -> Result<Response<pb::LeaveResponse>, Status> {
        nothing()
    }
    async fn remove(&self, _: Request<pb::RemoveRequest>) -> Result<Response<pb::RemoveResponse>, Status> {
        nothing()
    }
    async fn shutdown(
        &self,
        _: Request<pb::ShutdownRequest>,
    ) -> Result<Response<pb::ShutdownResponse>, Status> {
        nothing()
    }
}

#[tonic::async_trait]
impl LocationPeer for NullLocation {
    async fn probe(&self, _: Request<pb::ProbeRequest>) -> Result<Response<pb::ProbeResponse>, Status> {
        let (layout, member) = (&self.layout, &self.layout.members[0]);
        Ok(Response::new(pb::ProbeResponse {
            seekers: Vec::new(),
            elects: false,
            ring_name: layout.name.clone(),
            kind: convert::kind_to(layout.kind),
            stage: pb::Stage::Member.into(),
            ring_id: convert::id_bytes(layout.ring.0),
            address: member.address.to_string(),
            node_id: convert::id_bytes(member.id.0),
            epoch: EPOCH,
            former_ring_ids: Vec::new(),
        }))
    }
    async fn join(&self, _: Request<pb::JoinRequest>) -> Result<Response<pb::JoinResponse>, Status> {
        nothing()
    }
    async fn gossip(&self, _: Request<pb::GossipRequest>) -> Result<Response<pb::GossipResponse>, Status> {
        nothing()
    }
    async fn pull_layout(
        &self,
        _: Request<pb::PullLayoutRequest>,
    ) -> Result<Response<pb::PullLayoutResponse>, Status> {
        nothing()
    }
    async fn prepare(&self, _: Request<pb::PrepareRequest>) -> Result<Response<pb::PrepareResponse>, Status> {
        nothing()
    }
    async fn accept(&self, _: Request<pb::AcceptRequest>) -> Result<Response<pb::AcceptResponse>, Status> {
        nothing()
    }
    async fn install(&self, _: Request<pb::InstallRequest>) -> Result<Response<pb::InstallResponse>, Status> {
        nothing()
    }
}
