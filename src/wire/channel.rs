//! Connections to nodes: one set of settings for every client of the protocol.

use super::location::location_peer_client::LocationPeerClient;
use super::location::{ProbeRequest, ProbeResponse};
use super::{MAX_MESSAGE_BYTES, convert};
use crate::core::layout::Kind;
use crate::core::node::Address;
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::codegen::{Service, http::Uri};
use tonic::transport::{Channel, Endpoint};

/// How long a connection may take to come about: generous for a data centre, and short enough that
/// a request to a dead host still has time for another owner.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that is silent for so long is asked whether it is alive, also while idle, so that
/// a host that vanished without a word is noticed.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// The ports that are scanned on 127.0.0.1, and tried in turn by a node that was given none.
pub const LOOPBACK_PORTS: std::ops::RangeInclusive<u16> = 9900..=9925;

/// How long one probe may take: on loopback an answer takes a millisecond, a busy machine a
/// hundred.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// What bytes travel on, both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A stream that is being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// Makes the stream to the host and port of a URI.
pub type Connect = fn(&Uri) -> Connecting;

/// What connects instead of the system's TCP.
static CONNECT: OnceLock<Connect> = OnceLock::new();

/// Has all connections of this process made by `connect` instead of the system's TCP, from now on
/// and for good: for networks that are simulated. Only the first call counts.
pub fn connect_by(connect: Connect) {
    let _only_once = CONNECT.set(connect);
}

struct Connector(Connect);

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = self.0(&to);
        Box::pin(async move { connecting.await.map(TokioIo::new) })
    }
}

/// A channel that connects at first use and again whenever needed.
pub fn lazy(address: &Address) -> Channel {
    // An address was checked when it was made; one that is no URI all the same reaches nobody.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .unwrap_or_else(|_| Endpoint::from_static("http://127.0.0.1:0"))
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    match CONNECT.get() {
        Some(connect) => endpoint.connect_with_connector_lazy(Connector(*connect)),
        None => endpoint.connect_lazy(),
    }
}

/// Ends a call that has not ended after `time`. A request's own timeout only counts from when there is
/// a connection to send it on: those that wait for one to a host that is silent are tried in turn,
/// each for as long as [`CONNECT_TIMEOUT`].
pub async fn within<T>(
    time: Duration,
    call: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, tonic::Status> {
    match tokio::time::timeout(time, call).await {
        Ok(result) => result,
        Err(elapsed) => {
            let mut status = tonic::Status::deadline_exceeded("no answer came in time");
            status.set_source(Arc::new(elapsed));
            Err(status)
        }
    }
}

/// Asks whoever listens at `address` who it is.
pub async fn probe(address: &Address, request: ProbeRequest) -> Result<ProbeResponse, tonic::Status> {
    let mut client = LocationPeerClient::new(lazy(address)).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut request = tonic::Request::new(request);
    request.set_timeout(PROBE_TIMEOUT);
    within(PROBE_TIMEOUT, client.probe(request)).await.map(tonic::Response::into_inner)
}

/// Asks every port of the loopback range, all at once. Whoever isn't there isn't in the answer.
pub async fn scan_loopback(kind: Kind, ring_name: &str, seeker: Option<&Address>) -> Vec<ProbeResponse> {
    let probes = LOOPBACK_PORTS.map(|port| {
        let address = Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], port)));
        let request = ProbeRequest {
            ring_name: ring_name.to_owned(),
            kind: convert::kind_to(kind),
            seeker_address: seeker.map(Address::to_string).unwrap_or_default(),
        };
        async move { probe(&address, request).await.ok() }
    });
    futures_util::future::join_all(probes).await.into_iter().flatten().collect()
}
