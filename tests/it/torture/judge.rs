//! Holds a history against the promise: linearizable keys, and no acknowledged write missing.
//!
//! The versions in the answers name the order that the ring claims for the writes of a key. So
//! there is nothing to search for: that order must only fit the times.

use crate::torture::history::show;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::io::BufRead;
use thrifty::core::record::Version;

/// Findings that are told; more would help nobody.
const MANY: usize = 20;

/// What a history comes to.
#[derive(Default, Debug)]
pub(crate) struct Verdict {
    /// Writes and deletes that were acknowledged.
    pub(crate) acknowledged: u64,
    /// The deletes among them.
    pub(crate) deletes: u64,
    /// Those of which nothing was done.
    pub(crate) failed: u64,
    /// Those of which nobody knows, the ring's own answers aside.
    pub(crate) unknown: u64,
    /// How many of these came to light.
    pub(crate) came_to_light: u64,
    /// Reads that were answered.
    pub(crate) reads: u64,
    /// Keys with an acknowledged write.
    pub(crate) keys: u64,
    /// Those of them that were read after everything had healed.
    pub(crate) read_back: u64,
    /// What must not be, the first of it.
    pub(crate) wrong: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Open,
    Ok,
    Fail,
    Unknown,
}

/// A write, or a delete.
struct Write {
    key: usize,
    /// The newest that was known when it began.
    floor: Version,
    outcome: Outcome,
    /// Once it is known.
    version: Option<Version>,
}

#[derive(Default)]
struct Key {
    name: String,
    /// The newest that was acknowledged or read.
    newest: Version,
    /// The newest delete that was acknowledged, and those of which one doesn't know.
    deleted: Version,
    perhaps_deleted: BTreeSet<u64>,
    acknowledged: bool,
    read_back: bool,
}

#[derive(Default)]
struct Judge {
    keys: Vec<Key>,
    by_name: HashMap<String, usize>,
    /// By the value, which is its own for every write.
    writes: HashMap<u64, Write>,
    values: HashMap<(usize, Version), u64>,
    /// What was known when each read under way began.
    reads: HashMap<u64, Version>,
    healed: bool,
    verdict: Verdict,
}

/// Judges a history.
pub(crate) fn judge(history: impl BufRead) -> Verdict {
    let mut judge = Judge::default();
    for line in history.lines() {
        judge.line(&serde_json::from_str(&line.unwrap()).unwrap());
    }
    let missing: Vec<_> =
        judge.keys.iter().filter(|key| key.acknowledged && !key.read_back).map(|key| &key.name).collect();
    if let Some(first) = missing.first() {
        let what = format!("{} keys were not read back, such as {first}", missing.len());
        judge.verdict.wrong.push(what);
    }
    judge.verdict.keys = judge.keys.iter().filter(|key| key.acknowledged).count() as u64;
    judge.verdict.read_back =
        judge.keys.iter().filter(|key| key.acknowledged && key.read_back).count() as u64;
    judge.verdict.unknown +=
        judge.writes.values().filter(|write| write.outcome == Outcome::Open).count() as u64;
    judge.verdict
}

impl Judge {
    fn line(&mut self, line: &Value) {
        let kind = line["type"].as_str().unwrap();
        if kind == "note" {
            self.healed |= line["what"] == "healed";
            return;
        }
        let (id, key) = (line["id"].as_u64().unwrap(), self.key(line["key"].as_str().unwrap()));
        match (line["op"].as_str().unwrap(), kind) {
            (op @ ("write" | "delete"), "invoke") => {
                if op == "write" {
                    assert_eq!(line["value"], id.to_string(), "a write writes its own number");
                } else {
                    self.keys[key].perhaps_deleted.insert(id);
                }
                let floor = self.keys[key].newest;
                self.writes.insert(id, Write { key, floor, outcome: Outcome::Open, version: None });
            }
            ("read", "invoke") => {
                self.reads.insert(id, self.keys[key].newest);
            }
            (op @ ("write" | "delete"), "ok") => {
                if op == "delete" {
                    self.verdict.deletes += 1;
                    self.keys[key].perhaps_deleted.remove(&id);
                    self.keys[key].deleted = self.keys[key].deleted.max(version(line));
                }
                self.verdict.acknowledged += 1;
                self.end_write(id, Outcome::Ok);
                self.keys[key].acknowledged = true;
                self.seen(key, id, version(line));
            }
            ("write" | "delete", "unknown") => {
                self.verdict.unknown += 1;
                self.end_write(id, Outcome::Unknown);
            }
            ("write" | "delete", "fail") => {
                self.verdict.failed += 1;
                self.keys[key].perhaps_deleted.remove(&id);
                self.end_write(id, Outcome::Fail);
                if let Some(version) = self.writes[&id].version {
                    self.wrong(key, format!("write {id} failed and yet was read ({})", show(version)));
                }
            }
            ("read", "ok") => {
                self.verdict.reads += 1;
                let floor = self.reads.remove(&id).unwrap();
                self.keys[key].read_back |= self.healed;
                let of = &self.keys[key];
                let found = match line["value"].is_null() {
                    // One of these may be what it found.
                    true if !of.perhaps_deleted.is_empty() => floor,
                    true => of.deleted,
                    false => version(line),
                };
                if found < floor {
                    let what = format!(
                        "read {id} found {} ({}) where {} was known before",
                        line["value"],
                        show(found),
                        show(floor)
                    );
                    self.wrong(key, what);
                }
                if let Some(value) = line["value"].as_str() {
                    match value.parse() {
                        Ok(value) => self.seen(key, value, found),
                        Err(_) => self.wrong(key, format!("read {id} found {value:?}, which nobody wrote")),
                    }
                }
            }
            ("read", "fail") => {
                self.reads.remove(&id);
            }
            _ => panic!("not a line of a history: {line}"),
        }
    }

    fn key(&mut self, name: &str) -> usize {
        if let Some(key) = self.by_name.get(name) {
            return *key;
        }
        self.keys.push(Key { name: name.to_owned(), ..Key::default() });
        self.by_name.insert(name.to_owned(), self.keys.len() - 1);
        self.keys.len() - 1
    }

    fn end_write(&mut self, id: u64, outcome: Outcome) {
        self.writes.get_mut(&id).unwrap().outcome = outcome;
    }

    /// A value was read or acknowledged under a version.
    fn seen(&mut self, key: usize, value: u64, version: Version) {
        self.keys[key].newest = self.keys[key].newest.max(version);
        let shown = show(version);
        let Some(write) = self.writes.get_mut(&value).filter(|write| write.key == key) else {
            return self.wrong(key, format!("{value} ({shown}) was never written there"));
        };
        if write.outcome == Outcome::Fail {
            return self.wrong(key, format!("write {value} failed and yet was read ({shown})"));
        }
        if let Some(other) = write.version {
            if other != version {
                self.wrong(key, format!("write {value} has two versions, {} and {shown}", show(other)));
            }
            return;
        }
        write.version = Some(version);
        self.verdict.came_to_light += u64::from(write.outcome == Outcome::Unknown);
        if version <= write.floor {
            let floor = show(write.floor);
            self.wrong(key, format!("write {value} ({shown}) is older than what was there, {floor}"));
        }
        if let Some(other) = self.values.insert((key, version), value) {
            self.wrong(key, format!("version {shown} has two values, {other} and {value}"));
        }
    }

    fn wrong(&mut self, key: usize, what: String) {
        if self.verdict.wrong.len() < MANY {
            self.verdict.wrong.push(format!("{}: {what}", self.keys[key].name));
        }
    }
}

fn version(line: &Value) -> Version {
    let text = line["version"].as_str().unwrap();
    let (hlc, node) = text.split_once('-').unwrap();
    Version { hlc: u64::from_str_radix(hlc, 16).unwrap(), node: u64::from_str_radix(node, 16).unwrap() }
}

#[cfg(test)]
mod tests {
    use super::{Verdict, judge};

    /// Judges a history told in short: `1 write a`, `1 ok 5` (its version), `2 read a`,
    /// `2 ok 5 1` (version and value), `2 ok` (nothing), `1 fail`, `1 unknown`, `healed`; and `1 delete a`.
    fn told(story: &str) -> Verdict {
        let mut begun = std::collections::HashMap::new();
        let mut lines = String::new();
        for step in story.split(';').map(str::trim) {
            let words: Vec<&str> = step.split(' ').collect();
            if words == ["healed"] {
                lines += "{\"type\":\"note\",\"what\":\"healed\"}\n";
                continue;
            }
            let id: u64 = words[0].parse().unwrap();
            let mut line = match words[1] {
                op @ ("read" | "write" | "delete") => {
                    let line = serde_json::json!({"type": "invoke", "id": id, "op": op, "key": words[2],
                        "value": id.to_string()});
                    begun.insert(id, line.clone());
                    line
                }
                outcome => {
                    let mut line = begun[&id].clone();
                    line["type"] = outcome.into();
                    line
                }
            };
            if let Some(version) = words.get(2).and_then(|word| word.parse::<u64>().ok()) {
                line["version"] = format!("{version:x}-1").into();
            }
            if line["op"] == "read" {
                line["value"] = words.get(3).copied().into();
            }
            lines += &format!("{line}\n");
        }
        judge(lines.as_bytes())
    }

    #[track_caller]
    fn right(story: &str) {
        let wrong = told(story).wrong;
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[track_caller]
    fn wrong(story: &str, words: &str) {
        let wrong = told(story).wrong;
        assert!(wrong.len() == 1 && wrong[0].contains(words), "{words:?} is not all of {wrong:?}");
    }

    #[test]
    fn the_judge_lets_a_linearizable_history_pass() {
        right("1 write a; 1 ok 5; healed; 2 read a; 2 ok 5 1");
        right("1 read a; 1 ok; 2 write a; 2 fail; 3 read a; 3 ok");
        right("1 write a; 2 read a; 3 read a; 2 ok; 3 ok 5 1; 1 ok 5; healed; 4 read a; 4 ok 5 1");
        right("1 write a; 1 unknown; 2 read a; 2 ok; 3 read a; 3 ok 5 1");
        right("1 write a; 1 unknown; 2 write a; 2 ok 6; healed; 3 read a; 3 ok 6 2");
        right("1 write a; 1 ok 5; 2 delete a; 2 ok 6; healed; 3 read a; 3 ok");
        right("1 write a; 1 ok 5; 2 delete a; 3 read a; 3 ok; 2 ok 6; healed; 4 read a; 4 ok");
        right("1 write a; 1 ok 5; 2 delete a; 2 unknown; healed; 3 read a; 3 ok; 4 read a; 4 ok 5 1");
        let verdict = told("1 write a; 1 unknown; 2 write a; 3 read a; 3 ok 5 1");
        assert_eq!((verdict.unknown, verdict.came_to_light, verdict.acknowledged), (2, 1, 0));
    }

    #[test]
    fn the_judge_sees_what_must_not_be() {
        let stored = "1 write a; 1 ok 5; healed";
        wrong(stored, "1 keys were not read back");
        wrong(&format!("{stored}; 2 read a; 2 ok"), "where 0000000000000005-0000000000000001 was known");
        wrong(&format!("{stored}; 3 read b; 2 read a; 3 ok 4 1; 2 ok 5 1"), "b: 1 (0");
        wrong(&format!("{stored}; 2 read a; 2 ok 5 2"), "never written there");
        wrong(&format!("{stored}; 2 read a; 2 ok 6 1"), "two versions");
        wrong(&format!("{stored}; 2 read a; 2 ok 5 1; 3 write a; 3 ok 4"), "older than what was there");
        wrong("1 write a; 2 write a; 1 ok 5; 2 ok 5; healed; 3 read a; 3 ok 5 1", "two values");
        wrong("1 write a; 1 fail; 2 read a; 2 ok 5 1", "failed and yet");
        wrong("1 write a; 2 read a; 2 ok 5 1; 1 fail", "failed and yet");
        wrong("1 write a; 2 read a; 2 ok 5 1; 3 read a; 3 ok", "was known before");
        wrong("1 write a; 1 ok 5; 2 delete a; 2 ok 6; healed; 3 read a; 3 ok 5 1", "was known before");
        wrong("1 delete a; 1 ok 6; 2 write a; 2 ok 7; healed; 3 read a; 3 ok", "was known before");
        wrong("1 write a; 1 ok 5; 2 delete a; 2 fail; healed; 3 read a; 3 ok", "was known before");
        wrong(
            "1 write a; 1 ok 5; 2 delete a; 2 ok 4; healed; 3 read a; 3 ok 5 1",
            "older than what was there",
        );
    }
}
