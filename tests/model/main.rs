//! The change of the ring, exhaustively: one segment, one key, two writes and a read in flight.
//!
//! The simulator samples long schedules of everything at once. This explorer goes through *all*
//! schedules of little: the real layouts, desk, write and read machines and replicas, driven breadth
//! first through every order in which questions, answers, installs, snapshots and pages can happen.
//! Versions are arbitrary: the lower one may be written first or last.
//!
//! Checked in every state:
//!
//! - a read at QUORUM that began now could not miss what was acknowledged or returned, whichever
//!   quorum of the newest layout it asks, and even if all nodes lost what they have not synced;
//! - a read returns, and a write is acknowledged, only above all that was there when it began: with
//!   versions in total order that is linearizability;
//! - no node drops anything before it installs a Stable layout.
//!
//! What keeps it small:
//!
//! - a ballot is one step, taken as soon as the desk wants it; installs follow in any order, skipping
//!   or not. A lost or endlessly late message, a slow node and a dead one are the same: what is never
//!   delivered. So a node that is removed may be dead from any moment on;
//! - an answer comes at once or never, unless [`Bounds::late`] is set: one that comes later at the
//!   same epoch tells nothing else, and at another epoch it counts for nothing;
//! - what a coordinator asks of its own replica is done at once, unless [`Bounds::own_late`] is set;
//! - states that differ in nothing that could matter are one: see `settle`.
//!
//! `THRIFTY_MODEL_DEPTH=2` adds the scenarios that take minutes, 3 lets answers be late in all.
//! Each planted bug has to be found; the shortest story of it is told.
//! It needs the feature `mutants` for that, and should run in release.
//!
//! | file | what |
//! | --- | --- |
//! | `scenario` | what is explored, and how far |
//! | `parts`, `rank` | the real code as automata whose states can be compared |
//! | `ring`, `world`, `steps` | the ring, what can happen in it, what must hold |
//! | `settle` | which states are one |
//! | `explore` | breadth first, and the story of a failure |
//!
//! Left out on purpose: votes, ONE and ALL, silences that make a read ask again, tombstones and their
//! collection, more than one key. The simulator has all of them but collection.

mod collect;
mod explore;
mod parts;
mod rank;
mod ring;
mod scenario;
mod settle;
mod steps;
mod world;

use explore::{Explored, explore};
use rank::DELETE;
use scenario::{Bounds, Request, Scenario, join, leave, remove, replace};
use std::time::Instant;
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

/// Each with whether what a coordinator asks of itself may be late.
fn scenarios() -> Vec<(Scenario, bool)> {
    let plain = Scenario {
        name: "",
        nodes: 3,
        members: 3,
        changes: Vec::new(),
        requests: Vec::new(),
        held: Vec::new(),
        heavy: None,
        aborts: 0,
        disks: false,
        collects: 0,
        copies: 0,
    };
    let grow_one = Scenario {
        name: "{A} to {A,B}, given up once",
        nodes: 2,
        members: 1,
        changes: vec![join(B)],
        requests: vec![low(A), high(B), read(A)],
        aborts: 1,
        ..plain.clone()
    };
    let grow_two = Scenario {
        name: "{A,B} to {A,B,C}",
        members: 2,
        changes: vec![join(C)],
        requests: vec![low(A), high(B), read(B)],
        ..plain.clone()
    };
    let shrink = Scenario {
        name: "{A,B,C} to {A,B}, C slow or dead",
        changes: vec![remove(C)],
        requests: vec![low(A), high(B), read(B)],
        ..plain.clone()
    };
    let swap = Scenario {
        name: "{A,B,C} to {A,B,D}, two writes",
        nodes: 4,
        changes: vec![replace(C, D)],
        requests: vec![low(A), high(B)],
        ..plain.clone()
    };
    // D takes a segment over, and leaves again: the same owners as before, but not the same copies.
    let regained = Scenario { changes: vec![join(D), leave(D)], heavy: Some(D), ..swap.clone() };
    let collected = Scenario { collects: 1, ..plain };
    let twice = Scenario {
        name: "{A} to {A,B} to {A,B,C}",
        members: 1,
        changes: vec![join(B), join(C)],
        requests: vec![low(A), high(B), read(A)],
        ..grow_two.clone()
    };
    let from = |name, requests: &[Request], scenario: &Scenario| Scenario {
        name,
        requests: requests.to_vec(),
        ..scenario.clone()
    };
    let again = |name, scenario: &Scenario| Scenario { name, aborts: 1, ..scenario.clone() };
    let crash = |name, requests: &[Request], scenario: &Scenario| Scenario {
        disks: true,
        ..from(name, requests, scenario)
    };
    let with_held = |name, held: &[u8], requests: &[Request], scenario: &Scenario| Scenario {
        held: held.to_vec(),
        ..from(name, requests, scenario)
    };
    let mut all = vec![
        (grow_one.clone(), false),
        (again("{A,B} to {A,B,C}, given up once", &grow_two), false),
        (from("{A,B} to {A,B,C}, the newcomer reads", &[low(A), high(B), read(C)], &grow_two), false),
        (shrink.clone(), false),
        (from("{A,B,C} to {A,B}, C writes", &[low(A), high(C), read(B)], &shrink), false),
        (swap.clone(), false),
        (from("{A,B,C} to {A,B,D}, C writes, the newcomer reads", &[high(C), read(D)], &swap), false),
        (from("{A,B,C} to {A,B,D}, a write and a read", &[low(C), read(A)], &swap), false),
        (twice.clone(), false),
        (crash("{A} to {A,B}, a crash", &[low(A), high(A), read(A)], &grow_one), false),
        (crash("{A,B} to {A,B,C}, a crash", &[high(B), read(A)], &grow_two), false),
        (crash("{A,B,C} to {A,B,D}, a write, a crash", &[high(A)], &swap), false),
        (from("a segment is lost and regained, a write", &[high(A)], &regained), false),
        (with_held("a segment is lost and regained, a read", &[C], &[read(A)], &regained), false),
        (
            Scenario {
                aborts: 1,
                ..with_held(
                    "{A,B,C} to {A,B,D}, given up once, reads at ONE",
                    &[A, B, C],
                    &[read_one(A), read_one(D)],
                    &swap,
                )
            },
            false,
        ),
        (
            Scenario {
                copies: 1,
                ..from("{A,B,C}, a late write and a delete, collected", &[low(A), delete(B)], &collected)
            },
            false,
        ),
        (
            crash(
                "{A,B,C}, a delete, a crash, collected",
                &[delete(B)],
                &Scenario { held: vec![A, B, C], ..collected.clone() },
            ),
            false,
        ),
        (
            Scenario {
                nodes: 2,
                members: 1,
                changes: vec![join(B)],
                aborts: 1,
                ..with_held("{A} to {A,B}, given up, a delete, collected", &[A], &[delete(A)], &collected)
            },
            false,
        ),
        (
            Scenario {
                nodes: 4,
                changes: vec![replace(B, D)],
                ..from("{A,B,C} to {A,C,D}, a delete, collected, D writes", &[delete(A), low(D)], &collected)
            },
            false,
        ),
    ];
    if setting("THRIFTY_MODEL_DEPTH", 1) > 1 {
        all.extend([
            (from("{A} to {A,B}, A asks itself late", &[low(A), high(A), read(A)], &grow_one), true),
            (again("{A,B,C} to {A,B}, C slow or dead, given up once", &shrink), false),
            (from("{A,B,C} to {A,B,D}, two writes and a read", &[low(A), high(B), read(B)], &swap), false),
            (again("{A,B,C} to {A,B,D}, given up once", &swap), false),
            (crash("{A,B} to {A,B,C}, two writes, a crash", &[low(A), high(B)], &grow_two), false),
        ]);
    }
    all
}

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

fn bounds(own_late: bool) -> Bounds {
    let late = setting("THRIFTY_MODEL_DEPTH", 1) > 2;
    let states = setting("THRIFTY_MODEL_STATES", 50_000_000);
    Bounds { doubles: 1, late, own_late: own_late || late, check_drops: true, states }
}

#[test]
fn nothing_is_lost_in_any_schedule() {
    let only = std::env::var("THRIFTY_MODEL_ONLY").unwrap_or_default();
    for (scenario, own_late) in scenarios() {
        if !scenario.name.contains(&only) {
            continue;
        }
        let begun = Instant::now();
        let Explored { states, steps, depth, ends, whole, failure } = explore(&scenario, bounds(own_late));
        let seconds = begun.elapsed().as_secs_f64();
        eprintln!(
            "{:<55} {states:>8} states, {steps:>9} steps, {ends:>4} ends, depth {depth:>2}, {seconds:.1} s",
            scenario.name
        );
        if let Some(story) = failure {
            panic!("{}: {story}", scenario.name);
        }
        assert!(whole, "{}: more than the states that are allowed", scenario.name);
    }
}

/// Plants a bug and explores the scenarios of this name until it shows.
fn finds(mutant: thrifty::core::mutants::Mutant, name: &str) {
    use thrifty::core::mutants::plant;
    plant(Some(mutant));
    let mut fitting = scenarios().into_iter().filter(|(scenario, _)| scenario.name == name);
    let (scenario, own_late) = fitting.next().expect("a scenario");
    // Early drops have to be found by what they lose.
    let explored = explore(&scenario, Bounds { check_drops: false, ..bounds(own_late) });
    plant(None);
    let story = explored.failure.unwrap_or_else(|| panic!("{mutant:?} is not found"));
    eprintln!("{mutant:?}, after {} states of {name}: {story}", explored.states);
}

macro_rules! mutants {
    ($($test:ident: $mutant:ident in $scenario:literal,)*) => {
        mod mutants {
            $(#[test]
            fn $test() {
                super::finds(thrifty::core::mutants::Mutant::$mutant, $scenario);
            })*
        }
    };
}

mutants! {
    unfenced_writes: UnfencedWrites in "{A,B,C} to {A,B,D}, two writes",
    unfenced_reads: UnfencedReads in "{A,B,C} to {A,B,D}, a write and a read",
    snapshot_before_install: SnapshotBeforeInstall in "{A,B,C} to {A,B,D}, two writes",
    dual_writes_old_set_only: DualWritesOldSetOnly in "{A,B,C} to {A,B,D}, two writes",
    read_new_before_synced: ReadNewBeforeSynced in "{A,B,C} to {A,B,D}, two writes",
    dropped_before_stable: DroppedBeforeStable in "{A,B,C} to {A,B}, C slow or dead",
    read_without_write_back: ReadWithoutWriteBack in "{A,B} to {A,B,C}, given up once",
    superseded_counts_as_accepted: SupersededCountsAsAccepted in "{A} to {A,B}, given up once",
    accepts_added_across_epochs: AcceptsAddedAcrossEpochs in "{A,B} to {A,B,C}, given up once",
    unsynced_reported: UnsyncedReported in "{A} to {A,B}, a crash",
    newer_epochs_served: NewerEpochsServed in "a segment is lost and regained, a write",
    read_knowledge_kept: ReadKnowledgeKept in "a segment is lost and regained, a read",
    gathered_unsynced: GatheredUnsynced in "{A,B,C} to {A,B,D}, a write, a crash",
    dual_reads_next_owners: DualReadsNextOwners in "{A,B,C} to {A,B,D}, given up once, reads at ONE",
    read_new_left_early_and_absent_by_read_set: ReadNewLeftEarlyAndAbsentByReadSet in "{A,B,C} to {A,B,D}, a write and a read",
    dual_reads_next_owners_and_absent_by_read_set: DualReadsNextOwnersAndAbsentByReadSet in "{A,B,C} to {A,B,D}, a write and a read",
    leftovers_merged: LeftoversMerged in "{A} to {A,B}, given up, a delete, collected",
    late_pages_merged: LatePagesMerged in "{A,B,C}, a late write and a delete, collected",
    late_after_collection: LateAfterCollection in "{A,B,C}, a late write and a delete, collected",
    collected_unconfirmed: CollectedUnconfirmed in "{A,B,C}, a late write and a delete, collected",
    collected_before_all_installed: CollectedBeforeAllInstalled in "{A,B,C}, a late write and a delete, collected",
    confirmed_unsynced: ConfirmedUnsynced in "{A,B,C}, a delete, a crash, collected",
    senders_clock_ignored: SendersClockIgnored in "{A,B,C} to {A,C,D}, a delete, collected, D writes",
}
