//! Checked conversions between protobuf and core types.

mod pages;
mod ring;

pub use pages::{Cursor, page, page_to, page_token, page_token_to, prefix, stretch, stretch_to};
pub use ring::{
    accepted, accepted_to, ballot, ballot_to, kind, kind_to, layout, layout_bytes, layout_from_bytes,
    layout_to, member, member_to, phase, phase_to, replicas, replicas_to, report, report_to, vote_bytes,
    vote_from_bytes,
};

use super::store as sp;
use crate::core::clock::{Stamp, is_credible};
use crate::core::collection::MAX_LISTED;
use crate::core::digest::{Digest, PARTS, Parts};
use crate::core::layout::BadLayout;
use crate::core::node::{NodeId, RingId};
use crate::core::quorum::Consistency;
use crate::core::record::{MAX_CONTENT_TYPE_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, Record, Version};
use crate::core::token::Segment;
use crate::core::ttl::{BadTtl, Ttl};
use bytes::Bytes;

/// What is wrong with bytes or a message from outside. Nothing was changed; whoever sent it has
/// to mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// An id, digest or ring id of the wrong length.
    #[error("{0} must have 16 bytes")]
    Id(&'static str),
    /// A part that must be there isn't.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// An enum or number outside its range.
    #[error("{0} is out of range")]
    Range(&'static str),
    /// No key, or too long a one.
    #[error("a key has 1 to {MAX_KEY_BYTES} bytes, this one has {0}")]
    Key(usize),
    /// Too long a value.
    #[error("a value has at most {MAX_VALUE_BYTES} bytes, this one has {0}")]
    Value(usize),
    /// Too long a content type.
    #[error("a content type has at most {MAX_CONTENT_TYPE_BYTES} bytes, this one has {0}")]
    ContentType(usize),
    /// A time to live of nothing, or of far too long.
    #[error(transparent)]
    Ttl(#[from] BadTtl),
    /// A stamp from so far in the future that no clock gave it.
    #[error("the stamp {0:x} is more than a hundred years ahead of this node's clock")]
    Stamp(Stamp),
    /// A layout that contradicts itself.
    #[error(transparent)]
    Layout(#[from] BadLayout),
    /// Not of a scan of this ring.
    #[error("the page token is not one of this ring")]
    PageToken,
    /// No protobuf.
    #[error("not a protobuf message of this kind")]
    Protobuf,
}

fn sixteen(bytes: &[u8], what: &'static str) -> Result<u128, Malformed> {
    bytes.try_into().map(u128::from_be_bytes).map_err(|_error| Malformed::Id(what))
}

/// 16 bytes, big-endian.
pub fn id_bytes(id: u128) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}

/// A node's id.
pub fn node_id(bytes: &[u8]) -> Result<NodeId, Malformed> {
    sixteen(bytes, "a node id").map(NodeId)
}

/// A ring's id.
pub fn ring_id(bytes: &[u8]) -> Result<RingId, Malformed> {
    sixteen(bytes, "a ring id").map(RingId)
}

/// A segment's digest.
pub fn digest(bytes: &[u8]) -> Result<Digest, Malformed> {
    sixteen(bytes, "a digest").map(Digest)
}

/// The digests of a segment's parts.
pub fn parts(bytes: &[u8]) -> Result<Parts, Malformed> {
    let (digests, rest) = bytes.as_chunks::<16>();
    match <[[u8; 16]; PARTS]>::try_from(digests) {
        Ok(digests) if rest.is_empty() => Ok(Parts(digests.map(|d| Digest(u128::from_be_bytes(d))))),
        _ => Err(Malformed::Range("the number of a segment's parts")),
    }
}

/// As they are sent.
pub fn parts_to(parts: &Parts) -> Bytes {
    parts.0.iter().flat_map(|part| part.0.to_be_bytes()).collect()
}

/// A segment's number. Whether the ring has it is for the replica to say.
pub fn segment(number: u32) -> Result<Segment, Malformed> {
    u16::try_from(number).map(Segment).map_err(|_error| Malformed::Range("a segment"))
}

/// Checks a key's length.
pub fn key(key: &Bytes) -> Result<(), Malformed> {
    if (1..=MAX_KEY_BYTES).contains(&key.len()) { Ok(()) } else { Err(Malformed::Key(key.len())) }
}

/// Checks the length of a value and its content type.
pub fn value(value: &Bytes, content_type: &str) -> Result<(), Malformed> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(Malformed::Value(value.len()));
    }
    if content_type.len() > MAX_CONTENT_TYPE_BYTES {
        return Err(Malformed::ContentType(content_type.len()));
    }
    Ok(())
}

/// A value's time to live, if it has one.
pub fn ttl(ttl_ms: Option<u64>) -> Result<Option<Ttl>, Malformed> {
    Ok(ttl_ms.map(Ttl::from_ms).transpose()?)
}

/// The consistency asked for; unspecified is QUORUM.
pub fn consistency(number: i32) -> Result<Consistency, Malformed> {
    match sp::Consistency::try_from(number) {
        Ok(sp::Consistency::One) => Ok(Consistency::One),
        Ok(sp::Consistency::Quorum | sp::Consistency::Unspecified) => Ok(Consistency::Quorum),
        Ok(sp::Consistency::All) => Ok(Consistency::All),
        Err(_) => Err(Malformed::Range("the consistency")),
    }
}

/// As it is sent.
pub fn consistency_to(consistency: Consistency) -> i32 {
    (match consistency {
        Consistency::One => sp::Consistency::One,
        Consistency::Quorum => sp::Consistency::Quorum,
        Consistency::All => sp::Consistency::All,
    })
    .into()
}

/// A version; absent is "nothing there".
pub fn version(version: Option<sp::Version>) -> Version {
    version.map_or(Version::ABSENT, |v| Version { hlc: v.hlc, node: v.node })
}

/// As it is sent.
pub fn version_to(version: Version) -> sp::Version {
    sp::Version { hlc: version.hlc, node: version.node }
}

/// Checks a stamp of another node by this one's wall clock.
pub fn stamp(stamp: Stamp, now_ms: u64) -> Result<Stamp, Malformed> {
    if is_credible(stamp, now_ms) { Ok(stamp) } else { Err(Malformed::Stamp(stamp)) }
}

/// A record, with its lengths and its stamp checked.
pub fn record(record: sp::Record, now_ms: u64) -> Result<Record, Malformed> {
    // A tombstone has a content type too, if its sender will have it so.
    value(record.value.as_ref().unwrap_or(&Bytes::new()), &record.content_type)?;
    if record.version.is_none_or(|v| v.hlc == 0) {
        return Err(Malformed::Missing("a record's version"));
    }
    let version = version(record.version);
    stamp(version.hlc, now_ms)?;
    Ok(Record {
        version,
        expires_at_ms: record.expires_at_ms,
        value: record.value,
        content_type: record.content_type,
    })
}

/// As it is sent.
pub fn record_to(record: Record) -> sp::Record {
    sp::Record {
        version: Some(version_to(record.version)),
        expires_at_ms: record.expires_at_ms,
        value: record.value,
        content_type: record.content_type,
    }
}

/// Records of one segment that are to be collected.
pub fn garbage(garbage: sp::Garbage) -> Result<(Segment, Vec<(Bytes, Version)>), Malformed> {
    if garbage.dead.len() > MAX_LISTED {
        return Err(Malformed::Range("the number of records to collect"));
    }
    let dead = garbage.dead.into_iter().map(|dead| {
        key(&dead.key)?;
        Ok((dead.key, version(dead.version)))
    });
    Ok((segment(garbage.segment)?, dead.collect::<Result<_, Malformed>>()?))
}

/// As they are sent.
pub fn garbage_to(segment: Segment, dead: &[(Bytes, Version)]) -> sp::Garbage {
    let dead = dead
        .iter()
        .map(|(key, version)| sp::KeyedVersion { key: key.clone(), version: Some(version_to(*version)) });
    sp::Garbage { segment: segment.0.into(), dead: dead.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked() {
        let check = |len, good| assert_eq!(key(&Bytes::from(vec![0; len])).is_ok(), good, "{len}");
        check(0, false);
        check(1, true);
        check(4096, true);
        check(4097, false);
        assert!(value(&Bytes::from(vec![0; (1 << 20) + 1]), "").is_err());
        assert!(value(&Bytes::new(), &"x".repeat(256)).is_err());
        let tombstone = |hlc, content_type: String| {
            let version = Some(sp::Version { hlc, node: 1 });
            record(sp::Record { version, content_type, ..sp::Record::default() }, 1_800_000_000_000)
        };
        assert!(tombstone(1, "x".repeat(255)).is_ok());
        assert_eq!(tombstone(1, "x".repeat(256)), Err(Malformed::ContentType(256)));
        assert_eq!(tombstone(u64::MAX, String::new()), Err(Malformed::Stamp(u64::MAX)));
        let listed = |dead| garbage(sp::Garbage { segment: 1, dead: vec![dead; MAX_LISTED + 1] });
        let dead = sp::KeyedVersion { key: "k".into(), version: None };
        assert_eq!(listed(dead), Err(Malformed::Range("the number of records to collect")));
        assert!(consistency(9).is_err());
        assert_eq!(ttl(None), Ok(None));
        assert_eq!(ttl(Some(0)), Err(Malformed::Ttl(BadTtl)));
        assert_eq!(ttl(Some(u64::MAX)), Err(Malformed::Ttl(BadTtl)));
        assert!(node_id(b"short").is_err());
    }
}
