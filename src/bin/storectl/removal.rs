//! `storectl remove`: dropping a member that is down.

use crate::TOOL;
use crate::args::Target;
use crate::common::{self, Exit, Failure};
use crate::member::{self, NodeName};
use serde_json::json;
use std::collections::BTreeSet;
use std::io::{BufRead, IsTerminal, Write};
use thrifty::core::layout::Layout;
use thrifty::core::node::NodeId;
use thrifty::wire::location::{NodeState, StatusResponse};

/// Removes a member.
pub(crate) async fn remove(
    target: &Target,
    name: &NodeName,
    force: bool,
    yes: bool,
    json: bool,
) -> Result<(), Failure> {
    let client = target.client().await?;
    let status = client.status().await?;
    let node = member::resolve(&status, name)?;
    let id = member::id(node);
    if force {
        if node.state() != NodeState::Down {
            let message = format!(
                "node {id:.8} at {} is not down (it takes some seconds to be sure): to take a live node out, \
                 use `storectl leave`",
                node.address
            );
            return Err(Failure::new(Exit::Conflict, message));
        }
        common::notice(TOOL, &warning(&status, &client.layout(), id));
        // A script that says --force means it, and nobody is there to ask.
        if !yes && std::io::stdin().is_terminal() {
            confirm(&mut std::io::stdin().lock())?;
        }
    }
    let removed = client.remove(id, force).await?;
    if json {
        let dropped: Vec<String> = removed.dropped.iter().map(NodeId::to_string).collect();
        return common::print(
            json!({ "removing": id.to_string(), "epoch": removed.epoch, "dropped": dropped }),
        );
    }
    match removed.dropped.as_slice() {
        [] => common::print(format!("{id:.8} is being removed; see `storectl status`")),
        dropped => {
            let dropped: Vec<String> = dropped.iter().map(|id| format!("{id:.8}")).collect();
            common::print(format!("dropped {}; see `storectl status`", dropped.join(", ")))
        }
    }
}

/// What a forced removal may lose, in plain words.
fn warning(status: &StatusResponse, layout: &Layout, id: NodeId) -> String {
    let down = |state: i32| matches!(NodeState::try_from(state), Ok(NodeState::Down));
    let mut gone: BTreeSet<NodeId> = status.nodes.iter().filter(|n| down(n.state)).map(member::id).collect();
    gone.insert(id);
    let names: Vec<String> = status
        .nodes
        .iter()
        .filter(|n| gone.contains(&member::id(n)))
        .map(|n| format!("{:.8} at {}", member::id(n), n.address))
        .collect();
    let (lost, doubtful) = damage(layout, &gone);
    let all = layout.segments.get();
    let mut text = format!(
        "warning: this drops for good every node that is down ({}), and what only they hold is lost:",
        names.join(", ")
    );
    if lost > 0 {
        text += &format!(" every key of {lost} of {all} segments, which have no other owner;");
    }
    if doubtful > 0 {
        text +=
            &format!(" perhaps the latest writes in {doubtful} of {all} segments, some of whose owners go;");
    }
    if lost + doubtful == 0 {
        text += " no write that a majority of its owners acknowledged;";
    }
    text + " writes at consistency one may have been on them alone"
}

/// How many segments lose all their owners, and how many others so many that what was acknowledged need
/// not be with a majority of those that remain.
fn damage(layout: &Layout, gone: &BTreeSet<NodeId>) -> (usize, usize) {
    let (mut lost, mut doubtful) = (0, 0);
    for segment in layout.segments.all() {
        match layout.read_owners(segment).iter().all(|id| gone.contains(id)) {
            true => lost += 1,
            false => doubtful += usize::from(!layout.remains_whole(segment, gone)),
        }
    }
    (lost, doubtful)
}

/// Asks the person at the terminal.
fn confirm(person: &mut impl BufRead) -> Result<(), Failure> {
    let _ = write!(std::io::stderr(), "Go on? [y/N] ");
    let mut answer = String::new();
    // A terminal that can't be read from has not said yes.
    let _ = person.read_line(&mut answer);
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, "nothing was done"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        let check = |mut typed: &[u8], expected: Result<(), Exit>| {
            assert_eq!(confirm(&mut typed).map_err(|failure| failure.exit), expected);
        };
        check(b"y\n", Ok(()));
        check(b" yes \n", Ok(()));
        check(b"no\n", Err(Exit::Usage));
        check(b"\n", Err(Exit::Usage));
        check(b"", Err(Exit::Usage));
    }
}
