//! Commonly read keys where they are read: what was read a moment ago is given out again, without
//! asking those who hold it. For a node that would forward a read, or a frontend; for reads at ONE.
//!
//! **How stale.** What is given out was current, as ONE goes, at some moment at most `ttl` before: it
//! counts from when it began to be read, not from when it arrived. A frontend that reads through nodes
//! which have caches, too, adds its `ttl` to theirs. Nothing is given out after its own expiry.
//!
//! **Changes.** Who changes a key says so ([`Cache::changing`]), and finds the new value from when the
//! change has ended: whatever began to be read before that is not kept.
//!
//! **Loads.** Reads of one key at once are one load. Who waits for somebody else's load that fails,
//! is given up or takes longer than `ttl` reads for himself. That a key is absent is told to those who
//! wait, and not kept; of errors nobody else hears.
//!
//! **Room.** The bytes are bounded. Where there is no room for all, what is read often stays (TinyLFU):
//! keys that are read once do not push out those that are read again.
//!
//! ```no_run
//! # async fn example(client: thrifty::client::Client) -> Result<(), thrifty::client::ClientError> {
//! use thrifty::cache::{Cache, CacheConfig};
//!
//! let (cache, key) = (Cache::new(CacheConfig::default()), bytes::Bytes::from("a"));
//! let found = cache.get(&key, client.get(key.clone())).await?; // by a client at ONE
//! let changing = cache.changing(&key);
//! client.put(key.clone(), "apple").await?;
//! drop(changing);
//! # Ok(())
//! # }
//! ```

use crate::client::Found;
use crate::core::quorum::Consistency;
use bytes::Bytes;
use moka::sync::Cache as Kept;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::time::Instant;

/// What keeping a value takes besides its own bytes and its key's, about.
const OVERHEAD: usize = 256;

/// After so long what is kept is let go of in any case.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// Keys whose reads are counted.
const COUNTED: u64 = 10_000;

/// How long values are kept, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// How stale a value may be; zero: there is no cache.
    pub ttl: Duration,
    /// Bytes of all that is kept.
    pub bytes: u64,
    /// A key's value is kept from when the key has been read so often, neither changed here nor left alone
    /// for ten `ttl` meanwhile. 1: from the first time on.
    pub often: u32,
}

impl Default for CacheConfig {
    fn default() -> Self {
        CacheConfig { ttl: Duration::from_secs(1), bytes: 64 << 20, often: 1 }
    }
}

/// How often a cache was of use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUse {
    /// Reads that were answered from it, or by a load that was under way.
    pub hits: u64,
    /// Reads that were not.
    pub misses: u64,
}

#[derive(Clone)]
struct Value {
    found: Found,
    began: Instant,
}

/// What a load came to; `None` while it is under way.
type Told = Option<Option<Found>>;

struct Load {
    number: u64,
    began: Instant,
    told: watch::Receiver<Told>,
}

/// See the module's documentation.
pub struct Cache {
    ttl: Duration,
    often: u32,
    kept: Kept<Bytes, Value>,
    /// How often keys were read, where that matters.
    reads: Kept<Bytes, Arc<AtomicU32>>,
    /// Those whose values may be kept and given to others.
    loads: Mutex<HashMap<Bytes, Load>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

impl Cache {
    /// An empty cache.
    pub fn new(config: CacheConfig) -> Self {
        let weight = |key: &Bytes, value: &Value| {
            let found = &value.found;
            let bytes = key.len() + found.value.len() + found.content_type.len() + OVERHEAD;
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let ttl = config.ttl.min(LONGEST);
        let kept = Kept::builder().max_capacity(config.bytes).weigher(weight).time_to_live(ttl);
        let reads = Kept::builder().max_capacity(COUNTED).time_to_idle(ttl.saturating_mul(10).min(LONGEST));
        Cache {
            ttl: config.ttl,
            often: config.often,
            kept: kept.build(),
            reads: reads.build(),
            loads: Mutex::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// Whether anything is ever kept.
    pub fn is_on(&self) -> bool {
        !self.ttl.is_zero()
    }

    /// How often it was of use; nothing where it is off.
    pub fn used(&self) -> Option<CacheUse> {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        self.is_on().then(|| CacheUse { hits: count(&self.hits), misses: count(&self.misses) })
    }

    /// The value under a key: what is kept, or what `load` finds, which is polled only if it is needed.
    pub async fn get<E>(
        &self,
        key: &Bytes,
        load: impl Future<Output = Result<Option<Found>, E>>,
    ) -> Result<Option<Found>, E> {
        match self.kept(key) {
            Some(found) => Ok(Some(found)),
            None => self.load(key, load).await,
        }
    }

    /// What is kept under a key and may still be given out.
    pub fn kept(&self, key: &Bytes) -> Option<Found> {
        if !self.is_on() {
            return None;
        }
        let Value { found, began } = self.kept.get(key)?;
        self.count(key);
        (self.is_fresh(began) && !is_expired(&found)).then(|| {
            self.hits.fetch_add(1, Ordering::Relaxed);
            found
        })
    }

    /// What is under a key that is not kept: what `load` finds, or somebody else's load that is under
    /// way.
    pub async fn load<E>(
        &self,
        key: &Bytes,
        load: impl Future<Output = Result<Option<Found>, E>>,
    ) -> Result<Option<Found>, E> {
        if !self.is_on() {
            return load.await;
        }
        let is_common = self.count(key);
        match self.begin(key) {
            Ok(loading) => {
                let loaded = load.await;
                if let Ok(found) = &loaded {
                    loading.end(found, is_common);
                }
                loaded
            }
            Err((began, mut told)) => {
                // As long as what it brings may be given out.
                let end = began.checked_add(self.ttl).unwrap_or(began);
                let told = tokio::time::timeout_at(end, told.wait_for(Option::is_some)).await;
                match told.map(|told| told.map(|told| told.clone())) {
                    Ok(Ok(Some(found))) if self.is_fresh(began) => {
                        self.hits.fetch_add(1, Ordering::Relaxed);
                        Ok(found)
                    }
                    _ => {
                        self.misses.fetch_add(1, Ordering::Relaxed);
                        load.await
                    }
                }
            }
        }
    }

    /// The key is being changed, until what this returns is dropped.
    pub fn changing<'a>(&'a self, key: &'a Bytes) -> Changing<'a> {
        self.forget(key);
        Changing { cache: self, key }
    }

    /// The key was changed: what was read of it so far, or is being read, is not given out any more.
    pub fn forget(&self, key: &Bytes) {
        // Where nobody reads, writing costs nothing.
        if self.misses.load(Ordering::Acquire) > 0 {
            let mut loads = self.loads();
            loads.remove(key);
            self.kept.invalidate(key);
            self.reads.invalidate(key);
        }
    }

    /// Counts a read of a key. Whether it is read often.
    fn count(&self, key: &Bytes) -> bool {
        let so_far = || self.reads.get_with_by_ref(key, Arc::default).fetch_add(1, Ordering::Relaxed);
        self.often <= 1 || so_far().saturating_add(1) >= self.often
    }

    /// Begins to load a key, unless somebody else has begun: then when that was, and how to hear of it.
    fn begin(&self, key: &Bytes) -> Result<Loading<'_>, (Instant, watch::Receiver<Told>)> {
        let mut loads = self.loads();
        if let Some(load) = loads.get(key) {
            return Err((load.began, load.told.clone()));
        }
        let number = self.misses.fetch_add(1, Ordering::AcqRel);
        let (tell, told) = watch::channel(None);
        let (key, began) = (Bytes::copy_from_slice(key), Instant::now());
        loads.insert(key.clone(), Load { number, began, told });
        Ok(Loading { cache: self, key, number, began, tell })
    }

    fn loads(&self) -> MutexGuard<'_, HashMap<Bytes, Load>> {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_fresh(&self, began: Instant) -> bool {
        began.elapsed() < self.ttl
    }
}

/// See [`Cache::changing`].
#[derive(Debug)]
pub struct Changing<'a> {
    cache: &'a Cache,
    key: &'a Bytes,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.cache.forget(self.key);
    }
}

/// A load that is under way, until it is dropped.
struct Loading<'a> {
    cache: &'a Cache,
    key: Bytes,
    number: u64,
    began: Instant,
    tell: watch::Sender<Told>,
}

impl Loading<'_> {
    /// Tells the others, and keeps what was found of a common key unless it was changed meanwhile.
    fn end(self, found: &Option<Found>, is_common: bool) {
        // A copy: the value is a part of the frame that it came in, which may be much larger.
        let found = found.as_ref().map(|found| Found {
            value: Bytes::copy_from_slice(&found.value),
            consistency: Consistency::One,
            ..found.clone()
        });
        self.tell.send_replace(Some(found.clone()));
        let Some(found) = found.filter(|_| is_common && self.cache.is_fresh(self.began)) else { return };
        let loads = self.cache.loads();
        if loads.get(&self.key).is_some_and(|load| load.number == self.number) {
            self.cache.kept.insert(self.key.clone(), Value { found, began: self.began });
            drop(loads);
            // At once, so that what is too much never piles up.
            self.cache.kept.run_pending_tasks();
        }
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let mut loads = self.cache.loads();
        if loads.get(&self.key).is_some_and(|load| load.number == self.number) {
            loads.remove(&self.key);
        }
    }
}

fn is_expired(found: &Found) -> bool {
    let expires_at = |ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms));
    found.expires_at_ms.and_then(expires_at).is_some_and(|at| at <= SystemTime::now())
}

#[cfg(test)]
mod tests;
