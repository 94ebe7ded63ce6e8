//! A crowd: very many requests under way for very little of a processor.
//!
//! A real client takes about as much time for a request as the ring does, so that on one machine it
//! could never ask for ten times what the ring can do, and would blame the ring for answers that
//! itself was late to read. So here each connection is one task that sends requests made before and
//! looks at nothing of an answer but its status. A request that is not answered in time is taken
//! back, as a client does.

use crate::args::Load;
use crate::common::{Exit, Failure};
use crate::frames::{self, End};
use crate::random::Random;
use crate::workload::{Ask, Workload};
use prost::Message;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};
use thrifty::core::layout::Layout;
use thrifty::core::node::Address;
use thrifty::wire::MAX_STREAMS;
use thrifty::wire::convert::consistency_to;
use thrifty::wire::store::{GetRequest, Options, PutRequest};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior};

/// Requests of one connection, so that they wait in the ring and not here: a node takes a few more.
const PER_CONNECTION: u32 = MAX_STREAMS / 16 * 15;

/// How often requests become due.
const TICK: Duration = Duration::from_millis(1);

/// Requests that each connection has ready.
const READY: usize = 512;

/// No request is made to wait behind so many bytes that the node has not taken.
const MAX_UNSENT: usize = 64 << 10;

/// What became of the requests.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Counts {
    pub(crate) good: u64,
    pub(crate) turned_away: u64,
    pub(crate) unavailable: u64,
    pub(crate) unknown: u64,
    pub(crate) other: u64,
    /// Connections; what was under way on them is unknown.
    pub(crate) lost: u64,
}

impl Counts {
    fn ended(&mut self, end: End) {
        *match end {
            End::Good => &mut self.good,
            End::TurnedAway => &mut self.turned_away,
            End::Unavailable => &mut self.unavailable,
            End::Unknown => &mut self.unknown,
            End::Other => &mut self.other,
        } += 1;
    }
}

/// Sends up to `rate` requests a second for the time of the load, up to `most` at once, each to its
/// coordinator.
pub(crate) async fn send(
    load: &Load,
    layout: &Layout,
    workload: &Workload,
    most: u32,
    rate: f64,
) -> Result<Counts, Failure> {
    let nodes = layout.members.len() as u32;
    let each = most.div_ceil(nodes).div_ceil(PER_CONNECTION);
    let connections = nodes * each;
    let mut all: JoinSet<Result<Counts, Failure>> = JoinSet::new();
    for number in 0..connections {
        let member = &layout.members[(number / each) as usize];
        let mine = |key: &[u8]| {
            load.any_node || layout.coordinators(layout.segment(key)).first() == Some(&member.id)
        };
        let mut random = Random::new(u64::from(number) + 1);
        let requests = (0..READY).filter_map(|_| {
            let asks = std::iter::repeat_with(|| workload.ask(0, &mut random));
            let ask = asks.take(100).find(|(Ask::Put(key, _) | Ask::Get(key))| mine(key))?;
            Some(message(load, ask))
        });
        let requests: Vec<_> = requests.collect();
        if requests.is_empty() || requests.iter().any(|(_, message)| message.len() + 5 > frames::MAX_FRAME) {
            let text = "a crowd needs values of less than 16 KiB, and more keys than nodes";
            return Err(Failure::new(Exit::Usage, text));
        }
        let address = member.address.clone();
        let rate = rate / f64::from(connections);
        let most = (most / connections).max(1) as usize;
        let (time, timeout) = (load.seconds, load.connect.timeout);
        all.spawn(async move {
            let connecting = Member::connect(address.clone(), requests, timeout, most, rate).await;
            let member = connecting.map_err(|error| {
                Failure::new(Exit::Unavailable, format!("the crowd can't connect to {address}: {error}"))
            })?;
            Ok(member.run(time).await)
        });
    }
    let mut sum = Counts::default();
    while let Some(one) = all.join_next().await {
        let one = one.map_err(|error| Failure::new(Exit::Unknown, format!("a crowd failed: {error}")))??;
        sum.good += one.good;
        sum.turned_away += one.turned_away;
        sum.unavailable += one.unavailable;
        sum.unknown += one.unknown;
        sum.other += one.other;
        sum.lost += one.lost;
    }
    Ok(sum)
}

/// A request's path and message.
fn message(load: &Load, ask: Ask) -> (&'static str, Vec<u8>) {
    let consistency = consistency_to(load.consistency.into());
    let options = Some(Options { consistency, fallback_to_one: false });
    match ask {
        Ask::Put(key, value) => {
            let put = PutRequest { key, value, options, ..PutRequest::default() };
            ("/thrifty.store.v1.Store/Put", put.encode_to_vec())
        }
        Ask::Get(key) => {
            ("/thrifty.store.v1.Store/Get", GetRequest { key, options, local: false }.encode_to_vec())
        }
    }
}

/// One of the crowd: a connection, and another one when it is lost.
struct Member {
    address: Address,
    /// The first says the headers that the others refer to.
    first: Vec<u8>,
    requests: Vec<Vec<u8>>,
    timeout: Duration,
    most: usize,
    rate: f64,
    counts: Counts,
    line: Line,
}

/// A connection.
struct Line {
    stream: TcpStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// When each was sent, from the oldest that has not ended on; `None` once it has.
    sent: VecDeque<Option<Instant>>,
    /// The stream of the first of those.
    oldest: u32,
    under_way: usize,
    /// Bytes of messages that the node takes now.
    window: i64,
    /// Bytes that came since the node was told that it may send more.
    came: u32,
}

impl Line {
    async fn connect(address: &Address) -> io::Result<Self> {
        let stream = TcpStream::connect(address.to_string()).await?;
        stream.set_nodelay(true)?;
        Ok(Line {
            stream,
            incoming: Vec::new(),
            outgoing: frames::greeting(),
            sent: VecDeque::new(),
            oldest: 1,
            under_way: 0,
            window: frames::FIRST_WINDOW,
            came: 0,
        })
    }
}

impl Member {
    async fn connect(
        address: Address,
        requests: Vec<(&'static str, Vec<u8>)>,
        timeout: Duration,
        most: usize,
        rate: f64,
    ) -> io::Result<Self> {
        let line = Line::connect(&address).await?;
        let (path, message) = &requests[0];
        let first = frames::request(Some((&address, timeout.as_millis() as u32)), path, message);
        let requests = requests.iter().map(|(path, message)| frames::request(None, path, message)).collect();
        Ok(Member { address, first, requests, timeout, most, rate, counts: Counts::default(), line })
    }

    /// Sends for so long, then waits for what is under way.
    async fn run(mut self, time: Duration) -> Counts {
        let (start, mut due_before) = (Instant::now(), 0);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = Instant::now();
            if now - start < time {
                let due = ((now - start).as_secs_f64() * self.rate) as u64;
                self.start(due - due_before, now);
                due_before = due;
            } else if self.line.under_way == 0 {
                return self.counts;
            }
            if self.exchange(&mut ticks).await.is_err() {
                self.counts.unknown += self.line.under_way as u64;
                self.counts.lost += 1;
                match Line::connect(&self.address).await {
                    Ok(line) => self.line = line,
                    Err(_gone) => return self.counts,
                }
            }
        }
    }

    /// Sends and receives, until it is time to look for what is due.
    async fn exchange(&mut self, ticks: &mut Interval) -> io::Result<()> {
        self.write()?;
        let interest = match self.line.outgoing.is_empty() {
            true => Interest::READABLE,
            false => Interest::READABLE | Interest::WRITABLE,
        };
        tokio::select! {
            _ = ticks.tick() => {}
            ready = self.line.stream.ready(interest) => { ready?; }
        }
        self.read()?;
        self.give_up(Instant::now());
        Ok(())
    }

    /// Starts so many requests, or as many as there is room for.
    fn start(&mut self, count: u64, now: Instant) {
        for _ in 0..count {
            if self.line.under_way >= self.most
                || self.line.outgoing.len() > MAX_UNSENT
                || self.line.window <= 0
            {
                return;
            }
            let number = self.line.oldest as usize / 2 + self.line.sent.len();
            let at = number % self.requests.len();
            let request = if number == 0 { &mut self.first } else { &mut self.requests[at] };
            frames::address(request, number as u32 * 2 + 1);
            self.line.outgoing.extend_from_slice(request);
            self.line.window -= request.len() as i64;
            self.line.sent.push_back(Some(now));
            self.line.under_way += 1;
        }
    }

    /// Takes back what was not answered in time.
    fn give_up(&mut self, now: Instant) {
        while let Some(sent) = self.line.sent.front() {
            if let Some(sent) = sent {
                if now - *sent < self.timeout {
                    return;
                }
                let cancel = frames::CANCEL.to_be_bytes();
                frames::put(&mut self.line.outgoing, frames::RST_STREAM, 0, self.line.oldest, &cancel);
                self.counts.ended(End::Unknown);
                self.line.under_way -= 1;
            }
            self.line.sent.pop_front();
            self.line.oldest += 2;
        }
    }

    /// A request ended, unless it was given up before.
    fn ended(&mut self, stream: u32, end: End) {
        let at = stream.checked_sub(self.line.oldest).map(|ahead| ahead as usize / 2);
        if at.and_then(|at| self.line.sent.get_mut(at)).and_then(Option::take).is_some() {
            self.counts.ended(end);
            self.line.under_way -= 1;
        }
    }

    fn write(&mut self) -> io::Result<()> {
        match self.line.stream.try_write(&self.line.outgoing) {
            Ok(written) => _ = self.line.outgoing.drain(..written),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        loop {
            match self.line.stream.try_read_buf(&mut self.line.incoming) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => self.take_in()?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes in the frames that are there.
    fn take_in(&mut self) -> io::Result<()> {
        let incoming = std::mem::take(&mut self.line.incoming);
        let mut rest = &incoming[..];
        while let Some((frame, after)) = frames::take(rest) {
            rest = after;
            let number = || frame.payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
            match frame.kind {
                frames::HEADERS if frame.flags & frames::END_STREAM != 0 => {
                    self.ended(frame.stream, frames::end(frame.payload));
                }
                frames::RST_STREAM => self.ended(frame.stream, End::Other),
                frames::DATA => self.line.came += frame.payload.len() as u32,
                frames::WINDOW_UPDATE if frame.stream == 0 => self.line.window += i64::from(number()),
                frames::SETTINGS | frames::PING if frame.flags & frames::ACK == 0 => {
                    let answer = if frame.kind == frames::PING { frame.payload } else { &[] };
                    frames::put(&mut self.line.outgoing, frame.kind, frames::ACK, 0, answer);
                }
                frames::GOAWAY => {
                    let why = String::from_utf8_lossy(frame.payload.get(8..).unwrap_or_default());
                    return Err(io::Error::other(format!("the node closes it: {why}")));
                }
                _ => {}
            }
        }
        if self.line.came > 1 << 20 {
            frames::put(&mut self.line.outgoing, frames::WINDOW_UPDATE, 0, 0, &self.line.came.to_be_bytes());
            self.line.came = 0;
        }
        self.line.incoming = rest.to_vec();
        Ok(())
    }
}
