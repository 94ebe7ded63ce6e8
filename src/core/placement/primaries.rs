//! Which owner comes first: again a flow, over a table whose owners are settled.

use super::Seat;
use super::shares::{divide, weights};

/// The choice of first owners, by moving "who is first" along chains of segments.
pub(super) struct Primaries<'a> {
    table: &'a [Vec<u16>],
    first: Vec<u16>,
    count: Vec<i64>,
}

impl<'a> Primaries<'a> {
    /// Reorders each list of `table` so that first places are proportional to weight, moving as
    /// little as the balance needs.
    pub(super) fn choose(old: &[Vec<u16>], table: &mut [Vec<u16>], seats: &[Seat]) {
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
