//! What the layout should become next, and when: the claimant's desk.
//!
//! Every node keeps a desk, so that any can take over; only the claimant (the live voter with the
//! lowest id) acts on its own. On the desk lie the wishes (joins, leaves, removals) and the
//! latest report of each node: which epoch it has installed, for which Dual it has gathered its
//! segments, whether it is leaving. All of them are repeated by their senders until the layout
//! shows them, so that a desk may start empty and forget what is old.
//!
//! | phase | what leads on |
//! | --- | --- |
//! | Stable | a wish that is not backed off, or else rows to fill → Dual; else, something to collect, not too soon → Stable, collecting |
//! | Dual | all pullers synced *this* epoch → ReadNew; a puller down, failed or without progress → Stable again |
//! | ReadNew | per segment so many old owners installed it that old reads are over → Stable; else it is asked now and then whether that was chosen already |
//!
//! Being claimant is for progress only; two claimants at once are safe, because what they
//! propose has to win a ballot.

use crate::core::collection::Found;
use crate::core::layout::{Layout, Member, Phase, Standing};
use crate::core::mutants::{Mutant, planted};
use crate::core::node::{Liveness, Moment, NodeId};
use crate::core::token::Epoch;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Gathers wishes that come within this time of one another into one transition: five nodes
/// started by one script join in one step, and nobody notices the wait.
const SETTLE: Duration = Duration::from_millis(300);

/// A wish or report that wasn't repeated for so long counts no more. Six times the heartbeat.
const FORGET: Duration = Duration::from_secs(3);

/// The first back-off after an aborted transition; doubles up to [`BACK_OFF_MOST`].
const BACK_OFF: Duration = Duration::from_secs(2);
const BACK_OFF_MOST: Duration = Duration::from_secs(60);

/// How often at most, in the time after which it is looked for again, what was found is forgotten: each
/// time ends requests that are under way.
const COLLECTIONS: u32 = 60;

/// The first time comes after such a part of it, as far as a node knows: one that is started again and
/// again would else never get there, nor have its ring get there while it is the claimant.
pub const FIRST_COLLECTION: u32 = 10;

/// How often it is asked whether a ReadNew is over, while too few old owners report. They may have left at its end.
const LEARN_EVERY: Duration = Duration::from_secs(2);

/// Members that one node may ask to have removed at a time.
pub const MAX_REMOVALS: usize = 64;

/// Joiners that a desk has room for; what more there are comes up when these are members.
const MAX_JOINS: usize = 1024;

/// How patient the ring is with its members.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A puller that reports no progress for so long has its transition aborted.
    pub pull_timeout: Duration,
    /// A member that is down for so long is removed.
    pub remove_after: Duration,
    /// What was deleted or has expired is looked for no more often than this, and forgotten, unless
    /// there is more than fits one list; for the first time a tenth of it after a node started.
    pub collect_every: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            pull_timeout: Duration::from_secs(30),
            remove_after: Duration::from_secs(300),
            collect_every: Duration::from_secs(3600),
        }
    }
}

/// What a node says of itself, again and again, to the claimant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The epoch it has installed, durably.
    pub installed: Epoch,
    /// The Dual for which it has gathered (or, leaving, offered) all it should; 0 = none.
    pub synced: Epoch,
    /// The Dual for which it could not; 0 = none.
    pub failed: Epoch,
    /// Grows while it gathers.
    pub progress: u64,
    /// It wants to leave.
    pub leaving: bool,
    /// Members that it was told to have removed.
    pub removals: BTreeSet<NodeId>,
    /// What can be collected, with which it waits at the epoch that it has installed.
    pub found: Found,
}

/// What the claimant wants next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Take these in, let those go.
    Dual {
        /// New members.
        joins: Vec<Member>,
        /// Members that asked to leave.
        leaves: BTreeSet<NodeId>,
        /// Members to remove, if a majority of voters calls them down.
        removals: BTreeSet<NodeId>,
    },
    /// The same members, but segments that have too few owners get more.
    Fill,
    /// Nothing new: but should a majority have accepted a layout of which only nodes know that have left, it is
    /// found and chosen once more.
    Learn,
    /// Reads may ask the next table.
    ReadNew,
    /// The next table becomes the only one.
    Settle,
    /// The same table, at which what was deleted is forgotten.
    Collect,
    /// Back to the current table.
    Abort {
        /// On whose account.
        blame: NodeId,
        /// Why, for the log.
        why: &'static str,
    },
}

impl Change {
    /// The layout that a change makes of this one; `down` is whom a majority calls down. `None` if
    /// it comes to nothing.
    pub fn apply(&self, layout: &Layout, down: &BTreeSet<NodeId>) -> Option<Layout> {
        match (self, layout.phase) {
            (Change::Dual { joins, leaves, removals }, Phase::Stable) => {
                let gone = leaves | &(removals & down);
                let moves = !(joins.is_empty() && gone.is_empty());
                moves.then(|| layout.dual(joins, &gone)).flatten()
            }
            (Change::Fill, Phase::Stable) => {
                down.is_empty().then(|| layout.dual(&[], &BTreeSet::new())).flatten()
            }
            (Change::ReadNew, Phase::Dual) => Some(layout.read_new()),
            (Change::Collect, Phase::Stable) => down.is_empty().then(|| layout.collecting()),
            (Change::Settle, Phase::ReadNew) => Some(layout.settled()),
            (Change::Abort { .. }, Phase::Dual) => Some(layout.aborted()),
            _ => None,
        }
    }
}

#[derive(Debug, Clone)]
struct Heard<T> {
    what: T,
    at: Moment,
    /// When its progress last changed.
    moved: Moment,
}

#[derive(Debug, Clone, Copy)]
struct BackOff {
    until: Moment,
    length: Duration,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Desk {
    patience: Patience,
    reports: BTreeMap<NodeId, Heard<Report>>,
    joins: BTreeMap<NodeId, Heard<Member>>,
    down_since: BTreeMap<NodeId, Moment>,
    back_off: BTreeMap<NodeId, BackOff>,
    wished_since: Option<Moment>,
    phase_since: Moment,
    /// When this node last asked for what it may have missed.
    learned: Moment,
    /// When this node met the last collecting layout, if it has met one.
    collected: Option<Moment>,
}

impl Desk {
    /// An empty desk.
    pub fn new(patience: Patience) -> Self {
        Desk {
            patience,
            reports: BTreeMap::new(),
            joins: BTreeMap::new(),
            down_since: BTreeMap::new(),
            back_off: BTreeMap::new(),
            wished_since: None,
            phase_since: Moment::ZERO,
            learned: Moment::ZERO,
            collected: None,
        }
    }

    /// A member's report arrived.
    pub fn hear_report(&mut self, from: NodeId, report: Report, now: Moment) {
        let moved = match self.reports.get(&from) {
            Some(old) if old.what.progress == report.progress && old.what.installed == report.installed => {
                old.moved
            }
            _ => now,
        };
        self.reports.insert(from, Heard { what: report, at: now, moved });
    }

    /// Somebody asks to become a member.
    pub fn hear_join(&mut self, member: Member, now: Moment) {
        self.joins.retain(|_, heard| now.saturating_sub(heard.at) < FORGET);
        if self.joins.len() >= MAX_JOINS && !self.joins.contains_key(&member.id) {
            return;
        }
        self.joins.insert(member.id, Heard { what: member, at: now, moved: now });
    }

    /// A new layout is installed: wishes that it fulfils leave the desk.
    pub fn installed(&mut self, before: &Layout, layout: &Layout, now: Moment) {
        self.phase_since = now;
        self.wished_since = None;
        self.joins.retain(|id, _| !layout.is_member(*id));
        self.reports.retain(|id, _| layout.is_member(*id));
        self.down_since.retain(|id, _| layout.is_member(*id));
        if layout.collected > before.collected {
            self.collected = Some(now);
        }
        if before.phase == Phase::ReadNew && layout.phase == Phase::Stable {
            self.back_off.clear();
        }
    }

    fn report(&self, id: NodeId, now: Moment) -> Option<&Report> {
        let heard = self.reports.get(&id)?;
        (now.saturating_sub(heard.at) < FORGET).then_some(&heard.what)
    }

    /// Whether a node wants to leave, as far as it reported so of late.
    pub fn leaving(&self, id: NodeId, now: Moment) -> bool {
        self.report(id, now).is_some_and(|report| report.leaving)
    }

    /// Who asks to join at the moment.
    pub fn joining(&self, now: Moment) -> Vec<&Member> {
        let fresh = |heard: &&Heard<Member>| now.saturating_sub(heard.at) < FORGET;
        self.joins.values().filter(fresh).map(|heard| &heard.what).collect()
    }

    /// Whether all members that live want to leave: then nobody does, and all just stop.
    pub fn everyone_leaves(
        &self,
        layout: &Layout,
        now: Moment,
        liveness: &dyn Fn(NodeId) -> Liveness,
    ) -> bool {
        let mut live = layout.ids().filter(|id| liveness(*id) != Liveness::Down);
        layout.phase == Phase::Stable && live.all(|id| self.leaving(id, now))
    }

    /// What should be proposed now.
    pub fn next(
        &mut self,
        layout: &Layout,
        now: Moment,
        liveness: &dyn Fn(NodeId) -> Liveness,
    ) -> Option<Change> {
        for id in layout.ids() {
            match liveness(id) {
                Liveness::Down => _ = self.down_since.entry(id).or_insert(now),
                _ => _ = self.down_since.remove(&id),
            }
        }
        match layout.phase {
            Phase::Stable => self.next_of_stable(layout, now, liveness),
            Phase::Dual => self.next_of_dual(layout, now, liveness),
            Phase::ReadNew => {
                let installed =
                    |id: &NodeId| self.reports.get(id).is_some_and(|r| r.what.installed == layout.epoch);
                let installed: BTreeSet<_> = layout.ids().filter(installed).collect();
                if layout.old_reads_are_over(&installed) {
                    return Some(Change::Settle);
                }
                let due = now.saturating_sub(self.phase_since.max(self.learned)) >= LEARN_EVERY;
                due.then(|| {
                    self.learned = now;
                    Change::Learn
                })
            }
        }
    }

    fn next_of_stable(
        &mut self,
        layout: &Layout,
        now: Moment,
        liveness: &dyn Fn(NodeId) -> Liveness,
    ) -> Option<Change> {
        let waits = |id: NodeId| self.back_off.get(&id).is_some_and(|b| now < b.until);
        if layout.ids().any(waits) || self.everyone_leaves(layout, now, liveness) {
            return None;
        }
        let joins: Vec<Member> = self
            .joining(now)
            .into_iter()
            .filter(|m| !layout.is_member(m.id) && !waits(m.id))
            .cloned()
            .collect();
        let leaves: BTreeSet<_> = layout.ids().filter(|id| self.leaving(*id, now)).collect();
        let long_down = |since: &Moment| now.saturating_sub(*since) >= self.patience.remove_after;
        let expired = self.down_since.iter().filter(|(_, since)| long_down(since)).map(|(id, _)| *id);
        // A member that keeps nothing, whose address answers under another id, is gone for good.
        let others = || layout.members.iter().chain(&joins);
        let replaced = |m: &&Member| !m.durable && others().any(|o| o.id != m.id && o.address == m.address);
        let replaced = layout.members.iter().filter(replaced).map(|m| m.id);
        let wished =
            layout.ids().filter_map(|id| self.report(id, now)).flat_map(|r| r.removals.iter().copied());
        let mut removals: BTreeSet<_> = expired.chain(replaced).chain(wished).collect();
        removals.retain(|id| liveness(*id) == Liveness::Down && layout.is_member(*id));
        let alive = |id| liveness(id) != Liveness::Down;
        let change = if !(joins.is_empty() && leaves.is_empty() && removals.is_empty()) {
            Change::Dual { joins, leaves, removals }
        } else if layout.short() > 0 && layout.ids().all(alive) && !planted(Mutant::RowsLeftShort) {
            // Where rows are short nearly every member lacks some of its share and has to pull.
            Change::Fill
        } else {
            self.wished_since = None;
            return self.collects(layout, now, liveness).then_some(Change::Collect);
        };
        let since = *self.wished_since.get_or_insert(now);
        let settled = now.saturating_sub(since) >= SETTLE;
        (settled && layout.can_be_gathered(alive)).then_some(change)
    }

    /// Whether there is something to collect, it is time, and nobody is away who would be waited for.
    fn collects(&self, layout: &Layout, now: Moment, liveness: &dyn Fn(NodeId) -> Liveness) -> bool {
        let report = |id| self.report(id, now).filter(|report| report.installed == layout.epoch);
        let found = |what| layout.ids().any(|id| report(id).is_some_and(|report| report.found == what));
        let every = self.patience.collect_every;
        let (since, wait) = match self.collected {
            Some(collected) => (collected, every),
            None => (Moment::ZERO, every / FIRST_COLLECTION),
        };
        let elapsed = now.saturating_sub(since);
        let due =
            elapsed >= wait && found(Found::All) || elapsed >= every / COLLECTIONS && found(Found::Full);
        due && layout.ids().all(|id| liveness(id) == Liveness::Up && report(id).is_some())
    }

    fn next_of_dual(
        &mut self,
        layout: &Layout,
        now: Moment,
        liveness: &dyn Fn(NodeId) -> Liveness,
    ) -> Option<Change> {
        let any = planted(Mutant::SyncedOfAnotherDual);
        let counts = |synced: Epoch| synced == layout.epoch || any && synced > 0;
        let synced = |id: &NodeId| self.reports.get(id).is_some_and(|r| counts(r.what.synced));
        let stuck = |id: NodeId| {
            let moved = self.reports.get(&id).map_or(self.phase_since, |r| r.moved.max(self.phase_since));
            now.saturating_sub(moved) >= self.patience.pull_timeout
        };
        let failed = |id: NodeId| self.reports.get(&id).is_some_and(|r| r.what.failed == layout.epoch);
        let missing: Vec<NodeId> = layout.all_pullers().into_iter().filter(|id| !synced(id)).collect();
        for &id in &missing {
            let why = match liveness(id) {
                Liveness::Down => "it is down",
                _ if failed(id) => "it could not gather its segments",
                _ if stuck(id) => "it makes no progress",
                _ => continue,
            };
            let length = self.back_off.get(&id).map_or(BACK_OFF, |b| (b.length * 2).min(BACK_OFF_MOST));
            self.back_off.insert(id, BackOff { until: now + length, length });
            return Some(Change::Abort { blame: id, why });
        }
        // A leaver offers what only it holds. It is waited for while it lives, but does not hold
        // the ring up.
        let offering = |m: &Member| {
            m.standing == Standing::Leaving
                && liveness(m.id) != Liveness::Down
                && self.leaving(m.id, now)
                && !(synced(&m.id) || failed(m.id) || stuck(m.id))
        };
        let gathered = missing.is_empty() || planted(Mutant::ReadNewBeforeSynced);
        (gathered && !layout.members.iter().any(offering)).then_some(Change::ReadNew)
    }
}

#[cfg(test)]
mod tests;
