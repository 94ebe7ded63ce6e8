//! Forced removals: how a ring goes on without its majority, and who follows.
//!
//! The survivors go on under a new id and remember the former ones. Nobody asks those who are gone, so
//! that they may be alive after all, and their ring with them. Nodes never move but from a ring to one that
//! succeeds it.

use super::{Cell, Layout, MAX_FORMER, Phase, Standing, Table};
use crate::core::ballot::Vote;
use crate::core::mutants::{Mutant, planted};
use crate::core::node::{NodeId, RingId};
use crate::core::quorum::majority;
use crate::core::token::{Epoch, Segment};
use std::collections::BTreeSet;
use std::sync::Arc;

/// After a forced removal epochs go on later by a multiple of this, which no ring gets to by itself: should
/// the old one go on as well, no epoch is in both, and all that its nodes still send is stale.
pub(super) const LINEAGE: Epoch = 1 << 32;

/// The multiple depends on the new ring's id, so that of two removals forced at once the rings, too, have
/// hardly ever an epoch in common.
const LINEAGES: u128 = 1 << 16;

impl Layout {
    /// The Stable layout of a new lineage among survivors: the members that are not `gone`, each
    /// with what it held for reads, or, where no owner is left that reads ask, for the other table. What only
    /// the others held is lost. `None` if nobody survives.
    pub fn forced(&self, ring: RingId, gone: &BTreeSet<NodeId>) -> Option<Layout> {
        let mut layout = self.clone();
        for member in &mut layout.members {
            let out = gone.contains(&member.id);
            member.standing = if out { Standing::Leaving } else { Standing::Staying };
        }
        let heirs: Vec<u16> = (0..layout.members.len())
            .filter(|&i| layout.members[i].standing == Standing::Staying)
            .map(|i| i as u16)
            .collect();
        let heir = *heirs.first()?;
        let epoch = self.forced_epoch(ring);
        let mut tables: Vec<&Table> =
            [Some(&self.current), self.next.as_ref()].into_iter().flatten().collect();
        if self.phase == Phase::ReadNew {
            tables.reverse();
        }
        let row = |segment: Segment| {
            let kept = tables.iter().map(|table| {
                let cells = table.row(segment).iter().copied();
                cells.filter(|cell| heirs.contains(&cell.member)).collect::<Vec<Cell>>()
            });
            let first = kept.into_iter().find(|cells| !cells.is_empty());
            first.unwrap_or_else(|| vec![Cell { member: heir, acquired: epoch }])
        };
        layout.current = Table::new(self.segments.all().map(row).collect());
        layout.next = None;
        layout.former.push(self.ring);
        let surplus = layout.former.len().saturating_sub(MAX_FORMER);
        layout.former.drain(..surplus);
        Some(Layout { ring, epoch, ..layout.settled() })
    }

    fn forced_epoch(&self, ring: RingId) -> Epoch {
        let lineage = LINEAGE * (1 + (ring.0 % LINEAGES) as Epoch);
        self.epoch + if planted(Mutant::LineagesShareEpochs) { 1 } else { lineage }
    }

    /// Whom a forced removal at the member `me` drops: all who did not answer with the epoch that they are
    /// at. `None` while somebody is ahead, for then the ring is changing.
    pub fn unreachable(
        &self,
        me: NodeId,
        answered: impl Fn(NodeId) -> Option<Epoch>,
    ) -> Option<BTreeSet<NodeId>> {
        let others = || self.ids().filter(|id| *id != me);
        let ahead = others().any(|id| answered(id).is_some_and(|epoch| epoch > self.epoch));
        (!ahead).then(|| others().filter(|id| answered(*id).is_none()).collect())
    }

    /// Whether all that was acknowledged of a segment is with a majority of those of its owners that remain
    /// without `gone`, as it has to be once they are all its owners. That takes that every majority of the
    /// owners has so many of them, and that those who are gone can't have handed the segment over to others and
    /// gone on without telling.
    pub fn remains_whole(&self, segment: Segment, gone: &BTreeSet<NodeId>) -> bool {
        let owners = self.read_owners(segment);
        let lost = owners.iter().filter(|id| gone.contains(id)).count();
        let enough = lost < owners.len() && lost + majority(owners.len() - lost) <= majority(owners.len());
        let went_on =
            lost + majority(owners.len()) > owners.len() && self.has_majority(|id| gone.contains(&id));
        enough && !went_on
    }

    /// Whether the member `me` survives into the lineage that a forced removal of others begins with `forced`,
    /// and that was made of exactly this layout. One made of an older layout would take back what was
    /// installed since, and drop what members gained by that.
    pub fn survives_into(&self, forced: &Layout, me: NodeId) -> bool {
        let of_this =
            forced.former.last() == Some(&self.ring) && forced.epoch == self.forced_epoch(forced.ring);
        of_this && forced.is_member(me)
    }

    /// Whether this is a layout of the ring that came of `ring` by forced removals.
    pub fn succeeds(&self, ring: RingId) -> bool {
        self.former.contains(&ring)
    }

    /// Whether a member of this ring follows a layout that succeeds it by a forced removal: not while this
    /// ring has a majority, for then the removal was forced in error, and what is acknowledged here
    /// must not be given up for it.
    pub fn gives_way_to(&self, successor: &Layout, alive: impl Fn(NodeId) -> bool) -> bool {
        let needed = !self.has_majority(alive) || planted(Mutant::MajorityGivesWay);
        successor.succeeds(self.ring) && needed
    }

    /// What a vote about the layout of epoch `target` counts after a restart at this layout: nothing, if it was
    /// about another one or of a ring that this one succeeds.
    pub fn recalls(&self, target: Epoch, vote: Vote<Arc<Layout>>) -> Vote<Arc<Layout>> {
        let ours = vote.accepted.as_ref().is_none_or(|(_, of)| of.ring == self.ring);
        if target == self.epoch + 1 && ours { vote } else { Vote::default() }
    }
}
