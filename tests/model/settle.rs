//! Makes equal what differs in nothing that could ever matter. Each rule says why it loses nothing.

use crate::parts::{Node, Reply, SEGMENT};
use crate::rank::{Rank, node_id};
use crate::ring::Parts;
use crate::world::{At, Mail, NOBODY, NodeState, Op, PageState, World};
use thrifty::core::layout::{Phase, Pull};
use thrifty::core::mutants::{Mutant, planted};

/// The highest version that is written.
const HIGHEST: Rank = 2;

impl World {
    /// See the module's documentation.
    pub(crate) fn settle(&mut self, parts: &mut Parts) -> Result<(), String> {
        loop {
            self.take_idle_pages(parts)?;
            // A decision takes nothing away from anybody, unless something else may be decided as well.
            while !self.may_also(parts) {
                let Some(next) = self.next(parts) else { break };
                self.done += u8::from(parts.phase(self.newest()) == Phase::ReadNew);
                self.decided.push(next);
            }
            // The write of the highest version begins at once: when it does matters to no check.
            for op in 0..self.ops.len() as u8 {
                if self.request(parts, op).writes == Some(HIGHEST) && self.may_begin(parts, op) {
                    self.begin(parts, op);
                }
            }
            self.ask_oneself(parts)?;
            self.throw_away(parts);
            let idler = (0..self.nodes.len() as Node).find(|node| self.is_idle(parts, *node));
            let Some(idler) = idler else { break };
            self.install(parts, idler, self.node(idler).at + 1)?;
        }
        self.fresh &= self.ops.contains(&Op::Waiting);
        Ok(())
    }

    /// A page that brings nothing new can be taken at once: it only makes more possible.
    fn take_idle_pages(&mut self, parts: &mut Parts) -> Result<(), String> {
        for node in 0..self.nodes.len() as Node {
            if self.node(node).pages.is_empty() {
                continue;
            }
            let layout = parts.layouts.of(self.layout_at(self.node(node).at));
            let slot = layout.slot(node_id(node), SEGMENT).expect("a puller owns what it pulls");
            let replica = parts.replicas.of(self.node(node).replica);
            let (has, clock) = (replica.durable_in(slot), replica.clock);
            let idle = |page: &(Node, PageState)| matches!(page.1, PageState::Made(found) if found.rank <= has && found.clock <= clock);
            while let Some((source, _)) = self.node(node).pages.iter().copied().find(idle) {
                self.absorb(parts, node, source)?;
            }
        }
        Ok(())
    }

    /// What a coordinator asks of its own replica is a direct call, in the shells as here.
    fn ask_oneself(&mut self, parts: &mut Parts) -> Result<(), String> {
        while !parts.bounds.own_late {
            let own = |mail: &Mail| match *mail {
                Mail::Question { op, to, at, mute: false, .. } => {
                    self.listens(parts, op, at) && self.request(parts, op).at == to && self.node(to).at == at
                }
                _ => false,
            };
            let Some(i) = self.mail.iter().position(own) else { break };
            self.ask(parts, i, false, false)?;
        }
        Ok(())
    }

    /// Whether nothing can happen any more at a node's epoch that concerns it: then it can as well
    /// install the next layout at once.
    fn is_idle(&self, parts: &Parts, node: Node) -> bool {
        let state = self.node(node);
        let here = state.at;
        let asked = |mail: &Mail| matches!(mail, Mail::Question { to, at, .. } if (*to, *at) == (node, here));
        let may_ask =
            |op: usize| self.ops[op] != Op::Over && self.node(parts.scenario.requests[op].at).at <= here;
        let pulls = &parts.facts[&self.layout_at(here)].pulls;
        let may_pull = |(pull, other): (&Option<Pull>, &NodeState)| {
            pull.is_some() && other.at <= here && other.synced != here
        };
        usize::from(here) + 1 < self.decided.len()
            && state.pages.is_empty()
            && !self.mail.iter().any(asked)
            && !(0..self.ops.len()).any(may_ask)
            && !planted(Mutant::NewerEpochsServed)
            // Who stays behind may keep others from forgetting, or be told to.
            && parts.scenario.collects == 0
            && !pulls.iter().zip(&self.nodes).any(may_pull)
    }

    /// Throws away messages that can do nothing any more, and makes mute what nobody listens to.
    fn throw_away(&mut self, parts: &mut Parts) {
        let mut mail = std::mem::take(&mut self.mail);
        mail.retain_mut(|mail| match mail {
            Mail::Answer { op, at, .. } => self.listens(parts, *op, *at),
            Mail::Question { op, to, at, put, mute } => {
                *mute |= !self.listens(parts, *op, *at);
                if *mute && !put.writes() {
                    return false;
                }
                if *mute {
                    *op = NOBODY;
                }
                // A write that changes nothing now changes nothing later at this epoch; only a crash
                // or forgetting could make room for it again.
                let (then, reply) = self.reply(parts, *to, *at, *put);
                let idle = *mute && then == self.node(*to).replica && reply != Reply::Behind;
                reply != Reply::Stale && !(idle && self.crashes == 0 && parts.scenario.collects == 0)
            }
        });
        mail.sort_unstable();
        // A question that nobody listens to does nothing that a copy of it with a listener can't.
        let copies = mail.clone();
        let mut before = None;
        mail.retain(|mail| match *mail {
            Mail::Question { to, at, put, mute: true, .. } => {
                let twin = |other: &Mail| matches!(*other, Mail::Question { to: t, at: a, put: p, mute: false, .. } if (t, a, p) == (to, at, put));
                !copies.iter().any(twin) && before.replace(*mail) != Some(*mail)
            }
            _ => true,
        });
        self.mail = mail;
        for i in 0..self.nodes.len() {
            let mut held = std::mem::take(&mut self.nodes[i].held);
            held.retain(|(op, at, ..)| self.listens(parts, *op, *at));
            held.sort_unstable();
            self.nodes[i].held = held;
        }
    }

    /// Whether a request still goes by answers of that epoch.
    pub(crate) fn listens(&self, parts: &Parts, op: u8, at: At) -> bool {
        if op == NOBODY {
            return false;
        }
        let here = self.node(self.request(parts, op).at).at;
        matches!(self.ops[usize::from(op)], Op::Running { .. })
            && (at == here || planted(Mutant::AcceptsAddedAcrossEpochs))
    }
}
