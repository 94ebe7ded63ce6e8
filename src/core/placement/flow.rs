//! The cheapest table with the right shares: successive shortest paths on an implicit graph.

mod chains;

use super::Seat;
use super::shares::{Share, Zone, shares, weights, zones};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// A deterministic scrambler. It breaks ties so that equal members do not always own together,
/// which would leave few helpers when one of them is lost.
fn scramble(a: i64, b: usize) -> u32 {
    let mut x = (a as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (b as u64 + 1) << 17;
    x = (x ^ (x >> 31)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x = (x ^ (x >> 29)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (x >> 32) as u32
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
pub(super) struct Ring<'a> {
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
    pub(super) owners: Vec<Vec<u16>>,
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
    pub(super) fn new(old: &'a [Vec<u16>], seats: &[Seat], n: usize) -> Self {
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
    pub(super) fn keep(&mut self) {
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
    pub(super) fn settle(&mut self) {
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
}

/// The largest distance in each zone and of all, which spares us most looks at whole zones.
struct Worst {
    by_zone: Vec<Distance>,
    all: Distance,
}
