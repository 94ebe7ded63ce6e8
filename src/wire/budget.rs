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
}

/// A part of a [`Budget`], until it is dropped.
#[derive(Debug)]
pub struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// All of it is free.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Budget { most, held: AtomicUsize::new(0) })
    }

    /// Takes so many bytes of it. `RESOURCE_EXHAUSTED` if there are not so many.
    pub fn hold(self: &Arc<Self>, bytes: usize) -> Result<Held, Status> {
        self.take(bytes)?;
        Ok(Held { budget: self.clone(), bytes })
    }

    fn take(&self, bytes: usize) -> Result<(), Status> {
        let before = self.held.fetch_add(bytes, Ordering::AcqRel);
        if before.saturating_add(bytes) > self.most {
            self.held.fetch_sub(bytes, Ordering::AcqRel);
            return Err(status::exhausted(
                "this node's requests take as much memory as they may; nothing was done",
            ));
        }
        Ok(())
    }
}

impl Held {
    /// Takes more.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Status> {
        self.budget.take(bytes)?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn no_more_is_held_than_there_is_and_all_of_it_comes_back() {
        let budget = Budget::new(10);
        let mut held = budget.hold(6).unwrap();
        held.grow(3).unwrap();
        let status = held.grow(2).unwrap_err();
        assert_eq!((status.code(), status::nothing_done(&status)), (Code::ResourceExhausted, true));
        assert!(budget.hold(2).is_err());
        let _rest = budget.hold(1).unwrap();
        drop(held);
        drop(budget.hold(9).unwrap());
        assert_eq!(budget.held.load(Ordering::SeqCst), 1);
    }
}
