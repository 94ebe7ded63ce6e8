//! The answering end of a link.
//!
//! Each frame carries the answers that became ready while the previous one was being written, in
//! any order. Small and large ones take turns, a frame each, so that no small answer waits for more
//! than one frame of large ones. From an asker that does not read its answers no more questions are
//! taken, so that what waits for it is bounded.

use super::link::{FRAME_BYTES, FRAME_ITEMS, SMALL};
use crate::wire::store::{Answer, LinkResponse};
use prost::Message;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::sync::{Notify, mpsc};
use tokio_stream::Stream;

/// Bytes of answers that may wait for the asker to read them: many times what is on the way at
/// once. Past that no more of its questions are taken; what it has asked already may still add to
/// them.
const MAX_UNREAD: usize = 16 << 20;

/// Where the answers to a link's questions go in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Answering {
    queue: mpsc::UnboundedSender<(usize, Answer)>,
    unread: Arc<Unread>,
}

/// Answers that wait to be written.
#[derive(Debug, Default)]
struct Unread {
    bytes: AtomicUsize,
    fell: Notify,
}

impl Answering {
    /// Never waits: who is answered has kept to [`Answering::room`].
    pub fn send(&self, answer: Answer) {
        // So that answers of next to no size count, too.
        let size = answer.encoded_len() + size_of::<Answer>();
        self.unread.bytes.fetch_add(size, Ordering::AcqRel);
        let _link_gone = self.queue.send((size, answer));
    }

    /// Waits until so little is unread that another question may be taken. `false`: the link is
    /// gone. For one task only.
    pub async fn room(&self) -> bool {
        while self.unread.bytes.load(Ordering::Acquire) > MAX_UNREAD {
            tokio::select! {
                () = self.unread.fell.notified() => {}
                () = self.queue.closed() => break,
            }
        }
        !self.queue.is_closed()
    }
}

/// The response stream of a link: each poll makes one frame of the answers that are ready.
#[derive(Debug)]
pub struct Answers {
    queue: mpsc::UnboundedReceiver<(usize, Answer)>,
    taken: Vec<(usize, Answer)>,
    small: VecDeque<(usize, Answer)>,
    large: VecDeque<(usize, Answer)>,
    /// Whose turn it is.
    large_next: bool,
    unread: Arc<Unread>,
}

impl Answers {
    /// Answers come in through the sender.
    pub fn channel() -> (Answering, Self) {
        let (sender, queue) = mpsc::unbounded_channel();
        let unread = Arc::new(Unread::default());
        let answers = Answers {
            queue,
            taken: Vec::new(),
            small: VecDeque::new(),
            large: VecDeque::new(),
            large_next: false,
            unread: unread.clone(),
        };
        (Answering { queue: sender, unread }, answers)
    }
}

impl Stream for Answers {
    type Item = Result<LinkResponse, tonic::Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.small.is_empty() {
            let came = this.queue.poll_recv_many(context, &mut this.taken, FRAME_ITEMS);
            for sized in this.taken.drain(..) {
                let queue = if sized.0 > SMALL { &mut this.large } else { &mut this.small };
                queue.push_back(sized);
            }
            if this.small.is_empty() && this.large.is_empty() {
                // Nothing more than the end can have come.
                return came.map(|_none| None);
            }
        }
        let large = this.small.is_empty() || (this.large_next && !this.large.is_empty());
        this.large_next = !large;
        let queue = if large { &mut this.large } else { &mut this.small };
        let mut frame = LinkResponse { answers: Vec::with_capacity(queue.len()) };
        let mut bytes = 0;
        while bytes < FRAME_BYTES
            && let Some((size, answer)) = queue.pop_front()
        {
            bytes += size;
            frame.answers.push(answer);
        }
        let before = this.unread.bytes.fetch_sub(bytes, Ordering::AcqRel);
        if before > MAX_UNREAD && before - bytes <= MAX_UNREAD {
            this.unread.fell.notify_one();
        }
        Poll::Ready(Some(Ok(frame)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::store::{Record, answer};
    use futures_util::{FutureExt, StreamExt};

    fn sized(number: u64, size: usize) -> Answer {
        let record = Record { value: Some(vec![0; size].into()), ..Record::default() };
        Answer { number, answer: Some(answer::Answer::Record(record)) }
    }

    fn next(answers: &mut Answers) -> Vec<u64> {
        let frame = answers.next().now_or_never().unwrap().unwrap().unwrap();
        frame.answers.iter().map(|answer| answer.number).collect()
    }

    #[test]
    fn small_answers_wait_for_one_large_one_at_most() {
        let (sender, mut answers) = Answers::channel();
        for number in 0..3 {
            sender.send(sized(number, 1 << 20));
        }
        sender.send(sized(3, 10));
        assert_eq!(next(&mut answers), [3]);
        sender.send(sized(4, 10));
        assert_eq!(next(&mut answers), [0]);
        assert_eq!(next(&mut answers), [4]);
        assert_eq!(next(&mut answers), [1]);
        assert_eq!(next(&mut answers), [2]);
        drop(sender);
        assert!(answers.next().now_or_never().unwrap().is_none());
    }

    #[test]
    fn no_question_is_taken_while_too_many_answers_are_unread() {
        let (sender, mut answers) = Answers::channel();
        while sender.room().now_or_never().is_some() {
            sender.send(sized(0, 1 << 20));
        }
        assert!(sender.unread.bytes.load(Ordering::SeqCst) < MAX_UNREAD + (2 << 20));
        let mut room = Box::pin(sender.room());
        assert!(room.as_mut().now_or_never().is_none());
        next(&mut answers);
        next(&mut answers);
        assert_eq!(room.now_or_never(), Some(true));
        while answers.next().now_or_never().is_some() {}
        assert_eq!(sender.unread.bytes.load(Ordering::SeqCst), 0);
        drop(answers);
        assert_eq!(sender.room().now_or_never(), Some(false));
    }
}
