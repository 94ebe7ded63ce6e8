//! Who is alive, as the nodes see it: the truth, late, and now and then wrong.
//!
//! The real thing is SWIM. What matters to the rest of the system is only that liveness steers and
//! never decides, so here it is made from the truth with a delay, cuts of the network included,
//! and with plain mistakes on top.

use crate::env::{Index, MS, Micros, index_of};
use crate::rng::Rng;
use thrifty::core::node::{Liveness, NodeId};

#[derive(Clone, Copy, Debug)]
struct Life {
    alive: bool,
    since: Micros,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Gossip {
    lives: Vec<Life>,
    /// How long it takes until a death is noticed.
    detect: Micros,
    /// The two sides of a cut network, one bit a node, and since when.
    cut: Option<(u32, Micros)>,
    mistakes: Vec<(Index, Index, Micros)>,
    /// Nodes that hear nothing of layouts, one bit a node, and until when.
    deaf: Vec<(u32, Micros)>,
    /// Nodes that hear no coordinator, and until when.
    numb: (u32, Micros),
    /// How many in a thousand are under suspicion, for no reason; it changes all the time.
    suspicion: u64,
}

/// What one node believes at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    up: u32,
    suspect: u32,
}

impl View {
    pub(crate) fn of(self, id: NodeId) -> Liveness {
        let bit = 1u32.checked_shl(index_of(id) as u32).unwrap_or(0);
        if self.up & bit != 0 {
            Liveness::Up
        } else if self.suspect & bit != 0 {
            Liveness::Suspect
        } else {
            Liveness::Down
        }
    }
}

impl Gossip {
    pub(crate) fn new(detect: Micros, suspicion: u64) -> Self {
        Gossip {
            lives: Vec::new(),
            detect,
            cut: None,
            mistakes: Vec::new(),
            deaf: Vec::new(),
            numb: (0, 0),
            suspicion,
        }
    }

    /// A node came to life or lost it.
    pub(crate) fn turned(&mut self, node: Index, alive: bool, now: Micros) {
        if self.lives.len() <= node {
            self.lives.resize(node + 1, Life { alive: false, since: 0 });
        }
        self.lives[node] = Life { alive, since: now };
    }

    /// How many nodes there ever were.
    pub(crate) fn known(&self) -> usize {
        self.lives.len()
    }

    pub(crate) fn cut(&mut self, side: Option<u32>, now: Micros) {
        self.cut = side.map(|side| (side, now));
    }

    pub(crate) fn is_cut(&self, a: Index, b: Index) -> bool {
        self.cut.is_some_and(|(side, _)| (side >> a & 1) != (side >> b & 1))
    }

    /// `observer` takes `subject` for dead for a while.
    pub(crate) fn mistake(&mut self, observer: Index, subject: Index, until: Micros) {
        self.mistakes.push((observer, subject, until));
    }

    /// Nothing about layouts reaches these nodes for a while.
    pub(crate) fn deafen(&mut self, nodes: u32, until: Micros) {
        self.deaf.push((nodes, until));
    }

    pub(crate) fn is_deaf(&self, node: Index, now: Micros) -> bool {
        self.deaf.iter().any(|(nodes, until)| now < *until && nodes >> node & 1 != 0)
    }

    /// Nothing that coordinators ask reaches these nodes for a while.
    pub(crate) fn numb(&mut self, nodes: u32, until: Micros) {
        self.numb = (nodes, until);
    }

    pub(crate) fn is_numb(&self, node: Index, now: Micros) -> bool {
        now < self.numb.1 && self.numb.0 >> node & 1 != 0
    }

    pub(crate) fn heal(&mut self) {
        self.cut = None;
        self.mistakes.clear();
        self.deaf.clear();
        self.numb = (0, 0);
        self.suspicion = 0;
    }

    /// What `observer` believes.
    pub(crate) fn view(&self, observer: Index, now: Micros) -> View {
        let mut view = View { up: 0, suspect: 0 };
        for (subject, life) in self.lives.iter().enumerate() {
            // Not all hear of it at once: up to twice the delay, by who looks at whom.
            let detect = self.detect + self.detect * ((observer * 7 + subject * 3) % 8) as u64 / 8;
            let for_so_long = now - life.since;
            let mut gone_for = if life.alive { 0 } else { for_so_long };
            if let Some((_, since)) = self.cut.filter(|_| self.is_cut(observer, subject)) {
                gone_for = gone_for.max(now - since);
            }
            let mistaken = |m: &(Index, Index, Micros)| m.0 == observer && m.1 == subject && now < m.2;
            if self.mistakes.iter().any(mistaken) {
                gone_for = Micros::MAX;
            }
            if self.suspicion > 0 && gone_for < detect {
                let what = (observer as u64) << 40 | (subject as u64) << 32 | (now / (100 * MS));
                if Rng::new(what).chance(self.suspicion) {
                    gone_for = gone_for.max(detect / 2);
                }
            }
            if observer == subject || gone_for < detect / 2 {
                view.up |= 1 << subject;
            } else if gone_for < detect {
                view.suspect |= 1 << subject;
            }
        }
        view
    }
}
