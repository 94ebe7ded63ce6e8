//! The servers' and the client's whole shell on a simulated network: tonic, hyper, links,
//! reconnects, deadlines, streams that are cut half-way.
//!
//! `turmoil` runs some nodes and a client, each on a runtime of its own, in one thread and in
//! simulated time, while hosts are cut off, held, slowed down, crashed, restarted, stopped, made to
//! leave or robbed of their disk. Then all is mended, and the ring has to come to rest with every
//! host in it.
//!
//! What must hold: one layout per epoch; what a read returns was written so and is no older than
//! what was acknowledged or returned before it began, deletes and what expires included; at rest all
//! owners come to hold the same; no request outlasts its time; nothing panics.
//!
//! A seed determines the schedule of what strikes, and no more: the hash maps, the runtime and the
//! nodes' own dice differ from run to run, so that what fails once fails often but not always. The
//! simulator in `tests/sim` is the one that repeats itself exactly.
//!
//! More seeds: `THRIFTY_TURMOIL_SEEDS=5000 THRIFTY_TURMOIL_FIRST_SEED=1000 cargo test --release --test turmoil`.
//!
//! | file | what |
//! | --- | --- |
//! | `ring` | the hosts, their disks, the network |
//! | `life` | a disk, until a life is over |
//! | `strikes` | what befalls them |
//! | `load` | the client |
//! | `key`, `linear` | what is known of a key, and what the client may be told |

mod key;
mod life;
#[path = "../sim/linear.rs"]
mod linear;
mod load;
mod ring;
#[path = "../sim/rng.rs"]
mod rng;
mod strikes;

use life::{DELETES_FORGOTTEN, EXPIRED_FORGOTTEN};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What has happened how often, by name.
type Counts = BTreeMap<&'static str, u64>;

/// Tasks of a runtime that panic do so in silence: here each is counted.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// How many seeds it takes for all that can strike to have done so; unoptimized code is too slow.
const SEEDS: u64 = if cfg!(debug_assertions) { 4 } else { 200 };

const UNPOISONED: &str = "nothing panics under this lock";

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// Runs one seed; what has happened, and what was wrong.
fn run(seed: u64) -> (Counts, Result<(), String>) {
    let told = Mutex::new(Counts::new());
    let result = catch_unwind(AssertUnwindSafe(|| strikes::run(seed, &told)));
    let result = result.unwrap_or_else(|_| Err("a panic, see above".into()));
    (told.into_inner().expect(UNPOISONED), result)
}

#[test]
fn rings_on_a_simulated_network() {
    let (first, many) = (setting("THRIFTY_TURMOIL_FIRST_SEED", 0), setting("THRIFTY_TURMOIL_SEEDS", SEEDS));
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        usual(panic);
    }));
    ring::simulate_connections();
    let begun = Instant::now();
    let next = AtomicU64::new(first);
    let found = Mutex::new((Counts::new(), None::<String>));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + many || found.lock().expect(UNPOISONED).1.is_some() {
                break;
            }
            let (counts, result) = run(seed);
            let mut found = found.lock().expect(UNPOISONED);
            for (name, count) in counts {
                *found.0.entry(name).or_default() += count;
            }
            if let Err(why) = result {
                found.1.get_or_insert(format!(
                    "seed {seed}: {why}\ntry it again with THRIFTY_TURMOIL_FIRST_SEED={seed} THRIFTY_TURMOIL_SEEDS=1"
                ));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let (mut counts, failed) = found.into_inner().expect(UNPOISONED);
    let forgotten = [("deletes forgotten", &DELETES_FORGOTTEN), ("expired forgotten", &EXPIRED_FORGOTTEN)];
    for (name, count) in forgotten {
        counts.insert(name, count.load(Ordering::Relaxed));
    }
    for (name, count) in &counts {
        eprintln!("{count:>9}  {name}");
    }
    eprintln!("{many} seeds in {:.1} s", begun.elapsed().as_secs_f64());
    if let Some(why) = failed {
        panic!("{why}");
    }
    let strikes = strikes::Strike::ALL.iter().map(|strike| strike.name());
    let wanted = strikes.chain([ring::COLLECTING]).chain(forgotten.map(|(name, _)| name));
    let never: Vec<_> = wanted.filter(|name| counts.get(name).is_none_or(|count| *count == 0)).collect();
    assert!(many < 200 || never.is_empty(), "never happened: {never:?}");
}

/// Those that wait for a connection to one host wait in turn.
#[test]
fn requests_to_silent_hosts_end_in_time() {
    ring::simulate_connections();
    if let Err(why) = strikes::all_silent() {
        panic!("{why}");
    }
}

/// Nobody goes on asking a node that is over, rather than the one that comes after it.
#[test]
fn who_was_stopped_and_started_is_asked_again() {
    ring::simulate_connections();
    if let Err(why) = strikes::all_stopped_in_turn() {
        panic!("{why}");
    }
}
