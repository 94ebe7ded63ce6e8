//! Links: how nodes ask each other.
//!
//! Between two nodes there is one long-lived bidirectional stream each way. A frame carries
//! whatever queued up while the previous one was being written: small frames at low load, so that
//! nothing waits, and large ones at high load, so that system calls are shared. Nothing relies on
//! order. Large questions travel on a second connection, so that small ones never wait behind
//! them. How large an answer will be its asker can't know; see [`super::answers`].
//!
//! A question that was still queued when its connection failed was never sent, and may go
//! elsewhere; one that was sent and not answered may have been carried out. The difference is
//! kept ([`Reply`]), since only the first may be sent again as a new request.

use crate::core::node::{Address, NodeId, RingId};
use crate::wire::budget::{Budget, Held};
use crate::wire::convert::id_bytes;
use crate::wire::store::store_peer_client::StorePeerClient;
use crate::wire::store::{Answer, LinkHello, LinkRequest, Question, answer, question};
use crate::wire::{MAX_MESSAGE_BYTES, channel};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;

/// A frame is closed when it has so many bytes: a good size for one write, and soon written.
pub(super) const FRAME_BYTES: usize = 256 << 10;

/// Questions and answers taken into a frame at once.
pub(super) const FRAME_ITEMS: usize = 512;

/// Questions that may be queued for one node. Past that they are not sent at all.
const QUEUE: usize = 8192;

/// Bytes of values that they may hold, in either queue: what a node that hangs can make this one keep
/// until its connection is found to be broken.
const QUEUE_BYTES: usize = 32 << 20;

/// Questions that may be sent and unanswered: what a node that hangs can make this one hold.
const MAX_PENDING: usize = 65_536;

/// Questions above this size take the second connection, and answers frames of their own.
pub(super) const SMALL: usize = 32 << 10;

/// What came of a question to another node.
#[derive(Debug)]
pub enum Reply {
    /// This.
    Answer(answer::Answer),
    /// It was sent, and the connection failed or the answer makes no sense: it may have been
    /// carried out.
    Lost,
}

/// The answer to a question, when it comes. If the sender is dropped, the question never left.
pub type Replies = oneshot::Receiver<Reply>;

/// A question that waits to be sent.
#[derive(Debug)]
struct Ask {
    ask: question::Ask,
    reply: oneshot::Sender<Reply>,
    /// Of the queue's bytes.
    _held: Held,
}

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
    budget: Arc<Budget>,
}

impl Lane {
    /// A lane that is driven by a task of its own.
    fn open(me: NodeId, to: NodeId, address: &Address, ring: RingId) -> Self {
        let (queue, questions) = mpsc::channel(QUEUE);
        let hello = LinkHello { from: id_bytes(me.0), to: id_bytes(to.0), ring_id: id_bytes(ring.0) };
        tokio::spawn(run(address.clone(), hello, questions));
        Lane { address: address.clone(), ring, queue, budget: Budget::new(QUEUE_BYTES) }
    }

    /// Queues a question. If there is no room for it the node hangs or is overloaded; dropping the
    /// question says that it never left.
    fn put(&self, ask: question::Ask, reply: oneshot::Sender<Reply>) {
        if let Ok(held) = self.budget.hold(size_of_ask(&ask)) {
            let _full_or_broken = self.queue.try_send(Ask { ask, reply, _held: held });
        }
    }
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
        let fits = |lane: &Lane| lane.address == *address && lane.ring == ring && !lane.queue.is_closed();
        let lane = lanes
            .entry((to, large))
            .and_modify(|lane| {
                if !fits(lane) {
                    *lane = Lane::open(self.me, to, address, ring);
                }
            })
            .or_insert_with(|| Lane::open(self.me, to, address, ring));
        lane.put(ask, reply);
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
        question::Ask::Read(_) | question::Ask::Page(_) => 0,
    }
}

/// The asker's end of a connection. The task that reads the answers and the request stream, which
/// the transport may hold on to for longer, share it.
#[derive(Debug)]
struct Line(Mutex<Option<Open>>);

/// A [`Line`] that has not failed. Dropping it tells whoever waits what became of his question.
#[derive(Debug)]
struct Open {
    /// `None` once nothing more can be sent.
    queue: Option<mpsc::Receiver<Ask>>,
    /// Out of the queue and not yet sent.
    taken: Vec<Ask>,
    /// Sent and not yet answered, by the question's number.
    waiting: HashMap<u64, oneshot::Sender<Reply>>,
    next: u64,
    /// Of the request stream, while it waits for questions.
    waker: Option<Waker>,
}

impl Line {
    fn new(queue: mpsc::Receiver<Ask>) -> Self {
        Line(Mutex::new(Some(Open {
            queue: Some(queue),
            taken: Vec::new(),
            waiting: HashMap::new(),
            next: 0,
            waker: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self, answers: Vec<Answer>) {
        let mut line = self.lock();
        let Some(open) = line.as_mut() else { return };
        for answer in answers {
            if let Some(reply) = open.waiting.remove(&answer.number) {
                // A kind of answer that this node doesn't know says all the same that it was asked.
                let _asker_gone = reply.send(answer.answer.map_or(Reply::Lost, Reply::Answer));
            }
        }
    }

    /// The connection failed: nothing is sent any more, be the request stream polled or not.
    fn close(&self) {
        let open = self.lock().take();
        if let Some(waker) = open.and_then(|mut open| open.waker.take()) {
            waker.wake();
        }
    }
}

impl Open {
    /// One frame of what is queued. `None`: nothing will be.
    fn frame(&mut self, context: &mut Context<'_>) -> Poll<Option<LinkRequest>> {
        if self.taken.is_empty() {
            let Some(queue) = &mut self.queue else { return Poll::Ready(None) };
            self.waker = Some(context.waker().clone());
            if ready!(queue.poll_recv_many(context, &mut self.taken, FRAME_ITEMS)) == 0 {
                return Poll::Ready(None);
            }
        }
        let mut frame = LinkRequest { hello: None, questions: Vec::with_capacity(self.taken.len()) };
        let mut bytes = 0;
        let mut taken = std::mem::take(&mut self.taken).into_iter();
        for Ask { ask, reply, _held } in taken.by_ref() {
            // The asker may have given up meanwhile.
            if !reply.is_closed() && self.waiting.len() < MAX_PENDING {
                bytes += size_of_ask(&ask);
                let number = self.next;
                self.next += 1;
                self.waiting.insert(number, reply);
                frame.questions.push(Question { number, ask: Some(ask) });
            }
            if bytes >= FRAME_BYTES {
                break;
            }
        }
        self.taken = taken.collect();
        Poll::Ready(Some(frame))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Whoever is still in the queue was never sent.
        for (_, reply) in self.waiting.drain() {
            let _asker_gone = reply.send(Reply::Lost);
        }
    }
}

/// Drives one connection until it fails, or nobody asks any more.
async fn run(address: Address, hello: LinkHello, questions: mpsc::Receiver<Ask>) {
    let line = Arc::new(Line::new(questions));
    let frames = Questions { hello: Some(hello), line: line.clone() };
    let mut client =
        StorePeerClient::new(channel::lazy(&address)).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let outcome = async {
        let mut answers = client.link(frames).await?.into_inner();
        while let Some(frame) = answers.message().await? {
            line.answered(frame.answers);
        }
        Ok::<(), tonic::Status>(())
    };
    if let Err(status) = outcome.await {
        tracing::debug!(%address, %status, "a link ended");
    }
    line.close();
}

/// The request stream: each poll makes one frame of what is queued.
struct Questions {
    hello: Option<LinkHello>,
    line: Arc<Line>,
}

impl Stream for Questions {
    type Item = LinkRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<LinkRequest>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(LinkRequest { hello: Some(hello), questions: Vec::new() }));
        }
        match self.line.lock().as_mut() {
            Some(open) => open.frame(context),
            None => Poll::Ready(None),
        }
    }
}

impl Drop for Questions {
    fn drop(&mut self) {
        // Answers to what was sent may still come.
        if let Some(open) = self.line.lock().as_mut() {
            open.queue = None;
            open.taken.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::store::{Nothing, ReadQuestion, Record, WriteQuestion};
    use futures_util::{FutureExt, StreamExt};
    use tokio::sync::oneshot::error::TryRecvError;

    /// A line with as many questions as there are replies, of which the first is sent.
    fn line(questions: usize) -> (Arc<Line>, Questions, mpsc::Sender<Ask>, Vec<Replies>) {
        let (queue, inbox) = mpsc::channel(QUEUE);
        let line = Arc::new(Line::new(inbox));
        let mut frames = Questions { hello: None, line: line.clone() };
        let ask = || {
            let (reply, replies) = oneshot::channel();
            let held = Budget::new(0).hold(0).unwrap();
            let ask = question::Ask::Read(ReadQuestion::default());
            queue.try_send(Ask { ask, reply, _held: held }).unwrap();
            replies
        };
        let mut replies = vec![ask()];
        assert_eq!(frames.next().now_or_never().unwrap().unwrap().questions.len(), 1);
        replies.extend((1..questions).map(|_| ask()));
        (line, frames, queue, replies)
    }

    #[tokio::test]
    async fn values_beyond_what_may_be_queued_are_never_sent() {
        let links = Links::new(NodeId(1));
        let address = "127.0.0.1:1".parse().unwrap();
        let megabyte = Record { value: Some(vec![0; 1 << 20].into()), ..Record::default() };
        let ask = |record: &Record| {
            let write = WriteQuestion { record: Some(record.clone()), ..WriteQuestion::default() };
            links.ask(NodeId(2), &address, RingId(3), question::Ask::Write(write))
        };
        let mut queued: Vec<_> = (0..QUEUE_BYTES >> 20).map(|_| ask(&megabyte)).collect();
        assert!(queued.iter_mut().all(|replies| matches!(replies.try_recv(), Err(TryRecvError::Empty))));
        assert_eq!(ask(&megabyte).try_recv().unwrap_err(), TryRecvError::Closed, "it never left");
        assert_eq!(ask(&Record::default()).try_recv().unwrap_err(), TryRecvError::Empty, "another lane");
    }

    #[test]
    fn what_nobody_waits_for_is_not_sent() {
        let (_line, mut frames, _queue, mut replies) = line(3);
        drop(replies.remove(1));
        assert_eq!(frames.next().now_or_never().unwrap().unwrap().questions.len(), 1);
    }

    #[test]
    fn an_answer_of_an_unknown_kind_was_a_question_sent() {
        let (line, _frames, _queue, mut replies) = line(1);
        line.answered(vec![Answer { number: 0, answer: None }]);
        assert!(matches!(replies.remove(0).try_recv(), Ok(Reply::Lost)));
    }

    #[test]
    fn nothing_is_sent_over_a_line_that_failed_though_the_transport_asks_for_more() {
        let (line, mut frames, queue, mut replies) = line(2);
        line.close();
        assert!(frames.next().now_or_never().unwrap().is_none());
        assert!(queue.is_closed(), "others are told at once");
        assert!(matches!(replies.remove(0).try_recv(), Ok(Reply::Lost)), "it was sent");
        assert!(replies.remove(0).try_recv().is_err(), "it was not");
    }

    #[test]
    fn a_request_stream_that_was_dropped_still_gets_its_answers() {
        let (line, frames, queue, mut replies) = line(2);
        drop(frames);
        assert!(queue.is_closed());
        assert!(replies.remove(1).try_recv().is_err(), "it was never sent");
        line.answered(vec![Answer { number: 0, answer: Some(answer::Answer::NoSpace(Nothing {})) }]);
        assert!(matches!(replies.remove(0).try_recv(), Ok(Reply::Answer(_))));
    }

    #[tokio::test]
    async fn a_request_stream_that_waits_learns_that_its_line_failed() {
        let (line, mut frames, _queue, _replies) = line(1);
        let mut next = tokio::spawn(async move { frames.next().await });
        assert!(futures_util::poll!(&mut next).is_pending());
        tokio::task::yield_now().await;
        line.close();
        let ended = tokio::time::timeout(std::time::Duration::from_secs(10), next).await;
        assert!(ended.unwrap().unwrap().is_none());
    }
}
