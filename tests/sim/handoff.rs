//! A node as puller: gathers its segments from their old owners during a Dual.
//!
//! Each segment is read page by page from one source after the other until enough of them were read
//! to the end; a source that is silent or refuses is passed over and tried again later. Then all of
//! it is synced and reported. Nothing of this is remembered over a crash: who starts again in the
//! same Dual pulls again.

use crate::counts::Kind;
use crate::env::{Env, Index, Micros, Packet, PageRefused, index_of};
use crate::node::Process;
use bytes::Bytes;
use std::collections::BTreeSet;
use thrifty::core::layout::{Phase, Pull, Standing};
use thrifty::core::mutants::{Mutant, planted};
use thrifty::core::node::NodeId;
use thrifty::core::token::Epoch;
use thrifty::replica::{Page, Refusal};

/// After so many silences and refusals in one Dual, a puller reports that it failed.
const PATIENCE: u32 = 20;

struct Task {
    pull: Pull,
    done: BTreeSet<NodeId>,
    /// Which source is being read.
    at: usize,
    /// The last key that came.
    after: Option<Bytes>,
    /// The page that is awaited, and until when.
    awaits: Option<(u64, Micros)>,
}

impl Task {
    fn is_done(&self) -> bool {
        self.done.len() >= self.pull.need
    }

    /// A source did not give what it should.
    fn skip(&mut self) {
        if planted(Mutant::SourceSkipped) {
            self.done.insert(self.pull.sources[self.at]);
        }
    }

    /// Turns to the next source that was not read yet, from its beginning.
    fn turn(&mut self) {
        self.after = None;
        self.awaits = None;
        for _ in 0..self.pull.sources.len() {
            self.at = (self.at + 1) % self.pull.sources.len();
            if !self.done.contains(&self.pull.sources[self.at]) {
                return;
            }
        }
    }
}

/// What a node gathers in one Dual.
pub(crate) struct Gathering {
    epoch: Epoch,
    tasks: Vec<Task>,
    progress: u64,
    failures: u32,
}

impl Process {
    /// A layout is installed, or was when the process started: begins to gather if it says so.
    pub(crate) fn begin_gathering(&mut self, env: &mut Env) {
        self.gathering = None;
        let layout = self.layout();
        let pulls = layout.pulls(self.id);
        if !pulls.is_empty() {
            let again = self.disk.gathered_at.replace(layout.epoch) == Some(layout.epoch);
            env.count(if again { Kind::PullAgain } else { Kind::PullBegun });
            let task = |pull| Task { pull, done: BTreeSet::new(), at: 0, after: None, awaits: None };
            let tasks = pulls.into_iter().map(task).collect();
            self.gathering = Some(Gathering { epoch: layout.epoch, tasks, progress: 0, failures: 0 });
            self.ask_pages(env);
        }
        self.offer();
    }

    /// A leaver has nothing to gather. What it would offer, the pullers ask it for first anyway.
    pub(crate) fn offer(&mut self) {
        let layout = self.layout();
        let standing = layout.member(self.id).map(|member| member.standing);
        if self.leaving && layout.phase == Phase::Dual && standing == Some(Standing::Leaving) {
            self.membership.pull_ended(layout.epoch, true);
        }
    }

    /// Asks for what is needed next; on a full disk the next beat tries again.
    fn ask_pages(&mut self, env: &mut Env) {
        let Some(gathering) = &mut self.gathering else { return };
        if self.replica.is_full() {
            return env.count(Kind::NoRoom);
        }
        let epoch = gathering.epoch;
        for task in gathering.tasks.iter_mut().filter(|task| !task.is_done() && task.awaits.is_none()) {
            let ask_id = env.fresh();
            task.awaits = Some((ask_id, env.now + env.plan.page_timeout));
            let source = index_of(task.pull.sources[task.at]);
            let (segment, after) = (task.pull.slot.segment, task.after.clone());
            env.send(self.index, source, Packet::GetPage { ask_id, epoch, segment, after });
        }
        if gathering.tasks.iter().all(Task::is_done) {
            env.note(|| format!("{} has gathered everything for {epoch}", self.index));
            env.count(Kind::PullDone);
            self.gathering = None;
            self.sync(env);
            self.membership.pull_ended(epoch, true);
        }
    }

    /// A page came, or a refusal.
    pub(crate) fn take_page(
        &mut self,
        from: Index,
        ask_id: u64,
        page: Result<Page, PageRefused>,
        env: &mut Env,
    ) {
        let Some(gathering) = &mut self.gathering else { return };
        let awaited = |task: &&mut Task| task.awaits.is_some_and(|(id, _)| id == ask_id);
        let Some(task) = gathering.tasks.iter_mut().find(awaited) else { return };
        task.awaits = None;
        match page {
            Ok(page) => {
                let (last, after) = (page.last, page.records.last().map(|(key, _)| key.clone()));
                env.note(|| {
                    format!("{} takes from {from} {:?}: {:?}", self.index, task.pull.slot, page.records)
                });
                match self.replica.absorb(gathering.epoch, task.pull.slot, page) {
                    Ok(_newer) => {}
                    Err(Refusal::Full) => return,
                    Err(why) => return env.checker.fail(format!("a page was not taken: {why}")),
                }
                gathering.progress += 1;
                self.membership.pulled(gathering.epoch, gathering.progress);
                if last {
                    task.done.insert(task.pull.sources[task.at]);
                    task.turn();
                } else {
                    task.after = after;
                }
                self.keep_mark();
            }
            Err(refused) => {
                task.skip();
                gathering.failures += 1;
                task.turn();
                if let PageRefused::Stale(epoch) = refused {
                    self.fetch(from, epoch, env);
                }
            }
        }
        self.ask_pages(env);
    }

    /// Time passes: silent sources are passed over.
    pub(crate) fn beat_gathering(&mut self, env: &mut Env) {
        let Some(gathering) = &mut self.gathering else { return };
        for task in &mut gathering.tasks {
            if task.awaits.is_some_and(|(_, until)| until <= env.now) {
                gathering.failures += 1;
                task.skip();
                task.turn();
            }
        }
        if gathering.failures > PATIENCE {
            let epoch = gathering.epoch;
            env.count(Kind::PullFailed);
            self.gathering = None;
            self.membership.pull_ended(epoch, false);
        } else {
            self.ask_pages(env);
        }
    }
}
