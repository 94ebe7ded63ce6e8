//! Links: how nodes ask each other.
//!
//! Between two nodes there is one long-lived bidirectional stream each way. A frame carries
//! whatever queued up while the previous one was being written: small frames at low load, so that
//! nothing waits, and large ones at high load, so that system calls are shared. Nothing relies on
//! order. Large questions travel on a second connection, so that small ones never wait behind
//! them.
//!
//! A question that was still queued when its connection failed was never sent, and may go
//! elsewhere; one that was sent and not answered may have been carried out. The difference is
//! kept ([`Reply`]), since only the first may be sent again as a new request.

use crate::core::node::{Address, NodeId, RingId};
use crate::wire::convert::id_bytes;
use crate::wire::store::store_peer_client::StorePeerClient;
use crate::wire::store::{Answer, LinkHello, LinkRequest, LinkResponse, Question, answer, question};
use crate::wire::{MAX_MESSAGE_BYTES, channel};
use prost::Message;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;

/// A frame is closed when it has so many bytes: a good size for one write, and soon written.
const FRAME_BYTES: usize = 256 << 10;

/// Questions and answers taken into a frame at once.
const FRAME_ITEMS: usize = 512;

/// Questions that may be queued for one node. Past that they are not sent at all.
const QUEUE: usize = 8192;

/// Questions that may be sent and unanswered: what a node that hangs can make this one hold.
const MAX_PENDING: usize = 65_536;

/// Questions above this size take the second connection.
const SMALL: usize = 32 << 10;

/// What came of a question to another node.
#[derive(Debug)]
pub enum Reply {
    /// This.
    Answer(answer::Answer),
    /// It was sent, and the connection failed: it may have been carried out.
    Lost,
}

/// The answer to a question, when it comes. If the sender is dropped, the question never left.
pub type Replies = oneshot::Receiver<Reply>;

type Ask = (question::Ask, oneshot::Sender<Reply>);

/// The links of one node to all others.
#[derive(Debug)]
pub struct Links {
    me: NodeId,
    lanes: Mutex<HashMap<(NodeId, bool), Lane>>,
}

#[derive(Debug)]
struct Lane {
    address: Address,
    ring: RingId,
    queue: mpsc::Sender<Ask>,
}

impl Links {
    /// No connection is made yet.
    pub fn new(me: NodeId) -> Self {
        Links { me, lanes: Mutex::default() }
    }

    /// Puts a question to a node. Returns at once.
    pub fn ask(&self, to: NodeId, address: &Address, ring: RingId, ask: question::Ask) -> Replies {
        let (reply, replies) = oneshot::channel();
        let large = size_of_ask(&ask) > SMALL;
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |lane: &&Lane| lane.address == *address && lane.ring == ring && !lane.queue.is_closed();
        let ask = match lanes.get(&(to, large)).filter(fits) {
            Some(lane) => match lane.queue.try_send((ask, reply)) {
                Ok(()) => return replies,
                // Full: it hangs or is overloaded. Dropping the question says that it never left.
                Err(mpsc::error::TrySendError::Full(_)) => return replies,
                Err(mpsc::error::TrySendError::Closed(ask)) => ask,
            },
            None => (ask, reply),
        };
        let (queue, questions) = mpsc::channel(QUEUE);
        let _never_full = queue.try_send(ask);
        lanes.insert((to, large), Lane { address: address.clone(), ring, queue });
        let hello = LinkHello { from: id_bytes(self.me.0), to: id_bytes(to.0), ring_id: id_bytes(ring.0) };
        tokio::spawn(run(address.clone(), hello, questions));
        replies
    }

    /// Forgets links to nodes that are not wanted any more.
    pub fn retain(&self, wanted: impl Fn(NodeId) -> bool) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.retain(|(id, _), lane| wanted(*id) && !lane.queue.is_closed());
    }
}

fn size_of_ask(ask: &question::Ask) -> usize {
    match ask {
        question::Ask::Write(write) => {
            write.record.as_ref().and_then(|record| record.value.as_ref()).map_or(0, bytes::Bytes::len)
        }
        question::Ask::Forward(forward) => match &forward.request {
            Some(crate::wire::store::forwarded_request::Request::Put(put)) => put.value.len(),
            _ => 0,
        },
        question::Ask::Read(_) => 0,
    }
}

/// Questions that were sent, by their number.
#[derive(Debug, Default)]
struct Pending {
    waiting: Mutex<HashMap<u64, oneshot::Sender<Reply>>>,
    next: AtomicU64,
}

impl Pending {
    fn add(&self, reply: oneshot::Sender<Reply>) -> Option<u64> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MAX_PENDING {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        waiting.insert(number, reply);
        Some(number)
    }

    fn answered(&self, answers: Vec<Answer>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for answer in answers {
            if let (Some(reply), Some(answer)) = (waiting.remove(&answer.number), answer.answer) {
                let _asker_gone = reply.send(Reply::Answer(answer));
            }
        }
    }

    fn lost(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, reply) in waiting.drain() {
            let _asker_gone = reply.send(Reply::Lost);
        }
    }
}

/// Drives one connection until it fails, or nobody asks any more.
async fn run(address: Address, hello: LinkHello, questions: mpsc::Receiver<Ask>) {
    let pending = Arc::new(Pending::default());
    let frames =
        Questions { hello: Some(hello), queue: questions, taken: Vec::new(), pending: pending.clone() };
    let mut client =
        StorePeerClient::new(channel::lazy(&address)).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let outcome = async {
        let mut answers = client.link(frames).await?.into_inner();
        while let Some(frame) = answers.message().await? {
            pending.answered(frame.answers);
        }
        Ok::<(), tonic::Status>(())
    };
    if let Err(status) = outcome.await {
        tracing::debug!(%address, %status, "a link ended");
    }
    // The queue is dropped with the stream; whoever is still in it was never sent.
    drop(client);
    pending.lost();
}

/// The request stream: each poll makes one frame of what is queued.
struct Questions {
    hello: Option<LinkHello>,
    queue: mpsc::Receiver<Ask>,
    taken: Vec<Ask>,
    pending: Arc<Pending>,
}

impl Stream for Questions {
    type Item = LinkRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<LinkRequest>> {
        let this = &mut *self;
        if let Some(hello) = this.hello.take() {
            return Poll::Ready(Some(LinkRequest { hello: Some(hello), questions: Vec::new() }));
        }
        if this.taken.is_empty()
            && std::task::ready!(this.queue.poll_recv_many(context, &mut this.taken, FRAME_ITEMS)) == 0
        {
            return Poll::Ready(None);
        }
        let mut frame = LinkRequest { hello: None, questions: Vec::with_capacity(this.taken.len()) };
        let mut bytes = 0;
        let mut taken = std::mem::take(&mut this.taken).into_iter();
        for (ask, reply) in taken.by_ref() {
            bytes += size_of_ask(&ask);
            // The asker may have given up meanwhile.
            if !reply.is_closed()
                && let Some(number) = this.pending.add(reply)
            {
                frame.questions.push(Question { number, ask: Some(ask) });
            }
            if bytes >= FRAME_BYTES {
                break;
            }
        }
        this.taken = taken.collect();
        Poll::Ready(Some(frame))
    }
}

/// The response stream of the other end: each poll makes one frame of the answers that are ready.
#[derive(Debug)]
pub struct Answers {
    queue: mpsc::UnboundedReceiver<Answer>,
    taken: Vec<Answer>,
}

impl Answers {
    /// Answers come in through the sender.
    pub fn channel() -> (mpsc::UnboundedSender<Answer>, Self) {
        let (sender, queue) = mpsc::unbounded_channel();
        (sender, Answers { queue, taken: Vec::new() })
    }
}

impl Stream for Answers {
    type Item = Result<LinkResponse, tonic::Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.taken.is_empty()
            && std::task::ready!(this.queue.poll_recv_many(context, &mut this.taken, FRAME_ITEMS)) == 0
        {
            return Poll::Ready(None);
        }
        let mut frame = LinkResponse { answers: Vec::with_capacity(this.taken.len()) };
        let mut bytes = 0;
        let mut taken = std::mem::take(&mut this.taken).into_iter();
        for answer in taken.by_ref() {
            bytes += answer.encoded_len();
            frame.answers.push(answer);
            if bytes >= FRAME_BYTES {
                break;
            }
        }
        this.taken = taken.collect();
        Poll::Ready(Some(Ok(frame)))
    }
}
