//! Every way in which what was deleted could come back, tried on three replicas.

use super::*;
use crate::core::layout::tests::{member, ring_of};
use crate::storage::simulated::SimulatedEngine;
use proptest::prelude::*;

type Shared = Arc<dyn Engine>;

const KEY: Bytes = Bytes::from_static(b"k");

fn version(hlc: u64) -> Version {
    Version { hlc, node: 1 }
}

fn replica_of(engine: Shared, me: u128, layout: &Layout) -> Replica<Shared> {
    Replica::new(NodeId(me), engine, Arc::new(layout.clone()), Clock::resume(0)).unwrap()
}

fn write(replica: &Replica<Shared>, epoch: Epoch, record: &Record) -> Answer {
    let request = Request { epoch, key: KEY, ask: Ask::Write(record.clone()) };
    match replica.handle(&[request]).unwrap().remove(0) {
        Handled::Now(answer) | Handled::AfterSync(answer) => answer,
        Handled::Behind => Answer::Silence,
    }
}

fn held(replica: &Replica<Shared>) -> Option<Record> {
    let layout = replica.layout();
    replica.engine().get(layout.slot(replica.me, layout.segment(&KEY)).unwrap(), &KEY).unwrap()
}

#[test]
fn a_record_is_forgotten_at_a_collecting_layout_by_who_still_holds_it() {
    let ring = ring_of(3, 3, 4);
    let (e, c, at) = (ring.epoch, ring.epoch + 1, ring.segment(&KEY));
    let replica = replica_of(Arc::new(SimulatedEngine::new()), 1, &ring);
    let tombstone = Record::tombstone(version(7));
    write(&replica, e, &tombstone);
    let forget = |epoch, hlc| replica.forget(epoch, at, &[(KEY, version(hlc))]);
    assert!(matches!(forget(e, 7), Err(Refusal::NotCollecting(_))));
    assert!(matches!(forget(c, 7), Err(Refusal::Behind(_))));
    assert!(matches!(replica.collects_at(c), Err(Refusal::Behind(_))));
    replica.install(Arc::new(ring.collecting()));
    assert!(matches!(forget(e, 7), Err(Refusal::Stale(_))));
    replica.collects_at(c).unwrap();
    forget(c, 6).unwrap();
    forget(c, 8).unwrap();
    assert_eq!(held(&replica), Some(tombstone.clone()));
    forget(c, 7).unwrap();
    assert_eq!(held(&replica), None);
    // What is still on its way from before is fenced.
    assert_eq!(write(&replica, e, &Record::value(version(5), "old")), Answer::Stale(c));
    let slot = ring.slot(NodeId(1), at).unwrap();
    let page = Page { records: vec![(KEY, Record::value(version(5), "old"))], last: true, clock: 0 };
    assert!(matches!(replica.absorb(e, slot, page), Err(Refusal::Stale(_))));
    // And what is to be forgotten too late stays.
    write(&replica, c, &tombstone);
    replica.install(Arc::new(ring.collecting().dual(&[member(4)], &BTreeSet::new()).unwrap()));
    assert!(matches!(forget(c, 7), Err(Refusal::Stale(_))));
    assert!(matches!(forget(c + 1, 7), Err(Refusal::NotCollecting(_))));
    assert_eq!(held(&replica), Some(tombstone));
}

#[test]
fn only_what_is_dead_and_this_very_version_is_confirmed_and_durable_then() {
    let ring = ring_of(1, 1, 1);
    let engine = Arc::new(SimulatedEngine::new());
    let replica = replica_of(engine.clone(), 1, &ring);
    let confirm = |hlc, now| replica.confirm(ring.epoch, Segment(0), &[(KEY, version(hlc))], now).unwrap();
    assert_eq!(confirm(5, 100), [false]);
    write(&replica, ring.epoch, &Record { expires_at_ms: Some(100), ..Record::value(version(5), "v") });
    assert_eq!(engine.unsynced(), 1);
    assert_eq!(
        [confirm(5, 99), confirm(5, 100), confirm(4, 100), confirm(6, 100)].concat(),
        [false, true, false, false]
    );
    assert_eq!(engine.unsynced(), 0);
    write(&replica, ring.epoch, &Record::value(version(6), "v"));
    assert_eq!([confirm(5, 1000), confirm(6, 1000)].concat(), [false, false]);
    write(&replica, ring.epoch, &Record::tombstone(version(7)));
    assert_eq!(confirm(7, 0), [true]);
    assert!(replica.confirm(ring.epoch + 1, Segment(0), &[], 0).is_err());
}

/// What may happen next, to which of three owners, and how.
#[derive(Clone, Debug)]
enum Step {
    /// A write of the old value arrives that was sent at the first epoch.
    Late(usize),
    /// A tombstone arrives, at the owner's own epoch.
    Delete(usize),
    /// One owner takes a page of its segment for another, a puller or one that catches up.
    Page(usize),
    /// A page that was taken arrives, now or much later, at another owner.
    Arrives(usize, usize),
    /// The next layout is installed.
    Install(usize),
    /// All owners are asked what they hold.
    Confirm,
    /// One owner is told to forget what was confirmed.
    Forget(usize),
    Sync(usize),
    /// It starts again, with so many of the unsynced writes.
    Crash(usize, usize),
}

/// Every other time the old value was everywhere, pages of it are on their way, and it was deleted.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = || 0..3usize;
    let step = prop_oneof![
        3 => who().prop_map(Step::Late),
        6 => who().prop_map(Step::Delete),
        2 => who().prop_map(Step::Page),
        3 => (0..6usize, who()).prop_map(|(page, to)| Step::Arrives(page, to)),
        6 => who().prop_map(Step::Install),
        5 => Just(Step::Confirm),
        8 => who().prop_map(Step::Forget),
        1 => who().prop_map(Step::Sync),
        2 => (who(), 0..3usize).prop_map(|(at, keep)| Step::Crash(at, keep)),
    ];
    let before = (0..3).map(Step::Late).chain((0..3).map(Step::Page)).chain((0..3).map(Step::Delete));
    let before: Vec<Step> = before.collect();
    (any::<bool>(), proptest::collection::vec(step, 20..60))
        .prop_map(move |(deleted, steps)| if deleted { [before.clone(), steps].concat() } else { steps })
}

/// Carries the steps out; how often a tombstone was forgotten.
fn run(steps: Vec<Step>) -> Result<usize, TestCaseError> {
    // An ordinary epoch, then two at which is collected.
    let ring = ring_of(3, 3, 1);
    let layouts = [ring.clone(), ring.collecting(), ring.collecting().collecting()];
    let (first, slot) = (ring.epoch, |id| ring.slot(NodeId(id as u128 + 1), Segment(0)).unwrap());
    let engines: Vec<Arc<SimulatedEngine>> = (0..3).map(|_| Arc::default()).collect();
    let start = |at: usize, layout: &Layout| replica_of(engines[at].clone(), at as u128 + 1, layout);
    let mut owners: Vec<_> = (0..3).map(|at| start(at, &ring)).collect();
    let (old, tombstone) = (Record::value(version(5), "old"), Record::tombstone(version(7)));
    let dead = [(KEY, tombstone.version)];
    let (mut pages, mut found, mut forgotten): (Vec<(Epoch, Page)>, Option<Layout>, _) = (vec![], None, 0);
    for step in steps {
        match step {
            // The coordinator ends it at a collecting layout, so that it is never sent again at one.
            Step::Late(at) => _ = write(&owners[at], first, &old),
            Step::Delete(at) if found.is_none() => {
                _ = write(&owners[at], owners[at].layout().epoch, &tombstone);
            }
            Step::Delete(_) => {}
            Step::Page(at) => {
                let epoch = owners[at].layout().epoch;
                pages.push((epoch, owners[at].snapshot(epoch, Segment(0), None, 100).unwrap()));
            }
            Step::Arrives(page, to) => {
                if let Some((epoch, page)) = pages.get(page) {
                    let _refused = owners[to].absorb(*epoch, slot(to), page.clone());
                }
            }
            Step::Install(at) => {
                let next = (owners[at].layout().epoch + 1 - first) as usize;
                layouts.get(next).into_iter().for_each(|next| owners[at].install(Arc::new(next.clone())));
            }
            Step::Confirm => {
                let layout = owners[0].layout();
                let held = |owner: &Replica<Shared>| {
                    owner.confirm(layout.epoch, Segment(0), &dead, 0).is_ok_and(|held| held == [true])
                };
                if found.is_none() && owners.iter().all(held) {
                    found = Some((*layout).clone());
                }
            }
            Step::Forget(at) => {
                let layout = owners[at].layout();
                let may = found.as_ref().is_some_and(|found| layout.may_drop(found, Segment(0)));
                if may && owners.iter().all(|owner| owner.layout().epoch >= layout.epoch) {
                    owners[at].forget(layout.epoch, Segment(0), &dead).unwrap();
                    forgotten += usize::from(held(&owners[at]).is_none());
                }
            }
            Step::Sync(at) => owners[at].sync().unwrap(),
            Step::Crash(at, keep) => {
                let layout = owners[at].layout();
                engines[at].crash(keep).unwrap();
                owners[at] = start(at, &layout);
            }
        }
        if found.is_some() {
            for owner in &owners {
                prop_assert!(held(owner).is_none_or(|record| record == tombstone), "it is back");
            }
        }
    }
    Ok(forgotten)
}

#[test]
fn what_was_forgotten_never_comes_back() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let forgotten = std::cell::Cell::new(0);
    let ran = runner.run(&steps(), |steps| {
        forgotten.set(forgotten.get() + run(steps)?);
        Ok(())
    });
    ran.unwrap();
    assert!(forgotten.get() > 20, "it was hardly tried: {}", forgotten.get());
}
