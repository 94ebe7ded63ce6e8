//! What every engine must do, as functions that run against any of them.
//!
//! `suite!` makes one `#[test]` of each, so that a failure names the engine and the behaviour.
//! Its argument makes a fresh engine and whatever must outlive it (a folder).

use super::{Dead, Engine, Entry, Merged, SlotStats};
use crate::core::digest::Digest;
use crate::core::record::{MAX_CONTENT_TYPE_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, Record, Version};
use crate::core::token::{Segment, Slot, Token};
use crate::storage::{StorageError, codec};
use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Bound;

macro_rules! suite {
    ($fresh:expr) => {
        $crate::storage::engine::conformance::suite!(
            $fresh;
            what_was_never_written_is_absent,
            newest_wins_and_older_is_refused,
            equal_is_equal,
            ties_go_to_the_tombstone_and_then_to_the_greater_value,
            tombstones_are_records_but_not_keys,
            all_fields_come_back,
            slots_of_one_segment_are_apart,
            scans_page_in_byte_order_without_gaps_or_repeats,
            a_scan_gives_at_least_one_record_and_stops_at_its_limit,
            a_page_counts_all_of_its_records,
            drop_slot_forgets_only_its_slot,
            forget_takes_exactly_what_it_names,
            later_entries_of_a_batch_see_earlier_ones,
            the_largest_keys_and_values_fit_and_larger_change_nothing,
            stats_and_digest_follow_every_write
        );
    };
    ($fresh:expr; $($behaviour:ident),*) => {
        $(
            #[test]
            fn $behaviour() {
                let (engine, _keep) = $fresh;
                $crate::storage::engine::conformance::$behaviour(&engine);
            }
        )*
    };
}
pub(crate) use suite;

/// A slot of segment 5.
pub(crate) fn slot(acquired: u64) -> Slot {
    Slot { segment: Segment(5), acquired }
}

/// A write into [`slot`] `acquired` at version `hlc`; `None` deletes.
pub(crate) fn entry(acquired: u64, key: impl AsRef<[u8]>, hlc: u64, value: Option<&str>) -> Entry {
    let version = Version { hlc, node: 1 };
    let record = match value {
        Some(value) => Record::value(version, value.to_owned()),
        None => Record::tombstone(version),
    };
    let key = Bytes::copy_from_slice(key.as_ref());
    Entry { slot: slot(acquired), token: Token::of(&key), key, record }
}

/// That version of a key in [`slot`] `acquired`, to be forgotten.
pub(crate) fn dead(acquired: u64, key: &str, hlc: u64) -> Dead {
    let Entry { slot, token, key, record } = entry(acquired, key, hlc, None);
    Dead { slot, token, key, version: record.version }
}

fn merge(engine: &dyn Engine, entries: &[Entry]) -> Vec<Merged> {
    engine.merge(entries).unwrap()
}

/// Everything in a slot, a page at a time.
pub(crate) fn all(engine: &dyn Engine, slot: Slot, page_bytes: usize) -> Vec<(Bytes, Record)> {
    let mut found: Vec<(Bytes, Record)> = Vec::new();
    loop {
        let after = found.last().map(|(key, _)| key.clone());
        let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let page = engine.scan(slot, from, page_bytes).unwrap();
        if page.is_empty() {
            return found;
        }
        found.extend(page);
    }
}

/// The stats of a slot, counted from what a scan shows.
pub(crate) fn counted(engine: &dyn Engine, slot: Slot) -> SlotStats {
    let mut stats = SlotStats::default();
    for (key, record) in all(engine, slot, 100) {
        stats.keys += u64::from(record.value.is_some());
        stats.records += 1;
        stats.bytes += (key.len() + record.value.map_or(0, |value| value.len())) as u64;
        stats.parts.add(Token::of(&key), record.version);
    }
    stats
}

pub(crate) fn what_was_never_written_is_absent(engine: &dyn Engine) {
    assert_eq!(engine.get(slot(1), b"k").unwrap(), None);
    assert_eq!(engine.version(slot(1), b"k").unwrap(), None);
    assert_eq!(engine.scan(slot(1), Bound::Unbounded, 100).unwrap(), []);
    assert_eq!(engine.stats(slot(1)), SlotStats::default());
    assert_eq!(engine.slots(), []);
    assert_eq!(merge(engine, &[]), []);
    engine.drop_slot(slot(1)).unwrap();
    engine.sync().unwrap();
}

pub(crate) fn newest_wins_and_older_is_refused(engine: &dyn Engine) {
    assert_eq!(merge(engine, &[entry(1, "k", 5, Some("five"))]), [Merged::Newer]);
    let five = entry(1, "k", 5, None).record.version;
    assert_eq!(merge(engine, &[entry(1, "k", 4, Some("four"))]), [Merged::Older(five)]);
    assert_eq!(engine.get(slot(1), b"k").unwrap(), Some(entry(1, "k", 5, Some("five")).record));
    assert_eq!(merge(engine, &[entry(1, "k", 6, Some("six"))]), [Merged::Newer]);
    assert_eq!(engine.get(slot(1), b"k").unwrap(), Some(entry(1, "k", 6, Some("six")).record));
    assert_eq!(engine.version(slot(1), b"k").unwrap(), Some(Version { hlc: 6, node: 1 }));
}

pub(crate) fn equal_is_equal(engine: &dyn Engine) {
    let write = [entry(1, "k", 5, Some("v"))];
    assert_eq!(merge(engine, &write), [Merged::Newer]);
    let before = engine.stats(slot(1));
    assert_eq!(merge(engine, &write), [Merged::Equal]);
    assert_eq!(engine.stats(slot(1)), before);
}

pub(crate) fn ties_go_to_the_tombstone_and_then_to_the_greater_value(engine: &dyn Engine) {
    let at = Version { hlc: 5, node: 1 };
    merge(engine, &[entry(1, "k", 5, Some("b"))]);
    assert_eq!(merge(engine, &[entry(1, "k", 5, Some("a"))]), [Merged::Older(at)]);
    assert_eq!(merge(engine, &[entry(1, "k", 5, Some("c"))]), [Merged::Newer]);
    assert_eq!(merge(engine, &[entry(1, "k", 5, None)]), [Merged::Newer]);
    assert_eq!(merge(engine, &[entry(1, "k", 5, Some("d"))]), [Merged::Older(at)]);
    assert_eq!(engine.get(slot(1), b"k").unwrap(), Some(Record::tombstone(at)));
    assert_eq!(engine.stats(slot(1)), counted(engine, slot(1)));
}

pub(crate) fn tombstones_are_records_but_not_keys(engine: &dyn Engine) {
    merge(engine, &[entry(1, "k", 1, Some("v")), entry(1, "gone", 2, None)]);
    let stats = engine.stats(slot(1));
    assert_eq!((stats.keys, stats.records, stats.bytes), (1, 2, 6));
    merge(engine, &[entry(1, "k", 3, None)]);
    let stats = engine.stats(slot(1));
    assert_eq!((stats.keys, stats.records, stats.bytes), (0, 2, 5));
    assert_eq!(engine.get(slot(1), b"k").unwrap().unwrap().value, None);
    assert_eq!(engine.slots(), [(slot(1), stats)]);
}

pub(crate) fn all_fields_come_back(engine: &dyn Engine) {
    let mut write = entry(1, "k", 1, Some(""));
    write.record.expires_at_ms = Some(u64::MAX - 1);
    write.record.content_type = "t".repeat(MAX_CONTENT_TYPE_BYTES);
    merge(engine, std::slice::from_ref(&write));
    assert_eq!(engine.get(slot(1), b"k").unwrap().as_ref(), Some(&write.record));
    assert_eq!(all(engine, slot(1), 1), [(write.key, write.record)]);
}

pub(crate) fn slots_of_one_segment_are_apart(engine: &dyn Engine) {
    let other = Slot { segment: Segment(6), acquired: 1 };
    let elsewhere = Entry { slot: other, ..entry(1, "k", 9, Some("other")) };
    merge(engine, &[entry(1, "k", 5, Some("one")), entry(2, "k", 3, Some("two")), elsewhere]);
    let value = |slot| engine.get(slot, b"k").unwrap().unwrap().value.unwrap();
    assert_eq!([value(slot(1)), value(slot(2)), value(other)], ["one", "two", "other"]);
    let slots: Vec<_> = engine.slots().into_iter().map(|(slot, stats)| (slot, stats.records)).collect();
    assert_eq!(slots, [(slot(1), 1), (slot(2), 1), (other, 1)]);
}

pub(crate) fn scans_page_in_byte_order_without_gaps_or_repeats(engine: &dyn Engine) {
    let mut keys: Vec<Vec<u8>> = vec![vec![0], vec![0xff], vec![0, 0], vec![0xff; 3], vec![0xff, 0]];
    keys.extend((0..=255u8).map(|byte| vec![b'k', byte]));
    keys.extend((0..=255u8).map(|byte| vec![b'k', byte, 0]));
    // Written backwards, and with neighbours that must not leak in: the slots around this one.
    let writes: Vec<_> = keys.iter().rev().map(|key| entry(0xff, key, 1, Some("v"))).collect();
    merge(engine, &writes);
    let around = [0xfe, 0x100, 0, u64::MAX];
    merge(engine, &around.map(|acquired| entry(acquired, [0xffu8; 8], 1, Some("no"))));
    keys.sort();
    for page_bytes in [0, 1, 7, 100, 1 << 20] {
        let found: Vec<_> = all(engine, slot(0xff), page_bytes).into_iter().map(|(key, _)| key).collect();
        assert_eq!(found, keys, "in pages of {page_bytes} bytes");
    }
    let first = |from: Bound<&[u8]>| engine.scan(slot(0xff), from, 1).unwrap()[0].0.clone();
    // Where it begins need not exist.
    assert_eq!(first(Bound::Excluded(b"k\x07\x01")), &b"k\x08"[..]);
    assert_eq!(first(Bound::Included(b"k\x07\x01")), &b"k\x08"[..]);
    assert_eq!(first(Bound::Excluded(b"k\x08")), &b"k\x08\0"[..]);
    assert_eq!(first(Bound::Included(b"k\x08")), &b"k\x08"[..]);
    assert_eq!(all(engine, slot(u64::MAX), 10).len(), 1);
}

/// What a record counts in a page.
fn paged_len((key, record): &(Bytes, Record)) -> usize {
    let mut encoded = Vec::new();
    codec::encode(record, &mut encoded);
    codec::paged_len(key, &encoded)
}

pub(crate) fn a_scan_gives_at_least_one_record_and_stops_at_its_limit(engine: &dyn Engine) {
    let value = "v".repeat(99);
    let writes: Vec<_> = (b'a'..=b'j').map(|key| entry(1, [key], 1, Some(&value))).collect();
    merge(engine, &writes);
    let first = engine.scan(slot(1), Bound::Unbounded, 0).unwrap();
    assert_eq!(first.len(), 1);
    let one = paged_len(&first[0]);
    assert_eq!(engine.scan(slot(1), Bound::Unbounded, 3 * one).unwrap().len(), 3);
    assert_eq!(engine.scan(slot(1), Bound::Excluded(b"b"), 4 * one - 1).unwrap().len(), 3);
    assert_eq!(engine.scan(slot(1), Bound::Excluded(b"j"), 10 * one).unwrap(), []);
}

pub(crate) fn a_page_counts_all_of_its_records(engine: &dyn Engine) {
    let mut writes: Vec<_> = (0..200u8).map(|key| entry(1, [key], 1, Some("v"))).collect();
    for (at, write) in writes.iter_mut().enumerate() {
        write.record.content_type = "t".repeat([0, 1, MAX_CONTENT_TYPE_BYTES][at % 3]);
        write.record.expires_at_ms = (at % 2 == 0).then_some(u64::MAX - 1);
        write.record.value = write.record.value.take().filter(|_| at % 5 > 0);
    }
    merge(engine, &writes);
    let (mut found, mut limit) = (0, 100);
    while found < writes.len() {
        let after = found.checked_sub(1).map(|last| &writes[last].key[..]);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let page = engine.scan(slot(1), from, limit).unwrap();
        let sizes: Vec<usize> = page.iter().map(paged_len).collect();
        assert!(sizes.len() == 1 || sizes.iter().sum::<usize>() <= limit, "{sizes:?} in {limit}");
        (found, limit) = (found + page.len(), limit + 100);
    }
    assert_eq!(found, writes.len());
}

pub(crate) fn drop_slot_forgets_only_its_slot(engine: &dyn Engine) {
    let fill =
        |acquired| -> Vec<_> { (0..300).map(|i| entry(acquired, format!("{i}"), 1, Some("v"))).collect() };
    for acquired in 1..=3 {
        merge(engine, &fill(acquired));
    }
    engine.drop_slot(slot(2)).unwrap();
    assert_eq!(all(engine, slot(2), 1000), []);
    assert_eq!(engine.version(slot(2), b"7").unwrap(), None);
    assert_eq!(engine.slots().iter().map(|(slot, _)| slot.acquired).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(engine.stats(slot(2)), SlotStats::default());
    assert_eq!(engine.stats(slot(1)), counted(engine, slot(1)));
    // A forgotten slot starts afresh: even an older write is new to it.
    assert_eq!(merge(engine, &[entry(2, "7", 0, Some("v"))]), [Merged::Newer]);
    assert_eq!(engine.stats(slot(2)).records, 1);
}

pub(crate) fn forget_takes_exactly_what_it_names(engine: &dyn Engine) {
    merge(engine, &[entry(1, "gone", 5, None), entry(1, "old", 5, None), entry(1, "kept", 5, Some("v"))]);
    merge(engine, &[entry(1, "old", 6, Some("newer")), entry(2, "gone", 5, None)]);
    engine.sync().unwrap();
    let elsewhere = Version { node: 2, ..dead(1, "kept", 5).version };
    let other_node = Dead { version: elsewhere, ..dead(1, "kept", 5) };
    let never = [dead(1, "old", 5), dead(1, "old", 7), dead(1, "absent", 5), dead(3, "gone", 5), other_node];
    let before = engine.slots();
    engine.forget(&never).unwrap();
    engine.forget(&[]).unwrap();
    assert_eq!(engine.slots(), before);
    engine.forget(&[dead(1, "gone", 5), dead(1, "gone", 5)]).unwrap();
    assert_eq!(
        (engine.get(slot(1), b"gone").unwrap(), engine.version(slot(1), b"gone").unwrap()),
        (None, None)
    );
    let left: Vec<_> = all(engine, slot(1), 10).into_iter().map(|(key, _)| key).collect();
    assert_eq!(left, ["kept", "old"]);
    assert_eq!(engine.stats(slot(1)), counted(engine, slot(1)));
    assert_eq!(engine.stats(slot(1)).keys, 2);
    assert_eq!(engine.stats(slot(2)).records, 1);
    engine.sync().unwrap();
    // Nothing is remembered of it: even what is older is new.
    assert_eq!(merge(engine, &[entry(1, "gone", 4, Some("v"))]), [Merged::Newer]);
    assert_eq!(engine.stats(slot(1)), counted(engine, slot(1)));
    engine.forget(&[dead(2, "gone", 5)]).unwrap();
    assert_eq!(engine.slots().iter().map(|(slot, _)| slot.acquired).collect::<Vec<_>>(), [1]);
    assert_eq!(engine.stats(slot(2)), SlotStats::default());
}

pub(crate) fn later_entries_of_a_batch_see_earlier_ones(engine: &dyn Engine) {
    let batch = [
        entry(1, "k", 5, Some("five")),
        entry(2, "k", 1, Some("elsewhere")),
        entry(1, "k", 4, Some("four")),
        entry(1, "k", 5, Some("five")),
        entry(1, "k", 6, None),
    ];
    let five = batch[0].record.version;
    let expected = [Merged::Newer, Merged::Newer, Merged::Older(five), Merged::Equal, Merged::Newer];
    assert_eq!(merge(engine, &batch), expected);
    assert_eq!(engine.get(slot(1), b"k").unwrap().as_ref(), Some(&batch[4].record));
    assert_eq!(engine.stats(slot(1)), counted(engine, slot(1)));
    assert_eq!(engine.stats(slot(1)).records, 1);
}

pub(crate) fn the_largest_keys_and_values_fit_and_larger_change_nothing(engine: &dyn Engine) {
    let large = "v".repeat(MAX_VALUE_BYTES);
    let key = vec![0xff; MAX_KEY_BYTES];
    let write = entry(1, &key, 1, Some(&large));
    merge(engine, std::slice::from_ref(&write));
    assert_eq!(engine.get(slot(1), &key).unwrap(), Some(write.record));
    assert_eq!(all(engine, slot(1), 10).len(), 1);
    let before = engine.stats(slot(1));
    let too_large = [entry(1, [0; MAX_KEY_BYTES + 1], 2, None), entry(1, "v", 2, Some(&(large + "v")))];
    for bad in too_large {
        let refused = engine.merge(&[entry(1, "fine", 2, Some("v")), bad]);
        assert!(matches!(refused, Err(StorageError::TooLarge { .. })));
        assert_eq!(engine.stats(slot(1)), before);
    }
}

pub(crate) fn stats_and_digest_follow_every_write(engine: &dyn Engine) {
    let value = proptest::option::of("[ab]{0,3}");
    let write = (0..2u64, "[xyz]{1,2}", 0..6u64, value);
    let batches = proptest::collection::vec(proptest::collection::vec(write, 1..6), 1..8);
    // Every case uses slots of its own, so that one engine serves them all.
    let fresh = Cell::new(1);
    let mut runner = TestRunner::new(Config { cases: 48, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&(batches, any::<bool>()), |(batches, drop_first)| {
        let base = fresh.replace(fresh.get() + 2);
        let mut model: BTreeMap<(u64, Bytes), Record> = BTreeMap::new();
        for batch in batches {
            let entries: Vec<_> = batch
                .iter()
                .map(|(which, key, hlc, value)| entry(base + which, key, *hlc, value.as_deref()))
                .collect();
            merge(engine, &entries);
            for Entry { slot, key, record, .. } in entries {
                let known = model.remove(&(slot.acquired, key.clone()));
                let winner = known.map_or(record.clone(), |known| known.merge(record));
                model.insert((slot.acquired, key), winner);
            }
        }
        if drop_first {
            engine.drop_slot(slot(base)).unwrap();
            model.retain(|(acquired, _), _| *acquired != base);
        }
        for acquired in base..base + 2 {
            let held = model.iter().filter(|((which, _), _)| *which == acquired);
            let expected: Vec<_> = held.map(|((_, key), record)| (key.clone(), record.clone())).collect();
            prop_assert_eq!(all(engine, slot(acquired), 20), expected.clone());
            prop_assert_eq!(engine.stats(slot(acquired)), counted(engine, slot(acquired)));
            let listed = engine.slots().iter().any(|(slot, _)| slot.acquired == acquired);
            prop_assert_eq!(listed, !expected.is_empty());
            if expected.is_empty() {
                prop_assert_eq!(engine.stats(slot(acquired)).parts.total(), Digest::default());
            }
        }
        Ok(())
    });
    outcome.unwrap();
}
