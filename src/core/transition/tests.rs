use super::*;
use crate::core::layout::tests::{member, ring_of};
use crate::core::node::RingId;

const UP: &dyn Fn(NodeId) -> Liveness = &|_| Liveness::Up;

fn secs(s: f64) -> Moment {
    Duration::from_secs_f64(s)
}

fn report(installed: Epoch, synced: Epoch) -> Report {
    Report { installed, synced, ..Report::default() }
}

#[test]
fn joins_that_come_together_make_one_transition() {
    let (mut desk, ring) = (Desk::new(Patience::default()), ring_of(3, 3, 8));
    assert_eq!(desk.next(&ring, secs(0.0), UP), None);
    desk.hear_join(member(8), secs(1.0));
    assert_eq!(desk.next(&ring, secs(1.0), UP), None, "more may come");
    desk.hear_join(member(9), secs(1.1));
    let Some(Change::Dual { joins, .. }) = desk.next(&ring, secs(1.5), UP) else { panic!() };
    assert_eq!(joins.len(), 2);
    assert_eq!(desk.next(&ring, secs(9.0), UP), None, "a wish that isn't repeated is forgotten");
}

#[test]
fn what_is_deleted_is_collected_now_and_then_while_everybody_is_there() {
    let ring = ring_of(3, 3, 8);
    let check = |at: f64, reports: [Report; 3], liveness: &dyn Fn(NodeId) -> Liveness, expected: bool| {
        let mut desk = Desk::new(Patience::default());
        for (id, report) in (1..).map(NodeId).zip(reports) {
            desk.hear_report(id, report, secs(at));
        }
        assert_eq!(desk.next(&ring, secs(at), liveness), expected.then_some(Change::Collect));
        desk
    };
    let plain = || report(ring.epoch, 0);
    let found = || Report { found: Found::All, ..plain() };
    let full = || Report { found: Found::Full, ..plain() };
    check(3600.0, [plain(), found(), plain()], UP, true);
    check(3600.0, [plain(), plain(), plain()], UP, false);
    check(359.0, [plain(), found(), plain()], UP, false);
    check(360.0, [plain(), found(), plain()], UP, true);
    check(59.0, [found(), full(), plain()], UP, false);
    check(60.0, [found(), full(), plain()], UP, true);
    check(3600.0, [plain(), found(), report(ring.epoch - 1, 0)], UP, false);
    for away in [Liveness::Down, Liveness::Suspect] {
        let away: &dyn Fn(NodeId) -> Liveness = &|id| if id.0 == 3 { away } else { Liveness::Up };
        check(3600.0, [plain(), found(), plain()], away, false);
    }
    let mut desk = check(3600.0, [plain(), found(), plain()], UP, true);
    let collecting = Change::Collect.apply(&ring, &BTreeSet::new()).unwrap();
    assert_eq!(collecting, ring.collecting());
    assert_eq!(Change::Collect.apply(&ring, &BTreeSet::from([NodeId(3)])), None);
    desk.installed(&ring, &collecting, secs(3601.0));
    for (at, expected) in [(7200.0, None), (7201.0, Some(Change::Collect))] {
        let again = Report { found: Found::All, ..report(collecting.epoch, 0) };
        (1..=3).for_each(|id| desk.hear_report(NodeId(id), again.clone(), secs(at)));
        assert_eq!(desk.next(&collecting, secs(at), UP), expected);
    }
    desk.hear_join(member(9), secs(7201.0));
    assert_eq!(desk.next(&collecting, secs(7201.1), UP), None, "whoever comes or goes is first");
}

#[test]
fn a_dual_goes_on_when_its_pullers_have_synced_this_epoch() {
    let mut desk = Desk::new(Patience::default());
    let dual = ring_of(3, 3, 8).dual(&[member(4)], &BTreeSet::new()).unwrap();
    desk.hear_report(NodeId(4), report(dual.epoch, dual.epoch - 2), secs(1.0));
    assert_eq!(desk.next(&dual, secs(1.0), UP), None, "that was another Dual");
    desk.hear_report(NodeId(4), report(dual.epoch, dual.epoch), secs(1.0));
    assert_eq!(desk.next(&dual, secs(1.0), UP), Some(Change::ReadNew));
}

#[test]
fn a_puller_that_is_down_failed_or_stuck_aborts_and_is_backed_off() {
    let ring = ring_of(3, 3, 8);
    let dual = ring.dual(&[member(4)], &BTreeSet::new()).unwrap();
    let down: &dyn Fn(NodeId) -> Liveness = &|id| if id.0 == 4 { Liveness::Down } else { Liveness::Up };
    let check = |desk: &mut Desk, at: f64, liveness, expected: bool| {
        let change = desk.next(&dual, secs(at), liveness);
        assert_eq!(matches!(change, Some(Change::Abort { blame: NodeId(4), .. })), expected, "{change:?}");
    };
    check(&mut Desk::new(Patience::default()), 1.0, down, true);
    check(&mut Desk::new(Patience::default()), 29.0, UP, false);
    check(&mut Desk::new(Patience::default()), 30.0, UP, true);
    let mut desk = Desk::new(Patience::default());
    desk.hear_report(
        NodeId(4),
        Report { progress: 7, installed: dual.epoch, ..Report::default() },
        secs(20.0),
    );
    check(&mut desk, 35.0, UP, false);
    desk.hear_report(NodeId(4), Report { failed: dual.epoch, ..Report::default() }, secs(36.0));
    check(&mut desk, 36.0, UP, true);

    desk.hear_join(member(4), secs(36.5));
    desk.hear_join(member(5), secs(36.5));
    desk.next(&dual.aborted(), secs(36.5), UP);
    let Some(Change::Dual { joins, .. }) = desk.next(&dual.aborted(), secs(37.0), UP) else { panic!() };
    assert_eq!(joins.iter().map(|m| m.id.0).collect::<Vec<_>>(), [5], "without the one to blame");
}

#[test]
fn reads_move_on_when_old_reads_are_over() {
    let mut desk = Desk::new(Patience::default());
    let read_new = ring_of(3, 3, 8).dual(&[member(4)], &BTreeSet::new()).unwrap().read_new();
    desk.hear_report(NodeId(1), report(read_new.epoch, 0), secs(1.0));
    assert_eq!(desk.next(&read_new, secs(1.0), UP), None);
    desk.hear_report(NodeId(3), report(read_new.epoch - 1, 0), secs(1.0));
    assert_eq!(desk.next(&read_new, secs(1.0), UP), None);
    // Who could report may have gone, and its end be chosen.
    let mut asking = desk.clone();
    assert_eq!(asking.next(&read_new, secs(3.0), UP), Some(Change::Learn));
    assert_eq!(asking.next(&read_new, secs(4.9), UP), None);
    assert_eq!(asking.next(&read_new, secs(5.0), UP), Some(Change::Learn));
    assert_eq!(Change::Learn.apply(&read_new, &BTreeSet::new()), None, "nothing comes of it else");
    desk.hear_report(NodeId(2), report(read_new.epoch, 0), secs(1.0));
    assert_eq!(desk.next(&read_new, secs(1.0), UP), Some(Change::Settle));
}

#[test]
fn a_member_that_is_down_for_long_is_removed_if_a_majority_agrees() {
    let mut desk = Desk::new(Patience::default());
    let ring = ring_of(4, 3, 8);
    let down: &dyn Fn(NodeId) -> Liveness = &|id| if id.0 == 2 { Liveness::Down } else { Liveness::Up };
    for at in [0.0, 299.0, 300.0] {
        assert_eq!(desk.next(&ring, secs(at), down), None);
    }
    let change = desk.next(&ring, secs(301.0), down).unwrap();
    assert_eq!(change.apply(&ring, &BTreeSet::new()), None);
    let agreed = change.apply(&ring, &BTreeSet::from([NodeId(2)])).unwrap();
    assert!(!agreed.read_new().settled().is_member(NodeId(2)));
}

#[test]
fn a_member_that_keeps_nothing_is_gone_once_its_address_answers_under_another_id() {
    for (durable, expected) in [(false, BTreeSet::from([NodeId(2)])), (true, BTreeSet::new())] {
        let (mut desk, mut ring) = (Desk::new(Patience::default()), ring_of(3, 3, 8));
        ring.members[1].durable = durable;
        let down: &dyn Fn(NodeId) -> Liveness = &|id| if id.0 == 2 { Liveness::Down } else { Liveness::Up };
        for at in [1.0, 1.5] {
            desk.hear_join(Member { address: ring.members[1].address.clone(), ..member(9) }, secs(at));
            desk.next(&ring, secs(at), down);
        }
        let Some(Change::Dual { removals, .. }) = desk.next(&ring, secs(1.5), down) else { panic!() };
        assert_eq!(removals, expected);
    }
}

/// A ring of three that was one of five, with rows that are short.
fn short_ring() -> Layout {
    ring_of(5, 3, 16).forced(RingId(2), &BTreeSet::from([NodeId(4), NodeId(5)])).unwrap()
}

#[test]
fn rows_that_are_short_are_filled_once_all_members_are_there() {
    let ring = short_ring();
    let check = |liveness: &dyn Fn(NodeId) -> Liveness, expected: Option<Change>| {
        let mut desk = Desk::new(Patience::default());
        assert_eq!(desk.next(&ring, secs(1.0), liveness), None, "wishes may come");
        assert_eq!(desk.next(&ring, secs(1.5), liveness), expected);
    };
    check(UP, Some(Change::Fill));
    check(&|id| if id.0 == 3 { Liveness::Suspect } else { Liveness::Up }, Some(Change::Fill));
    check(&|id| if id.0 == 3 { Liveness::Down } else { Liveness::Up }, None);
    let dual = Change::Fill.apply(&ring, &BTreeSet::new()).unwrap();
    assert_eq!(Change::Fill.apply(&ring, &BTreeSet::from([NodeId(3)])), None, "it would have to pull");
    let nobody = (Vec::new(), BTreeSet::new(), BTreeSet::from([NodeId(3)]));
    let refused = Change::Dual { joins: nobody.0, leaves: nobody.1, removals: nobody.2 };
    assert_eq!(refused.apply(&ring, &BTreeSet::new()), None, "whom only one calls down would have to pull");
    let mut desk = Desk::new(Patience::default());
    let filled = dual.read_new().settled();
    for at in [1.0, 1.5] {
        assert_eq!(desk.next(&filled, secs(at), UP), None, "that was all");
    }
}

#[test]
fn who_comes_or_goes_is_taken_along_when_rows_are_filled() {
    let (mut desk, ring) = (Desk::new(Patience::default()), short_ring());
    desk.next(&ring, secs(1.0), UP);
    desk.hear_join(member(9), secs(1.2));
    let change = desk.next(&ring, secs(1.5), UP).unwrap();
    assert!(matches!(&change, Change::Dual { joins, .. } if joins.len() == 1), "{change:?}");
    assert_eq!(change.apply(&ring, &BTreeSet::new()).unwrap().read_new().settled().short(), 0);
}

#[test]
fn what_could_not_be_filled_is_tried_again_later_and_later() {
    let (mut desk, ring) = (Desk::new(Patience::default()), short_ring());
    let dual = Change::Fill.apply(&ring, &BTreeSet::new()).unwrap();
    for (at, length) in [(10.0, 2.0), (20.0, 4.0), (30.0, 8.0)] {
        desk.installed(&ring, &dual, secs(at));
        desk.hear_report(NodeId(2), Report { failed: dual.epoch, ..report(dual.epoch, 0) }, secs(at));
        let change = desk.next(&dual, secs(at), UP);
        assert!(matches!(change, Some(Change::Abort { blame: NodeId(2), .. })), "{change:?}");
        desk.installed(&dual, &dual.aborted(), secs(at));
        for (after, expected) in
            [(0.1, None), (length - 0.1, None), (length, None), (length + 0.4, Some(Change::Fill))]
        {
            assert_eq!(desk.next(&dual.aborted(), secs(at + after), UP), expected, "{after}");
        }
    }
}

#[test]
fn when_everyone_leaves_nobody_does() {
    let (mut desk, ring) = (Desk::new(Patience::default()), ring_of(3, 3, 8));
    let leaving = Report { leaving: true, ..report(ring.epoch, 0) };
    desk.hear_report(NodeId(1), leaving.clone(), secs(1.0));
    desk.hear_report(NodeId(2), leaving.clone(), secs(1.0));
    assert!(!desk.everyone_leaves(&ring, secs(1.0), UP));
    assert_eq!(desk.next(&ring, secs(1.0), UP), None);
    assert!(desk.next(&ring, secs(1.5), UP).is_some());
    desk.hear_report(NodeId(3), leaving, secs(1.6));
    assert!(desk.everyone_leaves(&ring, secs(1.6), UP));
    assert_eq!(desk.next(&ring, secs(2.0), UP), None);
}
