//! Breadth first through all states that can be reached, each once: so the first thing that is found
//! wrong has the shortest story.

use crate::ring::Parts;
use crate::scenario::{Bounds, Scenario};
use crate::world::World;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};

/// What there was to see.
#[derive(Debug, Default)]
pub(crate) struct Explored {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    pub(crate) depth: usize,
    /// States in which nothing can happen any more.
    pub(crate) ends: usize,
    /// All was seen within the bounds.
    pub(crate) whole: bool,
    /// What went wrong, as a story.
    pub(crate) failure: Option<String>,
}

/// Two independent 64-bit hashes side by side: with 10^8 states, odds of 10^-22 that two are taken
/// for one.
struct Print(u64, u64);

impl Hasher for Print {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }

    fn write_u64(&mut self, word: u64) {
        // As in the finalizer of SplitMix64, with two sets of odd constants.
        let stir = |x: u64, by: u64| {
            let x = (x ^ word.wrapping_add(by)).wrapping_mul(0xbf58_476d_1ce4_e5b9 ^ (by << 1));
            (x ^ (x >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb ^ (by << 1)).rotate_left(23)
        };
        self.0 = stir(self.0, 0x9e37_79b9_7f4a_7c15);
        self.1 = stir(self.1, 0xc2b2_ae3d_27d4_eb4f);
    }
}

fn print(world: &World) -> u128 {
    let mut print = Print(1, 2);
    world.hash(&mut print);
    u128::from(print.0) << 64 | u128::from(print.1)
}

/// How a state was reached: from which one, by which of its steps.
type Trail = Vec<(u32, u16)>;

/// Explores a scenario until something is wrong or everything was seen.
pub(crate) fn explore(scenario: &Scenario, bounds: Bounds) -> Explored {
    let mut parts = Parts::new(scenario.clone(), bounds);
    let mut explored = Explored::default();
    let first = World::first(&mut parts).expect("nothing is wrong at the beginning");
    let mut seen = HashSet::from([print(&first)]);
    let mut trail: Trail = vec![(0, 0)];
    let mut level = vec![(first, 0u32)];
    while !level.is_empty() {
        let mut next = Vec::new();
        for (world, number) in &level {
            let steps = world.steps(&mut parts);
            explored.ends += usize::from(steps.is_empty());
            explored.steps += steps.len();
            for (choice, step) in steps.into_iter().enumerate() {
                let mut after = world.clone();
                let taken = after.take(&mut parts, step);
                if let Err(why) = taken {
                    explored.states = trail.len();
                    trail.push((*number, choice as u16));
                    explored.depth += 1;
                    explored.failure = Some(story(&trail, &mut parts, &why));
                    return explored;
                }
                if seen.insert(print(&after)) {
                    trail.push((*number, choice as u16));
                    next.push((after, (trail.len() - 1) as u32));
                }
            }
        }
        if trail.len() > bounds.states {
            explored.states = trail.len();
            return explored;
        }
        explored.depth += usize::from(!next.is_empty());
        level = next;
    }
    explored.states = trail.len();
    explored.whole = true;
    explored
}

/// Tells how the last state of a trail was reached.
fn story(trail: &Trail, parts: &mut Parts, why: &str) -> String {
    let mut choices = Vec::new();
    let mut at = trail.len() - 1;
    while at > 0 {
        choices.push(usize::from(trail[at].1));
        at = trail[at].0 as usize;
    }
    let mut world = World::first(parts).expect("nothing is wrong at the beginning");
    let mut text = format!("{why}\n      (what a coordinator asks of itself at once is not told)\n");
    for (i, choice) in choices.into_iter().rev().enumerate() {
        let step = world.steps(parts)[choice];
        text += &format!("  {:>2}. {}\n", i + 1, step.tell(&world, parts));
        // The last step is the one that fails.
        let _failed = world.take(parts, step);
    }
    text + "      " + &world.tell(parts) + "\n"
}
