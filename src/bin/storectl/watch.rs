//! `storectl watch`: each new layout of a ring, as it is installed.

use crate::args::Target;
use crate::common::{Exit, Failure, Lines, reader_left, text};
use clap::Args;
use serde_json::{Value, json};
use std::time::Duration;
use thrifty::client::Client;
use thrifty::core::layout::{Layout, Member, Standing};
use thrifty::core::node::{Address, NodeId};
use thrifty::wire::channel::within;
use thrifty::wire::convert;
use thrifty::wire::location::{WatchRequest, WatchResponse};
use tokio::time::Instant;
use tonic::{Status, Streaming};

/// Before all nodes are tried again.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// Wide enough for every phase.
const PHASE_WIDTH: usize = 8;

const NOTES: &str = r#"Examples:
  storectl watch                            the layout there is, and each that follows, until Ctrl-C
  storectl watch --count 1                  only the one there is
  storectl watch --json | jq -c '[.epoch, .phase, .joining, .leaving, .joined, .left]'

One line each: when it was seen, epoch, phase, number of members, and what is new. A ring goes on from
stable over dual (who comes gathers its keys) and read_new (reads ask the new owners) to stable. If
several come at once, as they do to who reads slowly, only the last is told. With --json, a line has
time, ring, ring_id, epoch, phase, members, and the ids of those joining, leaving, joined and left.

Exit codes: 0 as many as were wanted, or nobody reads any more, 2 wrong usage, 3 no node has answered
for --timeout."#;

/// How long to watch.
#[derive(Args, Clone, Debug)]
#[command(after_help = NOTES)]
pub(crate) struct Watch {
    /// So many layouts, and no more
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

impl Watch {
    /// Prints layouts until there were enough, or nobody reads any more.
    pub(crate) async fn run(&self, target: &Target) -> Result<(), Failure> {
        tokio::select! {
            ended = self.follow(target) => ended,
            () = reader_left() => Ok(()),
        }
    }

    async fn follow(&self, target: &Target) -> Result<(), Failure> {
        let client = target.client().await?;
        let mut last = (*client.layout()).clone();
        let mut lines = Lines::new();
        let mut left = self.count.unwrap_or(u64::MAX);
        if !self.print(&mut lines, None, &last)? {
            return Ok(());
        }
        left -= 1;
        let mut heard = Instant::now();
        while left > 0 {
            for address in addresses(&client, &last) {
                let Ok(mut stream) = open(&client, &address, target.connect.timeout).await else { continue };
                while let Ok(Some(message)) = stream.message().await {
                    let layout = message.layout.and_then(|layout| convert::layout(layout).ok());
                    let Some(layout) = layout.filter(|layout| layout.epoch > last.epoch) else { continue };
                    if !self.print(&mut lines, Some(&last), &layout)? {
                        return Ok(());
                    }
                    (last, left) = (layout, left - 1);
                    if left == 0 {
                        return Ok(());
                    }
                }
                // It has answered until now.
                heard = Instant::now();
            }
            if heard.elapsed() >= target.connect.timeout {
                let message = format!("no node of ring {} answers any more", last.name);
                return Err(Failure::new(Exit::Unavailable, message));
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
        Ok(())
    }

    /// Prints a layout at once; `false` if nobody reads any more.
    fn print(&self, lines: &mut Lines, before: Option<&Layout>, layout: &Layout) -> Result<bool, Failure> {
        let (news, now) = (News::of(before, layout), text::utc(text::now_ms()));
        let written = match self.json {
            true => lines.line(news.as_json(layout, &now)),
            false => lines.line(news.line(layout, &now)),
        };
        Ok(written? && lines.flush()?)
    }
}

/// Where the ring may be asked: the nodes that were named or found, then the members.
fn addresses(client: &Client, layout: &Layout) -> Vec<Address> {
    let mut addresses = client.addresses();
    for member in &layout.members {
        if !addresses.contains(&member.address) {
            addresses.push(member.address.clone());
        }
    }
    addresses
}

async fn open(
    client: &Client,
    address: &Address,
    timeout: Duration,
) -> Result<Streaming<WatchResponse>, Status> {
    let mut node = client.location_at(address);
    within(timeout, node.watch(WatchRequest {})).await.map(tonic::Response::into_inner)
}

/// What a layout changes.
#[derive(Default, PartialEq, Eq, Debug)]
struct News {
    joining: Vec<NodeId>,
    leaving: Vec<NodeId>,
    joined: Vec<NodeId>,
    left: Vec<NodeId>,
}

impl News {
    fn of(before: Option<&Layout>, layout: &Layout) -> News {
        let ids = |layout: &Layout, wanted: &dyn Fn(&Member) -> bool| -> Vec<NodeId> {
            layout.members.iter().filter(|member| wanted(member)).map(|member| member.id).collect()
        };
        let stands = |standing| move |member: &Member| member.standing == standing;
        let (joining, leaving) =
            (ids(layout, &stands(Standing::Joining)), ids(layout, &stands(Standing::Leaving)));
        let Some(before) = before else { return News { joining, leaving, ..News::default() } };
        let was_in =
            |id: NodeId| before.member(id).is_some_and(|member| member.standing != Standing::Joining);
        let is_in = |member: &Member| member.standing != Standing::Joining && !was_in(member.id);
        let is_gone = |member: &Member| was_in(member.id) && !layout.is_member(member.id);
        News { joining, leaving, joined: ids(layout, &is_in), left: ids(before, &is_gone) }
    }

    fn line(&self, layout: &Layout, now: &str) -> String {
        let (epoch, phase, members) = (layout.epoch, layout.phase.name(), layout.members.len());
        let mut line = format!("{now}  epoch {epoch}  {phase:PHASE_WIDTH$}  {members} members");
        for (ids, what) in [
            (&self.joining, "joins"),
            (&self.leaving, "leaves"),
            (&self.joined, "joined"),
            (&self.left, "left"),
        ] {
            for id in ids {
                let at =
                    layout.member(*id).map(|member| format!(" ({})", member.address)).unwrap_or_default();
                line += &format!("  {id:.8} {what}{at}");
            }
        }
        if layout.collected == layout.epoch {
            line += "  forgets what was deleted";
        }
        line
    }

    fn as_json(&self, layout: &Layout, now: &str) -> Value {
        let ids = |ids: &[NodeId]| ids.iter().map(NodeId::to_string).collect::<Vec<_>>();
        let member =
            |member: &Member| json!({ "id": member.id.to_string(), "address": member.address.as_str() });
        json!({
            "time": now,
            "ring": layout.name,
            "ring_id": layout.ring.to_string(),
            "epoch": layout.epoch,
            "phase": layout.phase.name(),
            "members": layout.members.iter().map(member).collect::<Vec<_>>(),
            "joining": ids(&self.joining),
            "leaving": ids(&self.leaving),
            "joined": ids(&self.joined),
            "left": ids(&self.left),
        })
    }
}
