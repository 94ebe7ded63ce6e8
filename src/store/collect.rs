//! Forgetting what was deleted or has expired, when that can't come back: see
//! [`core::collection`](crate::core::collection) for why.
//!
//! What is asked and what follows from the answers is decided there, by the [`Collector`]; here it is
//! started now and then, given time, and its questions are sent.

use super::Store;
use super::handoff::{self, Client, Clients};
use crate::core::collection::{Answer, Ask, Collector, Dead};
use crate::core::layout::{Layout, Phase};
use crate::core::node::{Liveness, NodeId};
use crate::core::record::Record;
use crate::core::token::{Epoch, Segment};
use crate::core::transition::FIRST_COLLECTION;
use crate::news;
use crate::wire::convert::{self, id_bytes};
use crate::wire::store::{ConfirmGarbageRequest, ForgetGarbageRequest, Garbage};
use bytes::Bytes;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Status};

/// How often a node looks whether there is something to do, and how long it waits before it asks again.
const LOOK: Duration = Duration::from_millis(500);

/// Bytes a second that a node reads to find what is dead, so that its clients hardly notice.
const BYTES_PER_SECOND: f64 = 64e6;

/// What is found and not yet forgotten may take so much memory; the rest is looked for after that.
const LIST_BYTES: usize = 16 << 20;

/// How long a call may take, an fsync included.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks and collects again and again, for as long as the node runs.
pub(super) async fn run(store: Store) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let every = store.location().collect_every();
    let (mut collector, mut next): (Option<Collector>, _) = (None, Instant::now() + every / FIRST_COLLECTION);
    loop {
        tick.tick().await;
        let Some(layout) = store.location().layout() else { continue };
        if let Some(waiting) = &mut collector {
            carry_on(&store, waiting).await;
        } else {
            let up = |id| store.location().liveness(id) == Liveness::Up;
            if Instant::now() < next || layout.phase != Phase::Stable || !layout.ids().all(up) {
                continue;
            }
            let look = Collector::look(store.location().me(), layout, LIST_BYTES);
            carry_on(&store, collector.insert(look)).await;
            next = Instant::now() + every;
        }
        if let Some(waiting) = &collector {
            store.0.found.send_replace((waiting.layout().epoch, waiting.found()));
        }
        if let Some(keys) = collector.take_if(|c| c.forgotten().is_some()).and_then(|c| c.forgotten())
            && keys > 0
        {
            news!("forgot {keys} keys that were deleted or have expired");
        }
    }
}

/// Has all questions answered, at the layout there is by then, until there are no more.
async fn carry_on(store: &Store, collector: &mut Collector) {
    let mut clients = Clients::default();
    loop {
        if let Some(layout) = store.location().layout() {
            collector.installed(layout);
        }
        let layout = collector.layout();
        let asked = collector.asks().into_iter().map(|ask| {
            let client = match &ask {
                Ask::Confirm(node, ..) | Ask::Installed(node) | Ask::Forget(node, ..) => {
                    clients.of(store, *node)
                }
                Ask::Page(..) => Err(Status::internal("a question to this very node")),
            };
            answer(store, layout, client, ask)
        });
        let asked: Vec<_> = asked.collect();
        if asked.is_empty() {
            return;
        }
        let answers = futures_util::future::join_all(asked).await;
        let failed = answers.contains(&Answer::Failed);
        collector.answered(answers);
        if failed {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// What becomes of one question.
async fn answer(store: &Store, layout: &Layout, client: Result<Client, Status>, ask: Ask) -> Answer {
    let answer = match ask {
        Ask::Page(segment, after) => page(store, layout, segment, after).await,
        Ask::Confirm(owner, segment, dead) => confirm(store, layout, client, owner, segment, dead).await,
        Ask::Installed(member) => forget(store, layout, client, member, None).await,
        Ask::Forget(owner, segment, dead) => {
            forget(store, layout, client, owner, Some(convert::garbage_to(segment, &dead))).await
        }
    };
    answer.unwrap_or_else(|status| {
        tracing::debug!(%status, "collecting met trouble");
        Answer::Failed
    })
}

/// A page of what this node holds, no faster than it should be read.
async fn page(
    store: &Store,
    layout: &Layout,
    segment: Segment,
    after: Option<Bytes>,
) -> Result<Answer, Status> {
    let began = Instant::now();
    let page = handoff::snapshot(store, layout.epoch, segment, after).await?;
    let size = |(key, record): &(Bytes, Record)| key.len() + record.value.as_ref().map_or(0, Bytes::len);
    let read: usize = page.records.iter().map(size).sum();
    tokio::time::sleep_until(began + Duration::from_secs_f64(read as f64 / BYTES_PER_SECOND)).await;
    Ok(Answer::Page(page.records, super::wall_ms()))
}

/// Asks an owner, which may be this node, which of these records it holds.
async fn confirm(
    store: &Store,
    layout: &Layout,
    client: Result<Client, Status>,
    owner: NodeId,
    segment: Segment,
    dead: Dead,
) -> Result<Answer, Status> {
    let me = store.location().me();
    if owner == me {
        return store.confirm_garbage(layout.epoch, segment, dead).await.map(Answer::Held);
    }
    let request = ConfirmGarbageRequest {
        epoch: layout.epoch,
        ring_id: id_bytes(layout.ring.0),
        from: id_bytes(me.0),
        to: id_bytes(owner.0),
        garbage: Some(convert::garbage_to(segment, &dead)),
    };
    Ok(Answer::Held(client?.confirm_garbage(in_time(request)).await?.into_inner().held))
}

/// Has one node, which may be this one, forget some records.
async fn forget(
    store: &Store,
    layout: &Layout,
    client: Result<Client, Status>,
    node: NodeId,
    garbage: Option<Garbage>,
) -> Result<Answer, Status> {
    let me = store.location().me();
    if node == me {
        store.forget_garbage(layout.epoch, garbage).await?;
        return Ok(Answer::Done);
    }
    let request = ForgetGarbageRequest {
        epoch: layout.epoch,
        ring_id: id_bytes(layout.ring.0),
        from: id_bytes(me.0),
        to: id_bytes(node.0),
        garbage,
    };
    client?.forget_garbage(in_time(request)).await?;
    Ok(Answer::Done)
}

fn in_time<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

impl Store {
    /// For each of these records, whether this node holds that version, durably, and would collect it.
    pub(super) async fn confirm_garbage(
        &self,
        epoch: Epoch,
        segment: Segment,
        dead: Dead,
    ) -> Result<Vec<bool>, Status> {
        let now = super::wall_ms();
        self.blocking(move |store| {
            store.replica()?.confirm(epoch, segment, &dead, now).map_err(|refusal| store.refused(&refusal))
        })
        .await
    }

    /// Forgets these records; without any, only says that the layout of this epoch, which must be a
    /// collecting one, is installed.
    pub(super) async fn forget_garbage(&self, epoch: Epoch, garbage: Option<Garbage>) -> Result<(), Status> {
        let garbage = garbage.map(convert::garbage).transpose()?;
        // With the records goes what else would tell the clock, after a restart, where to go on.
        self.cover_clock().await?;
        self.blocking(move |store| {
            let forgotten = match garbage {
                Some((segment, dead)) => store.replica()?.forget(epoch, segment, &dead),
                None => store.replica()?.collects_at(epoch),
            };
            forgotten.map_err(|refusal| store.refused(&refusal))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::{Clock, at_ms};
    use crate::core::collection::Found;
    use crate::core::layout::tests::ring_of;
    use crate::core::record::Version;
    use crate::location::state::NodeState;
    use crate::replica::Page;
    use crate::store::tests::member_of;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn a_node_looks_soon_after_its_start_for_what_can_be_collected() {
        let ring = ring_of(1, 1, 4);
        let store = member_of(ring.clone()).await;
        let (key, segment) = (Bytes::from("k"), ring.segment(b"k"));
        let tombstone = Record::tombstone(Version { hlc: at_ms(1), node: 1 });
        let page = Page { records: vec![(key, tombstone)], last: true, clock: 0 };
        let slot = ring.slot(NodeId(1), segment).unwrap();
        store.replica().unwrap().absorb(ring.epoch, slot, page).unwrap();
        let mut found = store.0.found.subscribe();
        let (began, every) = (Instant::now(), store.location().collect_every());
        tokio::spawn(run(store.clone()));
        let what = found.wait_for(|(_, found)| *found != Found::Nothing).await.unwrap().1;
        assert_eq!(what, Found::All);
        assert!((every / 10..every / 5).contains(&began.elapsed()), "after {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn who_forgets_a_record_remembers_how_late_it_was() {
        let ring = ring_of(1, 1, 4);
        let store = member_of(ring.clone()).await;
        let (key, segment) = (Bytes::from("k"), ring.segment(b"k"));
        let slot = ring.slot(NodeId(1), segment).unwrap();
        // Of a coordinator whose clock is an hour ahead.
        let version = Version { hlc: at_ms(super::super::wall_ms() + 3_600_000), node: 2 };
        let page = Page { records: vec![(key.clone(), Record::tombstone(version))], last: true, clock: 0 };
        store.replica().unwrap().absorb(ring.epoch, slot, page).unwrap();
        store.replica().unwrap().install(Arc::new(ring.collecting()));
        let garbage = convert::garbage_to(segment, &[(key, version)]);
        let early = store.forget_garbage(ring.epoch, Some(garbage.clone())).await.unwrap_err();
        assert_eq!(early.code(), tonic::Code::FailedPrecondition);
        assert_eq!(store.0.engine.stats(slot).records, 1);
        store.forget_garbage(ring.epoch + 1, Some(garbage)).await.unwrap();
        assert_eq!(store.0.engine.stats(slot).records, 0);
        let mark = NodeState::open(store.0.vault.clone()).unwrap().clock_mark;
        assert!(Clock::resume(mark).tick(0) > Some(version.hlc), "a write after a restart would be older");
    }
}
