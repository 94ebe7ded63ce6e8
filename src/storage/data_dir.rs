//! The folder of one node: whose it is, that nobody else has it, and what lies where.
//!
//! | name | what |
//! |---|---|
//! | `THRIFTY` | marks the folder as ours and says its format: `thrifty data 1` |
//! | `lock` | locked by the process that runs on it, with its process id for messages |
//! | `vault/` | the node's few facts, see [`vault`](super::vault) |
//! | `engine/` | its records, if it keeps them on disk |
//!
//! Two things must never happen: that two processes write into one folder, and that a mistyped
//! `--data-dir` scatters files over somebody's home. The lock excludes the first: it belongs to the
//! open file, so the system takes it back however the process dies, and a stale `lock` file
//! means nothing. The marker excludes the second: a folder that is neither empty nor marked is
//! left exactly as it was.
//!
//! What fails here fails at start, before a person who has just typed a command. So each message is
//! one line that names the folder, the cause and the way out.
//!
//! Left out on purpose: deleting. A node that was removed from its ring has its folder
//! [set aside](DataDir::set_aside), and a person decides when to let go of the data. And
//! migrations between formats: there is only one.

use crate::storage::StorageError;
use crate::storage::vault::{DirVault, sync_folder};
use fs4::{FileExt, TryLockError};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The name of the file that marks a folder as ours.
pub const MARKER: &str = "THRIFTY";

/// What the marker says in front of the format's number.
const MARKER_TEXT: &str = "thrifty data ";
/// The only format so far.
const FORMAT: u32 = 1;

const LOCK: &str = "lock";
const VAULT: &str = "vault";
const ENGINE: &str = "engine";
const UNFINISHED_MARKER: &str = "THRIFTY.tmp";
/// Stands between a folder's name and a number once it was set aside.
const SET_ASIDE: &str = ".removed-";

/// Why a folder can't be a node's. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    /// It holds somebody else's files.
    #[error("{} is not a thrifty data folder and not empty; choose an empty or a new folder", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
    },

    /// Another process runs on it.
    #[error(
        "{} is in use by {}; stop that process or choose another folder",
        path.display(),
        pid.map_or("another process".into(), |pid| format!("process {pid}"))
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The other process, if it told.
        pid: Option<u32>,
    },

    /// The operating system refuses: permissions, a file in place of a folder, a full or broken disk.
    #[error("{} can't be used: {source}; check its permissions and its disk, or choose another folder", path.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// A later program wrote it.
    #[error("{} has data format {found}, this program knows {FORMAT}; use a newer thrifty", path.display())]
    TooNew {
        /// The folder.
        path: PathBuf,
        /// Its format.
        found: u32,
    },

    /// Its marker says nothing that a thrifty ever wrote.
    #[error(
        "{} has a damaged marker; if its data is ours, let its file {MARKER} say \"{MARKER_TEXT}{FORMAT}\", \
         or choose another folder",
        path.display()
    )]
    Damaged {
        /// The folder.
        path: PathBuf,
    },
}

/// A node's folder, locked as long as this lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    vault: DirVault,
    /// Unlocks when it is closed.
    lock: File,
}

impl DataDir {
    /// Takes the folder, which is created with its parents if it is missing.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DataDirError> {
        let path = path.into();
        let unreadable = |source| DataDirError::Unreadable { path: path.clone(), source };
        fs::create_dir_all(&path).map_err(unreadable)?;
        // Before the lock, for even a lock file would be a stain on somebody else's folder.
        let marked = marker(&path)?;
        if !marked && !holds_nothing(&path).map_err(unreadable)? {
            return Err(DataDirError::Foreign { path });
        }
        let lock = take_lock(&path)?;
        // Again, under the lock: another process may have made the folder its own and gone.
        let vault = if marker(&path)? { Ok(()) } else { mark(&path) };
        let vault = vault.and_then(|()| sync_names(&path));
        let vault = vault.and_then(|()| DirVault::open(path.join(VAULT)).map_err(cause));
        let vault = vault.map_err(unreadable)?;
        Ok(DataDir { path, vault, lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node's facts. All of its vaults are one.
    pub fn vault(&self) -> DirVault {
        self.vault.clone()
    }

    /// Where a disk engine belongs; made by the engine.
    pub fn engine_path(&self) -> PathBuf {
        self.path.join(ENGINE)
    }

    /// How much may still be written to its disk.
    pub fn available_bytes(&self) -> Result<u64, StorageError> {
        let available = fs4::available_space(&self.path);
        available.map_err(|error| {
            StorageError::io(format!("asking for the space under {} failed", self.path.display()), error)
        })
    }

    /// Renames the folder to `<name>.removed-<n>`, so that the next start in its place is a new node's
    /// and the data is still there. Whatever was opened in it must be closed before.
    pub fn set_aside(self) -> Result<PathBuf, StorageError> {
        let failed = |error| StorageError::io(format!("setting {} aside failed", self.path.display()), error);
        // The path may end in `.` or `..`, which has no name to append to.
        let path = fs::canonicalize(&self.path).map_err(failed)?;
        let target = |n: u32| {
            let mut name: OsString = path.clone().into_os_string();
            name.push(format!("{SET_ASIDE}{n}"));
            PathBuf::from(name)
        };
        let free = (1..u32::MAX).map(target).find(|target| fs::symlink_metadata(target).is_err());
        let target = free.ok_or_else(|| failed(io::ErrorKind::AlreadyExists.into()))?;
        if cfg!(windows) {
            // Windows renames no folder that has an open file in it.
            drop(self.lock);
        }
        fs::rename(&path, &target).map_err(failed)?;
        sync_folder(target.parent().unwrap_or(Path::new(".")))?;
        Ok(target)
    }

    /// The folders directly under `root` that are a node's, those with numbers for names first and in
    /// their order. Folders that were set aside don't count, and a root that can't be read has none.
    pub fn candidates(root: impl AsRef<Path>) -> Vec<PathBuf> {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        let ours = entries.map(|entry| entry.path()).filter(|path| path.join(MARKER).is_file());
        let mut named: Vec<_> = ours
            .map(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let number = name.parse().unwrap_or(u64::MAX);
                (number, name, path)
            })
            .filter(|(_, name, _)| !name.contains(SET_ASIDE))
            .collect();
        named.sort();
        named.into_iter().map(|(_, _, path)| path).collect()
    }
}

/// Whether the folder is marked as ours in a format that we know.
fn marker(path: &Path) -> Result<bool, DataDirError> {
    let mut text = String::new();
    // A marker of ours is short: of a file that isn't, this much is enough to see it.
    let read = File::open(path.join(MARKER)).and_then(|file| file.take(100).read_to_string(&mut text));
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => text.clear(),
        Err(source) => return Err(DataDirError::Unreadable { path: path.to_owned(), source }),
    }
    let number = text.lines().next().and_then(|line| line.strip_prefix(MARKER_TEXT));
    match number.and_then(|number| number.trim_end().parse::<u32>().ok()) {
        Some(FORMAT) => Ok(true),
        Some(found) if found > FORMAT => Err(DataDirError::TooNew { path: path.to_owned(), found }),
        _ => Err(DataDirError::Damaged { path: path.to_owned() }),
    }
}

/// Whether the folder may become ours: nothing in it, or what a start leaves that was cut short, or
/// what a fresh file system has.
fn holds_nothing(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if ![LOCK, UNFINISHED_MARKER, "lost+found"].iter().any(|fine| name == *fine) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Marks the folder as ours, and whole: a marker cut short would look like damage.
fn mark(path: &Path) -> io::Result<()> {
    let unfinished = path.join(UNFINISHED_MARKER);
    let mut file = File::create(&unfinished)?;
    writeln!(file, "{MARKER_TEXT}{FORMAT}")?;
    file.sync_all()?;
    fs::rename(&unfinished, path.join(MARKER))
}

/// Makes the marker and the folder durable, whoever made them: it may have been killed before this.
fn sync_names(path: &Path) -> io::Result<()> {
    sync_folder(path).map_err(cause)?;
    sync_folder(path.parent().unwrap_or(Path::new("."))).map_err(cause)
}

/// What the operating system said, for a message that says the rest in its own words.
fn cause(error: StorageError) -> io::Error {
    match error {
        StorageError::Io { source, .. } | StorageError::NoSpace { source, .. } => source,
        other => io::Error::other(other),
    }
}

fn take_lock(path: &Path) -> Result<File, DataDirError> {
    let unreadable = |source| DataDirError::Unreadable { path: path.to_owned(), source };
    let file = path.join(LOCK);
    // Not truncated on opening: until the lock is ours, the process id in it is another's.
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&file);
    let mut lock = opened.map_err(unreadable)?;
    match FileExt::try_lock(&lock) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
            return Err(DataDirError::InUse { path: path.to_owned(), pid });
        }
        Err(TryLockError::Error(error)) => return Err(unreadable(error)),
    }
    let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    written.map_err(unreadable)?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::vault::Vault;

    #[test]
    fn a_new_folder_is_made_with_its_parents_and_opens_again() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/1");
        let dir = DataDir::open(&path).unwrap();
        dir.vault().save("id", b"42").unwrap();
        assert!(dir.available_bytes().unwrap() > 0);
        assert_eq!((dir.path(), dir.engine_path()), (&*path, path.join("engine")));
        drop(dir);
        assert_eq!(fs::read_to_string(path.join(MARKER)).unwrap(), "thrifty data 1\n");
        let dir = DataDir::open(&path).unwrap();
        assert_eq!(dir.vault().load("id").unwrap().unwrap(), b"42");
    }

    #[test]
    fn a_folder_in_use_names_the_process() {
        let root = tempfile::tempdir().unwrap();
        let dir = DataDir::open(root.path()).unwrap();
        let error = DataDir::open(root.path()).unwrap_err();
        let me = std::process::id();
        assert!(matches!(error, DataDirError::InUse { pid: Some(pid), .. } if pid == me), "{error}");
        assert!(error.to_string().contains(&format!("in use by process {me};")), "{error}");
        drop(dir);
        // The lock file is still there, and means nothing by itself.
        DataDir::open(root.path()).unwrap();
    }

    #[test]
    fn a_folder_of_somebody_else_is_left_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("thesis.tex"), "").unwrap();
        let error = DataDir::open(root.path()).unwrap_err();
        assert!(matches!(error, DataDirError::Foreign { .. }), "{error}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_first_start_that_was_cut_short_is_finished() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(LOCK), "123").unwrap();
        fs::write(root.path().join(UNFINISHED_MARKER), "thr").unwrap();
        fs::create_dir(root.path().join("lost+found")).unwrap();
        DataDir::open(root.path()).unwrap();
    }

    #[test]
    fn other_formats_and_damaged_markers_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let opened = |marker: &[u8]| {
            fs::write(root.path().join(MARKER), marker).unwrap();
            DataDir::open(root.path()).map(drop)
        };
        assert!(matches!(opened(b"thrifty data 2\n"), Err(DataDirError::TooNew { found: 2, .. })));
        for bad in [&b""[..], b"thrifty data", b"thrifty data x", b"\xff\xfe", b"thrifty data 0\n"] {
            assert!(matches!(opened(bad), Err(DataDirError::Damaged { .. })));
        }
        opened(b"thrifty data 1").unwrap();
    }

    #[test]
    fn a_file_in_place_of_a_folder_is_unreadable() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        fs::write(&path, "").unwrap();
        let error = DataDir::open(&path).unwrap_err();
        assert!(matches!(error, DataDirError::Unreadable { .. }), "{error}");
    }

    #[test]
    fn a_folder_set_aside_keeps_its_data_and_makes_room() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("1");
        for n in 1..3u8 {
            let dir = DataDir::open(&path).unwrap();
            dir.vault().save("id", &[n]).unwrap();
            let aside = dir.set_aside().unwrap();
            assert!(aside.ends_with(format!("1.removed-{n}")), "{}", aside.display());
            assert!(!path.exists());
            assert_eq!(DataDir::open(aside).unwrap().vault().load("id").unwrap().unwrap(), [n]);
        }
        assert_eq!(DataDir::candidates(root.path()), [] as [PathBuf; 0]);
    }

    #[test]
    fn candidates_are_marked_folders_in_the_order_of_their_numbers() {
        let root = tempfile::tempdir().unwrap();
        for name in ["10", "9", "b", "a", "2"] {
            DataDir::open(root.path().join(name)).unwrap();
        }
        fs::create_dir(root.path().join("1")).unwrap();
        fs::write(root.path().join("3"), "").unwrap();
        let names = ["2", "9", "10", "a", "b"].map(|name| root.path().join(name));
        assert_eq!(DataDir::candidates(root.path()), names);
        assert_eq!(DataDir::candidates(root.path().join("missing")), [] as [PathBuf; 0]);
    }
}
