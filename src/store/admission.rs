//! How many requests a node works on at once.
//!
//! A node that takes on more than it can do makes all of it late, and what is late is worth
//! nothing. So there is a bound, past which a request is turned away before anything is done; and
//! the bound follows what the node can do. By Little's law so many requests are under way as are
//! done in the time that one takes. While most requests take [`LONG`] or more there is a queue
//! somewhere inside, and the bound becomes what is done within [`LONG`]; else it grows step by step
//! up to [`MOST`]. A few requests that take long, because a node hangs, change nothing.

use crate::wire::status;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

/// Requests that a node works on at once at the most, be it ever so fast.
const MOST: usize = 8192;

/// And at the least, be it ever so slow: what a few clients have under way.
const FEWEST: usize = 256;

/// When most requests take longer than this, the node has more to do than it can: many times what
/// one takes, and a small part of the time that clients have.
const LONG: Duration = Duration::from_millis(100);

/// How often the bound is looked at.
const WINDOW: Duration = Duration::from_millis(100);

/// Requests of one window.
#[derive(Debug)]
struct Window {
    begun: Instant,
    ended: usize,
    slow: usize,
}

impl Window {
    fn new(begun: Instant) -> Self {
        Window { begun, ended: 0, slow: 0 }
    }

    /// A request ended. At the end of the window, what the bound becomes that was `limit`.
    fn ended(&mut self, took: Duration, now: Instant, limit: usize) -> Option<usize> {
        self.ended += 1;
        self.slow += usize::from(took >= LONG);
        let elapsed = now.saturating_duration_since(self.begun);
        if elapsed < WINDOW {
            return None;
        }
        let next = match self.slow * 2 > self.ended {
            true => {
                let done_in_time = self.ended as f64 * (LONG.as_secs_f64() / elapsed.as_secs_f64());
                (done_in_time as usize).clamp(FEWEST, limit)
            }
            false => (limit + limit / 4).min(MOST),
        };
        *self = Window::new(now);
        Some(next)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Admission {
    working: AtomicUsize,
    limit: AtomicUsize,
    window: Mutex<Window>,
}

impl Admission {
    /// Nothing is under way.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Admission {
            working: AtomicUsize::new(0),
            limit: AtomicUsize::new(MOST),
            window: Mutex::new(Window::new(Instant::now())),
        })
    }

    /// Takes on a request that has so much time, or turns it away: `RESOURCE_EXHAUSTED`, and nothing
    /// was done.
    pub(super) fn admit(self: &Arc<Self>, timeout: Duration) -> Result<Working, Status> {
        if self.working.fetch_add(1, Ordering::AcqRel) >= self.room(timeout) {
            self.working.fetch_sub(1, Ordering::AcqRel);
            return Err(status::exhausted(
                "this node has as many requests as it can answer in time; nothing was done",
            ));
        }
        Ok(Working { admission: self.clone(), since: Instant::now() })
    }

    /// How many may be under way before a request with so much time: as many as are done in it.
    fn room(&self, timeout: Duration) -> usize {
        let limit = self.limit.load(Ordering::Acquire);
        if limit == MOST || timeout >= LONG {
            return limit;
        }
        (limit * timeout.as_micros() as usize / LONG.as_micros() as usize).max(1)
    }

    /// How many requests are under way.
    pub(super) fn working(&self) -> usize {
        self.working.load(Ordering::Acquire)
    }

    fn ended(&self, since: Instant, now: Instant) {
        self.working.fetch_sub(1, Ordering::AcqRel);
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = self.limit.load(Ordering::Acquire);
        if let Some(next) = window.ended(now.saturating_duration_since(since), now, limit) {
            self.limit.store(next, Ordering::Release);
        }
    }
}

/// A request that is being worked on, until it is dropped.
#[derive(Debug)]
pub(super) struct Working {
    admission: Arc<Admission>,
    since: Instant,
}

impl Drop for Working {
    fn drop(&mut self) {
        self.admission.ended(self.since, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::status::nothing_done;
    use tonic::Code;

    const TIMEOUT: Duration = Duration::from_secs(2);

    /// What becomes of the bound in a window in which so many requests took so long.
    fn next(limit: usize, requests: &[(usize, Duration)]) -> usize {
        let begun = Instant::now();
        let mut window = Window::new(begun);
        for (count, took) in requests {
            for _ in 0..*count {
                assert_eq!(window.ended(*took, begun, limit), None);
            }
        }
        window.ended(Duration::ZERO, begun + WINDOW, limit).unwrap()
    }

    #[test]
    fn the_bound_is_what_is_done_in_time_while_most_take_long() {
        assert_eq!(next(MOST, &[(999, LONG)]), 1000);
        assert_eq!(next(2000, &[(2999, LONG)]), 2000, "it does not grow while they do");
        assert_eq!(next(MOST, &[(10, LONG)]), FEWEST);
    }

    #[test]
    fn the_bound_grows_again_and_some_that_hang_change_nothing() {
        assert_eq!(next(1000, &[(10, Duration::ZERO)]), 1250);
        assert_eq!(next(MOST, &[(60, Duration::ZERO), (40, TIMEOUT)]), MOST);
        let mut limit = FEWEST;
        let windows = std::iter::from_fn(|| {
            limit = next(limit, &[]);
            (limit < MOST).then_some(())
        });
        assert!(windows.count() < 20, "two seconds");
    }

    #[test]
    fn past_the_bound_nothing_is_taken_on_until_something_ends() {
        let admission = Admission::new();
        let mut all: Vec<_> = (0..MOST).map(|_| admission.admit(TIMEOUT).unwrap()).collect();
        let status = admission.admit(TIMEOUT).unwrap_err();
        assert_eq!((status.code(), nothing_done(&status)), (Code::ResourceExhausted, true), "{status}");
        assert_eq!(admission.working(), MOST);
        all.pop();
        all.push(admission.admit(TIMEOUT).unwrap());
    }

    #[test]
    fn who_has_less_time_is_turned_away_earlier_when_requests_queue() {
        let admission = Admission::new();
        admission.limit.store(1000, Ordering::Release);
        assert_eq!(admission.room(TIMEOUT), 1000);
        assert_eq!(admission.room(LONG / 10), 100);
        assert_eq!(admission.room(Duration::ZERO), 1);
        admission.limit.store(MOST, Ordering::Release);
        assert_eq!(admission.room(Duration::ZERO), MOST);
    }
}
