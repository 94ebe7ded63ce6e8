//! A key on a command line.

use super::{Exit, Failure, text};
use bytes::Bytes;
use clap::Args;
use thrifty::wire::convert;

/// A key as it is typed.
#[derive(Args, Clone, Debug)]
pub(crate) struct Key {
    /// The key, 1 to 4096 bytes
    #[arg(value_name = "KEY", allow_negative_numbers = true)]
    key: String,

    /// The key is written as `storectl ls` prints it: \xff is a byte, \n a newline, \\ a backslash
    #[arg(long)]
    escaped: bool,
}

impl Key {
    /// What is meant.
    pub(crate) fn bytes(&self) -> Result<Bytes, Failure> {
        let key = typed(&self.key, self.escaped)?;
        convert::key(&key).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
        Ok(key)
    }
}

/// A key, or the beginning of one, as it was typed.
pub(crate) fn typed(typed: &str, escaped: bool) -> Result<Bytes, Failure> {
    let bytes = match escaped {
        true => {
            text::unescape(typed).map_err(|error| Failure::new(Exit::Usage, format!("{typed:?}: {error}")))?
        }
        false => typed.as_bytes().to_vec(),
    };
    Ok(bytes.into())
}
