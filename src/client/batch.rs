//! Many requests at once: split by the node that coordinates them, and sent side by side.

use super::calls::{Op, after_failure};
use super::{Client, ClientError, Found, PutOptions, Written, found, store, written};
use crate::wire::status;
use crate::wire::store::{
    BatchItem, BatchRequest, BatchResult, DeleteRequest, GetRequest, batch_item, batch_result,
};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

/// In one call; a node takes no more.
const MAX_ITEMS: usize = 1000;

/// The same in bytes. With the largest item on top it is still less than a node takes.
const MAX_BYTES: usize = 2 << 20;

/// Reads that are sent by themselves at once.
const BY_THEMSELVES: usize = 16;

/// Before what came to nothing is sent again.
const PAUSE: Duration = Duration::from_millis(50);

/// One request of a batch.
#[derive(Clone, Debug)]
pub enum Item {
    /// Stores a value under a key.
    Put(Bytes, Bytes, PutOptions),
    /// The value under a key.
    Get(Bytes),
    /// Deletes a key.
    Delete(Bytes),
}

/// How an item ended well.
#[derive(Clone, Debug)]
pub enum Done {
    /// A put or delete.
    Written(Written),
    /// A get, whether or not anything was there.
    Got(Option<Found>),
}

/// An item on its way.
struct Sent {
    key: Bytes,
    op: Op,
    item: BatchItem,
    /// No other item of the batch is about its key, or none of them writes: it may be sent again without coming
    /// after them.
    free: bool,
    ended: Result<batch_result::Result, Status>,
}

impl Client {
    /// Carries out many requests, however many, each with a result of its own, in their order. Those of one
    /// key are carried out in order, others side by side.
    pub async fn batch(&self, items: Vec<Item>) -> Vec<Result<Done, ClientError>> {
        let deadline = Instant::now() + self.config.timeout;
        let mut sent: Vec<Sent> = items.into_iter().map(|item| self.to_send(item)).collect();
        let mut of_key: HashMap<Bytes, (usize, bool)> = HashMap::new();
        for sent in &sent {
            let (items, writes) = of_key.entry(sent.key.clone()).or_default();
            (*items, *writes) = (*items + 1, *writes || sent.op == Op::Write);
        }
        for sent in &mut sent {
            let (items, writes) = of_key[&sent.key];
            sent.free = items == 1 || !writes;
        }
        let mut left: Vec<usize> = (0..sent.len()).collect();
        loop {
            let calls = self.by_node(&sent, &left).into_values().map(|some| self.send_all(&sent, some));
            for (at, ended) in join_all(calls).await.into_iter().flatten() {
                sent[at].ended = ended;
            }
            left.retain(|at| sent[*at].may_come_right());
            if left.is_empty() || Instant::now() + PAUSE >= deadline {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        let results = sent.into_iter().map(|sent| async {
            match sent.is_better_read_by_itself() {
                true => self.get(sent.key).await.map(Done::Got),
                false => self.told(sent),
            }
        });
        futures_util::stream::iter(results).buffered(BY_THEMSELVES).collect().await
    }

    fn to_send(&self, item: Item) -> Sent {
        let options = self.options();
        let (key, op, item) = match item {
            Item::Put(key, value, options) => {
                (key.clone(), Op::Write, batch_item::Item::Put(self.put_request(key, value, options)))
            }
            Item::Get(key) => {
                (key.clone(), Op::Read, batch_item::Item::Get(GetRequest { key, options, local: false }))
            }
            Item::Delete(key) => {
                (key.clone(), Op::Write, batch_item::Item::Delete(DeleteRequest { key, options }))
            }
        };
        let ended = Err(Status::unknown("not sent"));
        Sent { key, op, item: BatchItem { item: Some(item) }, free: true, ended }
    }

    /// These items by the node that coordinates them.
    fn by_node(&self, sent: &[Sent], items: &[usize]) -> BTreeMap<String, Vec<usize>> {
        let mut by_node: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for at in items {
            let node = self.ring.coordinator(&sent[*at].key).address.to_string();
            by_node.entry(node).or_default().push(*at);
        }
        by_node
    }

    /// Sends items of one node, in as many calls as it takes.
    async fn send_all(
        &self,
        sent: &[Sent],
        items: Vec<usize>,
    ) -> Vec<(usize, Result<batch_result::Result, Status>)> {
        let mut ended = Vec::with_capacity(items.len());
        let mut rest = &items[..];
        while let [first, ..] = rest {
            let (mut count, mut bytes) = (0, 0);
            while count < rest.len().min(MAX_ITEMS) && bytes < MAX_BYTES {
                bytes += sent[rest[count]].item.encoded_len();
                count += 1;
            }
            let (call, others) = rest.split_at(count);
            let reads = call.iter().all(|at| sent[*at].op == Op::Read);
            let op = if reads { Op::Read } else { Op::Write };
            let request = BatchRequest { items: call.iter().map(|at| sent[*at].item.clone()).collect() };
            let answered = self
                .call(&sent[*first].key, op, request, |channel, request| async move {
                    store(channel).batch(request).await
                })
                .await;
            ended.extend(match answered {
                Ok(response) => {
                    call.iter().copied().zip(results(response.results, count)).collect::<Vec<_>>()
                }
                Err(status) => call.iter().map(|at| (*at, Err(status.clone()))).collect(),
            });
            rest = others;
        }
        ended
    }

    fn told(&self, Sent { op, ended, .. }: Sent) -> Result<Done, ClientError> {
        match ended {
            Ok(batch_result::Result::Put(put)) => {
                self.seen(put.epoch);
                Ok(Done::Written(written(put.version, put.consistency)))
            }
            Ok(batch_result::Result::Delete(delete)) => {
                self.seen(delete.epoch);
                Ok(Done::Written(written(delete.version, delete.consistency)))
            }
            Ok(batch_result::Result::Get(get)) => {
                self.seen(get.epoch);
                Ok(Done::Got(Some(found(get))))
            }
            Ok(batch_result::Result::Failure(failure)) => match status::of_failure(failure) {
                status if op == Op::Read && status.code() == Code::NotFound => Ok(Done::Got(None)),
                status if op == Op::Read => Err(ClientError::of_read(status)),
                status => Err(status.into()),
            },
            Err(status) if op == Op::Read => Err(ClientError::of_read(status)),
            Err(status) => Err(status.into()),
        }
    }
}

impl Sent {
    /// Whether it is worth sending again, and does no harm.
    fn may_come_right(&self) -> bool {
        match &self.ended {
            Ok(batch_result::Result::Failure(failure)) if self.free => {
                after_failure(&status::of_failure(failure.clone()), self.op)
            }
            // A call that failed was sent again already, as long as that made sense.
            _ => false,
        }
    }

    /// Whether it is a read that failed because of others that it travelled with: of values that left no room
    /// for its own, or writes that may not be sent again.
    fn is_better_read_by_itself(&self) -> bool {
        let for_others = match &self.ended {
            Ok(batch_result::Result::Failure(failure)) => failure.code == i32::from(Code::OutOfRange),
            Ok(_) => false,
            Err(_) => true,
        };
        self.free && self.op == Op::Read && for_others
    }
}

/// As many results as there were items.
fn results(
    results: Vec<BatchResult>,
    count: usize,
) -> impl Iterator<Item = Result<batch_result::Result, Status>> {
    let missing = || status::unknown(Code::Aborted, "the node did not say how this ended");
    let told = results.into_iter().map(|result| result.result).chain(std::iter::repeat(None));
    told.take(count).map(move |result| result.ok_or_else(missing))
}
