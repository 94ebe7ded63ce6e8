//! `storeput KEY VALUE`: stores a value under a key.
//!
//! Silent when all went well; `--json` prints the version that was stored.

#[path = "common/mod.rs"]
#[allow(dead_code, reason = "each tool uses its part of what they share")]
mod common;

use clap::Parser;
use common::options::{Care, Connect};
use common::{Exit, Failure};
use std::io::Read;
use std::process::ExitCode;
use thrifty::client::PutOptions;
use thrifty::core::record::MAX_VALUE_BYTES;
use thrifty::core::ttl::Ttl;
use thrifty::wire::convert;

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
    /// The key, 1 to 4096 bytes
    #[arg(allow_negative_numbers = true)]
    key: String,

    /// The value, up to 1 MiB; `-` reads it from stdin
    #[arg(allow_negative_numbers = true)]
    value: String,

    /// Keep the value for so long only: a number and a unit (ms, s, m, h, d), at most 36500d
    #[arg(long, value_name = "TIME")]
    ttl: Option<Ttl>,

    #[command(flatten)]
    connect: Connect,

    #[command(flatten)]
    care: Care,

    /// Print the version stored and the consistency achieved, as JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    common::run(TOOL, 1, put(common::parse()))
}

async fn put(cli: Cli) -> Result<(), Failure> {
    let (key, value) = (cli.key.into_bytes().into(), value(cli.value)?.into());
    let wrong = |error: convert::Malformed| Failure::new(Exit::Usage, error.to_string());
    convert::key(&key).and_then(|()| convert::value(&value, "")).map_err(wrong)?;
    let options = PutOptions { ttl: cli.ttl, ..PutOptions::default() };
    let written = cli.connect.store(&cli.care).await?.put_with(key, value, options).await?;
    cli.care.check(TOOL, "stored", written.consistency);
    if cli.json {
        let (version, consistency) = (written.version.to_string(), written.consistency.name());
        common::print(serde_json::json!({ "version": version, "consistency": consistency }))?;
    }
    Ok(())
}

fn value(argument: String) -> Result<Vec<u8>, Failure> {
    if argument != "-" {
        return Ok(argument.into_bytes());
    }
    let mut value = Vec::new();
    // One byte past the limit is enough to know that there is too much.
    let read = std::io::stdin().lock().take(MAX_VALUE_BYTES as u64 + 1).read_to_end(&mut value);
    match read {
        Ok(count) if count > MAX_VALUE_BYTES => Err(Failure::new(
            Exit::Usage,
            format!("a value has at most {MAX_VALUE_BYTES} bytes, stdin has more"),
        )),
        Ok(_) => Ok(value),
        Err(error) => Err(Failure::new(Exit::Usage, format!("can't read the value from stdin: {error}"))),
    }
}
