//! How far a long command is, on stderr: a bar on a terminal, else a line now and then.

use crate::TOOL;
use crate::common::notice;
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Often enough on a terminal to look alive, seldom enough to cost nothing.
const ON_TERMINAL: Duration = Duration::from_millis(100);

/// A log is read later.
const IN_LOG: Duration = Duration::from_secs(2);

/// A bar has this many steps.
const STEPS: f64 = 1000.0;

/// See the module's documentation. It leaves no trace of the bar.
pub(crate) struct Progress {
    what: &'static str,
    bar: Option<ProgressBar>,
    begun: Instant,
    /// Where the first part was that it was told.
    began_at: Option<f64>,
    shown: Instant,
}

impl Progress {
    /// Of something that begins now, or goes on. Without `bar` there are only lines, and none on a terminal.
    pub(crate) fn new(what: &'static str, bar: bool) -> Self {
        let now = Instant::now();
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {wide_msg}");
        let bar = std::io::stderr().is_terminal().then(|| match (bar, style) {
            (true, Ok(style)) => ProgressBar::new(STEPS as u64).with_prefix(what).with_style(style),
            _ => ProgressBar::hidden(),
        });
        Progress { what, bar, begun: now, began_at: None, shown: now }
    }

    /// So many keys are done since it began, and this part of all, where that is known. And what keeps it from
    /// going on, if anything does.
    pub(crate) fn at(&mut self, keys: u64, part: Option<f64>, trouble: Option<&str>) {
        self.began_at = self.began_at.or(part);
        let every = if self.bar.is_some() { ON_TERMINAL } else { IN_LOG };
        if self.shown.elapsed() < every {
            return;
        }
        self.shown = Instant::now();
        let mut text = told(keys, part, self.began_at.unwrap_or(0.0), self.begun.elapsed());
        if let Some(trouble) = trouble {
            text += &format!(", tried again: {trouble}");
        }
        match &self.bar {
            Some(bar) => {
                part.into_iter().for_each(|part| bar.set_position((part * STEPS) as u64));
                bar.set_message(text);
            }
            None => notice(TOOL, &format!("{}: {text}", self.what)),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How many, how fast, and how long it will take still.
fn told(keys: u64, part: Option<f64>, began_at: f64, elapsed: Duration) -> String {
    let rate = keys as f64 / elapsed.as_secs_f64().max(0.001);
    let mut text = format!("{} keys, {}/s", HumanCount(keys), HumanCount(rate as u64));
    let Some(part) = part else { return text };
    text += &format!(", {:.0} %", part * 100.0);
    if let Some(left) = time_left(part - began_at, 1.0 - part, elapsed) {
        text += &format!(", {:#} left", HumanDuration(left));
    }
    text
}

/// How long as much takes as is left, where so much took so long.
pub(crate) fn time_left(done: f64, left: f64, took: Duration) -> Option<Duration> {
    let seconds = took.as_secs_f64() * left.max(0.0) / done;
    Duration::try_from_secs_f64(seconds.ceil()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_how_many_how_fast_and_for_how_long() {
        let told = |keys, part, began_at| told(keys, part, began_at, Duration::from_secs(10));
        assert_eq!(told(12_340, None, 0.0), "12,340 keys, 1,234/s");
        assert_eq!(told(100, Some(0.25), 0.0), "100 keys, 10/s, 25 %, 30s left");
        assert_eq!(told(100, Some(0.75), 0.5), "100 keys, 10/s, 75 %, 10s left");
        assert_eq!(told(0, Some(0.0), 0.0), "0 keys, 0/s, 0 %", "nobody can know");
        assert_eq!(told(5, Some(1.0), 0.0), "5 keys, 0/s, 100 %, 0s left");
    }
}
