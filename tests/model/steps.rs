//! What can happen next, and how it is told.

use crate::parts::Node;
use crate::rank::{Put, Said};
use crate::ring::Parts;
use crate::world::{At, Mail, NOBODY, World};

/// One thing that happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// A request begins.
    Begin(u8),
    /// A question arrives. `lost`: its answer doesn't. `again`: it arrives a second time later.
    Ask {
        i: u8,
        lost: bool,
        again: bool,
    },
    /// An answer arrives.
    Answer(u8),
    /// A node installs a layout.
    Install(Node, At),
    /// A source makes a snapshot for a puller.
    Snapshot(Node, Node),
    /// A puller takes it in.
    Page(Node, Node),
    Sync(Node),
    Crash(Node),
    /// The Dual is given up.
    Abort,
    /// What comes next is decided, where something else could also have been.
    Decide,
    /// An owner is asked whether it holds the delete.
    Confirm(Node),
    /// A collecting layout is decided.
    Collect,
    /// An owner is told to forget.
    Forget(Node),
    /// An owner that catches up has a page of another made.
    Copy(Node, Node),
    /// A page of one that catches up arrives.
    Copied(u8),
}

pub(crate) fn name(node: Node) -> String {
    char::from(b'A' + node).to_string()
}

fn request(world: &World, parts: &Parts, op: u8) -> String {
    if op == NOBODY {
        return "a request of before".into();
    }
    let request = world.request(parts, op);
    match request.writes {
        Some(rank) => format!("the write of v{rank} by {}", name(request.at)),
        None => format!("the read by {}", name(request.at)),
    }
}

fn said(said: Said) -> String {
    match said {
        Said::Accepted(rank) => format!("accepts v{rank}"),
        Said::Superseded(rank) => format!("says that it has v{rank}, which is newer"),
        Said::Record(0) | Said::Version(0) => "says that it has nothing".into(),
        Said::Record(rank) => format!("sends v{rank}"),
        Said::Version(rank) => format!("says that it has v{rank}"),
    }
}

fn asks(put: Put) -> String {
    match put {
        Put::Write(rank) => format!("sends v{rank}"),
        Put::Read => "asks for the record".into(),
        Put::Version => "asks for the version".into(),
    }
}

impl Step {
    /// In words. `before` is the world in which it is taken.
    pub(crate) fn tell(self, before: &World, parts: &Parts) -> String {
        let epoch = |at: At| parts.epoch(before.layout_at(at));
        match self {
            Step::Begin(op) => format!("{} begins", request(before, parts, op)),
            Step::Ask { i, lost, again } => {
                let Mail::Question { op, to, at, put, .. } = before.mail[usize::from(i)] else {
                    return "a question".into();
                };
                let end = match (lost, again) {
                    (true, _) => ", and the answer is lost",
                    (_, true) => ", and will come again",
                    _ => "",
                };
                let (who, to, what) = (request(before, parts, op), name(to), asks(put));
                format!("{who} {what} at epoch {}: it reaches {to}{end}", epoch(at))
            }
            Step::Answer(i) => {
                let Mail::Answer { op, from, at, said: what, .. } = before.mail[usize::from(i)] else {
                    return "an answer".into();
                };
                let who = request(before, parts, op);
                format!("{who} hears from {} at epoch {}: it {}", name(from), epoch(at), said(what))
            }
            Step::Install(node, at) => {
                let phase = parts.phase(before.layout_at(at)).name();
                format!("{} installs epoch {} ({phase})", name(node), epoch(at))
            }
            Step::Snapshot(node, source) => {
                format!("{} makes a snapshot for {}", name(source), name(node))
            }
            Step::Page(node, source) => format!("{} takes in what {} has", name(node), name(source)),
            Step::Sync(node) => format!("{} syncs", name(node)),
            Step::Crash(node) => format!("{} crashes and is there again", name(node)),
            Step::Abort => "the transition is given up".into(),
            Step::Decide => "the transition goes on".into(),
            Step::Confirm(node) => format!("{} says that it holds what is deleted", name(node)),
            Step::Collect => "a collecting layout is decided".into(),
            Step::Forget(node) => format!("{} forgets it", name(node)),
            Step::Copy(node, source) => format!("{} asks {} what it has", name(node), name(source)),
            Step::Copied(i) => format!("{} hears it", name(before.collecting.pages[usize::from(i)].0)),
        }
    }
}

impl World {
    /// What is decided, and what every node holds: at the end of a story.
    pub(crate) fn tell(&self, parts: &Parts) -> String {
        let layout = parts.layouts.of(self.newest());
        let mut text = format!("decided: epoch {} ({});", layout.epoch, layout.phase.name());
        for (i, node) in self.nodes.iter().enumerate() {
            let held = parts.replicas.of(node.replica).holds.iter();
            let held: Vec<_> =
                held.map(|(slot, rank)| format!("v{rank} (since {})", slot.acquired)).collect();
            let held = if held.is_empty() { "nothing".into() } else { held.join(", ") };
            let epoch = parts.epoch(self.layout_at(node.at));
            text += &format!(" {} at {epoch} holds {held};", name(i as Node));
        }
        text
    }
}
