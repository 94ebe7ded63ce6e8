//! What a node must remember to keep its promises: who it is, the layout it has installed, what it
//! voted, and how far its clock may have run.
//!
//! Four small blobs, each replaced as a whole and durable on return. A node without a disk keeps
//! them in memory and so starts under a new id: nothing that it forgot can be held against it.

use super::LocationError;
use crate::core::ballot::Vote;
use crate::core::clock::Stamp;
use crate::core::layout::{Kind, Layout};
use crate::core::node::{Generation, NodeId};
use crate::storage::StorageError;
use crate::storage::vault::Vault;
use crate::wire::convert::{self, Malformed};
use std::sync::Arc;

const IDENTITY: &str = "identity";
const LAYOUT: &str = "layout";
const VOTE: &str = "vote";
const CLOCK: &str = "clock";
const LEFT: &str = "left";
const REMOVED: &str = "removed";

/// The names of all of them.
#[cfg(any(feature = "fuzzing", all(test, feature = "gateway")))]
pub(crate) const BLOBS: [&str; 6] = [IDENTITY, LAYOUT, VOTE, CLOCK, LEFT, REMOVED];

/// No node lives so often; a generation above it is nonsense, and counting on from it would overflow.
const MAX_GENERATION: Generation = 1 << 62;

/// See the module's documentation.
#[derive(Clone)]
pub struct NodeState {
    vault: Arc<dyn Vault>,
    /// Who this is.
    pub id: NodeId,
    /// Which of its lives.
    pub generation: Generation,
    /// The layout it has installed.
    pub layout: Option<Arc<Layout>>,
    /// The last layout of a ring that it left or was removed from, in which to look for that ring.
    pub left: Option<Arc<Layout>>,
    /// What it voted about the epoch after the installed one.
    pub vote: Vote<Arc<Layout>>,
    /// Its clock was never ahead of this.
    pub clock_mark: Stamp,
}

impl std::fmt::Debug for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeState")
            .field("id", &self.id)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// What a directory remembers, without waking the node that it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// Nothing yet.
    Fresh,
    /// A member of a ring of this kind.
    Member(Kind),
    /// It left a ring of this kind.
    Left(Kind),
    /// It was removed from a ring of this kind: its data may be all that is left of something, so the
    /// directory is to be set aside.
    Removed(Kind),
}

fn load_layout(vault: &dyn Vault, name: &str) -> Result<Option<Arc<Layout>>, LocationError> {
    let Some(bytes) = vault.load(name)? else { return Ok(None) };
    Ok(Some(Arc::new(convert::layout_from_bytes(&bytes)?)))
}

/// Looks at what a directory remembers; changes nothing.
pub fn peek(vault: &dyn Vault) -> Result<(Memory, Option<String>), LocationError> {
    let named =
        |memory: fn(Kind) -> Memory, layout: &Layout| (memory(layout.kind), Some(layout.name.clone()));
    Ok(if let Some(layout) = removed_from(vault)? {
        named(Memory::Removed, &layout)
    } else if let Some(layout) = load_layout(vault, LAYOUT)? {
        named(Memory::Member, &layout)
    } else if let Some(layout) = load_layout(vault, LEFT)? {
        named(Memory::Left, &layout)
    } else {
        (Memory::Fresh, None)
    })
}

/// The last layout of the ring that the vault's node was removed from; `None` if it was not. A node that
/// starts over in its place is told with [`save_departure`] where to look.
pub fn removed_from(vault: &dyn Vault) -> Result<Option<Arc<Layout>>, LocationError> {
    load_layout(vault, REMOVED)
}

/// The id that a directory's node bears, as far as that can be read.
pub fn whose(vault: &dyn Vault) -> Option<NodeId> {
    parse_identity(&vault.load(IDENTITY).ok()??).map(|(id, _)| id)
}

/// The layout that a directory's node has installed.
pub fn installed(vault: &dyn Vault) -> Result<Option<Arc<Layout>>, LocationError> {
    load_layout(vault, LAYOUT)
}

impl NodeState {
    /// Wakes the node that the vault belongs to, or makes a new one: the generation is raised, and
    /// durable on return. A node that left its ring starts under a new id.
    pub fn open(vault: Arc<dyn Vault>) -> Result<Self, LocationError> {
        let layout = load_layout(&*vault, LAYOUT)?;
        let left = load_layout(&*vault, LEFT)?;
        let identity = match vault.load(IDENTITY)? {
            Some(bytes) => Some(parse_identity(&bytes).ok_or(Malformed::Range("the node's identity"))?),
            None => None,
        };
        let (id, generation) = match (identity, &layout) {
            (Some((id, generation)), Some(_)) => (id, generation + 1),
            (None, Some(_)) => return Err(Malformed::Missing("the node's identity").into()),
            (_, None) => (NodeId(rand::random()), 1),
        };
        let vote = match (&layout, vault.load(VOTE)?) {
            (Some(layout), Some(bytes)) => {
                let (target, vote) = convert::vote_from_bytes(&bytes)?;
                layout.recalls(target, vote)
            }
            _ => Vote::default(),
        };
        let clock_mark = match vault.load(CLOCK)? {
            Some(bytes) => bytes
                .try_into()
                .map(Stamp::from_be_bytes)
                .map_err(|_error| Malformed::Range("the clock's mark"))?,
            None => 0,
        };
        let mut state = NodeState { vault, id, generation, layout, left, vote, clock_mark };
        state.save_identity()?;
        state.left = state.left.filter(|_| state.layout.is_none());
        Ok(state)
    }

    /// Where it is written down.
    pub fn vault(&self) -> Arc<dyn Vault> {
        self.vault.clone()
    }

    fn save_identity(&self) -> Result<(), StorageError> {
        self.vault.save(IDENTITY, format!("{} {}\n", self.id, self.generation).as_bytes())
    }

    /// Raises the generation: this node was declared down and isn't.
    pub fn raise_generation(&mut self, to: Generation) -> Result<(), StorageError> {
        self.generation = self.generation.max(to);
        self.save_identity()
    }
}

fn parse_identity(bytes: &[u8]) -> Option<(NodeId, Generation)> {
    let (id, generation) = std::str::from_utf8(bytes).ok()?.trim_end().split_once(' ')?;
    let generation = generation.parse().ok().filter(|generation| *generation <= MAX_GENERATION)?;
    Some((id.parse().ok()?, generation))
}

/// Makes a layout the installed one.
pub fn save_layout(vault: &dyn Vault, layout: &Layout) -> Result<(), StorageError> {
    vault.save(LAYOUT, &convert::layout_bytes(layout))
}

/// Remembers what was voted about the epoch `target`.
pub fn save_vote(vault: &dyn Vault, target: u64, vote: &Vote<Arc<Layout>>) -> Result<(), StorageError> {
    vault.save(VOTE, &convert::vote_bytes(target, vote))
}

/// Remembers that the clock may have run up to here.
pub fn save_clock(vault: &dyn Vault, mark: Stamp) -> Result<(), StorageError> {
    vault.save(CLOCK, &mark.to_be_bytes())
}

/// Remembers that this node left its ring, and where the ring was then.
pub fn save_departure(vault: &dyn Vault, last: &Layout) -> Result<(), StorageError> {
    save_end(vault, LEFT, last)
}

/// Remembers that this node was removed from its ring, and where the ring was then.
pub fn save_removal(vault: &dyn Vault, last: &Layout) -> Result<(), StorageError> {
    save_end(vault, REMOVED, last)
}

fn save_end(vault: &dyn Vault, how: &str, last: &Layout) -> Result<(), StorageError> {
    vault.save(how, &convert::layout_bytes(last))?;
    vault.remove(VOTE)?;
    vault.remove(LAYOUT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ballot::Ballot;
    use crate::core::layout::tests::ring_of;
    use crate::storage::vault::MemoryVault;

    #[test]
    fn a_member_wakes_as_itself_with_a_higher_generation() {
        let vault: Arc<dyn Vault> = Arc::new(MemoryVault::new());
        let first = NodeState::open(vault.clone()).unwrap();
        let layout = ring_of(3, 3, 8);
        let vote = Vote { promised: Ballot::new(3, first.id), accepted: None };
        save_layout(&*vault, &layout).unwrap();
        save_vote(&*vault, layout.epoch + 1, &vote).unwrap();
        save_clock(&*vault, 77).unwrap();
        let again = NodeState::open(vault.clone()).unwrap();
        assert_eq!((again.id, again.generation), (first.id, first.generation + 1));
        assert_eq!((again.vote, again.clock_mark), (vote, 77));
        assert_eq!(again.layout.as_deref(), Some(&layout));
        save_layout(&*vault, &layout.dual(&[], &[NodeId(1)].into()).unwrap()).unwrap();
        assert_eq!(
            NodeState::open(vault).unwrap().vote,
            Vote::default(),
            "a vote about another epoch is void"
        );
    }

    #[test]
    fn an_identity_that_makes_no_sense_is_refused() {
        for bad in [&b""[..], b"\xff", b"00000000000000000000000000000001", b"1 1"] {
            assert_eq!(parse_identity(bad), None, "{bad:?}");
        }
        let identity = |generation: u64| format!("{} {generation}\n", NodeId(1)).into_bytes();
        assert_eq!(parse_identity(&identity(MAX_GENERATION)), Some((NodeId(1), MAX_GENERATION)));
        assert_eq!(parse_identity(&identity(u64::MAX)), None);
    }

    #[test]
    fn a_member_that_does_not_know_who_it_is_does_not_wake() {
        let vault: Arc<dyn Vault> = Arc::new(MemoryVault::new());
        save_layout(&*vault, &ring_of(3, 3, 8)).unwrap();
        assert!(matches!(NodeState::open(vault), Err(LocationError::Damaged(_))));
    }

    #[test]
    fn votes_of_the_ring_before_a_forced_removal_are_void() {
        let vault: Arc<dyn Vault> = Arc::new(MemoryVault::new());
        NodeState::open(vault.clone()).unwrap();
        let ring = ring_of(3, 3, 8);
        let forced = ring.forced(crate::core::node::RingId(99), &[NodeId(1)].into()).unwrap();
        assert!(forced.succeeds(ring.ring) && !ring.succeeds(forced.ring));
        let accepted = Arc::new(ring.dual(&[], &[NodeId(2)].into()).unwrap());
        let vote = Vote {
            promised: Ballot::new(1, NodeId(1)),
            accepted: Some((Ballot::new(1, NodeId(1)), accepted)),
        };
        save_vote(&*vault, forced.epoch + 1, &vote).unwrap();
        save_layout(&*vault, &forced).unwrap();
        assert_eq!(NodeState::open(vault).unwrap().vote, Vote::default());
    }

    #[test]
    fn the_directory_of_a_removed_node_says_so_until_the_end() {
        let vault: Arc<dyn Vault> = Arc::new(MemoryVault::new());
        let layout = ring_of(3, 3, 8);
        save_layout(&*vault, &layout).unwrap();
        save_removal(&*vault, &layout).unwrap();
        assert_eq!(peek(&*vault).unwrap().0, Memory::Removed(Kind::Store));
        assert_eq!(removed_from(&*vault).unwrap().as_deref(), Some(&layout));
        let fresh = MemoryVault::new();
        save_departure(&fresh, &layout).unwrap();
        assert_eq!(peek(&fresh).unwrap().0, Memory::Left(Kind::Store));
    }

    #[test]
    fn who_left_comes_back_as_somebody_else_and_knows_the_ring() {
        let vault: Arc<dyn Vault> = Arc::new(MemoryVault::new());
        let first = NodeState::open(vault.clone()).unwrap();
        let layout = ring_of(3, 3, 8);
        save_layout(&*vault, &layout).unwrap();
        assert_eq!(peek(&*vault).unwrap().0, Memory::Member(Kind::Store));
        save_departure(&*vault, &layout).unwrap();
        assert_eq!(peek(&*vault).unwrap().0, Memory::Left(Kind::Store));
        let again = NodeState::open(vault).unwrap();
        assert_ne!(again.id, first.id);
        assert!(again.layout.is_none() && again.left.is_some());
    }
}
