//! The gRPC services `Location` and `LocationPeer`: checks what comes from outside, hands it to the
//! agent, and answers what can be read off without it.

mod clients;
mod peers;

use super::Location;
use super::agent::Event;
use crate::core::layout::Layout;
use crate::core::node::RingId;
use crate::wire::convert::{self, Malformed};
use crate::wire::location::location_peer_server::LocationPeerServer;
use crate::wire::location::location_server::LocationServer;
use crate::wire::{MAX_MESSAGE_BYTES, status};
use std::sync::Arc;
use tokio::sync::oneshot;
use tonic::Status;

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
    /// For whoever asks within the process.
    #[cfg(feature = "gateway")]
    pub(crate) fn new(location: Location) -> Self {
        Service { location }
    }

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

    /// Has this node follow a forced removal.
    async fn tell_forced(&self, layout: Arc<Layout>) -> Result<(), Status> {
        let (reply, installed) = oneshot::channel();
        self.tell(Event::Forced(layout, reply)).await?;
        match installed.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(status::unavailable(
                "nothing was done, as the ring has changed since the removal was asked for: try again in a moment",
            )),
            Err(_) => Err(status::unavailable("this node is stopping")),
        }
    }
}
