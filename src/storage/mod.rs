//! Where records and small facts are kept: the one layer that touches a disk.
//!
//! Two traits say what the rest of the system needs. An [`Engine`](engine::Engine) holds records,
//! many and small, apart by slot; a [`Vault`](vault::Vault) holds a handful of named blobs (a
//! node's identity, its clock mark, its layout) that must never be half written. Each comes in a
//! kind that lasts and a kind that doesn't, and the engine has a third for the simulator, which
//! loses on request what a real disk might lose. [`data_dir`] guards the folder they live in.
//!
//! What every implementation keeps:
//!
//! - *Nothing is synced by accident.* `merge` makes a write visible, `sync` makes it durable, and
//!   only a `sync` that returned `Ok` may be told to anyone. This is what lets the caller gather
//!   the writes of many requests under one `fsync`.
//! - *The order of records is decided by [`Record::precedence`](crate::core::record::Record)*
//!   and nowhere else, so that replicas agree whatever order their writes arrive in.
//! - *Fail-stop.* After a write or a sync has failed, nobody knows what the disk holds: the kernel
//!   may have dropped the dirty pages and report the next `fsync` as a success (Rebello et al.,
//!   "Can Applications Recover from fsync Failures?", 2020). An engine is poisoned from then on and
//!   the caller ends the process; the restart reads back what is really there.
//! - *No clock.* An expired record is a record; when it is invisible is the reader's question.
//!
//! Everything here blocks. Whoever runs an async loop calls it from threads that may block.
//!
//! Left out on purpose: transactions across records and snapshots (the store offers neither), and
//! a write cache of our own (the engine's memtable and the kernel's page cache are two already).

pub(crate) mod codec;
#[cfg(feature = "location")]
pub mod data_dir;
#[cfg(feature = "store")]
pub mod disk;
pub mod engine;
pub mod memory;
pub mod simulated;
pub mod vault;

use std::io;

/// Why a storage operation failed. All but [`TooLarge`](StorageError::TooLarge) are reasons to end
/// the process, see [`is_fatal`](StorageError::is_fatal).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The operating system refused. A read changed nothing; of a write it is unknown how much is
    /// there. The machine's or its operator's fault: repair what the cause names, then start again.
    #[error("{what}: {source}; check the disk and the permissions, then start again")]
    Io {
        /// What was attempted, on which file or folder.
        what: String,
        /// What the operating system said.
        source: io::Error,
    },

    /// The disk or the quota is full. Nothing that was acknowledged is lost; the write at hand may or
    /// may not be there. The operator's to fix: free space, then start again.
    #[error("{what}: the disk is full ({source}); free space on it, then start again")]
    NoSpace {
        /// What was attempted, on which file or folder.
        what: String,
        /// What the operating system said.
        source: io::Error,
    },

    /// What was read is not what was written. Nothing changed. The disk's fault, or a program's
    /// that wrote into our files: let a new node copy from the other replicas.
    #[error("{what}; start with --replace to set the damaged data aside and join as a new node")]
    Corrupt {
        /// Which file or record, and what is wrong with it.
        what: String,
    },

    /// Another process holds the files. Nothing changed. The operator's to fix: stop the other one
    /// or use another folder.
    #[error("{what} is in use by another process; stop that one, or use another folder")]
    InUse {
        /// Which folder.
        what: String,
    },

    /// The folder holds something that isn't ours. Nothing changed. The operator's to fix.
    #[error("{what} holds files that are not an engine's; use an empty or a new folder")]
    Foreign {
        /// Which folder.
        what: String,
    },

    /// A key, a value, a content type or a name is longer than can be stored. Nothing changed, and
    /// the engine works on. The caller's fault: limits are checked where requests come in.
    #[error("{what} of {bytes} bytes is longer than the limit of {limit}; nothing was stored")]
    TooLarge {
        /// A key, a value, ...
        what: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },

    /// An earlier write failed, so that nothing may be written before a restart. This call changed
    /// nothing. The cause is in the earlier error, or in the engine's log if it happened in the
    /// background: most often a full disk.
    #[error("an earlier write failed, so {what} takes no more; check the disk and start again")]
    Poisoned {
        /// Which folder.
        what: String,
    },
}

impl StorageError {
    /// Of an error of the operating system.
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                StorageError::NoSpace { what, source }
            }
            _ => StorageError::Io { what, source },
        }
    }

    /// Of bytes that make no sense.
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        StorageError::Corrupt { what: what.into() }
    }

    /// Whether the process should end: it can no longer keep what it promised.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, StorageError::TooLarge { .. })
    }
}
