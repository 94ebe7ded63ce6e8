//! What makes sense as a layout.

use super::{
    BadLayout, Layout, MAX_EPOCH, MAX_FORMER, MAX_MEMBERS, MAX_NAME_BYTES, Phase, Replicas, Standing, Table,
};

impl Layout {
    /// Checks what the rest of the program relies on, for layouts from outside.
    pub fn validate(&self) -> Result<(), BadLayout> {
        let check = |holds: bool, what| if holds { Ok(()) } else { Err(BadLayout(what)) };
        check((1..=MAX_EPOCH).contains(&self.epoch), "its epoch is out of range")?;
        check(
            !self.name.is_empty() && self.name.len() <= MAX_NAME_BYTES,
            "the ring's name is empty or too long",
        )?;
        check(self.collected <= self.epoch, "it collects in the future")?;
        check(!self.members.is_empty() && self.members.len() <= MAX_MEMBERS, "no members, or too many")?;
        check(self.members.is_sorted_by(|a, b| a.id < b.id), "members out of order")?;
        check(self.members.iter().all(|m| m.zone.len() <= MAX_NAME_BYTES), "a zone name is too long")?;
        check(self.next.is_some() == (self.phase != Phase::Stable), "phase and tables do not fit")?;
        check(self.replicas != Replicas::Count(0), "no replicas")?;
        let own_successor = self.former.contains(&self.ring);
        check(self.former.len() <= MAX_FORMER && !own_successor, "its former ids make no sense")?;
        let staying = self.members.iter().all(|m| m.standing == Standing::Staying);
        check(self.phase != Phase::Stable || staying, "a stable layout with members on the move")?;
        self.validate_table(&self.current, Standing::Joining)?;
        self.next.as_ref().map_or(Ok(()), |next| self.validate_table(next, Standing::Leaving))
    }

    fn validate_table(&self, table: &Table, excluded: Standing) -> Result<(), BadLayout> {
        if table.rows().len() != self.segments.get() {
            return Err(BadLayout("the table's length is not the number of segments"));
        }
        for row in table.rows() {
            if row.is_empty() {
                return Err(BadLayout("a segment without owners"));
            }
            for (i, cell) in row.iter().enumerate() {
                let member = self.members.get(usize::from(cell.member));
                let fits = member.is_some_and(|m| m.standing != excluded);
                if !fits || cell.acquired > self.epoch || row[..i].iter().any(|c| c.member == cell.member) {
                    return Err(BadLayout("an owner is no member of the table, doubled, or from the future"));
                }
            }
        }
        Ok(())
    }
}
