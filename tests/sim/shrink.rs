//! From a run that fails to a short one that still does: leaves things out, larger groups first, for as long
//! as the rest fails (Zeller and Hildebrandt 2002, "delta debugging").
//!
//! A run with less in it has other delays, so that each attempt is made with some salts, and counts
//! as failing with any of them. What it fails of may change on the way; the last one is reported.

use crate::faults::CALMED;
use crate::schedule::{Schedule, Strike};

/// With how many kinds of luck an attempt is made.
const SALTS: u64 = 8;

/// How many runs a shrinking may take: some seconds.
const MOST_RUNS: u32 = 4_000;

/// Makes a failing schedule shorter. `fails` runs one.
pub(crate) struct Shrinker<F> {
    fails: F,
    runs: u32,
    best: Schedule,
}

impl<F: FnMut(&Schedule) -> bool> Shrinker<F> {
    /// The shortest schedule that was found to fail, beginning with one that does.
    pub(crate) fn shrink(failing: Schedule, fails: F) -> Schedule {
        let mut shrinker = Shrinker { fails, runs: 0, best: failing };
        while shrinker.round() {}
        shrinker.best
    }

    fn tries(&mut self, shorter: Schedule) -> bool {
        for salt in (0..SALTS).map(|salt| self.best.salt + salt) {
            if self.runs == MOST_RUNS {
                return false;
            }
            self.runs += 1;
            let attempt = Schedule { salt, ..shorter.clone() };
            if (self.fails)(&attempt) {
                self.best = attempt;
                return true;
            }
        }
        false
    }

    /// Tries everything once; whether anything could be left out.
    fn round(&mut self) -> bool {
        let mut shorter = self.fewer_strikes();
        shorter |= self.sooner();
        for client in self.best.clients.clone().unwrap_or_default() {
            let mut attempt = self.best.clone();
            attempt.clients.get_or_insert_default().retain(|other| *other != client);
            shorter |= self.tries(attempt);
        }
        for name in CALMED.iter().filter(|name| !self.best.calm.contains(name)).collect::<Vec<_>>() {
            let mut attempt = self.best.clone();
            attempt.calm.push(name);
            shorter |= self.tries(attempt);
        }
        shorter
    }

    /// Ends the run earlier, by halves.
    fn sooner(&mut self) -> bool {
        let mut shorter = false;
        for part in [2, 4, 8] {
            let Some(until) = self.best.until else { return shorter };
            let until = until - until / part;
            let mut attempt = Schedule { until: Some(until), ..self.best.clone() };
            attempt.strikes.get_or_insert_default().retain(|strike| strike.at < until);
            shorter |= self.tries(attempt);
        }
        shorter
    }

    fn fewer_strikes(&mut self) -> bool {
        let mut shorter = false;
        let mut group = self.best.strikes.as_ref().map_or(0, Vec::len);
        while group > 0 {
            let mut at = 0;
            while at < self.best.strikes.as_ref().map_or(0, Vec::len) {
                let all = self.best.strikes.clone().unwrap_or_default();
                let (before, rest) = all.split_at(at);
                let kept: Vec<Strike> = before.iter().chain(rest.iter().skip(group)).copied().collect();
                if self.tries(Schedule { strikes: Some(kept), ..self.best.clone() }) {
                    shorter = true;
                } else {
                    at += group;
                }
            }
            group /= 2;
        }
        shorter
    }
}

#[test]
fn only_what_it_takes_is_left() {
    use crate::faults::Fault;
    let strike = |at| Strike { at, fault: Fault::Crash, luck: at };
    let long = Schedule {
        seed: 1,
        until: Some(1_000),
        clients: Some(vec![0, 1, 2, 3]),
        strikes: Some((0..100).map(strike).collect()),
        ..Schedule::default()
    };
    let takes = |schedule: &Schedule| {
        let strikes = schedule.strikes.clone().unwrap_or_default();
        schedule.clients.as_ref().is_some_and(|clients| clients.contains(&2))
            && [17, 58].iter().all(|at| strikes.contains(&strike(*at)))
            && !schedule.calm.contains(&"lost")
    };
    let short = Shrinker::shrink(long, takes);
    assert_eq!(short.clients, Some(vec![2]));
    assert_eq!(short.strikes, Some(vec![strike(17), strike(58)]));
    assert_eq!(short.calm.len(), CALMED.len() - 1);
    assert!(short.until < Some(100));
}
