//! `storebench null`: a server of the store's protocol that stores nothing.
//!
//! It answers every request at once with the same bytes from memory. What a client gets out of it
//! is what gRPC, the network and the client itself allow.

mod location;

use crate::TOOL;
use crate::args::Null;
use crate::common::{Exit, Failure, notice};
use bytes::Bytes;
use location::NullLocation;
use thrifty::wire::MAX_MESSAGE_BYTES;
use thrifty::wire::location::location_peer_server::LocationPeerServer;
use thrifty::wire::location::location_server::LocationServer;
use thrifty::wire::store::store_server::{Store, StoreServer};
use thrifty::wire::store::{
    BatchRequest, BatchResponse, Consistency, DeleteRequest, DeleteResponse, DigestsRequest, DigestsResponse,
    GetRequest, GetResponse, PutRequest, PutResponse, RepairRequest, RepairResponse, ScanRequest,
    ScanResponse, Version,
};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// The version of everything: any but 0, which is "nothing there".
const VERSION: Version = Version { hlc: 1, node: 1 };

/// The only epoch there is.
const EPOCH: u64 = 1;

/// Serves until it is ended.
pub(crate) async fn serve(null: Null) -> Result<(), Failure> {
    let store = NullStore { value: vec![b'x'; null.value_bytes].into() };
    let location = NullLocation::new(null.listen);
    let store = StoreServer::new(store).max_decoding_message_size(MAX_MESSAGE_BYTES);
    notice(TOOL, &format!("null server on {}: storebench put --peer {}", null.listen, null.listen));
    Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .add_service(store)
        .add_service(LocationServer::new(location.clone()))
        .add_service(LocationPeerServer::new(location))
        .serve(null.listen)
        .await
        .map_err(|error| {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            Failure::new(Exit::Unavailable, format!("can't serve on {}{cause}", null.listen))
        })
}

struct NullStore {
    value: Bytes,
}

#[tonic::async_trait]
impl Store for NullStore {
    async fn put(&self, _: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let consistency = Consistency::All.into();
        Ok(Response::new(PutResponse { version: Some(VERSION), consistency, epoch: EPOCH }))
    }

    async fn get(&self, _: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        Ok(Response::new(GetResponse {
            value: self.value.clone(),
            version: Some(VERSION),
            content_type: String::new(),
            consistency: Consistency::All.into(),
            epoch: EPOCH,
            expires_at_ms: None,
        }))
    }

    async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let consistency = Consistency::All.into();
        Ok(Response::new(DeleteResponse { version: Some(VERSION), consistency, epoch: EPOCH }))
    }

    async fn batch(&self, _: Request<BatchRequest>) -> Result<Response<BatchResponse>, Status> {
        location::nothing()
    }

    type ScanStream = tokio_stream::Empty<Result<ScanResponse, Status>>;

    async fn scan(&self, _: Request<ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        location::nothing()
    }

    async fn digests(&self, _: Request<DigestsRequest>) -> Result<Response<DigestsResponse>, Status> {
        location::nothing()
    }

    type RepairStream = tokio_stream::Empty<Result<RepairResponse, Status>>;

    async fn repair(&self, _: Request<RepairRequest>) -> Result<Response<Self::RepairStream>, Status> {
        location::nothing()
    }
}
