//! What all states share: the scenario, the automata, and what was found out about layouts.

use crate::parts::{LayoutId, Layouts, Machines, Node, Replicas, SEGMENT};
use crate::rank::{node_id, node_of};
use crate::scenario::{Bounds, Scenario};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use thrifty::core::layout::{Layout, Phase, Pull};
use thrifty::core::node::Liveness;
use thrifty::core::token::Epoch;
use thrifty::core::transition::{Desk, Patience, Report};

/// What each node reports: the epoch that it has installed, the Dual for which it has gathered.
type Reports = Vec<(Epoch, Epoch)>;

/// What is known of a layout, in a form that is quick to ask.
pub(crate) struct Facts {
    pub(crate) epoch: Epoch,
    pub(crate) phase: Phase,
    /// As the phase says, whatever mistake is planted.
    pub(crate) read_owners: Vec<Node>,
    pub(crate) members: Vec<Node>,
    pub(crate) owns: Vec<bool>,
    pub(crate) pulls: Vec<Option<Pull>>,
}

/// The automata, and what was found out about layouts.
pub(crate) struct Parts {
    pub(crate) scenario: Scenario,
    pub(crate) bounds: Bounds,
    pub(crate) layouts: Layouts,
    pub(crate) replicas: Replicas,
    pub(crate) machines: Machines,
    pub(crate) facts: HashMap<LayoutId, Facts>,
    changes: HashMap<(LayoutId, Reports), Option<LayoutId>>,
}

impl Parts {
    pub(crate) fn new(scenario: Scenario, bounds: Bounds) -> Self {
        Parts {
            replicas: Replicas::new(scenario.disks, scenario.collects > 0),
            machines: Machines::default(),
            layouts: Layouts::default(),
            facts: HashMap::new(),
            changes: HashMap::new(),
            scenario,
            bounds,
        }
    }

    pub(crate) fn learn(&mut self, layout: Layout) -> LayoutId {
        let nodes = self.scenario.nodes;
        let id = self.layouts.id(layout);
        let layout = self.layouts.of(id);
        self.facts.entry(id).or_insert_with(|| Facts {
            epoch: layout.epoch,
            phase: layout.phase,
            read_owners: match layout.phase {
                Phase::Stable | Phase::Dual => layout.current_owners(SEGMENT).map(node_of).collect(),
                Phase::ReadNew => layout.next_owners(SEGMENT).map(node_of).collect(),
            },
            members: layout.ids().map(node_of).collect(),
            owns: (0..nodes).map(|node| layout.slot(node_id(node), SEGMENT).is_some()).collect(),
            pulls: (0..nodes).map(|node| layout.pulls(node_id(node)).pop()).collect(),
        });
        id
    }

    pub(crate) fn phase(&self, id: LayoutId) -> Phase {
        self.facts[&id].phase
    }

    pub(crate) fn epoch(&self, id: LayoutId) -> Epoch {
        self.facts[&id].epoch
    }

    /// What the claimant decides next, seeing these reports (installed, synced) of all nodes.
    pub(crate) fn next(&mut self, id: LayoutId, reports: Reports) -> Option<LayoutId> {
        let key = (id, reports);
        if let Some(known) = self.changes.get(&key) {
            return *known;
        }
        let mut desk = Desk::new(Patience::default());
        for (node, (installed, synced)) in key.1.iter().enumerate() {
            let report = Report { installed: *installed, synced: *synced, ..Report::default() };
            desk.hear_report(node_id(node as Node), report, Duration::ZERO);
        }
        let layout = self.layouts.of(id).clone();
        let change = desk.next(&layout, Duration::ZERO, &|_| Liveness::Up);
        let next = change.and_then(|change| change.apply(&layout, &BTreeSet::new()));
        let next = next.map(|layout| self.learn(layout));
        self.changes.insert(key, next);
        next
    }
}
