//! Carries out one client request as the key's coordinator: drives the core's [`Write`] and
//! [`Read`] with answers of replicas, layouts and time.

use super::commit::{Asked, Done};
use super::link::{Replies, Reply};
use super::{Store, answer_from_wire};
use crate::core::layout::Layout;
use crate::core::node::{Liveness, Moment, NodeId};
use crate::core::quorum::Consistency;
use crate::core::read::Read;
use crate::core::record::{Record, Version};
use crate::core::replica_request::{Answer, Ask, Page, Stretch};
use crate::core::scan::Scan;
use crate::core::token::{Epoch, Segment};
use crate::core::ttl::{Ttl, counts_from_ms};
use crate::core::write::{Action, Outcome, Terms, Write};
use crate::location::wall_ms;
use crate::replica::Request;
use crate::wire::convert;
use crate::wire::store::{ReadQuestion, WriteQuestion, question};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How soon time passes for a request that has to wait. It is twice as long each time that nothing
/// came meanwhile, up to [`MAX_TICK`]: under load many requests wait, and must not make more of it.
const TICK: Duration = Duration::from_millis(10);

/// See [`TICK`].
const MAX_TICK: Duration = Duration::from_millis(80);

/// How long an offered record may take to be answered: as long as a page of a pull.
const OFFER_TIMEOUT: Duration = Duration::from_secs(5);

/// How a request that was coordinated here ended.
#[derive(Debug)]
pub(super) struct Coordinated<T> {
    pub(super) outcome: Outcome<T>,
    pub(super) epoch: Epoch,
    /// Of the record, for a write.
    pub(super) version: Version,
    /// The owners that refused it for want of room.
    pub(super) full: Vec<NodeId>,
}

/// What a client wants written.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub(super) value: Option<Bytes>,
    pub(super) content_type: String,
    /// Counts from when the record is made.
    pub(super) ttl: Option<Ttl>,
}

/// The core's two kinds of request, as far as driving them goes.
trait Machine {
    type Value: Clone;
    fn outcome(&self) -> Option<&Outcome<Self::Value>>;
    fn answered(&mut self, from: NodeId, epoch: Epoch, answer: Answer, now: Moment, out: &mut Vec<Action>);
    fn installed(&mut self, layout: Arc<Layout>, now: Moment, store: &Store, out: &mut Vec<Action>);
    fn tick(&mut self, now: Moment, out: &mut Vec<Action>);
}

impl Machine for Write {
    type Value = ();

    fn outcome(&self) -> Option<&Outcome<()>> {
        Write::outcome(self)
    }

    fn answered(&mut self, from: NodeId, epoch: Epoch, answer: Answer, now: Moment, out: &mut Vec<Action>) {
        Write::answered(self, from, epoch, answer, now, out);
    }

    fn installed(&mut self, layout: Arc<Layout>, _: Moment, _: &Store, out: &mut Vec<Action>) {
        Write::installed(self, layout, out);
    }

    fn tick(&mut self, now: Moment, out: &mut Vec<Action>) {
        Write::tick(self, now, out);
    }
}

impl Machine for Read {
    type Value = Option<Record>;

    fn outcome(&self) -> Option<&Outcome<Option<Record>>> {
        Read::outcome(self)
    }

    fn answered(&mut self, from: NodeId, epoch: Epoch, answer: Answer, now: Moment, out: &mut Vec<Action>) {
        Read::answered(self, from, epoch, answer, now, out);
    }

    fn installed(&mut self, layout: Arc<Layout>, now: Moment, store: &Store, out: &mut Vec<Action>) {
        Read::installed(self, layout, now, &|id| store.location().liveness(id), out);
    }

    fn tick(&mut self, now: Moment, out: &mut Vec<Action>) {
        Read::tick(self, now, out);
    }
}

impl Machine for Scan {
    type Value = Page;

    fn outcome(&self) -> Option<&Outcome<Page>> {
        Scan::outcome(self)
    }

    fn answered(&mut self, from: NodeId, epoch: Epoch, answer: Answer, now: Moment, out: &mut Vec<Action>) {
        Scan::answered(self, from, epoch, answer, now, out);
    }

    fn installed(&mut self, layout: Arc<Layout>, now: Moment, store: &Store, out: &mut Vec<Action>) {
        Scan::installed(self, layout, now, &|id| store.location().liveness(id), out);
    }

    fn tick(&mut self, now: Moment, out: &mut Vec<Action>) {
        Scan::tick(self, now, out);
    }
}

/// An answer that is on its way.
enum Coming {
    Own(oneshot::Receiver<Answer>),
    Peer(Replies),
}

/// The answers that a request waits for.
#[derive(Default)]
struct Waiting {
    coming: Vec<(NodeId, Epoch, Coming)>,
}

impl Waiting {
    /// The next answer. Never, while nothing is on its way.
    async fn next(&mut self) -> (NodeId, Epoch, Answer) {
        poll_fn(|context| {
            for at in 0..self.coming.len() {
                let (node, epoch, coming) = &mut self.coming[at];
                let answer = match coming {
                    Coming::Own(answer) => {
                        Pin::new(answer).poll(context).map(|a| a.unwrap_or(Answer::Silence))
                    }
                    Coming::Peer(replies) => Pin::new(replies).poll(context).map(|reply| match reply {
                        Ok(Reply::Answer(answer)) => answer_from_wire(answer, wall_ms()),
                        Ok(Reply::Lost) | Err(_) => Answer::Silence,
                    }),
                };
                if let Poll::Ready(answer) = answer {
                    let found = (*node, *epoch, answer);
                    self.coming.swap_remove(at);
                    return Poll::Ready(found);
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl Store {
    /// Writes as the coordinator of the key.
    pub(super) async fn write(
        &self,
        key: Bytes,
        segment: Segment,
        content: Content,
        terms: Terms,
    ) -> Result<Coordinated<()>, tonic::Status> {
        let _turn = self.in_turn(terms, self.0.turns.write(&key)).await?;
        let layout = self.layout()?;
        // While it waited it may have ceased to own the key: its clock need not be above what the owners have
        // forgotten by now.
        if !layout.may_coordinate(self.location().me(), segment) {
            return Err(crate::wire::status::unavailable("this node owns the key no more; nothing was done"));
        }
        let now = wall_ms();
        let hlc = self.replica()?.clock().tick(now).ok_or_else(|| {
            crate::wire::status::unavailable("this node's clock has no stamps left; nothing was done")
        })?;
        self.cover_clock().await?;
        let version = Version { hlc, node: self.location().me().low() };
        let Content { value, content_type, ttl } = content;
        // Once, as the version: whatever is sent again later expires when the first copy does.
        let expires_at_ms = ttl.map(|ttl| ttl.expires_at_ms(counts_from_ms(hlc, now)));
        let record = Record { version, expires_at_ms, value, content_type };
        let mut out = Vec::with_capacity(4);
        let liveness = |id| self.location().liveness(id);
        let write = Write::start(layout, segment, record, terms, &liveness, &mut out);
        let (outcome, write) = self.drive(key, write, out, terms).await;
        Ok(Coordinated { outcome, epoch: write.epoch(), version, full: write.without_space().to_vec() })
    }

    /// Reads as the coordinator of the key.
    pub(super) async fn read(
        &self,
        key: Bytes,
        segment: Segment,
        terms: Terms,
    ) -> Result<Coordinated<Option<Record>>, tonic::Status> {
        let _turn = self.in_turn(terms, self.0.turns.read(&key)).await?;
        let layout = self.layout()?;
        let mut out = Vec::with_capacity(4);
        let liveness = |id| self.location().liveness(id);
        let read = Read::start(self.location().me(), layout, segment, terms, self.now(), &liveness, &mut out);
        let (outcome, read) = self.drive(key, read, out, terms).await;
        Ok(Coordinated { outcome, epoch: read.epoch(), version: Version::ABSENT, full: Vec::new() })
    }

    /// What this node holds under a key, and at which epoch; nothing where it is no owner.
    pub(super) async fn read_local(
        &self,
        key: Bytes,
        segment: Segment,
        terms: Terms,
    ) -> Result<(Option<Record>, Epoch), tonic::Status> {
        let me = self.location().me();
        loop {
            let layout = self.layout()?;
            if layout.slot(me, segment).is_none() {
                return Ok((None, layout.epoch));
            }
            let mut waiting = Waiting::default();
            let answer = match self.put_question(me, layout.epoch, &key, Ask::Read).await {
                Ok(answer) => answer,
                Err(coming) => {
                    waiting.coming.push((me, layout.epoch, coming));
                    let answer = tokio::time::timeout_at(self.at(terms.deadline), waiting.next()).await;
                    answer.map_or(Answer::Silence, |(_, _, answer)| answer)
                }
            };
            match answer {
                Answer::Record(record) => return Ok((record, layout.epoch)),
                _ if self.now() >= terms.deadline => {
                    return Err(crate::wire::status::unavailable("this node's disk did not answer in time"));
                }
                // A newer layout has just been installed.
                _ => tokio::time::sleep(TICK).await,
            }
        }
    }

    /// Scans a part of a segment: what the ring has, or only what this node holds itself.
    pub(super) async fn scan_stretch(
        &self,
        stretch: Stretch,
        local: bool,
        terms: Terms,
    ) -> Result<Coordinated<Page>, tonic::Status> {
        let (me, layout, mut out) = (self.location().me(), self.layout()?, Vec::with_capacity(4));
        let liveness = |id| self.location().liveness(id);
        let scan = match local {
            true => Scan::local(me, layout, stretch, terms, self.now(), &mut out),
            false => Scan::start(me, layout, stretch, terms, self.now(), &liveness, &mut out),
        };
        let (outcome, scan) = self.drive(Bytes::new(), scan, out, terms).await;
        Ok(Coordinated { outcome, epoch: scan.epoch(), version: Version::ABSENT, full: Vec::new() })
    }

    async fn in_turn<T>(&self, terms: Terms, turn: impl Future<Output = T>) -> Result<T, tonic::Status> {
        let mut turn = std::pin::pin!(turn);
        if let Poll::Ready(turn) = futures_util::poll!(&mut turn) {
            return Ok(turn);
        }
        let waited = tokio::time::timeout_at(self.at(terms.deadline), turn).await;
        waited.map_err(|_elapsed| {
            crate::wire::status::unavailable(
                "other requests for this key took all the time there was; nothing was done",
            )
        })
    }

    async fn drive<M: Machine>(
        &self,
        key: Bytes,
        mut machine: M,
        mut actions: Vec<Action>,
        terms: Terms,
    ) -> (Outcome<M::Value>, M) {
        let mut waiting = Waiting::default();
        // Of a newer layout; answers count meanwhile. Whoever is newer still says so again.
        let mut fetch: Option<BoxFuture<'_, Option<Arc<Layout>>>> = None;
        let (mut pause, mut tick) = (TICK, std::pin::pin!(tokio::time::sleep(TICK)));
        loop {
            // What is answered on the spot may lead to more questions.
            while !actions.is_empty() {
                let mut next = Vec::new();
                for action in actions.drain(..) {
                    match action {
                        Action::Ask(node, epoch, ask) => {
                            match self.put_question(node, epoch, &key, ask).await {
                                Ok(answer) => machine.answered(node, epoch, answer, self.now(), &mut next),
                                Err(coming) => waiting.coming.push((node, epoch, coming)),
                            }
                        }
                        Action::Fetch(from, epoch) if fetch.is_none() => {
                            let deadline = self.at(terms.deadline);
                            fetch = Some(Box::pin(self.location().catch_up(from, epoch, deadline)));
                        }
                        Action::Fetch(..) => {}
                    }
                }
                actions = next;
            }
            if let Some(outcome) = machine.outcome() {
                return (outcome.clone(), machine);
            }
            tokio::select! {
                biased;
                (node, epoch, answer) = waiting.next() => {
                    self.learn(&answer);
                    if pause > TICK {
                        pause = TICK;
                        tick.as_mut().reset(Instant::now() + TICK);
                    }
                    machine.answered(node, epoch, answer, self.now(), &mut actions);
                }
                layout = async { fetch.as_mut()?.await }, if fetch.is_some() => {
                    fetch = None;
                    if let Some(layout) = layout {
                        machine.installed(layout, self.now(), self, &mut actions);
                    }
                }
                () = &mut tick => {
                    pause = (pause * 2).min(MAX_TICK);
                    let next = Instant::now() + pause;
                    // On time, unless that is now.
                    let end = self.at(terms.deadline).max(Instant::now() + TICK);
                    tick.as_mut().reset(next.min(end));
                    machine.tick(self.now(), &mut actions);
                }
            }
        }
    }

    /// A newer version somewhere moves this node's clock, so that its next write is newer still.
    fn learn(&self, answer: &Answer) {
        let version = match answer {
            Answer::Superseded(version) | Answer::Version(version) => *version,
            Answer::Record(Some(record)) => record.version,
            _ => return,
        };
        if let Ok(replica) = self.replica() {
            replica.clock().observe(version.hlc);
        }
    }

    /// Asks a replica, this node's own directly.
    async fn put_question(
        &self,
        node: NodeId,
        epoch: Epoch,
        key: &Bytes,
        ask: Ask,
    ) -> Result<Answer, Coming> {
        if node == self.location().me() {
            if let Ask::Page(stretch) = ask {
                let (done, answer) = oneshot::channel();
                let store = self.clone();
                tokio::spawn(async move { done.send(store.page(node, epoch, stretch).await) });
                return Err(Coming::Own(answer));
            }
            let Ok(committer) = self.committer() else { return Ok(Answer::Silence) };
            let request = Request { epoch, key: key.clone(), ask };
            let mut coming = None;
            let done = || -> Done {
                let (done, answer) = oneshot::channel();
                coming = Some(answer);
                Box::new(move |answer| _ = done.send(answer))
            };
            return match committer.ask(request, done) {
                Asked::Now(answer) => Ok(answer),
                Asked::Later => coming.map_or(Ok(Answer::Silence), |answer| Err(Coming::Own(answer))),
                // The layout that this request goes by was installed here first.
                Asked::Behind(_) => Ok(Answer::Silence),
            };
        }
        // What is dead would only have its values pile up here. It catches up when it is back.
        if ask.record().is_some() && self.location().liveness(node) == Liveness::Down {
            return Ok(Answer::Silence);
        }
        let (Some(address), Ok(layout)) = (self.location().address_of(node), self.layout()) else {
            return Ok(Answer::Silence);
        };
        let write_back = matches!(ask, Ask::WriteBack(_));
        let ask = match ask {
            Ask::Write(record) | Ask::WriteBack(record) => question::Ask::Write(WriteQuestion {
                epoch,
                key: key.clone(),
                record: Some(convert::record_to(record)),
                write_back,
            }),
            Ask::Read => question::Ask::Read(ReadQuestion { epoch, key: key.clone(), version_only: false }),
            Ask::Version => question::Ask::Read(ReadQuestion { epoch, key: key.clone(), version_only: true }),
            Ask::Page(stretch) => question::Ask::Page(convert::stretch_to(epoch, stretch)),
        };
        Err(Coming::Peer(self.0.links.ask(node, &address, layout.ring, ask)))
    }

    /// Puts a record to one replica of another node, outside of any client's request; `true` if the
    /// node now has it or something newer. Takes [`OFFER_TIMEOUT`] at most.
    pub(super) async fn offer(&self, to: NodeId, epoch: Epoch, key: Bytes, record: Record) -> bool {
        match self.put_question(to, epoch, &key, Ask::Write(record)).await {
            Ok(_) => false,
            Err(coming) => {
                let mut waiting = Waiting { coming: vec![(to, epoch, coming)] };
                let answer = tokio::time::timeout(OFFER_TIMEOUT, waiting.next()).await;
                matches!(answer, Ok((_, _, Answer::Accepted(_) | Answer::Superseded(_))))
            }
        }
    }
}

/// The instants that are this far from the store's start.
impl Store {
    pub(super) fn now(&self) -> Moment {
        self.0.started.elapsed()
    }

    pub(super) fn at(&self, moment: Moment) -> Instant {
        self.0.started + moment
    }

    pub(super) fn terms(&self, consistency: Consistency, fallback_to_one: bool, timeout: Duration) -> Terms {
        let now = self.now();
        Terms::new(consistency, fallback_to_one, now, now + timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::layout::tests::ring_of;
    use crate::store::tests::member_of;

    /// Is done with the first answer.
    struct Asking(Option<Outcome<Answer>>);

    impl Machine for Asking {
        type Value = Answer;

        fn outcome(&self) -> Option<&Outcome<Answer>> {
            self.0.as_ref()
        }

        fn answered(&mut self, _: NodeId, _: Epoch, answer: Answer, _: Moment, _: &mut Vec<Action>) {
            self.0 = Some(Outcome::Done(answer, Consistency::One));
        }

        fn installed(&mut self, _: Arc<Layout>, _: Moment, _: &Store, _: &mut Vec<Action>) {}

        fn tick(&mut self, _: Moment, _: &mut Vec<Action>) {}
    }

    /// Far more than anything here takes, and far less than the requests' own deadlines.
    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn answers_count_while_a_layout_is_being_fetched_from_a_node_that_died() {
        let layout = ring_of(3, 3, 4);
        let store = member_of(layout.clone()).await;
        let terms = store.terms(Consistency::Quorum, false, Duration::from_secs(3600));
        let actions = vec![
            Action::Fetch(NodeId(2), layout.epoch + 1),
            Action::Ask(NodeId(1), layout.epoch, Ask::Version),
        ];
        let driven = store.drive("k".into(), Asking(None), actions, terms);
        let (outcome, _) = tokio::time::timeout(SOON, driven).await.unwrap();
        assert_eq!(outcome, Outcome::Done(Answer::Version(Version::ABSENT), Consistency::One));
    }
}
