//! Points and arcs of the ring: the MD5 of a key, and which of the Q equal arcs it falls into.
//!
//! MD5 is not a safeguard here, it is the ring's agreed address arithmetic: every language has
//! it, so that a client anywhere finds a key's owners with one hash and one array index.
//! `testdata/ring_vectors.json` holds examples that other languages can test against.

use md5::{Digest, Md5};
use std::fmt;

/// A point on the ring: the MD5 of a key, as a big-endian number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u128);

impl Token {
    /// The token of a key.
    pub fn of(key: &[u8]) -> Self {
        Token(u128::from_be_bytes(Md5::digest(key).into()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// One of the Q equal arcs of the ring, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment(pub u16);

impl Segment {
    /// As an index into a table.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a layout: one layout per epoch, counted from 1.
pub type Epoch = u64;

/// One tenure of a segment: a node that gives a segment up and regains it later starts on a fresh
/// slot, named by the epoch at which it got it, so that leftovers never come back to life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot {
    /// Which segment.
    pub segment: Segment,
    /// Since which epoch.
    pub acquired: Epoch,
}

/// How many segments a ring has: Q = 2^k, from 1 to 65,536.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentCount {
    /// k: how many top bits of a token name its segment.
    bits: u8,
}

/// A number that can't be a ring's number of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a number of segments: it must be a power of two from 1 to 65536")]
pub struct BadSegmentCount(pub u64);

impl SegmentCount {
    /// What a ring gets that asks for nothing else: fine enough for some hundred nodes, coarse
    /// enough that a table is a few kilobytes.
    pub const DEFAULT: SegmentCount = SegmentCount { bits: 10 };

    /// Checks that `count` is a power of two in range.
    pub fn new(count: u64) -> Result<Self, BadSegmentCount> {
        if count.is_power_of_two() && count <= 1 << 16 {
            Ok(SegmentCount { bits: count.trailing_zeros() as u8 })
        } else {
            Err(BadSegmentCount(count))
        }
    }

    /// Q.
    pub fn get(self) -> usize {
        1 << self.bits
    }

    /// The segment a token falls into: its top k bits.
    pub fn segment(self, token: Token) -> Segment {
        // Shifting a u128 by 128 is no shift at all, so that k = 0 needs its own answer.
        Segment(token.0.checked_shr(128 - u32::from(self.bits)).unwrap_or(0) as u16)
    }

    /// All segments, in order.
    pub fn all(self) -> impl Iterator<Item = Segment> {
        (0..self.get()).map(|index| Segment(index as u16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_md5_of_the_key() {
        // RFC 1321, appendix A.5.
        assert_eq!(Token::of(b"").0, 0xd41d_8cd9_8f00_b204_e980_0998_ecf8_427e);
        assert_eq!(Token::of(b"abc").0, 0x9001_5098_3cd2_4fb0_d696_3f7d_28e1_7f72);
    }

    #[test]
    fn a_segment_is_the_top_bits() {
        let check = |count, token, segment| {
            assert_eq!(SegmentCount::new(count).unwrap().segment(Token(token)), Segment(segment));
        };
        check(1, u128::MAX, 0);
        check(2, u128::MAX, 1);
        check(2, u128::MAX >> 1, 0);
        check(1024, 0xffc0 << 112, 1023);
        check(65536, 0xabcd << 112, 0xabcd);
    }

    #[test]
    fn only_powers_of_two_up_to_65536_are_counts() {
        for bad in [0, 3, 1000, 131_072, u64::MAX] {
            assert_eq!(SegmentCount::new(bad), Err(BadSegmentCount(bad)));
        }
        assert_eq!(SegmentCount::new(1024), Ok(SegmentCount::DEFAULT));
    }

    /// Regenerate with `THRIFTY_UPDATE=1`; other languages test their routing against this file.
    #[test]
    fn the_published_ring_vectors_are_what_this_code_computes() {
        let keys = ["a", "b", "c", "apple", "user:1", "user:2", "Zulu", "ключ", "鍵", " ", "a/b?c=d"];
        let counts = [1, 16, 1024, 65536];
        let vectors: Vec<_> = keys
            .iter()
            .map(|key| {
                let token = Token::of(key.as_bytes());
                let segments: serde_json::Map<_, _> = counts
                    .iter()
                    .map(|&count| {
                        let segment = SegmentCount::new(count).unwrap().segment(token);
                        (count.to_string(), serde_json::json!(segment.0))
                    })
                    .collect();
                serde_json::json!({ "key": key, "token": format!("{token:?}"), "segment_by_count": segments })
            })
            .collect();
        let now = serde_json::to_string_pretty(&serde_json::json!({
            "about": "token = MD5 of the key's bytes (UTF-8), big-endian hex; segment = its top log2(count) bits",
            "vectors": vectors,
        }))
        .unwrap()
            + "\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/ring_vectors.json");
        if std::env::var_os("THRIFTY_UPDATE").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), now);
    }
}
