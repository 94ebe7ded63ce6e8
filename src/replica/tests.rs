//! What threads that share a replica can do to each other. The rest is the simulator's.

use super::*;
use crate::core::clock::Stamp;
use crate::core::layout::tests::ring_of;
use crate::core::record::{MAX_CONTENT_TYPE_BYTES, Record, Version};
use crate::storage::engine::Dead;
use crate::storage::simulated::SimulatedEngine;
use std::ops::Bound;
use std::sync::{Barrier, OnceLock};

/// An engine whose next merge can be held up before it does anything.
#[derive(Default)]
struct Gated {
    engine: SimulatedEngine,
    /// Waited at twice: when the merge has arrived, and until it may go on.
    gate: OnceLock<Arc<Barrier>>,
}

impl Engine for Gated {
    fn get(&self, slot: Slot, key: &[u8]) -> Result<Option<Record>, StorageError> {
        self.engine.get(slot, key)
    }

    fn version(&self, slot: Slot, key: &[u8]) -> Result<Option<Version>, StorageError> {
        self.engine.version(slot, key)
    }

    fn merge(&self, entries: &[Entry]) -> Result<Vec<Merged>, StorageError> {
        if let Some(gate) = self.gate.get() {
            gate.wait();
            gate.wait();
        }
        self.engine.merge(entries)
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.engine.sync()
    }

    fn scan(
        &self,
        slot: Slot,
        from: Bound<&[u8]>,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Record)>, StorageError> {
        self.engine.scan(slot, from, max_bytes)
    }

    fn drop_slot(&self, slot: Slot) -> Result<(), StorageError> {
        self.engine.drop_slot(slot)
    }

    fn forget(&self, dead: &[Dead]) -> Result<(), StorageError> {
        self.engine.forget(dead)
    }

    fn slots(&self) -> Vec<(Slot, SlotStats)> {
        self.engine.slots()
    }

    fn stats(&self, slot: Slot) -> SlotStats {
        self.engine.stats(slot)
    }

    fn newest_at_open(&self) -> Stamp {
        self.engine.newest_at_open()
    }

    fn needs_sync(&self) -> bool {
        true
    }
}

fn alone() -> Replica<Gated> {
    let layout = Arc::new(ring_of(1, 1, 8));
    Replica::new(NodeId(1), Gated::default(), layout, Clock::resume(0)).unwrap()
}

fn ask(replica: &Replica<Gated>, key: &'static str, ask: Ask) -> Handled {
    let request = Request { epoch: replica.layout().epoch, key: key.into(), ask };
    replica.handle(&[request]).unwrap().remove(0)
}

fn written(hlc: u64) -> Record {
    Record::value(Version { hlc, node: 1 }, "v")
}

/// A pulled page with this one record.
fn absorb(replica: &Replica<Gated>, key: &'static str, record: Record) -> Result<u64, Refusal> {
    let layout = replica.layout();
    let slot = layout.slot(NodeId(1), layout.segment(key.as_bytes())).unwrap();
    let page = Page { records: vec![(key.into(), record)], last: true, clock: 0 };
    replica.absorb(layout.epoch, slot, page)
}

#[test]
fn a_sync_does_not_cover_a_merge_that_is_still_on_its_way_into_the_engine() {
    let replica = alone();
    let gate = Arc::new(Barrier::new(2));
    replica.engine.gate.set(gate.clone()).unwrap();
    std::thread::scope(|scope| {
        let merging = scope.spawn(|| absorb(&replica, "k", written(5)));
        gate.wait();
        replica.sync().unwrap();
        gate.wait();
        merging.join().unwrap().unwrap();
    });
    assert_eq!(replica.engine.engine.unsynced(), 1);
    let answer = ask(&replica, "k", Ask::Read);
    assert!(matches!(answer, Handled::AfterSync(Answer::Record(Some(_)))), "{answer:?}");
    replica.sync().unwrap();
    assert_eq!(ask(&replica, "k", Ask::Version), Handled::Now(Answer::Version(written(5).version)));
    assert!(replica.unsynced().notes.is_empty() && replica.unsynced().merging.is_empty());
}

#[test]
fn a_write_that_no_engine_stores_is_left_unanswered_and_the_others_are_done() {
    let replica = alone();
    let write = |key: &'static str, record| Request {
        epoch: replica.layout().epoch,
        key: key.into(),
        ask: Ask::Write(record),
    };
    let content_type = "x".repeat(MAX_CONTENT_TYPE_BYTES + 1);
    let long = Record { content_type, ..Record::tombstone(written(7).version) };
    let handled =
        replica.handle(&[write("a", written(5)), write("b", long), write("c", written(6))]).unwrap();
    let accepted = |hlc| Handled::AfterSync(Answer::Accepted(written(hlc).version));
    assert_eq!(handled, [accepted(5), Handled::Now(Answer::Silence), accepted(6)]);
    assert_eq!(ask(&replica, "b", Ask::Read), Handled::Now(Answer::Record(None)));
}

#[test]
fn a_full_disk_takes_no_pulled_page_until_there_is_room() {
    let replica = alone();
    replica.set_full(true);
    assert!(matches!(absorb(&replica, "k", written(5)), Err(Refusal::Full)));
    assert_eq!(ask(&replica, "k", Ask::Write(written(5))), Handled::Now(Answer::NoSpace));
    let back = ask(&replica, "read", Ask::WriteBack(written(5)));
    assert_eq!(back, Handled::AfterSync(Answer::Accepted(written(5).version)), "a read goes on");
    assert_eq!(ask(&replica, "k", Ask::Read), Handled::Now(Answer::Record(None)));
    assert!(replica.set_full(false));
    let newer = [5, 5, 4].map(|hlc| absorb(&replica, "k", written(hlc)).unwrap());
    assert_eq!(newer, [1, 0, 0]);
    assert_eq!(absorb(&replica, "k", Record::tombstone(written(6).version)).unwrap(), 0, "it is no value");
}

#[test]
fn a_page_has_all_of_a_prefix_and_says_where_it_ends() {
    let layout = Arc::new(ring_of(1, 1, 1));
    let replica = Replica::new(NodeId(1), Gated::default(), layout.clone(), Clock::resume(0)).unwrap();
    for key in ["a", "b", "ba", "bb", "bc", "c"] {
        ask(&replica, key, Ask::Write(written(5)));
    }
    let page = |prefix: &'static str, after: &'static str, max_bytes, keys_only| {
        let (prefix, after) = (prefix.into(), after.into());
        let stretch = Stretch { segment: Segment(0), prefix, after, keys_only, max_bytes };
        let (page, now) = match ask(&replica, "", Ask::Page(stretch.clone())) {
            Handled::Now(Answer::Page(page)) => (page, true),
            Handled::AfterSync(Answer::Page(page)) => (page, false),
            other => panic!("{other:?}"),
        };
        assert!(page.is_of(&stretch), "{page:?}");
        let keys: Vec<String> =
            page.records.iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect();
        (keys.join(" "), page.last, now, page.bytes() - keys.concat().len())
    };
    assert_eq!(page("", "", 1 << 20, false), ("a b ba bb bc c".into(), true, false, 6));
    replica.sync().unwrap();
    assert_eq!(page("b", "", 1 << 20, false), ("b ba bb bc".into(), true, true, 4));
    assert_eq!(page("b", "", 0, true), ("b".into(), false, true, 0));
    assert_eq!(page("b", "bb", 0, true), ("bc".into(), true, true, 0));
    assert_eq!(page("b", "bc", 0, true), (String::new(), true, true, 0));
    assert_eq!(page("b", "a", 0, true), ("b".into(), false, true, 0));
    assert_eq!(page("bd", "", 1 << 20, true), (String::new(), true, true, 0));
    assert_eq!(page("", "c", 1 << 20, true), (String::new(), true, true, 0));
    ask(&replica, "bb", Ask::Write(written(6)));
    assert!(!page("b", "ba", 1 << 20, true).2, "it names what isn't durable");
    assert!(page("c", "", 1 << 20, true).2, "this doesn't");
}
