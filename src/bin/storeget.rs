//! `storeget KEY`: prints the value under a key, byte for byte.

#[path = "common/mod.rs"]
#[allow(dead_code, reason = "each tool uses its part of what they share")]
mod common;

use clap::Parser;
use common::options::{Care, Connect};
use common::{Exit, Failure};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::process::ExitCode;
use thrifty::client::Found;
use thrifty::wire::convert;

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
    /// The key, 1 to 4096 bytes
    #[arg(allow_negative_numbers = true)]
    key: String,

    #[command(flatten)]
    connect: Connect,

    #[command(flatten)]
    care: Care,

    /// Print value, version and consistency as JSON; a value that is not UTF-8 as `value_base64`
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    common::run(TOOL, 1, get(common::parse()))
}

async fn get(cli: Cli) -> Result<(), Failure> {
    let key = cli.key.clone().into_bytes().into();
    convert::key(&key).map_err(|e| Failure::new(Exit::Usage, e.to_string()))?;
    let found = cli.connect.store(&cli.care).await?.get(key).await?;
    let found = found.ok_or_else(|| Failure::new(Exit::NotFound, format!("no value under {:?}", cli.key)))?;
    cli.care.check(TOOL, "read", found.consistency);
    if cli.json {
        return common::print(as_json(&found));
    }
    common::write_out(&found.value)?;
    if std::io::stdout().is_terminal() {
        common::write_out(b"\n")?;
    }
    Ok(())
}

fn as_json(found: &Found) -> Value {
    let mut object = json!({ "version": found.version.to_string(), "consistency": found.consistency.name() });
    match std::str::from_utf8(&found.value) {
        Ok(text) => object["value"] = text.into(),
        Err(_) => object["value_base64"] = base64(&found.value).into(),
    }
    if let Some(at) = found.expires_at_ms {
        object["expires_at_ms"] = at.into();
    }
    if !found.content_type.is_empty() {
        object["content_type"] = found.content_type.as_str().into();
    }
    object
}

/// Base64 with padding, as RFC 4648 section 4 has it.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let number = (0..3).fold(0usize, |n, i| n << 8 | usize::from(chunk.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let digit = DIGITS[number >> (18 - 6 * i) & 63];
            text.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let check = |bytes: &str, text| assert_eq!(base64(bytes.as_bytes()), text);
        check("", "");
        check("f", "Zg==");
        check("fo", "Zm8=");
        check("foo", "Zm9v");
        check("foobar", "Zm9vYmFy");
        assert_eq!(base64(&[0xff, 0xfe, 0xfb]), "//77");
    }
}
