//! How often each thing happened that a run is meant to exercise.
//!
//! A simulator that never crashes a node in the middle of a handoff proves nothing about handoffs,
//! and nobody would notice. So everything worth provoking is counted where it takes effect, and a test of
//! enough seeds insists that each count is above zero.

use std::fmt;

macro_rules! kinds {
    ($($name:ident = $text:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kind { $($name),* }

        impl Kind {
            pub(crate) const ALL: &[Kind] = &[$(Kind::$name),*];

            pub(crate) fn name(self) -> &'static str {
                match self { $(Kind::$name => $text),* }
            }
        }
    };
}

kinds! {
    Crash = "nodes crashed",
    CrashAll = "whole rings crashed",
    Restart = "nodes restarted",
    Killed = "nodes killed for good",
    OperationsLost = "unsynced operations lost",
    AnswersLost = "held-back answers lost",
    Lost = "messages lost by chance",
    Late = "messages late",
    Doubled = "messages doubled",
    Cut = "messages lost at a cut in two",
    OneWay = "messages lost at a cut in one direction",
    Ring = "messages lost where a ring of neighbours is left",
    Paused = "nodes paused",
    Waited = "events that waited for a paused node",
    Deaf = "messages about layouts lost on the deaf",
    Numb = "questions of coordinators lost on the numb",
    Mistake = "live nodes taken for dead by one",
    Doubt = "live nodes taken for dead by all",
    ClockJump = "wall clocks set",
    ClockLeap = "wall clocks set by more than the mark covers",
    DiskFull = "writes refused for want of room",
    DiskSlow = "disks slow",
    SlowSync = "syncs on a slow disk",
    DiskFailed = "disks failed while in use",
    Wiped = "disks wiped, their nodes back under new ids",
    Join = "joins asked for",
    Leave = "leaves asked for",
    Removal = "removals asked for",
    Removed = "live nodes that found themselves removed",
    Forced = "removals forced",
    ForcedTwice = "removals forced by two operators at once",
    ForcedWrongly = "live nodes dropped by force",
    Dropped = "nodes that found themselves dropped by force",
    Followed = "survivors that heard late of a forced removal",
    NotFollowed = "times that a ring with a majority gave no way",
    SetAside = "nodes of a second ring set aside in the end",
    AllStop = "nodes stopped because all leave",
    Epoch = "epochs",
    Transition = "transitions completed",
    Replaced = "transitions that replace all owners of a segment",
    Aborted = "transitions aborted",
    PullBegun = "handoffs begun",
    PullDone = "handoffs done",
    PullAgain = "handoffs begun again after a crash",
    PullFailed = "handoffs given up",
    Compared = "comparisons of a segment with another owner",
    Differing = "comparisons that found a difference",
    CaughtUp = "records pulled in catching up",
    NoRoom = "times that a puller waited for room",
    Stale = "requests of an older epoch met",
    Behind = "requests of a newer epoch met",
    NotOwner = "requests sent to a node that owns nothing of the key",
    Raced = "requests sent to another than the first coordinator",
    WriteBack = "write-backs",
    Deleted = "deletes acknowledged",
    FoundDeleted = "reads that found a deleted key",
    FoundExpired = "reads that found an expired record",
    FoundForgotten = "reads that found nothing where something was forgotten",
    Collecting = "collecting layouts",
    Forgot = "deletes forgotten by an owner",
    ForgotExpired = "expired records forgotten by an owner",
    AllForgotten = "rings that forgot all deletes in the end",
    Searched = "keys whose history was searched for an order",
    Acked = "writes acknowledged",
    AckedOne = "writes acknowledged at ONE",
    Read = "reads returned",
    ReadOne = "reads returned at ONE",
    ReadFailed = "reads failed",
    Scanned = "segments scanned",
    ScannedOn = "scans gone on with after a page",
    ScanFailed = "scans failed",
    Unknown = "writes of unknown outcome",
    NothingDone = "requests refused, nothing done",
    NoAnswer = "requests whose client got no answer",
}

impl Kind {
    /// In how many seeds it is to be expected in at least 15 of them, so that a batch of so many without it
    /// is no bad luck.
    pub(crate) fn expected_within(self) -> u64 {
        match self {
            Kind::Killed
            | Kind::ClockJump
            | Kind::ClockLeap
            | Kind::SlowSync
            | Kind::Removed
            | Kind::Dropped
            | Kind::ForcedWrongly
            | Kind::NotFollowed
            | Kind::ForgotExpired => 350,
            Kind::Wiped | Kind::ForcedTwice | Kind::NoRoom | Kind::Followed => 500,
            Kind::PullFailed => 700,
            _ => 200,
        }
    }
}

/// A counter for each [`Kind`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Counts(Vec<u64>);

impl Default for Counts {
    fn default() -> Self {
        Counts(vec![0; Kind::ALL.len()])
    }
}

impl Counts {
    pub(crate) fn add(&mut self, kind: Kind, many: u64) {
        self.0[kind as usize] += many;
    }

    pub(crate) fn of(&self, kind: Kind) -> u64 {
        self.0[kind as usize]
    }

    pub(crate) fn merge(&mut self, other: &Counts) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, more)| *mine += more);
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Kind::ALL.iter().try_for_each(|kind| writeln!(f, "{:>12}  {}", self.of(*kind), kind.name()))
    }
}
