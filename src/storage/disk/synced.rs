//! What tells at the next start that something synced has gone missing.
//!
//! Fjall cuts its journal off at the first thing that makes no sense, silently: right for a torn tail, but not
//! where a bit rotted. So each batch carries its number, under a key that no slot begins with, and after each
//! sync the number of the last batch that it made durable is noted in a file beside the journal. An engine
//! that finds a lower number in the tree than in the file has lost what was acknowledged.
//!
//! The file itself is never synced. A killed process leaves it with the system, and after a power cut it may
//! be older or gone: it only ever says less than what is durable, never more.

use crate::storage::StorageError;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Seek, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The file's name.
pub(super) const NAME: &str = "synced";

/// The key that each batch writes its number under: before all slots.
pub(super) const KEY: [u8; 1] = [0];

/// The number of the last batch that is durable, kept in a file.
pub(super) struct Synced(Mutex<(u64, File)>);

impl Synced {
    /// Opens the file of an engine in whose tree the last batch has this number, or makes it.
    pub(super) fn open(folder: &Path, in_tree: u64) -> Result<Self, StorageError> {
        let path = folder.join(NAME);
        let io = |error| StorageError::io(format!("opening {} failed", path.display()), error);
        let noted = match fs::read(&path) {
            Ok(bytes) => parse(&bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(io(error)),
        };
        if let Some(noted) = noted.filter(|noted| *noted > in_tree) {
            return Err(StorageError::corrupt(format!(
                "the journal in {} is damaged: the last {} batches of writes that were synced are missing",
                folder.display(),
                noted - in_tree
            )));
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(io)?;
        Ok(Synced(Mutex::new((in_tree, file))))
    }

    /// The batches up to this one are durable.
    pub(super) fn note(&self, number: u64) -> std::io::Result<()> {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, file) = &mut *noted;
        if number > *last {
            file.rewind()?;
            file.write_all(&bytes(number))?;
            *last = number;
        }
        Ok(())
    }
}

/// The number, and its complement: a file that was cut or rotted says nothing.
fn bytes(number: u64) -> [u8; 16] {
    (u128::from(number) << 64 | u128::from(!number)).to_be_bytes()
}

fn parse(found: &[u8]) -> Option<u64> {
    let (number, _) = found.split_first_chunk()?;
    let number = u64::from_be_bytes(*number);
    (found == bytes(number)).then_some(number)
}
