//! A record as bytes, the same in memory and on disk.
//!
//! | bytes | what |
//! |---|---|
//! | 16 | version: stamp, then node, big-endian |
//! | 1 | flags: 1 has a value, 2 has an expiry, 4 has a content type |
//! | 8, if flagged | expiry in milliseconds since 1970, big-endian |
//! | 1 + n, if flagged | content type: length, then UTF-8 |
//! | the rest, if flagged | the value |
//!
//! A plain value costs 17 bytes on top of itself. The version comes first, so that the commonest
//! question (is what comes in newer?) is answered by the first 16 bytes.
//!
//! There is exactly one encoding of a record: what decodes, encodes to the same bytes. Garbage
//! is an error and never a panic; but it takes luck to notice it, for there is no checksum here.
//! Memory needs none and the disk engine has one per block.
//!
//! Left out on purpose: compression (the disk engine compresses blocks, where neighbours help).

use crate::core::record::{Record, Version};
use crate::storage::StorageError;
use bytes::Bytes;

const HAS_VALUE: u8 = 1;
const HAS_EXPIRY: u8 = 2;
const HAS_CONTENT_TYPE: u8 = 4;
const ALL_FLAGS: u8 = HAS_VALUE | HAS_EXPIRY | HAS_CONTENT_TYPE;

/// How many bytes [`encode`] will add.
pub(crate) fn encoded_len(record: &Record) -> usize {
    let expiry = if record.expires_at_ms.is_some() { 8 } else { 0 };
    let content_type = if record.content_type.is_empty() { 0 } else { 1 + record.content_type.len() };
    17 + expiry + content_type + record.value.as_ref().map_or(0, Bytes::len)
}

/// What an encoded record with its key counts in a page of a slot: no less than it takes in the
/// message that carries it, where its fields and their lengths cost a little more than here.
pub(crate) fn paged_len(key: &[u8], encoded: &[u8]) -> usize {
    const FRAMING: usize = 32;
    FRAMING + key.len() + encoded.len()
}

/// Appends a record to `out`. Its content type must fit its limit, which
/// [`check`](super::engine::check) sees to.
pub(crate) fn encode(record: &Record, out: &mut Vec<u8>) {
    let mut flags = 0;
    if record.value.is_some() {
        flags |= HAS_VALUE;
    }
    if record.expires_at_ms.is_some() {
        flags |= HAS_EXPIRY;
    }
    if !record.content_type.is_empty() {
        flags |= HAS_CONTENT_TYPE;
    }
    out.extend_from_slice(&record.version.hlc.to_be_bytes());
    out.extend_from_slice(&record.version.node.to_be_bytes());
    out.push(flags);
    if let Some(at) = record.expires_at_ms {
        out.extend_from_slice(&at.to_be_bytes());
    }
    if !record.content_type.is_empty() {
        debug_assert!(record.content_type.len() <= usize::from(u8::MAX), "checked before");
        out.push(record.content_type.len() as u8);
        out.extend_from_slice(record.content_type.as_bytes());
    }
    if let Some(value) = &record.value {
        out.extend_from_slice(value);
    }
}

/// An encoded record, taken apart without copying.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    /// Which write it is.
    pub(crate) version: Version,
    /// The value, `None` for a tombstone.
    pub(crate) value: Option<&'a [u8]>,
    expires_at_ms: Option<u64>,
    content_type: &'a [u8],
}

/// What counting a record needs of it, and deciding about the next one, but for ties.
#[derive(Clone, Copy)]
pub(super) struct Head {
    /// Which write it is.
    pub(super) version: Version,
    /// How long the value is, `None` for a tombstone.
    pub(super) value_bytes: Option<usize>,
}

impl Parts<'_> {
    /// What the engine counts by.
    pub(super) fn head(&self) -> Head {
        Head { version: self.version, value_bytes: self.value.map(<[u8]>::len) }
    }

    /// A record of its own, which keeps nothing of the encoded bytes alive.
    pub(crate) fn to_record(self) -> Result<Record, StorageError> {
        let content_type = std::str::from_utf8(self.content_type);
        Ok(Record {
            version: self.version,
            expires_at_ms: self.expires_at_ms,
            value: self.value.map(Bytes::copy_from_slice),
            content_type: content_type.map_err(|error| bad(&error.to_string()))?.to_owned(),
        })
    }
}

/// Takes an encoded record apart.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parts<'_>, StorageError> {
    let short = || bad("it ends early");
    let (hlc, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
    let (node, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let version = Version { hlc: u64::from_be_bytes(*hlc), node: u64::from_be_bytes(*node) };
    let (&flags, mut rest) = rest.split_first().ok_or_else(short)?;
    if flags & !ALL_FLAGS != 0 {
        return Err(bad("it has flags that this program does not know"));
    }
    let mut expires_at_ms = None;
    if flags & HAS_EXPIRY != 0 {
        let (at, tail) = rest.split_first_chunk::<8>().ok_or_else(short)?;
        expires_at_ms = Some(u64::from_be_bytes(*at));
        rest = tail;
    }
    let mut content_type: &[u8] = &[];
    if flags & HAS_CONTENT_TYPE != 0 {
        let (&len, tail) = rest.split_first().ok_or_else(short)?;
        (content_type, rest) = tail.split_at_checked(usize::from(len)).ok_or_else(short)?;
        if content_type.is_empty() {
            return Err(bad("its content type is flagged but empty"));
        }
    }
    let value = (flags & HAS_VALUE != 0).then_some(rest);
    if value.is_none() && !rest.is_empty() {
        return Err(bad("bytes follow a tombstone"));
    }
    Ok(Parts { version, value, expires_at_ms, content_type })
}

fn bad(why: &str) -> StorageError {
    StorageError::corrupt(format!("a stored record can't be read: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records() -> impl Strategy<Value = Record> {
        let value = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from));
        let rest = (proptest::option::of(any::<u64>()), "[a-zü/]{0,20}");
        (any::<u64>(), any::<u64>(), value, rest).prop_map(
            |(hlc, node, value, (expires_at_ms, content_type))| Record {
                version: Version { hlc, node },
                expires_at_ms,
                value,
                content_type,
            },
        )
    }

    fn decode(bytes: &[u8]) -> Result<Record, StorageError> {
        parse(bytes)?.to_record()
    }

    fn encoded(record: &Record) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(record, &mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(record in records()) {
            let bytes = encoded(&record);
            prop_assert_eq!(bytes.len(), encoded_len(&record));
            prop_assert_eq!(decode(&bytes).unwrap(), record);
        }

        #[test]
        fn garbage_is_an_error_or_the_one_encoding_of_a_record(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..64),
            flags in proptest::option::of(0..8u8),
        ) {
            // Random flags are mostly unknown ones: aim at the code behind them too.
            if let (Some(flags), Some(at)) = (flags, bytes.get_mut(16)) {
                *at = flags;
            }
            match decode(&bytes) {
                Ok(record) => prop_assert_eq!(encoded(&record), bytes),
                Err(error) => {
                    let corrupt = matches!(error, StorageError::Corrupt { .. });
                    prop_assert!(corrupt, "{}", error);
                }
            }
        }

        #[test]
        fn a_cut_record_never_panics(record in records(), cut in 0..80usize) {
            let bytes = encoded(&record);
            let _ = decode(&bytes[..cut.min(bytes.len())]);
        }
    }

    #[test]
    fn a_plain_value_costs_17_bytes() {
        let record = Record::value(Version { hlc: 1, node: 2 }, "x");
        assert_eq!(encoded(&record), [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 1, b'x']);
        assert_eq!(encoded(&Record::tombstone(record.version)).len(), 17);
    }
}
