//! Connections to nodes: one set of settings for every client of the protocol.

use super::location::location_peer_client::LocationPeerClient;
use super::location::{ProbeRequest, ProbeResponse};
use super::{MAX_MESSAGE_BYTES, convert};
use crate::core::layout::Kind;
use crate::core::node::Address;
use std::time::Duration;
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

/// A channel that connects at first use and again whenever needed.
pub fn lazy(address: &Address) -> Channel {
    match Endpoint::from_shared(format!("http://{address}")) {
        Ok(endpoint) => endpoint
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .connect_lazy(),
        // An address was checked when it was made; one that is no URI all the same reaches nobody.
        Err(_) => Endpoint::from_static("http://127.0.0.1:0").connect_lazy(),
    }
}

/// Asks whoever listens at `address` who it is.
pub async fn probe(address: &Address, request: ProbeRequest) -> Result<ProbeResponse, tonic::Status> {
    let mut client = LocationPeerClient::new(lazy(address)).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut request = tonic::Request::new(request);
    request.set_timeout(PROBE_TIMEOUT);
    match tokio::time::timeout(PROBE_TIMEOUT, client.probe(request)).await {
        Ok(response) => response.map(tonic::Response::into_inner),
        Err(_) => Err(tonic::Status::deadline_exceeded(format!("{address} did not answer a probe"))),
    }
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
