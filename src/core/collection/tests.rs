use super::*;
use crate::core::layout::tests::{member, ring_of};
use crate::core::node::{Liveness, RingId};
use crate::core::transition::{Desk, Patience, Report};
use std::collections::BTreeSet;
use std::time::Duration;

#[test]
fn a_collecting_layout_has_the_same_table_and_is_remembered() {
    let ring = ring_of(3, 3, 8);
    let collecting = ring.collecting();
    collecting.validate().unwrap();
    assert!(collecting.collects() && !ring.collects());
    assert_eq!((collecting.epoch, &collecting.current), (ring.epoch + 1, &ring.current));
    let dual = collecting.dual(&[member(4)], &BTreeSet::new()).unwrap();
    for later in [dual.clone(), dual.read_new(), dual.read_new().settled(), dual.aborted()] {
        assert_eq!(later.collected, collecting.epoch);
        assert!(!later.collects());
    }
}

#[test]
fn only_what_the_same_owners_held_at_an_earlier_stable_layout_is_dropped() {
    let ring = ring_of(3, 3, 8);
    let collecting = ring.collecting();
    let at = Segment(0);
    assert!(collecting.may_drop(&ring, at));
    assert!(collecting.collecting().may_drop(&ring, at));
    assert!(!collecting.may_drop(&collecting, at), "not what was found at this very layout");
    assert!(!collecting.may_drop(&collecting.collecting(), at));
    assert!(!ring.may_drop(&ring, at), "this one does not collect");
    assert!(!collecting.may_drop(&Layout { ring: RingId(99), ..ring.clone() }, at));
    let dual = ring.dual(&[member(4)], &BTreeSet::from([NodeId(1)])).unwrap();
    let settled = dual.read_new().settled();
    assert!(!settled.collecting().may_drop(&ring, at), "another node has come");
    assert!(!settled.collecting().may_drop(&dual, at), "that was not Stable");
    assert!(settled.collecting().may_drop(&settled, at));
    // The same node, but it was away in between.
    let back = settled.dual(&[member(1)], &BTreeSet::from([NodeId(4)])).unwrap().read_new().settled();
    assert!(!back.collecting().may_drop(&ring, at));
    let aborted = ring.dual(&[member(4)], &BTreeSet::new()).unwrap().aborted();
    assert!(aborted.collecting().may_drop(&ring, at), "nobody came or went");
}

const EXPIRES: u64 = 100;
const LIST_BYTES: usize = 1 << 20;

fn version(hlc: u64) -> Version {
    Version { hlc, node: 1 }
}

fn dead(keys: &[&str]) -> Dead {
    keys.iter().map(|key| (Bytes::from((*key).to_owned()), version(7))).collect()
}

/// The node 1, of a ring of three with one segment, after it has looked at a time and all but the
/// node 3 hold all that is dead.
fn found(ring: &Layout, now_ms: u64) -> (Collector, Dead) {
    let me = ring.current_owners(Segment(0)).next().unwrap();
    let mut collector = Collector::look(me, Arc::new(ring.clone()), LIST_BYTES);
    assert_eq!(collector.asks(), [Ask::Page(Segment(0), None)]);
    let expiring = Record { expires_at_ms: Some(EXPIRES), ..Record::value(version(7), "v") };
    let [gone, live] = [Record::tombstone(version(7)), Record::value(version(7), "v")];
    let records = [("a", gone.clone()), ("b", live), ("c", expiring), ("d", gone)];
    let records = records.into_iter().map(|(key, record)| (Bytes::from(key), record)).collect();
    collector.answered(vec![Answer::Page(records, now_ms)]);
    let asks = collector.asks();
    let Some(Ask::Confirm(_, _, asked)) = asks.first() else { panic!("{asks:?}") };
    let asked = asked.clone();
    let owners = ring.current_owners(Segment(0));
    let expected: Vec<_> = owners.map(|owner| Ask::Confirm(owner, Segment(0), asked.clone())).collect();
    assert_eq!(asks, expected);
    let held = |owner: u128| asked.iter().map(|(key, _)| owner != 3 || key != "d").collect();
    collector.answered((1..=3).map(|owner| Answer::Held(held(owner))).collect());
    assert_eq!(collector.asks(), [Ask::Page(Segment(0), Some("d".into()))]);
    collector.answered(vec![Answer::Page(Vec::new(), now_ms)]);
    assert!(collector.asks().is_empty());
    assert_eq!(collector.found(), Found::All);
    (collector, asked)
}

#[test]
fn what_all_owners_confirm_is_forgotten_once_all_have_installed() {
    let ring = ring_of(3, 3, 1);
    assert_eq!(found(&ring, EXPIRES - 1).1, dead(&["a", "d"]));
    let (mut collector, asked) = found(&ring, EXPIRES);
    assert_eq!(asked, dead(&["a", "c", "d"]));
    collector.installed(Arc::new(ring.clone()));
    assert_eq!(collector.found(), Found::All, "nothing is new");
    collector.installed(Arc::new(ring.collecting()));
    assert_eq!(collector.layout().epoch, ring.epoch + 1);
    let installed: Vec<_> = ring.ids().map(Ask::Installed).collect();
    assert_eq!(collector.asks(), installed);
    collector.answered(vec![Answer::Done, Answer::Failed, Answer::Done]);
    assert_eq!(collector.asks(), installed, "one has not");
    collector.answered(vec![Answer::Done; 3]);
    let owners = ring.current_owners(Segment(0));
    let forget: Vec<_> = owners.map(|id| Ask::Forget(id, Segment(0), dead(&["a", "c"]))).collect();
    assert_eq!(collector.asks(), forget);
    assert_eq!(collector.forgotten(), None);
    collector.answered(vec![Answer::Done; 3]);
    assert_eq!((collector.asks(), collector.forgotten()), (Vec::new(), Some(2)));
}

/// The node 1, as the only owner of some segments, about to look.
fn alone(segments: u64, list_bytes: usize) -> (Layout, Collector) {
    let ring = ring_of(1, 1, segments);
    let collector = Collector::look(NodeId(1), Arc::new(ring.clone()), list_bytes);
    (ring, collector)
}

/// It is given the next page of a segment, with such a tombstone, and all hold that.
fn finds(collector: &mut Collector, segment: u16, after: Option<&str>, key: &str) {
    let after = after.map(|after| Bytes::from(after.to_owned()));
    assert_eq!(collector.asks(), [Ask::Page(Segment(segment), after)]);
    let record = (Bytes::from(key.to_owned()), Record::tombstone(version(7)));
    collector.answered(vec![Answer::Page(vec![record], 0)]);
    assert_eq!(collector.asks(), [Ask::Confirm(NodeId(1), Segment(segment), dead(&[key]))]);
    collector.answered(vec![Answer::Held(vec![true])]);
}

fn forgets(collector: &mut Collector, segment: u16, keys: &[&str]) {
    assert_eq!(collector.asks(), [Ask::Installed(NodeId(1))]);
    collector.answered(vec![Answer::Done]);
    assert_eq!(collector.asks(), [Ask::Forget(NodeId(1), Segment(segment), dead(keys))]);
}

#[test]
fn a_look_outlasts_a_collecting_layout_and_what_it_found_goes_at_the_next() {
    let (ring, mut collector) = alone(2, LIST_BYTES);
    finds(&mut collector, 0, None, "a");
    collector.answered(vec![Answer::Failed]);
    let collecting = ring.collecting();
    collector.installed(Arc::new(collecting.clone()));
    assert_eq!((collector.layout(), collector.found()), (&collecting, Found::Nothing));
    finds(&mut collector, 0, Some("a"), "b");
    collector.answered(vec![Answer::Page(Vec::new(), 0)]);
    assert_eq!(collector.asks(), [Ask::Page(Segment(1), None)]);
    collector.answered(vec![Answer::Page(Vec::new(), 0)]);
    assert_eq!((collector.asks(), collector.found()), (Vec::new(), Found::All));
    // What was found at the collecting layout, and before.
    collector.installed(Arc::new(collecting.collecting()));
    forgets(&mut collector, 0, &["a", "b"]);
    // Some may have forgotten it at that one, and some not.
    collector.installed(Arc::new(collecting.collecting().collecting()));
    forgets(&mut collector, 0, &["a", "b"]);
    collector.answered(vec![Answer::Done]);
    assert_eq!(collector.forgotten(), Some(2));
}

#[test]
fn more_than_one_list_is_found_and_forgotten_one_after_the_other() {
    let (mut ring, mut collector) = alone(1, 1);
    let mut after = None;
    for key in ["a", "b", "c"] {
        finds(&mut collector, 0, after.replace(key), key);
        assert_eq!((collector.asks(), collector.found()), (Vec::new(), Found::Full));
        ring = ring.collecting();
        collector.installed(Arc::new(ring.clone()));
        forgets(&mut collector, 0, &[key]);
        collector.answered(vec![Answer::Done]);
    }
    assert_eq!((collector.layout(), collector.forgotten()), (&ring, None));
    collector.answered(vec![Answer::Page(Vec::new(), 0)]);
    assert_eq!((collector.asks(), collector.forgotten()), (Vec::new(), Some(3)));
}

#[test]
fn trouble_that_stays_and_any_other_change_of_the_ring_end_it() {
    let ring = ring_of(3, 3, 1);
    let me = ring.current_owners(Segment(0)).next().unwrap();
    let look = || Collector::look(me, Arc::new(ring.clone()), LIST_BYTES);
    let page = || Answer::Page(vec![("k".into(), Record::tombstone(version(7)))], 0);
    let failing = || vec![Answer::Held(vec![true]), Answer::Failed, Answer::Held(vec![true])];
    let fails = |mut collector: Collector| {
        let (asks, forgotten) = (collector.asks(), collector.forgotten);
        for tries in 1..=TRIES {
            assert_eq!((collector.asks(), collector.forgotten()), (asks.clone(), None), "{tries}");
            collector.answered(failing());
        }
        assert_eq!((collector.asks(), collector.forgotten()), (Vec::new(), Some(forgotten)));
    };
    fails(look());
    let mut confirms = look();
    confirms.answered(failing());
    confirms.answered(vec![page()]);
    fails(confirms);
    let (mut waits, _) = found(&ring, EXPIRES);
    waits.installed(Arc::new(ring.collecting()));
    fails(waits);
    let (mut forgets, _) = found(&ring, EXPIRES);
    forgets.installed(Arc::new(ring.collecting()));
    forgets.answered(vec![Answer::Done; 3]);
    fails(forgets);
    let mut misled = look();
    misled.answered(vec![page()]);
    misled.answered(vec![Answer::Held(vec![true, true]); 3]);
    assert_eq!(misled.forgotten(), Some(0), "an answer to something else");
    let dual = ring.dual(&[member(4)], &BTreeSet::from([NodeId(3)])).unwrap();
    for changed in [
        dual.clone(),
        dual.read_new().settled().collecting(),
        Layout { ring: RingId(9), ..ring.collecting() },
    ] {
        for mut collector in [look(), found(&ring, 0).0] {
            collector.installed(Arc::new(changed.clone()));
            assert_eq!(collector.forgotten(), Some(0), "{changed:?}");
        }
    }
    let (mut back, _) = found(&ring, 0);
    back.installed(Arc::new(ring.dual(&[member(4)], &BTreeSet::new()).unwrap().aborted()));
    assert_eq!(back.found(), Found::All, "nobody came or went");
}

#[test]
fn lists_are_cut_to_what_a_question_may_carry() {
    let dead: Dead = (0..20_000).map(|i| (Bytes::from(format!("{i}")), Version::ABSENT)).collect();
    let batches = batches(dead.clone());
    assert!(batches.len() > 1 && batches.iter().all(|b| b.iter().map(cost).sum::<usize>() <= CALL_BYTES));
    assert!(batches.iter().all(|batch| batch.len() <= MAX_LISTED));
    assert_eq!(batches.concat(), dead);
}

/// How many pages each of three nodes has of a segment.
const PAGES: [u64; 3] = [2, 5, 30];

/// A round of questions takes a second, and the claimant has things forgotten every ten seconds.
#[test]
fn who_looks_for_long_collects_too_though_others_are_done_and_begin_anew_all_the_time() {
    let mut layout = Arc::new(ring_of(3, 3, 8));
    let patience = Patience { collect_every: Duration::from_secs(10), ..Patience::default() };
    let mut desk = Desk::new(patience);
    let look = |id: u128, layout: &Arc<Layout>| Collector::look(NodeId(id), layout.clone(), LIST_BYTES);
    let mut collectors: Vec<Collector> = (1..=3).map(|id| look(id, &layout)).collect();
    let (mut forgotten, mut pages) = ([0; 3], [0; 3]);
    for second in 0..1_000 {
        let now = Duration::from_secs(second);
        for (at, collector) in collectors.iter_mut().enumerate() {
            let (id, stale) = (NodeId(at as u128 + 1), collector.layout().epoch < layout.epoch);
            let answers = collector.asks().into_iter().map(|ask| match ask {
                // Others have installed the next layout a moment before this node.
                _ if stale => Answer::Failed,
                Ask::Page(..) => {
                    pages[at] += 1;
                    let record = (Bytes::from(format!("{}", pages[at])), Record::tombstone(version(7)));
                    Answer::Page((pages[at] % PAGES[at] != 0).then_some(record).into_iter().collect(), 0)
                }
                Ask::Confirm(_, _, dead) => Answer::Held(vec![true; dead.len()]),
                Ask::Installed(_) | Ask::Forget(..) => Answer::Done,
            });
            let answers: Vec<Answer> = answers.collect();
            if !answers.is_empty() {
                collector.answered(answers);
            }
            collector.installed(layout.clone());
            if let Some(keys) = collector.forgotten() {
                forgotten[at] += keys;
                *collector = look(id.0, &layout);
            }
            let report = Report { installed: layout.epoch, found: collector.found(), ..Report::default() };
            desk.hear_report(id, report, now);
        }
        if let Some(change) = desk.next(&layout, now, &|_| Liveness::Up) {
            let next = Arc::new(change.apply(&layout, &BTreeSet::new()).unwrap());
            desk.installed(&layout, &next, now);
            layout = next;
        }
    }
    assert!(forgotten.iter().all(|keys| *keys > 0), "{forgotten:?}");
}
