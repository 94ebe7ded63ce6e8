//! A gate: a frontend before a ring, which holds no data. There may be any number of them, which come
//! and go at any time.
//!
//! It goes to the ring as any program does, by the [`Client`]. While there is no ring, or none of its
//! nodes can be reached, every request is answered 503 with Retry-After, and the gate goes on looking.

use super::body::too_large;
use super::failed::Failed;
use crate::cache::{Cache, CacheConfig, CacheUse};
use crate::client::{Client, ClientConfig, ClientError, PutOptions, ScanOptions, find_on_loopback};
use crate::core::layout::Kind;
use crate::core::node::Address;
use crate::core::quorum::Consistency;
use crate::core::record::MAX_VALUE_BYTES;
use crate::news;
use crate::wire::location::ProbeRequest;
use crate::wire::{channel, convert};
use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, mpsc};

/// How many owners must answer. Where so many are not up, one is enough: the stores whose dialects are
/// spoken here stay available, so that what is read may then be stale.
const CONSISTENCY: Consistency = Consistency::Quorum;

/// Requests that a gate has under way in the ring; what is more is turned away. Those whose body has not
/// arrived don't count, so that nobody has all places by being slow.
const UNDER_WAY: usize = 1024;

/// What is under a key is kept once it was read so often. Who reads a key now and then finds what was
/// stored through another gate a moment ago.
const OFTEN: u32 = 8;

/// Keys that are listed in one piece.
const LISTED_AT_ONCE: usize = 256;

/// How long somebody may take for such a piece, who holds one of the gate's places meanwhile.
const TAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the ring is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The ring that a gate stands before.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Nodes to ask; if none, those of this machine.
    pub peers: Vec<Address>,
    /// Its name; `None` = whatever it is.
    pub ring: Option<String>,
    /// How long a request may take.
    pub timeout: Duration,
    /// How stale what many read may be, and how much is kept for that.
    pub cache: CacheConfig,
}

impl Wanted {
    /// A client of that ring, if it is there.
    async fn find(&self, known: &Known) -> Result<Client, ClientError> {
        let (consistency, timeout) = (CONSISTENCY, self.timeout);
        let config = ClientConfig { consistency, fallback_to_one: true, timeout, ..ClientConfig::default() };
        let ring = self.ring.as_ref().or(known.ring.as_ref());
        let mut seeds = self.peers.clone();
        if seeds.is_empty() {
            match find_on_loopback(Kind::Store, ring.map(String::as_str)).await {
                Ok(found) => seeds = found,
                Err(error) if known.nodes.is_empty() => return Err(error),
                Err(_none_there) => {}
            }
        }
        seeds.extend(known.nodes.iter().filter(|node| !self.peers.contains(node)).cloned());
        let client = Client::connect(seeds, config).await?;
        let layout = client.layout();
        if layout.kind != Kind::Store {
            let why = format!("ring {} locates keys and stores none: give a node of a store", layout.name);
            return Err(ClientError::Refused(why));
        }
        match ring {
            Some(name) if *name != layout.name => {
                let why = format!("the ring found is called {:?}, not {name:?}: see --ring", layout.name);
                Err(ClientError::Refused(why))
            }
            _ => Ok(client),
        }
    }
}

/// What is known of the ring that was found last. It may have gone, and come back with other nodes, but no
/// other one takes its place.
#[derive(Default, Debug)]
struct Known {
    ring: Option<String>,
    nodes: Vec<Address>,
}

/// See the module's documentation. It needs [`Gate::keep`] to run beside it.
#[derive(Debug)]
pub struct Gate {
    wanted: Wanted,
    client: ArcSwapOption<Client>,
    known: ArcSwap<Known>,
    places: Semaphore,
    cache: Cache,
    /// Told of requests after which it is to be seen whether the ring is still there.
    doubt: Notify,
}

impl Gate {
    /// A gate before a ring that has yet to be found.
    pub fn new(wanted: Wanted) -> Arc<Self> {
        Arc::new(Gate {
            cache: Cache::new(CacheConfig { often: OFTEN, ..wanted.cache }),
            wanted,
            client: ArcSwapOption::empty(),
            known: ArcSwap::default(),
            places: Semaphore::new(UNDER_WAY),
            doubt: Notify::new(),
        })
    }

    /// Looks for the ring once. It may not be there yet, or be one that will not do.
    pub async fn look(&self) -> Result<(), ClientError> {
        let before = self.client.load_full();
        let known = self.known.load();
        let client = match self.wanted.find(&known).await {
            Ok(client) => client,
            Err(error) => {
                self.client.store(None);
                return Err(error);
            }
        };
        let layout = client.layout();
        let known = Known { ring: Some(layout.name.clone()), nodes: client.addresses() };
        self.known.store(Arc::new(known));
        if before.is_none_or(|before| before.layout().ring != layout.ring) {
            news!("gate: found ring {} of {}", layout.name, layout.members.len());
            self.client.store(Some(Arc::new(client)));
        }
        Ok(())
    }

    /// Looks for the ring until it is there, and again whenever it may have gone.
    pub async fn keep(&self) {
        let mut said = String::new();
        loop {
            match self.look().await {
                Ok(()) => {
                    said.clear();
                    tokio::time::sleep(LOOK_AGAIN).await;
                    self.doubt.notified().await;
                }
                Err(error) => {
                    let why = error.to_string();
                    if why != said {
                        news!("gate: waiting for a ring: {why}");
                        said = why;
                    }
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            }
        }
    }

    /// How often its cache was of use; nothing where it has none.
    pub fn cache_use(&self) -> Option<CacheUse> {
        self.cache.used()
    }

    /// The value under a key, if there is one, as it was at most so long ago as the cache may
    /// keep what is read often.
    pub(super) async fn get(&self, key: Bytes) -> Result<Option<Bytes>, Failed> {
        let load = async {
            let (client, _place) = self.way(&key)?;
            self.judged(client.get(key.clone()).await)
        };
        let found = self.cache.get(&key, load).await?;
        Ok(found.map(|found| found.value))
    }

    /// What one node holds itself: the first that the gate was told of and that is there.
    pub(super) async fn get_local(&self, key: Bytes) -> Result<Option<Bytes>, Failed> {
        let (client, _place) = self.way(&key)?;
        let found = self.judged(client.get_local(&self.first(&client).await?, key).await)?;
        Ok(found.map(|found| found.value))
    }

    /// The keys of what that node holds itself, some at a time, as fast as they are taken. An error ends them.
    pub(super) fn list_local(self: &Arc<Self>) -> mpsc::Receiver<Result<Vec<Bytes>, Failed>> {
        let (sender, receiver) = mpsc::channel(1);
        let gate = self.clone();
        tokio::spawn(async move {
            let ended = gate.scan_local(&sender).await;
            if let Err(failed) = ended {
                let _nobody_listens = sender.send(Err(failed)).await;
            }
        });
        receiver
    }

    async fn scan_local(&self, sender: &mpsc::Sender<Result<Vec<Bytes>, Failed>>) -> Result<(), Failed> {
        let (client, _place) = self.place()?;
        let local = Some(self.first(&client).await?);
        let mut scan = client.scan(ScanOptions { keys_only: true, local, ..ScanOptions::default() });
        let mut some = Vec::new();
        while let Some(item) = scan.next().await {
            some.push(self.judged(item)?.key);
            if some.len() < LISTED_AT_ONCE {
                continue;
            }
            if sender.send_timeout(Ok(std::mem::take(&mut some)), TAKE_TIMEOUT).await.is_err() {
                return Ok(());
            }
        }
        let _nobody_listens = sender.send(Ok(some)).await;
        Ok(())
    }

    /// The node that stands for this gate where one node is meant: the first that it was told of and that is
    /// there.
    async fn first(&self, client: &Client) -> Result<Address, Failed> {
        let told = if self.wanted.peers.is_empty() { client.addresses() } else { self.wanted.peers.clone() };
        for address in &told {
            if channel::probe(address, ProbeRequest::default()).await.is_ok() {
                return Ok(address.clone());
            }
        }
        let told: Vec<&str> = told.iter().map(Address::as_str).collect();
        Err(Failed::unavailable(format!(
            "none of the nodes that this gate was told of is there: {}",
            told.join(", ")
        )))
    }

    /// Stores a value under a key, with as many owners as usual or as said.
    pub(super) async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        consistency: Option<Consistency>,
    ) -> Result<(), Failed> {
        if value.len() > MAX_VALUE_BYTES {
            return Err(too_large(MAX_VALUE_BYTES));
        }
        let (client, _place) = self.way(&key)?;
        let options = PutOptions { consistency, ..PutOptions::default() };
        let _changing = self.cache.changing(&key);
        self.judged(client.put_with(key.clone(), value, options).await)?;
        Ok(())
    }

    /// Deletes a key.
    pub(super) async fn delete(&self, key: Bytes) -> Result<(), Failed> {
        let (client, _place) = self.way(&key)?;
        let _changing = self.cache.changing(&key);
        self.judged(client.delete(key.clone()).await)?;
        Ok(())
    }

    /// The way to the ring for a request for a key, and a place on it.
    fn way(&self, key: &Bytes) -> Result<(Arc<Client>, SemaphorePermit<'_>), Failed> {
        convert::key(key).map_err(|wrong| Failed::bad(wrong.to_string()))?;
        self.place()
    }

    /// The same for what is about no key.
    fn place(&self) -> Result<(Arc<Client>, SemaphorePermit<'_>), Failed> {
        let place = self.places.try_acquire().map_err(|_none| {
            Failed::unavailable(format!("{UNDER_WAY} requests are under way here; nothing was done"))
        })?;
        let Some(client) = self.client.load_full() else {
            return Err(Failed::unavailable("no node of the ring can be reached yet; nothing was done"));
        };
        Ok((client, place))
    }

    fn judged<T>(&self, result: Result<T, ClientError>) -> Result<T, Failed> {
        use ClientError::{NoNode, OutcomeUnknown, Unavailable};
        if let Err(NoNode(_) | Unavailable(_) | OutcomeUnknown(_)) = result {
            self.doubt.notify_one();
        }
        Ok(result?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_ring() -> Wanted {
        let (timeout, cache) = (Duration::from_secs(1), CacheConfig::default());
        Wanted { peers: Vec::new(), ring: None, timeout, cache }
    }

    #[tokio::test]
    async fn a_gate_without_a_ring_says_so_and_checks_what_it_is_given_first() {
        let gate = Gate::new(no_ring());
        let code = |result: Result<(), Failed>| result.map_err(|f| (f.code.as_u16(), f.again));
        let key = Bytes::from_static(b"k");
        assert_eq!(code(gate.get(key.clone()).await.map(drop)), Err((503, true)));
        assert_eq!(code(gate.delete(key.clone()).await), Err((503, true)));
        assert_eq!(code(gate.put(key.clone(), key.clone(), None).await), Err((503, true)));
        for wrong in [Bytes::new(), vec![b'k'; 4097].into()] {
            assert_eq!(code(gate.get(wrong.clone()).await.map(drop)), Err((400, false)));
            assert_eq!(code(gate.delete(wrong.clone()).await), Err((400, false)));
            assert_eq!(code(gate.put(wrong, key.clone(), None).await), Err((400, false)));
        }
        let large = vec![0; MAX_VALUE_BYTES + 1].into();
        assert_eq!(code(gate.put(key, large, None).await), Err((413, false)));
    }

    #[tokio::test]
    async fn what_is_too_much_at_once_is_turned_away() {
        let gate = Gate::new(no_ring());
        let _all = gate.places.acquire_many(UNDER_WAY as u32).await.unwrap();
        let failed = gate.get(Bytes::from_static(b"k")).await.unwrap_err();
        assert!(failed.again && failed.message.contains("under way"), "{failed:?}");
    }
}
