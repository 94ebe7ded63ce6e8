//! What is stored under a key, and which of two records wins.

use crate::core::clock::{Stamp, wall_ms};
use bytes::Bytes;
use std::cmp::Ordering;
use std::fmt;

/// The longest key, in bytes. The shortest is one byte.
pub const MAX_KEY_BYTES: usize = 4096;

/// The longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;

/// The longest content type, in bytes.
pub const MAX_CONTENT_TYPE_BYTES: usize = 255;

/// When and by whom a record was written. Totally ordered; the default is "nothing there", which
/// is less than every written version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version {
    /// The coordinator's hybrid logical clock.
    pub hlc: Stamp,
    /// The low half of the coordinator's node id.
    pub node: u64,
}

impl Version {
    /// The version of a key that nobody ever wrote.
    pub const ABSENT: Version = Version { hlc: 0, node: 0 };

    /// Milliseconds since 1970, as the coordinator's clock had it.
    pub fn wall_ms(self) -> u64 {
        wall_ms(self.hlc)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.hlc, self.node)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{:04x}", self.wall_ms(), self.hlc & 0xffff, self.node & 0xffff)
    }
}

/// One stored unit: a value, or a tombstone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Which write this is.
    pub version: Version,
    /// From when on it reads as absent, in milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
    /// The value; `None` is a tombstone, a delete that has a version.
    pub value: Option<Bytes>,
    /// What kind of bytes the value is, as its writer said (a MIME type); empty if nobody said.
    pub content_type: String,
}

impl Record {
    /// A value without expiry or content type.
    pub fn value(version: Version, value: impl Into<Bytes>) -> Self {
        Record { version, expires_at_ms: None, value: Some(value.into()), content_type: String::new() }
    }

    /// A delete.
    pub fn tombstone(version: Version) -> Self {
        Record { version, expires_at_ms: None, value: None, content_type: String::new() }
    }

    /// The value as a reader at `now_ms` sees it: `None` if deleted or expired.
    pub fn visible(&self, now_ms: u64) -> Option<&Bytes> {
        let expired = self.expires_at_ms.is_some_and(|at| at <= now_ms);
        self.value.as_ref().filter(|_| !expired)
    }

    /// Which of two records wins: the newer version. Equal versions should never differ; if they
    /// do, the order is still total, so that all nodes agree: a tombstone wins, then the greater
    /// value, then the rest.
    pub fn precedence(&self, other: &Record) -> Ordering {
        let rank = |r: &Record| r.value.is_none();
        self.version
            .cmp(&other.version)
            .then_with(|| rank(self).cmp(&rank(other)))
            .then_with(|| self.value.cmp(&other.value))
            .then_with(|| self.expires_at_ms.cmp(&other.expires_at_ms))
            .then_with(|| self.content_type.cmp(&other.content_type))
    }

    /// The winner of two records of one key. Commutative, associative, idempotent.
    pub fn merge(self, other: Record) -> Record {
        if self.precedence(&other) == Ordering::Less { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records() -> impl Strategy<Value = Record> {
        let version = (0..3u64, 0..2u64).prop_map(|(hlc, node)| Version { hlc, node });
        let value = proptest::option::of(proptest::collection::vec(0..3u8, 0..2).prop_map(Bytes::from));
        (version, value, proptest::option::of(0..3u64)).prop_map(|(version, value, expires_at_ms)| Record {
            version,
            expires_at_ms,
            value,
            content_type: String::new(),
        })
    }

    proptest! {
        #[test]
        fn merge_is_commutative_associative_and_idempotent(a in records(), b in records(), c in records()) {
            prop_assert_eq!(a.clone().merge(b.clone()), b.clone().merge(a.clone()));
            prop_assert_eq!(
                a.clone().merge(b.clone()).merge(c.clone()),
                a.clone().merge(b.merge(c))
            );
            prop_assert_eq!(a.clone().merge(a.clone()), a);
        }
    }

    #[test]
    fn ties_go_to_the_tombstone_and_then_to_the_greater_value() {
        let at = Version { hlc: 7, node: 1 };
        let (a, b, gone) = (Record::value(at, "a"), Record::value(at, "b"), Record::tombstone(at));
        assert_eq!(a.clone().merge(b.clone()), b);
        assert_eq!(gone.clone().merge(b.clone()), gone);
        let newer = Record::value(Version { hlc: 8, node: 0 }, "");
        assert_eq!(newer.clone().merge(gone), newer);
    }

    #[test]
    fn an_expired_record_reads_as_absent() {
        let record = Record { expires_at_ms: Some(100), ..Record::value(Version { hlc: 1, node: 1 }, "x") };
        assert!(record.visible(99).is_some());
        assert!(record.visible(100).is_none());
    }
}
