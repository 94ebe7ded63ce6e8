//! The hybrid logical clock (Kulkarni et al. 2014): wall time where clocks agree, a counter
//! where they don't, and never backwards.
//!
//! A stamp is 48 bits of milliseconds since 1970 and 16 bits of counter. Whoever keeps the
//! clock also keeps a *mark*, persisted ahead of it: after a restart the clock starts at the
//! mark, so that it can't repeat a stamp even where the wall clock was set back. This file knows
//! when the mark must be raised; writing it down is the shell's work.

use crate::core::mutants::{Mutant, planted};

/// A stamp of the hybrid logical clock.
pub type Stamp = u64;

/// The stamp at the start of a wall-clock millisecond.
pub fn at_ms(wall_ms: u64) -> Stamp {
    wall_ms.min((1 << 48) - 1) << 16
}

/// The wall-clock part of a stamp, milliseconds since 1970.
pub fn wall_ms(stamp: Stamp) -> u64 {
    stamp >> 16
}

/// How far ahead of the clock the mark is written, in milliseconds: one durable write covers
/// this much running time, and a restart skips at most this much of the stamp space.
pub const MARK_AHEAD_MS: u64 = 10_000;

/// How far ahead of this node's wall clock a stamp of somebody else may be, in milliseconds: a hundred
/// years. Whoever takes one on goes on from there, durably, so that one from the end of time would
/// leave him no stamps. Far more than clocks differ, also where one was never set and began in 1970.
pub const MAX_AHEAD_MS: u64 = 100 * 366 * 24 * 3_600_000;

/// Whether a stamp of somebody else may be taken note of.
pub fn is_credible(stamp: Stamp, now_ms: u64) -> bool {
    stamp <= at_ms(now_ms.saturating_add(MAX_AHEAD_MS))
}

/// One node's clock.
#[derive(Debug, Clone)]
pub struct Clock {
    last: Stamp,
    mark: Stamp,
}

impl Clock {
    /// A clock that starts above every stamp handed out or seen before the restart: `mark` is
    /// what was last written down (0 for a new node).
    pub fn resume(mark: Stamp) -> Self {
        Clock { last: if planted(Mutant::ClockFromZero) { 0 } else { mark }, mark }
    }

    /// A stamp above all that this clock gave or saw. `None`: there is none.
    pub fn tick(&mut self, now_ms: u64) -> Option<Stamp> {
        self.last = self.last.checked_add(1)?.max(at_ms(now_ms));
        Some(self.last)
    }

    /// Takes note of a stamp of somebody else, which is credible ([`is_credible`]).
    pub fn observe(&mut self, stamp: Stamp) {
        self.last = self.last.max(stamp);
    }

    /// The highest stamp given or seen.
    pub fn last(&self) -> Stamp {
        self.last
    }

    /// The mark to write down durably before any stamp so far is told to anyone; `None` while the
    /// mark that is written still covers them.
    pub fn mark_due(&self) -> Option<Stamp> {
        (self.last > self.mark).then(|| self.last.saturating_add(at_ms(MARK_AHEAD_MS)))
    }

    /// Half the distance is used up: a good moment to write a new mark before anybody must wait.
    pub fn mark_soon(&self) -> Option<Stamp> {
        let half = at_ms(MARK_AHEAD_MS / 2);
        (self.last.saturating_add(half) > self.mark).then(|| self.last.saturating_add(at_ms(MARK_AHEAD_MS)))
    }

    /// `mark` is durable now.
    pub fn marked(&mut self, mark: Stamp) {
        self.mark = self.mark.max(mark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_runs_backwards_whatever_the_wall_clock_does() {
        let mut clock = Clock::resume(0);
        let mut last = 0;
        for now in [5_000, 5_000, 4_000, 0, 6_000, 5_999] {
            let stamp = clock.tick(now).unwrap();
            assert!(stamp > last);
            last = stamp;
        }
        assert_eq!(wall_ms(last), 6_000);
    }

    #[test]
    fn it_starts_above_all_it_saw_before_a_restart() {
        let mut clock = Clock::resume(0);
        clock.observe(at_ms(90_000));
        let mark = clock.mark_due().unwrap();
        clock.marked(mark);
        assert_eq!(clock.mark_due(), None);
        let before = clock.tick(1);
        assert!(before.is_some() && Clock::resume(mark).tick(0) > before);
    }

    #[test]
    fn no_stamp_is_given_twice_at_the_end_of_time_and_none_from_there_is_credible() {
        let mut clock = Clock::resume(Stamp::MAX - 1);
        assert_eq!([clock.tick(5), clock.tick(5)], [Some(Stamp::MAX), None]);
        let now = 1_800_000_000_000;
        assert!(is_credible(0, now) && is_credible(at_ms(now + MAX_AHEAD_MS), now));
        assert!(is_credible(at_ms(now), 0), "by a clock that was never set");
        assert!(!is_credible(at_ms(now + MAX_AHEAD_MS) + 1, now) && !is_credible(Stamp::MAX, now));
    }

    #[test]
    fn a_mark_covers_some_time_and_is_due_after_it() {
        let mut clock = Clock::resume(0);
        clock.tick(1_000);
        clock.marked(clock.mark_due().unwrap());
        clock.tick(1_000 + MARK_AHEAD_MS / 4);
        assert_eq!((clock.mark_due(), clock.mark_soon()), (None, None));
        clock.tick(1_000 + MARK_AHEAD_MS * 3 / 4);
        assert!(clock.mark_due().is_none() && clock.mark_soon().is_some());
        clock.tick(1_001 + MARK_AHEAD_MS);
        assert!(clock.mark_due().is_some());
    }
}
