//! Deliberate mistakes, to prove that the simulator, the model and the tests of power cuts would find them.
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
    /// A scan at QUORUM takes the page of one owner for all there is.
    PageOfOne,
    /// A scan counts pages of an older epoch at the next.
    PagesOfTwoEpochs,
    /// A scan goes on behind the longest of its pages.
    ShortPagesTrusted,
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
    /// A write that goes on at a newer layout gets a newer version.
    RetriedUnderNewVersion,
    /// A write is acknowledged as soon as one of the live sets has a quorum.
    AnySetIsEnough,
    /// A write that met a full disk says that nothing was done, though others may have taken it.
    RefusedAfterSending,
    /// In a read, a newer copy that superseded a write-back counts as holding the target.
    SupersededReadCounted,
    /// Newcomers alone gather, also where the majorities then need not meet.
    NewcomersAlwaysSuffice,
    /// A puller gathers from n - W owners instead of n - W + 1.
    OneSourceTooFew,
    /// A puller takes a source that refuses or is silent for one that it has read.
    SourceSkipped,
    /// Deletes are not handed over.
    TombstonesNotPulled,
    /// `synced` of another Dual counts for this one.
    SyncedOfAnotherDual,
    /// A restarted clock knows nothing of its mark.
    ClockFromZero,
    /// A record that was there already is accepted at once, durable or not.
    EqualAnsweredUnsynced,
    /// An installed layout is not made durable.
    LayoutNotDurable,
    /// Votes are not made durable.
    VotesNotDurable,
    /// A voter does not keep its promises.
    PromiseForgotten,
    /// A proposer does not care about what was accepted before.
    AcceptedIgnored,
    /// A proposer takes the first accept for a majority.
    WonWithoutMajority,
    /// One voter's word is enough to have a member removed.
    RemovedByOne,
    /// A voter votes on layouts that are older than the next.
    VotesForPastEpochs,
    /// Owners that compare find no difference.
    DifferencesOverlooked,
    /// A replica serves a newer epoch than the one that it has installed.
    NewerEpochsServed,
    /// A read keeps what it knew at an older epoch.
    ReadKnowledgeKept,
    /// A puller reports that it has gathered all before it is synced.
    GatheredUnsynced,
    /// In a Dual, reads ask the next owners.
    DualReadsNextOwners,
    /// A slot isn't named by its epoch: leftovers of a Dual that was given up are merged.
    LeftoversMerged,
    /// A page that was pulled at an older epoch is merged.
    LatePagesMerged,
    /// A request that began before a collecting layout is sent again at it.
    LateAfterCollection,
    /// A tombstone is collected that one owner does not hold.
    CollectedUnconfirmed,
    /// An owner confirms a tombstone that it has not synced.
    ConfirmedUnsynced,
    /// Whoever takes a page in does not start its clock above the sender's.
    SendersClockIgnored,
    /// A member gives way to a forced removal although its own ring has a majority.
    MajorityGivesWay,
    /// What a forced removal begins goes on counting epochs where the old ring was.
    LineagesShareEpochs,
    /// Segments that a forced removal left with too few owners stay so.
    RowsLeftShort,
    /// ReadNew is left with one old owner too few. Hidden by the next.
    ReadNewLeftEarly,
    /// That there is nothing is returned if a quorum of the read set says so.
    AbsentByReadSet,
    /// Both.
    ReadNewLeftEarlyAndAbsentByReadSet,
    /// [`DualReadsNextOwners`](Mutant::DualReadsNextOwners) and
    /// [`AbsentByReadSet`](Mutant::AbsentByReadSet), for reads at QUORUM.
    DualReadsNextOwnersAndAbsentByReadSet,
    /// Tombstones are forgotten before all members have installed the collecting layout. Hidden by the
    /// next.
    ForgottenUnawaited,
    /// A replica forgets at whatever layout.
    ForgottenAtAnyLayout,
    /// Both.
    CollectedBeforeAllInstalled,
    /// A record that has expired by the first owner's clock is collected, whatever the others' show.
    ExpiredByOneClock,
    /// A record that is pulled, or taken in when owners compare, loses its expiry.
    ExpiryDropped,
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
    /// Of which others it is made, where one guard hides that another is missing.
    pub const fn parts(self) -> &'static [Mutant] {
        match self {
            Mutant::ReadNewLeftEarlyAndAbsentByReadSet => {
                &[Mutant::ReadNewLeftEarly, Mutant::AbsentByReadSet]
            }
            Mutant::DualReadsNextOwnersAndAbsentByReadSet => {
                &[Mutant::DualReadsNextOwners, Mutant::AbsentByReadSet]
            }
            Mutant::CollectedBeforeAllInstalled => {
                &[Mutant::ForgottenUnawaited, Mutant::ForgottenAtAnyLayout]
            }
            _ => &[],
        }
    }

    /// Those that the simulator has to find.
    pub const SIMULATED: [Mutant; 42] = [
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
        Mutant::RetriedUnderNewVersion,
        Mutant::AnySetIsEnough,
        Mutant::RefusedAfterSending,
        Mutant::SupersededReadCounted,
        Mutant::NewcomersAlwaysSuffice,
        Mutant::OneSourceTooFew,
        Mutant::SourceSkipped,
        Mutant::TombstonesNotPulled,
        Mutant::SyncedOfAnotherDual,
        Mutant::ClockFromZero,
        Mutant::EqualAnsweredUnsynced,
        Mutant::LayoutNotDurable,
        Mutant::VotesNotDurable,
        Mutant::PromiseForgotten,
        Mutant::AcceptedIgnored,
        Mutant::WonWithoutMajority,
        Mutant::RemovedByOne,
        Mutant::VotesForPastEpochs,
        Mutant::DifferencesOverlooked,
        Mutant::LateAfterCollection,
        Mutant::CollectedUnconfirmed,
        Mutant::ExpiredByOneClock,
        Mutant::ExpiryDropped,
        Mutant::LeftoversMerged,
        Mutant::LatePagesMerged,
        Mutant::SendersClockIgnored,
        Mutant::MajorityGivesWay,
        Mutant::LineagesShareEpochs,
        Mutant::RowsLeftShort,
        Mutant::PageOfOne,
        Mutant::PagesOfTwoEpochs,
        Mutant::ShortPagesTrusted,
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
        PLANTED.get().is_some_and(|planted| planted == mutant || planted.parts().contains(&mutant))
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
