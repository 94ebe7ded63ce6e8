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

mod flow;
mod primaries;
mod shares;

use flow::Ring;
use primaries::Primaries;

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

#[cfg(test)]
mod tests;
