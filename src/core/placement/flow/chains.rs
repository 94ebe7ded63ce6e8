//! Chains of links from the gaps to the members that have room.

use super::{COPY, Distance, Link, Ring};

impl Ring<'_> {
    /// Pushes chains from all gaps, along shortest paths only, until each gap has failed once.
    pub(super) fn push_chains(&mut self, gaps: &[usize]) {
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
