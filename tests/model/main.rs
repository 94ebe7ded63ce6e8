//! The change of the ring, exhaustively: one segment, one key, two writes and a read in flight.
//!
//! The simulator samples long schedules of everything at once. This explorer goes through *all*
//! schedules of little: the real layouts, desk, write and read machines and replicas, driven breadth
//! first through every order in which questions, answers, installs, snapshots and pages can happen.
//! Versions are arbitrary: the lower one may be written first or last. In some scenarios a delete is
//! forgotten at a collecting layout; there a version is above what its coordinator's clock has met.
//!
//! Checked in every state:
//!
//! - a read at QUORUM that began now could not miss what was acknowledged or returned, whichever
//!   quorum of the newest layout it asks, and even if all nodes lost what they have not synced;
//! - a read returns, and a write is acknowledged, only above all that was there when it began: with
//!   versions in total order that is linearizability;
//! - a read at ONE finds what all owners held before the ring began to change;
//! - what was deleted and forgotten reads as absent, and nothing older is left with an owner;
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
//! | `scenario`, `scenarios` | what is explored, and how far |
//! | `parts`, `rank` | the real code as automata whose states can be compared |
//! | `ring`, `world`, `nodes`, `steps` | the ring, what can happen in it, what must hold |
//! | `collect` | how a delete is forgotten |
//! | `settle` | which states are one |
//! | `explore` | breadth first, and the story of a failure |
//!
//! Left out on purpose: votes, writes at ONE, ALL, silences that make a read ask again, records that
//! expire, more than one key.

mod collect;
mod explore;
mod nodes;
mod parts;
mod rank;
mod ring;
mod scenario;
mod scenarios;
mod settle;
mod steps;
mod world;

use explore::{Explored, explore};
use scenario::{Bounds, Scenario};
use scenarios::scenarios;
use std::time::Instant;
use thrifty::core::mutants::{Mutant, plant};

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

fn depth() -> usize {
    setting("THRIFTY_MODEL_DEPTH", 1)
}

fn bounds(scenario: &Scenario) -> Bounds {
    let late = depth() > 2;
    let states = setting("THRIFTY_MODEL_STATES", 50_000_000);
    Bounds { doubles: 1, late, own_late: scenario.own_late || late, check_drops: true, states }
}

#[test]
fn nothing_is_lost_in_any_schedule() {
    let only = std::env::var("THRIFTY_MODEL_ONLY").unwrap_or_default();
    for scenario in scenarios(depth()) {
        if !scenario.name.contains(&only) {
            continue;
        }
        let begun = Instant::now();
        let Explored { states, steps, depth, ends, whole, failure } = explore(&scenario, bounds(&scenario));
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

/// Plants a bug and explores the scenario of this name until it shows.
fn explore_with(mutant: Mutant, name: &str) -> Explored {
    plant(Some(mutant));
    let scenario = scenarios(1).into_iter().find(|scenario| scenario.name == name).expect("a scenario");
    // Early drops have to be found by what they lose.
    let explored = explore(&scenario, Bounds { check_drops: false, ..bounds(&scenario) });
    plant(None);
    explored
}

fn finds(mutant: Mutant, name: &str) {
    let explored = explore_with(mutant, name);
    let story = explored.failure.unwrap_or_else(|| panic!("{mutant:?} is not found"));
    eprintln!("{mutant:?}, after {} states of {name}: {story}", explored.states);
}

/// A mistake made of two is found, and neither of the two alone: one guard hides that the other is
/// missing.
fn finds_only_together(mutant: Mutant, name: &str) {
    finds(mutant, name);
    for part in mutant.parts() {
        let Explored { whole, failure, .. } = explore_with(*part, name);
        assert!(whole && failure.is_none(), "{part:?} alone is found: {}", failure.unwrap_or_default());
    }
}

macro_rules! mutants {
    ($($test:ident: $finds:ident $mutant:ident in $scenario:literal,)*) => {
        mod mutants {
            $(#[test]
            fn $test() {
                super::$finds(super::Mutant::$mutant, $scenario);
            })*
        }
    };
}

mutants! {
    unfenced_writes: finds UnfencedWrites in "{A,B,C} to {A,B,D}, two writes",
    unfenced_reads: finds UnfencedReads in "{A,B,C} to {A,B,D}, a write and a read",
    snapshot_before_install: finds SnapshotBeforeInstall in "{A,B,C} to {A,B,D}, two writes",
    dual_writes_old_set_only: finds DualWritesOldSetOnly in "{A,B,C} to {A,B,D}, two writes",
    read_new_before_synced: finds ReadNewBeforeSynced in "{A,B,C} to {A,B,D}, two writes",
    dropped_before_stable: finds DroppedBeforeStable in "{A,B,C} to {A,B}, C slow or dead",
    read_without_write_back: finds ReadWithoutWriteBack in "{A,B} to {A,B,C}, given up once",
    superseded_counts_as_accepted: finds SupersededCountsAsAccepted in "{A} to {A,B}, given up once",
    accepts_added_across_epochs: finds AcceptsAddedAcrossEpochs in "{A,B} to {A,B,C}, given up once",
    unsynced_reported: finds UnsyncedReported in "{A} to {A,B}, a crash",
    newer_epochs_served: finds NewerEpochsServed in "a segment is lost and regained, a write",
    read_knowledge_kept: finds ReadKnowledgeKept in "a segment is lost and regained, a read",
    gathered_unsynced: finds GatheredUnsynced in "{A,B,C} to {A,B,D}, a write, a crash",
    dual_reads_next_owners: finds DualReadsNextOwners in "{A,B,C} to {A,B,D}, given up once, reads at ONE",
    read_new_left_early_and_absent_by_read_set: finds_only_together ReadNewLeftEarlyAndAbsentByReadSet in "{A,B,C} to {A,B,D}, B writes, A reads",
    dual_reads_next_owners_and_absent_by_read_set: finds_only_together DualReadsNextOwnersAndAbsentByReadSet in "{A,B,C} to {A,B,D}, a write and a read",
    equal_answered_unsynced: finds EqualAnsweredUnsynced in "{A,B,C} to {A,B,D}, a write, a crash",
    leftovers_merged: finds LeftoversMerged in "{A} to {A,B}, given up, a delete, collected",
    late_pages_merged: finds LatePagesMerged in "{A,B,C}, a late write and a delete, collected",
    late_after_collection: finds LateAfterCollection in "{A,B,C}, a late write and a delete, collected",
    collected_unconfirmed: finds CollectedUnconfirmed in "{A,B,C}, a late write and a delete, collected",
    collected_before_all_installed: finds_only_together CollectedBeforeAllInstalled in "{A,B,C}, a late write and a delete, collected",
    confirmed_unsynced: finds ConfirmedUnsynced in "{A,B,C}, a delete, a crash, collected",
    senders_clock_ignored: finds SendersClockIgnored in "{A,B,C} to {A,C,D}, a delete, collected, D writes",
}
