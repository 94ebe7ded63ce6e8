//! `storectl status`: one line about the ring, and a table of its nodes.

use crate::args::Target;
use crate::common::{self, Failure};
use crate::member;
use comfy_table::{Cell, CellAlignment, Color, Table, presets};
use serde_json::{Value, json};
use thrifty::core::layout::{Layout, Phase};
use thrifty::core::node::NodeId;
use thrifty::core::quorum::{Consistency, all_meet};
use thrifty::wire::convert;
use thrifty::wire::location::{NodeState, NodeStatus, StatusResponse};

/// Prints how the ring is doing.
pub(crate) async fn status(target: &Target, json: bool) -> Result<(), Failure> {
    let client = target.client().await?;
    let mut status = client.status().await?;
    from_median(&mut status.nodes);
    let layout = client.layout();
    let (stuck, short) = (without_quorum(&status, &layout), layout.short());
    if json {
        return common::print(as_json(&status, stuck, short));
    }
    common::print(format!("{}\n{}", headline(&status, stuck, short), table(&status)))
}

/// How many segments have too few owners up for a quorum. `may_lose` is 0 then, and 0 also when all
/// is still well.
fn without_quorum(status: &StatusResponse, layout: &Layout) -> usize {
    let down: Vec<NodeId> = status.nodes.iter().filter(|n| state(n) == "down").map(member::id).collect();
    let meets = |segment| all_meet(&layout.live_sets(segment), Consistency::Quorum, |id| !down.contains(&id));
    if down.is_empty() { 0 } else { layout.segments.all().filter(|segment| !meets(*segment)).count() }
}

/// A table in the tools' one style.
pub(crate) fn fresh_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    table
}

/// A number of replicas as JSON; on the wire 0 stands for all.
pub(crate) fn replicas(number: u32) -> Value {
    if number == 0 { "all".into() } else { number.into() }
}

fn phase(status: &StatusResponse) -> Phase {
    convert::phase(status.phase).unwrap_or(Phase::Stable)
}

fn state(node: &NodeStatus) -> &'static str {
    match NodeState::try_from(node.state) {
        Ok(NodeState::Up) => "up",
        Ok(NodeState::Suspect) => "suspect",
        Ok(NodeState::Down) => "down",
        Ok(NodeState::Joining) => "joining",
        Ok(NodeState::Leaving) => "leaving",
        Ok(NodeState::Unspecified) | Err(_) => "unknown",
    }
}

fn headline(status: &StatusResponse, stuck: usize, short: usize) -> String {
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
    let mut table = fresh_table(&header);
    for node in &status.nodes {
        let color = match state(node) {
            "up" => Color::Green,
            "down" => Color::Red,
            _ => Color::Yellow,
        };
        let mut row = vec![
            Cell::new(format!("{:.8}", member::id(node))),
            Cell::new(&node.address),
            Cell::new(state(node)).fg(color),
            right(node.segments.to_string()),
            right(node.keys.map_or("?".into(), |n| n.to_string())),
            right(node.bytes.map_or("?".into(), bytes)),
            right(node.skew_ms.map_or("?".into(), skew)),
            right(node.last_heard_ms.map_or("never".into(), ago)),
        ];
        row.extend(moving.then(|| right(format!("{}/{}", node.pulled, node.to_pull))));
        table.add_row(row);
    }
    table
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// Counts how far clocks are off from the median of those that are known: which node answers, and whether
/// its own clock is right, must not matter. Of two that differ nobody can say which is off.
fn from_median(nodes: &mut [NodeStatus]) {
    let mut known: Vec<i64> = nodes.iter().filter_map(|node| node.skew_ms).collect();
    known.sort_unstable();
    let Some(last) = known.len().checked_sub(1) else { return };
    let median = known[last / 2].midpoint(known[last.div_ceil(2)]);
    nodes.iter_mut().for_each(|node| node.skew_ms = node.skew_ms.map(|ms| ms.saturating_sub(median)));
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

fn as_json(status: &StatusResponse, stuck: usize, short: usize) -> Value {
    let node = |n: &NodeStatus| {
        json!({
            "id": member::id(n).to_string(), "address": n.address, "state": state(n), "segments": n.segments,
            "keys": n.keys, "bytes": n.bytes, "last_heard_ms": n.last_heard_ms, "zone": n.zone,
            "weight": n.weight, "durable": n.durable, "pulled": n.pulled, "to_pull": n.to_pull,
            "skew_ms": n.skew_ms,
        })
    };
    json!({
        "ring": status.ring,
        "ring_id": convert::ring_id(&status.ring_id).map(|id| id.to_string()).unwrap_or_default(),
        "epoch": status.epoch,
        "phase": phase(status).name(),
        "replicas": replicas(status.replicas),
        "segments": status.segments,
        "may_lose": status.may_lose,
        "segments_without_quorum": stuck,
        "segments_with_too_few_owners": short,
        "moving": status.moving,
        "moving_least": status.moving_least,
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_off_from_the_median_whoever_answers() {
        let counted = |told: &[Option<i64>]| {
            let node = |skew_ms: &Option<i64>| NodeStatus { skew_ms: *skew_ms, ..NodeStatus::default() };
            let mut nodes: Vec<NodeStatus> = told.iter().map(node).collect();
            from_median(&mut nodes);
            nodes.iter().map(|node| node.skew_ms).collect::<Vec<_>>()
        };
        let hour = 3_600_000;
        let seen = [Some(hour - 5), Some(-10), None, Some(0)];
        assert_eq!(counted(&[Some(hour), Some(-5), None, Some(5)]), seen);
        assert_eq!(
            counted(&[Some(0), Some(-5 - hour), None, Some(5 - hour)]),
            seen,
            "the one that is off answers"
        );
        assert_eq!(counted(&[Some(0), Some(-hour), None]), [Some(hour / 2), Some(-hour / 2), None]);
        assert_eq!(counted(&[Some(0)]), [Some(0)]);
        assert_eq!((counted(&[None]), counted(&[])), (vec![None], vec![]));
        assert_eq!(counted(&[Some(i64::MIN), Some(i64::MAX), Some(i64::MAX)])[0], Some(i64::MIN));
    }
}
