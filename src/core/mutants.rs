//! Deliberate mistakes, to prove that the simulator and the tests of power cuts would find them.
//!
//! Each is a switch at the very line that guards against the fault, thread-local so that many
//! simulations run side by side, and compiled to `false` without the test-only feature `mutants`.

/// A planted bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// A replica takes writes of another epoch.
    UnfencedWrites,
    /// A replica answers reads of another epoch.
    UnfencedReads,
    /// A source serves a snapshot before it has installed the puller's Dual: a write of the old
    /// epoch may still follow.
    SnapshotBeforeInstall,
    /// In a transition writes (and write-backs) go to the old owners only.
    DualWritesOldSetOnly,
    /// Reads move on to the new owners before all of these have gathered their segments.
    ReadNewBeforeSynced,
    /// A node drops what the next table gives to others while the transition may still be given up.
    DroppedBeforeStable,
    /// A read returns the greatest version met, whoever else holds it.
    ReadWithoutWriteBack,
    /// A newer copy that superseded a write counts as having accepted it.
    SupersededCountsAsAccepted,
    /// Accepts of an older epoch go on counting at the next.
    AcceptsAddedAcrossEpochs,
    /// An answer names a version that isn't durable yet.
    UnsyncedReported,
    /// The disk engine says that it has synced, and hasn't.
    EngineSyncSkipped,
    /// The folders that a new disk engine makes are not synced.
    EngineFoldersNotSynced,
    /// The vault renames a file whose bytes are not synced.
    VaultFileNotSynced,
    /// The vault does not sync the folder after a rename.
    VaultFolderNotSynced,
    /// The committer lets answers out without a sync.
    AnsweredUnsynced,
}

impl Mutant {
    /// Those that the simulator has to find.
    pub const SIMULATED: [Mutant; 10] = [
        Mutant::UnfencedWrites,
        Mutant::UnfencedReads,
        Mutant::SnapshotBeforeInstall,
        Mutant::DualWritesOldSetOnly,
        Mutant::ReadNewBeforeSynced,
        Mutant::DroppedBeforeStable,
        Mutant::ReadWithoutWriteBack,
        Mutant::SupersededCountsAsAccepted,
        Mutant::AcceptsAddedAcrossEpochs,
        Mutant::UnsyncedReported,
    ];

    /// Those that only a disk can show which forgets what was not synced.
    pub const SYNCS: [Mutant; 5] = [
        Mutant::EngineSyncSkipped,
        Mutant::EngineFoldersNotSynced,
        Mutant::VaultFileNotSynced,
        Mutant::VaultFolderNotSynced,
        Mutant::AnsweredUnsynced,
    ];
}

#[cfg(feature = "mutants")]
mod switch {
    use super::Mutant;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Plants a bug in this thread, or weeds it out.
    pub fn plant(mutant: Option<Mutant>) {
        PLANTED.set(mutant);
    }

    /// Whether this thread runs with the bug.
    pub fn planted(mutant: Mutant) -> bool {
        PLANTED.get() == Some(mutant)
    }
}

#[cfg(feature = "mutants")]
pub use switch::{plant, planted};

/// Whether this thread runs with the bug: never, in a build without `mutants`.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn planted(_: Mutant) -> bool {
    false
}
