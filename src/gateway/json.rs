//! What a ring says of itself, as JSON: the same over HTTP as of `storectl --json`.

use crate::core::layout::{Layout, Phase, Standing, Table};
use crate::core::node::NodeId;
use crate::core::quorum::{Consistency, all_meet};
use crate::wire::convert;
use crate::wire::location::{NodeState, NodeStatus, StatusResponse};
use serde_json::{Value, json};

/// How a ring and each of its nodes is doing.
pub fn status(status: &StatusResponse, layout: &Layout) -> Value {
    let node = |n: &NodeStatus| {
        json!({
            "id": id(n).to_string(), "address": n.address, "state": state(n), "segments": n.segments,
            "keys": n.keys, "bytes": n.bytes, "last_heard_ms": n.last_heard_ms, "zone": n.zone,
            "weight": n.weight, "durable": n.durable, "pulled": n.pulled, "to_pull": n.to_pull,
            "skew_ms": n.skew_ms, "cache_hits": n.cache_hits, "cache_misses": n.cache_misses,
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
        "segments_without_quorum": without_quorum(status, layout),
        "segments_with_too_few_owners": layout.short(),
        "moving": status.moving,
        "moving_least": status.moving_least,
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

/// The whole table: for each segment its owners, as indexes into the members.
pub fn ring(layout: &Layout) -> Value {
    let (segments, primaries) = (layout.shares(), primaries(layout));
    let members: Vec<Value> = layout
        .members
        .iter()
        .enumerate()
        .map(|(index, m)| {
            json!({
                "id": m.id.to_string(),
                "address": m.address.as_str(),
                "zone": m.zone,
                "weight": m.weight,
                "durable": m.durable,
                "standing": standing(m.standing),
                "segments": segments[index],
                "primaries": primaries[index],
            })
        })
        .collect();
    let mut object = json!({
        "ring": layout.name,
        "ring_id": layout.ring.to_string(),
        "epoch": layout.epoch,
        "phase": layout.phase.name(),
        "replicas": replicas(convert::replicas_to(layout.replicas)),
        "segments": layout.segments.get(),
        "members": members,
        "rows": rows(&layout.current),
    });
    if let Some(next) = &layout.next {
        object["next_rows"] = rows(next);
    }
    object
}

fn rows(table: &Table) -> Value {
    table
        .rows()
        .map(|row| row.iter().map(|cell| cell.member).collect::<Vec<u16>>())
        .collect::<Vec<_>>()
        .into()
}

/// How many segments each member comes first in, in the table that comes last.
pub fn primaries(layout: &Layout) -> Vec<usize> {
    let mut counts = vec![0; layout.members.len()];
    for row in layout.next.as_ref().unwrap_or(&layout.current).rows() {
        if let Some(first) = row.first() {
            counts[usize::from(first.member)] += 1;
        }
    }
    counts
}

/// Whether a member comes or goes, in a word.
pub fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Staying => "staying",
        Standing::Joining => "joining",
        Standing::Leaving => "leaving",
    }
}

/// A node's id, as its status has it.
pub fn id(node: &NodeStatus) -> NodeId {
    convert::node_id(&node.id).unwrap_or(NodeId(0))
}

/// How a node is, in a word.
pub fn state(node: &NodeStatus) -> &'static str {
    match NodeState::try_from(node.state) {
        Ok(NodeState::Up) => "up",
        Ok(NodeState::Suspect) => "suspect",
        Ok(NodeState::Down) => "down",
        Ok(NodeState::Joining) => "joining",
        Ok(NodeState::Leaving) => "leaving",
        Ok(NodeState::Unspecified) | Err(_) => "unknown",
    }
}

/// Whether the ring is changing, and how far that is.
pub fn phase(status: &StatusResponse) -> Phase {
    convert::phase(status.phase).unwrap_or(Phase::Stable)
}

/// A number of replicas; on the wire 0 stands for all.
fn replicas(number: u32) -> Value {
    if number == 0 { "all".into() } else { number.into() }
}

/// How many segments have too few owners up for a quorum. `may_lose` is 0 then, and 0 also when all
/// is still well.
pub fn without_quorum(status: &StatusResponse, layout: &Layout) -> usize {
    let down: Vec<NodeId> = status.nodes.iter().filter(|n| state(n) == "down").map(id).collect();
    let meets = |segment| all_meet(&layout.live_sets(segment), Consistency::Quorum, |id| !down.contains(&id));
    if down.is_empty() { 0 } else { layout.segments.all().filter(|segment| !meets(*segment)).count() }
}

/// Counts how far clocks are off from the median of those that are known: which node answers, and whether
/// its own clock is right, must not matter. Of two that differ nobody can say which is off.
pub fn from_median(nodes: &mut [NodeStatus]) {
    let mut known: Vec<i64> = nodes.iter().filter_map(|node| node.skew_ms).collect();
    known.sort_unstable();
    let Some(last) = known.len().checked_sub(1) else { return };
    let median = known[last / 2].midpoint(known[last.div_ceil(2)]);
    nodes.iter_mut().for_each(|node| node.skew_ms = node.skew_ms.map(|ms| ms.saturating_sub(median)));
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
