//! Small named blobs that survive a crash whole: a node's identity, its clock mark, its layout.
//!
//! These are the facts a node must not forget and must not half remember, a few kilobytes in all
//! and rarely written. [`DirVault`] keeps one file for each and replaces it by the oldest safe
//! recipe there is: write a temporary file, sync it, rename it over the old one, sync the folder.
//! Before the rename the old blob is there, after it the new one, and never a mixture.
//!
//! Each file begins with a header of 20 bytes: `THRIFTYB`, the format version, the length and the
//! CRC-32 of what follows. What a disk or a careless copy mangled is told from what was
//! never written: the first is [`Corrupt`](StorageError::Corrupt), which a person must look at, the
//! second is `None`. Taking damage for absence would give a node a second identity.
//!
//! Left out on purpose: several blobs in one step. Whoever needs two facts to change together puts
//! them into one blob.

use crate::core::mutants::{Mutant, planted};
use crate::storage::StorageError;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A store of small named blobs. Names are our own: lower-case letters, digits, `-` and `_`.
pub trait Vault: Send + Sync + 'static {
    /// The blob of that name, if it was ever saved.
    fn load(&self, name: &str) -> Result<Option<Vec<u8>>, StorageError>;

    /// Replaces it. Durable on return; after an error or a crash it is the old one or the new one.
    fn save(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError>;

    /// Forgets it, durably. It need not exist.
    fn remove(&self, name: &str) -> Result<(), StorageError>;
}

const MAGIC: &[u8; 8] = b"THRIFTYB";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 20;

/// What the names of files end in.
const SUFFIX: &str = ".blob";
/// What the names of unfinished files end in.
const UNFINISHED: &str = ".tmp";

/// One file per blob in a folder of its own.
#[derive(Clone, Debug)]
pub struct DirVault {
    folder: PathBuf,
    /// Two saves of one name share a temporary file, so that saves go one by one, from clones too.
    saving: Arc<Mutex<()>>,
}

impl DirVault {
    /// Opens the folder, which is created (durably) if it is missing; its parent must exist.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, StorageError> {
        let folder = folder.into();
        match fs::create_dir(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
            Err(error) => return Err(failed("creating", &folder, error)),
        }
        // Also of a folder that is there: who made it may have been killed before this.
        sync_folder(folder.parent().unwrap_or(Path::new(".")))?;
        Ok(DirVault { folder, saving: Arc::default() })
    }

    fn file(&self, name: &str) -> PathBuf {
        debug_assert!(
            name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_'),
            "{name:?} is no name for a blob"
        );
        self.folder.join(format!("{name}{SUFFIX}"))
    }

    fn sync(&self) -> Result<(), StorageError> {
        if planted(Mutant::VaultFolderNotSynced) { Ok(()) } else { sync_folder(&self.folder) }
    }
}

impl Vault for DirVault {
    fn load(&self, name: &str) -> Result<Option<Vec<u8>>, StorageError> {
        let file = self.file(name);
        match fs::read(&file) {
            Ok(bytes) => match unwrap(&bytes) {
                Ok(blob) => Ok(Some(blob.to_vec())),
                Err(why) => Err(StorageError::corrupt(format!("{} is damaged: {why}", file.display()))),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("reading", &file, error)),
        }
    }

    fn save(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        let header = header(bytes)?;
        let file = self.file(name);
        let unfinished = self.folder.join(format!("{name}{UNFINISHED}"));
        let _one_by_one = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let written = File::create(&unfinished).and_then(|mut out| {
            out.write_all(&header)?;
            out.write_all(bytes)?;
            // Synced before the rename: some file systems would otherwise rename first, and a
            // crash between the two would leave the new name with no bytes behind it.
            if planted(Mutant::VaultFileNotSynced) { Ok(()) } else { out.sync_all() }
        });
        written.map_err(|error| failed("writing", &unfinished, error))?;
        fs::rename(&unfinished, &file).map_err(|error| failed("replacing", &file, error))?;
        self.sync()
    }

    fn remove(&self, name: &str) -> Result<(), StorageError> {
        let file = self.file(name);
        let _one_by_one = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        match fs::remove_file(&file) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("removing", &file, error)),
        }
    }
}

/// Makes the names in a folder durable: a file that is synced but has no name is lost.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StorageError> {
    // The parent of a relative path of one part is the empty path.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    // Windows opens no folders as files; its file systems journal names by themselves.
    if cfg!(windows) {
        return Ok(());
    }
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| failed("syncing", folder, error))
}

fn failed(doing: &str, path: &Path, error: std::io::Error) -> StorageError {
    StorageError::io(format!("{doing} {} failed", path.display()), error)
}

pub(crate) fn header(blob: &[u8]) -> Result<[u8; HEADER_BYTES], StorageError> {
    let limit = u32::MAX as usize;
    let too_large = StorageError::TooLarge { what: "a blob", bytes: blob.len(), limit };
    let length = u32::try_from(blob.len()).ok().ok_or(too_large)?;
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_be_bytes());
    header[12..16].copy_from_slice(&length.to_be_bytes());
    header[16..].copy_from_slice(&crc32fast::hash(blob).to_be_bytes());
    Ok(header)
}

/// The blob of a file's bytes, or what is wrong with them.
pub(crate) fn unwrap(file: &[u8]) -> Result<&[u8], String> {
    let Some((header, blob)) = file.split_first_chunk::<HEADER_BYTES>() else {
        return Err(format!("it has only {} bytes", file.len()));
    };
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if &header[..8] != MAGIC {
        return Err("it does not begin like a blob of ours".into());
    }
    if number(8) != FORMAT {
        return Err(format!("its format is {}, this program reads {FORMAT}", number(8)));
    }
    if number(12) as usize != blob.len() {
        return Err(format!("it has {} bytes where {} were written", blob.len(), number(12)));
    }
    if number(16) != crc32fast::hash(blob) {
        return Err("its checksum is wrong".into());
    }
    Ok(blob)
}

/// Blobs in memory, for tests, the simulator and nodes that keep nothing.
#[derive(Debug, Default)]
pub struct MemoryVault {
    blobs: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl MemoryVault {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn blobs(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vault for MemoryVault {
    fn load(&self, name: &str) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.blobs().get(name).cloned())
    }

    fn save(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.blobs().insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), StorageError> {
        self.blobs().remove(name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeps_the_last_blob_of_each_name(vault: &dyn Vault) {
        assert_eq!(vault.load("a").unwrap(), None);
        vault.save("a", b"one").unwrap();
        vault.save("b", b"").unwrap();
        vault.save("a", b"two").unwrap();
        assert_eq!(vault.load("a").unwrap().unwrap(), b"two");
        assert_eq!(vault.load("b").unwrap().unwrap(), b"");
        vault.remove("a").unwrap();
        vault.remove("a").unwrap();
        assert_eq!(vault.load("a").unwrap(), None);
    }

    #[test]
    fn both_kinds_keep_the_last_blob_of_each_name() {
        keeps_the_last_blob_of_each_name(&MemoryVault::new());
        let folder = tempfile::tempdir().unwrap();
        keeps_the_last_blob_of_each_name(&DirVault::open(folder.path()).unwrap());
    }

    #[test]
    fn a_blob_is_there_after_reopening_and_a_half_written_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vault");
        DirVault::open(&path).unwrap().save("id", b"42").unwrap();
        fs::write(path.join("id.tmp"), b"THRIFT").unwrap();
        let vault = DirVault::open(&path).unwrap();
        assert_eq!(vault.load("id").unwrap().unwrap(), b"42");
        vault.save("id", b"43").unwrap();
        assert_eq!(vault.load("id").unwrap().unwrap(), b"43");
    }

    #[test]
    fn every_damage_to_a_blob_is_noticed_and_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let vault = DirVault::open(folder.path()).unwrap();
        vault.save("id", b"some bytes").unwrap();
        let file = folder.path().join("id.blob");
        let good = fs::read(&file).unwrap();
        let flipped = (0..good.len()).map(|at| {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            bad
        });
        let cut = (0..good.len()).map(|len| good[..len].to_vec());
        let grown = std::iter::once([&good[..], b"x"].concat());
        for bad in flipped.chain(cut).chain(grown) {
            fs::write(&file, bad).unwrap();
            let error = vault.load("id").unwrap_err();
            assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains("id.blob"), "{error}");
        }
    }

    #[test]
    fn a_folder_that_can_not_be_made_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let error = DirVault::open(folder.path().join("file")).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }
}
