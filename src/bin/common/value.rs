//! Getting and storing one value: the whole of `storeget` and `storeput`, and a part of `storectl`.

use super::key::Key;
use super::options::{Care, Connect};
use super::{Exit, Failure, text, write_out};
use clap::Args;
use serde_json::{Value, json};
use std::io::{IsTerminal, Read};
use thrifty::client::{Client, Found, PutOptions};
use thrifty::core::record::MAX_VALUE_BYTES;
use thrifty::core::ttl::Ttl;
use thrifty::wire::convert;

/// Which value to get, and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct Get {
    #[command(flatten)]
    key: Key,

    #[command(flatten)]
    pub(crate) care: Care,

    /// Only what the node at --peer holds itself
    #[arg(long)]
    local: bool,

    /// Print value, version and consistency as JSON; a value that is not UTF-8 as `value_base64`
    #[arg(long)]
    json: bool,
}

impl Get {
    /// Prints the value under a key, byte for byte.
    pub(crate) async fn run(
        &self,
        tool: &str,
        connect: &Connect,
        client: impl Future<Output = Result<Client, Failure>>,
    ) -> Result<(), Failure> {
        let key = self.key.bytes()?;
        let found = match self.local {
            true => {
                let node = connect.node("--local")?;
                client.await?.get_local(&node, key.clone()).await?
            }
            false => client.await?.get(key.clone()).await?,
        };
        let none = || Failure::new(Exit::NotFound, format!("no value under \"{}\"", text::escape(&key)));
        let found = found.ok_or_else(none)?;
        if !self.local {
            self.care.check(tool, "read", found.consistency);
        }
        if self.json {
            return super::print(as_json(&found));
        }
        write_out(&found.value)?;
        if std::io::stdout().is_terminal() {
            write_out(b"\n")?;
        }
        Ok(())
    }
}

fn as_json(found: &Found) -> Value {
    let mut object = json!({ "version": found.version.to_string(), "consistency": found.consistency.name() });
    text::insert(&mut object, "value", &found.value);
    if let Some(at) = found.expires_at_ms {
        object["expires_at_ms"] = at.into();
    }
    if !found.content_type.is_empty() {
        object["content_type"] = found.content_type.as_str().into();
    }
    object
}

/// What to store under which key, and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct Put {
    #[command(flatten)]
    key: Key,

    /// The value, up to 1 MiB; `-` reads it from stdin
    #[arg(allow_negative_numbers = true)]
    value: String,

    /// Keep the value for so long only: a number and a unit (ms, s, m, h, d), at most 36500d
    #[arg(long, value_name = "TIME")]
    ttl: Option<Ttl>,

    #[command(flatten)]
    pub(crate) care: Care,

    /// Print the version stored and the consistency achieved, as JSON
    #[arg(long)]
    json: bool,
}

impl Put {
    /// Stores a value under a key.
    pub(crate) async fn run(
        &self,
        tool: &str,
        client: impl Future<Output = Result<Client, Failure>>,
    ) -> Result<(), Failure> {
        let (key, value) = (self.key.bytes()?, value(&self.value)?.into());
        convert::value(&value, "").map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
        let options = PutOptions { ttl: self.ttl, ..PutOptions::default() };
        let written = client.await?.put_with(key, value, options).await?;
        self.care.check(tool, "stored", written.consistency);
        if self.json {
            let (version, consistency) = (written.version.to_string(), written.consistency.name());
            super::print(json!({ "version": version, "consistency": consistency }))?;
        }
        Ok(())
    }
}

fn value(argument: &str) -> Result<Vec<u8>, Failure> {
    if argument != "-" {
        return Ok(argument.as_bytes().to_vec());
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
