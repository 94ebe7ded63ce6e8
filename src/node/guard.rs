//! What requests may take in memory on their way in and out, and how long one may take to arrive.
//!
//! It stands before all services, so that a message is counted while it arrives and not only once
//! it is decoded. A gRPC message is handed on when all of it is there: the decoder takes as much
//! memory as a message says that it has, and five bytes are enough to say that it has megabytes.
//! Nodes have a budget of their own, so that clients can't keep them from talking. A message and its
//! answer count until the answer has left; and no connection has more than its share, so that one
//! whose other end doesn't read leaves something to the others.

use crate::wire::budget::{Budget, Held};
use crate::wire::{MAX_MESSAGE_BYTES, REQUEST_BYTES, status};
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderValue, Request, Response, StatusCode, header};
use tonic::codegen::{Bytes, Service};

/// What all messages of clients may take where there is no store.
const CLIENTS: usize = 64 << 20;

/// What those of other nodes may take, apart from their links, which bound themselves.
const PEERS: usize = 64 << 20;

/// The part of either that one connection may have.
const SHARES: usize = 8;

/// Links on one connection. There is one; after it failed another one may begin before it is gone.
/// How many there are in all is for the store to bound, which learns whose they are.
const LINKS_OF_ONE: usize = 4;

/// How long a request may take to arrive. Over plain HTTP it is told so a little earlier.
const ARRIVAL: Duration = Duration::from_secs(12);

/// The stream between two nodes lives as long as they do. How long it may take to say whose it is the
/// store knows.
const LINK: &str = "/thrifty.store.v1.StorePeer/Link";

/// What a node's requests may take, or those of one connection.
#[derive(Debug)]
pub(super) struct Budgets {
    clients: Arc<Budget>,
    peers: Arc<Budget>,
    /// Not in bytes, but counted.
    links: Arc<Budget>,
    /// When a request came last, at first when the connection did.
    asked: Mutex<Instant>,
}

impl Budgets {
    /// Those of a node, with the one that a store has for its clients.
    pub(super) fn new(clients: Option<Arc<Budget>>) -> Arc<Self> {
        let clients = clients.unwrap_or_else(|| Budget::new(CLIENTS));
        let (peers, links) = (Budget::new(PEERS), Budget::new(LINKS_OF_ONE));
        Arc::new(Budgets { clients, peers, links, asked: Mutex::new(Instant::now()) })
    }

    /// Those of another connection.
    pub(super) fn share(&self) -> Arc<Self> {
        let share = |budget: &Arc<Budget>| budget.share(budget.most() / SHARES);
        Arc::new(Budgets {
            clients: share(&self.clients),
            peers: share(&self.peers),
            links: Budget::new(LINKS_OF_ONE),
            asked: Mutex::new(Instant::now()),
        })
    }

    /// For how long nothing was asked for, if nothing is under way.
    pub(super) fn idle(&self) -> Option<Duration> {
        let idle = [&self.clients, &self.peers, &self.links].iter().all(|budget| budget.is_free());
        idle.then(|| self.asked.lock().unwrap_or_else(PoisonError::into_inner).elapsed())
    }

    /// What a request has to hold while it is under way.
    pub(super) fn hold(&self, path: &str, announced: usize) -> Result<Held, Status> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if path == LINK {
            return self.links.hold(1);
        }
        let of_a_peer = path.split('/').nth(1).is_some_and(|service| service.ends_with("Peer"));
        let budget = if of_a_peer { &self.peers } else { &self.clients };
        budget.hold(announced.saturating_add(REQUEST_BYTES))
    }
}

/// A service with a guard before it. What a request holds is among its extensions, for whoever
/// makes a large answer.
#[derive(Clone)]
pub(super) struct Guard<S> {
    inner: S,
    all: Arc<Budgets>,
}

impl<S> Guard<S> {
    /// Guards a service. A request of a connection that brings no share has a part of all.
    pub(super) fn new(inner: S, all: Arc<Budgets>) -> Self {
        Guard { inner, all }
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let budgets = request.extensions().get::<Arc<Budgets>>().unwrap_or(&self.all);
        // Who announces more than anything may have is told so by whoever reads it.
        let announced = request.body().size_hint().lower().min(MAX_MESSAGE_BYTES as u64) as usize;
        let held = match budgets.hold(path, announced) {
            Ok(held) => Arc::new(held),
            Err(status) => {
                let refused = refused(&request, &status);
                return Box::pin(std::future::ready(Ok(refused)));
            }
        };
        let gathering = is_grpc(&request).then(Vec::new);
        let arrival = (path != LINK).then_some(Arrival { announced, gathering, timed: true, late: None });
        request.extensions_mut().insert(held.clone());
        let arriving = |body| Counted { body, held: held.clone(), arrival };
        let request = request.map(|body| Body::new(arriving(body)));
        let answered = self.inner.call(request);
        Box::pin(async move {
            let response = answered.await?;
            Ok(response.map(|body| Body::new(Counted { body, held, arrival: None })))
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
    let mut response = Response::new(Body::new(format!("{}\n", status.message())));
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// A message or an answer, which holds what is counted for both.
struct Counted {
    body: Body,
    held: Arc<Held>,
    /// Of a message on its way in.
    arrival: Option<Arrival>,
}

/// How far a message is.
struct Arrival {
    /// Bytes that were counted before they came.
    announced: usize,
    /// What is there of a gRPC message; `None` once that was handed on, and in plain HTTP.
    gathering: Option<Vec<u8>>,
    /// Not what comes after the first message of a stream, which may take its time.
    timed: bool,
    /// From when on it has to be waited for.
    late: Option<Pin<Box<Sleep>>>,
}

impl Arrival {
    fn count(&mut self, bytes: usize, held: &Held) -> Result<(), Status> {
        let known = bytes.min(self.announced);
        self.announced -= known;
        held.grow(bytes - known)
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

    /// The next that may be handed on of a message that comes in.
    fn poll(
        &mut self,
        body: &mut Body,
        held: &Held,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            match Pin::new(&mut *body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        if let Err(status) = self.count(data.len(), held) {
                            return Poll::Ready(Some(Err(status)));
                        }
                        if let Some(data) = self.take_in(data) {
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                    }
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status))),
                // A message without its end, which the decoder refuses.
                Poll::Ready(None) => {
                    let rest = self.gathering.take().filter(|rest| !rest.is_empty());
                    return Poll::Ready(rest.map(|rest| Ok(Frame::data(rest.into()))));
                }
                Poll::Pending if !self.timed => return Poll::Pending,
                Poll::Pending => {
                    let late = self.late.get_or_insert_with(|| Box::pin(tokio::time::sleep(ARRIVAL)));
                    if late.as_mut().poll(context).is_ready() {
                        let late = "the request did not arrive in time; nothing was done";
                        return Poll::Ready(Some(Err(status::unavailable(late))));
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Counted { body, held, arrival } = &mut *self;
        match arrival {
            Some(arrival) => arrival.poll(body, held, context),
            None => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        let gathering = self.arrival.as_ref().and_then(|arrival| arrival.gathering.as_ref());
        self.body.is_end_stream() && gathering.is_none_or(Vec::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arriving(announced: usize) -> Arrival {
        Arrival { announced, gathering: Some(Vec::new()), timed: true, late: None }
    }

    #[test]
    fn a_message_is_handed_on_when_all_of_it_is_there() {
        let whole = Bytes::from_static(&[0, 0, 0, 0, 2, 7, 8]);
        assert_eq!(arriving(0).take_in(whole.clone()), Some(whole.clone()));
        let mut drops = arriving(0);
        for at in 0..6 {
            assert_eq!(drops.take_in(whole.slice(at..=at)), None);
        }
        let held = Arc::new(Budget::new(0).hold(0).unwrap());
        let mut counted = Counted { body: Body::empty(), held, arrival: Some(drops) };
        assert!(!counted.is_end_stream(), "something is left to hand on");
        let drops = counted.arrival.as_mut().unwrap();
        assert_eq!(drops.take_in(whole.slice(6..)), Some(whole));
        let next = Bytes::from_static(&[0]);
        assert_eq!(drops.take_in(next.clone()), Some(next), "of a stream only the first is gathered");
        let huge = Bytes::from_static(&[0, 255, 0, 0, 0]);
        assert_eq!(arriving(0).take_in(huge.clone()), Some(huge), "it is refused at once");
    }

    #[test]
    fn bytes_are_counted_once_though_they_were_announced() {
        let budget = Budget::new(100);
        let (mut message, held) = (arriving(60), budget.hold(60).unwrap());
        message.count(50, &held).unwrap();
        message.count(50, &held).unwrap();
        assert!(message.count(1, &held).is_err());
        drop(held);
        assert!(budget.hold(100).is_ok());
    }

    #[test]
    fn a_connection_has_a_share_and_few_links() {
        let all = Budgets::new(Some(Budget::new(SHARES * 2 * REQUEST_BYTES)));
        let (one, other) = (all.share(), all.share());
        for (path, most) in [("/thrifty.store.v1.Store/Put", 2), (LINK, LINKS_OF_ONE)] {
            let held: Vec<_> = (0..most).map(|_| one.hold(path, 0).unwrap()).collect();
            assert!(one.hold(path, 0).is_err(), "{path}");
            other.hold(path, 0).unwrap();
            drop(held);
            one.hold(path, 0).unwrap();
        }
        let clients: Vec<_> = (0..SHARES).map(|_| all.share()).collect();
        let _all_of_it: Vec<_> =
            clients.iter().map(|one| one.clients.hold(2 * REQUEST_BYTES).unwrap()).collect();
        assert!(other.hold("/v1/kv/a", 0).is_err());
        other.hold("/thrifty.location.v1.LocationPeer/Gossip", 0).unwrap();
    }
}
