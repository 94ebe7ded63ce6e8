//! What a coordinator asks of a replica, and what it may answer.
//!
//! Every request names the sender's epoch and a replica serves exactly its own, so that answers
//! to one question are all about one table.

use crate::core::record::{Record, Version};
use crate::core::token::Epoch;

/// A question about one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// Keep this record if it is newer than or equal to what is there.
    Write(Record),
    /// The same, for a read that met this record elsewhere and has to see it at a quorum. It is some
    /// owner's already, so that it is taken also where there is no room for new ones.
    WriteBack(Record),
    /// What is there?
    Read,
    /// Which version is there?
    Version,
}

impl Ask {
    /// The record that it brings along.
    pub fn record(&self) -> Option<&Record> {
        match self {
            Ask::Write(record) | Ask::WriteBack(record) => Some(record),
            Ask::Read | Ask::Version => None,
        }
    }
}

/// The answer to one question. None of them names a version that isn't durable where it was given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The record of this version is kept, durably.
    Accepted(Version),
    /// A newer one is there; nothing was changed.
    Superseded(Version),
    /// What is there, to [`Ask::Read`].
    Record(Option<Record>),
    /// The version that is there, to [`Ask::Version`]; `ABSENT` for none.
    Version(Version),
    /// The replica's epoch is this one, which is newer than the request's; nothing was done.
    Stale(Epoch),
    /// No room on its disk for new records; nothing was done.
    NoSpace,
    /// The request did not reach it, or no answer came: anything may have happened.
    Silence,
}
