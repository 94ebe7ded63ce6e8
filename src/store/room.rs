//! How much room is left on the disk, and writes that are refused in time.
//!
//! An engine whose write fails for want of room is of no use until the next start. So writes and
//! pulled pages are refused well before: while less than [`RESERVE_BYTES`] is free. What a read writes
//! back is taken all the same, for without it the read could not end: a value for each read of a key
//! whose owners differ. The space is
//! looked at before the first request, before each batch and each page (asking takes about as long
//! as a system call, and each of them is followed by a sync), and each second, so that who waits
//! for room finds out. They are accepted again when a tenth more is free, so that a disk at the
//! brink doesn't have them accepted and refused in turn with each compaction.

use super::commit::AnyEngine;
use crate::replica::Replica;
use crate::storage::StorageError;
use std::path::{Path, PathBuf};

/// Writes are refused when less is free on the disk. What remains is for what was accepted already:
/// up to 160 MiB of memtables that are yet to be flushed (their journals are there by then), a batch
/// and some pages that were let in at the last look, what reads write back, layouts and votes; and for compactions, which
/// write their new tables before they delete the old ones, some 300 MiB where four flushed memtables
/// are merged into the level below.
pub const RESERVE_BYTES: u64 = 512 << 20;

/// And accepted again when so much is free.
pub const ROOM_AGAIN_BYTES: u64 = RESERVE_BYTES / 10 * 11;

/// What a node can find out about the room there is for its data.
pub struct FreeSpace {
    /// Where the data is.
    pub folder: PathBuf,
    /// Tells how many bytes are free there.
    pub bytes: Box<dyn Fn() -> Result<u64, StorageError> + Send + Sync>,
}

impl std::fmt::Debug for FreeSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FreeSpace").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// Looks after the room on one node's disk.
pub struct Room {
    free_space: Option<FreeSpace>,
}

impl Room {
    /// Without `free_space` there is always room.
    pub fn new(free_space: Option<FreeSpace>) -> Self {
        Room { free_space }
    }

    /// Where the data is.
    pub fn folder(&self) -> Option<&Path> {
        self.free_space.as_ref().map(|free_space| &*free_space.folder)
    }

    /// Looks, and has the replica refuse or accept accordingly. What can't be found out changes nothing.
    pub fn look(&self, replica: &Replica<AnyEngine>) {
        let Some(free_space) = &self.free_space else { return };
        let enough = if replica.is_full() { ROOM_AGAIN_BYTES } else { RESERVE_BYTES };
        let folder = free_space.folder.display();
        let full = match (free_space.bytes)() {
            Ok(bytes) => bytes < enough,
            Err(error) => return tracing::debug!(%error, "the room on the disk is not known"),
        };
        match (replica.set_full(full), full) {
            (false, true) => {
                tracing::error!(target: "thrifty::news", "the disk is nearly full: writes are refused until there is room in {folder}")
            }
            (true, false) => crate::news!("there is room on the disk again: writes are accepted ({folder})"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheConfig;
    use crate::core::layout::tests::ring_of;
    use crate::core::record::{Record, Version};
    use crate::core::replica_request::{Answer, Ask};
    use crate::location::SegmentHost;
    use crate::location::state::NodeState;
    use crate::replica::Request;
    use crate::storage::simulated::SimulatedEngine;
    use crate::storage::vault::MemoryVault;
    use crate::store::Store;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn room_is_looked_at_before_the_first_request_and_before_each_batch() {
        let mut state = NodeState::open(Arc::new(MemoryVault::new())).unwrap();
        let layout = Arc::new(ring_of(1, 1, 8));
        state.id = layout.members[0].id;
        let free = Arc::new(AtomicU64::new(RESERVE_BYTES - 1));
        let asked = free.clone();
        let bytes = move || match asked.load(Ordering::Relaxed) {
            0 => Err(StorageError::io("asking failed", std::io::ErrorKind::Other.into())),
            bytes => Ok(bytes),
        };
        let free_space = FreeSpace { folder: "data/1".into(), bytes: Box::new(bytes) };
        let engine = Arc::new(SimulatedEngine::new());
        let store = Store::new(&state, engine, Some(free_space), CacheConfig::default());
        store.install(layout.clone()).unwrap();
        let committer = store.committer().unwrap();
        assert!(committer.replica().is_full());
        let write = async |hlc| {
            let version = Version { hlc, node: 1 };
            let ask = Ask::Write(Record::value(version, "v"));
            let (done, answer) = oneshot::channel();
            let request = Request { epoch: layout.epoch, key: "k".into(), ask };
            committer.ask(request, || Box::new(|answer| done.send(answer).unwrap()));
            answer.await.unwrap()
        };
        assert_eq!(write(1).await, Answer::NoSpace);
        free.store(ROOM_AGAIN_BYTES - 1, Ordering::Relaxed);
        assert_eq!(write(2).await, Answer::NoSpace, "not at the first byte");
        free.store(0, Ordering::Relaxed);
        assert_eq!(write(2).await, Answer::NoSpace, "nor when nobody can tell");
        free.store(ROOM_AGAIN_BYTES, Ordering::Relaxed);
        assert!(matches!(write(3).await, Answer::Accepted(_)));
        free.store(RESERVE_BYTES, Ordering::Relaxed);
        assert!(matches!(write(4).await, Answer::Accepted(_)), "nor refused before the reserve");
        free.store(RESERVE_BYTES - 1, Ordering::Relaxed);
        assert_eq!(write(5).await, Answer::NoSpace);
    }
}
