//! Many requests in one call. Each goes its own way; what goes the same way shares frames of the links.

use super::Store;
use super::routing::failed;
use crate::wire::budget::Held;
use crate::wire::store::{
    BatchItem, BatchRequest, BatchResponse, BatchResult, batch_item::Item, batch_result::Result as Ended,
};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use prost::Message;
use std::collections::HashMap;
use std::time::Duration;
use tonic::Status;

/// In one call.
pub(crate) const MAX_ITEMS: usize = 1000;

/// Of an answer, which has to fit a message with all that comes around it.
const MAX_ANSWER_BYTES: usize = crate::wire::MAX_MESSAGE_BYTES - (64 << 10);

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
        let in_turn = |items: Vec<(usize, Item)>| async move {
            let mut ended = Vec::with_capacity(items.len());
            for (at, item) in items {
                ended.push((at, self.carry_out(item, timeout).await));
            }
            ended
        };
        let mut all: FuturesUnordered<_> = by_key.into_values().map(in_turn).collect();
        let mut results = vec![BatchResult::default(); count];
        let mut bytes = 0;
        while let Some(ended) = all.next().await {
            for (at, result) in ended {
                let mut result = BatchResult { result: Some(result) };
                let size = result.encoded_len();
                let room = match bytes + size <= MAX_ANSWER_BYTES {
                    true => held.map_or(Ok(()), |held| held.grow(size)),
                    false => Err(Status::out_of_range(
                        "the values of this batch are too large: get this one again",
                    )),
                };
                // What a write did has to be told, whatever it takes.
                if let (Err(status), Some(Ended::Get(_))) = (room, &result.result) {
                    result.result = Some(Ended::Failure(failed(&status)));
                }
                bytes += result.encoded_len();
                results[at] = result;
            }
        }
        Ok(BatchResponse { results })
    }

    async fn carry_out(&self, item: Item, timeout: Duration) -> Ended {
        let ended = match item {
            Item::Put(put) => self.put(put, timeout).await.map(Ended::Put),
            Item::Get(get) => self.get(get, timeout).await.map(Ended::Get),
            Item::Delete(delete) => self.delete(delete, timeout).await.map(Ended::Delete),
        };
        ended.unwrap_or_else(|status| Ended::Failure(failed(&status)))
    }
}
