//! Deliberate mistakes, to prove that the simulator would find them.
//!
//! Each is a switch at the very line that guards against the fault, thread-local so that many
//! simulations run side by side, and compiled to `false` without the test-only feature `mutants`.

/// A planted bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it; docs/mutants.md tells what each breaks")]
pub enum Mutant {
    UnfencedWrites,
    UnfencedReads,
    SnapshotBeforeInstall,
    DualWritesOldSetOnly,
    ReadNewLeftEarly,
    DroppedBeforeStable,
    ReadWithoutWriteBack,
    NewerCopyCountsAsWriteBack,
    AcceptsAddedAcrossEpochs,
    UnsyncedReported,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 10] = [
        Mutant::UnfencedWrites,
        Mutant::UnfencedReads,
        Mutant::SnapshotBeforeInstall,
        Mutant::DualWritesOldSetOnly,
        Mutant::ReadNewLeftEarly,
        Mutant::DroppedBeforeStable,
        Mutant::ReadWithoutWriteBack,
        Mutant::NewerCopyCountsAsWriteBack,
        Mutant::AcceptsAddedAcrossEpochs,
        Mutant::UnsyncedReported,
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
