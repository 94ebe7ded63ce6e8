//! `storebench`: how many requests a ring answers, and how fast.
//!
//! Two ways to ask. In a closed loop each caller sends its next request when the last one is
//! answered: that finds the most a ring can do. With `--rate` requests start on a fixed schedule,
//! and a latency counts from when its request was due, not from when a caller was free to send it:
//! a ring that stalls can't hide that by being asked less (coordinated omission).
//!
//! `storebench overload` first finds out what a ring can do and then asks it for much more.
//!
//! `storebench null` is a server of the same protocol that does nothing. What the same client gets
//! out of it is the ceiling to compare with.

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "each tool uses its part of what they share")]
mod common;

mod args;
mod caller;
mod crowd;
mod frames;
mod load;
mod null;
mod overload;
mod progress;
mod random;
mod report;
mod schedule;
mod tally;
mod workload;

use args::{Cli, Command};
use std::process::ExitCode;
use workload::Mode;

const TOOL: &str = "storebench";

fn main() -> ExitCode {
    match common::parse::<Cli>().command {
        Command::Put(load) => common::run(TOOL, load.threads, load::run(load, Mode::Put)),
        Command::Get(load) => common::run(TOOL, load.threads, load::run(load, Mode::Get)),
        Command::Mix { load, read_ratio } => {
            common::run(TOOL, load.threads, load::run(load, Mode::Mix { read_ratio }))
        }
        Command::Overload(overload) => {
            common::run(TOOL, overload.load.threads, overload::run(overload.clone()))
        }
        Command::Null(null) => common::run(TOOL, null.threads, null::serve(null)),
    }
}
