//! Is there an order of the operations on one key that agrees with real time and explains each answer?
//!
//! The search of Wing and Gong (1993) with the memory of Lowe (2017): which operations have been put in
//! order and what the key then holds is all that the rest of the search depends on, so that no such
//! state is searched twice. It looks at values alone and knows nothing of versions, unlike the other
//! check, so that the two can't share a mistake.
//!
//! A write whose outcome is unknown may take effect at any time after its start, or never. Three
//! observations keep the search short. A read that fits what the key holds can be put next at once:
//! it changes nothing. A write of unknown outcome whose value nobody ever read may be taken
//! not to have happened. And of several deletes of unknown outcome that have begun, any one will do.
//!
//! The search is bounded. If the bound is met nothing is proven, and the caller must not take it for a
//! pass.

use std::collections::{BTreeSet, HashSet};

/// A value; `None` is absence.
pub(crate) type Value = Option<u64>;

/// What an operation did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    /// It wrote this; values are never written twice, absence may be.
    Write(Value),
    /// It found this.
    Read(Value),
}

/// One operation on the key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Operation {
    pub(crate) begun: u64,
    /// `None`: the outcome is unknown.
    pub(crate) ended: Option<u64>,
    pub(crate) what: What,
}

/// What the search found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Linearizable,
    Not,
    /// The search was given up.
    Undecided,
}

/// The known state of the search: operations before `low` are in order, and some after it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    low: usize,
    beyond: Vec<usize>,
    /// Writes of unknown outcome that took effect.
    took: Vec<usize>,
    holds: Value,
}

/// Searches for an order, for at most so many steps. The key is absent at first.
pub(crate) fn check(history: &[Operation], most_steps: usize) -> Verdict {
    let found: BTreeSet<Value> = history
        .iter()
        .filter_map(|operation| match operation.what {
            What::Read(value) if operation.ended.is_some() => Some(value),
            _ => None,
        })
        .collect();
    let mut certain: Vec<Operation> = history.iter().copied().filter(|op| op.ended.is_some()).collect();
    certain.sort_by_key(|operation| operation.begun);
    let mut uncertain: Vec<(u64, Value)> = history
        .iter()
        .filter_map(|operation| match (operation.what, operation.ended) {
            (What::Write(value), None) if found.contains(&value) => Some((operation.begun, value)),
            _ => None,
        })
        .collect();
    uncertain.sort_unstable();
    let mut search = Search { certain, uncertain, seen: HashSet::new(), most_steps };
    search.run()
}

struct Search {
    certain: Vec<Operation>,
    uncertain: Vec<(u64, Value)>,
    seen: HashSet<State>,
    most_steps: usize,
}

impl Search {
    fn run(&mut self) -> Verdict {
        let mut open = vec![State { low: 0, beyond: Vec::new(), took: Vec::new(), holds: None }];
        while let Some(mut state) = open.pop() {
            self.read_all(&mut state);
            if state.low == self.certain.len() {
                return Verdict::Linearizable;
            }
            if self.seen.len() == self.most_steps {
                return Verdict::Undecided;
            }
            if self.seen.insert(state.clone()) {
                self.go_on(&state, &mut open);
            }
        }
        Verdict::Not
    }

    /// Operations that may come next: all that began before any other that is left has ended.
    fn next(&self, state: &State) -> (Vec<usize>, u64) {
        let mut first_end = u64::MAX;
        let mut next = Vec::new();
        for at in (state.low..self.certain.len()).filter(|at| !state.beyond.contains(at)) {
            let operation = self.certain[at];
            if operation.begun > first_end {
                break;
            }
            first_end = first_end.min(operation.ended.unwrap_or(u64::MAX));
            next.push(at);
        }
        next.retain(|at| self.certain[*at].begun < first_end);
        (next, first_end)
    }

    fn put(&self, state: &mut State, at: usize) {
        let place = state.beyond.partition_point(|other| *other < at);
        state.beyond.insert(place, at);
        while state.beyond.first() == Some(&state.low) {
            state.beyond.remove(0);
            state.low += 1;
        }
    }

    fn read_all(&self, state: &mut State) {
        let fits = |at: &usize| self.certain[*at].what == What::Read(state.holds);
        let mut fitting: Vec<usize> = self.next(state).0.into_iter().filter(fits).collect();
        while !fitting.is_empty() {
            fitting.into_iter().for_each(|at| self.put(state, at));
            let fits = |at: &usize| self.certain[*at].what == What::Read(state.holds);
            fitting = self.next(state).0.into_iter().filter(fits).collect();
        }
    }

    /// What may come next; the most likely is pushed last, to be popped first.
    fn go_on(&self, state: &State, open: &mut Vec<State>) {
        let (next, first_end) = self.next(state);
        let mut deleted = false;
        for (at, (begun, value)) in self.uncertain.iter().enumerate() {
            let again = value.is_none() && deleted;
            if *begun < first_end && !state.took.contains(&at) && *value != state.holds && !again {
                deleted |= value.is_none();
                let mut then = State { holds: *value, ..state.clone() };
                then.took.push(at);
                then.took.sort_unstable();
                open.push(then);
            }
        }
        for at in next.into_iter().rev() {
            if let What::Write(value) = self.certain[at].what {
                let mut then = State { holds: value, ..state.clone() };
                self.put(&mut then, at);
                open.push(then);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn operation(begun: u64, ended: u64, what: What) -> Operation {
        Operation { begun, ended: (ended > 0).then_some(ended), what }
    }

    fn w(begun: u64, ended: u64, value: u64) -> Operation {
        operation(begun, ended, What::Write((value > 0).then_some(value)))
    }

    fn r(begun: u64, ended: u64, value: u64) -> Operation {
        operation(begun, ended, What::Read((value > 0).then_some(value)))
    }

    /// An end of 0 is an unknown outcome, a value of 0 is absence.
    #[test]
    fn known_histories_are_judged_right() {
        let good: &[&[Operation]] = &[
            &[],
            &[r(1, 2, 0)],
            &[w(1, 2, 1), r(3, 4, 1)],
            &[w(1, 6, 1), r(2, 3, 0), r(4, 5, 1)],
            &[w(1, 6, 1), w(2, 7, 2), r(3, 4, 2), r(8, 9, 1)],
            &[w(1, 0, 1), r(2, 3, 0), r(4, 5, 1), r(6, 7, 1)],
            &[w(1, 0, 1), w(2, 3, 2), r(4, 5, 2), r(6, 7, 1)],
            &[w(1, 0, 1), r(2, 3, 0), r(4, 5, 0)],
            &[w(1, 2, 1), w(3, 4, 0), r(5, 6, 0), w(7, 8, 2), r(9, 10, 2)],
            &[w(1, 2, 1), w(3, 0, 0), r(4, 5, 0), w(6, 7, 2), r(8, 9, 2)],
            &[w(1, 0, 0), w(2, 0, 0), w(3, 4, 1), r(5, 6, 0), w(7, 8, 2), r(9, 10, 0)],
        ];
        let bad: &[&[Operation]] = &[
            &[r(1, 2, 1)],
            &[w(1, 2, 1), r(3, 4, 0)],
            &[w(1, 6, 1), r(2, 3, 1), r(4, 5, 0)],
            &[w(1, 2, 1), w(3, 4, 2), r(5, 6, 1)],
            &[w(1, 2, 1), w(3, 4, 0), r(5, 6, 1)],
            &[w(1, 0, 1), w(2, 3, 2), r(4, 5, 1), r(6, 7, 2)],
            &[w(1, 0, 1), w(2, 0, 2), r(3, 4, 1), r(5, 6, 2), r(7, 8, 1)],
            &[w(5, 0, 1), r(1, 2, 1)],
            &[w(1, 2, 1), w(3, 0, 0), r(4, 5, 0), w(6, 7, 2), r(8, 9, 0)],
        ];
        for history in good {
            assert_eq!(check(history, 1000), Verdict::Linearizable, "{history:?}");
        }
        for history in bad {
            assert_eq!(check(history, 1000), Verdict::Not, "{history:?}");
        }
        assert_eq!(check(bad[3], 1), Verdict::Undecided, "too few steps prove nothing");
    }

    /// All orders, one by one.
    fn naive(history: &[Operation], holds: Value) -> bool {
        history.iter().all(|operation| operation.ended.is_none())
            || (0..history.len()).any(|at| {
                let mut rest = history.to_vec();
                let operation = rest.remove(at);
                let first = rest.iter().all(|other| other.ended.is_none_or(|ended| ended > operation.begun));
                match operation.what {
                    What::Write(value) => first && naive(&rest, value),
                    What::Read(value) => first && value == holds && naive(&rest, holds),
                }
            })
    }

    #[test]
    fn it_agrees_with_trying_all_orders() {
        let mut rng = Rng::new(1);
        let mut linearizable = 0;
        for _ in 0..4000 {
            let mut times: Vec<u64> = (1..15).collect();
            let mut time = || times.remove(rng.below(times.len() as u64) as usize);
            let spans: Vec<(u64, u64)> = (0..6).map(|_| (time(), time())).collect();
            let history: Vec<Operation> = (1..)
                .zip(spans)
                .map(|(number, (a, b))| {
                    let unknown = rng.chance(300);
                    let value = if rng.chance(700) { rng.range(0, 7) } else { 0 };
                    let (begun, ended) = (a.min(b), a.max(b));
                    match rng.below(5) {
                        0 => w(begun, if unknown { 0 } else { ended }, 0),
                        1 | 2 => w(begun, if unknown { 0 } else { ended }, number),
                        _ => r(begun, ended, value),
                    }
                })
                .collect();
            let expected = naive(&history, None);
            linearizable += u32::from(expected);
            let verdict = if expected { Verdict::Linearizable } else { Verdict::Not };
            assert_eq!(check(&history, 100_000), verdict, "{history:?}");
        }
        assert!((400..3600).contains(&linearizable), "{linearizable} of 4000");
    }
}
