//! A node catching up: owners of a segment compare what they hold, and each pulls what it lacks.
//!
//! The same three steps as the real thing, over the same functions of the replica and the same
//! digests: compare the parts of a segment, list what is here of the parts that differ, take in what is
//! not on the list. No step is remembered: whatever is lost on the way is made up for by the next round.

use crate::counts::Kind;
use crate::env::{Env, Index, MS, Packet, index_of};
use crate::node::Process;
use std::collections::BTreeSet;
use thrifty::core::digest::{PartSet, Parts, fingerprint};
use thrifty::core::layout::Phase;
use thrifty::core::token::{Epoch, Segment, Token};
use thrifty::replica::Page;

/// More than any segment here holds.
const EVERYTHING: usize = 1 << 20;

/// What owners say to each other while they compare a segment at an epoch.
#[derive(Clone, Debug)]
pub(crate) enum Repair {
    /// I have this.
    Compare(Box<Parts>),
    /// And I have that, which differs.
    Differs(Box<Parts>),
    /// Of these parts I have what is listed; what do I lack?
    List(PartSet, BTreeSet<u64>),
    /// This.
    Lacking(Page),
}

impl Repair {
    fn name(&self) -> String {
        match self {
            Repair::Compare(_) => "compare".into(),
            Repair::Differs(_) => "it differs".into(),
            Repair::List(parts, has) => format!("{} records of parts {:x}", has.len(), parts.0),
            Repair::Lacking(page) => format!("lacking {:?}", page.records),
        }
    }
}

impl Process {
    /// Time passes: compares all segments with all their owners, now and then.
    pub(crate) fn compare(&mut self, env: &mut Env) {
        // After the faults every ring catches up; before, some hardly ever do, or nothing would
        // ever differ for long.
        let every = if env.healed { 500 * MS } else { env.plan.repair_every };
        let layout = self.layout();
        if every == 0 || env.now < self.compare_at || layout.phase != Phase::Stable {
            return;
        }
        self.compare_at = env.now + every;
        for slot in layout.slots(self.id) {
            let Ok(parts) = self.replica.parts(layout.epoch, slot.segment) else { continue };
            for other in layout.current_owners(slot.segment).filter(|id| *id != self.id) {
                let say = Repair::Compare(Box::new(parts.clone()));
                self.say(index_of(other), layout.epoch, slot.segment, say, env);
            }
        }
    }

    fn say(&self, to: Index, epoch: Epoch, segment: Segment, say: Repair, env: &mut Env) {
        env.send(self.index, to, Packet::Repair { epoch, segment, say });
    }

    /// Another owner says something about a segment. What is of another epoch is passed over.
    pub(crate) fn hear_repair(
        &mut self,
        from: Index,
        epoch: Epoch,
        segment: Segment,
        said: Repair,
        env: &mut Env,
    ) {
        env.note(|| format!("{} hears from {from} of {segment:?} at {epoch}: {}", self.index, said.name()));
        let Ok(own) = self.replica.parts(epoch, segment) else {
            if let Repair::Lacking(page) = said {
                self.take_lacking(epoch, segment, page, env);
            }
            return;
        };
        match said {
            Repair::Compare(theirs) => {
                env.count(Kind::Compared);
                if own.differing(&theirs) != PartSet(0) {
                    self.say(from, epoch, segment, Repair::Differs(Box::new(own)), env);
                }
            }
            Repair::Differs(theirs) => {
                env.count(Kind::Differing);
                let parts = own.differing(&theirs);
                let Ok(page) = self.replica.snapshot(epoch, segment, None, EVERYTHING) else { return };
                let records = page.records.iter().map(|(key, record)| (Token::of(key), record.version));
                let has = records.filter(|(token, _)| parts.holds(*token));
                let has = has.map(|(token, version)| fingerprint(token, version)).collect();
                self.say(from, epoch, segment, Repair::List(parts, has), env);
            }
            Repair::List(parts, has) => {
                let Ok(mut page) = self.replica.snapshot(epoch, segment, None, EVERYTHING) else { return };
                page.records.retain(|(key, record)| {
                    let token = Token::of(key);
                    parts.holds(token) && !has.contains(&fingerprint(token, record.version))
                });
                self.say(from, epoch, segment, Repair::Lacking(page), env);
            }
            Repair::Lacking(page) => self.take_lacking(epoch, segment, page, env),
        }
    }

    fn take_lacking(&mut self, epoch: Epoch, segment: Segment, page: Page, env: &mut Env) {
        let Some(slot) = self.layout().slot(self.id, segment) else { return };
        let many = page.records.len() as u64;
        if self.replica.absorb(epoch, slot, page).is_ok() {
            env.counts.add(Kind::CaughtUp, many);
            self.keep_mark();
            self.sync_soon(env);
        }
    }
}
