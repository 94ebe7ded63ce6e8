//! `storectl ring` and `storectl locate`: the layout, as any client of the ring has it.

use crate::args::Target;
use crate::common::{self, Exit, Failure};
use crate::status::{fresh_table, replicas};
use bytes::Bytes;
use serde_json::{Value, json};
use thrifty::core::layout::{Layout, Standing, Table};
use thrifty::core::token::Token;
use thrifty::wire::convert;

/// Prints the members and their shares, or the whole table.
pub(crate) async fn ring(target: &Target, json: bool) -> Result<(), Failure> {
    let layout = target.client().await?.layout();
    if json {
        return common::print(as_json(&layout));
    }
    let (segments, primaries) = (layout.shares(), primaries(&layout));
    let mut table = fresh_table(&["node", "address", "zone", "weight", "segments", "primaries", "standing"]);
    for (index, member) in layout.members.iter().enumerate() {
        table.add_row([
            format!("{:.8}", member.id),
            member.address.to_string(),
            member.zone.clone(),
            member.weight.to_string(),
            segments[index].to_string(),
            primaries[index].to_string(),
            standing(member.standing).to_owned(),
        ]);
    }
    let (name, phase, epoch, count) =
        (&layout.name, layout.phase.name(), layout.epoch, layout.segments.get());
    let replicas = convert::replicas_to(layout.replicas);
    let replicas =
        if replicas == 0 { "a replica on every node".into() } else { format!("{replicas} replicas") };
    common::print(format!("ring {name}: {count} segments, {replicas}, epoch {epoch}, {phase}\n{table}"))
}

/// Prints who owns a key.
pub(crate) async fn locate(target: &Target, key: &str, json: bool) -> Result<(), Failure> {
    let bytes = Bytes::copy_from_slice(key.as_bytes());
    convert::key(&bytes).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    let layout = target.client().await?.layout();
    let (token, segment) = (Token::of(&bytes), layout.segment(&bytes));
    let owners = layout.read_owners(segment);
    let owners: Vec<_> = owners.iter().filter_map(|id| layout.member(*id)).collect();
    if json {
        let owners: Vec<Value> =
            owners.iter().map(|m| json!({ "id": m.id.to_string(), "address": m.address.as_str() })).collect();
        return common::print(json!({
            "key": key,
            "token": format!("{token:?}"),
            "segment": segment.index(),
            "epoch": layout.epoch,
            "owners": owners,
        }));
    }
    let owners: Vec<String> = owners.iter().map(|m| format!("{}  {:.8}", m.address, m.id)).collect();
    let (owners, count) = (owners.join("\n         "), layout.segments.get());
    common::print(format!("token    {token:?}\nsegment  {segment} of {count}\nowners   {owners}"))
}

fn as_json(layout: &Layout) -> Value {
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
fn primaries(layout: &Layout) -> Vec<usize> {
    let mut counts = vec![0; layout.members.len()];
    for row in layout.next.as_ref().unwrap_or(&layout.current).rows() {
        if let Some(first) = row.first() {
            counts[usize::from(first.member)] += 1;
        }
    }
    counts
}

fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Staying => "staying",
        Standing::Joining => "joining",
        Standing::Leaving => "leaving",
    }
}
