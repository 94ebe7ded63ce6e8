//! What happens to one node: it installs a layout, gathers, syncs, crashes.

use crate::parts::{Event, Node, SEGMENT, Stimulus};
use crate::rank::{node_id, node_of};
use crate::ring::Parts;
use crate::world::{At, Mail, Op, PageState, World};
use thrifty::core::layout::Phase;
use thrifty::core::mutants::{Mutant, planted};

impl World {
    pub(crate) fn install(&mut self, parts: &mut Parts, node: Node, at: At) -> Result<(), String> {
        let id = self.layout_at(at);
        let before = self.node(node).replica;
        let (replica, _) = parts.replicas.give(before, Stimulus::Install(id), &parts.layouts);
        let lost = parts.replicas.of(before).holds.len() > parts.replicas.of(replica).holds.len();
        if lost && parts.phase(id) != Phase::Stable && parts.bounds.check_drops {
            return Err("data is dropped before a Stable layout is installed".into());
        }
        let pages = parts.facts[&id].pulls[usize::from(node)].iter().flat_map(|pull| &pull.sources);
        let pages = pages.map(|source| (node_of(*source), PageState::Awaited)).collect();
        let state = &mut self.nodes[usize::from(node)];
        (state.replica, state.at, state.pages) = (replica, at, pages);
        for op in 0..self.ops.len() as u8 {
            if self.request(parts, op).at == node {
                self.feed(parts, op, Event::Installed(id))?;
            }
        }
        Ok(())
    }

    pub(crate) fn absorb(&mut self, parts: &mut Parts, node: Node, source: Node) -> Result<(), String> {
        let id = self.layout_at(self.node(node).at);
        let epoch = parts.epoch(id);
        let slot = parts.layouts.of(id).slot(node_id(node), SEGMENT).expect("a puller owns what it pulls");
        let state = &mut self.nodes[usize::from(node)];
        for (_, page) in state.pages.iter_mut().filter(|(of, _)| *of == source) {
            if let PageState::Made(found) = *page {
                let stimulus = Stimulus::Absorb(epoch, slot, found);
                (state.replica, _) = parts.replicas.give(state.replica, stimulus, &parts.layouts);
                *page = PageState::Taken;
            }
        }
        let need = parts.facts[&id].pulls[usize::from(node)].as_ref().map_or(usize::MAX, |pull| pull.need);
        if state.pages.iter().filter(|(_, page)| *page == PageState::Taken).count() >= need {
            state.pages.clear();
            state.synced = state.at;
            if !planted(Mutant::GatheredUnsynced) {
                self.sync(parts, node)?;
            }
        }
        Ok(())
    }

    pub(crate) fn sync(&mut self, parts: &mut Parts, node: Node) -> Result<(), String> {
        let state = &mut self.nodes[usize::from(node)];
        (state.replica, _) = parts.replicas.give(state.replica, Stimulus::Sync, &parts.layouts);
        for (op, at, put, said) in std::mem::take(&mut state.held) {
            if self.answers_at_once(parts) {
                self.answer(parts, op, node, at, put, said)?;
            } else {
                self.mail.push(Mail::Answer { op, from: node, at, put, said });
            }
        }
        Ok(())
    }

    /// A node crashes and is there again at once; what it coordinated ends with unknown outcome.
    pub(crate) fn crash(&mut self, parts: &mut Parts, node: Node) {
        self.crashes -= 1;
        let id = self.layout_at(self.node(node).at);
        let pages = parts.facts[&id].pulls[usize::from(node)].iter().flat_map(|pull| &pull.sources);
        let pages = pages.map(|source| (node_of(*source), PageState::Awaited)).collect();
        let state = &mut self.nodes[usize::from(node)];
        (state.replica, _) = parts.replicas.give(state.replica, Stimulus::Crash, &parts.layouts);
        state.held.clear();
        state.pages = if state.synced == state.at { Vec::new() } else { pages };
        for op in 0..self.ops.len() {
            if parts.scenario.requests[op].at == node && self.ops[op] != Op::Waiting {
                self.ops[op] = Op::Over;
            }
        }
    }
}
