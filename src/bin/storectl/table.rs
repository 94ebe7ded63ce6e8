//! `storectl ring` and `storectl locate`: the layout, as any client of the ring has it.

use crate::args::Target;
use crate::common::key::Key;
use crate::common::{self, Failure, text};
use crate::status::fresh_table;
use serde_json::{Value, json};
use thrifty::core::token::Token;
use thrifty::gateway::json::{self as told, primaries, standing};
use thrifty::wire::convert;

/// Prints the members and their shares, or the whole table.
pub(crate) async fn ring(target: &Target, json: bool) -> Result<(), Failure> {
    let layout = target.client().await?.layout();
    if json {
        return common::print(told::ring(&layout));
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
pub(crate) async fn locate(target: &Target, key: &Key, json: bool) -> Result<(), Failure> {
    let bytes = key.bytes()?;
    let layout = target.client().await?.layout();
    let (token, segment) = (Token::of(&bytes), layout.segment(&bytes));
    let owners = layout.read_owners(segment);
    let owners: Vec<_> = owners.iter().filter_map(|id| layout.member(*id)).collect();
    if json {
        let owners: Vec<Value> =
            owners.iter().map(|m| json!({ "id": m.id.to_string(), "address": m.address.as_str() })).collect();
        let (name, key) = match std::str::from_utf8(&bytes) {
            Ok(key) => ("key", key.to_owned()),
            Err(_) => ("key_base64", text::base64(&bytes)),
        };
        return common::print(json!({
            name: key,
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
