//! The serving end: pages of segments for whoever pulls them, and digests for whoever compares.

use crate::core::digest::{Digest, PartSet, fingerprint};
use crate::core::record::Record;
use crate::core::token::{Epoch, Segment, Token};
use crate::replica::{Page, Refusal};
use crate::store::Store;
use crate::wire::budget::Held;
use crate::wire::convert::{self, id_bytes};
use crate::wire::store::{
    CompareDigestsRequest, CompareDigestsResponse, DigestsResponse, KeyedRecord, PullSegmentRequest,
    PullSegmentResponse, SegmentDigest,
};
use bytes::Bytes;
use std::collections::HashSet;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// A page of a segment, as it is sent: large enough to be worth a message, small enough that a slow
/// receiver holds little.
const PAGE_BYTES: usize = 256 << 10;

/// How long a puller may take to make room for a page before it is given up: longer than it waits
/// for one itself.
const TAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Pullers that are served at once, each of which may hold a few pages. Others are told to come
/// back, and turn to another source meanwhile.
pub(in crate::store) const MAX_PULLERS: usize = 64;

/// Segments that are compared in one call: in answer to each that differs comes a kilobyte.
pub(in crate::store) const MAX_COMPARED: usize = 1024;

/// What one segment takes in an answer with digests: in memory, and once more as it is sent.
const TOLD_BYTES: usize = size_of::<SegmentDigest>() + 64;

impl Store {
    /// What the asker is told. An engine that fails ends the node.
    pub(in crate::store) fn refused(&self, refusal: &Refusal) -> Status {
        match refusal {
            Refusal::Stale(_) | Refusal::Behind(_) | Refusal::NotHeld(_) | Refusal::NotCollecting(_) => {
                Status::failed_precondition(refusal.to_string())
            }
            Refusal::Storage(error) => self.broken(error),
            Refusal::Full => {
                let folder = self.0.room.folder().map(|folder| format!(": {}", folder.display()));
                Status::resource_exhausted(format!("{refusal}{}", folder.unwrap_or_default()))
            }
        }
    }
}

/// The segments of a list from outside, which names each once.
fn listed(numbers: impl ExactSizeIterator<Item = u32>, most: usize) -> Result<Vec<Segment>, Status> {
    if numbers.len() > most {
        return Err(Status::invalid_argument(format!("at most {most} segments can be asked for at once")));
    }
    let mut seen = HashSet::with_capacity(numbers.len());
    let once = |number| {
        let segment = convert::segment(number)?;
        match seen.insert(segment) {
            true => Ok(segment),
            false => Err(Status::invalid_argument(format!("segment {segment} is listed twice"))),
        }
    };
    numbers.map(once).collect()
}

/// The digests of these segments, or without any, of all that this node holds. May block.
pub(in crate::store) fn tell_digests(
    store: &Store,
    asked: Vec<u32>,
    held: Option<&Held>,
) -> Result<DigestsResponse, Status> {
    let layout = store.layout()?;
    let segments = match asked.is_empty() {
        true => layout.slots(store.location().me()).into_iter().map(|slot| slot.segment).collect(),
        false => listed(asked.into_iter(), layout.segments.get())?,
    };
    held.map_or(Ok(()), |held| held.grow(segments.len() * TOLD_BYTES))?;
    Ok(DigestsResponse { epoch: layout.epoch, segments: digests(store, layout.epoch, &segments)? })
}

/// Which of these segments differ from what this node holds. May block.
pub(in crate::store) fn compare(
    store: &Store,
    request: CompareDigestsRequest,
    held: Option<&Held>,
) -> Result<CompareDigestsResponse, Status> {
    let segments = listed(request.segments.iter().map(|asked| asked.segment), MAX_COMPARED)?;
    let mut response = CompareDigestsResponse::default();
    for (segment, asked) in segments.into_iter().zip(&request.segments) {
        let theirs = convert::digest(&asked.digest)?;
        let own =
            store.replica()?.parts(request.epoch, segment).map_err(|refusal| store.refused(&refusal))?;
        if own.total() != theirs {
            response.differing.push(asked.segment);
            if request.in_parts {
                let parts = convert::parts_to(&own);
                held.map_or(Ok(()), |held| held.grow(parts.len()))?;
                response.parts.push(parts);
            }
        }
    }
    Ok(response)
}

pub(in crate::store) fn digests(
    store: &Store,
    epoch: Epoch,
    segments: &[Segment],
) -> Result<Vec<SegmentDigest>, Status> {
    let replica = store.replica()?;
    let digest = |segment: &Segment| {
        let digest = replica.digest(epoch, *segment).map_err(|refusal| store.refused(&refusal))?;
        Ok(SegmentDigest {
            segment: segment.0.into(),
            digest: id_bytes(digest.0),
            ..SegmentDigest::default()
        })
    };
    segments.iter().map(digest).collect()
}

/// Pages on their way to a puller.
pub(in crate::store) type Responses = Pin<Box<dyn Stream<Item = Result<PullSegmentResponse, Status>> + Send>>;

/// Serves segments to a puller, page by page, at the puller's pace; `RESOURCE_EXHAUSTED` if there
/// are [`MAX_PULLERS`] already. No thread waits for a slow puller.
pub(in crate::store) fn serve(store: Store, request: PullSegmentRequest) -> Result<Responses, Status> {
    listed(request.segments.iter().map(|asked| asked.segment), store.layout()?.segments.get())?;
    let asked = request.segments.into_iter().map(Asked::from_wire);
    let asked = asked.collect::<Result<Vec<_>, convert::Malformed>>()?;
    let served = store.0.pullers.clone().try_acquire_owned();
    let served = served.map_err(|_none_left| {
        Status::resource_exhausted("this node serves as many pullers as it can; nothing was done")
    })?;
    let (sender, receiver) = mpsc::channel(1);
    let epoch = request.epoch;
    tokio::spawn(async move {
        for asked in asked {
            match serve_segment(&store, epoch, asked, &sender).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(status) => {
                    let _puller_gone = sender.send_timeout(Err(status), TAKE_TIMEOUT).await;
                    break;
                }
            }
        }
        drop(served);
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// What a puller wants of a segment.
struct Asked {
    segment: Segment,
    digest: Digest,
    /// Only what is in these parts and not among these fingerprints.
    lacking: Option<(PartSet, HashSet<u64>)>,
}

impl Asked {
    fn from_wire(asked: SegmentDigest) -> Result<Self, convert::Malformed> {
        let lacking = (asked.parts != 0).then(|| (PartSet(asked.parts), asked.has.into_iter().collect()));
        let segment = convert::segment(asked.segment)?;
        Ok(Asked { segment, digest: convert::digest(&asked.digest)?, lacking })
    }

    fn wants(&self, key: &[u8], record: &Record) -> bool {
        self.lacking.as_ref().is_none_or(|(parts, has)| {
            let token = Token::of(key);
            parts.holds(token) && !has.contains(&fingerprint(token, record.version))
        })
    }
}

type Pages = mpsc::Sender<Result<PullSegmentResponse, Status>>;

/// `false`: the puller is gone, or takes too long.
async fn serve_segment(store: &Store, epoch: Epoch, asked: Asked, pages: &Pages) -> Result<bool, Status> {
    let segment = asked.segment;
    let own = store.replica()?.digest(epoch, segment).map_err(|refusal| store.refused(&refusal))?;
    let same = own == asked.digest;
    let mut after: Option<Bytes> = None;
    loop {
        let mut page = match same {
            true => Page { records: Vec::new(), last: true, clock: store.replica()?.clock().last() },
            false => snapshot(store, epoch, segment, after.clone()).await?,
        };
        after = page.records.last().map(|(key, _)| key.clone()).or(after);
        let last = page.last;
        page.records.retain(|(key, record)| asked.wants(key, record));
        if page.records.is_empty() && !last {
            continue;
        }
        let keyed = |(key, record)| KeyedRecord { key, record: Some(convert::record_to(record)) };
        let response = PullSegmentResponse {
            segment: segment.0.into(),
            records: page.records.into_iter().map(keyed).collect(),
            done: last,
            clock: page.clock,
        };
        if pages.send_timeout(Ok(response), TAKE_TIMEOUT).await.is_err() {
            return Ok(false);
        }
        if last {
            return Ok(true);
        }
    }
}

/// The page of a segment that follows a key.
pub(in crate::store) async fn snapshot(
    store: &Store,
    epoch: Epoch,
    segment: Segment,
    after: Option<Bytes>,
) -> Result<Page, Status> {
    store
        .blocking(move |store| {
            let page = store.replica()?.snapshot(epoch, segment, after.as_deref(), PAGE_BYTES);
            page.map_err(|refusal| store.refused(&refusal))
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::Stamp;
    use crate::core::layout::tests::ring_of;
    use crate::core::node::NodeId;
    use crate::core::record::{MAX_CONTENT_TYPE_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, Version};
    use crate::core::token::Slot;
    use crate::storage::StorageError;
    use crate::storage::engine::{Dead, Engine, Entry, Merged, SlotStats};
    use crate::store::tests::{member_of, member_with};
    use crate::wire::MAX_MESSAGE_BYTES;
    use crate::wire::budget::Budget;
    use futures_util::StreamExt;
    use prost::Message;
    use std::sync::Arc;
    use tonic::Code;

    /// An engine whose records can't be read, as a scan alone finds out.
    struct Unreadable;

    impl Engine for Unreadable {
        fn get(&self, _: Slot, _: &[u8]) -> Result<Option<Record>, StorageError> {
            Ok(None)
        }

        fn version(&self, _: Slot, _: &[u8]) -> Result<Option<Version>, StorageError> {
            Ok(None)
        }

        fn merge(&self, entries: &[Entry]) -> Result<Vec<Merged>, StorageError> {
            Ok(vec![Merged::Newer; entries.len()])
        }

        fn sync(&self) -> Result<(), StorageError> {
            Ok(())
        }

        fn scan(
            &self,
            _: Slot,
            _: std::ops::Bound<&[u8]>,
            _: usize,
        ) -> Result<Vec<(Bytes, Record)>, StorageError> {
            Err(StorageError::corrupt("a block"))
        }

        fn drop_slot(&self, _: Slot) -> Result<(), StorageError> {
            Ok(())
        }

        fn forget(&self, _: &[Dead]) -> Result<(), StorageError> {
            Ok(())
        }

        fn slots(&self) -> Vec<(Slot, SlotStats)> {
            Vec::new()
        }

        fn stats(&self, _: Slot) -> SlotStats {
            SlotStats::default()
        }

        fn newest_at_open(&self) -> Stamp {
            0
        }

        fn needs_sync(&self) -> bool {
            false
        }
    }

    #[tokio::test]
    async fn what_only_a_snapshot_finds_unreadable_ends_the_node() {
        let store = member_with(ring_of(1, 3, 4), Arc::new(Unreadable)).await;
        let epoch = store.layout().unwrap().epoch;
        let status = snapshot(&store, epoch, Segment(0), None).await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted, "{status}");
        let why = tokio::time::timeout(Duration::from_secs(20), store.failed()).await;
        assert!(why.expect("it is told at once").contains("a block"));
    }

    #[test]
    fn pullers_that_take_nothing_hold_no_thread_and_are_bounded() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().max_blocking_threads(1).build().unwrap().block_on(async {
            let store = member_of(ring_of(1, 3, 4)).await;
            let (segment, layout) = (Segment(0), store.layout().unwrap());
            let slot = layout.slot(NodeId(1), segment).unwrap();
            let record = Record::value(Version { hlc: 1, node: 1 }, vec![0; PAGE_BYTES]);
            let records = (0..8).map(|key| (Bytes::from(vec![key]), record.clone())).collect();
            let page = Page { records, last: true, clock: 1 };
            store.replica().unwrap().absorb(layout.epoch, slot, page).unwrap();
            let digest = SegmentDigest { digest: vec![0; 16].into(), ..SegmentDigest::default() };
            let request =
                PullSegmentRequest { epoch: layout.epoch, segments: vec![digest], ..Default::default() };
            let pull = || serve(store.clone(), request.clone());
            let mut served: Vec<Responses> = (0..MAX_PULLERS).map(|_| pull().unwrap()).collect();
            for pages in &mut served {
                pages.next().await.unwrap().unwrap();
            }
            assert_eq!(pull().map(|_| ()).unwrap_err().code(), Code::ResourceExhausted);
            let free = tokio::time::timeout(Duration::from_secs(5), tokio::task::spawn_blocking(|| ()));
            free.await.expect("a thread is free").unwrap();
            drop(served);
            while pull().is_err() {
                tokio::task::yield_now().await;
            }
        });
    }

    #[tokio::test]
    async fn a_list_of_segments_names_each_once_and_its_answer_is_counted() {
        let store = member_of(ring_of(3, 3, 4)).await;
        let epoch = store.layout().unwrap().epoch;
        let code = |status: Status| status.code();
        let told = |asked: &[u32], budget| {
            let held = Budget::new(budget).hold(0).unwrap();
            tell_digests(&store, asked.to_vec(), Some(&held)).map(|told| told.segments.len()).map_err(code)
        };
        assert_eq!([told(&[], 4096), told(&[3, 1], 4096)], [Ok(4), Ok(2)]);
        assert_eq!(told(&[1, 3, 1], 4096), Err(Code::InvalidArgument));
        assert_eq!(told(&[0, 1, 2, 3, 4], 4096), Err(Code::InvalidArgument));
        assert_eq!(told(&[], 100), Err(Code::ResourceExhausted));

        let list = |segments: &mut dyn Iterator<Item = u32>| -> Vec<SegmentDigest> {
            let digest = id_bytes(7);
            let one = |segment| SegmentDigest { segment, digest: digest.clone(), ..Default::default() };
            segments.map(one).collect()
        };
        let compared = |segments: &mut dyn Iterator<Item = u32>, budget| {
            let held = Budget::new(budget).hold(0).unwrap();
            let request = CompareDigestsRequest {
                epoch,
                segments: list(segments),
                in_parts: true,
                ..Default::default()
            };
            compare(&store, request, Some(&held)).map(|answer| answer.parts.len()).map_err(code)
        };
        assert_eq!(compared(&mut (0..4), 4 << 10), Ok(4));
        assert_eq!(compared(&mut (0..4), 4 << 9), Err(Code::ResourceExhausted));
        assert_eq!(compared(&mut [1, 1].into_iter(), 4 << 10), Err(Code::InvalidArgument));
        let too_many = compared(&mut (0..=MAX_COMPARED as u32), usize::MAX);
        assert_eq!(too_many, Err(Code::InvalidArgument));

        for wrong in [vec![2, 2], vec![0, 1, 2, 3, 4]] {
            let segments = list(&mut wrong.into_iter());
            let pulled = serve(store.clone(), PullSegmentRequest { epoch, segments, ..Default::default() });
            assert_eq!(pulled.map(|_| ()).map_err(code), Err(Code::InvalidArgument));
        }
    }

    #[tokio::test]
    async fn any_page_fits_a_message() {
        let store = member_of(ring_of(1, 3, 4)).await;
        let layout = store.layout().unwrap();
        let slot = layout.slot(NodeId(1), Segment(0)).unwrap();
        let record = |value: usize| Record {
            content_type: "t".repeat(MAX_CONTENT_TYPE_BYTES),
            expires_at_ms: Some(u64::MAX),
            ..Record::value(Version { hlc: u64::MAX, node: u64::MAX }, vec![0; value])
        };
        let small = (0..20_000).map(|key| (Bytes::from(format!("{key:05}")), record(1)));
        let large = (0..3).map(|key| (vec![key; MAX_KEY_BYTES].into(), record(MAX_VALUE_BYTES)));
        let records: Vec<_> = large.chain(small).collect();
        let all = records.len();
        let page = Page { records, last: true, clock: 1 };
        store.replica().unwrap().absorb(layout.epoch, slot, page).unwrap();
        let digest = SegmentDigest { digest: vec![0; 16].into(), ..SegmentDigest::default() };
        let request =
            PullSegmentRequest { epoch: layout.epoch, segments: vec![digest], ..Default::default() };
        let (mut pages, mut sent) = (serve(store, request).unwrap(), 0);
        while let Some(page) = pages.next().await.transpose().unwrap() {
            let bytes = page.encoded_len();
            assert!(bytes <= MAX_MESSAGE_BYTES, "{bytes} bytes in {} records", page.records.len());
            // Beside its records it says which segment it is of.
            let few = bytes <= PAGE_BYTES + 32;
            assert!(few || page.records.len() == 1, "{bytes} bytes in {} records", page.records.len());
            sent += page.records.len();
        }
        assert_eq!(sent, all);
    }
}
