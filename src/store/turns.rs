//! Requests for one key take turns: writes one at a time, reads beside each other.
//!
//! That keeps one coordinator from racing with itself, which would abort one of the two for
//! nothing. It is for order and progress only: two coordinators at once stay safe without it.

use bytes::Bytes;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// The map is cut into so many, so that threads seldom wait for one another.
const SHARDS: usize = 64;

type Shard = Mutex<HashMap<Bytes, Arc<RwLock<()>>>>;

/// See the module's documentation.
#[derive(Debug)]
pub struct Turns {
    hasher: RandomState,
    shards: Vec<Shard>,
}

/// A turn that lasts until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a Turns,
    key: Bytes,
    guard: Option<Guard>,
}

#[derive(Debug)]
enum Guard {
    Read { _held: OwnedRwLockReadGuard<()> },
    Write { _held: OwnedRwLockWriteGuard<()> },
}

impl Default for Turns {
    fn default() -> Self {
        Turns { hasher: RandomState::new(), shards: (0..SHARDS).map(|_| Shard::default()).collect() }
    }
}

impl Turns {
    fn shard(&self, key: &[u8]) -> &Shard {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    fn lock(&self, key: &Bytes) -> Arc<RwLock<()>> {
        let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        shard.entry(key.clone()).or_default().clone()
    }

    /// Waits until no write of the key is under way.
    pub async fn read(&self, key: &Bytes) -> Turn<'_> {
        let held = self.lock(key).read_owned().await;
        Turn { turns: self, key: key.clone(), guard: Some(Guard::Read { _held: held }) }
    }

    /// Waits until nothing of the key is under way.
    pub async fn write(&self, key: &Bytes) -> Turn<'_> {
        let held = self.lock(key).write_owned().await;
        Turn { turns: self, key: key.clone(), guard: Some(Guard::Write { _held: held }) }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.guard = None;
        let mut shard = self.turns.shard(&self.key).lock().unwrap_or_else(PoisonError::into_inner);
        // Only the map holds it: nobody waits for this key.
        if shard.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            shard.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn writes_wait_for_each_other_and_nothing_is_left_behind() {
        let turns = Turns::default();
        let (a, b) = (Bytes::from("a"), Bytes::from("b"));
        let first = turns.write(&a).await;
        let _other = turns.write(&b).await;
        let mut second = std::pin::pin!(turns.write(&a));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        drop(second.await);
        let (_one, _two) = (turns.read(&a).await, turns.read(&a).await);
        drop((_one, _two, _other));
        assert!(turns.shards.iter().all(|shard| shard.lock().unwrap().is_empty()));
    }
}
