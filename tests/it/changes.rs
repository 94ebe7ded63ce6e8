//! Nodes that join and leave one after the other, under load: nothing is lost and nothing is read
//! wrongly.
//!
//! `THRIFTY_CHANGES` says how many (`just changes 100`). Unique and contended keys are written and
//! read all the time; the history is judged as the torture's is.

use crate::rig::{Rig, addresses, setting};
use crate::torture::history::History;
use crate::torture::work::Work;
use std::collections::VecDeque;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many nodes there are when one more is about to join.
const FEWEST: usize = 3;

/// Unique keys that are written each second, in a small run and when asked for more; contended ones
/// as fast as that goes.
const KEYS_PER_SECOND: [u64; 2] = [50, 500];

#[test]
fn joins_and_leaves_under_load_lose_nothing() {
    let asked = setting("CHANGES");
    let changes = asked.unwrap_or(6);
    let rig = Rig::new();
    let mut nodes: VecDeque<_> = rig.ring_of(FEWEST).into();
    let history = Arc::new(History::new("changes", &format!("{changes}-changes.jsonl")));
    println!("{changes} joins and leaves; the history: {}", history.path().display());
    let mut work = Work::start(&rig, &addresses(nodes.make_contiguous()), history.clone());
    work.wants_each_second(&rig, KEYS_PER_SECOND[usize::from(asked.is_some())]);

    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    for change in 0..changes {
        let began = Instant::now();
        // Under way before, in and after each.
        work.reaches(work.acknowledged() + 10);
        if change % 2 == 0 {
            let name = (FEWEST as u64 + 1 + change / 2).to_string();
            let joiner = rig.join(&name, &nodes[0].address());
            history.note(&format!("join {}", joiner.address()));
            nodes.push_back(joiner);
        } else {
            let mut leaver = nodes.pop_front().unwrap();
            history.note(&format!("leave {}", leaver.address()));
            leaver.interrupt();
            leaver.ends_well();
            fs::remove_dir_all(rig.data(leaver.name())).unwrap();
        }
        rig.settled(nodes.make_contiguous());
        work.reaches(work.acknowledged() + 10);
        slowest = slowest.max(began.elapsed());
    }
    let took = begun.elapsed();

    let verdict = work.judged(&rig, &addresses(nodes.make_contiguous()));
    println!("{verdict:#?}");
    println!(
        "{changes} joins and leaves in {:.1} s, the slowest in {:.1} s; {} keys acknowledged, {} read back; {} wrong",
        took.as_secs_f64(),
        slowest.as_secs_f64(),
        verdict.keys,
        verdict.read_back,
        verdict.wrong.len()
    );
    assert!(verdict.wrong.is_empty(), "{:#?}", verdict.wrong);
    assert!(verdict.keys == verdict.read_back && verdict.keys > 20 * changes, "{verdict:#?}");
}
