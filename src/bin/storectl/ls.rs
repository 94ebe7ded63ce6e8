//! `storectl ls`: which keys there are.

use crate::TOOL;
use crate::args::Target;
use crate::common::key::typed;
use crate::common::options::Care;
use crate::common::{Failure, Lines, text};
use clap::Args;
use serde_json::{Value, json};
use thrifty::client::{Client, ScanOptions, Scanned};
use thrifty::core::quorum::Consistency;

/// Wide enough for the time of [`text::utc`].
const TIME_WIDTH: usize = 24;

const NOTES: &str = r#"Examples:
  storectl ls                               all keys
  storectl ls user/ | sort | head           the first ten of those that begin with `user/`
  storectl ls -l --limit 20                 with time of writing, expiry (or -) and bytes of the value
  storectl --peer 127.0.0.1:9901 ls --local only what that node holds itself
  storectl ls --json | jq -r .key           JSON lines: key, version, written_at, expires_at_ms

What is not printable is escaped: \n \r \t, \\ for a backslash, \xff for any other byte. With
--escaped, PREFIX here and KEY of get, put and del are read like that. In JSON, a key that is not UTF-8
is `key_base64`."#;

/// Which keys to list, and how.
#[derive(Args, Clone, Debug)]
#[command(after_help = NOTES)]
pub(crate) struct Ls {
    /// Only keys that begin so
    #[arg(default_value = "", hide_default_value = true, allow_negative_numbers = true)]
    prefix: String,

    /// PREFIX is written as keys are printed here: \xff is a byte, \n a newline, \\ a backslash
    #[arg(long)]
    escaped: bool,

    /// Also when each was written (UTC), when it expires, and how many bytes its value has. Reads the values
    #[arg(short, long)]
    long: bool,

    /// At most so many
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,

    /// Only what the node at --peer holds itself
    #[arg(long)]
    local: bool,

    #[command(flatten)]
    care: Care,

    /// Print JSON lines: an object for each key
    #[arg(long)]
    json: bool,
}

impl Ls {
    /// Prints the keys.
    pub(crate) async fn run(&self, target: &Target) -> Result<(), Failure> {
        let local = self.local.then(|| target.connect.node("--local")).transpose()?;
        let prefix = typed(&self.prefix, self.escaped)?;
        let options = ScanOptions { prefix, keys_only: !self.long, local, ..ScanOptions::default() };
        let line = |key: &Scanned| match (self.json, self.long) {
            (true, false) => object(key).to_string(),
            (true, true) => {
                let mut object = object(key);
                object["bytes"] = key.value.len().into();
                object.to_string()
            }
            (false, false) => text::escape(&key.key),
            (false, true) => long(key),
        };
        let limit = self.limit.unwrap_or(u64::MAX);
        let achieved = list(&target.store(&self.care).await?, options, limit, line).await?;
        if !self.local {
            self.care.check(TOOL, "listed", achieved);
        }
        Ok(())
    }
}

/// Prints a line for each key, as long as somebody reads. What was achieved for all of them.
pub(crate) async fn list(
    client: &Client,
    options: ScanOptions,
    limit: u64,
    line: impl Fn(&Scanned) -> String,
) -> Result<Consistency, Failure> {
    let (mut scan, mut lines) = (client.scan(options), Lines::new());
    for _ in 0..limit {
        let Some(key) = scan.next().await else { break };
        if !lines.line(line(&key?))? {
            break;
        }
    }
    lines.flush()?;
    Ok(scan.achieved())
}

/// A key without its value, as JSON.
pub(crate) fn object(key: &Scanned) -> Value {
    let written_at = text::utc(key.version.wall_ms());
    let mut object = json!({ "version": key.version.to_string(), "written_at": written_at });
    text::insert(&mut object, "key", &key.key);
    if let Some(at) = key.expires_at_ms {
        object["expires_at_ms"] = at.into();
    }
    object
}

fn long(key: &Scanned) -> String {
    let written_at = text::utc(key.version.wall_ms());
    let expires_at = key.expires_at_ms.map_or("-".into(), text::utc);
    let (bytes, key) = (key.value.len(), text::escape(&key.key));
    format!("{written_at}  {expires_at:TIME_WIDTH$}  {bytes:>7}  {key}")
}
