//! One request on its way: whom it is sent to, and when it is sent again.

use super::Client;
use crate::core::node::Address;
use crate::wire::channel::within;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

impl Client {
    /// Sends a request to the key's coordinators in turn, then to anybody, for as long as nothing
    /// was done and there is time.
    pub(super) async fn call<Q: Clone, A, F>(
        &self,
        key: &[u8],
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
        if self.ring.is_shunned(&first) {
            let others = self.ring.route(key).into_iter().map(|address| self.ring.node(&address));
            first = others.into_iter().find(|node| !self.ring.is_shunned(node)).unwrap_or(first);
        }
        let time = self.config.timeout;
        match within(time, send(first.channel(), self.request(message.clone(), time))).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) if never_sent(&status) => {
                let others =
                    self.ring.route(key).into_iter().filter(|address| *address != first.address).collect();
                Box::pin(self.call_again(
                    key,
                    message,
                    send,
                    deadline,
                    others,
                    explained(status, &first.address),
                ))
                .await
            }
            Err(status) if retryable(&status) => {
                Box::pin(self.call_again(key, message, send, deadline, Vec::new(), status)).await
            }
            Err(status) => {
                if timed_out_here(&status) {
                    self.ring.shun(&first);
                }
                Err(explained(status, &first.address))
            }
        }
    }

    /// The rest of [`Client::call`] after a first try that did nothing and ended with `last`:
    /// first `round` is asked, then everybody, again and again. It is boxed by its callers, so that
    /// the usual future stays small.
    async fn call_again<Q: Clone, A, F>(
        &self,
        key: &[u8],
        message: Q,
        send: impl Fn(Channel, Request<Q>) -> F,
        deadline: Instant,
        mut round: Vec<Address>,
        mut last: Status,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let mut pause = Duration::from_millis(10);
        loop {
            for address in &round {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(last);
                }
                let channel = self.ring.node(address).channel();
                match within(left, send(channel, self.request(message.clone(), left))).await {
                    Ok(response) => return Ok(response.into_inner()),
                    Err(status) if never_sent(&status) => last = explained(status, address),
                    Err(status) if retryable(&status) => {
                        last = status;
                        break;
                    }
                    Err(status) => return Err(explained(status, address)),
                }
            }
            if Instant::now() + pause >= deadline {
                return Err(last);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
            self.refreshed(deadline).await;
            round = self.ring.route(key);
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

/// The connection could not even be made.
pub(super) fn never_sent(status: &Status) -> bool {
    crate::wire::status::never_connected(status)
}

/// No answer came in time: this side says so, not a node.
fn timed_out_here(status: &Status) -> bool {
    let made_here = std::error::Error::source(status).is_some();
    made_here && matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded)
}

/// A status that this side made, because no answer came, says in words of its own who gave none.
fn explained(status: Status, address: &Address) -> Status {
    if std::error::Error::source(&status).is_none() {
        return status;
    }
    if never_sent(&status) {
        return crate::wire::status::unavailable(format!("can't connect to {address}"));
    }
    let message = match status.code() {
        Code::Cancelled | Code::DeadlineExceeded => format!("{address} did not answer in time"),
        _ => format!("the connection to {address} broke"),
    };
    Status::new(status.code(), message)
}

/// The server says that nothing was done.
pub(super) fn retryable(status: &Status) -> bool {
    status.code() == Code::Unavailable && crate::wire::status::nothing_done(status)
}
