//! How far something has come that can be gone on with: a file beside the one that it reads or writes.

use crate::common::{Exit, Failure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often it is noted: what comes after a note is done again.
const EVERY: Duration = Duration::from_secs(1);

/// Whether it is time to note how far it is, where that was last done then, or not yet.
pub(crate) fn is_due(noted: Option<Instant>) -> bool {
    noted.is_none_or(|noted| noted.elapsed() >= EVERY)
}

/// The file's path with this behind its name.
pub(crate) fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// What is noted, if anything is.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Failure> {
    let noted = match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => Err(error),
    };
    noted.map(Some).map_err(|error| {
        let path = path.display();
        Failure::new(Exit::Conflict, format!("can't read {path}: {error}; without that file it begins anew"))
    })
}

/// Notes this instead of what was noted, durably: the one or the other is there whatever happens.
pub(crate) fn write(path: &Path, note: &impl Serialize) -> io::Result<()> {
    let new = beside(path, ".new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(note)?)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_folder_of(path)
}

/// Nothing is noted any more.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => sync_folder_of(path),
    }
}

/// Makes the names in a file's folder durable.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
