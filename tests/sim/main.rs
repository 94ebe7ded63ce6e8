//! The deterministic simulator: a whole ring in one thread from one seed.
//!
//! It runs the very code of the core, the replica and the storage engine's contract over a simulated
//! network, simulated clocks and simulated disks, and lets everything go wrong that the design says
//! it survives: lost, late and doubled messages, networks cut in two, in one direction or to a ring,
//! crashes of one node or of all, pauses, disks that are slow, full, failing or wiped and lose what
//! was not synced, clocks that are off and jump, wrong suspicions, joins, leaves, removals and
//! returns under load. Then it lets the ring heal and checks what the design promises.
//!
//! A seed is a schedule: what fails once fails always. One that fails is made shorter and printed,
//! with the end of its trace, and can be kept (see `schedule`). Run more seeds with
//! `THRIFTY_SIM_SEEDS=20000 THRIFTY_SIM_FIRST_SEED=1000 cargo test --release --test sim`, or a
//! schedule with `THRIFTY_SIM_SCHEDULE=FILE`.
//!
//! | file | what |
//! | --- | --- |
//! | `cluster`, `rest` | the nodes together, and the parts of a run |
//! | `node`, `coordinator`, `handoff`, `repair`, `collecting`, `disk` | one node driving the core |
//! | `env`, `gossip` | time, network, queue; who is taken for alive |
//! | `faults`, `strikes`, `forcing`, `client` | what strikes and what it does, and the load |
//! | `checker`, `linear`, `counts` | what must hold, and what must have happened |
//! | `schedule`, `shrink` | a run as a text, and a shorter one that fails as well |
//!
//! Left out on purpose: gRPC, files and threads (other tests run real processes), and scans, which are
//! not the core's.

mod checker;
mod client;
mod cluster;
mod collecting;
mod coordinator;
mod counts;
mod disk;
mod env;
mod faults;
mod forcing;
mod gossip;
mod handoff;
mod linear;
mod node;
mod repair;
mod rest;
mod rng;
mod scans;
mod schedule;
mod shrink;
mod strikes;

use cluster::Cluster;
use counts::{Counts, Kind};
use schedule::Schedule;
use shrink::Shrinker;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const UNPOISONED: &str = "nothing panics under this lock";

/// What a number in the environment says.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// Runs one schedule. A panic is a failure like any other.
fn run(schedule: &Schedule, traced: bool) -> (Result<(), String>, Cluster) {
    let mut cluster = Cluster::new(schedule, traced);
    let result = catch_unwind(AssertUnwindSafe(|| cluster.run()));
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    });
    (result, cluster)
}

/// Runs seeds on all cores until one fails; the first that was found to, and what happened.
fn run_all(first: u64, many: u64) -> (Option<(u64, String)>, Counts) {
    let next = AtomicU64::new(first);
    let found = Mutex::new((None::<(u64, String)>, Counts::default()));
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let work = || {
        let mut counts = Counts::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + many || found.lock().expect(UNPOISONED).0.is_some() {
                break;
            }
            let (result, cluster) = run(&Schedule::of(seed), false);
            counts.merge(&cluster.env.counts);
            if let Err(why) = result {
                found.lock().expect(UNPOISONED).0 = Some((seed, why));
            }
        }
        found.lock().expect(UNPOISONED).1.merge(&counts);
    };
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    found.into_inner().expect(UNPOISONED)
}

/// A short schedule that fails, from a seed that does.
fn shrunk(seed: u64) -> Schedule {
    // Panics are caught and count; their usual reports would drown the trace.
    std::panic::set_hook(Box::new(|_| {}));
    let (_, whole) = run(&Schedule::of(seed), false);
    let fails = |schedule: &Schedule| run(schedule, false).0.is_err();
    let happened = whole.happened();
    let short = if fails(&happened) { Shrinker::shrink(happened, fails) } else { Schedule::of(seed) };
    let _ = std::panic::take_hook();
    short
}

/// Repeats a schedule with its trace and prints how it ended.
fn tell(schedule: &Schedule) -> String {
    let (result, cluster) = run(schedule, true);
    let tail = setting("THRIFTY_SIM_TAIL", 150) as usize;
    let lines = &cluster.env.trace.tail;
    for line in lines.iter().skip(lines.len().saturating_sub(tail)) {
        eprintln!("{line}");
    }
    eprint!("{}", cluster.env.counts);
    let why = result.err().unwrap_or_default();
    format!("{why}\nkeep this in a file and repeat it with THRIFTY_SIM_SCHEDULE=file:\n{schedule}")
}

#[test]
fn simulate() {
    if let Ok(file) = std::env::var("THRIFTY_SIM_SCHEDULE") {
        let text = std::fs::read_to_string(file).expect("a file with a schedule");
        let schedule = Schedule::parse(&text).expect("a schedule");
        assert!(run(&schedule, false).0.is_ok(), "{}", tell(&schedule));
        return;
    }
    let (first, many) = (setting("THRIFTY_SIM_FIRST_SEED", 0), setting("THRIFTY_SIM_SEEDS", 200));
    let begun = Instant::now();
    let (failed, counts) = run_all(first, many);
    let seconds = begun.elapsed().as_secs_f64();
    eprint!("{counts}");
    eprintln!("{many} seeds in {seconds:.1} s: {:.0} seeds/s", many as f64 / seconds);
    if let Some((seed, why)) = failed {
        eprintln!("seed {seed}: {why}\nnow making it shorter");
        panic!("seed {seed}: {why}\nand shorter: {}", tell(&shrunk(seed)));
    }
    let never = Kind::ALL.iter().filter(|kind| counts.of(**kind) == 0 && many >= kind.expected_within());
    let never: Vec<_> = never.map(|kind| kind.name()).collect();
    assert!(never.is_empty(), "never happened: {never:?}");
}

#[test]
fn same_seed_same_trace() {
    for seed in 0..20 {
        let [one, two] = [(); 2].map(|()| run(&Schedule::of(seed), true).1.env);
        assert_eq!(one.trace.hash, two.trace.hash, "seed {seed}");
        assert_eq!(one.trace.tail, two.trace.tail, "seed {seed}");
        assert_eq!(one.counts, two.counts, "seed {seed}");
    }
}

/// What a run did and what it was told to do are the same thing, in words.
#[test]
fn a_run_repeats_from_its_schedule() {
    for seed in 0..10 {
        let whole = run(&Schedule::of(seed), false).1;
        let schedule = Schedule::parse(&whole.happened().to_string()).expect("a schedule");
        let again = run(&schedule, false).1;
        assert_eq!(again.happened(), schedule, "seed {seed}");
        assert_eq!(again.env.counts, whole.env.counts, "seed {seed}");
    }
}

/// Schedules that failed once.
#[test]
fn what_failed_once_does_not_fail_again() {
    for kept in [
        include_str!("kept/one_stamp.txt"),
        include_str!("kept/short_rows.txt"),
        include_str!("kept/parted.txt"),
        include_str!("kept/chosen_and_gone.txt"),
        include_str!("kept/scan_of_two_rings.txt"),
    ] {
        let schedule = Schedule::parse(kept).expect("a schedule");
        assert!(run(&schedule, false).0.is_ok(), "{}", tell(&schedule));
    }
}

#[cfg(feature = "mutants")]
#[test]
fn a_failing_seed_shrinks_to_a_schedule_that_fails_for_its_reason_only() {
    use thrifty::core::mutants::{Mutant, plant};
    plant(Some(Mutant::DualWritesOldSetOnly));
    let mut seeds = (0..100).map(|seed| run(&Schedule::of(seed), false));
    let (_, whole) = seeds.find(|(result, _)| result.is_err()).expect("one of so many fails");
    let fails = |schedule: &Schedule| run(schedule, false).0.is_err();
    let short = Shrinker::shrink(whole.happened(), fails);
    let kept = Schedule::parse(&short.to_string()).expect("a schedule");
    assert!(run(&kept, false).0.is_err(), "{kept}");
    let strikes = |schedule: &Schedule| schedule.strikes.as_ref().map_or(0, Vec::len);
    assert!(strikes(&kept) <= strikes(&whole.happened()) / 2, "{}{kept}", whole.happened());
    plant(None);
    assert!(run(&kept, false).0.is_ok(), "{kept}");
}

/// Plants each deliberate mistake and counts the seeds until a check fails. A simulator that lets
/// one pass would let its like pass when somebody makes it by accident.
#[cfg(feature = "mutants")]
#[test]
fn every_mutant_is_caught() {
    use thrifty::core::mutants::{Mutant, plant};
    let (first, many) = (setting("THRIFTY_SIM_FIRST_SEED", 0), setting("THRIFTY_SIM_MUTANT_SEEDS", 3_000));
    let only = std::env::var("THRIFTY_SIM_MUTANT").ok();
    let mutants =
        Mutant::SIMULATED.into_iter().filter(|m| only.as_ref().is_none_or(|only| format!("{m:?}") == *only));
    let mutants: Vec<Mutant> = mutants.collect();
    // Panics are caught and count; their usual reports would drown the table.
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicU64::new(0);
    let caught = Mutex::new(vec![None::<(u64, String)>; mutants.len()]);
    let work = || {
        while let Some(&mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            plant(Some(mutant));
            let mut failures = (first..first + many)
                .filter_map(|seed| run(&Schedule::of(seed), false).0.err().map(|why| (seed, why)));
            let failure = failures.next();
            if setting("THRIFTY_SIM_MUTANT_RATE", 0) > 0 {
                // For tuning the schedules: the first failure is luck, how many there are is not.
                eprintln!("{mutant:?}: {} of {many}", failures.count() + usize::from(failure.is_some()));
            }
            match &failure {
                Some((seed, why)) => {
                    let why: String = why.lines().next().unwrap_or_default().chars().take(110).collect();
                    eprintln!("{:<28} {:>6} seeds  {why}", format!("{mutant:?}"), seed - first + 1);
                }
                None => eprintln!("{:<28} not within {many} seeds", format!("{mutant:?}")),
            }
            plant(None);
            let at = mutants.iter().position(|known| *known == mutant).unwrap();
            caught.lock().expect(UNPOISONED)[at] = failure;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let _ = std::panic::take_hook();
    let caught = caught.into_inner().expect(UNPOISONED);
    assert!(caught.iter().all(Option::is_some), "some mutants were not caught");
    // What fails with nothing planted as well is no catch.
    for (mutant, (seed, _)) in mutants.iter().zip(caught.iter().flatten()) {
        let (control, _) = run(&Schedule::of(*seed), false);
        assert_eq!(control, Ok(()), "seed {seed} caught {mutant:?}, but fails without it");
    }
}
