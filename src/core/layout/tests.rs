use super::forced::LINEAGE;
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
    assert_eq!(forced.ring, RingId(2));
    for segment in forced.segments.all() {
        for id in forced.current_owners(segment) {
            assert_eq!(forced.slot(id, segment), ring.slot(id, segment));
        }
    }
    assert_eq!(ring.forced(RingId(2), &gone(&[1, 2, 3, 4])), None);
}

#[test]
fn rows_that_a_forced_removal_left_short_are_filled() {
    for (nodes, replicas, lost) in [(5, 3, &[2, 4][..]), (5, 3, &[1]), (6, 5, &[1, 2, 3]), (7, 3, &[5, 6, 7])]
    {
        let ring = ring_of(nodes, replicas, 64);
        assert_eq!((ring.short(), ring.dual(&[], &gone(&[]))), (0, None), "there is nothing to fill");
        let forced = ring.forced(RingId(2), &gone(lost)).unwrap();
        assert!(forced.short() > 0);
        let dual = forced.dual(&[], &gone(&[])).unwrap();
        dual.validate().unwrap();
        assert_eq!((dual.phase, dual.short()), (Phase::Dual, forced.short()));
        for pull in dual.all_pullers().into_iter().flat_map(|id| dual.pulls(id)) {
            assert!((1..=pull.sources.len()).contains(&pull.need), "{pull:?}");
        }
        let filled = dual.read_new().settled();
        filled.validate().unwrap();
        assert_eq!((filled.short(), filled.dual(&[], &gone(&[]))), (0, None));
        assert_eq!(dual.aborted().current, forced.current);
    }
    let few = ring_of(3, 3, 8).forced(RingId(2), &gone(&[3])).unwrap();
    assert_eq!((few.short(), few.dual(&[], &gone(&[]))), (0, None), "both have everything");
    // A newcomer that is not there yet makes no row short.
    assert_eq!(ring_of(2, 3, 8).dual(&[member(3)], &gone(&[])).unwrap().short(), 0);
}

#[test]
fn a_removal_is_forced_upon_no_other_layout_than_it_was_made_of() {
    let ring = ring_of(4, 3, 16);
    let me = NodeId(3);
    let forced = ring.forced(RingId(2), &gone(&[1])).unwrap();
    assert!(ring.survives_into(&forced, me) && !ring.survives_into(&forced, NodeId(1)));
    let dual = ring.dual(&[], &gone(&[1])).unwrap();
    assert!(
        !dual.survives_into(&forced, me) && !dual.read_new().survives_into(&forced, me),
        "they are newer"
    );
    assert!(!ring.survives_into(&dual.forced(RingId(2), &gone(&[1])).unwrap(), me), "it is older");
    assert!(!forced.survives_into(&forced, me), "it is installed already");
    let again = forced.forced(RingId(3), &gone(&[2])).unwrap();
    assert!(forced.survives_into(&again, me) && !ring.survives_into(&again, me));
    let other = Layout { epoch: forced.epoch, ..ring };
    assert!(!other.survives_into(&again, me), "another ring of that epoch");
}

#[test]
fn a_forced_removal_keeps_the_table_that_reads_ask() {
    let ring = ring_of(3, 3, 8);
    let dual = ring.dual(&[member(4), member(5)], &gone(&[1, 2])).unwrap();
    let check = |layout: &Layout, survivors: &[u128], expected: &[u128]| {
        let forced =
            layout.forced(RingId(2), &layout.ids().filter(|id| !survivors.contains(&id.0)).collect());
        let forced = forced.unwrap();
        forced.validate().unwrap();
        for segment in forced.segments.all() {
            assert_eq!(forced.current_owners(segment).collect::<BTreeSet<_>>(), gone(expected));
            for id in forced.current_owners(segment) {
                assert_eq!(forced.slot(id, segment), layout.slot(id, segment));
            }
        }
    };
    check(&dual, &[1, 3, 4], &[1, 3]);
    check(&dual.read_new(), &[1, 3, 4], &[3, 4]);
    // Whom reads do not ask is better than nobody.
    check(&dual, &[4, 5], &[4, 5]);
    check(&dual.read_new(), &[1], &[1]);
}

#[test]
fn no_epoch_is_in_two_rings_of_one_descent() {
    let ring = ring_of(3, 3, 8);
    let forced = ring.forced(RingId(2), &gone(&[1])).unwrap();
    let again = forced.forced(RingId(3), &gone(&[2])).unwrap();
    let sibling = ring.forced(RingId(4), &gone(&[1])).unwrap();
    let lineages = [&ring, &forced, &again, &sibling].map(|layout| layout.epoch / LINEAGE);
    assert_eq!(lineages, [0, 3, 7, 5]);
}

#[test]
fn a_forced_removal_drops_who_does_not_answer_unless_somebody_is_ahead() {
    let ring = ring_of(4, 3, 8);
    let drops = |answers: [Option<Epoch>; 4]| ring.unreachable(NodeId(2), |id| answers[id.0 as usize - 1]);
    assert_eq!(drops([Some(ring.epoch), None, None, Some(1)]), Some(gone(&[3])));
    assert_eq!(drops([None; 4]), Some(gone(&[1, 3, 4])));
    assert_eq!(drops([None, None, None, Some(ring.epoch + 1)]), None);
    let forced = ring.forced(RingId(2), &gone(&[1, 3, 4])).unwrap();
    assert!(ring.survives_into(&forced, NodeId(2)) && !ring.survives_into(&forced, NodeId(1)));
    let other = ring.forced(RingId(3), &gone(&[1, 3, 4])).unwrap();
    assert!(!forced.survives_into(&other, NodeId(2)), "it has gone on otherwise already");
}

#[test]
fn what_was_acknowledged_is_sure_only_with_a_majority_of_those_that_remain() {
    let check = |nodes, replicas, lost: &[u128], expected| {
        assert_eq!(
            ring_of(nodes, replicas, 1).remains_whole(Segment(0), &gone(lost)),
            expected,
            "{nodes} {lost:?}"
        );
    };
    check(1, 1, &[1], false);
    check(2, 2, &[2], true);
    check(3, 3, &[], true);
    // One of the two that remain may have missed it.
    check(3, 3, &[3], false);
    check(4, 4, &[4], true);
    check(4, 4, &[3, 4], false);
    check(5, 5, &[5], false);
    // One of two owners goes, and with it so many members that it may have handed over to another first.
    let pair = ring_of(5, 2, 1);
    let owners: Vec<NodeId> = pair.current_owners(Segment(0)).collect();
    let others = || pair.ids().filter(|id| !owners.contains(id));
    assert!(pair.remains_whole(Segment(0), &others().take(1).chain([owners[0]]).collect()));
    assert!(!pair.remains_whole(Segment(0), &others().take(2).chain([owners[0]]).collect()));
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
