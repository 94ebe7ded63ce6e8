//! The disk engine against the conformance suite, a restart and damaged folders.

use super::*;
use crate::storage::engine::conformance::{self, all, counted, entry, slot};
use crate::storage::memory::MemoryEngine;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::fs;
use tempfile::TempDir;

fn fresh() -> (DiskEngine, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (DiskEngine::open(folder.path()).unwrap(), folder)
}

conformance::suite!(fresh());

#[test]
fn what_was_written_is_there_after_reopening_with_the_same_stats() {
    let (engine, folder) = fresh();
    engine.merge(&[entry(1, "a", 1, Some("one")), entry(2, "a", 2, Some("two"))]).unwrap();
    engine.merge(&[entry(1, "a", 3, None), entry(3, "a", 1, Some("dropped"))]).unwrap();
    engine.drop_slot(slot(3)).unwrap();
    engine.sync().unwrap();
    let before = engine.slots();
    drop(engine);
    let engine = DiskEngine::open(folder.path()).unwrap();
    assert_eq!(engine.slots(), before);
    assert_eq!(engine.newest_at_open(), 3);
    assert_eq!(engine.stats(slot(1)), counted(&engine, slot(1)));
    assert_eq!(engine.get(slot(1), b"a").unwrap(), Some(entry(1, "a", 3, None).record));
    assert_eq!(engine.get(slot(2), b"a").unwrap(), Some(entry(2, "a", 2, Some("two")).record));
    assert_eq!(all(&engine, slot(3), 100), []);
}

/// A copy of the files while the engine runs is what a killed process leaves behind.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn what_was_synced_is_there_after_a_crash_and_a_torn_tail_is_cut_off() {
    let (engine, folder) = fresh();
    engine.merge(&[entry(1, "a", 1, Some("synced"))]).unwrap();
    engine.sync().unwrap();
    let end = journal_end(folder.path());
    engine.merge(&[entry(1, "b", 1, Some("never synced")), entry(1, "c", 1, Some("nor this"))]).unwrap();
    let killed = tempfile::tempdir().unwrap();
    copy(folder.path(), killed.path());
    // Nothing of it was flushed, for nobody asked: this is what makes one sync serve many merges.
    assert_eq!(journal_end(killed.path()), end);
    engine.sync().unwrap();
    let whole = fs::read(folder.path().join("0.jnl")).unwrap();
    let whole_end = journal_end(folder.path());
    for torn in [end + 1, (end + whole_end) / 2, whole_end - 1] {
        let crashed = tempfile::tempdir().unwrap();
        copy(killed.path(), crashed.path());
        let mut journal = whole.clone();
        journal[torn..].fill(0);
        fs::write(crashed.path().join("0.jnl"), journal).unwrap();
        let after = DiskEngine::open(crashed.path()).unwrap();
        assert_eq!(after.stats(slot(1)).records, 1, "torn at {torn}");
        // The journal is written on behind the cut.
        after.merge(&[entry(1, "d", 1, Some("v"))]).unwrap();
        after.sync().unwrap();
        drop(after);
        let after = DiskEngine::open(crashed.path()).unwrap();
        assert_eq!(after.slots(), [(slot(1), counted(&after, slot(1)))]);
        assert_eq!(after.stats(slot(1)).records, 2);
    }
}

/// A journal of which a bit rotted is noticed, or costs nothing: that of a node that was killed, with nothing in it
/// that was not synced.
#[test]
fn no_synced_write_goes_missing_unnoticed_when_a_bit_of_the_journal_rots() {
    let (engine, folder) = fresh();
    let writes = 30;
    for n in 0..writes {
        engine.merge(&[entry(1, format!("{n}"), 1 + n, Some("some value"))]).unwrap();
        engine.sync().unwrap();
    }
    let whole = fs::read(folder.path().join("0.jnl")).unwrap();
    let mut missed = Vec::new();
    let end = journal_end(folder.path());
    for at in (0..end).step_by(29) {
        let crashed = tempfile::tempdir().unwrap();
        copy(folder.path(), crashed.path());
        let mut journal = whole[..end].to_vec();
        journal[at] ^= 1 << (at % 8);
        fs::write(crashed.path().join("0.jnl"), journal).unwrap();
        match DiskEngine::open(crashed.path()) {
            Ok(engine) => missed.extend((engine.stats(slot(1)).records != writes).then_some(at)),
            Err(error) => assert!(matches!(error, StorageError::Corrupt { .. }), "{error}"),
        }
    }
    assert_eq!(missed, [0; 0], "of {end}");
}

#[test]
fn a_note_of_what_is_synced_that_is_older_cut_or_gone_is_no_damage() {
    let (engine, folder) = fresh();
    let note = folder.path().join(synced::NAME);
    let write = |engine: &DiskEngine, key: &str| {
        engine.merge(&[entry(1, key, 1, None)]).unwrap();
        engine.sync().unwrap();
    };
    write(&engine, "a");
    let older = fs::read(&note).unwrap();
    write(&engine, "b");
    drop(engine);
    for (bytes, key) in [(Some(&older[..]), "c"), (Some(&older[..7]), "d"), (Some(&[][..]), "e"), (None, "f")]
    {
        match bytes {
            Some(bytes) => fs::write(&note, bytes).unwrap(),
            None => fs::remove_file(&note).unwrap(),
        }
        let engine = DiskEngine::open(folder.path()).unwrap();
        write(&engine, key);
        assert_eq!(fs::read(&note).unwrap().len(), 16);
    }
    assert_eq!(DiskEngine::open(folder.path()).unwrap().stats(slot(1)).records, 6);
}

fn journal_end(folder: &Path) -> usize {
    let journal = fs::read(folder.join("0.jnl")).unwrap();
    journal.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

#[test]
fn a_folder_that_is_open_already_is_in_use() {
    let (_engine, folder) = fresh();
    let error = DiskEngine::open(folder.path()).err().unwrap();
    assert!(matches!(error, StorageError::InUse { .. }), "{error}");
}

#[test]
fn a_folder_of_somebody_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.tex"), "").unwrap();
    let error = DiskEngine::open(folder.path()).err().unwrap();
    assert!(matches!(error, StorageError::Foreign { .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let other = tempfile::tempdir().unwrap();
    let database = Database::builder(other.path()).open().unwrap();
    database.keyspace("theirs", KeyspaceCreateOptions::default).unwrap();
    drop(database);
    let error = DiskEngine::open(other.path()).err().unwrap();
    assert!(matches!(error, StorageError::Foreign { .. }), "{error}");
}

#[test]
fn a_creation_that_was_cut_short_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("keyspaces")).unwrap();
    for name in ["lock", "0.jnl", "version"] {
        fs::write(folder.path().join(name), "").unwrap();
        DiskEngine::open(folder.path()).unwrap().merge(&[entry(1, "a", 1, None)]).unwrap();
        fs::remove_dir_all(folder.path()).unwrap();
        fs::create_dir(folder.path()).unwrap();
    }
}

#[test]
fn damage_is_reported_as_such() {
    let (engine, folder) = fresh();
    let writes: Vec<_> = (0..500).map(|i| entry(1, format!("{i}"), 1, Some("some value"))).collect();
    engine.merge(&writes).unwrap();
    engine.records.rotate_memtable_and_wait().unwrap();
    drop(engine);
    let damaged = |damage: &dyn Fn(&Path)| {
        let copied = tempfile::tempdir().unwrap();
        copy(folder.path(), copied.path());
        damage(copied.path());
        DiskEngine::open(copied.path()).err().expect("damage goes unnoticed")
    };
    let no_version = damaged(&|folder| fs::remove_file(folder.join("version")).unwrap());
    let bad_version = damaged(&|folder| fs::write(folder.join("version"), "nonsense").unwrap());
    let flipped = damaged(&|folder| {
        let tables = folder.join("keyspaces/1/tables");
        let table = fs::read_dir(tables).unwrap().next().unwrap().unwrap().path();
        let mut bytes = fs::read(&table).unwrap();
        bytes[200] ^= 1;
        fs::write(table, bytes).unwrap();
    });
    let no_table = damaged(&|folder| {
        let tables = folder.join("keyspaces/1/tables");
        fs::remove_file(fs::read_dir(tables).unwrap().next().unwrap().unwrap().path()).unwrap();
    });
    let no_keyspaces = damaged(&|folder| fs::remove_dir_all(folder.join("keyspaces")).unwrap());
    for error in [no_version, bad_version, flipped, no_table, no_keyspaces] {
        assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
    }
}

#[test]
fn after_one_failed_write_every_write_fails_and_reads_go_on() {
    let (engine, _folder) = fresh();
    engine.merge(&[entry(1, "a", 1, Some("v"))]).unwrap();
    let full = std::io::Error::from(ErrorKind::StorageFull);
    let error = engine.written::<()>("writing to", Err(full.into())).unwrap_err();
    assert!(matches!(error, StorageError::NoSpace { .. }), "{error}");
    let write = [entry(1, "b", 1, Some("v"))];
    assert!(matches!(engine.merge(&write), Err(StorageError::Poisoned { .. })));
    assert!(matches!(engine.sync(), Err(StorageError::Poisoned { .. })));
    assert!(matches!(engine.drop_slot(slot(1)), Err(StorageError::Poisoned { .. })));
    assert_eq!(engine.version(slot(1), b"a").unwrap(), Some(Version { hlc: 1, node: 1 }));
    assert_eq!(engine.stats(slot(1)).records, 1);
}

#[test]
fn a_large_slot_is_dropped_batch_by_batch() {
    let (engine, _folder) = fresh();
    let writes: Vec<_> = (0..2 * DROP_BATCH + 1).map(|i| entry(1, format!("{i}"), 1, Some("v"))).collect();
    engine.merge(&writes).unwrap();
    assert!(engine.drop_some(slot(1)).unwrap());
    assert_eq!(engine.stats(slot(1)).records as usize, DROP_BATCH + 1);
    assert_eq!(engine.stats(slot(1)), counted(&engine, slot(1)));
    engine.drop_slot(slot(1)).unwrap();
    assert_eq!(engine.slots(), []);
}

#[test]
fn heads_kept_in_memory_never_change_an_outcome() {
    let (all_fit, _folder) = fresh();
    let (mut few_fit, _other) = fresh();
    *few_fit.writing.get_mut().unwrap() = heads(6 * (HEAD_BYTES + SLOT_BYTES as u64 + 1));
    let oracle = MemoryEngine::new();
    let write = (0..2u64, "[a-h]", 0..6u64, proptest::option::of("[ab]{0,3}"));
    // An empty batch stands for a drop.
    let batches = proptest::collection::vec(proptest::collection::vec(write, 0..8), 1..30);
    let mut runner = TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&batches, |batches| {
        for batch in batches {
            let entries: Vec<_> = batch
                .iter()
                .map(|(which, key, hlc, value)| entry(*which, key, *hlc, value.as_deref()))
                .collect();
            let merged = oracle.merge(&entries).unwrap();
            if entries.is_empty() {
                oracle.drop_slot(slot(0)).unwrap();
            }
            let dead = |entry: &Entry| Dead {
                slot: entry.slot,
                token: entry.token,
                key: entry.key.clone(),
                version: entry.record.version,
            };
            // Some that are there, and some that something newer replaced.
            let dead: Vec<Dead> = entries.iter().step_by(3).map(dead).collect();
            oracle.forget(&dead).unwrap();
            for engine in [&all_fit, &few_fit] {
                prop_assert_eq!(&engine.merge(&entries).unwrap(), &merged);
                if entries.is_empty() {
                    engine.drop_slot(slot(0)).unwrap();
                }
                engine.forget(&dead).unwrap();
                prop_assert_eq!(engine.slots(), oracle.slots());
            }
        }
        Ok(())
    });
    outcome.unwrap();
    // Whatever was dropped or forgotten last.
    let more: Vec<_> = (b'a'..=b'h').map(|key| entry(1, [key], 9, None)).collect();
    for engine in [&all_fit, &few_fit] {
        engine.merge(&more).unwrap();
    }
    let kept = |engine: &DiskEngine| engine.writing.lock().unwrap().len();
    assert!(kept(&all_fit) > kept(&few_fit) && kept(&few_fit) > 0, "{} {}", kept(&all_fit), kept(&few_fit));
}
