//! A disk that hangs. It fails nothing, so that its node goes on, and may have to wait for ever; but a
//! person is told.

use super::room::Room;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A batch that takes longer is told of: many times what a busy disk takes.
const LONG: Duration = Duration::from_secs(5);

/// How the batches of one node get on.
#[derive(Debug, Default)]
pub(super) struct Slow(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Since when the disk is at work on a batch.
    since: Option<Instant>,
    /// It was told that it hangs.
    told: bool,
}

/// What there is to tell.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Hangs,
    Again,
}

impl State {
    fn look(&mut self, now: Instant) -> Option<News> {
        let hangs = self.since.is_some_and(|since| now.saturating_duration_since(since) >= LONG);
        match (std::mem::replace(&mut self.told, hangs), hangs) {
            (false, true) => Some(News::Hangs),
            (true, false) => Some(News::Again),
            _ => None,
        }
    }
}

impl Slow {
    /// The disk gets a batch.
    pub(super) fn begins(&self) {
        self.state().since = Some(Instant::now());
    }

    /// It is done with it.
    pub(super) fn ends(&self) {
        self.state().since = None;
    }

    /// Looks, and tells once when a batch takes long, and once when it is over.
    pub(super) fn look(&self, room: &Room) {
        let folder = room.folder().map(|folder| format!(" ({})", folder.display())).unwrap_or_default();
        match self.state().look(Instant::now()) {
            Some(News::Hangs) => {
                tracing::error!(target: "thrifty::news", "the disk has not kept a batch of writes for {} s: they wait for it{folder}", LONG.as_secs())
            }
            Some(News::Again) => crate::news!("the disk keeps writes again{folder}"),
            None => {}
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_takes_long_is_told_of_once_and_once_more_when_it_is_over() {
        let (slow, start) = (Slow::default(), Instant::now());
        let look = |at: Duration| slow.state().look(start + at);
        assert_eq!(look(LONG), None, "there is none");
        slow.state().since = Some(start);
        assert_eq!(look(LONG / 2), None);
        assert_eq!([look(LONG), look(LONG * 2)], [Some(News::Hangs), None]);
        slow.ends();
        assert_eq!([look(LONG * 2), look(LONG * 3)], [Some(News::Again), None]);
        slow.state().since = Some(start + LONG * 3);
        assert_eq!(look(LONG * 4), Some(News::Hangs));
    }
}
