//! A node that collects: the core's collector, whose questions travel as packets.
//!
//! Nothing of it is remembered over a crash.

use crate::counts::Kind;
use crate::env::{Env, Index, MS, Micros, Packet, index_of};
use crate::node::Process;
use bytes::Bytes;
use thrifty::core::collection::{Answer, Ask, Collector, Dead, Found};
use thrifty::core::layout::Phase;
use thrifty::core::node::Liveness;
use thrifty::core::record::Version;
use thrifty::core::token::{Epoch, Segment};
use thrifty::replica::Refusal;
use thrifty::storage::engine::Engine;

/// How long a node waits after a round of questions of which not all were answered well.
const PAUSE: Micros = 100 * MS;

/// How many pages a list of what was found may take: in some plans two records, in others all.
const LIST_PAGES: usize = 100;

/// What a node looks for or has found.
#[derive(Default)]
pub(crate) struct Collecting {
    collector: Option<Collector>,
    /// The round at hand: the numbers of its questions, and what became of them so far.
    round: Vec<(u64, Option<Answer>)>,
    /// When those of the round that are not answered are taken for lost.
    until: Micros,
    /// Before that it asks nothing.
    rests_until: Micros,
}

impl Collecting {
    /// What it has found and waits with at this epoch.
    pub(crate) fn found(&self, epoch: Epoch) -> Found {
        let collector = self.collector.as_ref().filter(|collector| collector.layout().epoch == epoch);
        collector.map_or(Found::Nothing, Collector::found)
    }

    /// If the round is over, hands its answers in; whether to ask on at once.
    fn end_round(&mut self, now: Micros) -> bool {
        if self.round.iter().any(|(_, answer)| answer.is_none()) {
            return false;
        }
        let answers: Vec<_> = std::mem::take(&mut self.round).into_iter().filter_map(|(_, a)| a).collect();
        let failed = answers.contains(&Answer::Failed);
        if failed {
            self.rests_until = now + PAUSE;
        }
        self.collector.iter_mut().for_each(|collector| collector.answered(answers.clone()));
        !failed
    }
}

impl Process {
    /// Time passes: begins to look, or goes on with what was found, as the real shell does.
    pub(crate) fn collect(&mut self, env: &mut Env) {
        if !env.plan.collects || env.now < self.collecting.rests_until {
            return;
        }
        if !self.collecting.round.is_empty() {
            if env.now < self.collecting.until {
                return;
            }
            self.collecting.round.iter_mut().for_each(|(_, answer)| _ = answer.get_or_insert(Answer::Failed));
            self.collecting.end_round(env.now);
            return;
        }
        let layout = self.layout();
        if let Some(collector) = &mut self.collecting.collector {
            collector.installed(layout);
        } else {
            let view = env.gossip.view(self.index, env.now);
            if layout.phase != Phase::Stable || layout.ids().any(|id| view.of(id) != Liveness::Up) {
                return;
            }
            self.collecting.collector =
                Some(Collector::look(self.id, layout, LIST_PAGES * env.plan.page_bytes));
        }
        self.ask_rounds(env);
    }

    /// Asks until others have to answer, or there is nothing to ask.
    fn ask_rounds(&mut self, env: &mut Env) {
        loop {
            let Some(collector) = &self.collecting.collector else { return };
            let (epoch, asks) = (collector.layout().epoch, collector.asks());
            if collector.forgotten().is_some() {
                self.collecting.collector = None;
                self.collecting.rests_until = env.now + env.plan.patience.collect_every.as_micros() as Micros;
            }
            if asks.is_empty() {
                return;
            }
            self.collecting.until = env.now + 2 * env.plan.ask_timeout;
            for ask in asks {
                let ask_id = env.fresh();
                env.note(|| format!("{} collects at {epoch} #{ask_id}: {ask:?}", self.index));
                let to = match &ask {
                    Ask::Confirm(to, ..) | Ask::Installed(to) | Ask::Forget(to, ..) => *to,
                    Ask::Page(..) => self.id,
                };
                let answer = (to == self.id).then(|| self.answer_collector(epoch, ask.clone(), env));
                if answer.is_none() {
                    env.send(self.index, index_of(to), Packet::Collect { ask_id, epoch, ask });
                }
                self.collecting.round.push((ask_id, answer));
            }
            if !self.collecting.end_round(env.now) {
                return;
            }
        }
    }

    /// An answer came.
    pub(crate) fn collected(&mut self, ask_id: u64, answer: Answer, env: &mut Env) {
        let Some(asked) = self.collecting.round.iter_mut().find(|(id, _)| *id == ask_id) else { return };
        asked.1 = Some(answer);
        if self.collecting.end_round(env.now) {
            self.ask_rounds(env);
        }
    }

    /// Another node collects and asks this one.
    pub(crate) fn serve_collector(
        &mut self,
        from: Index,
        ask_id: u64,
        epoch: Epoch,
        ask: Ask,
        env: &mut Env,
    ) {
        let answer = self.answer_collector(epoch, ask, env);
        if !self.has_failed() {
            env.send(self.index, from, Packet::Collected { ask_id, answer });
        }
    }

    fn answer_collector(&mut self, epoch: Epoch, ask: Ask, env: &mut Env) -> Answer {
        let now_ms = env.wall_ms(self.skew_ms);
        let answer = match ask {
            Ask::Page(segment, after) => {
                let page = self.replica.snapshot(epoch, segment, after.as_deref(), env.plan.page_bytes);
                page.map(|page| Answer::Page(page.records, now_ms))
            }
            Ask::Confirm(..) | Ask::Forget(..) if self.disk_fails() => return Answer::Failed,
            Ask::Confirm(_, segment, dead) => {
                env.checker.shows(self.index, now_ms);
                self.replica.confirm(epoch, segment, &dead, now_ms).map(Answer::Held)
            }
            Ask::Installed(_) => self.replica.collects_at(epoch).map(|()| Answer::Done),
            Ask::Forget(_, segment, dead) => self.forget(epoch, segment, &dead, env).map(|()| Answer::Done),
        };
        answer.unwrap_or(Answer::Failed)
    }

    fn forget(&mut self, epoch: Epoch, segment: Segment, dead: &Dead, env: &mut Env) -> Result<(), Refusal> {
        self.keep_mark();
        let layout = self.layout();
        let slot = layout.slot(self.id, segment).ok_or(Refusal::NotHeld(segment))?;
        let held = |(key, version): &&(Bytes, Version)| {
            self.replica.engine().version(slot, key).is_ok_and(|held| held == Some(*version))
        };
        let held: Dead = dead.iter().filter(held).cloned().collect();
        self.replica.forget(epoch, segment, dead)?;
        env.note(|| format!("{} forgets {held:?}", self.index));
        let owners: Vec<Index> = layout.current_owners(segment).map(index_of).collect();
        for (key, version) in held {
            let key = env.plan.keys.iter().position(|known| *known == key);
            let key = key.expect("only what clients wrote is there");
            let account = env.checker.account(layout.ring, key);
            let expired = env.checker.forgets(account, version, &owners);
            env.count(if expired { Kind::ForgotExpired } else { Kind::Forgot });
        }
        Ok(())
    }
}
