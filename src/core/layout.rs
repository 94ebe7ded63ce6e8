//! The agreed table: which nodes own which segment, and how far the ring is on its way from one
//! such table to the next.
//!
//! A layout is a value. There is one per epoch; how its successor is chosen is the business of
//! [`ballot`](super::ballot), what the successor should be that of [`transition`](super::transition).
//! Here is what a layout *means*: which sets of owners a request must satisfy, who pulls what from
//! whom, under which slot a node keeps a segment.
//!
//! The table is explicit rather than computed from the members, so that a client in any language
//! routes with an MD5 and an array index, and so that placement may improve without moving data.
//!
//! | phase | a write needs a majority of | a read asks a majority of |
//! | --- | --- | --- |
//! | Stable | current | current |
//! | Dual | current and of next | current |
//! | ReadNew | current and of next | next |
//!
//! Left out on purpose: any notion of which members are alive. A layout does not change because a
//! node is down, only because a majority agreed to change it.

mod change;
mod forced;
mod valid;

use crate::core::mutants::{Mutant, planted};
use crate::core::node::{Address, NodeId, RingId};
use crate::core::quorum::{LiveSet, majority};
use crate::core::token::{Epoch, Segment, SegmentCount, Slot, Token};
use std::collections::BTreeSet;

/// The most members a ring may have: indexes are 16 bits wide and one value means "vacant".
pub const MAX_MEMBERS: usize = u16::MAX as usize;

/// No ring gets so far; an epoch above it is nonsense from outside, and counting on from it would
/// overflow.
const MAX_EPOCH: Epoch = 1 << 62;

/// The greatest weight of a member.
pub const MAX_WEIGHT: u32 = 1_000_000;

/// How many of its former ids a ring remembers: forced removals are rare, and a node that missed so
/// many of them is looked after by a person.
pub const MAX_FORMER: usize = 16;

/// The longest ring name and zone name, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// How many owners each segment has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replicas {
    /// Every member holds every key.
    All,
    /// This many distinct nodes, or all members while there are fewer.
    Count(u16),
}

impl Replicas {
    /// Owners per segment in a ring of so many members.
    pub fn of(self, members: usize) -> usize {
        match self {
            Replicas::All => members,
            Replicas::Count(count) => members.min(usize::from(count)),
        }
    }
}

/// What the members of a ring are: the two kinds never mix in one ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nodes of the location service alone.
    Location,
    /// Nodes that store keys.
    Store,
}

impl Kind {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Location => "location",
            Kind::Store => "store",
        }
    }
}

/// Where the ring is between two tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// One table.
    Stable,
    /// Two tables; writes go to both, reads ask the old one; newcomers pull.
    Dual,
    /// Two tables; writes go to both, reads ask the new one.
    ReadNew,
}

impl Phase {
    /// As it is printed and sent.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Stable => "stable",
            Phase::Dual => "dual",
            Phase::ReadNew => "read_new",
        }
    }
}

/// In which of the two tables a member has its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// In both, or in the one there is.
    Staying,
    /// In the next table only.
    Joining,
    /// In the current table only.
    Leaving,
}

/// One member as the layout knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Who.
    pub id: NodeId,
    /// Where it was last known to listen: a hint.
    pub address: Address,
    /// Segments are spread over distinct zones while there are enough.
    pub zone: String,
    /// Its share of the segments, relative to the others'.
    pub weight: u32,
    /// Whether it keeps its data over a restart.
    pub durable: bool,
    /// In which of the tables it is.
    pub standing: Standing,
}

/// One owner's entry: who, and since which epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cell {
    /// Index into the layout's members.
    pub member: u16,
    /// The epoch at which it acquired the segment.
    pub acquired: Epoch,
}

/// Segment → owners, in preference order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    rows: Vec<Box<[Cell]>>,
}

impl Table {
    /// A table of one row of cells per segment.
    pub fn new(rows: Vec<Vec<Cell>>) -> Self {
        Table { rows: rows.into_iter().map(Vec::into_boxed_slice).collect() }
    }

    /// The owners' entries of a segment; empty past the end.
    pub fn row(&self, segment: Segment) -> &[Cell] {
        self.rows.get(segment.index()).map_or(&[], |row| row)
    }

    /// All rows, in order of segments.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[Cell]> + Clone {
        self.rows.iter().map(|row| &row[..])
    }
}

/// See the module's documentation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Which ring.
    pub ring: RingId,
    /// The ids that it bore before forced removals, the oldest first.
    pub former: Vec<RingId>,
    /// Its name, as people give it.
    pub name: String,
    /// What its members are.
    pub kind: Kind,
    /// The number of this layout.
    pub epoch: Epoch,
    /// Owners per segment.
    pub replicas: Replicas,
    /// Q.
    pub segments: SegmentCount,
    /// Who is in either table, by id.
    pub members: Vec<Member>,
    /// Where the ring is between the two tables.
    pub phase: Phase,
    /// The table before the change, or the only one.
    pub current: Table,
    /// The table after the change; present unless Stable.
    pub next: Option<Table>,
    /// The newest epoch at which tombstones were collected; 0 = never. A request begun before it
    /// must not be sent again after it.
    pub collected: Epoch,
}

/// Why a layout from outside is no layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid layout: {0}")]
pub struct BadLayout(pub &'static str);

/// The segments one node has to gather in a Dual, and from whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pull {
    /// Where the puller keeps what it gathers.
    pub slot: Slot,
    /// Old owners other than the puller, the best source first.
    pub sources: Vec<NodeId>,
    /// How many of them must be gathered from.
    pub need: usize,
}

impl Layout {
    /// The first layout of a new ring: one member that owns everything.
    pub fn first(
        ring: RingId,
        name: String,
        kind: Kind,
        replicas: Replicas,
        segments: SegmentCount,
        member: Member,
    ) -> Self {
        let row = vec![Cell { member: 0, acquired: 1 }];
        Layout {
            ring,
            former: Vec::new(),
            name,
            kind,
            epoch: 1,
            replicas,
            segments,
            members: vec![Member { standing: Standing::Staying, ..member }],
            phase: Phase::Stable,
            current: Table::new(vec![row; segments.get()]),
            next: None,
            collected: 0,
        }
    }

    /// The segment of a key.
    pub fn segment(&self, key: &[u8]) -> Segment {
        self.segments.segment(Token::of(key))
    }

    /// A member by its id.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.binary_search_by_key(&id, |m| m.id).ok().map(|i| &self.members[i])
    }

    /// The members' ids, in order.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> {
        self.members.iter().map(|m| m.id)
    }

    /// Whether the node is in the table before, the table after, or both.
    pub fn is_member(&self, id: NodeId) -> bool {
        self.member(id).is_some()
    }

    fn nodes<'a>(&'a self, table: &'a Table, segment: Segment) -> impl Iterator<Item = NodeId> + 'a {
        table.row(segment).iter().map(|cell| self.members[usize::from(cell.member)].id)
    }

    /// Owners in the current table, the primary first.
    pub fn current_owners(&self, segment: Segment) -> impl Iterator<Item = NodeId> {
        self.nodes(&self.current, segment)
    }

    /// Owners in the next table; none in a Stable layout.
    pub fn next_owners(&self, segment: Segment) -> impl Iterator<Item = NodeId> {
        self.next.iter().flat_map(move |next| self.nodes(next, segment))
    }

    /// The owners that reads ask.
    pub fn read_owners(&self, segment: Segment) -> Vec<NodeId> {
        match self.phase {
            Phase::Dual if planted(Mutant::DualReadsNextOwners) => self.next_owners(segment).collect(),
            Phase::Stable | Phase::Dual => self.current_owners(segment).collect(),
            Phase::ReadNew => self.next_owners(segment).collect(),
        }
    }

    /// The sets of owners of which a write needs a majority each. The first is the current one.
    pub fn live_sets(&self, segment: Segment) -> Vec<LiveSet> {
        let mut sets = vec![LiveSet::new(self.current_owners(segment).collect())];
        if self.next.is_some() && !planted(Mutant::DualWritesOldSetOnly) {
            sets.push(LiveSet::new(self.next_owners(segment).collect()));
        }
        sets
    }

    /// Whether a node may coordinate requests for a segment: as an owner in the read set. The clock of one that
    /// has not gathered yet may be below what the owners have forgotten.
    pub fn may_coordinate(&self, node: NodeId, segment: Segment) -> bool {
        self.read_owners(segment).contains(&node)
    }

    /// Who [may](Layout::may_coordinate) coordinate requests for a segment, the best first: those that are in
    /// every live set.
    pub fn coordinators(&self, segment: Segment) -> Vec<NodeId> {
        let mut owners = self.read_owners(segment);
        if let Some(next) = &self.next {
            let in_both = |id: &NodeId| {
                self.nodes(next, segment).any(|n| n == *id) && self.current_owners(segment).any(|n| n == *id)
            };
            owners.sort_by_key(|id| !in_both(id)); // stable: preference order remains within each half
        }
        owners
    }

    /// The slot under which a node keeps a segment at this epoch; `None` if it doesn't own it.
    pub fn slot(&self, node: NodeId, segment: Segment) -> Option<Slot> {
        let index = self.members.binary_search_by_key(&node, |m| m.id).ok()?;
        self.slot_of(index as u16, segment)
    }

    fn slot_of(&self, member: u16, segment: Segment) -> Option<Slot> {
        let tables = [Some(&self.current), self.next.as_ref()];
        let mut cells = tables.into_iter().flatten().flat_map(|table| table.row(segment));
        let epochs = u64::from(!planted(Mutant::LeftoversMerged));
        cells
            .find(|cell| cell.member == member)
            .map(|cell| Slot { segment, acquired: cell.acquired * epochs })
    }

    /// All slots that a node keeps at this epoch, in order of segments.
    pub fn slots(&self, node: NodeId) -> Vec<Slot> {
        let Ok(index) = self.members.binary_search_by_key(&node, |m| m.id) else { return Vec::new() };
        self.segments.all().filter_map(|segment| self.slot_of(index as u16, segment)).collect()
    }

    /// How many segments each member owns in the table that comes last, in order of members.
    pub fn shares(&self) -> Vec<usize> {
        let mut shares = vec![0; self.members.len()];
        for cell in self.next.as_ref().unwrap_or(&self.current).rows().flatten() {
            shares[usize::from(cell.member)] += 1;
        }
        shares
    }

    /// How many segments have fewer owners in the current table than its members could give them, as a forced
    /// removal leaves them.
    pub fn short(&self) -> usize {
        let members = self.members.iter().filter(|m| m.standing != Standing::Joining).count();
        let full = self.replicas.of(members);
        self.current.rows().filter(|row| row.len() < full).count()
    }

    /// Who votes on the layout after this one.
    pub fn voters(&self) -> Vec<NodeId> {
        let gone = match self.phase {
            Phase::Stable | Phase::Dual => Standing::Joining,
            Phase::ReadNew => Standing::Leaving,
        };
        self.members.iter().filter(|m| m.standing != gone).map(|m| m.id).collect()
    }

    /// Who gathers a segment in a Dual: its newcomers, if the majorities then still meet without
    /// the other owners' help; otherwise all its owners in the next table.
    pub fn pullers(&self, segment: Segment) -> Vec<NodeId> {
        let old: Vec<_> = self.current_owners(segment).collect();
        let new: Vec<_> = self.next_owners(segment).collect();
        let newcomers: Vec<_> = new.iter().copied().filter(|id| !old.contains(id)).collect();
        let kept = new.len() - newcomers.len();
        let surely_there = (majority(old.len()) + kept + newcomers.len()).saturating_sub(old.len());
        let enough = surely_there >= majority(new.len()) || planted(Mutant::NewcomersAlwaysSuffice);
        if enough { newcomers } else { new }
    }

    /// Which members must have gathered their segments before reads may ask the next table.
    pub fn all_pullers(&self) -> BTreeSet<NodeId> {
        if self.phase != Phase::Dual {
            return BTreeSet::new();
        }
        self.segments.all().flat_map(|segment| self.pullers(segment)).collect()
    }

    /// What one node must gather in this Dual. A leaver comes first among the sources: what only
    /// it holds then survives its leaving.
    pub fn pulls(&self, me: NodeId) -> Vec<Pull> {
        if self.phase != Phase::Dual {
            return Vec::new();
        }
        let pull = |segment: Segment| {
            if !self.pullers(segment).contains(&me) {
                return None;
            }
            let slot = self.slot(me, segment)?;
            let old: Vec<_> = self.current_owners(segment).collect();
            let all = old.len() - majority(old.len()) + usize::from(!planted(Mutant::OneSourceTooFew));
            let need = all - usize::from(old.contains(&me));
            let mut sources: Vec<_> = old.into_iter().filter(|id| *id != me).collect();
            sources.sort_by_key(|id| self.member(*id).is_some_and(|m| m.standing != Standing::Leaving));
            Some(Pull { slot, sources, need })
        };
        self.segments.all().filter_map(pull).collect()
    }

    /// Whether enough old owners have installed this ReadNew that no read of the old table can
    /// succeed any more. `installed` says which nodes have.
    pub fn old_reads_are_over(&self, installed: &BTreeSet<NodeId>) -> bool {
        self.segments.all().all(|segment| {
            let old: Vec<_> = self.current_owners(segment).collect();
            let there = old.iter().filter(|id| installed.contains(id)).count();
            there + usize::from(planted(Mutant::ReadNewLeftEarly)) > old.len() - majority(old.len())
        })
    }

    /// Whether every segment would still have enough live old owners to gather from.
    pub fn can_be_gathered(&self, alive: impl Fn(NodeId) -> bool) -> bool {
        self.segments.all().all(|segment| {
            let old: Vec<_> = self.current_owners(segment).collect();
            let there = old.iter().filter(|id| alive(**id)).count();
            there > old.len() - majority(old.len())
        })
    }

    /// How many more nodes may fail, in the worst case, before some segment lacks a quorum: the
    /// least over segments and live sets of owners that are up, minus a majority.
    pub fn may_lose(&self, up: impl Fn(NodeId) -> bool) -> usize {
        let up: Vec<bool> = self.ids().map(up).collect();
        let spare = |row: &[Cell]| {
            let there = row.iter().filter(|cell| up[usize::from(cell.member)]).count();
            there.saturating_sub(majority(row.len()))
        };
        let rows = self.current.rows().chain(self.next.iter().flat_map(Table::rows));
        rows.map(spare).min().unwrap_or(0)
    }

    /// Whether a node that this layout was taking in may ask again as who it is, once the layout `after`
    /// is without it: in a Dual it has not voted yet, so that nothing can be held against it.
    pub fn asks_again(&self, joiner: NodeId, after: &Layout) -> bool {
        let joining = self.member(joiner).is_some_and(|m| m.standing == Standing::Joining);
        self.phase == Phase::Dual && joining && !after.is_member(joiner)
    }

    /// Whether a majority of those who vote on the next layout is among these nodes: without one
    /// the ring can't change any more.
    pub fn has_majority(&self, alive: impl Fn(NodeId) -> bool) -> bool {
        let voters = self.voters();
        voters.iter().filter(|id| alive(**id)).count() >= majority(voters.len())
    }
}

#[cfg(test)]
pub(crate) mod tests;
