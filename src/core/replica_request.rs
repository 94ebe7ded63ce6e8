//! What a coordinator asks of a replica, and what it may answer.
//!
//! Every request names the sender's epoch and a replica serves exactly its own, so that answers
//! to one question are all about one table.

use crate::core::record::{Record, Version};
use crate::core::token::{Epoch, Segment};
use bytes::Bytes;

/// A part of a segment, in key order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// Which.
    pub segment: Segment,
    /// Only keys that begin so.
    pub prefix: Bytes,
    /// Only keys after this one; empty = all, as no key is.
    pub after: Bytes,
    /// Values are left out: each reads as empty.
    pub keys_only: bool,
    /// So many bytes of records, or one record, and not necessarily all that there are.
    pub max_bytes: usize,
}

/// What one replica holds of a [`Stretch`], from its beginning.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// Deleted and expired ones included, in key order and without gaps.
    pub records: Vec<(Bytes, Record)>,
    /// Nothing of the stretch comes after them.
    pub last: bool,
}

impl Page {
    /// Of keys and values.
    pub fn bytes(&self) -> usize {
        let value = |record: &Record| record.value.as_ref().map_or(0, Bytes::len);
        self.records.iter().map(|(key, record)| key.len() + value(record)).sum()
    }

    /// Whether it can be an answer to that.
    pub fn is_of(&self, stretch: &Stretch) -> bool {
        let begins = |key: &Bytes| key.starts_with(&stretch.prefix) && *key > stretch.after;
        (self.last || !self.records.is_empty())
            && self.records.iter().all(|(key, _)| begins(key))
            && self.records.is_sorted_by(|(a, _), (b, _)| a < b)
    }
}

/// A question about one key, or a part of a segment.
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
    /// What is in this part of a segment?
    Page(Stretch),
}

impl Ask {
    /// The record that it brings along.
    pub fn record(&self) -> Option<&Record> {
        match self {
            Ask::Write(record) | Ask::WriteBack(record) => Some(record),
            Ask::Read | Ask::Version | Ask::Page(_) => None,
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
    /// What is there, to [`Ask::Page`].
    Page(Page),
    /// The replica's epoch is this one, which is newer than the request's; nothing was done.
    Stale(Epoch),
    /// No room on its disk for new records; nothing was done.
    NoSpace,
    /// The request did not reach it, or no answer came: anything may have happened.
    Silence,
}
