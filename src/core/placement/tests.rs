use super::shares::{shares, weights, zones};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

type Table = Vec<Vec<u16>>;

fn seats(spec: &[(&str, u32)]) -> Vec<Seat> {
    let seat = |&(zone, weight): &(&str, u32)| Seat { zone: zone.to_owned(), weight };
    spec.iter().map(seat).collect()
}

fn alike(members: usize) -> Vec<Seat> {
    seats(&vec![("", 1); members])
}

fn empty(q: usize) -> Table {
    vec![Vec::new(); q]
}

/// The table after the member `gone` has left, its successors moved down by one.
fn without(table: &Table, gone: usize) -> Table {
    let gone = gone as u16;
    let renumber = |&i: &u16| if i > gone { i - 1 } else { i };
    let list = |o: &Vec<u16>| o.iter().filter(|&&i| i != gone).map(renumber).collect();
    table.iter().map(list).collect()
}

fn loads(table: &Table, members: usize) -> Vec<usize> {
    let mut loads = vec![0; members];
    table.iter().flatten().for_each(|&i| loads[usize::from(i)] += 1);
    loads
}

fn firsts(table: &Table, members: usize) -> Vec<usize> {
    let mut firsts = vec![0; members];
    table.iter().for_each(|o| firsts[usize::from(o[0])] += 1);
    firsts
}

/// Owners per zone name, for every zone among the members.
fn spread(owners: &[u16], seats: &[Seat]) -> BTreeMap<String, usize> {
    let mut spread: BTreeMap<_, _> = seats.iter().map(|s| (s.zone.clone(), 0)).collect();
    for &i in owners {
        *spread.entry(seats[usize::from(i)].zone.clone()).or_default() += 1;
    }
    spread
}

/// The zone rule told naively: no owner could go to another zone and make the spread evener.
fn is_spread(owners: &[u16], seats: &[Seat]) -> bool {
    let spread = spread(owners, seats);
    let size = |zone: &String| seats.iter().filter(|s| s.zone == *zone).count();
    let open: Vec<usize> = spread.iter().filter(|(z, c)| **c < size(z)).map(|(_, &c)| c).collect();
    spread.values().all(|&most| open.iter().all(|&c| most <= c + 1))
}

/// Exact shares told naively: everything grows with one water level, found by halving, between
/// the bounds that the naive zone rule leaves to each zone.
fn naive_shares(q: usize, n: usize, seats: &[Seat]) -> Vec<(usize, usize)> {
    let all: Vec<u16> = (0..seats.len() as u16).collect();
    let valid: Vec<Vec<u16>> = subsets(&all, n).into_iter().filter(|o| is_spread(o, seats)).collect();
    let q = q as f64;
    let halve = |sum: &dyn Fn(f64) -> f64, goal: f64| {
        let (mut a, mut b) = (0.0, 1e9);
        for _ in 0..200 {
            let mid = (a + b) / 2.0;
            if sum(mid) < goal { a = mid } else { b = mid }
        }
        b
    };
    let mut zones = Vec::new();
    for zone in spread(&[], seats).into_keys() {
        let counts = || valid.iter().map(|o| spread(o, seats)[&zone]);
        let bounds = (counts().min().unwrap_or(0) as f64 * q, counts().max().unwrap_or(0) as f64 * q);
        let members: Vec<usize> = (0..seats.len()).filter(|&i| seats[i].zone == zone).collect();
        zones.push((members, bounds));
    }
    let member = |i: usize, level: f64| (level * f64::from(seats[i].weight)).min(q);
    let sum = |z: &[usize], level: f64| z.iter().map(|&i| member(i, level)).sum::<f64>();
    let level = halve(&|l| zones.iter().map(|(z, (lo, hi))| sum(z, l).clamp(*lo, *hi)).sum(), q * n as f64);
    let mut out = vec![(0, 0); seats.len()];
    for (z, (lo, hi)) in &zones {
        let total = sum(z, level).clamp(*lo, *hi);
        let level = halve(&|l| sum(z, l), total - 1e-9);
        for &i in z {
            let share = member(i, level);
            out[i] = ((share + 1e-6).floor() as usize, (share - 1e-6).ceil() as usize);
        }
    }
    out
}

fn subsets(of: &[u16], n: usize) -> Vec<Vec<u16>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (at, &i) in of.iter().enumerate() {
        for mut rest in subsets(&of[at + 1..], n - 1) {
            rest.insert(0, i);
            all.push(rest);
        }
    }
    all
}

/// The least number of moves to any table that keeps the rules, by trying all tables. `None` if
/// no table does.
fn least_moves(old: &Table, seats: &[Seat], n: usize) -> Option<usize> {
    let all: Vec<u16> = (0..seats.len() as u16).collect();
    let choices: Vec<Vec<u16>> = subsets(&all, n).into_iter().filter(|o| is_spread(o, seats)).collect();
    let bounds = naive_shares(old.len(), n, seats);
    // All reachable load vectors with their cheapest cost, segment by segment.
    let mut reached = BTreeMap::from([(vec![0; seats.len()], 0)]);
    for owners in old {
        let mut next = BTreeMap::new();
        for (loads, cost) in &reached {
            for choice in &choices {
                let mut loads: Vec<usize> = loads.clone();
                choice.iter().for_each(|&i| loads[usize::from(i)] += 1);
                if loads.iter().zip(&bounds).any(|(l, (_, high))| l > high) {
                    continue;
                }
                let cost = cost + choice.iter().filter(|i| !owners.contains(i)).count();
                let best = next.entry(loads).or_insert(cost);
                *best = cost.min(*best);
            }
        }
        reached = next;
    }
    let fair = |loads: &Vec<usize>| loads.iter().zip(&bounds).all(|(l, (low, high))| low <= l && l <= high);
    reached.iter().filter(|(l, _)| fair(l)).map(|(_, &cost)| cost).min()
}

/// Places and checks everything that must hold of any result.
fn check(old: &Table, seats: &[Seat], replicas: Option<u16>) -> Table {
    let old = &old.iter().map(|o| sane(o, seats.len())).collect::<Table>();
    let new = place(old, seats, replicas);
    assert_eq!(new, place(old, seats, replicas), "deterministic");
    let n = replicas.map_or(seats.len(), |r| seats.len().min(usize::from(r)));
    assert_eq!(new.len(), old.len());
    for (s, owners) in new.iter().enumerate() {
        let mut sorted = owners.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!((owners.len(), sorted.len()), (n, n), "segment {s}: {owners:?}");
        assert!(owners.iter().all(|&i| usize::from(i) < seats.len()));
        assert!(is_spread(owners, seats), "segment {s}: {owners:?} of {seats:?}");
        let kept = |o: &[u16]| -> Vec<u16> {
            let first = owners.first();
            o.iter().copied().filter(|i| owners.contains(i) && Some(i) != first).collect()
        };
        let rest = owners.get(1..).unwrap_or_default();
        let kept = kept(&old[s]);
        assert!(rest.starts_with(&kept), "kept owners stay in order: {:?} {owners:?}", old[s]);
    }
    let again = place(&new, seats, replicas);
    assert_eq!(again, new, "an unchanged ring stays as it is");
    new
}

/// Checks also that each load is one of the two roundings of its exact share.
fn check_fair(old: &Table, seats: &[Seat], replicas: u16) -> Table {
    let new = check(old, seats, Some(replicas));
    let n = seats.len().min(usize::from(replicas));
    let bounds = naive_shares(old.len(), n, seats);
    let loads = loads(&new, seats.len());
    for (l, (low, high)) in loads.iter().zip(&bounds) {
        assert!(low <= l && l <= high, "{loads:?} not in {bounds:?}");
    }
    new
}

fn check_least(old: &Table, seats: &[Seat], replicas: u16) {
    let new = check_fair(old, seats, replicas);
    let n = seats.len().min(usize::from(replicas));
    let least = least_moves(old, seats, n);
    assert_eq!(Some(moved(old, &new)), least, "{old:?} -> {new:?} of {seats:?}");
}

fn assert_within_one(counts: &[usize]) {
    let (min, max) = (counts.iter().min(), counts.iter().max());
    assert!(max <= min.map(|m| m + 1).as_ref(), "{counts:?}");
}

/// Joins and leaves one member by one and checks that each costs its share and no more.
fn check_walk(q: usize, start: usize, replicas: u16, joins: &[Option<usize>]) {
    let mut members = start;
    let mut table = check(&empty(q), &alike(members), Some(replicas));
    for step in joins {
        let before = loads(&table, members);
        let (old, least) = match *step {
            None => {
                members += 1;
                let n = members.min(usize::from(replicas));
                let grown = n > table[0].len();
                (table.clone(), if grown { q } else { q * n / members })
            }
            Some(_) if members == 1 => continue,
            Some(gone) => {
                let gone = gone % members;
                members -= 1;
                let lost = usize::from(replicas) <= members;
                (without(&table, gone), if lost { before[gone] } else { 0 })
            }
        };
        table = check(&old, &alike(members), Some(replicas));
        let cost = moved(&old, &table);
        if cost != least {
            // Where nearly everyone owns nearly everything, the gaps may lie where the needy
            // already are. Then, and only then, a chain must cost more than the share.
            assert!(q <= 16, "{cost} for {least}");
            let exact = least_moves(&old, &alike(members), table[0].len());
            assert_eq!(Some(cost), exact, "{step:?} to {members}");
        }
        assert_within_one(&loads(&table, members));
        assert_within_one(&firsts(&table, members));
    }
}

#[test]
fn odd_inputs_do_no_harm() {
    assert_eq!(place(&empty(4), &[], Some(3)), empty(4));
    assert_eq!(place(&[], &alike(3), Some(3)), empty(0));
    assert_eq!(place(&empty(2), &alike(3), Some(0)), empty(2));
    check_fair(&vec![vec![9, 1, 1, 0], vec![7]], &alike(3), 2);
    assert_eq!(loads(&check(&empty(8), &seats(&[("", 0); 4]), Some(2)), 4), [4; 4]);
    let heavy = seats(&[("", u32::MAX), ("", u32::MAX), ("", 1)]);
    let loads = loads(&check(&empty(64), &heavy, Some(1)), 3);
    assert!(loads[0] >= 31 && loads[1] >= 31 && loads[2] <= 1, "{loads:?}");
}

#[test]
fn every_member_owns_all_without_a_replica_count() {
    let table = check(&empty(64), &alike(5), None);
    assert_eq!(loads(&table, 5), [64; 5]);
    assert_within_one(&firsts(&table, 5));
    assert_eq!(moved(&table, &check(&table, &alike(6), None)), 64);
    check(&empty(8), &alike(40), None);
}

#[test]
fn new_rings_are_balanced() {
    for (q, members, n) in [(64, 3, 3), (64, 4, 3), (128, 7, 3), (1, 5, 2), (256, 100, 5)] {
        let table = check(&empty(q), &alike(members), Some(n));
        assert_within_one(&loads(&table, members));
        assert_within_one(&firsts(&table, members));
    }
}

#[test]
fn owners_are_scattered() {
    let table = check(&empty(1024), &alike(12), Some(3));
    let partners = |of: u16| {
        let with = table.iter().filter(|o| o.contains(&of)).flatten();
        with.collect::<std::collections::BTreeSet<_>>().len() - 1
    };
    assert!((0..12).all(|i| partners(i) >= 8));
}

#[test]
fn shares_follow_weights() {
    check_fair(&empty(64), &seats(&[("", 1), ("", 2), ("", 3), ("", 4)]), 2);
    check_fair(&empty(64), &seats(&[("", 1), ("", 1), ("", 1), ("", 40)]), 2);
    check_fair(&empty(64), &seats(&[("a", 9), ("b", 1), ("b", 2), ("c", 1), ("c", 1)]), 2);
    check_fair(&empty(32), &seats(&[("a", 9), ("a", 9), ("b", 1), ("c", 1), ("d", 2)]), 3);
}

#[test]
fn weightless_members_own_nothing_unless_they_must() {
    let idle = seats(&[("", 1), ("", 0), ("", 1), ("", 1)]);
    assert_eq!(loads(&check(&empty(32), &idle, Some(3)), 4), [32, 0, 32, 32]);
    let forced = seats(&[("", 1), ("", 0), ("", 0), ("", 1)]);
    assert_eq!(loads(&check(&empty(32), &forced, Some(3)), 4), [32, 16, 16, 32]);
    let alone = seats(&[("a", 0), ("b", 1), ("b", 1)]);
    assert_eq!(loads(&check(&empty(32), &alone, Some(2)), 3), [32, 16, 16]);
}

#[test]
fn zones_are_respected() {
    let three = seats(&[("a", 1), ("a", 1), ("b", 1), ("b", 1), ("c", 1), ("c", 1)]);
    for n in 1..=6 {
        check_fair(&empty(32), &three, n);
    }
    let uneven = seats(&[("a", 1), ("b", 1), ("b", 1), ("b", 1), ("b", 1)]);
    for n in 1..=5 {
        check_fair(&empty(32), &uneven, n);
    }
}

#[test]
fn a_gap_that_the_needy_cannot_fill_is_filled_through_a_chain() {
    // Member 2 needs both, but owns the first segment already.
    check_least(&vec![vec![0, 2], vec![0, 1], vec![1]], &alike(3), 2);
    check_least(&vec![vec![2], vec![0, 1], vec![0, 1]], &alike(3), 2);
    check_least(&vec![vec![1, 3], vec![1, 3], vec![3], vec![]], &alike(4), 2);
}

#[test]
fn a_change_replaces_one_owner_of_a_segment_at_a_time() {
    for members in 3..12 {
        let old = check(&empty(256), &alike(members), Some(3));
        let new = check(&old, &alike(members + 1), Some(3));
        let fresh = |s: usize| moved(&old[s..=s], &new[s..=s]);
        assert!((0..256).all(|s| fresh(s) <= 1));
    }
}

#[test]
fn primaries_move_only_as_needed() {
    let old: Table = (0..64).map(|s| vec![s % 2, 2 + s % 2]).collect();
    let new = check(&old, &alike(4), Some(2));
    assert_eq!(firsts(&new, 4), [16; 4]);
    assert_eq!((0..64).filter(|&s| old[s][0] != new[s][0]).count(), 32);
    let weighted = seats(&[("", 3), ("", 1), ("", 1), ("", 1)]);
    assert_eq!(firsts(&check(&empty(60), &weighted, Some(2)), 4), [30, 10, 10, 10]);
}

fn any_seats(
    members: std::ops::Range<usize>,
    weights: std::ops::Range<u32>,
) -> impl Strategy<Value = Vec<Seat>> {
    let seat = (0..4usize, weights).prop_map(|(zone, weight)| ("abcd"[zone..=zone].to_owned(), weight));
    let seat = seat.prop_map(|(zone, weight)| Seat { zone, weight });
    prop::collection::vec(seat, members)
}

fn any_table(q: usize, owners: usize, members: u16) -> impl Strategy<Value = Table> {
    prop::collection::vec(prop::collection::vec(0..members, 0..=owners), 1..=q)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn moves_are_the_least_possible(
        seats in any_seats(1..6, 1..5), old in any_table(5, 4, 5), n in 1..4u16, plain in any::<bool>(),
    ) {
        let old: Table = old.iter().map(|o| sane(o, seats.len())).collect();
        check_least(&old, &if plain { alike(seats.len()) } else { seats }, n);
    }

    #[test]
    fn each_join_and_leave_costs_its_share(
        q in 0..8u32, start in 1..7usize, n in 1..5u16,
        steps in prop::collection::vec(prop::option::of(0..9usize), 1..8),
    ) {
        check_walk(1 << q, start, n, &steps);
    }

    #[test]
    fn walks_through_zones_and_weights_keep_the_rules(
        q in 0..7u32, n in 1..5u16, seats in any_seats(1..9, 1..5), gone in 0..8usize,
    ) {
        let table = check_fair(&empty(1 << q), &seats, n);
        let mut fewer = seats.clone();
        fewer.remove(gone % seats.len());
        if fewer.is_empty() {
            return Ok(());
        }
        let table = check_fair(&without(&table, gone % seats.len()), &fewer, n);
        fewer.push(seats[gone % seats.len()].clone());
        check_fair(&table, &fewer, n);
    }

    #[test]
    fn any_table_at_all_becomes_a_good_one(
        seats in any_seats(1..30, 0..5), old in any_table(100, 6, 30), n in 0..8u16,
    ) {
        let new = check(&old, &seats, Some(n));
        let n = seats.len().min(usize::from(n));
        let shares = shares(old.len() as u64, n, &weights(&seats), &zones(&seats, n));
        for (&load, share) in loads(&new, seats.len()).iter().zip(shares) {
            assert!(share.whole as i64 <= load as i64 && load as i64 <= share.ceil());
        }
    }
}
