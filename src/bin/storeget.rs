//! `storeget KEY`: prints the value under a key, byte for byte.

#[path = "common/mod.rs"]
#[allow(dead_code, reason = "each tool uses its part of what they share")]
mod common;

use clap::Parser;
use common::options::Connect;
use common::value::Get;
use std::process::ExitCode;

const TOOL: &str = "storeget";

const EXAMPLES: &str = "\
Examples:
  storeget a                            from the ring on this machine
  storeget --peer 10.0.0.5:9900 a       from the ring that this node is a member of
  storeget photo > photo.jpg            byte for byte; a newline is added on a terminal only
  storeget --consistency one a          ask one owner: faster, perhaps stale
  storeget --json a                     value, version, consistency, and when it expires

Exit codes: 0 found, 1 no such key, 2 wrong usage, 3 unavailable, 4 another kind of ring.";

/// Print the value under a key.
#[derive(Parser)]
#[command(name = TOOL, version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    get: Get,

    #[command(flatten)]
    connect: Connect,
}

fn main() -> ExitCode {
    let Cli { get, connect } = common::parse();
    common::run(TOOL, 1, get.run(TOOL, &connect, connect.store(&get.care)))
}
