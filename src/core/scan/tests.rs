use super::*;
use crate::core::layout::tests::{member, ring_of};
use crate::core::record::Version;
use crate::core::token::Segment;
use std::collections::BTreeSet;
use std::time::Duration;

const T0: Moment = Duration::ZERO;

fn stretch(after: &str) -> Stretch {
    let (prefix, after) = (Bytes::new(), Bytes::copy_from_slice(after.as_bytes()));
    Stretch { segment: Segment(0), prefix, after, keys_only: false, max_bytes: 100 }
}

fn start(layout: &Layout, consistency: Consistency) -> (Scan, Vec<NodeId>) {
    let terms = Terms::new(consistency, false, T0, Duration::from_secs(2));
    let me = layout.read_owners(Segment(0))[0];
    let mut out = Vec::new();
    let layout = Arc::new(layout.clone());
    let scan = Scan::start(me, layout, stretch(""), terms, T0, &|_| Liveness::Up, &mut out);
    (scan, asked(&out))
}

fn asked(actions: &[Action]) -> Vec<NodeId> {
    actions.iter().filter_map(|a| if let Action::Ask(id, ..) = a { Some(*id) } else { None }).collect()
}

/// Keys with the stamps of their versions; 0 is a tombstone of stamp 9.
fn page(records: &[(&'static str, u64)], last: bool) -> Answer {
    let record = |hlc| match hlc {
        0 => Record::tombstone(Version { hlc: 9, node: 1 }),
        hlc => Record::value(Version { hlc, node: 1 }, format!("v{hlc}")),
    };
    let records = records.iter().map(|(key, hlc)| (Bytes::from(*key), record(*hlc))).collect();
    Answer::Page(Page { records, last })
}

fn answer(scan: &mut Scan, from: NodeId, answer: Answer) -> Vec<NodeId> {
    let mut out = Vec::new();
    scan.answered(from, scan.epoch(), answer, T0, &mut out);
    asked(&out)
}

fn done(scan: &Scan) -> Option<(Vec<(&str, u64)>, bool)> {
    let Some(Outcome::Done(page, _)) = scan.outcome() else { return None };
    let of = |(key, record): &'_ (Bytes, Record)| (str_of(key), record.version.hlc);
    // Leaked for a test's sake.
    fn str_of(key: &Bytes) -> &'static str {
        String::from_utf8(key.to_vec()).unwrap().leak()
    }
    Some((page.records.iter().map(of).collect(), page.last))
}

#[test]
fn a_quorum_is_asked_and_the_newest_of_each_key_taken() {
    let (mut scan, asked) = start(&ring_of(3, 3, 4), Consistency::Quorum);
    assert_eq!(asked.len(), 2);
    assert_eq!(answer(&mut scan, asked[0], page(&[("a", 1), ("b", 5), ("d", 0)], true)), []);
    assert_eq!(done(&scan), None);
    answer(&mut scan, asked[1], page(&[("a", 2), ("c", 3), ("d", 4)], true));
    assert_eq!(done(&scan), Some((vec![("a", 2), ("b", 5), ("c", 3), ("d", 9)], true)));
}

#[test]
fn it_goes_as_far_as_all_pages_go() {
    let (mut scan, asked) = start(&ring_of(3, 3, 4), Consistency::Quorum);
    answer(&mut scan, asked[0], page(&[("a", 1), ("b", 1), ("e", 1)], true));
    answer(&mut scan, asked[1], page(&[("b", 2), ("c", 2)], false));
    assert_eq!(done(&scan), Some((vec![("a", 1), ("b", 2), ("c", 2)], false)), "c to e may hide a d");
}

#[test]
fn pages_of_two_epochs_are_not_added_up() {
    let ring = ring_of(3, 3, 4);
    let (mut scan, asked) = start(&ring, Consistency::Quorum);
    answer(&mut scan, asked[0], page(&[("a", 1)], true));
    let dual = Arc::new(ring.dual(&[member(4)], &BTreeSet::new()).unwrap());
    let mut out = Vec::new();
    scan.installed(dual.clone(), T0, &|_| Liveness::Up, &mut out);
    assert_eq!(out.len(), 3, "a quorum of each set: {out:?}");
    assert!(out.iter().all(|action| matches!(action, Action::Ask(_, epoch, _) if *epoch == dual.epoch)));
    answer(&mut scan, asked[1], page(&[("a", 1)], true));
    assert_eq!(done(&scan), None);
    let mut late = Vec::new();
    scan.answered(asked[0], ring.epoch, page(&[("a", 1)], true), T0, &mut late);
    assert_eq!(done(&scan), None);
}

#[test]
fn whoever_is_silent_is_made_up_for() {
    let ring = ring_of(3, 3, 4);
    let (mut scan, asked) = start(&ring, Consistency::Quorum);
    let third = answer(&mut scan, asked[1], Answer::Silence);
    assert_eq!(third.len(), 1);
    assert!(!asked.contains(&third[0]));
    // What can't be a page of this stretch is as good as nothing.
    let nothing = [page(&[("b", 1), ("a", 1)], true), page(&[], false), page(&[("a", 1), ("a", 1)], true)];
    for nonsense in nothing {
        answer(&mut scan, third[0], nonsense);
        answer(&mut scan, asked[0], page(&[("a", 1)], true));
        assert_eq!(done(&scan), None);
    }
    let mut out = Vec::new();
    scan.tick(RETRY, &mut out);
    assert_eq!(out.len(), 2, "both are asked again: {out:?}");
    answer(&mut scan, asked[1], page(&[], true));
    assert_eq!(done(&scan), Some((vec![("a", 1)], true)));
}

#[test]
fn it_says_so_where_too_few_are_up_or_time_runs_out() {
    let ring = Arc::new(ring_of(3, 3, 4));
    let me = ring.read_owners(Segment(0))[0];
    let alone = |id| if id == me { Liveness::Up } else { Liveness::Down };
    let start = |consistency, fallback| {
        let terms = Terms::new(consistency, fallback, T0, Duration::from_secs(2));
        Scan::start(me, ring.clone(), stretch(""), terms, T0, &alone, &mut Vec::new())
    };
    assert_eq!(start(Consistency::Quorum, false).outcome(), Some(&Outcome::Unavailable));
    let mut one = start(Consistency::Quorum, true);
    answer(&mut one, me, page(&[("a", 1)], true));
    assert!(matches!(one.outcome(), Some(Outcome::Done(_, Consistency::One))), "{one:?}");
    let mut late = start(Consistency::One, false);
    late.tick(Duration::from_secs(2), &mut Vec::new());
    assert_eq!(late.outcome(), Some(&Outcome::TimedOut));
}

#[test]
fn what_a_node_holds_itself_asks_nobody_else() {
    let ring = Arc::new(ring_of(5, 3, 4));
    let terms = Terms::new(Consistency::Quorum, false, T0, Duration::from_secs(2));
    for me in ring.ids().collect::<Vec<_>>() {
        let mut out = Vec::new();
        let scan = Scan::local(me, ring.clone(), stretch(""), terms, T0, &mut out);
        match ring.read_owners(Segment(0)).contains(&me) {
            true => assert_eq!((asked(&out), done(&scan)), (vec![me], None)),
            false => assert_eq!((asked(&out), done(&scan)), (vec![], Some((vec![], true)))),
        }
    }
}
