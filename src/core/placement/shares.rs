//! How many segments each member should own, exactly.

use super::Seat;
use std::collections::BTreeMap;

/// An exact share: `whole + part / den`, with `part < den`.
#[derive(Clone, Copy, Default)]
pub(super) struct Share {
    pub(super) whole: u64,
    pub(super) part: u128,
    pub(super) den: u128,
}

impl Share {
    pub(super) fn ceil(self) -> i64 {
        self.whole as i64 + i64::from(self.part > 0)
    }
}

/// Divides `total` among `members` in proportion to weight, nobody above its cap; what a cap cuts
/// off spills to the others in proportion. Weightless members share what nobody else can take.
/// All shares that are not whole have the same denominator.
pub(super) fn divide(
    total: u64,
    members: &[usize],
    weights: &[u64],
    cap: impl Fn(usize) -> u64,
) -> Vec<Share> {
    let mut shares = vec![Share::default(); members.len()];
    let mut left = total;
    for weightless in [false, true] {
        let weight = |m: usize| match weightless {
            true => u128::from(weights[members[m]] == 0),
            false => u128::from(weights[members[m]]),
        };
        let mut open: Vec<usize> = (0..members.len()).filter(|&m| weight(m) > 0).collect();
        while !open.is_empty() {
            let den: u128 = open.iter().map(|&m| weight(m)).sum();
            let due = |m: usize| u128::from(left) * weight(m);
            let full = |m: usize| due(m) >= u128::from(cap(members[m])) * den;
            let (capped, free): (Vec<usize>, Vec<usize>) = open.iter().partition(|&&m| full(m));
            if capped.is_empty() {
                for m in free {
                    let (whole, part) = ((due(m) / den) as u64, due(m) % den);
                    shares[m] = Share { whole, part, den };
                }
                return shares;
            }
            for m in capped {
                shares[m].whole = cap(members[m]);
                left = left.saturating_sub(shares[m].whole);
            }
            open = free;
        }
    }
    shares
}

/// Weights as numbers that never overflow; if nobody weighs anything, all weigh the same.
pub(super) fn weights(seats: &[Seat]) -> Vec<u64> {
    let none = seats.iter().all(|s| s.weight == 0);
    let weight = |s: &Seat| if none { 1 } else { u64::from(s.weight) };
    seats.iter().map(weight).collect()
}

/// A zone: its members, and between which bounds its owners of one segment are counted.
pub(super) struct Zone {
    pub(super) members: Vec<usize>,
    pub(super) low: usize,
    pub(super) high: usize,
}

/// Groups the members by zone and bounds each zone's owners per segment.
///
/// Owners are poured into the zones like water: `level` is the least height at which all `n` fit,
/// a zone of fewer members than that is full, and the others hold `level` or one less.
pub(super) fn zones(seats: &[Seat], n: usize) -> Vec<Zone> {
    let mut named: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, seat) in seats.iter().enumerate() {
        named.entry(&seat.zone).or_default().push(i);
    }
    let room = |level: usize| named.values().map(|z| z.len().min(level)).sum::<usize>();
    let mut level = n.div_ceil(named.len().max(1));
    while level < n && room(level) < n {
        level += 1;
    }
    let zone = |members: Vec<usize>| Zone {
        low: members.len().min(level.saturating_sub(1)),
        high: members.len().min(level),
        members,
    };
    named.into_values().map(zone).collect()
}

/// Every member's exact share of `q` segments with `n` owners each.
///
/// Zones take part freely until their members' sum breaks a bound. When the broken bounds together
/// would give out too little, the zones above theirs can only be pinned there, and the other way
/// round; so a zone once pinned never has to be released.
pub(super) fn shares(q: u64, n: usize, weights: &[u64], zones: &[Zone]) -> Vec<Share> {
    let mut all = vec![Share::default(); weights.len()];
    let mut free: Vec<&Zone> = zones.iter().collect();
    let mut total = q * n as u64;
    let mut assign = |members: &[usize], total: u64| {
        let parts = divide(total, members, weights, |_| q);
        members.iter().zip(&parts).for_each(|(&i, &p)| all[i] = p);
        parts
    };
    while !free.is_empty() {
        let members: Vec<usize> = free.iter().flat_map(|z| z.members.clone()).collect();
        let parts = assign(&members, total);
        let den = parts.iter().map(|p| p.den).max().unwrap_or(0).max(1);
        let (mut above, mut below) = (0, 0);
        let mut at = 0;
        let mut excess = Vec::new();
        for zone in &free {
            let held = &parts[at..at + zone.members.len()];
            at += zone.members.len();
            let sum: u128 = held.iter().map(|p| u128::from(p.whole) * den + p.part).sum();
            let bound = |b: usize| u128::from(q) * b as u128 * den;
            let over = sum.saturating_sub(bound(zone.high));
            let under = bound(zone.low).saturating_sub(sum);
            above += over;
            below += under;
            excess.push((over, under));
        }
        if above == 0 && below == 0 {
            break;
        }
        let mut rest = Vec::new();
        for (zone, (over, under)) in free.into_iter().zip(excess) {
            let pinned = match () {
                () if over > 0 && above >= below => q * zone.high as u64,
                () if under > 0 && below >= above => q * zone.low as u64,
                () => {
                    rest.push(zone);
                    continue;
                }
            };
            assign(&zone.members, pinned);
            total = total.saturating_sub(pinned);
        }
        free = rest;
    }
    all
}
