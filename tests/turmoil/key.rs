//! What is known of a key, and what a request for it may therefore be told.
//!
//! Each write has a version, and a delete is one whose value is absence. By versions, as it happens: an
//! acknowledged write is newer than all that was known when it began; a read that finds a value finds
//! that of its version, and none older than what was known. A read that finds nothing is not told which
//! version that is, so there has to be one that is absent and as new, or a write of which it isn't known. And in
//! the end by values alone, see [`linear`].
//!
//! What expires has keys of its own, which are checked by versions alone: a value is absent from a time
//! on which its version and its time to live tell. The clocks of all hosts are that of this process, which
//! knows nothing of simulated time: a simulated second is some milliseconds.

use crate::linear::{self, Operation, Verdict, What};
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};
use thrifty::client::Found;
use thrifty::core::record::Version;
use thrifty::core::ttl::Ttl;

/// How long the search for an order may take.
const MOST_STEPS: usize = 1_000_000;

/// A put of its number, or a delete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Write {
    /// No other write of the key has it.
    pub(crate) number: u64,
    pub(crate) deletes: bool,
}

impl Write {
    fn what(self) -> What {
        What::Write((!self.deletes).then_some(self.number))
    }
}

/// What was known when a request began.
#[derive(Clone, Copy)]
pub(crate) struct Begun {
    floor: Version,
    time: u64,
    wall_ms: u64,
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Key {
    /// Of all its values.
    ttl: Option<Ttl>,
    /// The newest version acknowledged or returned.
    floor: Version,
    /// The writes that were acknowledged or returned, by their versions.
    known: BTreeMap<Version, Write>,
    /// The numbers of writes that were refused: nothing was done.
    refused: Vec<u64>,
    /// The number of the last write sent.
    sent: u64,
    /// Writes under way or of unknown outcome, after which nothing may be found.
    vague: u64,
    /// What has ended so far, timed by its order.
    history: Vec<Operation>,
    time: u64,
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Key {
    pub(crate) fn new(ttl: Option<Ttl>) -> Self {
        Key { ttl, ..Key::default() }
    }

    pub(crate) fn ttl(&self) -> Option<Ttl> {
        self.ttl
    }

    fn time(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    pub(crate) fn begins(&mut self) -> Begun {
        Begun { floor: self.floor, time: self.time(), wall_ms: wall_ms() }
    }

    pub(crate) fn writes(&mut self, deletes: bool) -> (Write, Begun) {
        self.sent += 1;
        let write = Write { number: self.sent, deletes };
        self.vague += u64::from(self.hides(write));
        (write, self.begins())
    }

    /// Whether nothing may be found after this write.
    fn hides(&self, write: Write) -> bool {
        write.deletes || self.ttl.is_some()
    }

    fn ended(&mut self, begun: Begun, what: What) {
        let ended = Some(self.time());
        self.history.push(Operation { begun: begun.time, ended, what });
    }

    /// A version was acknowledged or returned.
    fn learn(&mut self, version: Version, write: Write, begun: Begun) -> Result<(), String> {
        let known = *self.known.entry(version).or_insert(write);
        self.floor = self.floor.max(version);
        if known != write || self.refused.contains(&write.number) || write.number > self.sent {
            return Err(format!(
                "{write:?} has {version:?}, which is known of {known:?}, and {:?} were refused",
                self.refused
            ));
        }
        if version < begun.floor {
            return Err(format!("{write:?} at {version:?} was found, {:?} was known before", begun.floor));
        }
        Ok(())
    }

    pub(crate) fn acknowledged(
        &mut self,
        write: Write,
        begun: Begun,
        version: Version,
    ) -> Result<(), String> {
        self.vague -= u64::from(self.hides(write));
        self.ended(begun, write.what());
        if version == begun.floor {
            return Err(format!("{write:?} was given {version:?}, which was known before"));
        }
        self.learn(version, write, begun)
    }

    pub(crate) fn unknown(&mut self, write: Write, begun: Begun) {
        self.history.push(Operation { begun: begun.time, ended: None, what: write.what() });
    }

    /// Nothing was done, it was said.
    pub(crate) fn refused(&mut self, write: Write) -> Result<(), String> {
        self.vague -= u64::from(self.hides(write));
        self.refused.push(write.number);
        match self.known.iter().find(|(_, known)| known.number == write.number) {
            Some((version, _)) => Err(format!("{write:?} was refused, and found before at {version:?}")),
            None => Ok(()),
        }
    }

    /// A read found the value of this number.
    pub(crate) fn found(&mut self, number: u64, found: &Found, begun: Begun) -> Result<(), String> {
        self.ended(begun, What::Read(Some(number)));
        let end = self.end(found.version);
        if found.expires_at_ms != end {
            return Err(format!("{number} ends at {:?} rather than at {end:?}", found.expires_at_ms));
        }
        if end.is_some_and(|end| end <= begun.wall_ms) {
            return Err(format!("{number} was found at {}, it ended at {end:?}", begun.wall_ms));
        }
        self.learn(found.version, Write { number, deletes: false }, begun)
    }

    /// When a value of this version expires, in milliseconds since 1970.
    fn end(&self, version: Version) -> Option<u64> {
        self.ttl.map(|ttl| ttl.expires_at_ms(version.wall_ms()))
    }

    /// A read found nothing.
    pub(crate) fn nothing(&mut self, begun: Begun) -> Result<(), String> {
        self.ended(begun, What::Read(None));
        if begun.floor == Version::ABSENT || self.vague > 0 {
            return Ok(());
        }
        let now = wall_ms();
        let absent = |(version, write): &(&Version, &Write)| {
            write.deletes || self.end(**version).is_some_and(|end| end <= now)
        };
        // All that are absent are known: it was this one, or a newer one.
        let Some((version, _)) = self.known.range(begun.floor..).find(absent) else {
            return Err(format!("nothing was found, {:?} was known before", begun.floor));
        };
        self.floor = self.floor.max(*version);
        Ok(())
    }

    /// Whether some order of what has happened explains it.
    pub(crate) fn judge(&self) -> Result<(), String> {
        if self.ttl.is_some() {
            return Ok(());
        }
        match linear::check(&self.history, MOST_STEPS) {
            Verdict::Linearizable => Ok(()),
            Verdict::Not => Err(format!("no order explains {:?}", self.history)),
            Verdict::Undecided => Err(format!("too long to find an order of {:?}", self.history)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use thrifty::core::clock::at_ms;
    use thrifty::core::quorum::Consistency;

    fn at(hlc: u64) -> Version {
        Version { hlc, node: 1 }
    }

    fn found(version: Version, expires_at_ms: Option<u64>) -> Found {
        let (value, content_type, consistency) = (Bytes::new(), String::new(), Consistency::Quorum);
        Found { value, version, content_type, expires_at_ms, consistency }
    }

    #[test]
    fn nothing_may_be_found_where_a_delete_explains_it_and_nothing_older_after_that() {
        let mut key = Key::new(None);
        let begun = key.begins();
        key.nothing(begun).unwrap();
        let (put, begun) = key.writes(false);
        key.acknowledged(put, begun, at(1)).unwrap();
        let begun = key.begins();
        assert!(key.nothing(begun).is_err());

        let early = key.begins();
        let (delete, begun) = key.writes(true);
        let meanwhile = key.begins();
        key.nothing(meanwhile).unwrap();
        key.acknowledged(delete, begun, at(2)).unwrap();
        key.found(1, &found(at(1), None), early).unwrap();
        let late = key.begins();
        assert!(key.found(1, &found(at(1), None), late).is_err(), "it is deleted");
    }

    #[test]
    fn what_a_read_did_not_find_raises_what_is_known() {
        let mut key = Key::new(None);
        let (put, begun) = key.writes(false);
        let read = key.begins();
        key.acknowledged(put, begun, at(1)).unwrap();
        let (delete, begun) = key.writes(true);
        key.acknowledged(delete, begun, at(2)).unwrap();
        key.floor = at(1);
        key.nothing(Begun { floor: at(1), ..read }).unwrap();
        assert_eq!(key.floor, at(2));
    }

    #[test]
    fn a_write_was_not_refused_if_it_is_found_earlier_or_later() {
        let mut key = Key::new(None);
        let (put, _) = key.writes(false);
        let read = key.begins();
        key.found(put.number, &found(at(1), None), read).unwrap();
        assert!(key.refused(put).is_err());
        let (put, _) = key.writes(false);
        key.refused(put).unwrap();
        let read = key.begins();
        assert!(key.found(put.number, &found(at(2), None), read).is_err());
    }

    #[test]
    fn by_values_alone_a_delete_that_was_refused_explains_nothing() {
        let mut key = Key::new(None);
        let (put, begun) = key.writes(false);
        key.acknowledged(put, begun, at(1)).unwrap();
        let (delete, _) = key.writes(true);
        let read = key.begins();
        key.nothing(read).unwrap();
        key.refused(delete).unwrap();
        assert!(key.judge().is_err());
    }

    #[test]
    fn what_expires_is_found_until_it_does_and_not_after_it() {
        let ttl = Ttl::from_ms(1_000_000).unwrap();
        let mut key = Key::new(Some(ttl));
        let now = wall_ms();
        let (put, begun) = key.writes(false);
        key.acknowledged(put, begun, at(at_ms(now))).unwrap();
        let read = key.begins();
        assert!(key.nothing(read).is_err(), "it is too early");
        assert!(key.found(put.number, &found(at(at_ms(now)), None), read).is_err(), "another end");
        let ends = Some(now + 1_000_000);
        key.found(put.number, &found(at(at_ms(now)), ends), read).unwrap();
        let late = Begun { wall_ms: now + 1_000_000, ..read };
        assert!(key.found(put.number, &found(at(at_ms(now)), ends), late).is_err(), "it is too late");

        let (long_ago, mut key) = (at(at_ms(now - 2_000_000)), Key::new(Some(ttl)));
        let (put, begun) = key.writes(false);
        key.acknowledged(put, begun, long_ago).unwrap();
        let read = key.begins();
        key.nothing(read).unwrap();
    }
}
