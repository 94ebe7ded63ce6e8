//! How many requests a node takes in, and how many of them it works on at once.
//!
//! A node that works on more than it can do makes all of it late, and what is late is worth nothing.
//! So there is a bound, and it follows what the node can do. By Little's law so many requests are
//! under way as are done in the time that one takes. While most take [`LONG`] or more there is a
//! queue somewhere inside, and the bound becomes what is done within [`LONG`]; else it grows step by
//! step up to [`MOST`]. A few requests that take long, because a node hangs, change nothing.
//!
//! The others wait in turn, for half of the time that each has, which leaves it the other half. Who
//! waited in vain is turned away before anything is done, as is at once who comes when there are
//! [`MOST`] already. Waiting costs next to nothing; turning away costs a good part of what an answer
//! does, and who is turned away at once may be back at once.

use crate::wire::status;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::Status;

/// Requests that a node takes in at the most, and works on if it is fast enough.
const MOST: usize = 8192;

/// And works on at the least, be it ever so slow: what a few clients have under way.
const FEWEST: usize = 256;

/// When most requests take longer than this, the node has more to do than it can: many times what
/// one takes, and a small part of the time that clients have.
const LONG: Duration = Duration::from_millis(100);

/// How often the bound is looked at.
const WINDOW: Duration = Duration::from_millis(100);

/// How many may be worked on, and the requests of one window.
#[derive(Debug)]
struct Pace {
    limit: usize,
    /// So many more are worked on than the bound allows by now.
    excess: usize,
    begun: Instant,
    ended: usize,
    slow: usize,
}

impl Pace {
    fn new(limit: usize, begun: Instant) -> Self {
        Pace { limit, excess: 0, begun, ended: 0, slow: 0 }
    }

    /// A request ended. How many places there are for others instead of its own.
    fn ended(&mut self, took: Duration, now: Instant) -> usize {
        self.ended += 1;
        self.slow += usize::from(took >= LONG);
        let elapsed = now.saturating_duration_since(self.begun);
        let mut places = 1;
        if elapsed >= WINDOW {
            let next = self.next(elapsed);
            places += next.saturating_sub(self.limit);
            self.excess += self.limit.saturating_sub(next);
            *self = Pace { excess: self.excess, ..Pace::new(next, now) };
        }
        let gone = self.excess.min(places);
        self.excess -= gone;
        places - gone
    }

    /// What the bound becomes at the end of a window.
    fn next(&self, elapsed: Duration) -> usize {
        let limit = self.limit;
        match self.slow * 2 > self.ended {
            true => {
                let done_in_time = self.ended as f64 * (LONG.as_secs_f64() / elapsed.as_secs_f64());
                (done_in_time as usize).clamp(FEWEST, limit)
            }
            false => (limit + limit / 4).min(MOST),
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Admission {
    taken_in: AtomicUsize,
    places: Arc<Semaphore>,
    pace: Mutex<Pace>,
}

fn too_many() -> Status {
    status::exhausted("this node has as many requests as it can answer in time; nothing was done")
}

impl Admission {
    /// Nothing is under way.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Admission {
            taken_in: AtomicUsize::new(0),
            places: Arc::new(Semaphore::new(MOST)),
            pace: Mutex::new(Pace::new(MOST, Instant::now())),
        })
    }

    /// Takes a request in, or turns it away: `RESOURCE_EXHAUSTED`, and nothing was done.
    pub(super) fn take_in(self: &Arc<Self>) -> Result<TakenIn, Status> {
        let taken_in = TakenIn(self.clone());
        match self.taken_in.fetch_add(1, Ordering::AcqRel) < MOST {
            true => Ok(taken_in),
            false => Err(too_many()),
        }
    }

    /// Waits until a request may be worked on that has so much time, for half of it. Else the same
    /// answer.
    pub(super) async fn place(self: &Arc<Self>, timeout: Duration) -> Result<Working, Status> {
        let place = match self.places.clone().try_acquire_owned() {
            Ok(place) => place,
            Err(_taken) => {
                let waited = tokio::time::timeout(timeout / 2, self.places.clone().acquire_owned()).await;
                waited.ok().and_then(Result::ok).ok_or_else(too_many)?
            }
        };
        Ok(Working { admission: self.clone(), since: Instant::now(), place: Some(place) })
    }

    /// How many requests were taken in and have not ended.
    pub(super) fn in_flight(&self) -> usize {
        self.taken_in.load(Ordering::Acquire)
    }
}

/// A request that was taken in, until it is dropped.
#[derive(Debug)]
pub(super) struct TakenIn(Arc<Admission>);

impl Drop for TakenIn {
    fn drop(&mut self) {
        self.0.taken_in.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A request that is being worked on, until it is dropped.
#[derive(Debug)]
pub(super) struct Working {
    admission: Arc<Admission>,
    since: Instant,
    place: Option<OwnedSemaphorePermit>,
}

impl Drop for Working {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut pace = self.admission.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let places = pace.ended(now.saturating_duration_since(self.since), now);
        drop(pace);
        match (self.place.take(), places) {
            (Some(place), 0) => place.forget(),
            (own, places) => {
                drop(own);
                self.admission.places.add_permits(places.saturating_sub(1));
            }
        }
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
        let mut pace = Pace::new(limit, begun);
        for (count, took) in requests {
            for _ in 0..*count {
                assert_eq!(pace.ended(*took, begun), 1, "a place for a place");
            }
        }
        pace.ended(Duration::ZERO, begun + WINDOW);
        pace.limit
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
    fn places_go_as_requests_end_and_come_back_as_the_bound_grows() {
        let begun = Instant::now();
        let mut pace = Pace::new(400, begun);
        assert_eq!(pace.ended(LONG, begun + WINDOW), 0, "the first of 144");
        assert_eq!((1..144).map(|_| pace.ended(LONG, begun + WINDOW)).sum::<usize>(), 0);
        assert_eq!((pace.limit, pace.ended(LONG, begun + WINDOW)), (FEWEST, 1));
        let places = pace.ended(Duration::ZERO, begun + WINDOW * 2);
        assert_eq!((pace.limit, places), (FEWEST, 1), "most of them took long");
        let places = pace.ended(Duration::ZERO, begun + WINDOW * 3);
        assert_eq!((pace.limit, places), (FEWEST + FEWEST / 4, 1 + FEWEST / 4));
    }

    #[test]
    fn no_more_are_taken_in_until_one_ends() {
        let admission = Admission::new();
        let mut all: Vec<_> = (0..MOST).map(|_| admission.take_in().unwrap()).collect();
        let status = admission.take_in().unwrap_err();
        assert_eq!((status.code(), nothing_done(&status)), (Code::ResourceExhausted, true), "{status}");
        assert_eq!(admission.in_flight(), MOST);
        all.pop();
        all.push(admission.take_in().unwrap());
    }

    #[tokio::test]
    async fn who_waited_for_half_of_his_time_is_turned_away_and_others_get_the_place() {
        let admission = Admission::new();
        let mut all = Vec::new();
        for _ in 0..MOST {
            all.push(admission.place(TIMEOUT).await.unwrap());
        }
        let status = admission.place(Duration::ZERO).await.unwrap_err();
        assert_eq!((status.code(), nothing_done(&status)), (Code::ResourceExhausted, true), "{status}");
        let mut waiting = std::pin::pin!(admission.place(TIMEOUT * 30));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        all.pop();
        waiting.await.unwrap();
    }
}
