//! What messages may take in memory, all together.
//!
//! A bound on the number of requests says little where one may be ten thousand times as large as
//! another, so their bytes are counted too: while they arrive, while they are worked on, and while
//! an answer is on its way out.

use super::status;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tonic::Status;

/// So many bytes, for all who share it.
#[derive(Debug)]
pub struct Budget {
    most: usize,
    held: AtomicUsize,
    /// What this is a share of.
    whole: Option<Arc<Budget>>,
}

/// A part of a [`Budget`], until it is dropped.
#[derive(Debug)]
pub struct Held {
    budget: Arc<Budget>,
    bytes: AtomicUsize,
}

impl Budget {
    /// All of it is free.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Budget { most, held: AtomicUsize::new(0), whole: None })
    }

    /// What one of those who share it may hold of it, at the most.
    pub fn share(self: &Arc<Self>, most: usize) -> Arc<Self> {
        Arc::new(Budget { most, held: AtomicUsize::new(0), whole: Some(self.clone()) })
    }

    /// How much there is, free or not.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Whether nobody holds any of it.
    pub fn is_free(&self) -> bool {
        self.held.load(Ordering::Acquire) == 0
    }

    /// Takes so many bytes of it. `RESOURCE_EXHAUSTED` if there are not so many.
    pub fn hold(self: &Arc<Self>, bytes: usize) -> Result<Held, Status> {
        self.take(bytes)?;
        Ok(Held { budget: self.clone(), bytes: AtomicUsize::new(bytes) })
    }

    fn take(&self, bytes: usize) -> Result<(), Status> {
        let before = self.held.fetch_add(bytes, Ordering::AcqRel);
        let taken = match (before.saturating_add(bytes) > self.most, &self.whole) {
            (true, None) => Err(status::exhausted(
                "this node's requests take as much memory as they may; nothing was done",
            )),
            (true, Some(_)) => Err(status::exhausted(
                "this connection's requests take as much memory as they may; nothing was done",
            )),
            (false, Some(whole)) => whole.take(bytes),
            (false, None) => Ok(()),
        };
        if taken.is_err() {
            self.held.fetch_sub(bytes, Ordering::AcqRel);
        }
        taken
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::AcqRel);
        if let Some(whole) = &self.whole {
            whole.give_back(bytes);
        }
    }
}

impl Held {
    /// Takes more.
    pub fn grow(&self, bytes: usize) -> Result<(), Status> {
        self.budget.take(bytes)?;
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.give_back(*self.bytes.get_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn no_more_is_held_than_there_is_and_all_of_it_comes_back() {
        let budget = Budget::new(10);
        let held = budget.hold(6).unwrap();
        held.grow(3).unwrap();
        let status = held.grow(2).unwrap_err();
        assert_eq!((status.code(), status::nothing_done(&status)), (Code::ResourceExhausted, true));
        assert!(budget.hold(2).is_err());
        let _rest = budget.hold(1).unwrap();
        drop(held);
        drop(budget.hold(9).unwrap());
        assert_eq!(budget.held.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn who_has_a_share_leaves_the_rest_to_others() {
        let budget = Budget::new(10);
        let (one, other) = (budget.share(6), budget.share(6));
        let held = one.hold(6).unwrap();
        assert!(held.grow(1).is_err(), "its share");
        let rest = other.hold(4).unwrap();
        assert!(rest.grow(1).is_err(), "all there is");
        drop(held);
        rest.grow(2).unwrap();
        drop(rest);
        drop(one.hold(6).unwrap());
        assert_eq!([&budget, &one, &other].map(|b| b.held.load(Ordering::SeqCst)), [0; 3]);
    }
}
