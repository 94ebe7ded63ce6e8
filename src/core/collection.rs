//! When a tombstone may be forgotten.
//!
//! A tombstone holds back every older value of its key that still travels or lies somewhere. It may
//! go once nothing older can turn up any more, and then all at once: at a *collecting* layout,
//! which is Stable, has the table of the one before it, and differs from it in that
//!
//! - requests begun before it are not sent again at it ([`Write::installed`](super::write::Write::installed)),
//! - and what is still on its way from before it is fenced, as at every new layout.
//!
//! Only what every owner of the segment was found to hold, durably, at an earlier layout goes: an
//! owner that holds a version takes no older one in its place, so that no older one is left with any
//! owner. And it goes only when all members have installed the collecting layout, so that none serves at
//! an older epoch any more, nor comes back to one. Whether it goes everywhere does not matter: what one
//! owner still holds is that very record, which reads as absent and spreads to the others again.
//!
//! A record that has expired is collected likewise, if all owners' clocks say that it has.

use crate::core::layout::{Cell, Layout, Phase};
use crate::core::node::NodeId;
use crate::core::token::{Epoch, Segment};

impl Layout {
    /// The collecting layout that may follow this Stable one.
    pub fn collecting(&self) -> Layout {
        debug_assert_eq!(self.phase, Phase::Stable);
        Layout { epoch: self.epoch + 1, collected: self.epoch + 1, ..self.clone() }
    }

    /// Whether this is a collecting layout.
    pub fn collects(&self) -> bool {
        self.phase == Phase::Stable && self.collected == self.epoch
    }

    /// Whether what all owners of a segment were found to hold at the layout `found` may be dropped
    /// at this one, once all members have installed it.
    pub fn may_drop(&self, found: &Layout, segment: Segment) -> bool {
        let owners = |layout: &Layout| -> Vec<(NodeId, Epoch)> {
            let owner = |cell: &Cell| (layout.members[usize::from(cell.member)].id, cell.acquired);
            let mut owners: Vec<_> = layout.current.row(segment).iter().map(owner).collect();
            owners.sort_unstable();
            owners
        };
        self.collects()
            && found.phase == Phase::Stable
            && found.ring == self.ring
            && found.epoch < self.epoch
            && owners(found) == owners(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::layout::tests::{member, ring_of};
    use crate::core::node::RingId;
    use std::collections::BTreeSet;

    #[test]
    fn a_collecting_layout_has_the_same_table_and_is_remembered() {
        let ring = ring_of(3, 3, 8);
        let collecting = ring.collecting();
        collecting.validate().unwrap();
        assert!(collecting.collects() && !ring.collects());
        assert_eq!((collecting.epoch, &collecting.current), (ring.epoch + 1, &ring.current));
        let dual = collecting.dual(&[member(4)], &BTreeSet::new()).unwrap();
        for later in [dual.clone(), dual.read_new(), dual.read_new().settled(), dual.aborted()] {
            assert_eq!(later.collected, collecting.epoch);
            assert!(!later.collects());
        }
    }

    #[test]
    fn only_what_the_same_owners_held_at_an_earlier_stable_layout_is_dropped() {
        let ring = ring_of(3, 3, 8);
        let collecting = ring.collecting();
        let at = Segment(0);
        assert!(collecting.may_drop(&ring, at));
        assert!(collecting.collecting().may_drop(&ring, at));
        assert!(!collecting.may_drop(&collecting, at), "not what was found at this very layout");
        assert!(!collecting.may_drop(&collecting.collecting(), at));
        assert!(!ring.may_drop(&ring, at), "this one does not collect");
        assert!(!collecting.may_drop(&Layout { ring: RingId(99), ..ring.clone() }, at));
        let dual = ring.dual(&[member(4)], &BTreeSet::from([NodeId(1)])).unwrap();
        let settled = dual.read_new().settled();
        assert!(!settled.collecting().may_drop(&ring, at), "another node has come");
        assert!(!settled.collecting().may_drop(&dual, at), "that was not Stable");
        assert!(settled.collecting().may_drop(&settled, at));
        // The same node, but it was away in between.
        let back = settled.dual(&[member(1)], &BTreeSet::from([NodeId(4)])).unwrap().read_new().settled();
        assert!(!back.collecting().may_drop(&ring, at));
        let aborted = ring.dual(&[member(4)], &BTreeSet::new()).unwrap().aborted();
        assert!(aborted.collecting().may_drop(&ring, at), "nobody came or went");
    }
}
