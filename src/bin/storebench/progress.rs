//! What is shown on stderr while it runs.

use crate::TOOL;
use crate::common::notice;
use crate::schedule::Schedule;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Often enough on a terminal to look alive, seldom enough to cost nothing.
const ON_TERMINAL: Duration = Duration::from_millis(250);

/// A log is read later; a line every other second is plenty.
const IN_LOG: Duration = Duration::from_secs(2);

/// A bar has this many steps.
const STEPS: u64 = 1000;

/// Shows how far a phase is, until the task is aborted.
pub(crate) async fn show(phase: &'static str, schedule: Arc<Schedule>) {
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal { bar(phase) } else { ProgressBar::hidden() };
    let _cleared = Cleared(bar.clone());
    let mut ticks = tokio::time::interval(if terminal { ON_TERMINAL } else { IN_LOG });
    ticks.tick().await;
    let (mut at, mut before) = (Instant::now(), schedule.taken());
    loop {
        ticks.tick().await;
        let (now, taken) = (Instant::now(), schedule.taken());
        let rate = (taken - before) as f64 / (now - at).as_secs_f64();
        let text = format!("{} requests, {}/s", HumanCount(taken), HumanCount(rate as u64));
        if terminal {
            bar.set_position((schedule.part_done().min(1.0) * STEPS as f64) as u64);
            bar.set_message(text);
        } else {
            notice(TOOL, &format!("{phase}: {:.0} s, {text}", schedule.began().elapsed().as_secs_f64()));
        }
        (at, before) = (now, taken);
    }
}

fn bar(phase: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>8} [{bar:30}] {elapsed} {msg}");
    let bar = ProgressBar::new(STEPS).with_prefix(phase);
    style.map_or(bar.clone(), |style| bar.with_style(style))
}

/// Leaves no trace of the bar.
struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
