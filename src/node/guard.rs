//! What requests may take in memory on their way in and out, and how long one may take to arrive.
//!
//! It stands before all services, so that a message is counted while it arrives and not only once
//! it is decoded. A gRPC message is handed on when all of it is there: the decoder takes as much
//! memory as a message says that it has, and five bytes are enough to say that it has megabytes.
//! Nodes have a budget of their own, so that clients can't keep them from talking.

use crate::wire::budget::{Budget, Held};
use crate::wire::{MAX_MESSAGE_BYTES, status};
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderValue, Request, Response, StatusCode, header};
use tonic::codegen::{Bytes, Service};

/// What all messages of clients may take where there is no store.
const CLIENTS: usize = 64 << 20;

/// What those of other nodes may take, apart from their links, which bound themselves.
const PEERS: usize = 64 << 20;

/// What a request counts beside its message: its stream, its headers, its task.
const REQUEST: usize = 4 << 10;

/// How long a request may take to arrive. Over plain HTTP it is told so a little earlier.
const ARRIVAL: Duration = Duration::from_secs(12);

/// The stream between two nodes lives as long as they do.
const LINK: &str = "/thrifty.store.v1.StorePeer/Link";

/// A service with a guard before it.
#[derive(Clone)]
pub(super) struct Guard<S> {
    inner: S,
    clients: Arc<Budget>,
    peers: Arc<Budget>,
}

impl<S> Guard<S> {
    /// Guards a service, with the budget that a store's clients have.
    pub(super) fn new(inner: S, clients: Option<Arc<Budget>>) -> Self {
        let clients = clients.unwrap_or_else(|| Budget::new(CLIENTS));
        Guard { inner, clients, peers: Budget::new(PEERS) }
    }
}

impl<S> Service<Request<Body>> for Guard<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if path == LINK {
            return Box::pin(self.inner.call(request));
        }
        let of_a_peer = path.split('/').nth(1).is_some_and(|service| service.ends_with("Peer"));
        let budget = if of_a_peer { &self.peers } else { &self.clients };
        let announced = usize::try_from(request.body().size_hint().lower()).unwrap_or(usize::MAX / 2);
        let held = match budget.hold(announced.saturating_add(REQUEST)) {
            Ok(held) => held,
            Err(status) => {
                let refused = refused(&request, &status);
                return Box::pin(std::future::ready(Ok(refused)));
            }
        };
        let gathering = is_grpc(&request).then(Vec::new);
        let arriving = |body| Arriving { body, held, announced, gathering, timed: true, late: None };
        let request = request.map(|body| Body::new(arriving(body)));
        let answered = self.inner.call(request);
        Box::pin(async move {
            let mut response = answered.await?;
            Ok(match response.extensions_mut().remove::<Arc<Held>>() {
                Some(held) => response.map(|body| Body::new(Leaving { body, _held: held })),
                None => response,
            })
        })
    }
}

fn is_grpc(request: &Request<Body>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Whether a gRPC message is there as a whole, or is one that will be refused for its size: a byte
/// and its length in four come before it.
fn is_whole(message: &[u8]) -> bool {
    let Some((&[_, a, b, c, d], rest)) = message.split_first_chunk() else { return false };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    rest.len() >= length || length > MAX_MESSAGE_BYTES
}

/// The answer to a request for which there is no room, in the words of who asks.
fn refused(request: &Request<Body>, status: &Status) -> Response<Body> {
    if is_grpc(request) {
        return status.clone().into_http();
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// A message on its way in.
struct Arriving {
    body: Body,
    held: Held,
    /// Bytes that were counted before they came.
    announced: usize,
    /// What is there of a gRPC message; `None` once that was handed on, and in plain HTTP.
    gathering: Option<Vec<u8>>,
    /// Not what comes after the first message of a stream, which may take its time.
    timed: bool,
    /// From when on it has to be waited for.
    late: Option<Pin<Box<Sleep>>>,
}

impl Arriving {
    fn count(&mut self, bytes: usize) -> Result<(), Status> {
        let known = bytes.min(self.announced);
        self.announced -= known;
        self.held.grow(bytes - known)
    }

    /// Takes in some of a message. What may be handed on by now, if it is anything.
    fn take_in(&mut self, data: Bytes) -> Option<Bytes> {
        let Some(gathered) = &mut self.gathering else { return Some(data) };
        let whole = if gathered.is_empty() && is_whole(&data) {
            data
        } else {
            gathered.extend_from_slice(&data);
            if !is_whole(gathered) {
                return None;
            }
            std::mem::take(gathered).into()
        };
        (self.gathering, self.timed) = (None, false);
        Some(whole)
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            match Pin::new(&mut this.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        if let Err(status) = this.count(data.len()) {
                            return Poll::Ready(Some(Err(status)));
                        }
                        if let Some(data) = this.take_in(data) {
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                    }
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status))),
                // A message without its end, which the decoder refuses.
                Poll::Ready(None) => {
                    let rest = this.gathering.take().filter(|rest| !rest.is_empty());
                    return Poll::Ready(rest.map(|rest| Ok(Frame::data(rest.into()))));
                }
                Poll::Pending if !this.timed => return Poll::Pending,
                Poll::Pending => {
                    let late = this.late.get_or_insert_with(|| Box::pin(tokio::time::sleep(ARRIVAL)));
                    if late.as_mut().poll(context).is_ready() {
                        let late = "the request did not arrive in time; nothing was done";
                        return Poll::Ready(Some(Err(status::unavailable(late))));
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.gathering.as_ref().is_none_or(Vec::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer on its way out.
struct Leaving {
    body: Body,
    _held: Arc<Held>,
}

impl HttpBody for Leaving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arriving(budget: &Arc<Budget>) -> Arriving {
        let (body, held) = (Body::empty(), budget.hold(0).unwrap());
        Arriving { body, held, announced: 0, gathering: Some(Vec::new()), timed: true, late: None }
    }

    #[test]
    fn a_message_is_handed_on_when_all_of_it_is_there() {
        let budget = Budget::new(100);
        let whole = Bytes::from_static(&[0, 0, 0, 0, 2, 7, 8]);
        assert_eq!(arriving(&budget).take_in(whole.clone()), Some(whole.clone()));
        let mut drops = arriving(&budget);
        for at in 0..6 {
            assert_eq!(drops.take_in(whole.slice(at..=at)), None);
        }
        assert!(!drops.is_end_stream(), "something is left to hand on");
        assert_eq!(drops.take_in(whole.slice(6..)), Some(whole));
        let next = Bytes::from_static(&[0]);
        assert_eq!(drops.take_in(next.clone()), Some(next), "of a stream only the first is gathered");
        let huge = Bytes::from_static(&[0, 255, 0, 0, 0]);
        assert_eq!(arriving(&budget).take_in(huge.clone()), Some(huge), "it is refused at once");
    }

    #[test]
    fn bytes_are_counted_once_though_they_were_announced() {
        let budget = Budget::new(100);
        let mut message = Arriving { announced: 60, held: budget.hold(60).unwrap(), ..arriving(&budget) };
        message.count(50).unwrap();
        message.count(50).unwrap();
        assert!(message.count(1).is_err());
        drop(message);
        assert!(budget.hold(100).is_ok());
    }
}
