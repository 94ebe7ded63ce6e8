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
    let io = |error| StorageError::io(format!("looking into {} failed", folder.display()), error);
    let names = |folder: &Path| -> std::io::Result<Vec<String>> {
        match fs::read_dir(folder) {
            Ok(entries) => entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect(),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    };
    let found = names(folder).map_err(io)?;
    if found.is_empty() {
        return Ok(());
    }
    if !found.iter().all(|name| {
        ["lock", "version", "keyspaces", synced::NAME].contains(&&**name) || name.ends_with(".jnl")
    }) {
        return Err(StorageError::Foreign { what: folder.display().to_string() });
    }
    let version = found.iter().any(|name| name == "version");
    if !names(&folder.join("keyspaces")).map_err(io)?.is_empty() {
        let lost = || StorageError::corrupt(format!("{} has lost its file named version", folder.display()));
        return if version { Ok(()) } else { Err(lost()) };
    }
    // Without any keyspace nothing was ever stored, and the empty files can be made again. Unless the
    // journal tells otherwise: then it is the keyspaces that were lost.
    for name in found.iter().filter(|name| name.ends_with(".jnl")) {
        let journal = fs::read(folder.join(name)).map_err(io)?;
        if journal.iter().any(|&byte| byte != 0) {
            return Err(StorageError::corrupt(format!("{} has lost its keyspaces", folder.display())));
        }
        fs::remove_file(folder.join(name)).map_err(io)?;
    }
    if version {
        fs::remove_file(folder.join("version")).map_err(io)?;
    }
    Ok(())
}
