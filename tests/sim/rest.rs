//! The end of a run: the ring heals, comes to rest, is read, and its owners come to hold the same.

use crate::client::{Command, Reply, Wish};
use crate::cluster::{Cluster, Seat};
use crate::counts::Kind;
use crate::env::{Event, Index, MS, Micros, SECOND, index_of};
use crate::node::Process;
use thrifty::core::layout::Phase;
use thrifty::core::quorum::Consistency;

/// How long a healed ring may take to come to rest. The longest back-off is a minute, and it may be
/// met more than once.
const CONVERGE_WITHIN: Micros = 300 * SECOND;

/// How long owners at rest may take to hold the same.
const CATCH_UP_WITHIN: Micros = 20 * SECOND;

/// How long it may take until they have forgotten all deletes.
const FORGET_WITHIN: Micros = 60 * SECOND;

/// How long clients go on sending after the faults have ended.
pub(crate) const AFTERGLOW: Micros = 300 * MS;

impl Cluster {
    /// Ends the faults and checks what must hold after them.
    pub(crate) fn end(&mut self) -> Result<(), String> {
        self.heal();
        let latest = self.env.now + CONVERGE_WITHIN;
        self.go_on(|cluster| cluster.env.now >= latest || cluster.is_at_rest())?;
        if !self.is_at_rest() {
            return Err(format!("the ring does not come to rest:\n{}", self.describe()));
        }
        (0..self.env.plan.keys.len()).try_for_each(|key| self.read_at_last(key))?;
        let latest = self.env.now + CATCH_UP_WITHIN;
        self.go_on(|cluster| cluster.env.now >= latest || cluster.difference().is_none())?;
        if let Some(difference) = self.difference() {
            return Err(format!("owners still differ: {difference}\n{}", self.describe()));
        }
        if self.env.plan.collects {
            self.forget_at_last()?;
        }
        self.env.checker.search(&mut self.env.counts)
    }

    /// Where nothing is written any more, deletes are forgotten by and by, and what they held back stays
    /// away.
    fn forget_at_last(&mut self) -> Result<(), String> {
        let latest = self.env.now + FORGET_WITHIN;
        self.go_on(|cluster| cluster.env.now >= latest || cluster.remembered().is_none())?;
        if let Some(remembered) = self.remembered() {
            return Err(format!("a delete is not forgotten: {remembered}\n{}", self.describe()));
        }
        self.env.count(Kind::AllForgotten);
        (0..self.env.plan.keys.len()).try_for_each(|key| self.read_at_last(key))
    }

    /// A delete that an owner still holds.
    fn remembered(&self) -> Option<String> {
        let layout = self.env.checker.newest()?;
        layout.segments.all().find_map(|segment| {
            layout.current_owners(segment).map(index_of).find_map(|index| {
                let replica = &self.seats[index].process.as_ref()?.replica;
                let page = replica.snapshot(layout.epoch, segment, None, usize::MAX).ok()?;
                let (key, _) = page.records.into_iter().find(|(_, record)| record.value.is_none())?;
                Some(format!("{key:?} in segment {segment} at {index}"))
            })
        })
    }

    /// The faults are over: the network works and everybody who can comes back.
    fn heal(&mut self) {
        self.env.note(|| "the faults are over".into());
        self.env.healed = true;
        self.env.gossip.heal();
        for index in 0..self.seats.len() {
            if let Some(process) = &mut self.seats[index].process {
                process.replica.set_full(false);
                process.slow = (1, 0);
                process.fails_after = None;
            }
            self.restart_later(index, 200 * MS);
        }
        self.env.after(SECOND, Event::Operator);
    }

    /// After the faults an operator has those removed that are lost, or that left before a wish to join
    /// of theirs came late, again and again: the wish is kept by whoever hears it, and a crash forgets it.
    pub(crate) fn operate(&mut self) {
        let Some(layout) = self.env.checker.newest().cloned() else { return };
        if self.forcing {
            self.unite(&layout);
        }
        for index in 0..self.seats.len() {
            let seat = &self.seats[index];
            if (seat.dead || seat.gone) && layout.is_member(seat.member.id) {
                self.ask_removal(index);
            }
        }
        self.env.after(SECOND, Event::Operator);
    }

    /// Whether one Stable layout of exactly the nodes that live, with as many owners of each segment as it can
    /// have, is installed on all of them, and nobody wants anything any more.
    fn is_at_rest(&self) -> bool {
        if self.env.now < self.env.plan.duration + AFTERGLOW {
            return false;
        }
        let Some(layout) = self.env.checker.newest() else { return false };
        let here: Vec<&Seat> = self.seats.iter().filter(|seat| !seat.gone && !seat.dead).collect();
        layout.phase == Phase::Stable
            && layout.short() == 0
            && layout.members.len() == here.len()
            && here.iter().all(|seat| {
                let awake = seat.paused_until <= self.env.now;
                awake
                    && seat.process.as_ref().is_some_and(|process| {
                        process.membership.layout() == layout
                            && process.membership.is_member()
                            && !process.leaving
                            && process.requests.is_idle()
                    })
            })
    }

    /// A segment of which two owners hold something different.
    fn difference(&self) -> Option<String> {
        let layout = self.env.checker.newest()?;
        layout.segments.all().find_map(|segment| {
            let owners = layout.current_owners(segment).map(index_of);
            let held = |index: Index| {
                let replica = self.seats[index].process.as_ref().map(|process| &process.replica);
                // A digest is of keys and versions only: the values have to be looked at.
                let held = replica.and_then(|replica| {
                    let page = replica.snapshot(layout.epoch, segment, None, usize::MAX).ok()?;
                    Some((replica.digest(layout.epoch, segment).ok()?, page.records))
                });
                (index, held)
            };
            let held: Vec<_> = owners.map(held).collect();
            let same = held.iter().all(|(_, records)| records.is_some() && *records == held[0].1);
            (!same).then(|| format!("segment {segment} is {held:?}"))
        })
    }

    /// A read at QUORUM, sent until it is answered, as a person would.
    fn read_at_last(&mut self, key: usize) -> Result<(), String> {
        for _ in 0..5 {
            let number = self.env.fresh();
            let running = self.running();
            let node = self.env.rng.pick(&running);
            let patience = 2 * SECOND;
            let consistency = Consistency::Quorum;
            self.submit(
                node,
                Command { number, key, wish: Wish::Get, ttl: None, consistency, fallback: false, patience },
            );
            let latest = self.env.now + 3 * SECOND;
            self.go_on(|cluster| cluster.env.now >= latest || cluster.ended.contains_key(&number))?;
            if self.ended.get(&number) == Some(&Reply::Done) {
                return Ok(());
            }
        }
        Err(format!("key {key} can't be read in the end:\n{}", self.describe()))
    }

    fn describe(&self) -> String {
        let seat = |(index, seat): (Index, &Seat)| {
            let layout = seat.process.as_ref().map(Process::layout);
            let at = layout.map(|layout| (layout.epoch, layout.phase, layout.members.len()));
            let Seat { alive, wants_out, dead, gone, .. } = seat;
            format!("{index}: {at:?} alive {alive} wants out {wants_out} dead {dead} gone {gone}\n")
        };
        self.seats.iter().enumerate().map(seat).collect()
    }
}

#[test]
fn owners_that_have_another_value_under_one_version_differ() {
    use thrifty::core::record::{Record, Version};
    use thrifty::core::token::Token;
    use thrifty::storage::engine::{Engine, Entry};
    let cluster = Cluster::new(&crate::schedule::Schedule::of(1), false);
    let layout = cluster.env.checker.newest().cloned().expect("the first ring has a layout");
    let key = cluster.env.plan.keys[0].clone();
    let segment = layout.segment(&key);
    let owners: Vec<_> = layout.current_owners(segment).collect();
    let put = |owner: usize, value: &'static str| {
        let process = cluster.seats[index_of(owners[owner])].process.as_ref().expect("it runs");
        let slot = layout.slot(process.id, segment).expect("an owner has one");
        let record = Record::value(Version { hlc: 1, node: 1 }, value);
        let entry = Entry { slot, token: Token::of(&key), key: key.clone(), record };
        process.disk.engine.drop_slot(slot).expect("no engine fails here");
        process.disk.engine.merge(&[entry]).expect("no engine fails here");
        cluster.difference().is_some()
    };
    let last = owners.len() - 1;
    assert!(last > 0 && (0..last).all(|owner| put(owner, "one")));
    assert!(!put(last, "one"));
    assert!(put(last, "another"));
}
