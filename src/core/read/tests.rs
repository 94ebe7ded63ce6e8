use super::*;
use crate::core::layout::tests::{member, ring_of};
use std::collections::BTreeSet;

const T0: Moment = Duration::ZERO;
const S: Segment = Segment(0);

fn record(hlc: u64) -> Record {
    Record::value(Version { hlc, node: 1 }, format!("v{hlc}"))
}

fn version(hlc: u64) -> Version {
    record(hlc).version
}

fn start(layout: &Layout, consistency: Consistency, fallback: bool) -> (Read, Vec<Action>) {
    let mut out = Vec::new();
    let terms = Terms::new(consistency, fallback, T0, Duration::from_secs(2));
    let me = layout.coordinators(S)[0];
    let read = Read::start(me, Arc::new(layout.clone()), S, terms, T0, &|_| Liveness::Up, &mut out);
    (read, out)
}

fn answer(read: &mut Read, from: NodeId, answer: Answer) -> Vec<Action> {
    let mut out = Vec::new();
    read.answered(from, read.epoch(), answer, T0, &mut out);
    out
}

fn done(read: &Read) -> Option<Option<u64>> {
    match read.outcome() {
        Some(Outcome::Done(record, _)) => Some(record.as_ref().map(|r| r.version.hlc)),
        _ => None,
    }
}

#[test]
fn a_settled_key_takes_one_question_to_a_quorum() {
    let ring = ring_of(3, 3, 4);
    let me = ring.coordinators(S)[0];
    let (mut read, asked) = start(&ring, Consistency::Quorum, false);
    assert!(matches!(asked[..], [Action::Ask(a, _, Ask::Read), Action::Ask(_, _, Ask::Version)] if a == me));
    let Action::Ask(other, ..) = asked[1] else { panic!() };
    assert_eq!(answer(&mut read, me, Answer::Record(Some(record(5)))), []);
    assert_eq!(done(&read), None);
    answer(&mut read, other, Answer::Version(version(5)));
    assert_eq!(done(&read), Some(Some(5)));
}

#[test]
fn an_absent_key_is_absent_once_a_quorum_says_so() {
    let ring = ring_of(3, 3, 4);
    let (mut read, asked) = start(&ring, Consistency::Quorum, false);
    for action in asked {
        let Action::Ask(id, _, ask) = action else { panic!() };
        let nothing = if ask == Ask::Read { Answer::Record(None) } else { Answer::Version(Version::ABSENT) };
        answer(&mut read, id, nothing);
    }
    assert_eq!(done(&read), Some(None));
}

#[test]
fn a_newer_version_elsewhere_is_fetched_and_written_back_before_it_is_returned() {
    let ring = ring_of(3, 3, 4);
    let (mut read, asked) = start(&ring, Consistency::Quorum, false);
    let [Action::Ask(me, ..), Action::Ask(other, ..)] = asked[..] else { panic!() };
    answer(&mut read, me, Answer::Record(Some(record(3))));
    let fetch = answer(&mut read, other, Answer::Version(version(8)));
    assert_eq!(fetch, [Action::Ask(other, ring.epoch, Ask::Read)]);
    let back = answer(&mut read, other, Answer::Record(Some(record(8))));
    assert!(back.contains(&Action::Ask(me, ring.epoch, Ask::WriteBack(record(8)))), "{back:?}");
    assert_eq!(done(&read), None);
    answer(&mut read, me, Answer::Accepted(version(8)));
    assert_eq!(done(&read), Some(Some(8)));
}

#[test]
fn a_newer_copy_never_counts_as_a_write_back_of_the_older() {
    let ring = ring_of(3, 3, 4);
    let (mut read, asked) = start(&ring, Consistency::Quorum, false);
    let [Action::Ask(me, ..), Action::Ask(other, ..)] = asked[..] else { panic!() };
    answer(&mut read, me, Answer::Record(Some(record(8))));
    answer(&mut read, other, Answer::Version(version(3)));
    answer(&mut read, other, Answer::Superseded(version(9)));
    assert_eq!(done(&read), None, "one holds 8, one 9: neither is known to a quorum");
    let back = answer(&mut read, other, Answer::Record(Some(record(9))));
    assert!(back.contains(&Action::Ask(me, ring.epoch, Ask::WriteBack(record(9)))), "{back:?}");
    answer(&mut read, me, Answer::Accepted(version(9)));
    assert_eq!(done(&read), Some(Some(9)));
}

#[test]
fn in_a_transition_a_quorum_of_both_sets_must_hold_it() {
    let dual = ring_of(1, 3, 4).dual(&[member(2)], &BTreeSet::new()).unwrap();
    let (mut read, asked) = start(&dual, Consistency::Quorum, false);
    assert_eq!(asked.len(), 2);
    answer(&mut read, NodeId(1), Answer::Record(Some(record(5))));
    assert_eq!(done(&read), None);
    let back = answer(&mut read, NodeId(2), Answer::Version(Version::ABSENT));
    assert_eq!(back, [Action::Ask(NodeId(2), dual.epoch, Ask::WriteBack(record(5)))]);
    answer(&mut read, NodeId(2), Answer::Accepted(version(5)));
    assert_eq!(done(&read), Some(Some(5)));
}

#[test]
fn a_new_layout_starts_it_over() {
    let ring = ring_of(3, 3, 4);
    let (mut read, asked) = start(&ring, Consistency::Quorum, false);
    let Action::Ask(me, old, _) = asked[0] else { panic!() };
    answer(&mut read, me, Answer::Record(Some(record(5))));
    let dual = ring.dual(&[], &BTreeSet::from([NodeId(3)])).unwrap();
    let mut out = Vec::new();
    read.installed(Arc::new(dual.clone()), T0, &|_| Liveness::Up, &mut out);
    assert!(out.iter().all(|a| matches!(a, Action::Ask(_, e, _) if *e == dual.epoch)));
    read.answered(NodeId(2), old, Answer::Version(version(5)), T0, &mut out);
    assert_eq!(done(&read), None);
}

#[test]
fn silence_makes_it_ask_the_others() {
    let ring = ring_of(3, 3, 4);
    let (mut read, asked) = start(&ring, Consistency::Quorum, false);
    let [Action::Ask(me, ..), Action::Ask(other, ..)] = asked[..] else { panic!() };
    answer(&mut read, me, Answer::Record(Some(record(5))));
    let more = answer(&mut read, other, Answer::Silence);
    let [Action::Ask(third, _, Ask::Version)] = more[..] else { panic!("{more:?}") };
    answer(&mut read, third, Answer::Version(version(5)));
    assert_eq!(done(&read), Some(Some(5)));
}

#[test]
fn a_record_whose_holder_falls_silent_is_still_written_back() {
    let ring = ring_of(3, 3, 4);
    let (mut read, asked) = start(&ring, Consistency::Quorum, false);
    let [Action::Ask(me, ..), Action::Ask(other, ..)] = asked[..] else { panic!() };
    answer(&mut read, me, Answer::Record(Some(record(5))));
    answer(&mut read, me, Answer::Silence);
    let third = everyone(&read.sets).into_iter().find(|id| *id != me && *id != other).unwrap();
    answer(&mut read, other, Answer::Version(version(3)));
    answer(&mut read, third, Answer::Version(version(3)));
    for id in [other, third] {
        answer(&mut read, id, Answer::Accepted(version(5)));
    }
    assert_eq!(done(&read), Some(Some(5)));
}

#[test]
fn one_is_content_with_the_first_answer_of_the_read_set() {
    let dual = ring_of(1, 3, 4).dual(&[member(2)], &BTreeSet::new()).unwrap();
    let (mut read, asked) = start(&dual, Consistency::One, false);
    assert_eq!(asked, [Action::Ask(NodeId(1), dual.epoch, Ask::Read)]);
    answer(&mut read, NodeId(1), Answer::Record(Some(record(5))));
    assert_eq!(done(&read), Some(Some(5)));
}

#[test]
fn a_quorum_that_stays_silent_falls_back_or_times_out() {
    for (fallback, expected) in [(true, Some(Some(5))), (false, None)] {
        let (mut read, asked) = start(&ring_of(3, 3, 4), Consistency::Quorum, fallback);
        let Action::Ask(me, ..) = asked[0] else { panic!() };
        answer(&mut read, me, Answer::Record(Some(record(5))));
        read.tick(Duration::from_secs(1), &mut Vec::new());
        assert_eq!(done(&read), expected);
        read.tick(Duration::from_secs(2), &mut Vec::new());
        assert!(fallback || read.outcome() == Some(&Outcome::TimedOut));
    }
}
