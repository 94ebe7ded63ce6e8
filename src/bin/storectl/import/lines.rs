//! Reading lines, a chunk at a time.

use crate::TOOL;
use crate::common::{Exit, Failure, notice};
use crate::line::{self, Line};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Read};
use tokio::sync::mpsc::Sender;

/// The longest line, in bytes: a value of 1 MiB of which each byte is escaped, and a key.
const MAX_LINE_BYTES: u64 = 8 << 20;

/// A chunk has at most so many lines.
const CHUNK_LINES: usize = 1000;

/// And so many bytes, and a line.
const CHUNK_BYTES: u64 = 1 << 20;

/// So many broken lines are told one by one.
const TOLD: u64 = 20;

/// Between two lines.
#[derive(Serialize, Deserialize, Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// How many are before it.
    pub(super) lines: u64,
    /// How many bytes they have.
    pub(super) bytes: u64,
}

/// Lines whose keys all differ.
#[derive(Default)]
pub(super) struct Chunk {
    /// With their numbers, from 1 on.
    pub(super) lines: Vec<(u64, Line)>,
    /// Behind the last of them.
    pub(super) end: Place,
    /// So many among them were left out.
    pub(super) broken: u64,
    /// Why there are no more, if not because it is the end.
    pub(super) stop: Option<Failure>,
}

/// Reads from a place on until all is read, something is broken, or nobody takes any more.
pub(super) fn read(input: impl Read, from: Place, keep_going: bool, versions: bool, chunks: &Sender<Chunk>) {
    let mut input = BufReader::with_capacity(CHUNK_BYTES as usize, input);
    let (mut chunk, mut keys) = (Chunk { end: from, ..Chunk::default() }, HashSet::new());
    let (mut at, mut begun, mut told, mut text) = (from, from, 0, Vec::new());
    loop {
        // What follows may be long in coming: what there is goes first.
        let idle = input.buffer().is_empty();
        let full = chunk.lines.len() >= CHUNK_LINES || at.bytes - begun.bytes >= CHUNK_BYTES;
        if (idle || full) && at != begun {
            if chunks.blocking_send(std::mem::take(&mut chunk)).is_err() {
                return;
            }
            (chunk.end, begun) = (at, at);
            keys.clear();
        }
        let count = match next(&mut input, &mut text) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => {
                chunk.stop =
                    Some(Failure::new(Exit::Usage, format!("can't read line {}: {error}", at.lines + 1)));
                break;
            }
        };
        let number = at.lines + 1;
        match parsed(&text, count, versions) {
            Ok(Some(line)) => {
                if !keys.insert(line.key.clone()) {
                    if chunks.blocking_send(std::mem::take(&mut chunk)).is_err() {
                        return;
                    }
                    begun = at;
                    keys = HashSet::from([line.key.clone()]);
                }
                chunk.lines.push((number, line));
            }
            Ok(None) => {}
            Err(why) if keep_going => {
                chunk.broken += 1;
                told += 1;
                match told {
                    ..=TOLD => notice(TOOL, &format!("line {number} is left out: {why}")),
                    _ if told == TOLD + 1 => notice(TOOL, "further broken lines are only counted"),
                    _ => {}
                }
            }
            Err(why) => {
                chunk.stop = Some(Failure::new(Exit::Usage, format!("line {number}: {why}")));
                break;
            }
        }
        at = Place { lines: number, bytes: at.bytes + count };
        chunk.end = at;
    }
    let _nobody_waits = chunks.blocking_send(chunk);
}

/// The next line, without its end where that is too long; how many bytes it has in all.
fn next(input: &mut impl BufRead, text: &mut Vec<u8>) -> io::Result<u64> {
    text.clear();
    let read = input.take(MAX_LINE_BYTES + 1).read_until(b'\n', text)? as u64;
    match read > MAX_LINE_BYTES && !text.ends_with(b"\n") {
        true => Ok(read + input.skip_until(b'\n')? as u64),
        false => Ok(read),
    }
}

/// What a line says of so many bytes; nothing if it is empty.
fn parsed(text: &[u8], bytes: u64, versions: bool) -> Result<Option<Line>, String> {
    if bytes > MAX_LINE_BYTES {
        return Err(format!("it has {bytes} bytes, and at most {MAX_LINE_BYTES} make sense"));
    }
    let text = text.trim_ascii();
    match (text.is_empty(), versions) {
        (true, _) => Ok(None),
        (_, true) => match line::read(text)? {
            Line { version: None, .. } => Err("it has no `version`, which --only-newer needs".into()),
            line => Ok(Some(line)),
        },
        (_, false) => line::read(text).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    /// The chunks that it makes of this.
    fn chunks(text: &[u8], from: Place, keep_going: bool) -> Vec<Chunk> {
        let (sender, mut receiver) = mpsc::channel(1000);
        read(text, from, keep_going, false, &sender);
        drop(sender);
        std::iter::from_fn(|| receiver.blocking_recv()).collect()
    }

    fn numbers(chunk: &Chunk) -> Vec<u64> {
        chunk.lines.iter().map(|(number, _)| *number).collect()
    }

    fn text(keys: &[&str]) -> String {
        keys.iter().map(|key| format!("{{\"key\":\"{key}\",\"value\":\"\"}}\n")).collect()
    }

    #[test]
    fn keys_of_a_chunk_differ_and_places_are_behind_its_lines() {
        let text = text(&["a", "b", "a", "c", "a"]);
        let read = chunks(text.as_bytes(), Place::default(), false);
        let seen: Vec<_> =
            read.iter().map(|chunk| (numbers(chunk), chunk.end)).filter(|seen| !seen.0.is_empty()).collect();
        let place = |lines| Place { lines, bytes: 23 * lines };
        assert_eq!(text.len(), 5 * 23);
        assert_eq!(seen, [(vec![1, 2], place(2)), (vec![3, 4], place(4)), (vec![5], place(5))]);

        let rest = chunks(&text.as_bytes()[46..], place(2), false);
        let seen: Vec<_> = rest.iter().map(numbers).filter(|seen| !seen.is_empty()).collect();
        assert_eq!(seen, [vec![3, 4], vec![5]]);
        assert_eq!(rest.last().unwrap().end, place(5));
    }

    #[test]
    fn a_broken_line_ends_it_or_is_counted() {
        let text = text(&["a", "b"]) + "\n{\"key\":\n" + &text(&["c"]);
        let read = chunks(text.as_bytes(), Place::default(), false);
        let last = read.last().unwrap();
        let stop = last.stop.as_ref().unwrap();
        assert!(stop.message.starts_with("line 4: EOF") && stop.exit == Exit::Usage, "{stop:?}");
        assert_eq!((last.end.lines, numbers(last)), (3, vec![1, 2]));
        let read = chunks(text.as_bytes(), Place::default(), true);
        let lines: Vec<u64> = read.iter().flat_map(numbers).collect();
        assert_eq!((lines, read.iter().map(|chunk| chunk.broken).sum::<u64>()), (vec![1, 2, 5], 1));
        assert_eq!(read.last().unwrap().end, Place { lines: 5, bytes: text.len() as u64 });
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_one_without_an_end_counts() {
        let long = format!("{}\n{{\"key\":\"a\",\"value\":\"\"}}", "x".repeat(MAX_LINE_BYTES as usize + 9));
        let read = chunks(long.as_bytes(), Place::default(), true);
        assert_eq!(read.iter().flat_map(numbers).collect::<Vec<_>>(), [2]);
        assert_eq!(read.last().unwrap().end, Place { lines: 2, bytes: long.len() as u64 });
        let stopped = chunks(long.as_bytes(), Place::default(), false);
        assert!(
            stopped.last().unwrap().stop.as_ref().unwrap().message.contains("line 1: it has 8388618 bytes")
        );
    }

    #[test]
    fn a_chunk_is_bounded() {
        let keys: Vec<String> = (0..2500).map(|n| format!("{n}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let read = chunks(text(&keys).as_bytes(), Place::default(), false);
        let counts: Vec<_> = read.iter().map(|chunk| chunk.lines.len()).filter(|count| *count > 0).collect();
        assert_eq!(counts, [1000, 1000, 500]);
    }
}
