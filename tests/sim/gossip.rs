//! Who is alive, as the nodes see it: the truth, late, and now and then wrong.
//!
//! The real thing is SWIM. What matters to the rest of the system is only that liveness steers and
//! never decides, so here it is made from the truth with a delay, cuts of the network included,
//! and with plain mistakes on top.

use crate::counts::Kind;
use crate::env::{Index, MS, Micros, index_of};
use crate::rng::Rng;
use std::collections::BTreeMap;
use thrifty::core::node::{Liveness, NodeId, RingId};
use thrifty::core::token::Epoch;

#[derive(Clone, Copy, Debug)]
struct Life {
    alive: bool,
    since: Micros,
}

/// Which packets a broken network does not carry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Broken {
    /// Those between these nodes, one bit each, and the others.
    Between(u32),
    /// Those from these nodes to the others.
    From(u32),
    /// Those between nodes that are not neighbours in this circle.
    Across(Vec<Index>),
}

impl Broken {
    /// As what the packets are counted that it does not carry.
    fn kind(&self) -> Kind {
        match self {
            Broken::Between(_) => Kind::Cut,
            Broken::From(_) => Kind::OneWay,
            Broken::Across(_) => Kind::Ring,
        }
    }

    fn swallows(&self, from: Index, to: Index) -> bool {
        match self {
            Broken::Between(side) => (side >> from & 1) != (side >> to & 1),
            Broken::From(side) => side >> from & 1 != 0 && side >> to & 1 == 0,
            Broken::Across(circle) => {
                let place = |node| circle.iter().position(|other| *other == node);
                let (Some(from), Some(to)) = (place(from), place(to)) else { return false };
                let apart = from.abs_diff(to);
                apart.min(circle.len() - apart) > 1
            }
        }
    }
}

#[derive(Debug)]
struct Cut {
    broken: Broken,
    since: Micros,
    /// Whether those who don't hear one another take one another for dead; others may vouch for them.
    noticed: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Gossip {
    lives: Vec<Life>,
    /// Of which ring each is a member, and since when: those of others hear nothing from it.
    rings: Vec<(Option<RingId>, Micros)>,
    /// How long it takes until a death is noticed.
    detect: Micros,
    cut: Option<Cut>,
    /// How many cuts there ever were: the number of the last.
    cuts: u64,
    mistakes: Vec<(Index, Index, Micros)>,
    /// Nodes that hear nothing of layouts, one bit a node, and until when.
    deaf: Vec<(u32, Micros)>,
    /// Nodes that hear no coordinator, and until when.
    numb: (u32, Micros),
    /// How many in a thousand are under suspicion, for no reason; it changes all the time.
    suspicion: u64,
    /// Whom each node took for dead while it could vote at an epoch, one bit a node.
    called: BTreeMap<(Index, Epoch), u32>,
    /// Who ever asked to leave, one bit a node.
    leavers: u32,
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
            rings: Vec::new(),
            detect,
            cut: None,
            cuts: 0,
            mistakes: Vec::new(),
            deaf: Vec::new(),
            numb: (0, 0),
            suspicion,
            called: BTreeMap::new(),
            leavers: 0,
        }
    }

    /// A node came to life or lost it.
    pub(crate) fn turned(&mut self, node: Index, alive: bool, now: Micros) {
        if self.lives.len() <= node {
            self.lives.resize(node + 1, Life { alive: false, since: 0 });
            self.rings.resize(node + 1, (None, 0));
        }
        self.lives[node] = Life { alive, since: now };
    }

    /// A node has become a member of this ring, or of none.
    pub(crate) fn entered(&mut self, node: Index, ring: Option<RingId>, now: Micros) {
        if self.rings[node].0 != ring {
            self.rings[node] = (ring, now);
        }
    }

    /// The ring that a node is a member of.
    pub(crate) fn ring(&self, node: Index) -> Option<RingId> {
        self.rings[node].0
    }

    /// How many nodes there ever were.
    pub(crate) fn known(&self) -> usize {
        self.lives.len()
    }

    /// Cuts the network, in place of a cut that there may be already; the cut's number.
    pub(crate) fn cut(&mut self, broken: Broken, noticed: bool, now: Micros) -> u64 {
        self.cut = Some(Cut { broken, since: now, noticed });
        self.cuts += 1;
        self.cuts
    }

    /// The cut of this number ends, unless a later one has taken its place.
    pub(crate) fn mend(&mut self, cut: u64) {
        self.cut.take_if(|_| cut == self.cuts);
    }

    pub(crate) fn is_cut(&self, from: Index, to: Index) -> bool {
        self.cut_between(from, to).is_some()
    }

    /// Which kind of cut keeps packets from getting there.
    pub(crate) fn cut_between(&self, from: Index, to: Index) -> Option<Kind> {
        self.cut.as_ref().filter(|cut| cut.broken.swallows(from, to)).map(|cut| cut.broken.kind())
    }

    /// A node answers its voters at this epoch: whom it may have called down.
    pub(crate) fn called_down(&mut self, observer: Index, epoch: Epoch, now: Micros) {
        let view = self.view(observer, now);
        *self.called.entry((observer, epoch)).or_default() |= !(view.up | view.suspect);
    }

    /// A node says from now on that it wants to leave.
    pub(crate) fn leaves(&mut self, node: Index) {
        self.leavers |= 1 << node;
    }

    pub(crate) fn asked_to_leave(&self, id: NodeId) -> bool {
        self.leavers >> index_of(id) & 1 != 0
    }

    /// Whether a node may have called another down at this epoch.
    pub(crate) fn did_call(&self, observer: NodeId, subject: NodeId, epoch: Epoch) -> bool {
        let called = self.called.get(&(index_of(observer), epoch)).copied().unwrap_or_default();
        called >> index_of(subject) & 1 != 0
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
            let apart = || self.is_cut(observer, subject) || self.is_cut(subject, observer);
            if let Some(cut) = self.cut.as_ref().filter(|cut| cut.noticed && apart()) {
                gone_for = gone_for.max(now - cut.since);
            }
            let (ours, theirs) = (self.rings[observer], self.rings[subject]);
            if ours.0.is_some() && theirs.0.is_some() && ours.0 != theirs.0 {
                gone_for = gone_for.max(now - ours.1.max(theirs.1));
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

#[test]
fn the_end_of_a_cut_leaves_a_later_one_alone() {
    let mut gossip = Gossip::new(MS, 0);
    let first = gossip.cut(Broken::Between(1), true, 0);
    let second = gossip.cut(Broken::From(2), true, 0);
    gossip.mend(first);
    assert_eq!((gossip.cut_between(0, 2), gossip.cut_between(1, 2)), (None, Some(Kind::OneWay)));
    gossip.mend(second);
    assert!(!gossip.is_cut(1, 2));
}
