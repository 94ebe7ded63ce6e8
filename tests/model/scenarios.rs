//! All that is explored.

use crate::rank::DELETE;
use crate::scenario::{Request, Scenario, join, leave, remove, replace};
use thrifty::core::quorum::Consistency;

const A: u8 = 0;
const B: u8 = 1;
const C: u8 = 2;
const D: u8 = 3;

/// The write of the lower version.
const fn low(at: u8) -> Request {
    Request { at, writes: Some(1), consistency: Consistency::Quorum }
}

/// The write of the higher version.
const fn high(at: u8) -> Request {
    Request { writes: Some(2), ..low(at) }
}

/// The delete, of a version above both.
const fn delete(at: u8) -> Request {
    Request { writes: Some(DELETE), ..low(at) }
}

const fn read(at: u8) -> Request {
    Request { writes: None, ..low(at) }
}

const fn read_one(at: u8) -> Request {
    Request { consistency: Consistency::One, ..read(at) }
}

impl Scenario {
    fn with(&self, name: &'static str, requests: &[Request]) -> Self {
        Scenario { name, requests: requests.to_vec(), ..self.clone() }
    }

    fn again(&self, name: &'static str) -> Self {
        Scenario { name, aborts: 1, ..self.clone() }
    }

    fn crash(&self, name: &'static str, requests: &[Request]) -> Self {
        Scenario { disks: true, ..self.with(name, requests) }
    }

    fn held(self, held: &[u8]) -> Self {
        Scenario { held: held.to_vec(), ..self }
    }
}

fn plain() -> Scenario {
    Scenario {
        name: "",
        nodes: 3,
        members: 3,
        held: Vec::new(),
        heavy: None,
        changes: Vec::new(),
        requests: Vec::new(),
        aborts: 0,
        disks: false,
        collects: 0,
        copies: 0,
        own_late: false,
    }
}

fn grow_one() -> Scenario {
    Scenario {
        name: "{A} to {A,B}, given up once",
        nodes: 2,
        members: 1,
        changes: vec![join(B)],
        requests: vec![low(A), high(B), read(A)],
        aborts: 1,
        ..plain()
    }
}

fn grow_two() -> Scenario {
    Scenario {
        members: 2,
        changes: vec![join(C)],
        ..plain().with("{A,B} to {A,B,C}", &[low(A), high(B), read(B)])
    }
}

fn shrink() -> Scenario {
    Scenario {
        changes: vec![remove(C)],
        ..plain().with("{A,B,C} to {A,B}, C slow or dead", &[low(A), high(B), read(B)])
    }
}

fn swap() -> Scenario {
    Scenario {
        nodes: 4,
        changes: vec![replace(C, D)],
        ..plain().with("{A,B,C} to {A,B,D}, two writes", &[low(A), high(B)])
    }
}

/// D takes the segment over from A, and leaves again: the same owners as before, but not the same
/// copies.
fn regained() -> Scenario {
    Scenario { changes: vec![join(D), leave(D)], heavy: Some(D), ..swap() }
}

fn collected() -> Scenario {
    Scenario { collects: 1, ..plain() }
}

fn goes_on() -> Scenario {
    Scenario { nodes: 4, changes: vec![replace(B, D)], ..collected() }
}

fn transitions() -> Vec<Scenario> {
    let retried = Scenario { aborts: 1, ..swap() };
    let twice = Scenario { members: 1, changes: vec![join(B), join(C)], ..grow_two() };
    vec![
        grow_one(),
        grow_two().again("{A,B} to {A,B,C}, given up once"),
        grow_two().with("{A,B} to {A,B,C}, the newcomer reads", &[low(A), high(B), read(C)]),
        shrink(),
        shrink().with("{A,B,C} to {A,B}, C writes", &[low(A), high(C), read(B)]),
        swap(),
        swap().with("{A,B,C} to {A,B,D}, C writes, the newcomer reads", &[high(C), read(D)]),
        swap().with("{A,B,C} to {A,B,D}, a write and a read", &[low(C), read(A)]),
        swap().with("{A,B,C} to {A,B,D}, B writes, A reads", &[high(B), read(A)]),
        retried
            .with("{A,B,C} to {A,B,D}, given up once, reads at ONE", &[read_one(A), read_one(D)])
            .held(&[A, B, C]),
        twice.with("{A} to {A,B} to {A,B,C}", &[low(A), high(B), read(A)]),
        regained().with("a segment is lost and regained, a write", &[high(B)]),
        regained().with("a segment is lost and regained, a read", &[read(B)]).held(&[A]),
        grow_one().crash("{A} to {A,B}, a crash", &[low(A), high(A), read(A)]),
        grow_two().crash("{A,B} to {A,B,C}, a crash", &[high(B), read(A)]),
        swap().crash("{A,B,C} to {A,B,D}, a write, a crash", &[high(A)]),
    ]
}

fn collections() -> Vec<Scenario> {
    let given_up = Scenario { nodes: 2, members: 1, changes: vec![join(B)], aborts: 1, ..collected() };
    let catches_up = Scenario { copies: 1, ..collected() };
    vec![
        catches_up.with("{A,B,C}, a late write and a delete, collected", &[low(A), delete(B)]),
        collected().crash("{A,B,C}, a delete, a crash, collected", &[delete(B)]).held(&[A, B, C]),
        collected().crash("{A,B,C}, a late write, a delete, a crash, collected", &[low(A), delete(B)]),
        collected().with("{A,B,C}, a late write, a delete, a read, collected", &[low(A), delete(B), read(C)]),
        given_up.with("{A} to {A,B}, given up, a delete, collected", &[delete(A)]).held(&[A]),
        goes_on().with("{A,B,C} to {A,C,D}, a delete, collected, D writes", &[delete(A), low(D)]),
    ]
}

/// Those that take minutes.
fn long() -> Vec<Scenario> {
    let own_late = Scenario { own_late: true, ..grow_one() };
    vec![
        own_late.with("{A} to {A,B}, A asks itself late", &[low(A), high(A), read(A)]),
        shrink().again("{A,B,C} to {A,B}, C slow or dead, given up once"),
        swap().with("{A,B,C} to {A,B,D}, two writes and a read", &[low(A), high(B), read(B)]),
        swap().again("{A,B,C} to {A,B,D}, given up once"),
        grow_two().crash("{A,B} to {A,B,C}, two writes, a crash", &[low(A), high(B)]),
        regained().with("a segment is lost and regained, a write and a read", &[low(B), read(C)]),
        collected().crash("{A,B,C}, all of that, collected", &[low(A), delete(B), read(C)]),
        goes_on().with("{A,B,C} to {A,C,D}, a late write and a delete, collected", &[low(A), delete(C)]),
    ]
}

pub(crate) fn scenarios(depth: usize) -> Vec<Scenario> {
    let mut all = [transitions(), collections()].concat();
    if depth > 1 {
        all.extend(long());
    }
    all
}
