//! The folder of the engine before fjall sees it.

use super::synced;
use crate::storage::StorageError;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Fjall creates a database in whatever folder it is given, and can't open one whose creation was cut
/// short. Refuses the first and cleans up after the second, which needs a lock on the data folder
/// around it: fjall takes its own too late.
pub(super) fn prepare(folder: &Path) -> Result<(), StorageError> {
    let found = names(folder)?;
    if found.is_empty() {
        return Ok(());
    }
    if !found.iter().all(|name| {
        ["lock", "version", "keyspaces", synced::NAME].contains(&&**name) || name.ends_with(".jnl")
    }) {
        return Err(StorageError::Foreign { what: folder.display().to_string() });
    }
    let version = found.iter().any(|name| name == "version");
    if !names(&folder.join("keyspaces"))?.is_empty() {
        let lost = || StorageError::corrupt(format!("{} has lost its file named version", folder.display()));
        return if version { Ok(()) } else { Err(lost()) };
    }
    // Without any keyspace nothing was ever stored, and the empty files can be made again. Unless the
    // journal tells otherwise: then it is the keyspaces that were lost.
    for name in found.iter().filter(|name| name.ends_with(".jnl")) {
        let journal = fs::read(folder.join(name)).map_err(|error| failed(folder, error))?;
        if journal.iter().any(|&byte| byte != 0) {
            return Err(StorageError::corrupt(format!("{} has lost its keyspaces", folder.display())));
        }
        fs::remove_file(folder.join(name)).map_err(|error| failed(folder, error))?;
    }
    if version {
        fs::remove_file(folder.join("version")).map_err(|error| failed(folder, error))?;
    }
    Ok(())
}

/// Refuses a folder that lacks what is there from the moment that an engine was opened in it, and that `prepare`
/// would take for a new one's.
pub(super) fn must_be_whole(folder: &Path) -> Result<(), StorageError> {
    let found = names(folder)?;
    let has = |what: &dyn Fn(&String) -> bool| found.iter().any(what);
    let journal = has(&|name| name.ends_with(".jnl"));
    let whole = journal && has(&|name| name == "version") && !names(&folder.join("keyspaces"))?.is_empty();
    let lost = if found.is_empty() { "is missing or empty" } else { "has lost files" };
    match whole {
        true => Ok(()),
        false => Err(StorageError::corrupt(format!("{} {lost}, and held keys", folder.display()))),
    }
}

fn names(folder: &Path) -> Result<Vec<String>, StorageError> {
    let listed = |entries: fs::ReadDir| {
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    match fs::read_dir(folder).and_then(listed) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        names => names.map_err(|error| failed(folder, error)),
    }
}

fn failed(folder: &Path, error: std::io::Error) -> StorageError {
    StorageError::io(format!("looking into {} failed", folder.display()), error)
}
