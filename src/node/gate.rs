//! Serves a gate: plain HTTP before a ring, bounded as a node is.

use super::door::{self, Listener, Silent, max_connections};
use super::guard::{Budgets, Guard};
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, Version, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Notify};
use tonic::service::Routes;
use tonic::transport::Error;

/// Once nobody is let in any more, those who came last have so long to say what they want: longer than a
/// busy machine may take to let them speak.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// For so long connections on which nothing is under way stay open: whoever sends one request after the other
/// is told with the next answer.
const GOODBYE: Duration = Duration::from_secs(1);

/// No system has more than so many wait to be let in.
const MOST_LAST: usize = 1 << 16;

/// The part of the connections of a process that may be a gate's which is beside a node in it.
const SHARE_BESIDE_A_NODE: usize = 8;

/// How a gate is served.
#[derive(Clone, Copy, Debug)]
pub struct Serving {
    /// How long requests that are under way may take to end.
    pub grace: Duration,
    /// Whether there is a node in this process, which needs connections of its own.
    pub beside_a_node: bool,
}

/// Serves until `stop`, and then what is under way. Whoever connects from then on is refused by the
/// system, so that he can go to another gate at once, and whoever had connected before is answered.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    serving: Serving,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Error> {
    let Serving { grace, beside_a_node } = serving;
    let most = if beside_a_node { max_connections() / SHARE_BESIDE_A_NODE } else { max_connections() };
    let (budgets, stop) = (Budgets::new(None), stop.boxed().shared());
    let (silent, all_let_in) = (Silent::default(), Arc::new(Notify::new()));
    let state = Mutex::new(State { open: Some(listener), last: VecDeque::new() });
    let listener = Closing { stop: stop.clone(), state, all_let_in: all_let_in.clone() };
    let incoming = door::incoming(listener, budgets.clone(), most, silent.clone());
    // Till then nobody is taken for idle.
    let closing = Arc::new(AtomicBool::new(false));
    let told = closing.clone();
    let last_words = async move {
        all_let_in.notified().await;
        told.store(true, Ordering::Release);
        let all_or_enough = tokio::time::timeout(LAST_WORDS, silent.none());
        let _ended = tokio::join!(all_or_enough, tokio::time::sleep(GOODBYE));
    };
    let routes = routes.layer(middleware::from_fn(move |request: Request, next: Next| {
        let closing = closing.clone();
        async move { last_answer(&closing, request, next).await }
    }));
    let routes = Guard::new(Routes::from(routes).prepare(), budgets);
    let served = super::server().serve_with_incoming_shutdown(routes, incoming, last_words);
    let too_late = stop.then(|()| tokio::time::sleep(LAST_WORDS + grace));
    tokio::select! {
        served = served => served,
        () = too_late => Ok(()),
    }
}

/// An answer that says, once this gate ends, that it is the last on its connection: so that who sends one request
/// after the other on it goes to another gate with the next.
async fn last_answer(closing: &AtomicBool, request: Request, next: Next) -> Response {
    let one_by_one = request.version() < Version::HTTP_2;
    let mut response = next.run(request).await;
    if one_by_one && closing.load(Ordering::Acquire) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A listener that closes at `stop`.
struct Closing {
    stop: Shared<BoxFuture<'static, ()>>,
    state: Mutex<State>,
    /// Told when it has closed and there is nobody left to let in.
    all_let_in: Arc<Notify>,
}

struct State {
    open: Option<TcpListener>,
    /// Those who had come by then.
    last: VecDeque<std::net::TcpStream>,
}

impl Listener for Closing {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let mut state = self.state.lock().await;
        if let Some(listener) = &state.open {
            tokio::select! {
                biased;
                () = self.stop.clone() => {}
                accepted = Listener::accept(listener) => return accepted,
            }
        }
        if let Some(listener) = state.open.take() {
            state.last = close(listener.into_std()?);
        }
        let Some(stream) = state.last.pop_front() else {
            self.all_let_in.notify_one();
            return std::future::pending().await;
        };
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        TcpStream::from_std(stream)
    }
}

/// Closes a listener, and returns whom the system has let in and nobody has seen: asked of the system
/// itself and until the moment before, since they are reset by closing it.
fn close(listener: std::net::TcpListener) -> VecDeque<std::net::TcpStream> {
    let mut last = VecDeque::new();
    while last.len() < MOST_LAST {
        match listener.accept() {
            Ok((stream, _)) => last.push_back(stream),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(_none) => break,
        }
    }
    last
}
