//! What is explored: a ring, how it changes, who asks what meanwhile.

use crate::parts::Node;
use crate::rank::{Rank, node_id};
use std::collections::BTreeSet;
use thrifty::core::layout::{Kind, Layout, Member, Replicas, Standing};
use thrifty::core::node::RingId;
use thrifty::core::quorum::{Consistency, majority};
use thrifty::core::token::SegmentCount;
use thrifty::core::transition::Change;

/// A transition: who comes and who goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub(crate) join: Option<Node>,
    pub(crate) leave: Option<Node>,
    pub(crate) remove: Option<Node>,
}

pub(crate) const fn join(node: Node) -> Turn {
    Turn { join: Some(node), leave: None, remove: None }
}

pub(crate) const fn leave(node: Node) -> Turn {
    Turn { join: None, leave: Some(node), remove: None }
}

pub(crate) const fn replace(leave: Node, join: Node) -> Turn {
    Turn { join: Some(join), leave: Some(leave), remove: None }
}

pub(crate) const fn remove(node: Node) -> Turn {
    Turn { join: None, leave: None, remove: Some(node) }
}

/// A request, coordinated by one node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Request {
    pub(crate) at: Node,
    /// The version, or a read.
    pub(crate) writes: Option<Rank>,
    pub(crate) consistency: Consistency,
}

/// How far to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// So many questions arrive twice.
    pub(crate) doubles: u8,
    /// Answers may be late and not only lost.
    pub(crate) late: bool,
    /// What a coordinator asks of its own replica may be late.
    pub(crate) own_late: bool,
    /// Data that is dropped early is a failure by itself.
    pub(crate) check_drops: bool,
    /// Stop after so many states.
    pub(crate) states: usize,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Nodes in all: A, B and so on.
    pub(crate) nodes: Node,
    /// The first so many are members at the beginning.
    pub(crate) members: Node,
    /// Who holds the lowest version at the beginning.
    pub(crate) held: Vec<Node>,
    /// Whose weight is so great that it is an owner wherever it is a member.
    pub(crate) heavy: Option<Node>,
    pub(crate) changes: Vec<Turn>,
    pub(crate) requests: Vec<Request>,
    /// How often a Dual may be given up; it is tried again.
    pub(crate) aborts: u8,
    /// Replicas sync, and one of them crashes once.
    pub(crate) disks: bool,
    /// How often what was deleted is forgotten.
    pub(crate) collects: u8,
    /// What a coordinator asks of its own replica may be late.
    pub(crate) own_late: bool,
    /// So many pages are taken from one owner for another that catches up.
    pub(crate) copies: u8,
}

fn member(node: Node, weight: u32) -> Member {
    Member {
        id: node_id(node),
        address: format!("127.0.0.1:{}", 9900 + u16::from(node)).parse().expect("an address"),
        zone: String::new(),
        weight,
        durable: true,
        standing: Standing::Staying,
    }
}

impl Scenario {
    fn member(&self, node: Node) -> Member {
        member(node, if self.heavy == Some(node) { 1000 } else { 1 })
    }

    /// The version that is as good as acknowledged at the beginning.
    pub(crate) fn floor(&self) -> Rank {
        Rank::from(self.held.len() >= majority(self.members.into()))
    }

    /// The ring at the beginning: three replicas, one segment.
    pub(crate) fn first(&self) -> Layout {
        let segments = SegmentCount::new(1).expect("a power of two");
        let ring = ("model".into(), Kind::Store, Replicas::Count(3));
        let first = Layout::first(RingId(1), ring.0, ring.1, ring.2, segments, self.member(0));
        let joins: Vec<_> = (1..self.members).map(|node| self.member(node)).collect();
        let dual = first.dual(&joins, &BTreeSet::new());
        dual.map_or(first, |dual| dual.read_new().settled())
    }

    /// The Dual of a transition.
    pub(crate) fn change(&self, turn: Turn, layout: &Layout) -> Layout {
        let set = |node: Option<Node>| node.map(node_id).into_iter().collect::<BTreeSet<_>>();
        let joins = turn.join.map(|node| self.member(node)).into_iter().collect();
        let change = Change::Dual { joins, leaves: set(turn.leave), removals: set(turn.remove) };
        change.apply(layout, &set(turn.remove)).expect("a change that changes something")
    }
}
