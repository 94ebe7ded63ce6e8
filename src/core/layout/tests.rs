use super::*;

pub(crate) fn member(id: u128) -> Member {
    Member {
        id: NodeId(id),
        address: format!("127.0.0.1:{id}").parse().unwrap(),
        zone: String::new(),
        weight: 1,
        durable: true,
        standing: Standing::Staying,
    }
}

pub(crate) fn ring_of(count: u128, replicas: u16, segments: u64) -> Layout {
    let segments = SegmentCount::new(segments).unwrap();
    let replicas = Replicas::Count(replicas);
    let one = Layout::first(RingId(1), "test".into(), Kind::Store, replicas, segments, member(1));
    (2..=count)
        .fold(one, |layout, id| layout.dual(&[member(id)], &BTreeSet::new()).unwrap().read_new().settled())
}

fn gone(ids: &[u128]) -> BTreeSet<NodeId> {
    ids.iter().map(|&id| NodeId(id)).collect()
}

#[test]
fn every_step_of_a_ring_that_grows_and_shrinks_is_valid_and_balanced() {
    let mut layout = ring_of(1, 3, 64);
    for id in 2..=7 {
        let dual = layout.dual(&[member(id)], &gone(&[])).unwrap();
        let next = dual.read_new();
        layout = next.settled();
        for each in [&dual, &next, &layout] {
            each.validate().unwrap();
        }
        let shares = layout.shares();
        assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
    }
    for id in [3, 1, 7, 2] {
        let dual = layout.dual(&[], &gone(&[id])).unwrap();
        assert_eq!(dual.aborted().current, layout.current);
        layout = dual.read_new().settled();
        layout.validate().unwrap();
        assert!(!layout.is_member(NodeId(id)));
    }
    assert_eq!(layout.dual(&[], &gone(&[4, 5, 6])), None, "the last members stay");
}

#[test]
fn who_stays_keeps_its_slot_and_a_newcomer_gets_a_fresh_one() {
    let before = ring_of(3, 2, 32);
    let dual = before.dual(&[member(9)], &gone(&[])).unwrap();
    for segment in dual.segments.all() {
        for id in dual.next_owners(segment) {
            let expected = before.slot(id, segment).unwrap_or(Slot { segment, acquired: dual.epoch });
            assert_eq!(dual.slot(id, segment), Some(expected));
        }
    }
    assert_eq!(dual.slots(NodeId(9)).len(), 32 * 2 / 4);
}

#[test]
fn newcomers_pull_alone_where_majorities_meet_and_everybody_where_they_do_not() {
    let grow = ring_of(3, 3, 8).dual(&[member(4)], &gone(&[])).unwrap();
    assert_eq!(grow.all_pullers(), gone(&[4]));
    for pull in grow.pulls(NodeId(4)) {
        assert_eq!((pull.need, pull.sources.len(), pull.slot.acquired), (2, 3, grow.epoch));
    }
    // One to two owners: two majorities of {A,B} need both, so that B alone pulls.
    let second = ring_of(1, 3, 8).dual(&[member(2)], &gone(&[])).unwrap();
    assert_eq!(second.all_pullers(), gone(&[2]));
    // Three owners to two: what only the leaver and one other hold must reach the second too.
    let shrink = ring_of(3, 3, 8).dual(&[], &gone(&[2])).unwrap();
    assert_eq!(shrink.all_pullers(), gone(&[1, 3]));
    for pull in shrink.pulls(NodeId(1)) {
        assert_eq!((pull.need, pull.sources[0]), (1, NodeId(2)), "the leaver comes first");
    }
}

#[test]
fn voters_are_the_old_members_until_reads_ask_the_new() {
    let dual = ring_of(3, 3, 8).dual(&[member(4)], &gone(&[1])).unwrap();
    assert_eq!(dual.voters(), [1, 2, 3].map(NodeId));
    assert_eq!(dual.read_new().voters(), [2, 3, 4].map(NodeId));
    assert_eq!(dual.read_new().settled().voters(), [2, 3, 4].map(NodeId));
    assert_eq!(dual.aborted().voters(), [1, 2, 3].map(NodeId));
}

#[test]
fn may_lose_counts_the_worst_segment() {
    let check = |nodes, down: &[u128], expected| {
        assert_eq!(ring_of(nodes, 3, 8).may_lose(|id| !down.contains(&id.0)), expected);
    };
    check(1, &[], 0);
    check(2, &[], 0);
    check(3, &[], 1);
    check(3, &[2], 0);
    check(3, &[2, 3], 0);
    check(5, &[], 1);
}

#[test]
fn coordinators_prefer_owners_in_both_sets() {
    let dual = ring_of(3, 3, 8).dual(&[member(4)], &gone(&[1])).unwrap();
    for segment in dual.segments.all() {
        let order = dual.coordinators(segment);
        assert_eq!(order.last(), Some(&NodeId(1)), "{order:?}");
        assert!(!order.contains(&NodeId(4)));
    }
}

#[test]
fn a_forced_removal_keeps_what_survivors_hold() {
    let ring = ring_of(4, 3, 16);
    let forced = ring.forced(RingId(2), &gone(&[1, 2])).unwrap();
    forced.validate().unwrap();
    assert_eq!((forced.ring, forced.epoch), (RingId(2), ring.epoch + 1));
    for segment in forced.segments.all() {
        for id in forced.current_owners(segment) {
            assert_eq!(forced.slot(id, segment), ring.slot(id, segment));
        }
    }
    assert_eq!(ring.forced(RingId(2), &gone(&[1, 2, 3, 4])), None);
}

#[test]
fn a_removal_is_forced_upon_no_other_layout_than_it_was_made_of() {
    let ring = ring_of(4, 3, 16);
    let forced = ring.forced(RingId(2), &gone(&[1])).unwrap();
    assert!(forced.is_forced_from(&ring));
    let dual = ring.dual(&[], &gone(&[1])).unwrap();
    assert!(!forced.is_forced_from(&dual) && !forced.is_forced_from(&dual.read_new()), "they are newer");
    assert!(!dual.forced(RingId(2), &gone(&[1])).unwrap().is_forced_from(&ring), "it is older");
    assert!(!forced.is_forced_from(&forced), "it is installed already");
    let again = forced.forced(RingId(3), &gone(&[2])).unwrap();
    assert!(again.is_forced_from(&forced) && !again.is_forced_from(&ring));
    assert!(!again.is_forced_from(&Layout { epoch: forced.epoch, ..ring }), "another ring of that epoch");
}

#[test]
fn nonsense_from_outside_is_refused() {
    let good = ring_of(3, 2, 8);
    let check = |spoil: fn(&mut Layout)| {
        let mut bad = good.clone();
        spoil(&mut bad);
        assert!(bad.validate().is_err());
    };
    check(|l| l.epoch = 0);
    check(|l| l.epoch = u64::MAX);
    check(|l| l.members.clear());
    check(|l| l.members.reverse());
    check(|l| l.phase = Phase::Dual);
    check(|l| l.current.rows[0][1] = l.current.rows[0][0]);
    check(|l| l.current.rows[0][0].member = 7);
    check(|l| l.current.rows[0] = Box::new([]));
    check(|l| drop(l.current.rows.pop()));
}

#[test]
fn a_ring_gives_way_to_its_successor_only_without_a_majority() {
    let ring = ring_of(3, 3, 8);
    let forced = ring.forced(RingId(99), &[NodeId(2), NodeId(3)].into()).unwrap();
    assert!(ring.gives_way_to(&forced, |id| id == NodeId(2)));
    assert!(!ring.gives_way_to(&forced, |id| id != NodeId(1)), "it was forced in error");
    assert!(!forced.gives_way_to(&ring, |_| false), "never back");
}

#[test]
fn a_joiner_asks_again_only_out_of_a_dual() {
    let dual = ring_of(3, 3, 8).dual(&[member(4)], &BTreeSet::new()).unwrap();
    assert!(dual.asks_again(NodeId(4), &dual.aborted()));
    assert!(!dual.asks_again(NodeId(1), &dual.aborted()), "it is a member still");
    let gone = dual.read_new().settled().dual(&[], &[NodeId(4)].into()).unwrap().read_new().settled();
    assert!(!dual.read_new().asks_again(NodeId(4), &gone), "it may have voted");
}
