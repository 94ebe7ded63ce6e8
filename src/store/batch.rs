//! Many requests in one call. Each goes its own way; what goes the same way shares frames of the links.

use super::Store;
use super::routing::failed;
use crate::wire::budget::Held;
use crate::wire::store::{
    BatchItem, BatchRequest, BatchResponse, BatchResult, batch_item::Item, batch_result::Result as Ended,
};
use bytes::Bytes;
use futures_util::StreamExt;
use prost::Message;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

/// Keys that are worked on at once: what their values take is not counted before it is there.
const AT_ONCE: usize = 128;

/// In one call.
pub(crate) const MAX_ITEMS: usize = 1000;

/// Of an answer, which has to fit a message with all that comes around it.
const MAX_ANSWER_BYTES: usize = crate::wire::MAX_MESSAGE_BYTES - (64 << 10);

/// What the results of a batch take so far.
struct Answers<'a> {
    /// Of the node's budget.
    held: Option<&'a Held>,
    bytes: AtomicUsize,
}

impl Answers<'_> {
    fn too_large() -> Status {
        Status::out_of_range("the values of this batch are too large: get this one again")
    }

    /// Whether what an item may bring is not too much already.
    fn has_room_for(&self, item: &Item) -> Result<(), Status> {
        let full = self.bytes.load(Ordering::Relaxed) >= MAX_ANSWER_BYTES;
        if full && matches!(item, Item::Get(_)) { Err(Self::too_large()) } else { Ok(()) }
    }

    /// Counts a result. A value for which there is no room is left out; what a write did has to be told,
    /// whatever it takes.
    fn fit(&self, result: Ended) -> Ended {
        let size = BatchResult { result: Some(result.clone()) }.encoded_len();
        let before = self.bytes.fetch_add(size, Ordering::Relaxed);
        let room = match before + size <= MAX_ANSWER_BYTES {
            true => self.held.map_or(Ok(()), |held| held.grow(size)),
            false => Err(Self::too_large()),
        };
        match (room, result) {
            (Err(status), Ended::Get(_)) => {
                self.bytes.fetch_sub(size, Ordering::Relaxed);
                Ended::Failure(failed(&status))
            }
            (_, result) => result,
        }
    }
}

fn key_of(item: &Item) -> &Bytes {
    match item {
        Item::Put(put) => &put.key,
        Item::Get(get) => &get.key,
        Item::Delete(delete) => &delete.key,
    }
}

impl Store {
    /// Carries out each item: those of one key in order, the others side by side. `held` is what the call
    /// takes of the node's budget.
    pub async fn batch(
        &self,
        batch: BatchRequest,
        timeout: Duration,
        held: Option<&Held>,
    ) -> Result<BatchResponse, Status> {
        let count = batch.items.len();
        if count > MAX_ITEMS {
            return Err(Status::invalid_argument(format!(
                "a batch has at most {MAX_ITEMS} items, this one has {count}; nothing was done"
            )));
        }
        let mut by_key: HashMap<Bytes, Vec<(usize, Item)>> = HashMap::new();
        for (at, BatchItem { item }) in batch.items.into_iter().enumerate() {
            let missing =
                || Status::invalid_argument(format!("item {at} of the batch is empty; nothing was done"));
            let item = item.ok_or_else(missing)?;
            by_key.entry(key_of(&item).clone()).or_default().push((at, item));
        }
        let (deadline, answers) = (Instant::now() + timeout, Answers { held, bytes: AtomicUsize::new(0) });
        let in_turn = |items: Vec<(usize, Item)>| async {
            let mut ended = Vec::with_capacity(items.len());
            for (at, item) in items {
                let result = match answers.has_room_for(&item) {
                    Ok(()) => self.carry_out(item, deadline).await,
                    Err(status) => Ended::Failure(failed(&status)),
                };
                ended.push((at, answers.fit(result)));
            }
            ended
        };
        let mut all = futures_util::stream::iter(by_key.into_values().map(in_turn)).buffer_unordered(AT_ONCE);
        let mut results = vec![BatchResult::default(); count];
        while let Some(ended) = all.next().await {
            for (at, result) in ended {
                results[at] = BatchResult { result: Some(result) };
            }
        }
        Ok(BatchResponse { results })
    }

    async fn carry_out(&self, item: Item, deadline: Instant) -> Ended {
        let timeout = deadline.saturating_duration_since(Instant::now());
        let ended = match item {
            Item::Put(put) => self.put(put, timeout).await.map(Ended::Put),
            Item::Get(get) => self.get(get, timeout).await.map(Ended::Get),
            Item::Delete(delete) => self.delete(delete, timeout).await.map(Ended::Delete),
        };
        ended.unwrap_or_else(|status| Ended::Failure(failed(&status)))
    }
}
