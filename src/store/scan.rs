//! Scans: segment by segment, and within one stretch by stretch, to whoever takes the pages.
//!
//! The next segments' first stretches are fetched while the caller takes the last ones. What he does not
//! take is not fetched: a scan holds a fixed share of the budget, however much there is to scan.

use super::Store;
use crate::core::quorum::Consistency;
use crate::core::replica_request::{Page, Stretch};
use crate::core::token::Segment;
use crate::location::wall_ms;
use crate::wire::budget::Held;
use crate::wire::convert::{self, Cursor};
use crate::wire::status;
use crate::wire::store::{ScanItem, ScanRequest, ScanResponse};
use bytes::Bytes;
use futures_util::StreamExt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Of one owner, in one stretch: enough to be worth a question, little enough for many at once.
const PAGE_BYTES: usize = 64 << 10;

/// Segments whose first stretch is on its way while another is taken: so that the round trips of many small
/// segments overlap.
const AHEAD: usize = 8;

/// Scans that a node serves at once, be they ever so slow to be taken. Each may hold a few megabytes where
/// values are large.
pub(super) const MAX_SCANS: usize = 32;

/// What a scan counts of the node's budget, and of its connection's share: pages for the segments ahead, of
/// some owners each, and two messages.
const HELD_BYTES: usize = 2 << 20;

/// A message is sent once it has so many bytes of keys and values, or so many keys.
const MESSAGE_BYTES: usize = 256 << 10;

/// See [`MESSAGE_BYTES`].
const MESSAGE_ITEMS: usize = 4096;

/// Or after so long, so that whoever waits sees what there is.
const MESSAGE_AFTER: Duration = Duration::from_millis(200);

/// How long one stretch may take.
const STRETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the caller may take for a message.
const TAKE_TIMEOUT: Duration = Duration::from_secs(60);

/// What was scanned, on its way to the caller.
pub(crate) type Scanning = Pin<Box<dyn Stream<Item = Result<ScanResponse, Status>> + Send>>;

/// What is asked for, apart from where.
#[derive(Clone)]
struct Wanted {
    prefix: Bytes,
    keys_only: bool,
    local: bool,
    consistency: Consistency,
    fallback_to_one: bool,
    deadline: Option<Instant>,
}

/// What has been found and not yet been sent.
struct Message {
    sender: mpsc::Sender<Result<ScanResponse, Status>>,
    response: ScanResponse,
    bytes: usize,
    left: u64,
    begun: Instant,
}

/// Nobody takes any more, or something failed.
type Ended = Option<Status>;

impl Message {
    fn new(sender: mpsc::Sender<Result<ScanResponse, Status>>, left: u64) -> Self {
        Message { sender, response: ScanResponse::default(), bytes: 0, left, begun: Instant::now() }
    }

    /// Takes an item in; `false` if that was the last that was wanted.
    fn add(&mut self, item: ScanItem) -> bool {
        self.bytes += item.key.len() + item.value.len();
        self.response.items.push(item);
        self.left -= 1;
        self.left > 0
    }

    fn is_due(&self) -> bool {
        self.bytes >= MESSAGE_BYTES
            || self.response.items.len() >= MESSAGE_ITEMS
            || self.begun.elapsed() >= MESSAGE_AFTER
    }

    /// Sends what there is; the caller may go on at `next`, if anything is left.
    async fn send(&mut self, next: Option<&Cursor>) -> Result<(), Ended> {
        let mut response = std::mem::take(&mut self.response);
        response.page_token = next.map(convert::page_token_to).unwrap_or_default();
        (self.bytes, self.begun) = (0, Instant::now());
        let sent = tokio::time::timeout(TAKE_TIMEOUT, self.sender.send(Ok(response))).await;
        if matches!(sent, Ok(Ok(()))) { Ok(()) } else { Err(None) }
    }
}

/// A stretch as it came, of the least consistency achieved, and the epoch.
struct Scanned {
    page: Page,
    achieved: Consistency,
    epoch: u64,
}

impl Store {
    /// Scans at the caller's pace. `deadline` is for all of it, `held` what the call takes of the budget.
    pub(crate) fn scan(
        &self,
        request: ScanRequest,
        deadline: Option<Instant>,
        held: Option<Arc<Held>>,
    ) -> Result<Scanning, Status> {
        let options = request.options.unwrap_or_default();
        let wanted = Wanted {
            prefix: convert::prefix(request.prefix)?,
            keys_only: request.keys_only,
            local: request.local,
            consistency: convert::consistency(options.consistency)?,
            fallback_to_one: options.fallback_to_one,
            deadline,
        };
        let segments = self.layout()?.segments;
        let from = match request.page_token.is_empty() {
            true => Cursor { segment: Segment(0), after: Bytes::new() },
            false => convert::page_token(&request.page_token, segments)?,
        };
        let limit = if request.limit == 0 { u64::MAX } else { request.limit };
        let store = self.clone();
        let scans = self.0.scans.clone().try_acquire_owned();
        let place = scans.map_err(|_none_left| {
            status::exhausted(format!("this node serves {MAX_SCANS} scans already; nothing was done"))
        })?;
        held.as_ref().map_or(Ok(()), |held| held.grow(HELD_BYTES))?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut message = Message::new(sender, limit);
            let ended = store.scan_from(&wanted, from, segments.get(), &mut message).await;
            if let Err(Some(status)) = ended {
                let _caller_gone = message.sender.send_timeout(Err(status), TAKE_TIMEOUT).await;
            }
            drop((held, place));
        });
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }

    async fn scan_from(
        &self,
        wanted: &Wanted,
        from: Cursor,
        segments: usize,
        message: &mut Message,
    ) -> Result<(), Ended> {
        let Cursor { segment: first, after } = from;
        let begins = (first.index()..segments).map(|index| {
            let segment = Segment(index as u16);
            let after = if segment == first { after.clone() } else { Bytes::new() };
            // On its own, so that it does not wait, nor run out of time, while the caller takes his.
            let (store, wanted) = (self.clone(), wanted.clone());
            let ahead = tokio::spawn(async move { store.stretch(&wanted, segment, after).await });
            async move { (segment, ahead.await) }
        });
        let mut begins = futures_util::stream::iter(begins).buffered(AHEAD);
        while let Some((segment, scanned)) = begins.next().await {
            let broken =
                |panic: JoinError| Some(Status::internal(format!("this node failed at it: {panic}")));
            let mut scanned = scanned.map_err(broken)?;
            loop {
                let Scanned { page, achieved, epoch } = scanned?;
                let mut cursor = Cursor { segment, after: Bytes::new() };
                cursor.after = page.records.last().map(|(key, _)| key.clone()).unwrap_or_default();
                message.response.epoch = epoch;
                let said = &mut message.response.consistency;
                *said = if *said == 0 {
                    convert::consistency_to(achieved)
                } else {
                    (*said).min(convert::consistency_to(achieved))
                };
                let now = wall_ms();
                for (key, record) in page.records {
                    let Some(value) = record.visible(now).cloned() else { continue };
                    let after = key.clone();
                    let item = ScanItem {
                        key,
                        value,
                        version: Some(convert::version_to(record.version)),
                        content_type: record.content_type,
                        expires_at_ms: record.expires_at_ms,
                    };
                    if !message.add(item) {
                        return message.send(Some(&Cursor { segment, after })).await;
                    }
                }
                let next = match (page.last, segment.index() + 1 == segments) {
                    (true, true) => return message.send(None).await,
                    (true, false) => Cursor { segment: Segment(segment.0 + 1), after: Bytes::new() },
                    (false, _) => cursor,
                };
                if message.is_due() {
                    message.send(Some(&next)).await?;
                }
                if page.last {
                    break;
                }
                scanned = self.stretch(wanted, segment, next.after).await;
            }
        }
        message.send(None).await
    }

    async fn stretch(&self, wanted: &Wanted, segment: Segment, after: Bytes) -> Result<Scanned, Ended> {
        let left = wanted.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.unwrap_or(STRETCH_TIMEOUT).min(STRETCH_TIMEOUT);
        let terms = self.terms(wanted.consistency, wanted.fallback_to_one, timeout);
        let Wanted { prefix, keys_only, .. } = wanted.clone();
        let stretch = Stretch { segment, prefix, after, keys_only, max_bytes: PAGE_BYTES };
        let scanned = self.scan_stretch(stretch, wanted.local, terms).await?;
        let epoch = scanned.epoch;
        let (page, achieved) = self.ended(scanned, segment, terms)?;
        Ok(Scanned { page, achieved, epoch })
    }
}
