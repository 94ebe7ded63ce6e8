//! What is left when the power goes: the vault, the node's state, the disk engine and the committer on
//! a disk that forgets what was not synced.
//!
//! A process that is killed loses nothing that it wrote, for the kernel still has it: a node that
//! never syncs would pass every test with real processes. Here the disk is a small FUSE file system
//! (`mount`) over a model (`disk`) that forgets. A seed says what is done, when everything stops
//! and what of the unsynced survives; the engine's own threads make that not quite repeatable.
//!
//! `THRIFTY_FSYNC_SEEDS=N THRIFTY_FSYNC_FIRST_SEED=M cargo test --test fsync` runs others. Needs
//! `/dev/fuse` and the right to mount (root, or `fusermount3`); without, the tests say so and pass.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

mod disk;
mod facts;
mod mount;
mod records;

use mount::Mount;
use std::fmt::Display;
use std::io::Write;
use thrifty::core::layout::{Kind, Layout, Member, Replicas, Standing};
use thrifty::core::node::{NodeId, RingId};
use thrifty::core::token::SegmentCount;

/// What was found wrong.
type Failure = String;

/// How a run ended in which nothing was wrong.
#[derive(PartialEq, Eq)]
enum Run {
    /// As it was meant to.
    Whole,
    /// Early, for the engine takes what a cut left for damage.
    Corrupt,
}

/// One run from a seed.
type Check = fn(&Mount, u64) -> Result<Run, Failure>;

/// Of so many runs one may end as [`Run::Corrupt`].
const CORRUPT_ONE_IN: u64 = 10;

fn must<T, E: Display>(what: &str, result: Result<T, E>) -> Result<T, Failure> {
    result.map_err(|error| format!("{what}: {error}"))
}

/// The one node there is.
const ME: NodeId = NodeId(1);

/// A ring of one.
fn layout() -> Layout {
    let member = Member {
        id: ME,
        address: "127.0.0.1:1".parse().expect("an address"),
        zone: String::new(),
        weight: 1,
        durable: true,
        standing: Standing::Staying,
    };
    let segments = SegmentCount::new(8).expect("a power of two");
    Layout::first(RingId(1), "test".into(), Kind::Store, Replicas::Count(1), segments, member)
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// The first seed that fails, and why.
fn first_failure(check: Check, seeds: u64) -> Option<(u64, Failure)> {
    let mount = Mount::new().expect("it could be mounted before");
    let first = setting("THRIFTY_FSYNC_FIRST_SEED", 0);
    let mut corrupt = 0;
    for seed in first..first + seeds {
        match check(&mount, seed) {
            Ok(run) => corrupt += u64::from(run == Run::Corrupt),
            Err(why) => return Some((seed, why)),
        }
    }
    let too_many = corrupt > 1 + seeds / CORRUPT_ONE_IN;
    too_many.then(|| (first + seeds - 1, format!("{corrupt} of {seeds} engines do not open")))
}

/// Whether FUSE works here. If not, says so where the harness can't hide it.
fn can_mount() -> bool {
    let Err(error) = Mount::new() else { return true };
    let note = format!("\nNOT TESTED: what a power cut leaves, since FUSE can't be used here: {error}\n\n");
    std::io::stderr().write_all(note.as_bytes()).expect("stderr");
    false
}

fn holds(check: Check, seeds: u64) {
    if can_mount()
        && let Some((seed, why)) = first_failure(check, setting("THRIFTY_FSYNC_SEEDS", seeds))
    {
        panic!("seed {seed}: {why}\nrepeat it with THRIFTY_FSYNC_FIRST_SEED={seed} THRIFTY_FSYNC_SEEDS=1");
    }
}

#[test]
fn a_blob_is_the_old_or_the_new_one_wherever_the_power_is_cut() {
    holds(facts::vault, 400);
}

#[test]
fn a_node_remembers_what_it_must_through_kills_and_power_cuts() {
    holds(facts::node_state, 150);
}

#[test]
fn an_engine_has_what_was_synced_through_kills_and_power_cuts() {
    holds(records::engine, 64);
}

#[test]
fn an_engine_whose_creation_was_cut_short_opens() {
    holds(records::creation, 48);
}

#[test]
fn what_was_accepted_is_there_after_a_power_cut() {
    holds(records::committer, 60);
}

/// Leaves out one sync after the other and counts the seeds until a check fails.
#[cfg(feature = "mutants")]
#[test]
fn every_build_that_skips_a_sync_is_caught() {
    use thrifty::core::mutants::{Mutant, plant};
    if !can_mount() {
        return;
    }
    let catches: [(Mutant, Check); Mutant::SYNCS.len()] = Mutant::SYNCS.map(|mutant| {
        let check: Check = match mutant {
            Mutant::VaultFileNotSynced | Mutant::VaultFolderNotSynced => facts::vault,
            Mutant::AnsweredUnsynced => records::committer,
            _ => records::engine,
        };
        (mutant, check)
    });
    for (mutant, check) in catches {
        plant(Some(mutant));
        let failure = first_failure(check, setting("THRIFTY_FSYNC_SEEDS", 200));
        plant(None);
        let (seed, why) = failure.unwrap_or_else(|| panic!("{mutant:?} was not caught"));
        eprintln!("{:<28} {:>6} seeds  {why}", format!("{mutant:?}"), seed + 1);
    }
}
