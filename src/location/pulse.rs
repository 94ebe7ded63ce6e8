//! What a node is at, and whether it lives: for whoever looks after the process.

use super::agent::Event;
use super::{Location, Shared, Stage};
use crate::core::layout::Standing;
use crate::storage::StorageError;
use std::convert::Infallible;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::oneshot;

/// How soon it is noticed that a node whose answer is waited for waits for its disk.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What a node is at. Segments it gathers are told as how many are done, and of how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doing {
    /// It looks for a ring.
    Seeking,
    /// It waits to be taken into a ring.
    Waiting,
    /// It is being taken in, and gathers.
    Joining(Option<(u64, u64)>),
    /// It is a member; while the ring changes it may have something to gather.
    Serving(Option<(u64, u64)>),
    /// It hands over what it has.
    Leaving,
}

impl Location {
    /// What this node is at.
    pub fn doing(&self) -> Doing {
        let Shared { me, stage, .. } = &*self.shared;
        if let Stage::Seeking(_) = &*stage.lock().unwrap_or_else(PoisonError::into_inner) {
            return Doing::Seeking;
        }
        let member = self.layout().and_then(|layout| layout.member(*me).map(|member| member.standing));
        let gathered =
            self.shared.progress.load_full().map(|progress| {
                (progress.done.load(Ordering::Relaxed), progress.total.load(Ordering::Relaxed))
            });
        match member {
            None => Doing::Waiting,
            Some(Standing::Joining) => Doing::Joining(gathered),
            Some(Standing::Staying) => Doing::Serving(gathered),
            Some(Standing::Leaving) => Doing::Leaving,
        }
    }

    /// Waits until this node's event loop has come round to a new event: for ever, if it doesn't go on
    /// by a mistake in this program. A loop that waits for the disk counts as going on, since nothing
    /// but the disk can help it; and so does one that has come to its end.
    pub async fn alive(&self) {
        let answer = async {
            let (ask, answered) = oneshot::channel::<Infallible>();
            drop(self.shared.events.send(Event::Alive(ask)).await);
            let _dropped = answered.await;
        };
        let mut answer = std::pin::pin!(answer);
        while !self.shared.at_disk.load(Ordering::Relaxed) {
            if tokio::time::timeout(LOOK_AGAIN, &mut answer).await.is_ok() {
                return;
            }
        }
    }

    /// Does what waits for the disk, where that may block.
    pub(super) async fn at_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        self.shared.at_disk.store(true, Ordering::Relaxed);
        let done = tokio::task::spawn_blocking(work).await;
        self.shared.at_disk.store(false, Ordering::Relaxed);
        match done {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::state::NodeState;
    use crate::location::{LocationConfig, NoSegments, agent};
    use crate::storage::vault::MemoryVault;
    use std::sync::{Arc, mpsc};

    fn node(config: LocationConfig) -> (Location, impl Future<Output = ()>) {
        let state = NodeState::open(Arc::new(MemoryVault::new())).unwrap();
        let address = "127.0.0.1:1".parse().unwrap();
        let (location, agent) = agent::start(address, config, state, false, Arc::new(NoSegments));
        (location, async { _ = agent.await.unwrap() })
    }

    async fn lives(location: &Location) -> bool {
        tokio::time::timeout(LOOK_AGAIN * 4, location.alive()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_lives_while_its_event_loop_turns() {
        let peers = vec!["127.0.0.1:2".parse().unwrap()];
        for (config, doing) in [
            (LocationConfig { bootstrap: true, ..LocationConfig::default() }, Doing::Serving(None)),
            (LocationConfig { peers, ..LocationConfig::default() }, Doing::Seeking),
        ] {
            let (location, agent) = node(config);
            assert!(!lives(&location).await, "its loop hangs");
            let agent = tokio::spawn(agent);
            assert!(lives(&location).await, "its loop runs");
            while location.doing() != doing {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            assert!(lives(&location).await, "{doing:?}");
            location.stop().await;
            agent.await.unwrap();
            assert!(lives(&location).await, "it has come to its end");
        }
    }

    #[tokio::test]
    async fn a_node_that_waits_for_its_disk_lives() {
        let (location, _agent_hangs) = node(LocationConfig::default());
        let (over, disk) = mpsc::channel();
        let waits = location.clone();
        let work = tokio::spawn(async move { waits.at_disk(move || Ok(disk.recv().is_ok())).await });
        assert!(lives(&location).await, "its disk hangs");
        over.send(()).unwrap();
        assert!(work.await.unwrap().unwrap());
        assert!(!lives(&location).await, "it does not hang any more");
    }
}
