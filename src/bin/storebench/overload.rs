//! `storebench overload`: what is left of a ring's rate when it is asked for many times as much, and
//! how soon it is back.
//!
//! Good is what was answered within the deadline, counted from when it was sent; what was given up
//! then is unknown. No more is sent than may be under way at once, so that what was really asked is
//! said, too.

use crate::TOOL;
use crate::args::Overload;
use crate::common::{self, Exit, Failure, notice};
use crate::crowd::{self, Counts};
use crate::load::{Phase, prepare};
use crate::report::Outcome;
use crate::schedule::Extent;
use crate::workload::Mode;
use indicatif::HumanCount;
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The part of the peak that has to be answered in time while far more is asked for.
const GOOD: f64 = 0.8;

/// The part of the peak that is called back to normal, and by when.
const NORMAL: f64 = 0.9;
const NORMAL_WITHIN: Duration = Duration::from_secs(10);

/// How often it is looked whether it is.
const WINDOW: Duration = Duration::from_millis(500);

/// What became of one phase's requests, in each second in which they were sent.
struct Rates {
    name: &'static str,
    asked: f64,
    good: f64,
    turned_away: f64,
    unavailable: f64,
    unknown: f64,
    other: f64,
    lost: u64,
}

impl Rates {
    fn of(name: &'static str, counts: Counts, time: Duration) -> Self {
        let rate = |count: u64| count as f64 / time.as_secs_f64();
        let Counts { good, turned_away, unavailable, unknown, other, lost } = counts;
        Rates {
            name,
            asked: rate(good + turned_away + unavailable + unknown + other),
            good: rate(good),
            turned_away: rate(turned_away),
            unavailable: rate(unavailable),
            unknown: rate(unknown),
            other: rate(other),
            lost,
        }
    }

    fn columns(&self) -> [(&'static str, f64); 6] {
        [
            ("asked", self.asked),
            ("good", self.good),
            ("turned_away", self.turned_away),
            ("unavailable", self.unavailable),
            ("unknown", self.unknown),
            ("other", self.other),
        ]
    }
}

/// What came of it all.
struct Verdict {
    phases: [Rates; 3],
    /// From the end of the overload on; `None`: not while it was looked at.
    back_after: Option<Duration>,
}

impl Verdict {
    fn ratio(&self) -> f64 {
        self.phases[1].good / self.phases[0].good
    }

    fn held(&self) -> bool {
        self.ratio() >= GOOD && self.back_after.is_some_and(|after| after <= NORMAL_WITHIN)
    }
}

/// Runs the three phases and prints what came of them. It fails if the ring did not hold.
pub(crate) async fn run(overload: Overload) -> Result<(), Failure> {
    let Overload { load, read_ratio, crowd, times } = &overload;
    if load.rate.is_some() || load.requests.is_some() {
        return Err(Failure::new(Exit::Usage, "an overload has no --rate and no --requests: give --seconds"));
    }
    let (client, workload) = prepare(load, Mode::Mix { read_ratio: *read_ratio }).await?;
    let time = Extent::Time(load.seconds);
    let peak = Phase::start("peak", load, &client, workload.clone(), time).end().await?;
    let peak = Rates::of("peak", counts(&peak), load.seconds);

    notice(TOOL, "overload");
    let (layout, offered) = (client.layout(), peak.good * f64::from(*times));
    let crowd = crowd::send(load, &layout, &workload, *crowd, offered);
    let over = Instant::now() + load.seconds;
    let after = async {
        // The crowd's last answers are still on their way.
        sleep_until(over).await;
        let after = Phase::start("after", load, &client, workload.clone(), time);
        let normal = peak.good * NORMAL;
        let back_after = timeout(load.seconds, reaches(&after, normal)).await.ok().map(|at| at - over);
        Ok((after.end().await?, back_after))
    };
    let (crowd, (after, back_after)) = tokio::try_join!(crowd, after)?;

    let phases =
        [peak, Rates::of("overload", crowd, load.seconds), Rates::of("after", counts(&after), load.seconds)];
    let verdict = Verdict { phases, back_after };
    common::print(match load.json {
        true => as_json(&overload, layout.members.len(), &verdict),
        false => as_text(&overload, layout.members.len(), &verdict),
    })?;
    match verdict.held() {
        true => Ok(()),
        false => Err(Failure::new(Exit::Conflict, "the ring did not hold under overload")),
    }
}

fn counts(outcome: &Outcome) -> Counts {
    let [no_node, invalid, unavailable, unknown, refused, turned_away] = outcome.tally.errors;
    let other = no_node + invalid + refused;
    Counts { good: outcome.tally.answered(), turned_away, unavailable, unknown, other, lost: 0 }
}

/// Waits until so many requests a second are answered.
async fn reaches(phase: &Phase, rate: f64) -> Instant {
    let (mut at, mut before) = (Instant::now(), phase.answered());
    loop {
        sleep(WINDOW).await;
        let (now, answered) = (Instant::now(), phase.answered());
        if (answered - before) as f64 >= rate * (now - at).as_secs_f64() {
            return now;
        }
        (at, before) = (now, answered);
    }
}

fn as_text(overload: &Overload, nodes: usize, verdict: &Verdict) -> String {
    let Overload { load, crowd, times, .. } = overload;
    let mut lines = vec![format!(
        "nodes: {nodes}, {} callers, then up to {} at up to {times} times the rate, then {} again; deadline {:?}",
        load.callers,
        HumanCount((*crowd).into()),
        load.callers,
        load.connect.timeout,
    )];
    let names = verdict.phases[0].columns().map(|(name, _)| format!("{:>13}", name.replace('_', " ")));
    lines.push(format!("{:<10}{}", "per second", names.concat()));
    for phase in &verdict.phases {
        let rates = phase.columns().map(|(_, rate)| format!("{:>13}", HumanCount(rate as u64).to_string()));
        lines.push(format!("{:<10}{}", phase.name, rates.concat()));
    }
    let lost = verdict.phases[1].lost;
    if lost > 0 {
        lines.push(format!("connections of the crowd that broke: {lost}"));
    }
    let back = verdict.back_after.map_or("not".into(), |after| format!("after {:.1} s", after.as_secs_f64()));
    lines.push(format!(
        "{}: goodput {:.2} of the peak under overload ({GOOD} is asked for); back to {NORMAL} of it {back} ({} s)",
        if verdict.held() { "held" } else { "NOT HELD" },
        verdict.ratio(),
        NORMAL_WITHIN.as_secs(),
    ));
    lines.join("\n")
}

fn as_json(overload: &Overload, nodes: usize, verdict: &Verdict) -> String {
    let Overload { load, read_ratio, crowd, times } = overload;
    let phases: serde_json::Map<String, serde_json::Value> = verdict
        .phases
        .iter()
        .map(|phase| {
            let rates = phase.columns().map(|(name, rate)| (format!("{name}_per_second"), rate.into()));
            (phase.name.to_owned(), serde_json::Value::Object(rates.into_iter().collect()))
        })
        .collect();
    let object = json!({
        "operation": "overload", "nodes": nodes, "callers": load.callers, "crowd": crowd, "times": times,
        "read_ratio": read_ratio, "seconds": load.seconds.as_secs_f64(),
        "deadline_seconds": load.connect.timeout.as_secs_f64(), "phases": phases,
        "connections_lost": verdict.phases[1].lost,
        "goodput_ratio": verdict.ratio(),
        "back_after_seconds": verdict.back_after.map(|after| after.as_secs_f64()), "held": verdict.held(),
    });
    object.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(good: u64, turned_away: u64) -> Rates {
        let counts = Counts { good, turned_away, ..Counts::default() };
        Rates::of("a phase", counts, Duration::from_secs(2))
    }

    #[test]
    fn it_held_if_enough_was_good_and_it_was_back_in_time() {
        let check = |good, back_after, held| {
            let phases = [rates(100, 0), rates(good, 900), rates(100, 0)];
            let verdict = Verdict { phases, back_after };
            assert_eq!(verdict.held(), held, "{good} of 100, back after {back_after:?}");
            assert_eq!(verdict.phases[1].asked, (good + 900) as f64 / 2.0);
        };
        check(80, Some(NORMAL_WITHIN), true);
        check(79, Some(NORMAL_WITHIN), false);
        check(100, Some(NORMAL_WITHIN + WINDOW), false);
        check(100, None, false);
    }
}
