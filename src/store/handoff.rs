//! Segments that change their owner.
//!
//! In a Dual, a puller gathers snapshots of each of its segments from as many old owners as the
//! layout says, each taken after that owner installed the Dual; then all it gathered is made
//! durable, and only then does it count as synced. The first source sends everything; the others
//! only segments whose digests differ by then. A source that fails is replaced by another.
//!
//! A leaver that nobody pulls from in full (because the ring shrinks) may hold a record that only
//! it has, from a write at ONE. It offers what differs to the owners that stay.
//!
//! Everything here is dropped when another layout is installed; pages of an older epoch are
//! refused by the replica.

mod pages;

pub(super) use pages::{
    MAX_COMPARED, MAX_PULLERS, Responses, compare, digests, serve, snapshot, tell_digests,
};

use super::Store;
use crate::core::layout::{Layout, Pull, Standing};
use crate::core::node::{Address, Liveness, NodeId};
use crate::core::token::Segment;
use crate::location::{Progress, wall_ms};
use crate::news;
use crate::replica::{Page, Replica};
use crate::wire::convert::{self, id_bytes};
use crate::wire::store::store_peer_client::StorePeerClient;
use crate::wire::store::{
    CompareDigestsRequest, KeyedRecord, PullSegmentRequest, PullSegmentResponse, SegmentDigest,
};
use crate::wire::{MAX_MESSAGE_BYTES, channel};
use bytes::Bytes;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Segments asked for in one call.
const SEGMENTS_PER_CALL: usize = 64;

/// Pause before sources that failed are tried again, and before another look for room on the disk.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// A person is told after so many such pauses why nothing comes: a few are usual, while the sources still
/// install the layout.
const TELL_AFTER: u32 = 10;

/// How long a call may go without a page before the source is given up.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long comparing digests may take.
pub(super) const COMPARE_TIMEOUT: Duration = Duration::from_secs(5);

/// Gathers or offers what this node has to in the Dual of `layout`. `false`: it couldn't.
pub(super) async fn gather(store: &Store, layout: &Layout, progress: &Progress) -> bool {
    let me = store.location().me();
    if layout.member(me).is_some_and(|m| m.standing == Standing::Leaving) {
        return offer_all(store, layout, progress).await;
    }
    let pulls = layout.pulls(me);
    progress.total.store(pulls.len() as u64, Ordering::Relaxed);
    let mut gathering = Gathering::new(pulls);
    let mut clients = Clients::default();
    // What a source said that gave nothing, and how often all of them gave nothing.
    let (mut refusal, mut refused) = (None, 0);
    loop {
        // Nothing is asked for that would be refused. No progress meanwhile: if it takes too long, the
        // claimant gives the transition up.
        while store.replica().is_ok_and(Replica::is_full) {
            tokio::time::sleep(TRY_AGAIN).await;
        }
        let round = gathering.round(|id| store.location().liveness(id));
        if round.is_empty() {
            if gathering.is_complete() {
                break;
            }
            refused += 1;
            if let (TELL_AFTER, Some((source, why))) = (refused, &refusal) {
                news!("taking segments over has to wait, as node {source:.8} does not give them: {why}");
            }
            tokio::time::sleep(TRY_AGAIN).await;
            gathering.forgive();
            continue;
        }
        let calls = round.into_iter().map(|(source, segments)| {
            let client = clients.of(store, source);
            async move {
                let mut done = BTreeSet::new();
                let pulled = async {
                    let asked = digests(store, layout.epoch, &segments)?;
                    pull(store, layout, source, client?, asked, progress, &mut done).await
                };
                let result = pulled.await;
                (source, segments, done, result)
            }
        });
        for (source, segments, done, result) in futures_util::future::join_all(calls).await {
            match result {
                Ok(pulled) => gathering.keys += pulled.keys,
                Err(status) => {
                    tracing::debug!(source = %source, %status, "a source could not be gathered from");
                    refusal = Some((source, status.message().to_owned()));
                }
            }
            for segment in segments {
                gathering.note(segment, source, done.contains(&segment));
            }
        }
        progress.done.store(gathering.complete() as u64, Ordering::Relaxed);
    }
    let (sources, keys) = (gathering.sources.len(), gathering.keys);
    let kept = store.keep_pulled().await.is_ok();
    if kept && sources > 0 {
        let nodes = if sources == 1 { "node" } else { "nodes" };
        news!("received {keys} keys from {sources} {nodes}");
    }
    kept
}

struct Task {
    pull: Pull,
    done: Vec<NodeId>,
    failed: Vec<NodeId>,
}

/// Which segments were gathered from which sources.
struct Gathering {
    tasks: BTreeMap<Segment, Task>,
    sources: BTreeSet<NodeId>,
    keys: u64,
}

impl Gathering {
    fn new(pulls: Vec<Pull>) -> Self {
        let task = |pull: Pull| (pull.slot.segment, Task { pull, done: Vec::new(), failed: Vec::new() });
        Gathering { tasks: pulls.into_iter().map(task).collect(), sources: BTreeSet::new(), keys: 0 }
    }

    fn complete(&self) -> usize {
        self.tasks.values().filter(|task| task.done.len() >= task.pull.need).count()
    }

    fn is_complete(&self) -> bool {
        self.complete() == self.tasks.len()
    }

    /// For each source, the segments to ask it for next: of each unfinished segment its best source
    /// that was not asked yet.
    fn round(&self, liveness: impl Fn(NodeId) -> Liveness) -> Vec<(NodeId, Vec<Segment>)> {
        let mut round: BTreeMap<NodeId, Vec<Segment>> = BTreeMap::new();
        for (segment, task) in self.tasks.iter().filter(|(_, task)| task.done.len() < task.pull.need) {
            let fresh =
                task.pull.sources.iter().filter(|id| !task.done.contains(id) && !task.failed.contains(id));
            let best = fresh
                .filter(|id| liveness(**id) != Liveness::Down)
                .min_by_key(|id| liveness(**id) != Liveness::Up);
            if let Some(source) = best {
                let segments = round.entry(*source).or_default();
                if segments.len() < SEGMENTS_PER_CALL {
                    segments.push(*segment);
                }
            }
        }
        round.into_iter().collect()
    }

    fn note(&mut self, segment: Segment, source: NodeId, done: bool) {
        if let Some(task) = self.tasks.get_mut(&segment) {
            if done {
                task.done.push(source);
                self.sources.insert(source);
            } else {
                task.failed.push(source);
            }
        }
    }

    fn forgive(&mut self) {
        self.tasks.values_mut().for_each(|task| task.failed.clear());
    }
}

pub(super) type Client = StorePeerClient<Channel>;

/// Connections of their own for what is large, one a node for as long as they are needed: votes and
/// gossip never wait behind pages.
#[derive(Debug, Default)]
pub(super) struct Clients(BTreeMap<NodeId, (Address, Client)>);

impl Clients {
    /// Closes the connections to all others.
    pub(super) fn retain(&mut self, wanted: impl Fn(NodeId) -> bool) {
        self.0.retain(|id, _| wanted(*id));
    }

    pub(super) fn of(&mut self, store: &Store, node: NodeId) -> Result<Client, Status> {
        let address = store.location().address_of(node).ok_or_else(|| Status::unavailable("no address"))?;
        let connect = |address: Address| {
            let client = StorePeerClient::new(channel::lazy(&address))
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES);
            (address, client)
        };
        let known = self.0.entry(node).or_insert_with(|| connect(address.clone()));
        if known.0 != address {
            *known = connect(address);
        }
        Ok(known.1.clone())
    }
}

/// What came from a source.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Pulled {
    /// That were newer than what was here.
    pub(super) keys: u64,
    /// Of the messages.
    pub(super) bytes: u64,
}

/// Gathers segments from one source; notes in `done` each that is complete.
pub(super) async fn pull(
    store: &Store,
    layout: &Layout,
    source: NodeId,
    mut client: Client,
    segments: Vec<SegmentDigest>,
    progress: &Progress,
    done: &mut BTreeSet<Segment>,
) -> Result<Pulled, Status> {
    let request = PullSegmentRequest {
        epoch: layout.epoch,
        ring_id: id_bytes(layout.ring.0),
        from: id_bytes(store.location().me().0),
        segments,
        to: id_bytes(source.0),
    };
    let late = |_| Status::deadline_exceeded("no page came in time");
    let pages = tokio::time::timeout(PAGE_TIMEOUT, client.pull_segment(request)).await.map_err(late)??;
    let mut pages = pages.into_inner();
    let mut pulled = Pulled::default();
    while let Some(page) = tokio::time::timeout(PAGE_TIMEOUT, pages.message()).await.map_err(late)?? {
        let segment = convert::segment(page.segment)?;
        let (last, bytes) = (page.done, page.encoded_len() as u64);
        pulled.keys += absorb(store, layout, segment, page).await?;
        // Only now, so that refusing is not taken for progress.
        progress.step();
        pulled.bytes += bytes;
        if last {
            done.insert(segment);
        }
    }
    Ok(pulled)
}

/// How many keys of a page were newer than what was here.
async fn absorb(
    store: &Store,
    layout: &Layout,
    segment: Segment,
    page: PullSegmentResponse,
) -> Result<u64, Status> {
    let now = wall_ms();
    let record = |keyed: KeyedRecord| {
        convert::key(&keyed.key)?;
        let record = keyed.record.ok_or(convert::Malformed::Missing("a record"))?;
        let record = convert::record(record, now)?;
        Ok((keyed.key, record))
    };
    let records = page.records.into_iter().map(record).collect::<Result<Vec<_>, convert::Malformed>>()?;
    let page = Page { records, last: page.done, clock: convert::stamp(page.clock, now)? };
    let me = store.location().me();
    let slot = layout.slot(me, segment).ok_or_else(|| Status::internal("a segment that wasn't asked for"))?;
    let epoch = layout.epoch;
    // The clock moves with what is taken in. Its mark follows before any stamp above it is given.
    store
        .blocking(move |store| {
            let replica = store.replica()?;
            store.0.room.look(replica);
            replica.absorb(epoch, slot, page).map_err(|refusal| store.refused(&refusal))
        })
        .await
}

/// As a leaver: offers what differs here to those owners that stay. The newcomers pull from a
/// leaver first, and need no offer.
async fn offer_all(store: &Store, layout: &Layout, progress: &Progress) -> bool {
    let me = store.location().me();
    let mut by_heir: BTreeMap<NodeId, Vec<Segment>> = BTreeMap::new();
    for segment in layout.segments.all().filter(|segment| layout.slot(me, *segment).is_some()) {
        let old: Vec<NodeId> = layout.current_owners(segment).collect();
        let heirs: Vec<NodeId> = layout.next_owners(segment).filter(|id| old.contains(id)).collect();
        for heir in heirs {
            by_heir.entry(heir).or_default().push(segment);
        }
    }
    let mut clients = Clients::default();
    for (heir, segments) in by_heir {
        if store.location().liveness(heir) == Liveness::Down {
            continue;
        }
        for some in segments.chunks(SEGMENTS_PER_CALL) {
            if let Err(status) = offer_to(store, layout, heir, &mut clients, some, progress).await {
                tracing::debug!(heir = %heir, %status, "an offer failed");
                return false;
            }
        }
    }
    true
}

async fn offer_to(
    store: &Store,
    layout: &Layout,
    heir: NodeId,
    clients: &mut Clients,
    segments: &[Segment],
    progress: &Progress,
) -> Result<(), Status> {
    let compare = CompareDigestsRequest {
        epoch: layout.epoch,
        ring_id: id_bytes(layout.ring.0),
        from: id_bytes(store.location().me().0),
        segments: digests(store, layout.epoch, segments)?,
        to: id_bytes(heir.0),
        in_parts: false,
    };
    let mut compare = Request::new(compare);
    compare.set_timeout(COMPARE_TIMEOUT);
    let differing = clients.of(store, heir)?.compare_digests(compare).await?.into_inner().differing;
    progress.step();
    for segment in differing {
        let segment = convert::segment(segment)?;
        let mut after: Option<Bytes> = None;
        loop {
            let page = snapshot(store, layout.epoch, segment, after.clone()).await?;
            after = page.records.last().map(|(key, _)| key.clone()).or(after);
            let offers =
                page.records.into_iter().map(|(key, record)| store.offer(heir, layout.epoch, key, record));
            if futures_util::future::join_all(offers).await.contains(&false) {
                return Err(Status::aborted("the heir did not take a record"));
            }
            progress.step();
            if page.last {
                break;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::token::Slot;

    #[test]
    fn each_segment_is_gathered_from_as_many_sources_as_it_needs() {
        let pull = |segment, need| Pull {
            slot: Slot { segment: Segment(segment), acquired: 2 },
            sources: vec![NodeId(1), NodeId(2), NodeId(3)],
            need,
        };
        let mut gathering = Gathering::new(vec![pull(0, 2), pull(1, 0)]);
        let up = |_| Liveness::Up;
        assert_eq!(gathering.round(up), [(NodeId(1), vec![Segment(0)])]);
        gathering.note(Segment(0), NodeId(1), false);
        let down = |id: NodeId| if id.0 == 2 { Liveness::Down } else { Liveness::Up };
        assert_eq!(gathering.round(down), [(NodeId(3), vec![Segment(0)])]);
        gathering.note(Segment(0), NodeId(3), true);
        assert!(!gathering.is_complete());
        assert_eq!(gathering.round(down), [], "the first failed, the second is down");
        gathering.forgive();
        gathering.note(Segment(0), NodeId(1), true);
        assert!(gathering.is_complete() && gathering.round(up).is_empty());
    }
}
