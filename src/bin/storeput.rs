//! `storeput KEY VALUE`: stores a value under a key.
//!
//! Silent when all went well; `--json` prints the version that was stored.

#[path = "common/mod.rs"]
#[allow(dead_code, reason = "each tool uses its part of what they share")]
mod common;

use clap::Parser;
use common::options::Connect;
use common::value::Put;
use std::process::ExitCode;

const TOOL: &str = "storeput";

const EXAMPLES: &str = "\
Examples:
  storeput a apple                          store `apple` under `a`, in the ring on this machine
  storeput --peer 10.0.0.5:9900 a apple     in the ring that this node is a member of
  storeput photo - < photo.jpg              the value is what stdin says, byte for byte
  storeput --strict --timeout 2 a apple     fail unless a majority of the owners stored it
  storeput --ttl 30m session xyz            gone after half an hour
  storeput a -- --apple                     after `--`, nothing is an option

Exit codes: 0 stored, 2 wrong usage, 3 unavailable (nothing stored), 4 conflict, 5 outcome unknown.";

/// Store a value under a key.
#[derive(Parser)]
#[command(name = TOOL, version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    put: Put,

    #[command(flatten)]
    connect: Connect,
}

fn main() -> ExitCode {
    let Cli { put, connect } = common::parse();
    common::run(TOOL, 1, put.run(TOOL, connect.store(&put.care)))
}
