//! `storectl status`: one line about the ring, and a table of its nodes.

use crate::TOOL;
use crate::args::Target;
use crate::common::options::Care;
use crate::common::{self, Failure, text};
use crate::ls;
use comfy_table::{Cell, CellAlignment, Color, Table, presets};
use thrifty::client::{ScanOptions, Scanned};
use thrifty::core::layout::Phase;
use thrifty::gateway::json::{self as told, from_median, id, phase, state, without_quorum};
use thrifty::wire::location::{NodeStatus, StatusResponse};

/// Prints how the ring is doing, and then, if they are wanted, its keys.
pub(crate) async fn status(target: &Target, keys: bool, care: &Care, json: bool) -> Result<(), Failure> {
    let client = if keys { target.store(care).await? } else { target.client().await? };
    let mut status = client.status().await?;
    from_median(&mut status.nodes);
    let layout = client.layout();
    let (stuck, short) = (without_quorum(&status, &layout), layout.short());
    match json {
        true => common::print(told::status(&status, &layout))?,
        false => common::print(format!("{}\n{}", headline(&status, stuck, short), table(&status)))?,
    }
    if keys {
        let line = |key: &Scanned| match json {
            true => ls::object(key).to_string(),
            false => format!("{}  {}", text::utc(key.version.wall_ms()), text::escape(&key.key)),
        };
        let options = ScanOptions { keys_only: true, ..ScanOptions::default() };
        let achieved = ls::list(&client, options, u64::MAX, line).await?;
        care.check(TOOL, "listed", achieved);
    }
    Ok(())
}

/// A table in the tools' one style.
pub(crate) fn fresh_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    table
}

/// A line about the ring.
pub(crate) fn headline(status: &StatusResponse, stuck: usize, short: usize) -> String {
    let counted = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let nodes = counted(status.nodes.len(), "node");
    let replicas = match status.replicas {
        0 => "a replica on every node".to_owned(),
        n => counted(n as usize, "replica"),
    };
    let mut line = format!("ring {}: {nodes}, {replicas}, may lose {}", status.ring, status.may_lose);
    if stuck > 0 {
        line += &format!("; {stuck} of {} segments have no quorum", status.segments);
    }
    if short > 0 {
        line += &format!("; {short} of {} segments have too few owners", status.segments);
    }
    if phase(status) != Phase::Stable {
        let (phase, epoch, moving, least) =
            (phase(status).name(), status.epoch, status.moving, status.moving_least);
        line += &format!(
            " ({phase}, epoch {epoch}, copying {moving} segment replicas, the least possible {least})"
        );
    }
    line
}

fn table(status: &StatusResponse) -> Table {
    let moving = phase(status) != Phase::Stable || status.nodes.iter().any(|n| n.to_pull > 0);
    let mut header = vec!["node", "address", "state", "segments", "keys", "bytes", "clock", "last heard"];
    header.extend(moving.then_some("gathered"));
    let cached = status.nodes.iter().any(|node| cache(node).is_some());
    header.extend(cached.then_some("cache"));
    let mut table = fresh_table(&header);
    for node in &status.nodes {
        let mut row = vec![
            Cell::new(format!("{:.8}", id(node))),
            Cell::new(&node.address),
            colored_state(node),
            right(node.segments.to_string()),
            right(node.keys.map_or("?".into(), |n| n.to_string())),
            right(node.bytes.map_or("?".into(), bytes)),
            right(node.skew_ms.map_or("?".into(), skew)),
            right(node.last_heard_ms.map_or("never".into(), ago)),
        ];
        row.extend(moving.then(|| right(format!("{}/{}", node.pulled, node.to_pull))));
        row.extend(cached.then(|| right(cache(node).unwrap_or("-".into()))));
        table.add_row(row);
    }
    table
}

/// What a node is doing, in a table.
pub(crate) fn colored_state(node: &NodeStatus) -> Cell {
    let color = match state(node) {
        "up" => Color::Green,
        "down" => Color::Red,
        _ => Color::Yellow,
    };
    Cell::new(state(node)).fg(color)
}

/// A number in a table.
pub(crate) fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// A number of bytes in a fitting unit.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// Which part of the reads that a node's cache could answer it did, if there were any.
fn cache(node: &NodeStatus) -> Option<String> {
    let (hits, misses) = (node.cache_hits?, node.cache_misses?);
    let all = hits.saturating_add(misses);
    (all > 0).then(|| format!("{}%", u128::from(hits) * 100 / u128::from(all)))
}

/// How far a clock is off: what a network's delays can explain is nothing.
fn skew(ms: i64) -> String {
    let seconds = ms as f64 / 1000.0;
    match ms.unsigned_abs() {
        0..100 => "ok".into(),
        100..10_000 => format!("{seconds:+.1} s"),
        10_000..7_200_000 => format!("{seconds:+.0} s"),
        _ => format!("{:+.1} h", seconds / 3600.0),
    }
}

/// A length of time in the largest unit that leaves a number above one.
fn ago(ms: u64) -> String {
    match ms {
        0..1_000 => "now".into(),
        1_000..120_000 => format!("{} s ago", ms / 1_000),
        120_000..7_200_000 => format!("{} min ago", ms / 60_000),
        _ => format!("{} h ago", ms / 3_600_000),
    }
}
