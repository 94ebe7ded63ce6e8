//! From a client's request to the node that should coordinate it, and back to a status.
//!
//! Any node takes any request. It goes to the key's first live owner, over the same links as the
//! questions to replicas. A request that never left, or that was answered "not my key", goes on to
//! the next; one that was sent and lost has an unknown outcome, unless it only reads.

use super::Store;
use super::coordinator::{Content, Coordinated};
use super::link::Reply;
use crate::core::layout::Layout;
use crate::core::node::{Liveness, NodeId};
use crate::core::quorum::Consistency;
use crate::core::record::Record;
use crate::core::token::Segment;
use crate::core::write::{Outcome, Terms};
use crate::location::wall_ms;
use crate::wire::convert;
use crate::wire::status;
use crate::wire::store::{
    DeleteRequest, DeleteResponse, Failure, ForwardedRequest, GetRequest, GetResponse, Options, PutRequest,
    PutResponse, answer, forwarded_request, question,
};
use bytes::Bytes;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

/// Pause before a request is routed again because the ring is just changing.
const ROUTE_AGAIN: Duration = Duration::from_millis(5);

/// With less time than this left nobody is asked any more: a deadline travels in milliseconds.
const LEAST_TIME: Duration = Duration::from_millis(1);

/// How a request ended that this node coordinated, or could not.
#[derive(Debug)]
pub(super) enum Ended {
    /// With this answer.
    Answer(answer::Answer),
    /// This node is no owner of the key; nothing was done.
    NotOwner(u64),
}

pub(super) fn key_of(request: &forwarded_request::Request) -> &Bytes {
    match request {
        forwarded_request::Request::Put(put) => &put.key,
        forwarded_request::Request::Get(get) => &get.key,
        forwarded_request::Request::Delete(delete) => &delete.key,
    }
}

fn options_of(request: &forwarded_request::Request) -> Options {
    let options = match request {
        forwarded_request::Request::Put(put) => put.options,
        forwarded_request::Request::Get(get) => get.options,
        forwarded_request::Request::Delete(delete) => delete.options,
    };
    options.unwrap_or_default()
}

pub(super) fn reads(request: &forwarded_request::Request) -> bool {
    matches!(request, forwarded_request::Request::Get(_))
}

/// What a request that another node passed on takes of the budget. The node's guard has counted
/// those of clients.
fn weight(request: &forwarded_request::Request) -> usize {
    let value = match request {
        forwarded_request::Request::Put(put) => put.value.len(),
        _ => 0,
    };
    key_of(request).len() + value
}

pub(crate) fn check(request: &forwarded_request::Request) -> Result<Consistency, Status> {
    convert::key(key_of(request))?;
    if let forwarded_request::Request::Put(put) = request {
        convert::value(&put.value, &put.content_type)?;
        convert::ttl(put.ttl_ms)?;
    }
    Ok(convert::consistency(options_of(request).consistency)?)
}

fn failure(status: &Status) -> answer::Answer {
    answer::Answer::Failure(failed(status))
}

/// As it is told inside of an answer.
pub(super) fn failed(status: &Status) -> Failure {
    Failure {
        code: status.code().into(),
        message: status.message().to_owned(),
        outcome_unknown: status::outcome_unknown(status),
    }
}

/// What a client is told of a record.
fn found(record: Option<Record>, achieved: Consistency, epoch: u64) -> Result<GetResponse, Status> {
    let record = record.ok_or_else(|| Status::not_found("no such key"))?;
    let value = record.visible(wall_ms()).cloned().ok_or_else(|| Status::not_found("no such key"))?;
    Ok(GetResponse {
        value,
        version: Some(convert::version_to(record.version)),
        content_type: record.content_type,
        consistency: convert::consistency_to(achieved),
        epoch,
        expires_at_ms: record.expires_at_ms,
    })
}

impl Store {
    /// Puts a value, wherever that has to happen.
    pub async fn put(&self, put: PutRequest, timeout: Duration) -> Result<PutResponse, Status> {
        match self.route(forwarded_request::Request::Put(put), timeout).await? {
            answer::Answer::Put(response) => Ok(response),
            other => Err(nonsense(&other)),
        }
    }

    /// Gets a value, wherever it is, or, if so asked, only if this node holds it.
    pub async fn get(&self, get: GetRequest, timeout: Duration) -> Result<GetResponse, Status> {
        if get.local {
            return self.get_local(get.key, timeout).await;
        }
        if self.may_be_cached(&get) {
            // In a box, so that the usual future stays small.
            return Box::pin(self.get_cached(get, timeout)).await;
        }
        match self.route(forwarded_request::Request::Get(get), timeout).await? {
            answer::Answer::Get(response) => Ok(response),
            other => Err(nonsense(&other)),
        }
    }

    /// Deletes a key, wherever that has to happen.
    pub async fn delete(&self, delete: DeleteRequest, timeout: Duration) -> Result<DeleteResponse, Status> {
        match self.route(forwarded_request::Request::Delete(delete), timeout).await? {
            answer::Answer::Delete(response) => Ok(response),
            other => Err(nonsense(&other)),
        }
    }

    /// What this node holds under a key, if it owns it.
    async fn get_local(&self, key: Bytes, timeout: Duration) -> Result<GetResponse, Status> {
        convert::key(&key)?;
        let _taken_in = self.0.admission.take_in()?;
        let terms = self.terms(Consistency::One, false, timeout);
        let segment = self.layout()?.segment(&key);
        let (record, epoch) = self.read_local(key, segment, terms).await?;
        found(record, Consistency::One, epoch)
    }

    async fn route(
        &self,
        request: forwarded_request::Request,
        timeout: Duration,
    ) -> Result<answer::Answer, Status> {
        check(&request)?;
        let _taken_in = self.0.admission.take_in()?;
        let _changing = self.changing(&request);
        self.have_coordinated(&request, Instant::now() + timeout).await
    }

    /// Has a good request coordinated that was taken in.
    pub(super) async fn have_coordinated(
        &self,
        request: &forwarded_request::Request,
        deadline: Instant,
    ) -> Result<answer::Answer, Status> {
        loop {
            let layout = self.layout()?;
            let segment = layout.segment(key_of(request));
            let mut tried = 0;
            for node in self.candidates(&layout, segment) {
                let left = deadline.saturating_duration_since(Instant::now());
                if left < LEAST_TIME {
                    return Err(out_of_time(segment, &layout));
                }
                tried += 1;
                let ended = if node == self.location().me() {
                    self.coordinate(request, left).await
                } else {
                    match self.forward(node, &layout, request, deadline).await {
                        Some(ended) => ended,
                        None => continue,
                    }
                };
                match ended {
                    Ended::Answer(answer::Answer::Failure(failure)) => {
                        return Err(status::of_failure(failure));
                    }
                    Ended::Answer(answer) => return Ok(answer),
                    Ended::NotOwner(epoch) if node != self.location().me() => {
                        self.location().catch_up(node, epoch, deadline).await;
                        break;
                    }
                    Ended::NotOwner(_) => break,
                }
            }
            if tried == 0 {
                return Err(no_quorum(segment, &layout));
            }
            if Instant::now() + ROUTE_AGAIN >= deadline {
                return Err(out_of_time(segment, &layout));
            }
            tokio::time::sleep(ROUTE_AGAIN).await;
        }
    }

    /// Who may coordinate, the best first: live ones, then those that may be.
    pub(super) fn candidates(&self, layout: &Layout, segment: Segment) -> impl Iterator<Item = NodeId> {
        let mut owners = layout.coordinators(segment);
        let rank = |id: &NodeId| match self.location().liveness(*id) {
            Liveness::Up => 0,
            Liveness::Suspect => 1,
            Liveness::Down => 2,
        };
        owners.sort_by_key(rank);
        let down = owners.partition_point(|id| rank(id) < 2);
        owners.truncate(down);
        owners.into_iter()
    }

    /// Has another node coordinate. `None`: it was not reached, or is safe to try elsewhere.
    async fn forward(
        &self,
        node: NodeId,
        layout: &Layout,
        request: &forwarded_request::Request,
        deadline: Instant,
    ) -> Option<Ended> {
        let address = self.location().address_of(node)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout_ms = left.max(LEAST_TIME).as_millis() as u32;
        let forward = ForwardedRequest { timeout_ms, request: Some(request.clone()) };
        let replies = self.0.links.ask(node, &address, layout.ring, question::Ask::Forward(forward));
        match tokio::time::timeout_at(deadline, replies).await {
            Ok(Ok(Reply::Answer(answer::Answer::NotOwnerEpoch(epoch)))) => Some(Ended::NotOwner(epoch)),
            Ok(Ok(Reply::Answer(answer))) => Some(Ended::Answer(answer)),
            Ok(Err(_never_sent)) => None,
            Ok(Ok(Reply::Lost)) if reads(request) => None,
            Ok(Ok(Reply::Lost)) => Some(Ended::Answer(failure(&status::unknown(
                Code::Aborted,
                format!(
                    "the connection to the coordinator {node:.8} at {address} broke; the write may or may not have happened"
                ),
            )))),
            Err(_elapsed) => Some(Ended::Answer(failure(&status::unknown(
                Code::DeadlineExceeded,
                format!("the coordinator {node:.8} at {address} did not answer in time"),
            )))),
        }
    }

    /// Coordinates a request that another node passed on.
    pub(super) async fn coordinate_forwarded(
        &self,
        request: &forwarded_request::Request,
        timeout: Duration,
    ) -> Ended {
        let taken_in = self.0.admission.take_in();
        let taken_in = taken_in.and_then(|taken_in| Ok((taken_in, self.0.budget.hold(weight(request))?)));
        match taken_in {
            Ok(_until_it_ends) => {
                let _changing = self.changing(request);
                self.coordinate(request, timeout).await
            }
            Err(status) => Ended::Answer(failure(&status)),
        }
    }

    /// Coordinates a request here, if this node owns the key.
    async fn coordinate(&self, request: &forwarded_request::Request, timeout: Duration) -> Ended {
        let begun = Instant::now();
        let ended = self.coordinate_here(request, timeout).await;
        if !matches!(ended, Ok(Ended::NotOwner(_))) {
            let failed = ended.as_ref().is_err_and(|status| status.code() != Code::NotFound);
            self.0.counters.ended(begun.elapsed(), failed);
        }
        ended.unwrap_or_else(|status| Ended::Answer(failure(&status)))
    }

    async fn coordinate_here(
        &self,
        request: &forwarded_request::Request,
        timeout: Duration,
    ) -> Result<Ended, Status> {
        let consistency = check(request)?;
        let deadline = Instant::now() + timeout;
        // Only for the node that coordinates: two that forward to each other must not wait for the
        // same places.
        let _working = self.0.admission.place(timeout).await?;
        let timeout = deadline.saturating_duration_since(Instant::now());
        let layout = self.layout()?;
        let key = key_of(request).clone();
        let segment = layout.segment(&key);
        if !layout.may_coordinate(self.location().me(), segment) {
            return Ok(Ended::NotOwner(layout.epoch));
        }
        let terms = self.terms(consistency, options_of(request).fallback_to_one, timeout);
        let answer = match request {
            forwarded_request::Request::Put(put) => {
                let content = Content {
                    value: Some(put.value.clone()),
                    content_type: put.content_type.clone(),
                    ttl: convert::ttl(put.ttl_ms)?,
                };
                let written = self.write(key, segment, content, terms).await?;
                let epoch = written.epoch;
                let (version, consistency) = self.written(written, segment, terms)?;
                answer::Answer::Put(PutResponse { version: Some(version), consistency, epoch })
            }
            forwarded_request::Request::Delete(_) => {
                let content = Content { value: None, content_type: String::new(), ttl: None };
                let written = self.write(key, segment, content, terms).await?;
                let epoch = written.epoch;
                let (version, consistency) = self.written(written, segment, terms)?;
                answer::Answer::Delete(DeleteResponse { version: Some(version), consistency, epoch })
            }
            forwarded_request::Request::Get(_) => {
                let read = self.read(key, segment, terms).await?;
                let epoch = read.epoch;
                let (record, achieved) = self.ended(read, segment, terms)?;
                answer::Answer::Get(found(record, achieved, epoch)?)
            }
        };
        Ok(Ended::Answer(answer))
    }

    fn written(
        &self,
        written: Coordinated<()>,
        segment: Segment,
        terms: Terms,
    ) -> Result<(crate::wire::store::Version, i32), Status> {
        let version = convert::version_to(written.version);
        let ((), achieved) = self.ended(written, segment, terms)?;
        Ok((version, convert::consistency_to(achieved)))
    }

    /// An outcome as a value or a status.
    pub(super) fn ended<T>(
        &self,
        coordinated: Coordinated<T>,
        segment: Segment,
        terms: Terms,
    ) -> Result<(T, Consistency), Status> {
        let Coordinated { outcome, epoch, full, .. } = coordinated;
        let whom = || {
            format!(
                "segment {segment} at epoch {epoch}, {} of {}",
                terms.consistency.name(),
                self.owners(segment)
            )
        };
        match outcome {
            Outcome::Done(value, achieved) => Ok((value, achieved)),
            Outcome::Unavailable => {
                Err(status::unavailable(format!("too few owners are up ({}); nothing was done", whom())))
            }
            Outcome::NoSpace => Err(status::exhausted(format!(
                "the owners' disks are full: {} ({}); nothing was done",
                self.folders(&full),
                whom()
            ))),
            Outcome::Aborted => Err(status::unknown(
                Code::Aborted,
                match full.is_empty() {
                    true => format!("another writer was faster, or owners refused ({})", whom()),
                    false => {
                        format!("some owners' disks are full: {} ({})", self.folders(&full), whom())
                    }
                },
            )),
            Outcome::Collected => Err(status::unknown(
                Code::Aborted,
                format!(
                    "the ring forgot deleted keys meanwhile; the write may or may not have happened ({})",
                    whom()
                ),
            )),
            Outcome::TimedOut => Err(status::unknown(
                Code::DeadlineExceeded,
                match full.is_empty() {
                    true => format!("too few owners answered in time ({})", whom()),
                    false => format!(
                        "some owners' disks are full: {}, and too few others answered in time ({})",
                        self.folders(&full),
                        whom()
                    ),
                },
            )),
        }
    }

    /// Where there is no room, for messages: this node's own folder, and others' addresses.
    fn folders(&self, full: &[NodeId]) -> String {
        let place = |id: &NodeId| match self.0.room.folder().filter(|_| *id == self.location().me()) {
            Some(folder) => folder.display().to_string(),
            None => self.location().address_of(*id).map(|a| format!("that of {a}")).unwrap_or_default(),
        };
        full.iter().map(place).collect::<Vec<_>>().join(", ")
    }

    /// The owners of a segment and how they are, for messages.
    fn owners(&self, segment: Segment) -> String {
        let Some(layout) = self.location().layout() else { return String::new() };
        let name = |id: NodeId| {
            let address = self.location().address_of(id).map(|a| a.to_string()).unwrap_or_default();
            let liveness = match self.location().liveness(id) {
                Liveness::Up => "up",
                Liveness::Suspect => "suspect",
                Liveness::Down => "down",
            };
            format!("{address} {liveness}")
        };
        let mut owners: Vec<NodeId> =
            layout.current_owners(segment).chain(layout.next_owners(segment)).collect();
        owners.sort_unstable();
        owners.dedup();
        owners.into_iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

fn no_quorum(segment: Segment, layout: &Layout) -> Status {
    status::unavailable(format!(
        "no owner of segment {segment} is up at epoch {}; nothing was done",
        layout.epoch
    ))
}

fn out_of_time(segment: Segment, layout: &Layout) -> Status {
    status::unavailable(format!(
        "no owner of segment {segment} could be reached in time at epoch {}; nothing was done",
        layout.epoch
    ))
}

pub(super) fn nonsense(answer: &answer::Answer) -> Status {
    tracing::warn!(?answer, "a coordinator answered something else than it was asked");
    status::unknown(Code::Aborted, "the coordinator's answer makes no sense")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock;
    use crate::core::layout::tests::ring_of;
    use crate::core::record::Version;
    use crate::core::ttl::MAX_LEAD_MS;
    use crate::store::tests::member_of;

    #[tokio::test]
    async fn a_ttl_counts_from_the_latest_that_a_node_has_seen_but_not_from_far_ahead() {
        let store = member_of(ring_of(1, 1, 4)).await;
        let (begun, ttl) = (wall_ms(), 60_000);
        let put_ahead = async |ahead_ms| {
            store.replica().unwrap().clock().observe(clock::at_ms(begun + ahead_ms));
            let put = PutRequest { key: "k".into(), ttl_ms: Some(ttl), ..PutRequest::default() };
            store.put(put, Duration::from_secs(5)).await.unwrap();
            let get = GetRequest { key: "k".into(), ..GetRequest::default() };
            let found = store.get(get, Duration::from_secs(5)).await.unwrap();
            found.expires_at_ms.unwrap()
        };
        assert!(put_ahead(MAX_LEAD_MS / 2).await >= begun + MAX_LEAD_MS / 2 + ttl);
        // Of a clock that is a year ahead.
        let expires_at_ms = put_ahead(365 * 86_400_000).await;
        assert!(expires_at_ms >= begun + MAX_LEAD_MS + ttl);
        assert!(expires_at_ms <= wall_ms() + MAX_LEAD_MS + ttl);
    }

    #[tokio::test]
    async fn a_request_without_time_is_told_so_and_nothing_is_done() {
        let store = member_of(ring_of(3, 3, 4)).await;
        for timeout in [Duration::ZERO, LEAST_TIME / 2] {
            let put = PutRequest { key: "k".into(), ..PutRequest::default() };
            let status = store.put(put, timeout).await.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            assert!(status.message().contains("in time") && !status::outcome_unknown(&status), "{status}");
        }
    }

    #[tokio::test]
    async fn who_has_no_room_is_named_though_the_outcome_is_unknown() {
        let layout = ring_of(3, 3, 4);
        let store = member_of(layout.clone()).await;
        let terms = store.terms(Consistency::Quorum, false, Duration::from_secs(1));
        for (outcome, unknown) in
            [(Outcome::NoSpace, false), (Outcome::Aborted, true), (Outcome::TimedOut, true)]
        {
            let full = vec![NodeId(2)];
            let ended = Coordinated::<()> { outcome, epoch: 1, version: Version::ABSENT, full };
            let status = store.ended(ended, Segment(0), terms).unwrap_err();
            assert_eq!(status::outcome_unknown(&status), unknown, "{status}");
            let address = layout.member(NodeId(2)).unwrap().address.to_string();
            let named = format!("disks are full: that of {address}");
            assert!(status.message().contains(&named), "{status}");
        }
    }
}
