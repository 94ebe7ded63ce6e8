//! Storing a chunk.

use super::lines::{Chunk, Place};
use crate::common::Failure;
use crate::common::text::now_ms;
use crate::line::Line;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fmt;
use std::time::Duration;
use thrifty::client::{Client, ClientError, Done, Item, PutOptions};
use thrifty::core::quorum::Consistency;
use thrifty::core::ttl::Ttl;

/// So often lines are sent that do not get through.
const TRIES: u32 = 7;

/// The pause after the first time. Each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// What became of lines.
#[derive(Serialize, Deserialize, Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Tally {
    /// They are in the ring.
    pub(super) stored: u64,
    /// Left out: what they say has expired.
    pub(super) expired: u64,
    /// Left out: the ring has something as new.
    pub(super) newer: u64,
    /// Left out: they make no sense.
    pub(super) broken: u64,
}

impl Tally {
    /// Both together.
    pub(super) fn add(&mut self, other: &Tally) {
        self.stored += other.stored;
        self.expired += other.expired;
        self.newer += other.newer;
        self.broken += other.broken;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { stored, expired, newer, broken: _ } = self;
        write!(f, "stored {stored} keys")?;
        if *expired > 0 {
            write!(f, ", left out {expired} that have expired")?;
        }
        if *newer > 0 {
            write!(f, ", left out {newer} that are as new in the ring")?;
        }
        Ok(())
    }
}

/// Why lines are being sent again, if some are.
pub(super) type Trouble = RefCell<Option<String>>;

/// What became of a chunk.
pub(super) struct Sent {
    /// Those it was about.
    pub(super) keys: Vec<Bytes>,
    /// Behind it.
    pub(super) end: Place,
    pub(super) tally: Tally,
    /// What was achieved for all that was stored.
    pub(super) achieved: Option<Consistency>,
    /// Why there it ends.
    pub(super) failure: Option<Failure>,
    /// And not all of the chunk is stored.
    pub(super) failed: bool,
}

/// Stores a chunk, if need be by sending its lines several times.
pub(super) async fn send(client: &Client, chunk: Chunk, only_newer: bool, trouble: &Trouble) -> Sent {
    let Chunk { lines, end, broken, stop } = chunk;
    let keys = lines.iter().map(|(_, line)| line.key.clone()).collect();
    let mut tally = Tally { broken, ..Tally::default() };
    let (achieved, failed) = match store(client, lines, only_newer, &mut tally, trouble).await {
        Ok(achieved) => (achieved, None),
        Err(failure) => (None, Some(failure)),
    };
    Sent { keys, end, tally, achieved, failed: failed.is_some(), failure: failed.or(stop) }
}

async fn store(
    client: &Client,
    mut lines: Vec<(u64, Line)>,
    only_newer: bool,
    tally: &mut Tally,
    trouble: &Trouble,
) -> Result<Option<Consistency>, Failure> {
    if only_newer {
        let get = |line: &Line| Some(Item::Get(line.key.clone()));
        let found = carried_out(client, &lines, get, trouble).await?;
        let as_new =
            |line: &Line, done| matches!(done, Done::Got(Some(found)) if Some(found.version) >= line.version);
        let all = lines.len();
        lines = lines
            .into_iter()
            .zip(found)
            .filter_map(|(line, done)| (!as_new(&line.1, done?)).then_some(line))
            .collect();
        tally.newer += (all - lines.len()) as u64;
    }
    let done = carried_out(client, &lines, put, trouble).await?;
    tally.expired += done.iter().filter(|done| done.is_none()).count() as u64;
    let written: Vec<Consistency> = done
        .into_iter()
        .filter_map(|done| match done? {
            Done::Written(written) => Some(written.consistency),
            Done::Got(_) => None,
        })
        .collect();
    tally.stored += written.len() as u64;
    Ok(written.into_iter().min())
}

/// What stores a line; `None` if what it says has expired.
fn put(line: &Line) -> Option<Item> {
    let ttl = match line.expires_at_ms {
        None => None,
        // What is to be kept for longer than anything may be is kept for as long as may be.
        Some(at) => Some(Ttl::from_ms(at.saturating_sub(now_ms()).min(Ttl::MOST.as_millis() as u64)).ok()?),
    };
    Some(Item::Put(
        line.key.clone(),
        line.value.clone(),
        PutOptions { ttl, content_type: line.content_type.clone(), ..PutOptions::default() },
    ))
}

/// Has a request of each line carried out; `None` of those that need none. It may be sent several times: it
/// changes nothing to do the same again.
async fn carried_out(
    client: &Client,
    lines: &[(u64, Line)],
    request: impl Fn(&Line) -> Option<Item>,
    trouble: &Trouble,
) -> Result<Vec<Option<Done>>, Failure> {
    let mut done: Vec<Option<Done>> = lines.iter().map(|_| None).collect();
    let mut left: Vec<usize> = (0..lines.len()).collect();
    let mut pause = FIRST_PAUSE;
    for tries in 1.. {
        let wanted = left.into_iter().filter_map(|at| Some((at, request(&lines[at].1)?)));
        let (places, items): (Vec<usize>, Vec<Item>) = wanted.unzip();
        let mut again = Vec::new();
        for (at, ended) in places.into_iter().zip(client.batch(items).await) {
            match ended {
                Ok(ended) => done[at] = Some(ended),
                Err(error) if tries == TRIES || is_final(&error) => {
                    let message = format!("line {}: {error}", lines[at].0);
                    return Err(Failure::new(Failure::from(error).exit, message));
                }
                Err(passes) => {
                    trouble.replace(Some(passes.to_string()));
                    again.push(at);
                }
            }
        }
        if again.is_empty() {
            trouble.take();
            break;
        }
        left = again;
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    Ok(done)
}

/// It would end like that again.
fn is_final(error: &ClientError) -> bool {
    !matches!(
        error,
        ClientError::Unavailable(_)
            | ClientError::Exhausted(_)
            | ClientError::OutcomeUnknown(_)
            | ClientError::NoNode(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_time_to_live_is_what_it_is_stored_with() {
        let line = |expires_at_ms| Line {
            key: "a".into(),
            value: "apple".into(),
            content_type: "text/plain".into(),
            expires_at_ms,
            version: None,
        };
        let ttl = |expires_at_ms| match put(&line(expires_at_ms)) {
            Some(Item::Put(_, _, options)) => Some(options.ttl.map(Ttl::as_ms)),
            _ => None,
        };
        assert_eq!(ttl(None), Some(None));
        assert_eq!((ttl(Some(0)), ttl(Some(now_ms() - 1))), (None, None));
        let left = ttl(Some(now_ms() + 60_000)).unwrap().unwrap();
        assert!((50_000..=60_000).contains(&left), "{left}");
        assert_eq!(ttl(Some(u64::MAX)), Some(Some(Ttl::MOST.as_millis() as u64)));
    }
}
