//! From one phase of a change to the next.

use super::{Cell, Layout, MAX_MEMBERS, Member, Phase, Replicas, Standing, Table};
use crate::core::node::NodeId;
use crate::core::placement::{self, Seat};
use std::collections::{BTreeMap, BTreeSet};

impl Layout {
    /// The Dual that takes `joins` in and lets `leaves` go; with neither, the one that fills rows which are
    /// short. `None` if nothing would change or nobody would remain.
    pub fn dual(&self, joins: &[Member], leaves: &BTreeSet<NodeId>) -> Option<Layout> {
        debug_assert_eq!(self.phase, Phase::Stable);
        let epoch = self.epoch + 1;
        let mut members: BTreeMap<NodeId, Member> = BTreeMap::new();
        for member in joins {
            members.insert(member.id, Member { standing: Standing::Joining, ..member.clone() });
        }
        for member in &self.members {
            let standing = if leaves.contains(&member.id) { Standing::Leaving } else { Standing::Staying };
            members.insert(member.id, Member { standing, ..member.clone() });
        }
        let members: Vec<Member> = members.into_values().collect();
        let remain = members.iter().any(|m| m.standing != Standing::Leaving);
        if !remain || members.len() > MAX_MEMBERS {
            return None;
        }

        // Indexes: of the old members, of the new, and of the seats at the new table.
        let index = |id: NodeId| members.binary_search_by_key(&id, |m| m.id).unwrap_or(0);
        let from_old: Vec<usize> = self.ids().map(index).collect();
        let seated: Vec<usize> =
            (0..members.len()).filter(|&i| members[i].standing != Standing::Leaving).collect();
        let seat_of = |member: usize| seated.binary_search(&member).ok().map(|seat| seat as u16);
        let seats: Vec<Seat> = seated
            .iter()
            .map(|&i| Seat { zone: members[i].zone.clone(), weight: members[i].weight })
            .collect();

        let reindexed = |cell: &Cell| Cell { member: from_old[usize::from(cell.member)] as u16, ..*cell };
        let current: Vec<Vec<Cell>> =
            self.current.rows().map(|row| row.iter().map(reindexed).collect()).collect();
        let old: Vec<Vec<u16>> = current
            .iter()
            .map(|row| row.iter().filter_map(|cell| seat_of(usize::from(cell.member))).collect())
            .collect();
        let count = match self.replicas {
            Replicas::All => None,
            Replicas::Count(count) => Some(count),
        };
        let placed = placement::place(&old, &seats, count);
        let moves = members.iter().any(|m| m.standing != Standing::Staying);
        let fills = placed.iter().zip(&current).any(|(owners, before)| owners.len() > before.len());
        if !(moves || fills) {
            return None;
        }
        let next = placed.iter().zip(&current).map(|(owners, before)| {
            let cell = |&seat: &u16| {
                let member = seated[usize::from(seat)] as u16;
                let kept = before.iter().find(|cell| cell.member == member);
                kept.copied().unwrap_or(Cell { member, acquired: epoch })
            };
            owners.iter().map(cell).collect()
        });
        Some(Layout {
            epoch,
            phase: Phase::Dual,
            next: Some(Table::new(next.collect())),
            current: Table::new(current),
            members,
            name: self.name.clone(),
            former: self.former.clone(),
            ..*self
        })
    }

    /// The ReadNew that follows this Dual.
    pub fn read_new(&self) -> Layout {
        debug_assert_eq!(self.phase, Phase::Dual);
        Layout { epoch: self.epoch + 1, phase: Phase::ReadNew, ..self.clone() }
    }

    /// The Stable layout of the next table, which ends this transition.
    pub fn settled(&self) -> Layout {
        self.ended(self.next.as_ref().unwrap_or(&self.current), Standing::Leaving)
    }

    /// The Stable layout of the current table, which gives this transition up.
    pub fn aborted(&self) -> Layout {
        self.ended(&self.current, Standing::Joining)
    }

    fn ended(&self, table: &Table, gone: Standing) -> Layout {
        let stays = |m: &&Member| m.standing != gone;
        let mut new_index = vec![0u16; self.members.len()];
        for (new, (old, _)) in self.members.iter().enumerate().filter(|(_, m)| stays(m)).enumerate() {
            new_index[old] = new as u16;
        }
        let moved = |cell: &Cell| Cell { member: new_index[usize::from(cell.member)], ..*cell };
        Layout {
            epoch: self.epoch + 1,
            phase: Phase::Stable,
            members: self
                .members
                .iter()
                .filter(stays)
                .map(|m| Member { standing: Standing::Staying, ..m.clone() })
                .collect(),
            current: Table::new(table.rows().map(|row| row.iter().map(moved).collect()).collect()),
            next: None,
            name: self.name.clone(),
            former: self.former.clone(),
            ..*self
        }
    }
}
