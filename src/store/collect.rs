//! Forgetting what was deleted or has expired, when that can't come back: see
//! [`core::collection`](crate::core::collection) for why.
//!
//! Now and then each node looks through the segments of which it is the first owner, at one Stable
//! epoch, asks all other owners which of the dead records they hold too, and reports that there is
//! something to collect. It waits, with the list in memory, for the claimant to have a collecting
//! layout chosen; when all members have installed that one, it has all owners forget what is on the list.
//!
//! At any trouble, and at any other change of the ring, the list is thrown away: next time it is made
//! anew. Owners that were told and owners that were not then differ until they compare themselves,
//! and what some have forgotten is back with all.

use super::Store;
use super::handoff::{self, Clients};
use crate::core::layout::{Layout, Phase};
use crate::core::node::{Liveness, NodeId};
use crate::core::record::{Record, Version};
use crate::core::token::{Epoch, Segment};
use crate::news;
use crate::wire::convert::{self, id_bytes};
use crate::wire::store::{ConfirmGarbageRequest, ForgetGarbageRequest, Garbage};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Status};

/// How often a node looks whether there is something to do.
const LOOK: Duration = Duration::from_millis(500);

/// Bytes a second that a node reads to find what is dead, so that its clients hardly notice.
const BYTES_PER_SECOND: f64 = 64e6;

/// What one call may carry, and what a list may take in memory: the rest is for the next time.
const CALL_BYTES: usize = 256 << 10;
const LIST_BYTES: usize = 16 << 20;

/// What a record on a list costs beside its key.
const DEAD_BYTES: usize = 64;

/// How long a call may take, an fsync included.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the members are asked, a [`LOOK`] apart, whether they have installed a collecting layout.
const TRIES: usize = 10;

type Dead = Vec<(Bytes, Version)>;

/// What all owners were found to hold.
struct Found {
    layout: Arc<Layout>,
    dead: BTreeMap<Segment, Dead>,
}

/// Looks and collects again and again, for as long as the node runs.
pub(super) async fn run(store: Store) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut found, mut looked): (Option<Found>, _) = (None, Instant::now());
    loop {
        tick.tick().await;
        let Some(layout) = store.location().layout() else { continue };
        let before =
            |found: &mut Found| (found.layout.ring, found.layout.epoch) != (layout.ring, layout.epoch);
        if let Some(found) = found.take_if(before) {
            match drop_all(&store, &layout, found).await {
                Ok(0) => {}
                Ok(keys) => news!("forgot {keys} keys that were deleted or have expired"),
                Err(status) => tracing::debug!(%status, "collecting was given up"),
            }
            continue;
        }
        let up = |id| store.location().liveness(id) == Liveness::Up;
        let due = looked.elapsed() >= store.location().collect_every();
        if found.is_none() && due && layout.phase == Phase::Stable && layout.ids().all(up) {
            match look(&store, &layout).await {
                Ok(dead) if dead.is_empty() => {}
                Ok(dead) => {
                    store.0.garbage_at.store(layout.epoch, Ordering::Release);
                    found = Some(Found { layout, dead });
                }
                Err(status) => tracing::debug!(%status, "looking for what can be collected was given up"),
            }
            looked = Instant::now();
        }
    }
}

/// What all owners hold, of what is dead in the segments of which this node is the first owner.
async fn look(store: &Store, layout: &Arc<Layout>) -> Result<BTreeMap<Segment, Dead>, Status> {
    let me = store.location().me();
    let (mut found, mut bytes) = (BTreeMap::new(), 0);
    let mut clients = Clients::default();
    for segment in layout.segments.all().filter(|s| layout.current_owners(*s).next() == Some(me)) {
        let mut after = None;
        while bytes < LIST_BYTES {
            let began = Instant::now();
            let page = handoff::snapshot(store, layout.epoch, segment, after).await?;
            let Some((last, _)) = page.records.last() else { break };
            after = Some(last.clone());
            let size =
                |(key, record): &(Bytes, Record)| key.len() + record.value.as_ref().map_or(0, Bytes::len);
            let read: usize = page.records.iter().map(size).sum();
            let now = super::wall_ms();
            let dead = page.records.into_iter().filter(|(_, record)| record.visible(now).is_none());
            let dead: Dead = dead.map(|(key, record)| (key, record.version)).collect();
            for some in batches(dead) {
                let held = confirmed(store, layout, &mut clients, segment, some).await?;
                bytes += held.iter().map(cost).sum::<usize>();
                if !held.is_empty() {
                    found.entry(segment).or_insert_with(Vec::new).extend(held);
                }
            }
            tokio::time::sleep_until(began + Duration::from_secs_f64(read as f64 / BYTES_PER_SECOND)).await;
        }
    }
    Ok(found)
}

fn cost((key, _): &(Bytes, Version)) -> usize {
    key.len() + DEAD_BYTES
}

/// Lists that fit a call.
fn batches(dead: Dead) -> Vec<Dead> {
    let (mut batches, mut room): (Vec<Dead>, usize) = (Vec::new(), 0);
    for one in dead {
        match batches.last_mut() {
            Some(last) if cost(&one) <= room => {
                room -= cost(&one);
                last.push(one);
            }
            _ => {
                room = CALL_BYTES - cost(&one);
                batches.push(vec![one]);
            }
        }
    }
    batches
}

/// Those of some dead records that every owner holds, this one included.
async fn confirmed(
    store: &Store,
    layout: &Layout,
    clients: &mut Clients,
    segment: Segment,
    mut dead: Dead,
) -> Result<Dead, Status> {
    let me = store.location().me();
    for owner in layout.current_owners(segment) {
        let held = match owner == me {
            true => store.confirm_garbage(layout.epoch, segment, dead.clone()).await?,
            false => {
                let request = ConfirmGarbageRequest {
                    epoch: layout.epoch,
                    ring_id: id_bytes(layout.ring.0),
                    from: id_bytes(me.0),
                    to: id_bytes(owner.0),
                    garbage: Some(convert::garbage_to(segment, &dead)),
                };
                clients.of(store, owner)?.confirm_garbage(in_time(request)).await?.into_inner().held
            }
        };
        if held.len() != dead.len() {
            return Err(Status::internal("an answer about other records than were asked for"));
        }
        let mut held = held.into_iter();
        dead.retain(|_| held.next() == Some(true));
    }
    Ok(dead)
}

/// If `layout` collects: waits until all members have installed it, and has all owners forget what was
/// found at an earlier one. How many keys.
async fn drop_all(store: &Store, layout: &Arc<Layout>, found: Found) -> Result<usize, Status> {
    let mut dead = found.dead;
    dead.retain(|segment, _| layout.may_drop(&found.layout, *segment));
    if dead.is_empty() {
        return Ok(0);
    }
    let mut clients = Clients::default();
    all_installed(store, layout, &mut clients).await?;
    let mut keys = 0;
    for (segment, dead) in dead {
        for some in batches(dead) {
            keys += some.len();
            let told = layout.current_owners(segment).map(|owner| {
                let garbage = Some(convert::garbage_to(segment, &some));
                forget(store, layout, clients.of(store, owner), owner, garbage)
            });
            // Whoever can't be told has them still, which harms nobody.
            let told: Vec<_> = told.collect();
            for told in futures_util::future::join_all(told).await {
                told?;
            }
        }
    }
    Ok(keys)
}

/// Waits until every member has installed this layout.
async fn all_installed(store: &Store, layout: &Layout, clients: &mut Clients) -> Result<(), Status> {
    let mut tries = 1;
    loop {
        let asked: Vec<_> =
            layout.ids().map(|id| forget(store, layout, clients.of(store, id), id, None)).collect();
        let answers: Result<Vec<()>, Status> =
            futures_util::future::join_all(asked).await.into_iter().collect();
        match answers {
            Ok(_) => return Ok(()),
            Err(status) if tries == TRIES => return Err(status),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Has one node, which may be this one, forget some records.
async fn forget(
    store: &Store,
    layout: &Layout,
    client: Result<handoff::Client, Status>,
    node: NodeId,
    garbage: Option<Garbage>,
) -> Result<(), Status> {
    let me = store.location().me();
    if node == me {
        return store.forget_garbage(layout.epoch, garbage).await;
    }
    let request = ForgetGarbageRequest {
        epoch: layout.epoch,
        ring_id: id_bytes(layout.ring.0),
        from: id_bytes(me.0),
        to: id_bytes(node.0),
        garbage,
    };
    client?.forget_garbage(in_time(request)).await.map(|_| ())
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

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.map_err(|_error| Status::internal("collecting failed"))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::{Clock, at_ms};
    use crate::core::layout::tests::ring_of;
    use crate::location::state::NodeState;
    use crate::replica::Page;
    use crate::store::tests::member_of;

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
        assert!(Clock::resume(mark).tick(0) > version.hlc, "a write after a restart would be older");
    }

    #[test]
    fn lists_are_cut_to_what_a_call_may_carry() {
        let dead: Dead = (0..20_000).map(|i| (Bytes::from(format!("{i}")), Version::ABSENT)).collect();
        let batches = batches(dead.clone());
        assert!(batches.len() > 1 && batches.iter().all(|b| b.iter().map(cost).sum::<usize>() <= CALL_BYTES));
        assert_eq!(batches.concat(), dead);
    }
}
