//! `storectl top`: what the nodes are doing, again and again.

use crate::args::Target;
use crate::common::{Failure, Lines, duration, reader_left, text};
use crate::member;
use crate::progress::time_left;
use crate::status::{bytes, colored_state, fresh_table, headline, right};
use clap::Args;
use comfy_table::{Cell, Table};
use indicatif::{HumanCount, HumanDuration};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use thrifty::core::latency::quantile;
use thrifty::core::layout::Layout;
use thrifty::gateway::json::{phase, state, without_quorum};
use thrifty::wire::location::{NodeStatus, StatusResponse};

/// Moves to the upper left corner and clears from there on.
const CLEAR: &str = "\x1b[H\x1b[J";

const NOTES: &str = r#"Examples:
  storectl top                              until Ctrl-C
  storectl top --count 1 --interval 10s     what happens in the next ten seconds
  storectl top --json | jq '.nodes[].p99_ms'

Requests are the puts, gets and deletes that a node coordinated, as the owner of their keys. Half of
them took less than p50, and 99 of 100 less than p99, inside of the ring; both are told a quarter too
high at most. A handoff is what a node gathers of the segments that it is about to own: how many of how
many, how fast, and how long it will take still. On a terminal there is one picture, elsewhere one after
the other; with --json, a line each.

Exit codes: 0 as often as was wanted, or nobody reads any more, 2 wrong usage, 3 no node answers."#;

/// Answers that are so much further apart than questions, or nearer, are so because a clock was set.
const CLOCK_OFF: Duration = Duration::from_secs(2);

/// How often to look, and for how long.
#[derive(Args, Clone, Debug)]
#[command(after_help = NOTES)]
pub(crate) struct Top {
    /// How long to count: seconds, or a number and a unit as in 500ms
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,

    /// So often, and no more
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,

    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

/// A node is asked by its neighbours, too: not more often than ten times a second.
fn interval(text: &str) -> Result<Duration, String> {
    duration::between(text, Duration::from_millis(100), Duration::from_secs(86_400))
}

/// What was seen, and when.
struct Seen {
    at: Instant,
    status: StatusResponse,
}

impl Top {
    /// Prints what the nodes are doing until that was often enough, or nobody reads any more.
    pub(crate) async fn run(&self, target: &Target) -> Result<(), Failure> {
        tokio::select! {
            ended = self.look_on(target) => ended,
            () = reader_left() => Ok(()),
        }
    }

    async fn look_on(&self, target: &Target) -> Result<(), Failure> {
        let client = target.client().await?;
        let clear = if !self.json && std::io::stdout().is_terminal() { CLEAR } else { "" };
        let (mut lines, mut every) = (Lines::new(), tokio::time::interval(self.interval));
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        every.tick().await;
        let mut before = Seen { at: Instant::now(), status: client.status().await? };
        for _ in 0..self.count.unwrap_or(u64::MAX) {
            every.tick().await;
            let seen = Seen { at: Instant::now(), status: client.status().await? };
            let picture = match self.json {
                true => as_json(&before, &seen).to_string(),
                false => format!("{clear}{}", picture(&before, &seen, &client.layout())),
            };
            if !lines.line(picture)? || !lines.flush()? {
                return Ok(());
            }
            before = seen;
        }
        Ok(())
    }
}

/// What one node has done between two looks.
struct Done {
    requests_per_s: f64,
    failed_per_s: f64,
    p50: Option<Duration>,
    p99: Option<Duration>,
    /// Segments gathered.
    pulled_per_s: f64,
}

impl Done {
    /// `None`: it did not say, or not before.
    fn between(before: &Seen, seen: &Seen, node: &NodeStatus) -> Option<Done> {
        let earlier = before.status.nodes.iter().find(|earlier| earlier.id == node.id)?;
        let (was, is) = (earlier.requests.as_ref()?, node.requests.as_ref()?);
        // Who was started again counts from nothing.
        let again = was.took.iter().sum::<u64>() > is.took.iter().sum();
        let was_at = |bucket: usize| if again { 0 } else { was.took.get(bucket).copied().unwrap_or(0) };
        let took: Vec<u64> =
            is.took.iter().enumerate().map(|(bucket, count)| count.saturating_sub(was_at(bucket))).collect();
        // Between its own two answers, unless its clock was set in between.
        let counted = node.clock_ms.zip(earlier.clock_ms).and_then(|(is, was)| is.checked_sub(was));
        let between = seen.at.duration_since(before.at);
        let counted = counted.map(Duration::from_millis).filter(|time| time.abs_diff(between) < CLOCK_OFF);
        let seconds = counted.unwrap_or(between).as_secs_f64().max(0.001);
        let per_s = |count: u64| count as f64 / seconds;
        Some(Done {
            requests_per_s: per_s(took.iter().sum()),
            failed_per_s: per_s(is.failed.saturating_sub(if again { 0 } else { was.failed })),
            p50: quantile(&took, 0.5),
            p99: quantile(&took, 0.99),
            pulled_per_s: per_s(node.pulled.saturating_sub(earlier.pulled).into()),
        })
    }
}

fn picture(before: &Seen, seen: &Seen, layout: &Layout) -> String {
    let (stuck, now) = (without_quorum(&seen.status, layout), text::utc(text::now_ms()));
    format!("{now}  {}\n{}", headline(&seen.status, stuck, layout.short()), table(before, seen))
}

fn table(before: &Seen, seen: &Seen) -> Table {
    let header =
        ["node", "address", "state", "requests/s", "failed/s", "p50", "p99", "keys", "bytes", "handoff"];
    let mut table = fresh_table(&header);
    for node in &seen.status.nodes {
        let done = Done::between(before, seen, node);
        let rate = |rate: fn(&Done) -> f64| {
            let rate = done.as_ref().map(|done| HumanCount(rate(done).round() as u64).to_string());
            right(rate.unwrap_or("?".into()))
        };
        let took =
            |took: fn(&Done) -> Option<Duration>| right(done.as_ref().and_then(took).map_or("-".into(), ms));
        table.add_row(vec![
            Cell::new(format!("{:.8}", member::id(node))),
            Cell::new(&node.address),
            colored_state(node),
            rate(|done| done.requests_per_s),
            rate(|done| done.failed_per_s),
            took(|done| done.p50),
            took(|done| done.p99),
            right(node.keys.map_or("?".into(), |keys| HumanCount(keys).to_string())),
            right(node.bytes.map_or("?".into(), bytes)),
            Cell::new(handoff(node, done.as_ref())),
        ]);
    }
    table
}

fn ms(took: Duration) -> String {
    let ms = took.as_secs_f64() * 1000.0;
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

/// How far a node is with what it gathers.
fn handoff(node: &NodeStatus, done: Option<&Done>) -> String {
    let NodeStatus { pulled, to_pull, .. } = *node;
    if to_pull == 0 {
        return String::new();
    }
    let mut text = format!("{pulled}/{to_pull} segments, {} %", u64::from(pulled) * 100 / u64::from(to_pull));
    let rate = done.map_or(0.0, |done| done.pulled_per_s);
    if rate > 0.0 {
        text += &format!(", {rate:.0}/s");
        let left = time_left(rate, to_pull.saturating_sub(pulled).into(), Duration::from_secs(1));
        text += &left.map_or(String::new(), |left| format!(", {:#} left", HumanDuration(left)));
    }
    text
}

fn as_json(before: &Seen, seen: &Seen) -> Value {
    let node = |node: &NodeStatus| {
        let done = Done::between(before, seen, node);
        let done = done.as_ref();
        let took = |took: Option<Duration>| took.map(|took| took.as_secs_f64() * 1000.0);
        json!({
            "id": member::id(node).to_string(), "address": node.address, "state": state(node),
            "keys": node.keys, "bytes": node.bytes,
            "requests_per_s": done.map(|done| done.requests_per_s),
            "failed_per_s": done.map(|done| done.failed_per_s),
            "p50_ms": done.and_then(|done| took(done.p50)), "p99_ms": done.and_then(|done| took(done.p99)),
            "pulled": node.pulled, "to_pull": node.to_pull, "pulled_per_s": done.map(|done| done.pulled_per_s),
        })
    };
    json!({
        "time": text::utc(text::now_ms()),
        "ring": seen.status.ring,
        "epoch": seen.status.epoch,
        "phase": phase(&seen.status).name(),
        "nodes": seen.status.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}
