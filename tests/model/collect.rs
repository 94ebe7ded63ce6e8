//! Forgetting a delete, as the first owner has it done, and pages of owners that catch up.
//!
//! An owner's word that it holds the delete stays true until it forgets it, so that it does not matter who
//! asks it, nor when. When all members of the collecting layout have installed it, each owner is told
//! to forget, or never is.

use crate::parts::{Found, Node, Reply, SEGMENT, Stimulus};
use crate::rank::{DELETE, Rank, node_id, node_of};
use crate::ring::Parts;
use crate::scenario::Scenario;
use crate::steps::Step;
use crate::world::{At, World};
use std::collections::BTreeSet;
use thrifty::core::layout::Phase;
use thrifty::core::mutants::{Mutant, planted};
use thrifty::core::transition::Change;

/// How far that is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Collecting {
    /// So many collecting layouts may still be decided.
    pub(crate) left: u8,
    /// At which layout owners were asked, and who said that it holds the delete.
    held: Option<(At, BTreeSet<Node>)>,
    /// Somebody was told to forget.
    forgotten: bool,
    /// So many pages may still be made.
    copies: u8,
    /// To whom, at which layout it asked, and what is on it.
    pub(crate) pages: Vec<(Node, At, Found)>,
}

impl Collecting {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let (left, copies) = (scenario.collects, scenario.copies);
        Collecting { left, held: None, forgotten: false, copies, pages: Vec::new() }
    }
}

impl World {
    /// Whether what reads as absent is so because it was forgotten.
    pub(crate) fn is_forgotten(&self, rank: Rank) -> bool {
        self.collecting.forgotten && rank == 0
    }

    /// All owners were found to hold the delete.
    fn all_hold(&self, parts: &Parts) -> bool {
        self.collecting.held.as_ref().is_some_and(|(at, held)| {
            parts
                .layouts
                .of(self.layout_at(*at))
                .current_owners(SEGMENT)
                .all(|id| held.contains(&node_of(id)))
        })
    }

    /// The collecting layout at which a node may be told to forget.
    fn forgets_at(&self, parts: &Parts, node: Node) -> Option<At> {
        let (found, _) = self.collecting.held.as_ref().filter(|_| self.all_hold(parts))?;
        let found = parts.layouts.of(self.layout_at(*found));
        (0..self.decided.len() as At).find(|at| {
            let id = self.layout_at(*at);
            let layout = parts.layouts.of(id);
            let waited = planted(Mutant::ForgottenUnawaited);
            layout.may_drop(found, SEGMENT)
                && layout.current_owners(SEGMENT).any(|owner| node_of(owner) == node)
                && (waited || parts.facts[&id].members.iter().all(|member| self.node(*member).at >= *at))
        })
    }

    pub(crate) fn collecting_steps(&self, parts: &mut Parts, steps: &mut Vec<Step>) {
        if self.collecting.left > 0 && parts.phase(self.newest()) == Phase::Stable && self.all_hold(parts) {
            steps.push(Step::Collect);
        }
        steps.extend((0..self.collecting.pages.len() as u8).map(Step::Copied));
        for node in 0..self.nodes.len() as Node {
            let at = self.node(node).at;
            let facts = &parts.facts[&self.layout_at(at)];
            let owners = facts.owns.clone();
            if facts.phase == Phase::Stable && owners[usize::from(node)] {
                let asked = self.collecting.held.as_ref();
                let open = asked.is_none_or(|(of, held)| match *of == at {
                    true => !held.contains(&node),
                    false => *of < at && !self.all_hold(parts),
                });
                if self.collecting.left > 0 && open && self.confirm(parts, node).1 != Reply::Nothing {
                    steps.push(Step::Confirm(node));
                }
                let source = |other: &Node| *other != node && owners[usize::from(*other)];
                let sources = (0..self.nodes.len() as Node).filter(source);
                let there = |other: &Node| self.collecting.copies > 0 && self.node(*other).at == at;
                steps.extend(sources.filter(there).map(|other| Step::Copy(node, other)));
            }
            if let Some(at) = self.forgets_at(parts, node)
                && self.forget(parts, node, at) != self.node(node).replica
            {
                steps.push(Step::Forget(node));
            }
        }
    }

    fn confirm(&self, parts: &mut Parts, node: Node) -> (u32, Reply) {
        let state = self.node(node);
        let stimulus = Stimulus::Confirm(parts.epoch(self.layout_at(state.at)));
        parts.replicas.give(state.replica, stimulus, &parts.layouts)
    }

    fn forget(&self, parts: &mut Parts, node: Node, at: At) -> u32 {
        let stimulus = Stimulus::Forget(parts.epoch(self.layout_at(at)));
        parts.replicas.give(self.node(node).replica, stimulus, &parts.layouts).0
    }

    pub(crate) fn collecting_step(&mut self, parts: &mut Parts, step: Step) -> Result<(), String> {
        match step {
            Step::Confirm(node) => {
                let at = self.node(node).at;
                self.nodes[usize::from(node)].replica = self.confirm(parts, node).0;
                let asked = self.collecting.held.take().filter(|(of, _)| *of == at);
                self.collecting.held.insert(asked.unwrap_or((at, BTreeSet::new()))).1.insert(node);
                // It has synced: what waited for that is said.
                if !parts.replicas.of(self.node(node).replica).dirty {
                    self.sync(parts, node)?;
                }
            }
            Step::Collect => {
                let layout = Change::Collect.apply(parts.layouts.of(self.newest()), &BTreeSet::new());
                let id = parts.learn(layout.expect("a Stable layout"));
                self.decided.push(id);
                self.collecting.left -= 1;
            }
            Step::Forget(node) => {
                let at = self.forgets_at(parts, node).expect("a step that can be taken");
                self.nodes[usize::from(node)].replica = self.forget(parts, node, at);
                self.collecting.forgotten = true;
                // Held by all owners, it was as good as acknowledged.
                self.floor = self.floor.max(DELETE);
            }
            Step::Copy(node, source) => {
                let at = self.node(node).at;
                let epoch = parts.epoch(self.layout_at(at));
                let found = parts.replicas.snapshot(self.node(source).replica, epoch, &parts.layouts);
                self.collecting.pages.push((node, at, found.expect("an owner at its own epoch")));
                self.collecting.pages.sort_unstable();
                self.collecting.copies -= 1;
            }
            Step::Copied(i) => {
                let (node, at, found) = self.collecting.pages.remove(usize::from(i));
                let layout = parts.layouts.of(self.layout_at(at));
                let slot = layout.slot(node_id(node), SEGMENT).expect("an owner asked");
                let stimulus = Stimulus::Absorb(layout.epoch, slot, found);
                let state = &mut self.nodes[usize::from(node)];
                (state.replica, _) = parts.replicas.give(state.replica, stimulus, &parts.layouts);
            }
            _ => unreachable!("another kind of step"),
        }
        Ok(())
    }
}
