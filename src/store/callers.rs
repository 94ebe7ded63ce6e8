//! Who has a link to this node, and for how long.
//!
//! A link lasts as long as the two nodes do, so a link that says nothing looks like one that has
//! nothing to say. Each member of the ring has a few places of its own; all others, and all that
//! have yet to say who they are, share some. Nobody is refused: the newest link takes the place of
//! the oldest. So strangers push only each other out, and who goes by a member's id can cut that
//! member off, but not keep it away.

use crate::core::node::NodeId;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use tonic::Status;

/// Links of one member. It has two; after they failed, others may begin before they are gone.
const OF_A_MEMBER: usize = 4;

/// Links of nodes that are no members yet, or any more, and of whoever has not said who he is: that
/// takes a node some milliseconds.
const OF_STRANGERS: usize = 128;

/// See the module's documentation. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Callers(Arc<Mutex<Links>>);

#[derive(Debug, Default)]
struct Links {
    next: u64,
    /// The oldest first; under `None` those of strangers. Dropping the sender ends a link.
    places: HashMap<Option<NodeId>, VecDeque<(u64, oneshot::Sender<()>)>>,
}

/// A link's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    callers: Callers,
    of: Option<NodeId>,
    number: u64,
    lost: oneshot::Receiver<()>,
}

impl Callers {
    fn links(&self) -> MutexGuard<'_, Links> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a link of this member, or of a stranger.
    pub(super) fn take(&self, of: Option<NodeId>) -> Place {
        let most = if of.is_some() { OF_A_MEMBER } else { OF_STRANGERS };
        let (sender, lost) = oneshot::channel();
        let mut links = self.links();
        let number = links.next;
        links.next += 1;
        let places = links.places.entry(of).or_default();
        places.push_back((number, sender));
        if places.len() > most {
            places.pop_front();
        }
        Place { callers: self.clone(), of, number, lost }
    }

    /// Ends all links.
    pub(super) fn end(&self) {
        self.links().places.clear();
    }
}

impl Place {
    /// Does what a link does for as long as it has this place.
    pub(super) async fn keeps<T>(
        &mut self,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        tokio::select! {
            done = work => done,
            _ = &mut self.lost => Err(Status::aborted("a newer link took this one's place")),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut links = self.callers.links();
        let Some(places) = links.places.get_mut(&self.of) else { return };
        places.retain(|(number, _)| *number != self.number);
        if places.is_empty() {
            links.places.remove(&self.of);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn lasts(place: &mut Place) -> bool {
        place.keeps(std::future::pending::<Result<(), _>>()).now_or_never().is_none()
    }

    #[test]
    fn the_newest_link_takes_the_place_of_the_oldest_of_the_same_caller() {
        let callers = Callers::default();
        let mut member = callers.take(Some(NodeId(1)));
        let mut strangers: Vec<_> = (0..=OF_STRANGERS).map(|_| callers.take(None)).collect();
        assert!(!lasts(&mut strangers[0]));
        assert!(strangers[1..].iter_mut().all(lasts) && lasts(&mut member));
        let mut impostors: Vec<_> = (0..OF_A_MEMBER).map(|_| callers.take(Some(NodeId(1)))).collect();
        assert!(!lasts(&mut member));
        let mut again = callers.take(Some(NodeId(1)));
        assert!(lasts(&mut again) && !lasts(&mut impostors[0]));
        drop((member, strangers, impostors));
        assert!(lasts(&mut again));
        drop(again);
        assert!(callers.links().places.is_empty(), "nothing is left behind");
        let mut last = callers.take(Some(NodeId(1)));
        callers.end();
        assert!(!lasts(&mut last));
    }
}
