//! The result, for people or for programs.

use crate::args::Load;
use crate::common::{self, Failure};
use crate::tally::{ERRORS, Tally};
use crate::workload::Mode;
use hdrhistogram::Histogram;
use indicatif::HumanCount;
use serde_json::{Value, json};
use std::time::Duration;
use thrifty::core::quorum::Consistency;

/// What a phase came to.
pub(crate) struct Outcome {
    /// What became of the requests.
    pub(crate) tally: Tally,
    /// From the first request to the last answer.
    pub(crate) elapsed: Duration,
    /// In an open loop: requests that were due and that no caller was free to send.
    pub(crate) unsent: Option<u64>,
}

const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99_9", 0.999), ("max", 1.0)];

/// Prints it.
pub(crate) fn print(load: &Load, mode: Mode, nodes: usize, outcome: Outcome) -> Result<(), Failure> {
    let report = if load.json {
        as_json(load, mode, nodes, &outcome).to_string()
    } else {
        as_text(load, mode, nodes, &outcome)
    };
    common::print(report)
}

fn name(mode: Mode) -> &'static str {
    match mode {
        Mode::Put => "put",
        Mode::Get => "get",
        Mode::Mix { .. } => "mix",
    }
}

fn as_text(load: &Load, mode: Mode, nodes: usize, outcome: &Outcome) -> String {
    let Outcome { tally, elapsed, unsent } = outcome;
    let (all, seconds) = (tally.all(), elapsed.as_secs_f64());
    let pace = load.rate.map_or("closed loop".into(), |rate| format!("open loop, {rate} requests/s"));
    let zipf = load.zipf.map(|exponent| format!(", zipf {exponent}")).unwrap_or_default();
    let mut lines = vec![
        format!(
            "{} at {}, {pace}, {} callers, nodes: {nodes}, connections to each: {}, keys: {} of {} B{zipf}, values: {} B",
            name(mode),
            Consistency::from(load.consistency).name(),
            load.callers,
            load.connections,
            HumanCount(load.keys),
            load.key_bytes,
            load.value_bytes,
        ),
        format!("requests     {} in {seconds:.2} s", HumanCount(all.len() + tally.failures())),
        format!("requests/s   {}", HumanCount((all.len() as f64 / seconds) as u64)),
    ];
    let errors = ERRORS.iter().zip(tally.errors).filter(|(_, n)| *n > 0);
    let errors: Vec<String> = errors.map(|(kind, n)| format!("{} {n}", kind.replace('_', " "))).collect();
    let example = tally.example.iter().map(|text| format!(" (for example: {text})")).collect::<String>();
    lines.push(format!(
        "errors       {}{example}",
        if errors.is_empty() { "none".into() } else { errors.join(", ") }
    ));
    if tally.not_found > 0 {
        lines
            .push(format!("not found    {} (--preload stores every key first)", HumanCount(tally.not_found)));
    }
    if let Some(unsent) = unsent.filter(|unsent| *unsent > 0) {
        let unsent = HumanCount(unsent);
        lines.push(format!(
            "unsent       {unsent}: they were due, but all callers were still waiting for answers"
        ));
    }
    lines.push(format!("latency      {}", latencies(&all)));
    if matches!(mode, Mode::Mix { .. }) {
        lines.push(format!("  of reads   {}", latencies(&tally.reads)));
        lines.push(format!("  of writes  {}", latencies(&tally.writes)));
    }
    lines.join("\n")
}

fn latencies(histogram: &Histogram<u64>) -> String {
    let value = |q: f64| Duration::from_nanos(histogram.value_at_quantile(q));
    let short = |time: Duration| match time.as_micros() {
        0..10_000 => format!("{} µs", time.as_micros()),
        10_000..10_000_000 => format!("{} ms", time.as_millis()),
        _ => format!("{:.1} s", time.as_secs_f64()),
    };
    QUANTILES
        .map(|(name, q)| format!("{} {:<9}", name.replace('_', "."), short(value(q))))
        .join(" ")
        .trim_end()
        .into()
}

fn as_json(load: &Load, mode: Mode, nodes: usize, outcome: &Outcome) -> Value {
    let Outcome { tally, elapsed, unsent } = outcome;
    let (all, seconds) = (tally.all(), elapsed.as_secs_f64());
    let micros = |histogram: &Histogram<u64>| -> Value {
        let value = |q: f64| histogram.value_at_quantile(q) as f64 / 1000.0;
        QUANTILES
            .iter()
            .map(|(name, q)| ((*name).to_owned(), value(*q).into()))
            .collect::<serde_json::Map<_, Value>>()
            .into()
    };
    let errors: serde_json::Map<String, Value> =
        ERRORS.iter().zip(tally.errors).map(|(kind, n)| ((*kind).to_owned(), n.into())).collect();
    let mut object = json!({
        "operation": name(mode), "consistency": Consistency::from(load.consistency).name(), "nodes": nodes,
        "callers": load.callers, "connections": load.connections, "threads": load.threads, "rate": load.rate,
        "any_node": load.any_node, "keys": load.keys, "key_bytes": load.key_bytes, "value_bytes": load.value_bytes,
        "zipf": load.zipf,
        "requests": all.len() + tally.failures(), "seconds": seconds,
        "requests_per_second": all.len() as f64 / seconds,
        "errors": errors, "not_found": tally.not_found, "unsent": unsent, "latency_us": micros(&all),
    });
    if let Mode::Mix { read_ratio } = mode {
        object["read_ratio"] = read_ratio.into();
        object["read_latency_us"] = micros(&tally.reads);
        object["write_latency_us"] = micros(&tally.writes);
    }
    object
}
