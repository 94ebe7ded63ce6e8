//! A digest of a set of records that can be kept up to date record by record: the sum of one
//! hash per record, so that order does not matter and a record can be taken out again.
//!
//! Two replicas of a segment with equal digests hold the same keys at the same versions, but for
//! odds of about 2^-128 by accident. It is no defence against somebody who searches for
//! collisions: replicas trust one another.

use crate::core::mutants::{Mutant, planted};
use crate::core::record::Version;
use crate::core::token::Token;

/// The digest of a set of (key, version).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Digest(pub u128);

impl Digest {
    /// Puts a key at a version into the set.
    pub fn add(&mut self, key: Token, version: Version) {
        self.0 = self.0.wrapping_add(hash(key, version));
    }

    /// Takes it out again.
    pub fn remove(&mut self, key: Token, version: Version) {
        self.0 = self.0.wrapping_sub(hash(key, version));
    }
}

/// Parts into which the digest of a slot is broken down, to find what differs without listing all of
/// the slot.
pub const PARTS: usize = 64;

/// The part that a key counts in: by bits of its token that choose no segment.
pub fn part_of(key: Token) -> usize {
    (key.0 % PARTS as u128) as usize
}

/// A set of (key, version), digested part by part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parts(pub [Digest; PARTS]);

impl Default for Parts {
    fn default() -> Self {
        Parts([Digest::default(); PARTS])
    }
}

impl Parts {
    /// Puts a key at a version into the set.
    pub fn add(&mut self, key: Token, version: Version) {
        self.0[part_of(key)].add(key, version);
    }

    /// Takes it out again.
    pub fn remove(&mut self, key: Token, version: Version) {
        self.0[part_of(key)].remove(key, version);
    }

    /// The digest of the whole set.
    pub fn total(&self) -> Digest {
        Digest(self.0.iter().fold(0, |sum, part| sum.wrapping_add(part.0)))
    }

    /// The parts in which two sets differ.
    pub fn differing(&self, other: &Parts) -> PartSet {
        let seen = !planted(Mutant::DifferencesOverlooked);
        let differ = (0..PARTS).filter(|&part| seen && self.0[part] != other.0[part]);
        PartSet(differ.fold(0, |set, part| set | 1 << part))
    }
}

/// Some of the [`PARTS`], a bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartSet(pub u64);

impl PartSet {
    /// Which, in order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..PARTS).filter(move |part| self.0 >> part & 1 == 1)
    }

    /// Whether a key counts in one of them.
    pub fn holds(self, key: Token) -> bool {
        self.0 >> part_of(key) & 1 == 1
    }
}

/// What stands for a key at a version in a list of many. Two that differ have the same one with odds of
/// 2^-64, and then one of them is overlooked until it is written again.
pub fn fingerprint(key: Token, version: Version) -> u64 {
    let hash = hash(key, version);
    // Of both words: only the high one knows the version's node, and two nodes may write at one stamp.
    (hash >> 64) as u64 ^ hash as u64
}

/// The key's half is an MD5 already; the version is stirred into both of its words.
fn hash(key: Token, version: Version) -> u128 {
    let low = mix(key.0 as u64 ^ mix(version.hlc));
    let high = mix((key.0 >> 64) as u64 ^ mix(version.node ^ version.hlc.rotate_left(32)));
    u128::from(high) << 64 | u128::from(low)
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hlc: u64) -> Version {
        Version { hlc, node: 9 }
    }

    #[test]
    fn order_does_not_matter_and_what_was_added_can_be_removed() {
        let (a, b) = (Token::of(b"a"), Token::of(b"b"));
        let mut one = Digest::default();
        one.add(a, at(1));
        one.add(b, at(2));
        let mut two = Digest::default();
        two.add(b, at(2));
        two.add(a, at(5));
        assert_ne!(one, two);
        two.remove(a, at(5));
        two.add(a, at(1));
        assert_eq!(one, two);
    }

    #[test]
    fn parts_add_up_and_show_where_sets_differ() {
        let (mut one, mut two) = (Parts::default(), Parts::default());
        for n in 0..1000u32 {
            one.add(Token::of(&n.to_be_bytes()), at(1));
            two.add(Token::of(&n.to_be_bytes()), at(1));
        }
        assert_eq!(one.differing(&two), PartSet(0));
        let changed = Token::of(&7u32.to_be_bytes());
        two.remove(changed, at(1));
        two.add(changed, at(2));
        let differing = one.differing(&two);
        assert_eq!(differing.0.count_ones(), 1);
        assert!(differing.holds(changed));
        assert_ne!(one.total(), two.total());
        assert_ne!(fingerprint(changed, at(1)), fingerprint(changed, at(2)));
    }

    #[test]
    fn two_nodes_that_write_at_one_stamp_have_fingerprints_of_their_own() {
        let (key, one) = (Token::of(b"a"), at(1));
        let prints = [one, Version { node: 10, ..one }, at(2)].map(|version| fingerprint(key, version));
        assert!(prints[0] != prints[1] && prints[0] != prints[2] && prints[1] != prints[2], "{prints:?}");
        assert_ne!(fingerprint(Token::of(b"b"), one), prints[0]);
    }

    #[test]
    fn versions_and_keys_cannot_be_swapped() {
        let sum = |pairs: [(&str, u64); 2]| {
            let mut digest = Digest::default();
            pairs.iter().for_each(|(key, hlc)| digest.add(Token::of(key.as_bytes()), at(*hlc)));
            digest
        };
        assert_ne!(sum([("a", 1), ("b", 2)]), sum([("a", 2), ("b", 1)]));
    }
}
