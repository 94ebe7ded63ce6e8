//! When requests start, and when it is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// How long a measurement goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent {
    /// So long.
    Time(Duration),
    /// So many requests.
    Requests(u64),
}

/// The pacer sleeps at least this long: the operating system would not wake it earlier anyway.
const SHORTEST_SLEEP: Duration = Duration::from_micros(50);

/// When time is up, what was due in the last moment may still be sent for so long.
const GRACE: Duration = Duration::from_millis(2);

/// Hands out turns to the callers.
pub(crate) struct Schedule {
    start: Instant,
    end: Option<Instant>,
    limit: u64,
    taken: AtomicU64,
    pace: Option<Pace>,
}

/// The open loop.
struct Pace {
    rate: f64,
    due: Semaphore,
}

/// The right to send one request.
pub(crate) struct Turn {
    /// Which request it is, from 0.
    pub(crate) number: u64,
    /// From when on its latency counts.
    pub(crate) start: Instant,
}

impl Schedule {
    /// Starts now: a closed loop, or an open one at this rate.
    pub(crate) fn start(extent: Extent, rate: Option<f64>, callers: u32) -> Arc<Self> {
        let start = Instant::now();
        let (end, limit) = match (extent, rate) {
            (Extent::Time(time), None) => (Some(start + time), u64::MAX),
            (Extent::Time(time), Some(rate)) => (Some(start + time), (rate * time.as_secs_f64()) as u64),
            (Extent::Requests(count), _) => (None, count),
        };
        let pace = rate.map(|rate| Pace { rate, due: Semaphore::new(0) });
        let schedule = Arc::new(Schedule { start, end, limit, taken: AtomicU64::new(0), pace });
        if rate.is_some() {
            let schedule = schedule.clone();
            // A thread of its own: the runtime's timers are coarser than a request takes.
            std::thread::spawn(move || schedule.keep_pace(callers));
        }
        schedule
    }

    /// The next turn, once it is due; `None` when it is over. `now` is for the closed loop, where a
    /// request starts as soon as there is somebody to send it.
    pub(crate) async fn take(&self, now: Instant) -> Option<Turn> {
        let Some(pace) = &self.pace else {
            let over = self.end.is_some_and(|end| now >= end);
            let number = if over { return None } else { self.taken.fetch_add(1, Ordering::Relaxed) };
            return (number < self.limit).then_some(Turn { number, start: now });
        };
        pace.due.acquire().await.ok()?.forget();
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        let start = self.start + Duration::from_secs_f64(number as f64 / pace.rate);
        (number < self.limit).then_some(Turn { number, start })
    }

    /// When it started.
    pub(crate) fn began(&self) -> Instant {
        self.start
    }

    /// How many requests were started.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed).min(self.limit)
    }

    /// How many requests there will be, if that is known.
    pub(crate) fn limit(&self) -> Option<u64> {
        (self.limit < u64::MAX).then_some(self.limit)
    }

    /// How much of it is over, from 0 to 1.
    pub(crate) fn part_done(&self) -> f64 {
        match self.end {
            Some(end) => self.start.elapsed().as_secs_f64() / (end - self.start).as_secs_f64(),
            None => self.taken() as f64 / self.limit as f64,
        }
    }

    /// Makes turns available when they are due. At the end the callers get one more each, so that
    /// they learn that it is over; where time is up, those who are behind are told at once.
    fn keep_pace(&self, callers: u32) {
        let Some(pace) = &self.pace else { return };
        let mut released = 0;
        while released < self.limit && self.end.is_none_or(|end| Instant::now() < end) {
            let due = (self.start.elapsed().as_secs_f64() * pace.rate) as u64 + 1;
            let due = due.min(self.limit);
            pace.due.add_permits((due - released) as usize);
            released = due;
            let next = self.start + Duration::from_secs_f64(released as f64 / pace.rate);
            let pause = next.saturating_duration_since(Instant::now()).max(SHORTEST_SLEEP);
            std::thread::sleep(
                self.end.map_or(pause, |end| pause.min(end.saturating_duration_since(Instant::now()))),
            );
        }
        match self.end {
            Some(end) => {
                let due = pace.rate * (end - self.start).as_secs_f64();
                pace.due.add_permits((due as u64).min(self.limit).saturating_sub(released) as usize);
                std::thread::sleep(end.saturating_duration_since(Instant::now()) + GRACE);
                pace.due.close();
            }
            None => pace.due.add_permits(callers as usize),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn as_many_turns_as_asked_for() {
        for rate in [None, Some(1_000_000.0)] {
            let schedule = Schedule::start(Extent::Requests(100), rate, 1);
            let mut turns = Vec::new();
            while let Some(turn) = schedule.take(Instant::now()).await {
                turns.push(turn.number);
            }
            assert_eq!(turns, (0..100).collect::<Vec<u64>>());
        }
    }

    #[tokio::test]
    async fn an_open_loop_counts_from_when_a_request_was_due() {
        let schedule = Schedule::start(Extent::Requests(3), Some(1000.0), 1);
        // A caller that is late does not move the schedule.
        tokio::time::sleep(Duration::from_millis(5)).await;
        for number in 0..3 {
            let turn = schedule.take(Instant::now()).await.unwrap();
            assert_eq!(turn.start, schedule.began() + Duration::from_millis(number));
        }
    }
}
