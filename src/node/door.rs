//! The door: how many may come in, and how long they may take to say what they speak.
//!
//! Whoever can reach the port can open connections; none of them may cost the node the files that
//! its storage and its links to other nodes need, and none may stay without a word.

use super::guard::Budgets;
use crate::news;
use futures_util::Stream;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

/// Connections at once, at the most: far more than a ring and its clients need.
const MAX_CONNECTIONS: usize = 10_000;

/// How long a new connection may take to say what it speaks, which is the first it has to say.
const GREETING: Duration = Duration::from_secs(10);

/// Who speaks HTTP/2 begins with so many bytes, and it takes no more to see that somebody doesn't.
const PREFACE_BYTES: usize = 24;

/// How often it is said that connections are turned away.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// When all places are taken, a connection on which nothing was asked for so long makes room for a new
/// one.
const IDLE: Duration = Duration::from_secs(60);

/// How long that may take: it only has to be told.
const MAKE_ROOM: Duration = Duration::from_millis(100);

/// Between two tries to accept, where the system refuses: it has no file to spare, say, and asking
/// it at once again would only keep the node busy.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How many connections are taken: a quarter of the files that this process may have open is left
/// for its data and for its own connections to others.
pub(super) fn max_connections() -> usize {
    #[cfg(unix)]
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    #[cfg(not(unix))]
    let files = None;
    let files = files.and_then(|files| usize::try_from(files).ok());
    files.map_or(MAX_CONNECTIONS, |files| MAX_CONNECTIONS.min(files / 4 * 3))
}

/// Where connections come in.
pub trait Listener: Send + 'static {
    /// What they travel on.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Waits for the next one.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        // Without it small answers wait; with a connection that broke already it doesn't matter.
        let _broken_already = stream.set_nodelay(true);
        Ok(stream)
    }
}

/// Those that were let in and have not said yet what they speak.
#[derive(Clone, Default)]
pub(super) struct Silent(Arc<watch::Sender<()>>);

impl Silent {
    /// Waits until there are none.
    #[cfg(feature = "gateway")]
    pub(super) async fn none(&self) {
        self.0.closed().await;
    }
}

/// The connections that come in on a listener, `most` at once. Each brings its share of the budgets,
/// and is first among the `silent`.
pub(super) fn incoming<L: Listener>(
    listener: L,
    budgets: Arc<Budgets>,
    most: usize,
    silent: Silent,
) -> impl Stream<Item = io::Result<Guest<L::Stream>>> {
    let door = Door { silent, ..Door::new(listener, budgets, most, GREETING) };
    futures_util::stream::unfold(door, |mut door| async move {
        let guest = door.next().await;
        Some((Ok(guest), door))
    })
}

struct Door<L> {
    listener: L,
    budgets: Arc<Budgets>,
    places: Arc<Semaphore>,
    /// Who was let in, some of whom are gone; what is sent makes them go.
    guests: Vec<(Weak<Budgets>, oneshot::Sender<()>)>,
    /// From when on one of them may be made to.
    idle: Duration,
    most: usize,
    greeting: Duration,
    silent: Silent,
    turned_away: u64,
    said: Option<Instant>,
}

impl<L: Listener> Door<L> {
    fn new(listener: L, budgets: Arc<Budgets>, most: usize, greeting: Duration) -> Self {
        let places = Arc::new(Semaphore::new(most));
        Door {
            listener,
            budgets,
            places,
            guests: Vec::new(),
            most,
            greeting,
            silent: Silent::default(),
            idle: IDLE,
            turned_away: 0,
            said: None,
        }
    }

    async fn next(&mut self) -> Guest<L::Stream> {
        loop {
            match self.listener.accept().await {
                Ok(stream) => match self.place().await {
                    Some(place) => return self.let_in(stream, place),
                    // Dropped, and so closed, at once.
                    None => self.turn_away(),
                },
                // Gone again before it was let in.
                Err(error)
                    if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    /// A place that is free, or becomes free for who has been idle longest.
    async fn place(&mut self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some(place);
        }
        self.guests.retain(|(guest, _)| guest.strong_count() > 0);
        let idle = |(guest, _): &(Weak<Budgets>, _)| guest.upgrade().and_then(|guest| guest.idle());
        let longest = (0..self.guests.len()).max_by_key(|at| idle(&self.guests[*at]))?;
        if idle(&self.guests[longest]) < Some(self.idle) {
            return None;
        }
        let _gone_already = self.guests.swap_remove(longest).1.send(());
        let place = tokio::time::timeout(MAKE_ROOM, self.places.clone().acquire_owned()).await;
        place.ok()?.ok()
    }

    fn let_in(&mut self, stream: L::Stream, place: OwnedSemaphorePermit) -> Guest<L::Stream> {
        if self.guests.len() > self.most * 2 {
            self.guests.retain(|(guest, _)| guest.strong_count() > 0);
        }
        let (budgets, (go, asked_to_go)) = (self.budgets.share(), oneshot::channel());
        self.guests.push((Arc::downgrade(&budgets), go));
        let end = Box::pin(tokio::time::sleep(self.greeting));
        let silence = Silence { heard: 0, end, _among: self.silent.0.subscribe() };
        Guest { stream, budgets, silence: Some(silence), asked_to_go, _place: place }
    }

    fn turn_away(&mut self) {
        self.turned_away += 1;
        if self.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            let (most, count) = (self.most, std::mem::take(&mut self.turned_away));
            news!("{most} connections are open, and no more are taken: turned away {count}");
            self.said = Some(Instant::now());
        }
    }
}

/// A connection that was let in; its place is free again when this ends.
pub(super) struct Guest<S> {
    stream: S,
    budgets: Arc<Budgets>,
    /// Until it has said what it speaks.
    silence: Option<Silence>,
    asked_to_go: oneshot::Receiver<()>,
    _place: OwnedSemaphorePermit,
}

struct Silence {
    heard: usize,
    end: Pin<Box<Sleep>>,
    /// The others.
    _among: watch::Receiver<()>,
}

impl<S> Connected for Guest<S> {
    type ConnectInfo = Arc<Budgets>;

    fn connect_info(&self) -> Arc<Budgets> {
        self.budgets.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guest<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Guest { stream, silence, asked_to_go, .. } = &mut *self;
        // Once there is an answer it must not be asked again.
        if !asked_to_go.is_terminated() && Pin::new(asked_to_go).poll(context) == Poll::Ready(Ok(())) {
            return Poll::Ready(Err(ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(stream).poll_read(context, buffer);
        if let Some(waiting) = silence {
            waiting.heard += buffer.filled().len() - before;
            if waiting.heard >= PREFACE_BYTES {
                *silence = None;
            } else if read.is_pending() && waiting.end.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

/// Whoever is answered has said enough, be it ever so short.
impl<S: AsyncWrite + Unpin> AsyncWrite for Guest<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.silence = None;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.silence = None;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// For a greeting that is awaited: longer than any test may take.
    const LONG: Duration = Duration::from_secs(60);

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    async fn door(most: usize, greeting: Duration) -> (Door<TcpListener>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Door::new(listener, Budgets::new(None), most, greeting), address)
    }

    #[test]
    fn who_finds_no_place_is_turned_away_at_once_and_a_place_that_is_left_is_given_again() {
        block_on(async {
            let (mut door, address) = door(1, LONG).await;
            let _first_outside = TcpStream::connect(address).await.unwrap();
            let first = door.next().await;
            let mut second = TcpStream::connect(address).await.unwrap();
            let mut third = tokio::select! {
                _ = door.next() => panic!("there is one place only"),
                read = second.read_u8() => {
                    assert!(read.is_err(), "closed");
                    drop(first);
                    TcpStream::connect(address).await.unwrap()
                }
            };
            let mut guest = door.next().await;
            third.write_all(b"3").await.unwrap();
            assert_eq!(guest.read_u8().await.unwrap(), b'3');
        });
    }

    #[test]
    fn a_full_door_lets_in_another_for_who_has_long_been_idle() {
        block_on(async {
            let (mut door, address) = door(2, LONG).await;
            door.idle = Duration::ZERO;
            let connect = async || TcpStream::connect(address).await.unwrap();
            let _outside = [connect().await, connect().await, connect().await];
            let (busy, mut idle) = (door.next().await, door.next().await);
            let _request = busy.budgets.hold("/v1/kv/a", 0).unwrap();
            let goes = async {
                assert_eq!(idle.read_u8().await.unwrap_err().kind(), ErrorKind::TimedOut);
                drop(idle);
            };
            let (third, ()) = tokio::join!(door.next(), goes);
            let _request = third.budgets.hold("/v1/kv/a", 0).unwrap();
            assert!(door.place().await.is_none(), "nobody is idle");
        });
    }

    #[test]
    fn who_says_too_little_is_not_waited_for() {
        block_on(async {
            let (mut door, address) = door(1, Duration::from_millis(20)).await;
            let mut outside = TcpStream::connect(address).await.unwrap();
            let mut guest = door.next().await;
            outside.write_all(b"PRI").await.unwrap();
            let mut heard = Vec::new();
            let error = guest.read_to_end(&mut heard).await.unwrap_err();
            assert_eq!((error.kind(), &heard[..]), (ErrorKind::TimedOut, &b"PRI"[..]));
        });
    }

    #[test]
    fn who_has_spoken_or_was_answered_may_be_silent() {
        block_on(async {
            let (mut door, address) = door(2, LONG).await;
            let mut speaker = TcpStream::connect(address).await.unwrap();
            let mut spoken = door.next().await;
            assert!(spoken.silence.is_some());
            speaker.write_all(&[b'x'; PREFACE_BYTES]).await.unwrap();
            spoken.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
            assert!(spoken.silence.is_none());
            let _listener = TcpStream::connect(address).await.unwrap();
            let mut answered = door.next().await;
            answered.write_all(b"y").await.unwrap();
            assert!(answered.silence.is_none());
        });
    }

    #[cfg(feature = "gateway")]
    #[test]
    fn who_has_not_spoken_is_known() {
        use futures_util::FutureExt;
        block_on(async {
            let (mut door, address) = door(2, LONG).await;
            let silent = door.silent.clone();
            silent.none().await;
            let mut speaker = TcpStream::connect(address).await.unwrap();
            let (mut guest, _outside) = (door.next().await, TcpStream::connect(address).await.unwrap());
            let gone = door.next().await;
            assert!(silent.none().now_or_never().is_none());
            speaker.write_all(&[b'x'; PREFACE_BYTES]).await.unwrap();
            guest.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
            assert!(silent.none().now_or_never().is_none());
            drop(gone);
            silent.none().await;
        });
    }

    #[test]
    fn some_files_are_left_for_the_node_itself() {
        let most = max_connections();
        assert!((1..=MAX_CONNECTIONS).contains(&most), "{most}");
    }
}
