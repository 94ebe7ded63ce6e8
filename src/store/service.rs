//! The gRPC services `Store` and `StorePeer`.

use super::answers::{Answering, Answers};
use super::callers::Place;
use super::commit::{Asked, Done, value_bytes};
use super::routing::Ended;
use super::{Store, answer_to_wire, handoff, repair, scan};
use crate::core::node::NodeId;
use crate::core::replica_request::{Answer, Ask, Stretch};
use crate::core::token::Epoch;
use crate::location::wall_ms;
use crate::replica::Request as ReplicaRequest;
use crate::wire::budget::Held;
use crate::wire::convert::{self, Malformed};
use crate::wire::store::store_peer_server::{StorePeer, StorePeerServer};
use crate::wire::store::store_server::{Store as StoreApi, StoreServer};
use crate::wire::store::{self as pb, answer, question};
use crate::wire::{MAX_MESSAGE_BYTES, status};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

/// What a request gets that sets no deadline.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest deadline that is honoured.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a link may take to say whose it is, which is the first that a node says over it.
const HELLO: Duration = Duration::from_secs(3);

/// What questions of a newer epoch may hold while its layout is being installed here, in KiB: 4096
/// small ones, which is more than come in the moment that it takes. Past that they get no answer.
pub(super) const MAX_AHEAD: usize = 65_536;

/// Pages of scans that are read at once, each of which holds one of the runtime's threads for what blocks.
pub(super) const MAX_PAGES: usize = 64;

/// The service for clients.
pub fn store_service(store: Store) -> StoreServer<Service> {
    StoreServer::new(Service { store })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// The service for the ring's own nodes.
pub fn peer_service(store: Store) -> StorePeerServer<Service> {
    StorePeerServer::new(Service { store })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Service {
    store: Store,
}

/// How long a request may take: what its `grpc-timeout` header says, less a little, so that the
/// answer arrives before the client has given up.
fn timeout<T>(request: &Request<T>) -> Duration {
    asked_timeout(request).unwrap_or(DEFAULT_TIMEOUT).min(MAX_TIMEOUT).mul_f64(0.95)
}

/// What the request's header says.
fn asked_timeout<T>(request: &Request<T>) -> Option<Duration> {
    let header = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok());
    header.and_then(parse_timeout)
}

/// What a request holds of the node's budget, where somebody counts it.
fn held<T>(request: &Request<T>) -> Option<Arc<Held>> {
    request.extensions().get::<Arc<Held>>().cloned()
}

/// At most eight digits and a unit, as the gRPC protocol has it.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[tonic::async_trait]
impl StoreApi for Service {
    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let timeout = timeout(&request);
        self.store.put(request.into_inner(), timeout).await.map(Response::new)
    }

    async fn get(&self, request: Request<pb::GetRequest>) -> Result<Response<pb::GetResponse>, Status> {
        let timeout = timeout(&request);
        let held = held(&request);
        let found = self.store.get(request.into_inner(), timeout).await?;
        if let Some(held) = held {
            held.grow(found.value.len())?;
        }
        Ok(Response::new(found))
    }

    async fn delete(
        &self,
        request: Request<pb::DeleteRequest>,
    ) -> Result<Response<pb::DeleteResponse>, Status> {
        let timeout = timeout(&request);
        self.store.delete(request.into_inner(), timeout).await.map(Response::new)
    }

    async fn batch(&self, request: Request<pb::BatchRequest>) -> Result<Response<pb::BatchResponse>, Status> {
        let (timeout, held) = (timeout(&request), held(&request));
        self.store.batch(request.into_inner(), timeout, held.as_deref()).await.map(Response::new)
    }

    type ScanStream = scan::Scanning;

    async fn scan(&self, request: Request<pb::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let deadline = asked_timeout(&request).and_then(|timeout| Instant::now().checked_add(timeout));
        let held = held(&request);
        self.store.scan(request.into_inner(), deadline, held).map(Response::new)
    }

    async fn digests(
        &self,
        request: Request<pb::DigestsRequest>,
    ) -> Result<Response<pb::DigestsResponse>, Status> {
        let (held, asked) = (held(&request), request.into_inner().segments);
        let told = move |store: &Store| handoff::tell_digests(store, asked, held.as_deref());
        self.store.blocking(told).await.map(Response::new)
    }

    type RepairStream = repair::Progressing;

    async fn repair(&self, _: Request<pb::RepairRequest>) -> Result<Response<Self::RepairStream>, Status> {
        Ok(Response::new(repair::on_demand(self.store.clone())))
    }
}

#[tonic::async_trait]
impl StorePeer for Service {
    type LinkStream = Answers;

    async fn link(&self, request: Request<Streaming<pb::LinkRequest>>) -> Result<Response<Answers>, Status> {
        let (sender, answers) = Answers::channel();
        let (store, frames) = (self.store.clone(), request.into_inner());
        let stranger = store.0.callers.take(None);
        tokio::spawn(async move {
            if let Err(status) = store.serve_link(stranger, frames, &sender).await {
                tracing::debug!(%status, "a link to this node ended");
            }
        });
        Ok(Response::new(answers))
    }

    type PullSegmentStream = handoff::Responses;

    async fn pull_segment(
        &self,
        request: Request<pb::PullSegmentRequest>,
    ) -> Result<Response<Self::PullSegmentStream>, Status> {
        let request = request.into_inner();
        let from = self.store.greeted(&request.from, &request.to, &request.ring_id)?;
        self.store.reach(from, request.epoch).await?;
        handoff::serve(self.store.clone(), request).map(Response::new)
    }

    async fn confirm_garbage(
        &self,
        request: Request<pb::ConfirmGarbageRequest>,
    ) -> Result<Response<pb::ConfirmGarbageResponse>, Status> {
        let request = request.into_inner();
        let from = self.store.greeted(&request.from, &request.to, &request.ring_id)?;
        self.store.reach(from, request.epoch).await?;
        let (segment, dead) =
            convert::garbage(request.garbage.ok_or(Malformed::Missing("what to confirm"))?)?;
        let held = self.store.confirm_garbage(request.epoch, segment, dead).await?;
        Ok(Response::new(pb::ConfirmGarbageResponse { held }))
    }

    async fn forget_garbage(
        &self,
        request: Request<pb::ForgetGarbageRequest>,
    ) -> Result<Response<pb::ForgetGarbageResponse>, Status> {
        let request = request.into_inner();
        let from = self.store.greeted(&request.from, &request.to, &request.ring_id)?;
        self.store.reach(from, request.epoch).await?;
        self.store.forget_garbage(request.epoch, request.garbage).await?;
        Ok(Response::new(pb::ForgetGarbageResponse {}))
    }

    async fn compare_digests(
        &self,
        request: Request<pb::CompareDigestsRequest>,
    ) -> Result<Response<pb::CompareDigestsResponse>, Status> {
        let (held, request) = (held(&request), request.into_inner());
        let from = self.store.greeted(&request.from, &request.to, &request.ring_id)?;
        self.store.reach(from, request.epoch).await?;
        let compared = move |store: &Store| handoff::compare(store, request, held.as_deref());
        self.store.blocking(compared).await.map(Response::new)
    }
}

impl Store {
    /// Answers what comes over a link, once it is known whose it is.
    async fn serve_link(
        &self,
        mut stranger: Place,
        mut frames: Streaming<pb::LinkRequest>,
        answers: &Answering,
    ) -> Result<(), Status> {
        let hello = async {
            let first = tokio::time::timeout(HELLO, frames.message()).await;
            first.map_err(|_elapsed| status::unavailable("the link's hello did not come in time"))?
        };
        let hello = stranger.keeps(hello).await?.and_then(|frame| frame.hello);
        let hello = hello.ok_or(Malformed::Missing("the link's hello"))?;
        let from = self.greeted(&hello.from, &hello.to, &hello.ring_id)?;
        let mut place = match self.layout()?.is_member(from) {
            true => self.0.callers.take(Some(from)),
            false => stranger,
        };
        let questions = async {
            while let Some(frame) = frames.message().await? {
                for question in frame.questions {
                    if !answers.room().await {
                        return Ok(());
                    }
                    self.answer(from, question, answers).await?;
                }
            }
            Ok(())
        };
        place.keeps(questions).await
    }

    /// Who asks, if he means this node in this ring.
    fn greeted(&self, from: &[u8], to: &[u8], ring_id: &[u8]) -> Result<NodeId, Status> {
        if convert::node_id(to)? != self.location().me() {
            return Err(Status::failed_precondition("this address belongs to another node by now"));
        }
        let layout = self.layout()?;
        if convert::ring_id(ring_id)? != layout.ring {
            return Err(Status::failed_precondition(format!(
                "this node is in another ring, {:.8}",
                layout.ring
            )));
        }
        Ok(convert::node_id(from)?)
    }

    /// Installs at least this epoch before going on.
    async fn reach(&self, from: NodeId, epoch: u64) -> Result<(), Status> {
        let deadline = Instant::now() + DEFAULT_TIMEOUT;
        match self.location().catch_up(from, epoch, deadline).await {
            Some(_) => Ok(()),
            None => {
                Err(status::unavailable(format!("this node could not fetch the layout of epoch {epoch}")))
            }
        }
    }

    /// Answers one question of a link: on the spot where possible, else from a task of its own.
    async fn answer(&self, from: NodeId, question: pb::Question, answers: &Answering) -> Result<(), Status> {
        let number = question.number;
        let request = match question.ask.ok_or(Malformed::Missing("a question"))? {
            question::Ask::Forward(forward) => {
                let request = forward.request.ok_or(Malformed::Missing("a forwarded request"))?;
                let timeout = Duration::from_millis(forward.timeout_ms.into()).min(MAX_TIMEOUT);
                let (store, answers) = (self.clone(), answers.clone());
                tokio::spawn(async move {
                    let answer = match store.coordinate_forwarded(&request, timeout.mul_f64(0.95)).await {
                        Ended::Answer(answer) => answer,
                        Ended::NotOwner(epoch) => answer::Answer::NotOwnerEpoch(epoch),
                    };
                    answers.send(pb::Answer { number, answer: Some(answer) });
                });
                return Ok(());
            }
            question::Ask::Write(write) => {
                convert::key(&write.key)?;
                self.0.cache.forget(&write.key);
                let record = write.record.ok_or(Malformed::Missing("a record"))?;
                let record = convert::record(record, wall_ms())?;
                let ask = if write.write_back { Ask::WriteBack(record) } else { Ask::Write(record) };
                ReplicaRequest { epoch: write.epoch, key: write.key, ask }
            }
            question::Ask::Page(page) => {
                let (epoch, stretch) = convert::stretch(page)?;
                let (store, answers) = (self.clone(), answers.clone());
                tokio::spawn(async move {
                    let answer = store.page(from, epoch, stretch).await;
                    send_back(&answers, number, answer);
                });
                return Ok(());
            }
            question::Ask::Read(read) => {
                convert::key(&read.key)?;
                let ask = if read.version_only { Ask::Version } else { Ask::Read };
                ReplicaRequest { epoch: read.epoch, key: read.key, ask }
            }
        };
        match self.committer()?.ask(request, || send_back_later(answers, number)) {
            Asked::Now(answer) => send_back(answers, number, answer),
            Asked::Later => {}
            Asked::Behind(request) => match self.0.ahead.clone().try_acquire_many_owned(weight(&request)) {
                Ok(permit) => {
                    let (store, answers) = (self.clone(), answers.clone());
                    tokio::spawn(async move {
                        store.answer_when_there(from, request, &answers, number).await;
                        drop(permit);
                    });
                }
                // The asker asks again, and by then the layout is here.
                Err(_too_many) => send_back(answers, number, Answer::Silence),
            },
        }
        Ok(())
    }

    /// A page of this node's replica, which may have to be read from a disk. Silence where too many are
    /// being read already: the asker asks again.
    pub(super) async fn page(&self, from: NodeId, epoch: Epoch, stretch: Stretch) -> Answer {
        let Ok(_being_read) = self.0.pages.try_acquire() else { return Answer::Silence };
        if self.reach(from, epoch).await.is_err() {
            return Answer::Silence;
        }
        let (done, answer) = oneshot::channel();
        let request = ReplicaRequest { epoch, key: Bytes::new(), ask: Ask::Page(stretch) };
        let asked = self.blocking(move |store| {
            let committer = store.committer()?;
            Ok(committer.ask(request, || Box::new(move |answer| _ = done.send(answer))))
        });
        match asked.await {
            Ok(Asked::Now(answer)) => answer,
            Ok(Asked::Later) => answer.await.unwrap_or(Answer::Silence),
            Ok(Asked::Behind(_)) | Err(_) => Answer::Silence,
        }
    }

    /// Fetches the asker's layout first, then answers.
    async fn answer_when_there(
        &self,
        from: NodeId,
        request: ReplicaRequest,
        answers: &Answering,
        number: u64,
    ) {
        let asked = match (self.reach(from, request.epoch).await, self.committer()) {
            (Ok(()), Ok(committer)) => committer.ask(request, || send_back_later(answers, number)),
            _ => Asked::Now(Answer::Silence),
        };
        match asked {
            Asked::Now(answer) => send_back(answers, number, answer),
            Asked::Later => {}
            Asked::Behind(_) => send_back(answers, number, Answer::Silence),
        }
    }
}

/// What a question counts of [`MAX_AHEAD`].
fn weight(request: &ReplicaRequest) -> u32 {
    16 + (value_bytes(request) >> 10) as u32
}

/// Sends an answer back over the link that its question came by.
fn send_back(answers: &Answering, number: u64, answer: Answer) {
    answers.send(pb::Answer { number, answer: Some(answer_to_wire(answer)) });
}

/// The same, once there is an answer.
fn send_back_later(answers: &Answering, number: u64) -> Done {
    let answers = answers.clone();
    Box::new(move |answer| send_back(&answers, number, answer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::layout::tests::ring_of;
    use crate::store::tests::member_of;
    use futures_util::StreamExt;

    #[tokio::test]
    async fn of_questions_from_the_future_only_so_many_wait() {
        let layout = ring_of(1, 3, 4);
        let store = member_of(layout.clone()).await;
        let (sender, mut answers) = Answers::channel();
        let waiting = MAX_AHEAD as u64 / 16;
        for number in 0..=waiting {
            let read = pb::ReadQuestion { epoch: layout.epoch + 1, key: "k".into(), version_only: true };
            let question = pb::Question { number, ask: Some(question::Ask::Read(read)) };
            store.answer(NodeId(2), question, &sender).await.unwrap();
        }
        let first = answers.next().await.unwrap().unwrap().answers.remove(0);
        assert_eq!(first.number, waiting, "the others wait");
        assert!(matches!(first.answer, Some(answer::Answer::Silence(_))));
    }

    #[tokio::test]
    async fn a_stamp_from_the_end_of_time_is_refused_and_moves_no_clock() {
        let layout = ring_of(1, 3, 4);
        let store = member_of(layout.clone()).await;
        let (sender, _answers) = Answers::channel();
        let record =
            pb::Record { version: Some(pb::Version { hlc: u64::MAX, node: 2 }), ..Default::default() };
        let (epoch, written) = (layout.epoch, Some(record.clone()));
        let ask = pb::WriteQuestion { epoch, key: "k".into(), record: written, write_back: false };
        let question = pb::Question { number: 1, ask: Some(question::Ask::Write(ask)) };
        let refused = store.answer(NodeId(2), question, &sender).await.unwrap_err();
        assert!(refused.message().contains("ahead of this node's clock"), "{refused}");
        let version = record.version.unwrap();
        for answer in [
            answer::Answer::Superseded(version),
            answer::Answer::Version(version),
            answer::Answer::Accepted(version),
            answer::Answer::Record(record),
        ] {
            assert_eq!(crate::store::answer_from_wire(answer, wall_ms()), Answer::Silence);
        }
        assert!(store.replica().unwrap().clock().last() < u64::MAX);
    }

    #[test]
    fn timeouts_are_read_as_grpc_has_them() {
        let check = |text, expected: Option<u64>| {
            assert_eq!(parse_timeout(text), expected.map(Duration::from_micros), "{text}");
        };
        check("2S", Some(2_000_000));
        check("100m", Some(100_000));
        check("5000u", Some(5_000));
        check("1H", Some(3_600_000_000));
        check("", None);
        check("S", None);
        check("123456789S", None);
        check("-1S", None);
        check("5x", None);
        check("é", None);
    }
}
