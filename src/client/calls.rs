//! One request on its way: whom it is sent to, and when it is sent again.

use super::Client;
use super::routes::Node;
use crate::core::node::Address;
use crate::wire::channel::within;
use crate::wire::status;
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// The first pause before a request that was refused is sent again. Each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Who has waited for a place until less than this is left is not sent any more: no answer would be in time.
const LEAST_TIME: Duration = Duration::from_millis(5);

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Op {
    /// It changes nothing, so that it may be sent twice.
    Read,
    /// It may only be sent again if nothing was done.
    Write,
}

/// What may be done after a try that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// Nothing: the caller has to know.
    Nothing,
    /// The node is to blame: another may be asked at once.
    Another,
    /// The ring can't do it now: another node may be asked after a pause.
    Later,
}

fn after(status: &Status, op: Op) -> Next {
    match op {
        _ if never_sent(status) => Next::Another,
        _ if retryable(status) => Next::Later,
        Op::Read if made_here(status) => Next::Another,
        Op::Read if passing(status.code()) => Next::Later,
        _ => Next::Nothing,
    }
}

/// Whether a request that a node refused with this status may be sent again.
pub(super) fn after_failure(status: &Status, op: Op) -> bool {
    after(status, op) != Next::Nothing
}

/// What a node says of itself or of this time, and not of the request.
fn passing(code: Code) -> bool {
    use Code::{Aborted, Cancelled, DeadlineExceeded, Internal, Unavailable, Unknown};
    matches!(code, Aborted | Cancelled | DeadlineExceeded | Internal | Unavailable | Unknown)
}

impl Client {
    /// Sends a request to the key's coordinators in turn, then to anybody, for as long as it may be
    /// sent again and there is time.
    pub(super) async fn call<Q: Message + Clone, A: Message, F>(
        &self,
        key: &[u8],
        op: Op,
        message: Q,
        send: impl Fn(Channel, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let deadline = Instant::now() + self.config.timeout;
        let mut first = match self.config.any_node {
            true => self.ring.any(self.turn.fetch_add(1, Ordering::Relaxed)),
            false => self.ring.coordinator(key),
        };
        if !self.ring.may_ask(&first) {
            first = self.ring.another(key, std::slice::from_ref(&first.address)).unwrap_or(first);
        }
        // A node that hangs must not cost a read all its time. One that has too much to do has
        // turned it away by then.
        let patience = match op {
            Op::Read => self.config.timeout * 3 / 4,
            Op::Write => self.config.timeout,
        };
        let size = message.encoded_len();
        let sent = |channel, left| send(channel, self.request(message.clone(), left));
        let status = match ask(&first, (op, size), patience, sent).await {
            Ok(answer) => return Ok(answer),
            Err(status) => status,
        };
        self.ring.failed(&first, &status);
        match after(&status, op) {
            Next::Nothing => Err(explained(status, &first.address)),
            next => Box::pin(self.call_again(key, op, message, send, deadline, (first, status, next))).await,
        }
    }

    /// The rest of [`Client::call`] after a first try that failed. Nobody is asked twice before all
    /// others were. It is boxed by its caller, so that the usual future stays small.
    async fn call_again<Q: Message + Clone, A: Message, F>(
        &self,
        key: &[u8],
        op: Op,
        message: Q,
        send: impl Fn(Channel, Request<Q>) -> F,
        deadline: Instant,
        (first, status, mut next): (Arc<Node>, Status, Next),
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let size = message.encoded_len();
        let mut silent = made_here(&status);
        let mut last = explained(status, &first.address);
        let mut tried = vec![first.address.clone()];
        let mut pause = FIRST_PAUSE;
        loop {
            let all_tried = self.ring.untried(key, &tried).is_empty();
            if next == Next::Later || all_tried {
                let pausing = pause.mul_f64(rand::random_range(0.5..1.5));
                if Instant::now() + pausing >= deadline {
                    return Err(last);
                }
                tokio::time::sleep(pausing).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                self.refreshed(deadline).await;
                if all_tried {
                    tried.clear();
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left < LEAST_TIME {
                return Err(last);
            }
            let Some(node) = self.ring.another(key, &tried) else { return Err(last) };
            let sent = |channel, left| send(channel, self.request(message.clone(), left));
            let status = match ask(&node, (op, size), left, sent).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            self.ring.failed(&node, &status);
            next = after(&status, op);
            let no_answer = made_here(&status);
            let status = explained(status, &node.address);
            if next == Next::Nothing {
                return Err(status);
            }
            // That a node is silent says less than what another one answered.
            if silent || !no_answer {
                (last, silent) = (status, no_answer);
            }
            tried.push(node.address.clone());
        }
    }

    /// A reply named an epoch: where that is newer than this client's, the layout is fetched behind
    /// the caller's back.
    pub(super) fn seen(&self, epoch: u64) {
        if epoch > self.ring.epoch() {
            let _nobody_waits = self.refresher.start(&self.ring, epoch);
        }
    }

    /// Something failed that a newer layout may mend: fetches it, and waits for it as long as there
    /// is time.
    async fn refreshed(&self, deadline: Instant) {
        let mut ended = self.refresher.start(&self.ring, self.ring.epoch());
        let _ended_or_too_late = tokio::time::timeout_at(deadline, ended.changed()).await;
    }
}

/// Sends a request to a node as soon as there is a place for it, and waits for the answer for as long
/// as is left then, which the node is told.
async fn ask<A: Message, F>(
    node: &Node,
    (op, size): (Op, usize),
    patience: Duration,
    send: impl FnOnce(Channel, Duration) -> F,
) -> Result<A, Status>
where
    F: Future<Output = Result<tonic::Response<A>, Status>>,
{
    let end = Instant::now() + patience;
    let mut placing = std::pin::pin!(node.place(size, op == Op::Read));
    let place = match futures_util::poll!(&mut placing) {
        Poll::Ready(place) => Some(place),
        Poll::Pending => {
            let waited = tokio::time::timeout_at(end, placing).await.ok();
            waited.filter(|_| end.saturating_duration_since(Instant::now()) >= LEAST_TIME)
        }
    };
    let left = end.saturating_duration_since(Instant::now());
    let Some((channel, _place)) = place else {
        let text = format!("too much is under way to {}: this was not sent", node.address);
        return Err(status::exhausted(text));
    };
    let answer = within(left, send(channel, left)).await;
    if op == Op::Read && !answer.as_ref().is_err_and(made_here) {
        node.brought(answer.as_ref().map_or(0, |answer| answer.get_ref().encoded_len()));
    }
    let answer = answer?.into_inner();
    node.answered();
    Ok(answer)
}

/// The connection could not even be made.
pub(super) fn never_sent(status: &Status) -> bool {
    status::never_connected(status)
}

/// This side says so, not a node: there was no answer.
pub(super) fn made_here(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// No answer came in time: this side says so, not a node.
pub(super) fn timed_out_here(status: &Status) -> bool {
    made_here(status) && status::ran_out_of_time(status)
}

/// A status that this side made, because no answer came, says in words of its own who gave none.
pub(super) fn explained(status: Status, address: &Address) -> Status {
    if !made_here(&status) {
        return status;
    }
    if never_sent(&status) {
        return status::unavailable(format!("can't connect to {address}"));
    }
    match timed_out_here(&status) {
        true => Status::new(status.code(), format!("{address} did not answer in time")),
        false => Status::new(Code::Unavailable, format!("the connection to {address} broke")),
    }
}

/// The server says that nothing was done.
pub(super) fn retryable(status: &Status) -> bool {
    status.code() == Code::Unavailable && status::nothing_done(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::routes::{Refresher, Ring};
    use crate::client::{ClientConfig, ClientError};
    use crate::core::layout::tests::ring_of;
    use std::io;

    #[tokio::test]
    async fn that_nobody_is_there_is_not_taken_for_too_much_to_do() {
        for turn in 0..200 {
            let ring = Arc::new(Ring::new(Vec::new(), 1, ring_of(1, 1, 4)));
            let timeout = Duration::from_micros(20_000 + 50 * turn);
            let config = ClientConfig { timeout, ..ClientConfig::default() };
            let client = Client { config, ring, refresher: Refresher::default(), turn: Default::default() };
            let failed = client.put("a", "b").await.unwrap_err();
            // On a busy machine not even that may be known in time.
            assert!(!matches!(failed, ClientError::Exhausted(_)), "{failed:?}");
        }
    }

    #[test]
    fn only_what_changes_nothing_is_sent_twice() {
        let broken = Status::from_error(io::Error::from(io::ErrorKind::ConnectionReset).into());
        let cases = [
            (broken, Next::Another, Next::Nothing),
            (status::unavailable("no quorum"), Next::Later, Next::Later),
            (status::unknown(Code::Aborted, "lost a race"), Next::Later, Next::Nothing),
            (Status::internal("a broken disk"), Next::Later, Next::Nothing),
            (status::exhausted("too much to do"), Next::Nothing, Next::Nothing),
            (Status::invalid_argument("no key"), Next::Nothing, Next::Nothing),
            (Status::not_found("no such key"), Next::Nothing, Next::Nothing),
        ];
        for (status, read, write) in cases {
            assert_eq!(after(&status, Op::Read), read, "{status:?}");
            assert_eq!(after(&status, Op::Write), write, "{status:?}");
        }
    }
}
