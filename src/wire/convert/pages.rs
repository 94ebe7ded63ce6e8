//! Parts of segments, and where a scan goes on.

use super::{Malformed, key, record, record_to, segment};
use crate::core::record::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::core::replica_request::{Page, Stretch};
use crate::core::token::{Epoch, Segment, SegmentCount, Token};
use crate::wire::store as sp;
use bytes::Bytes;

/// The first byte of a page token, which says how to read it.
const FORMAT: u8 = 1;

/// What is asked of a replica, and at which epoch.
pub fn stretch(asked: sp::PageQuestion) -> Result<(Epoch, Stretch), Malformed> {
    let stretch = Stretch {
        segment: segment(asked.segment)?,
        prefix: prefix(asked.prefix)?,
        after: if asked.after.is_empty() { asked.after } else { checked(asked.after)? },
        keys_only: asked.keys_only,
        max_bytes: (asked.max_bytes as usize).min(MAX_VALUE_BYTES),
    };
    Ok((asked.epoch, stretch))
}

fn checked(bytes: Bytes) -> Result<Bytes, Malformed> {
    key(&bytes).map(|()| bytes)
}

/// What the keys of a scan begin with; empty = anything.
pub fn prefix(prefix: Bytes) -> Result<Bytes, Malformed> {
    if prefix.len() > MAX_KEY_BYTES { Err(Malformed::Key(prefix.len())) } else { Ok(prefix) }
}

/// As it is sent.
pub fn stretch_to(epoch: Epoch, stretch: Stretch) -> sp::PageQuestion {
    sp::PageQuestion {
        epoch,
        segment: stretch.segment.0.into(),
        prefix: stretch.prefix,
        after: stretch.after,
        keys_only: stretch.keys_only,
        max_bytes: stretch.max_bytes as u32,
    }
}

/// What a replica holds of a stretch.
pub fn page(page: sp::Page, now_ms: u64) -> Result<Page, Malformed> {
    let keyed = |keyed: sp::KeyedRecord| -> Result<_, Malformed> {
        let found = keyed.record.ok_or(Malformed::Missing("a record"))?;
        Ok((checked(keyed.key)?, record(found, now_ms)?))
    };
    Ok(Page { records: page.records.into_iter().map(keyed).collect::<Result<_, _>>()?, last: page.last })
}

/// As it is sent.
pub fn page_to(page: Page) -> sp::Page {
    let keyed = |(key, record)| sp::KeyedRecord { key, record: Some(record_to(record)) };
    sp::Page { records: page.records.into_iter().map(keyed).collect(), last: page.last }
}

/// Where a scan goes on: in which segment, and after which key of it; empty = from its beginning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// In this segment.
    pub segment: Segment,
    /// After this key of it.
    pub after: Bytes,
}

/// What a page token of a ring with so many segments says.
pub fn page_token(token: &Bytes, segments: SegmentCount) -> Result<Cursor, Malformed> {
    let Some((&FORMAT, rest)) = token.split_first() else { return Err(Malformed::PageToken) };
    let (number, after) = rest.split_first_chunk().ok_or(Malformed::PageToken)?;
    let cursor = Cursor {
        segment: Segment(u16::from_be_bytes(*number)),
        after: token.slice(token.len() - after.len()..),
    };
    let fits = match cursor.after.is_empty() {
        true => cursor.segment.index() < segments.get(),
        false => segments.segment(Token::of(&cursor.after)) == cursor.segment,
    };
    if fits && cursor.after.len() <= MAX_KEY_BYTES { Ok(cursor) } else { Err(Malformed::PageToken) }
}

/// As it is sent.
pub fn page_token_to(cursor: &Cursor) -> Bytes {
    [&[FORMAT], &cursor.segment.0.to_be_bytes()[..], &cursor.after].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_is_read_as_it_was_written_and_by_no_other_ring() {
        let segments = SegmentCount::new(64).unwrap();
        let after = Bytes::from("a key");
        let cursor = Cursor { segment: segments.segment(Token::of(&after)), after };
        let token = page_token_to(&cursor);
        assert_eq!(page_token(&token, segments), Ok(cursor.clone()));
        assert_eq!(page_token(&token, SegmentCount::new(1024).unwrap()), Err(Malformed::PageToken));
        let begin = Cursor { segment: Segment(63), after: Bytes::new() };
        assert_eq!(page_token(&page_token_to(&begin), segments), Ok(begin));
        let too_long = Cursor { after: vec![0; MAX_KEY_BYTES + 1].into(), ..cursor };
        let foreign = Cursor { segment: Segment(64), after: Bytes::new() };
        for bad in [
            page_token_to(&too_long),
            page_token_to(&foreign),
            Bytes::new(),
            "\x01\0".into(),
            "\x02\0\0".into(),
        ] {
            assert_eq!(page_token(&bad, segments), Err(Malformed::PageToken), "{bad:?}");
        }
    }
}
