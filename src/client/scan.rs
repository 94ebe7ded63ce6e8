//! All keys, or those of a prefix, one after the other.

use super::calls::explained;
use super::routes::Node;
use super::{Client, ClientError, achieved, store};
use crate::core::node::Address;
use crate::core::quorum::Consistency;
use crate::core::record::Version;
use crate::wire::channel::within;
use crate::wire::convert::{self, Cursor};
use crate::wire::store::{ScanItem, ScanRequest, ScanResponse};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tonic::{Status, Streaming};

/// How long a node may be silent while it scans: more than it takes itself to give a stretch up.
const PATIENCE: Duration = Duration::from_secs(8);

/// So many times in turn a scan may fail before it is given up.
const TRIES: u32 = 6;

/// The pause after the first time. Each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// What to scan. The default is everything.
#[derive(Clone, Debug, Default)]
pub struct ScanOptions {
    /// Only keys that begin so.
    pub prefix: Bytes,
    /// Without values.
    pub keys_only: bool,
    /// Goes on where a scan of the same prefix was ([`Scan::page_token`]); empty = from the beginning.
    pub page_token: Bytes,
    /// Only what this node holds itself, and nobody else is asked.
    pub local: Option<Address>,
}

/// A key and what is under it.
#[derive(Clone, Debug)]
pub struct Scanned {
    /// The key.
    pub key: Bytes,
    /// The value; empty where only keys were asked for.
    pub value: Bytes,
    /// Of the record.
    pub version: Version,
    /// As its writer said; may be empty.
    pub content_type: String,
    /// When it expires, in milliseconds since 1970; `None` = never.
    pub expires_at_ms: Option<u64>,
}

/// A scan under way. Dropping it ends it.
pub struct Scan<'a> {
    client: &'a Client,
    options: ScanOptions,
    stream: Option<(Arc<Node>, Streaming<ScanResponse>)>,
    items: VecDeque<Scanned>,
    /// Where it goes on after [`Scan::items`]; empty at the end.
    after_items: Bytes,
    /// The key that was given out last.
    last: Option<Bytes>,
    achieved: Option<Consistency>,
    ended: bool,
}

impl std::fmt::Debug for Scan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Client {
    /// Scans in the order of the ring: by segment, and within one by key. A key that was there throughout is
    /// met once, also while the ring changes and nodes come and go.
    pub fn scan(&self, options: ScanOptions) -> Scan<'_> {
        let after_items = options.page_token.clone();
        let (stream, items, last, achieved, ended) = (None, VecDeque::new(), None, None, false);
        Scan { client: self, options, stream, items, after_items, last, achieved, ended }
    }
}

impl Scan<'_> {
    /// The next key; `None` at the end. What fails is tried again with other nodes first; after an error
    /// the scan may be gone on with.
    pub async fn next(&mut self) -> Option<Result<Scanned, ClientError>> {
        let mut failures = 0;
        loop {
            if let Some(item) = self.items.pop_front() {
                self.last = Some(item.key.clone());
                return Some(Ok(item));
            }
            if self.ended {
                return None;
            }
            match self.receive().await {
                Ok(()) => failures = 0,
                Err(status) => {
                    failures += 1;
                    let error = ClientError::of_read(status);
                    let hopeless = !matches!(error, ClientError::Unavailable(_) | ClientError::Exhausted(_));
                    if hopeless || failures == TRIES {
                        return Some(Err(error));
                    }
                    tokio::time::sleep(FIRST_PAUSE * (1 << (failures - 1))).await;
                }
            }
        }
    }

    /// With this in [`ScanOptions::page_token`] another scan goes on after the last key that was given
    /// out. Empty: from the beginning.
    pub fn page_token(&self) -> Bytes {
        match &self.last {
            Some(last) if !self.items.is_empty() || self.ended => {
                let segment = self.client.layout().segment(last);
                convert::page_token_to(&Cursor { segment, after: last.clone() })
            }
            None if self.ended => self.options.page_token.clone(),
            _ => self.after_items.clone(),
        }
    }

    /// How many owners of each segment have answered at the least so far; what was asked for before any has.
    pub fn achieved(&self) -> Consistency {
        self.achieved.unwrap_or(self.client.config.consistency)
    }

    /// Waits for the next message, of a new stream if there is none.
    async fn receive(&mut self) -> Result<(), Status> {
        let (node, mut stream) = match self.stream.take() {
            Some(open) => open,
            None => self.open().await?,
        };
        let response = match within(PATIENCE, stream.message()).await {
            Ok(Some(response)) => response,
            Ok(None) => return Err(crate::wire::status::unavailable("the scan broke off")),
            Err(status) => {
                self.client.ring.failed(&node, &status);
                return Err(status);
            }
        };
        self.client.seen(response.epoch);
        let said = achieved(response.consistency);
        self.achieved = Some(self.achieved.map_or(said, |least| least.min(said)));
        self.items.extend(response.items.into_iter().map(scanned));
        self.ended = response.page_token.is_empty();
        self.after_items = response.page_token;
        self.stream = Some((node, stream)).filter(|_| !self.ended);
        Ok(())
    }

    async fn open(&self) -> Result<(Arc<Node>, Streaming<ScanResponse>), Status> {
        let ring = &self.client.ring;
        let node = match &self.options.local {
            Some(address) => ring.node(address),
            None => {
                let turn = self.client.turn.fetch_add(1, Ordering::Relaxed);
                let first = ring.any(turn);
                match ring.may_ask(&first) {
                    true => first,
                    false => ring.another(&[], std::slice::from_ref(&first.address)).unwrap_or(first),
                }
            }
        };
        let request = ScanRequest {
            prefix: self.options.prefix.clone(),
            page_token: self.after_items.clone(),
            limit: 0,
            keys_only: self.options.keys_only,
            local: self.options.local.is_some(),
            options: self.client.options(),
        };
        match within(PATIENCE, store(node.channel()).scan(request)).await {
            Ok(opened) => {
                node.answered();
                Ok((node, opened.into_inner()))
            }
            Err(status) => {
                ring.failed(&node, &status);
                Err(explained(status, &node.address))
            }
        }
    }
}

fn scanned(item: ScanItem) -> Scanned {
    Scanned {
        key: item.key,
        value: item.value,
        version: convert::version(item.version),
        content_type: item.content_type,
        expires_at_ms: item.expires_at_ms,
    }
}
