//! Who owns which segment of the ring.
//!
//! A layout change turns an old table of owners and a new set of members into a new table, and
//! what it costs is the number of replicas that must be copied. This module finds a table that is
//! right first and cheap second: every segment has its `n` distinct owners, spread over the zones
//! as evenly as the zones' sizes permit; every member holds its weight's share rounded down or up;
//! and among all such tables the answer is one that keeps the largest possible number of old pairs.
//!
//! The problem is a minimum-cost flow: segments supply `n` units, zones limit how many of them
//! pass, members absorb between the floor and the ceiling of their share, and a pair of segment
//! and owner costs one when it is new and nothing when it is old. A ring has too many possible
//! pairs to write them down, so the graph stays implicit. Only members carry a distance: how many
//! extra copies, and then how many links of a chain, until one more segment could land on them.
//! What lies between two members is "this segment drops one owner and takes another", checked
//! against the zone rule on the spot.
//!
//! We start with everything worth keeping, which costs nothing and is therefore a cheapest flow of
//! its size, and from then on only ever push along a shortest path. That is the classical
//! invariant of successive shortest paths, and the reason the result is a true minimum and not a
//! good guess. Nearly all of the work is done by two greedy steps that are shortest paths
//! themselves (keeping old pairs, and filling a gap straight from a member in need); the search
//! through chains only repairs what these leave behind.
//!
//! Roundings are not fixed in advance. A share of 10.3 means "10 or 11, and a fixed number of
//! members in all get the larger one", so that the members which already hold 11 can keep it. A
//! balanced ring with the same members thus comes back unchanged, order included.
//!
//! Exact shares are fractions of integers throughout; nothing is rounded before the end and
//! nothing depends on floating point, on hashing with a seed or on time. Equal inputs give equal
//! tables on every member, which is what lets each of them compute the layout alone.
//!
//! Primaries are chosen afterwards, by reordering alone: again a flow, in which each segment gives
//! one unit to one of its owners, started from the old first owners.
//!
//! Left out on purpose: the cost of a copy is one whatever the segment's size or the distance
//! between members is; the number of replicas that one segment replaces at once is kept low by
//! the choice of what to drop but not minimised; and a zone has no parent zone.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// What one member brings to the ring.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Where the member stands; owners of one segment are spread over zones.
    pub zone: String,
    /// Its share relative to the others. 0 owns nothing unless rules of count or zone force it.
    pub weight: u32,
}

/// Computes the owners of every segment for the members `seats`.
///
/// `old[s]` lists the owners of segment `s` as indexes into `seats`, in preference order, without
/// those that are gone. `replicas` is the wanted number of owners per segment; `None` means every
/// member. Each segment gets exactly `min(replicas, seats.len())` distinct owners.
pub fn place(old: &[Vec<u16>], seats: &[Seat], replicas: Option<u16>) -> Vec<Vec<u16>> {
    // An owner is named by a u16, so no more seats than that can take part.
    let seats = &seats[..seats.len().min(usize::from(u16::MAX) + 1)];
    let old: Vec<Vec<u16>> = old.iter().map(|o| sane(o, seats.len())).collect();
    let n = replicas.map_or(seats.len(), |r| seats.len().min(usize::from(r)));
    let owners = if n == seats.len() {
        let all = 0..seats.len();
        vec![all.map(|i| i as u16).collect(); old.len()]
    } else {
        let mut ring = Ring::new(&old, seats, n);
        ring.keep();
        ring.settle();
        ring.owners
    };
    let mut table: Vec<Vec<u16>> =
        old.iter().zip(&owners).map(|(o, now)| in_old_order(o, now, seats.len())).collect();
    Primaries::choose(&old, &mut table, seats);
    table
}

/// How many (segment, owner) pairs of `new` are not in `old`: the replicas that must be copied.
pub fn moved(old: &[Vec<u16>], new: &[Vec<u16>]) -> usize {
    let before = |s: usize, i: &u16| old.get(s).is_some_and(|o| o.contains(i));
    let fresh = |(s, now): (usize, &Vec<u16>)| now.iter().filter(|i| !before(s, i)).count();
    new.iter().enumerate().map(fresh).sum()
}

/// The list without strangers and repetitions, which no caller should pass but any might.
fn sane(list: &[u16], members: usize) -> Vec<u16> {
    // Long lists occur (every member owns all), so looking for repetitions must not be quadratic.
    let mut seen = vec![false; if list.len() > 16 { members } else { 0 }];
    let mut out: Vec<u16> = Vec::with_capacity(list.len());
    for &i in list.iter().filter(|&&i| usize::from(i) < members) {
        let known = match seen.get_mut(usize::from(i)) {
            Some(mark) => std::mem::replace(mark, true),
            None => out.contains(&i),
        };
        if !known {
            out.push(i);
        }
    }
    out
}

/// The owners `now`: those kept in their old order, then the newcomers.
fn in_old_order(old: &[u16], now: &[u16], members: usize) -> Vec<u16> {
    if now.len() == members {
        let mut rest = vec![true; members];
        old.iter().for_each(|&i| rest[usize::from(i)] = false);
        let new = now.iter().copied().filter(|&i| rest[usize::from(i)]);
        return old.iter().copied().chain(new).collect();
    }
    let kept = old.iter().filter(|i| now.contains(i));
    let new = now.iter().filter(|i| !old.contains(i));
    kept.chain(new).copied().collect()
}

/// A deterministic scrambler. It breaks ties so that equal members do not always own together,
/// which would leave few helpers when one of them is lost.
fn scramble(a: i64, b: usize) -> u32 {
    let mut x = (a as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (b as u64 + 1) << 17;
    x = (x ^ (x >> 31)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x = (x ^ (x >> 29)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (x >> 32) as u32
}

/// An exact share: `whole + part / den`, with `part < den`.
#[derive(Clone, Copy, Default)]
struct Share {
    whole: u64,
    part: u128,
    den: u128,
}

impl Share {
    fn ceil(self) -> i64 {
        self.whole as i64 + i64::from(self.part > 0)
    }
}

/// Divides `total` among `members` in proportion to weight, nobody above its cap; what a cap cuts
/// off spills to the others in proportion. Weightless members share what nobody else can take.
/// All shares that are not whole have the same denominator.
fn divide(total: u64, members: &[usize], weights: &[u64], cap: impl Fn(usize) -> u64) -> Vec<Share> {
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
fn weights(seats: &[Seat]) -> Vec<u64> {
    let none = seats.iter().all(|s| s.weight == 0);
    let weight = |s: &Seat| if none { 1 } else { u64::from(s.weight) };
    seats.iter().map(weight).collect()
}

/// A zone: its members, and between which bounds its owners of one segment are counted.
struct Zone {
    members: Vec<usize>,
    low: usize,
    high: usize,
}

/// Groups the members by zone and bounds each zone's owners per segment.
///
/// Owners are poured into the zones like water: `level` is the least height at which all `n` fit,
/// a zone of fewer members than that is full, and the others hold `level` or one less.
fn zones(seats: &[Seat], n: usize) -> Vec<Zone> {
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
fn shares(q: u64, n: usize, weights: &[u64], zones: &[Zone]) -> Vec<Share> {
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

/// How far a segment travels to land on a member: `COPY` for each copy it takes, and one for each
/// link of the chain. Few copies come first; among those the shortest chains, which have no cycles
/// and leave the rest of the table alone.
type Distance = i64;
const COPY: Distance = 1 << 32;
const FAR: Distance = Distance::MAX;

/// One link of a chain: `seg` (if any) passes from `from` (if any) to `to`. A link without a
/// segment hands on the right to the larger rounding.
#[derive(Clone, Copy)]
struct Link {
    seg: Option<usize>,
    from: Option<usize>,
    to: usize,
}

/// The table in the making.
struct Ring<'a> {
    old: &'a [Vec<u16>],
    n: usize,
    zones: Vec<Zone>,
    zone_of: Vec<usize>,
    /// Owners of a segment beyond the sum of all zones' low bounds.
    extra: usize,
    shares: Vec<Share>,
    /// How many members may hold their share rounded up, and how many do.
    spare: i64,
    spare_used: i64,
    owners: Vec<Vec<u16>>,
    load: Vec<i64>,
    /// Scratch for one segment: owners by zone, the zones seen, and whether an extra owner fits.
    count: Vec<usize>,
    seen: Vec<usize>,
    extra_fits: bool,
    /// How near each member is to the gaps, and the nearest that has room.
    dist: Vec<Distance>,
    goal: Distance,
    /// Members from which no chain leads on.
    dead: Vec<bool>,
    /// Segments of each member when the chains began, later ones appended, lost ones left in.
    held: Vec<Vec<u32>>,
    next: Vec<usize>,
    /// Members by distance, and at each distance by zone; those nearer than `goal` or with room.
    peers: BTreeMap<Distance, Vec<(usize, Vec<usize>)>>,
}

impl<'a> Ring<'a> {
    fn new(old: &'a [Vec<u16>], seats: &[Seat], n: usize) -> Self {
        let zones = zones(seats, n);
        let mut zone_of = vec![0; seats.len()];
        for (k, zone) in zones.iter().enumerate() {
            zone.members.iter().for_each(|&i| zone_of[i] = k);
        }
        let shares = shares(old.len() as u64, n, &weights(seats), &zones);
        let whole: u64 = shares.iter().map(|s| s.whole).sum();
        Ring {
            old,
            n,
            extra: n - zones.iter().map(|z| z.low).sum::<usize>().min(n),
            count: vec![0; zones.len()],
            seen: Vec::new(),
            zones,
            zone_of,
            spare: (old.len() * n) as i64 - whole as i64,
            shares,
            spare_used: 0,
            owners: vec![Vec::with_capacity(n); old.len()],
            load: vec![0; seats.len()],
            extra_fits: false,
            dist: vec![FAR; seats.len()],
            goal: FAR,
            dead: vec![false; seats.len()],
            held: vec![Vec::new(); seats.len()],
            next: vec![0; seats.len()],
            peers: BTreeMap::new(),
        }
    }

    fn floor(&self, i: usize) -> i64 {
        self.shares[i].whole as i64
    }

    fn owns(&self, s: usize, i: usize) -> bool {
        self.owners[s].contains(&(i as u16))
    }

    /// What it costs that member `i` owns segment `s`.
    fn cost(&self, s: usize, i: usize) -> Distance {
        if self.old[s].contains(&(i as u16)) { 0 } else { COPY }
    }

    fn add(&mut self, s: usize, i: usize) {
        self.owners[s].push(i as u16);
        self.spare_used += i64::from(self.load[i] >= self.floor(i));
        self.load[i] += 1;
    }

    fn remove(&mut self, s: usize, i: usize) {
        self.owners[s].retain(|&o| usize::from(o) != i);
        self.load[i] -= 1;
        self.spare_used -= i64::from(self.load[i] >= self.floor(i));
    }

    /// Whether member `i` could hold one more without anyone else holding less.
    fn has_room(&self, i: usize) -> bool {
        self.load[i] < self.floor(i) || self.load[i] < self.shares[i].ceil() && self.spare_used < self.spare
    }

    /// Prepares `fits` for segment `s`, looked at without its owner `without`.
    fn look(&mut self, s: usize, without: Option<usize>) {
        // Only what the last look left behind is cleared; there may be many zones.
        self.seen.drain(..).for_each(|k| self.count[k] = 0);
        let mut extras = 0;
        for &o in &self.owners[s] {
            let k = self.zone_of[usize::from(o)];
            if Some(usize::from(o)) != without {
                extras += usize::from(self.count[k] >= self.zones[k].low);
                self.count[k] += 1;
                self.seen.push(k);
            }
        }
        self.extra_fits = extras < self.extra;
    }

    /// Whether the segment looked at may take an owner in zone `k`.
    fn fits(&self, k: usize) -> bool {
        let (count, zone) = (self.count[k], &self.zones[k]);
        count < zone.low || count < zone.high && self.extra_fits
    }

    /// Keeps what can be kept: old owners as far as the zones allow, then fewer where a member
    /// holds too much. Gaps go to segments that have none yet, so that no segment loses several
    /// owners while others lose none.
    fn keep(&mut self) {
        for s in 0..self.old.len() {
            let mut wish: Vec<usize> = self.old[s].iter().map(|&i| usize::from(i)).collect();
            if wish.len() > self.n {
                wish.sort_by_key(|&i| self.load[i] - self.floor(i));
            }
            for i in wish {
                self.look(s, None);
                if self.fits(self.zone_of[i]) {
                    self.add(s, i);
                }
            }
        }
        self.list_held();
        for i in 0..self.load.len() {
            self.shed(i, self.shares[i].ceil());
        }
        for i in 0..self.load.len() {
            if self.spare_used > self.spare {
                self.shed(i, self.floor(i));
            }
        }
    }

    /// Drops segments of member `i` until it holds no more than `limit`.
    fn shed(&mut self, i: usize, limit: i64) {
        let surplus = usize::try_from(self.load[i] - limit).unwrap_or(0);
        if surplus == 0 {
            return;
        }
        let mut mine = self.held[i].clone();
        mine.retain(|&s| self.owns(s as usize, i));
        mine.sort_by_cached_key(|&s| {
            let missing = self.n - self.owners[s as usize].len();
            (missing, scramble(i64::from(s), i))
        });
        for s in mine.into_iter().take(surplus) {
            self.remove(s as usize, i);
        }
    }

    fn list_held(&mut self) {
        self.held.iter_mut().for_each(Vec::clear);
        for (s, owners) in self.owners.iter().enumerate() {
            for &o in owners {
                self.held[usize::from(o)].push(s as u32);
            }
        }
    }

    fn gaps(&self) -> Vec<usize> {
        let gap = |s: &usize| self.owners[*s].len() < self.n;
        (0..self.owners.len()).filter(gap).collect()
    }

    /// Fills all gaps by shortest paths. Each turn with gaps left makes progress, because exact
    /// shares prove that a full table exists.
    fn settle(&mut self) {
        let mut filled = false;
        loop {
            let gaps = self.gaps();
            if gaps.is_empty() {
                return;
            }
            self.list_held();
            self.search(&gaps);
            if self.goal == FAR {
                debug_assert!(false, "a table within the shares exists");
                return;
            }
            // A direct copy is a shortest path exactly when no path is free.
            if self.goal / COPY == 1 && !filled {
                filled = true;
                self.fill(&gaps);
            } else {
                self.push_chains(&gaps);
            }
        }
    }

    /// Computes all distances from the gaps, and the distance `goal` of the nearest room.
    ///
    /// Dropping a new owner wins back a copy, so a distance may be corrected after it was used;
    /// but the flow is a cheapest one (no cycle wins), so this ends, and in practice soon.
    fn search(&mut self, gaps: &[usize]) {
        self.dist.fill(FAR);
        let mut worst = Worst { by_zone: vec![FAR; self.zones.len()], all: FAR };
        let mut queue = BinaryHeap::new();
        let mut spare_dist = FAR;
        for &s in gaps {
            self.reach(s, None, 0, &mut worst, &mut queue);
        }
        while let Some(Reverse((dist, i))) = queue.pop() {
            if dist > self.dist[i] {
                continue;
            }
            for at in 0..self.held[i].len() {
                let s = self.held[i][at] as usize;
                self.reach(s, Some(i), dist - self.cost(s, i), &mut worst, &mut queue);
            }
            if dist < spare_dist && self.load[i] < self.shares[i].ceil() {
                // Whoever holds the larger rounding could hand it on to this member.
                spare_dist = dist;
                for j in 0..self.load.len() {
                    if self.load[j] > self.floor(j) && dist + 1 < self.dist[j] {
                        self.dist[j] = dist + 1;
                        queue.push(Reverse((dist + 1, j)));
                    }
                }
            }
        }
        let sinks = (0..self.load.len()).filter(|&i| self.has_room(i));
        self.goal = sinks.map(|i| self.dist[i]).min().unwrap_or(FAR);
    }

    /// Lowers the distance of all members that segment `s` can take in place of `without`.
    fn reach(
        &mut self,
        s: usize,
        without: Option<usize>,
        base: Distance,
        worst: &mut Worst,
        queue: &mut BinaryHeap<Reverse<(Distance, usize)>>,
    ) {
        self.look(s, without);
        let old = self.old;
        for i in old[s].iter().map(|&i| usize::from(i)) {
            if base + 1 < self.dist[i] && self.fits(self.zone_of[i]) && !self.owns(s, i) {
                self.dist[i] = base + 1;
                queue.push(Reverse((base + 1, i)));
            }
        }
        let copied = base + COPY + 1;
        if copied >= worst.all {
            return;
        }
        for (k, worst) in worst.by_zone.iter_mut().enumerate() {
            if copied >= *worst || !self.fits(k) {
                continue;
            }
            *worst = 0;
            for &i in &self.zones[k].members {
                if copied < self.dist[i] && !self.owners[s].contains(&(i as u16)) {
                    self.dist[i] = copied;
                    queue.push(Reverse((copied, i)));
                }
                *worst = self.dist[i].max(*worst);
            }
        }
        worst.all = worst.by_zone.iter().copied().max().unwrap_or(0);
    }

    /// Fills gaps straight from members with room. The neediest zone and in it the neediest member
    /// come first: whoever must own much of what is left cannot afford to wait.
    fn fill(&mut self, gaps: &[usize]) {
        let need = |ring: &Self, i: usize| ring.floor(i) - ring.load[i];
        let mut heaps: Vec<BinaryHeap<(i64, u32, usize)>> = Vec::new();
        let mut order = BinaryHeap::new();
        for (k, zone) in self.zones.iter().enumerate() {
            let entry = |&i: &usize| (need(self, i), scramble(need(self, i), i), i);
            heaps.push(zone.members.iter().map(entry).collect());
            let parts = zone.members.iter().map(|&i| self.shares[i]);
            let part: u128 = parts.map(|p| (p.part << 32) / p.den.max(1)).sum();
            let whole: i64 = zone.members.iter().map(|&i| need(self, i)).sum();
            let want = whole + ((part + (1 << 31)) >> 32) as i64;
            order.push((want, scramble(want, k), k));
        }
        for &s in gaps {
            let mut aside = Vec::new();
            self.look(s, None);
            while self.owners[s].len() < self.n {
                let Some((want, tie, k)) = order.pop() else {
                    break;
                };
                let taken = if self.fits(k) { self.take(s, &mut heaps[k]) } else { false };
                if taken {
                    self.look(s, None);
                    order.push((want - 1, scramble(want - 1, k), k));
                } else {
                    aside.push((want, tie, k));
                }
            }
            order.extend(aside);
        }
    }

    /// Gives segment `s` to the neediest member of the heap that can own it.
    fn take(&mut self, s: usize, heap: &mut BinaryHeap<(i64, u32, usize)>) -> bool {
        let mut aside = Vec::new();
        let mut taken = false;
        while let Some((need, tie, i)) = heap.pop() {
            if !self.has_room(i) {
                // Loads only grow here, so a member without room is out for good.
                continue;
            }
            if self.owns(s, i) {
                aside.push((need, tie, i));
                continue;
            }
            self.add(s, i);
            heap.push((need - 1, scramble(need - 1, i), i));
            taken = true;
            break;
        }
        heap.extend(aside);
        taken
    }

    /// Pushes chains from all gaps, along shortest paths only, until each gap has failed once.
    fn push_chains(&mut self, gaps: &[usize]) {
        self.dead.fill(false);
        self.next.fill(0);
        self.peers.clear();
        for (k, zone) in self.zones.iter().enumerate() {
            for &i in &zone.members {
                let dist = self.dist[i];
                if dist < self.goal || dist == self.goal && self.has_room(i) {
                    let groups = self.peers.entry(dist).or_default();
                    match groups.last_mut() {
                        Some((zone, members)) if *zone == k => members.push(i),
                        _ => groups.push((k, vec![i])),
                    }
                }
            }
        }
        for &s in gaps {
            while self.owners[s].len() < self.n && self.push_chain(s) {}
        }
    }

    /// Finds one chain from a gap of segment `s` to a member with room, changing the table on the
    /// way and back again where the way is blocked. Distances grow along a chain, so a member that
    /// led nowhere once is not tried again; those on a chain that worked may serve the next one.
    fn push_chain(&mut self, s: usize) -> bool {
        let mut path: Vec<Link> = Vec::new();
        loop {
            let link = match path.last() {
                None => self.pick(s, None, 0),
                Some(last) if self.is_settled(last.to) => return true,
                Some(last) => self.onward(last.to),
            };
            if let Some(link) = link {
                self.apply(link);
                path.push(link);
            } else if let Some(last) = path.pop() {
                self.undo(last);
            } else {
                return false;
            }
        }
    }

    /// Whether the chain may end with member `i`, which has just been given a segment.
    fn is_settled(&self, i: usize) -> bool {
        self.dist[i] == self.goal && self.load[i] <= self.shares[i].ceil() && self.spare_used <= self.spare
    }

    fn apply(&mut self, link: Link) {
        if let Some(s) = link.seg {
            if let Some(from) = link.from {
                self.remove(s, from);
            }
            self.add(s, link.to);
            self.held[link.to].push(s as u32);
        }
    }

    fn undo(&mut self, link: Link) {
        self.dead[link.to] = true;
        if let Some(s) = link.seg {
            self.remove(s, link.to);
            if let Some(from) = link.from {
                self.add(s, from);
            }
        }
    }

    /// The next way on from member `i`, which holds one segment too many.
    fn onward(&mut self, i: usize) -> Option<Link> {
        let dist = self.dist[i];
        if dist >= self.goal {
            return None;
        }
        if self.load[i] <= self.shares[i].ceil() {
            let groups = self.peers.get(&(dist + 1)).into_iter().flatten();
            let gives = |&j: &usize| !self.dead[j] && self.load[j] > self.floor(j);
            if let Some(to) = groups.flat_map(|(_, m)| m).copied().find(gives) {
                return Some(Link { seg: None, from: None, to });
            }
        }
        while let Some(&s) = self.held[i].get(self.next[i]) {
            let s = s as usize;
            if self.owns(s, i) {
                let link = self.pick(s, Some(i), dist - self.cost(s, i));
                if link.is_some() {
                    return link;
                }
            }
            self.next[i] += 1;
        }
        None
    }

    /// A member that segment `s` can take in place of `from` on a shortest path: an old owner one
    /// link from `base`, or else anyone a copy farther.
    fn pick(&mut self, s: usize, from: Option<usize>, base: Distance) -> Option<Link> {
        self.look(s, from);
        let suits = |i: usize| !self.dead[i] && self.fits(self.zone_of[i]) && !self.owns(s, i);
        let old = || self.old[s].iter().map(|&i| usize::from(i));
        let kept = old().find(|&i| self.dist[i] == base + 1 && suits(i));
        let to = match kept {
            Some(i) => i,
            None => self.pick_new(s, base + COPY + 1)?,
        };
        Some(Link { seg: Some(s), from, to })
    }

    /// A new owner at distance `dist` for the segment `s` that is being looked at. Few zones and
    /// few members can be unfit, so this is quick, given that the dead are dropped on the way.
    fn pick_new(&mut self, s: usize, dist: Distance) -> Option<usize> {
        let mut groups = std::mem::take(self.peers.get_mut(&dist)?);
        let mut found = None;
        let mut at = 0;
        while found.is_none() && at < groups.len() {
            let (zone, members) = &mut groups[at];
            if self.fits(*zone) {
                found = self.first_alive(s, members);
            }
            if members.is_empty() {
                groups.swap_remove(at);
            } else {
                at += 1;
            }
        }
        self.peers.insert(dist, groups);
        found
    }

    /// The first of `members` that would be new to segment `s`, dropping the dead before it.
    fn first_alive(&self, s: usize, members: &mut Vec<usize>) -> Option<usize> {
        let mut at = 0;
        while let Some(&i) = members.get(at) {
            if self.dead[i] {
                members.swap_remove(at);
            } else if self.owns(s, i) || self.cost(s, i) == 0 {
                at += 1;
            } else {
                return Some(i);
            }
        }
        None
    }
}

/// The largest distance in each zone and of all, which spares us most looks at whole zones.
struct Worst {
    by_zone: Vec<Distance>,
    all: Distance,
}

/// The choice of first owners, by moving "who is first" along chains of segments.
struct Primaries<'a> {
    table: &'a [Vec<u16>],
    first: Vec<u16>,
    count: Vec<i64>,
}

impl<'a> Primaries<'a> {
    /// Reorders each list of `table` so that first places are proportional to weight, moving as
    /// little as the balance needs.
    fn choose(old: &[Vec<u16>], table: &mut [Vec<u16>], seats: &[Seat]) {
        if table.first().is_none_or(|owners| owners.len() < 2) {
            return;
        }
        let mut load = vec![0u64; seats.len()];
        table.iter().flatten().for_each(|&i| load[usize::from(i)] += 1);
        let everyone: Vec<usize> = (0..seats.len()).collect();
        let shares = divide(table.len() as u64, &everyone, &weights(seats), |i| load[i]);
        let low: Vec<i64> = shares.iter().map(|s| s.whole as i64).collect();
        let high: Vec<i64> = shares.iter().map(|s| s.ceil()).collect();

        let mut this = Primaries { table, first: Vec::new(), count: vec![0; seats.len()] };
        this.start(old, &low);
        this.shift(&high, &low);
        this.shift(&high, &high);
        this.shift(&low, &low);
        let first = this.first;
        for (owners, first) in table.iter_mut().zip(first) {
            if let Some(at) = owners.iter().position(|&o| o == first) {
                owners[..=at].rotate_right(1);
            }
        }
    }

    /// A kept owner leads as before. Where all owners are new, the one that lacks most does.
    fn start(&mut self, old: &[Vec<u16>], low: &[i64]) {
        self.first = self.table.iter().map(|owners| owners[0]).collect();
        let fresh = |s: usize| !old[s].contains(&self.table[s][0]);
        let fresh: Vec<bool> = (0..self.table.len()).map(fresh).collect();
        for (s, _) in fresh.iter().enumerate().filter(|(_, fresh)| !**fresh) {
            self.count[usize::from(self.first[s])] += 1;
        }
        for (s, _) in fresh.iter().enumerate().filter(|(_, fresh)| **fresh) {
            let lack = |&&i: &&u16| low[usize::from(i)] - self.count[usize::from(i)];
            let best = self.table[s].iter().rev().max_by_key(lack);
            self.first[s] = best.copied().unwrap_or(self.first[s]);
            self.count[usize::from(self.first[s])] += 1;
        }
    }

    /// Moves first places from members above `keep` to members below `want`, through others.
    fn shift(&mut self, keep: &[i64], want: &[i64]) {
        loop {
            let mut led: Vec<Vec<u32>> = vec![Vec::new(); self.count.len()];
            for (s, &f) in self.first.iter().enumerate() {
                led[usize::from(f)].push(s as u32);
            }
            let mut seen = vec![false; self.count.len()];
            let mut next = vec![0; self.count.len()];
            let mut progress = false;
            for (i, &keep) in keep.iter().enumerate() {
                while self.count[i] > keep && self.hand_on(i, want, &led, &mut seen, &mut next) {
                    progress = true;
                }
            }
            if !progress {
                return;
            }
        }
    }

    /// Finds one chain from `start` to a member below `want` and moves a first place along it.
    fn hand_on(
        &mut self,
        start: usize,
        want: &[i64],
        led: &[Vec<u32>],
        seen: &mut [bool],
        next: &mut [usize],
    ) -> bool {
        if std::mem::replace(&mut seen[start], true) {
            return false;
        }
        let mut path: Vec<(usize, u16)> = Vec::new();
        let mut at = start;
        loop {
            if at != start && self.count[at] < want[at] {
                self.count[start] -= 1;
                self.count[at] += 1;
                seen[start] = false;
                for (s, to) in path {
                    self.first[s] = to;
                    seen[usize::from(to)] = false;
                }
                return true;
            }
            if let Some((s, to)) = self.successor(at, want, led, seen, next) {
                path.push((s, to));
                at = usize::from(to);
                seen[at] = true;
            } else if path.pop().is_some() {
                at = path.last().map_or(start, |&(_, to)| usize::from(to));
            } else {
                return false;
            }
        }
    }

    /// A segment led by `at` and another owner of it to lead instead, one in want if there is any.
    fn successor(
        &self,
        at: usize,
        want: &[i64],
        led: &[Vec<u32>],
        seen: &[bool],
        next: &mut [usize],
    ) -> Option<(usize, u16)> {
        while let Some(&s) = led[at].get(next[at]) {
            let s = s as usize;
            if usize::from(self.first[s]) == at {
                let unseen = |&&o: &&u16| !seen[usize::from(o)];
                let wants = |&&o: &&u16| self.count[usize::from(o)] < want[usize::from(o)];
                let owners = &self.table[s];
                let needy = owners.iter().filter(unseen).find(wants);
                if let Some(&to) = needy.or_else(|| owners.iter().find(unseen)) {
                    return Some((s, to));
                }
            }
            next[at] += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests;
