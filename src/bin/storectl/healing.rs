//! `storectl verify` and `storectl repair`: whether owners hold the same, and having them catch up.

use crate::args::Target;
use crate::common::options::must_store;
use crate::common::{self, Exit, Failure};
use futures_util::StreamExt;
use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use thrifty::client::Client;
use thrifty::core::layout::Layout;
use thrifty::core::node::{Address, NodeId};
use thrifty::core::token::Segment;
use thrifty::wire::convert;
use thrifty::wire::location::{GetLayoutRequest, NodeStatus};
use thrifty::wire::store::{DigestsRequest, DigestsResponse, RepairRequest, RepairResponse};
use tokio::time::Instant;
use tonic::{Code, Request, Status};

/// How often digests are compared again while they differ.
const AGAIN: Duration = Duration::from_millis(250);

/// How long one node may take to sum up what it holds.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Segments that are named when they differ.
const NAMED: usize = 8;

/// The members of a ring, with where they listen now.
async fn members(client: &Client) -> Result<Vec<(NodeId, Address)>, Failure> {
    let status = client.status().await?;
    let member = |node: &NodeStatus| Some((convert::node_id(&node.id).ok()?, node.address.parse().ok()?));
    Ok(status.nodes.iter().filter_map(member).collect())
}

fn silent(address: &Address, status: &Status) -> Failure {
    Failure::new(
        Exit::Unavailable,
        format!("{address} could not be compared: {}; see `storectl status`", status.message()),
    )
}

/// Compares all owners of all segments.
pub(crate) async fn verify(target: &Target, wait: Duration, json: bool) -> Result<(), Failure> {
    let client = must_store(target.client().await?)?;
    let end = Instant::now() + wait;
    let (layout, differing) = loop {
        let last = Instant::now() >= end;
        match look(&client).await {
            Ok((layout, differing)) if differing.is_empty() || last => break (layout, differing),
            Err(failure) if last => return Err(failure),
            Ok(_) | Err(_) => tokio::time::sleep(AGAIN).await,
        }
    };
    let (segments, nodes, short) = (layout.segments.get(), layout.members.len(), layout.short());
    let least = layout.segments.all().map(|segment| layout.read_owners(segment).len()).min().unwrap_or(0);
    if json {
        common::print(json!({
            "identical": differing.is_empty(),
            "epoch": layout.epoch,
            "segments": segments,
            "nodes": nodes,
            "segments_with_too_few_owners": short,
            "fewest_owners": least,
            "differing": differing.iter().map(|segment| segment.0).collect::<Vec<_>>(),
        }))?;
    } else if differing.is_empty() {
        let few = format!("; {short} of them have too few owners, as few as {least}");
        let few = if short > 0 { few } else { String::new() };
        common::print(format!("identical: all owners of all {segments} segments, on {nodes} nodes{few}"))?;
    }
    if differing.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = differing.iter().take(NAMED).map(ToString::to_string).collect();
    let more = if differing.len() > NAMED { ", ..." } else { "" };
    let message = format!(
        "owners of {} of {segments} segments hold different things: {}{more}; `storectl repair` has them catch up",
        differing.len(),
        named.join(", ")
    );
    Err(Failure::new(Exit::Conflict, message))
}

/// The segments whose owners do not hold the same.
async fn look(client: &Client) -> Result<(Layout, Vec<Segment>), Failure> {
    let members = members(client).await?;
    let (_, first) =
        members.first().ok_or_else(|| Failure::new(Exit::Unavailable, "the ring has no nodes"))?;
    let asked = GetLayoutRequest::default();
    let answer =
        client.location_at(first).get_layout(asked).await.map_err(|status| silent(first, &status))?;
    let layout = answer.into_inner().layout;
    let layout = layout.and_then(|layout| convert::layout(layout).ok());
    let layout = layout.ok_or_else(|| Failure::new(Exit::Unavailable, "the ring's layout makes no sense"))?;
    let asked = members.iter().map(|(id, address)| async move {
        let mut request = Request::new(DigestsRequest::default());
        request.set_timeout(ASK_TIMEOUT);
        let answer =
            client.store_at(address).digests(request).await.map_err(|status| silent(address, &status))?;
        Ok::<_, Failure>((*id, answer.into_inner()))
    });
    let answers = join_all(asked).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    if answers.iter().any(|(_, answer)| answer.epoch != layout.epoch) {
        return Err(Failure::new(Exit::Unavailable, "the ring is changing: try again when it is done"));
    }
    let differing = differing(&layout, &answers);
    Ok((layout, differing))
}

fn differing(layout: &Layout, answers: &[(NodeId, DigestsResponse)]) -> Vec<Segment> {
    let held: BTreeMap<(NodeId, u32), &[u8]> = answers
        .iter()
        .flat_map(|(id, answer)| answer.segments.iter().map(|s| ((*id, s.segment), &s.digest[..])))
        .collect();
    let differs = |segment: &Segment| {
        let owners = layout.read_owners(*segment);
        let mut digests = owners.into_iter().map(|id| held.get(&(id, u32::from(segment.0))));
        let first = digests.next().flatten();
        first.is_none() || digests.any(|digest| digest != first)
    };
    layout.segments.all().filter(differs).collect()
}

/// Has every node catch up, one after the other: what the first has pulled the next need not.
pub(crate) async fn repair(target: &Target, json: bool) -> Result<(), Failure> {
    let client = must_store(target.client().await?)?;
    let members = members(&client).await?;
    let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} compared, {msg} ({eta} left)");
    let bar = ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut all = RepairResponse::default();
    let mut silent_nodes = Vec::new();
    for (at, (_, address)) in members.iter().enumerate() {
        bar.set_prefix(format!("node {} of {}", at + 1, members.len()));
        match repair_node(&client, address, &bar).await {
            Ok(told) => {
                all.keys += told.keys;
                all.bytes += told.bytes;
                all.differing += told.differing;
                all.unreachable += told.unreachable;
            }
            Err(status) if status.code() == Code::Unavailable => silent_nodes.push(silent(address, &status)),
            Err(status) => return Err(silent(address, &status)),
        }
    }
    bar.finish_and_clear();
    if json {
        common::print(json!({
            "nodes": members.len() - silent_nodes.len(),
            "differing": all.differing,
            "keys": all.keys,
            "bytes": all.bytes,
            "unreachable": all.unreachable,
        }))?;
    } else {
        let nodes = members.len() - silent_nodes.len();
        common::print(format!(
            "{nodes} nodes compared; {} keys caught up, {} bytes sent",
            all.keys, all.bytes
        ))?;
    }
    match silent_nodes.into_iter().next() {
        Some(silent) => Err(silent),
        None => all_compared(all.unreachable),
    }
}

/// Whether no node missed another owner.
fn all_compared(unreachable: u64) -> Result<(), Failure> {
    if unreachable == 0 {
        return Ok(());
    }
    let message = format!(
        "{unreachable} times a node could not be compared with another owner: see `storectl status`, then try again"
    );
    Err(Failure::new(Exit::Unavailable, message))
}

async fn repair_node(
    client: &Client,
    address: &Address,
    bar: &ProgressBar,
) -> Result<RepairResponse, Status> {
    let mut progress = client.store_at(address).repair(RepairRequest {}).await?.into_inner();
    while let Some(told) = progress.next().await.transpose()? {
        bar.set_length(told.to_compare.max(1));
        bar.set_position(told.compared);
        bar.set_message(format!("{} keys", told.keys));
        if told.done {
            return Ok(told);
        }
    }
    Err(Status::unavailable("it stopped half-way"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repair_that_left_an_owner_out_did_not_go_well() {
        assert!(all_compared(0).is_ok());
        let failure = all_compared(2).unwrap_err();
        assert_eq!(failure.exit, Exit::Unavailable);
        assert!(failure.message.starts_with("2 times"), "{}", failure.message);
    }
}
