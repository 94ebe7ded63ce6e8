//! `storectl import`: stores what lines of JSON say, as `storectl export` writes them.
//!
//! A thread reads lines into chunks whose keys all differ, and a few chunks are on their way to the ring at once,
//! none of which shares a key with another: so of two lines about one key the later one wins. Chunks count as
//! stored in their order, and up to where they are is what is noted and told.

mod lines;
mod sending;

use crate::args::Target;
use crate::common::options::Care;
use crate::common::{self, Exit, Failure};
use crate::progress::Progress;
use crate::{TOOL, note};
use bytes::Bytes;
use clap::Args;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use lines::{Chunk, Place};
use sending::{Sent, Tally, Trouble};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thrifty::client::Client;
use thrifty::core::layout::Layout;
use thrifty::core::quorum::Consistency;
use tokio::sync::mpsc;

/// How often somebody looks whether progress is to be shown.
const LOOK: Duration = Duration::from_millis(100);

/// So many of the last bytes that were stored tell whether a file is still the same.
const TAIL_BYTES: u64 = 4096;

const NOTES: &str = r#"Examples:
  storectl import all.jsonl
  storectl import all.jsonl --resume                    goes on where it was interrupted, if it was
  gunzip < all.jsonl.gz | storectl import -
  storectl import --keep-going all.jsonl                leave broken lines out, and tell how many
  storectl import --only-newer all.jsonl                don't put back what was written since the export
  echo '{"key":"a","value":"apple"}' | storectl import

Lines are as `storectl export --help` describes them; empty ones count and say nothing. expires_at_ms
becomes what is left of the time to live; what has expired is left out and counted. Each value is stored
as a new write, with a new version: none can be stored under the one that it had. It changes nothing to
store a line again, so what fails or ends with an unknown outcome is sent again. But what others write
under the same keys meanwhile may be overwritten. --only-newer asks before it writes, and spares what is
as new as the line's version; what was deleted since comes back, and what is written just in between is
overwritten. At a broken line it stops: all before it are stored, and none behind it. How far it is
stands in FILE.imported until all is done.

Exit codes: 0 all stored, 2 wrong usage or a broken line, 3 unavailable, 4 broken lines were left out
(--keep-going), or FILE is not what was interrupted, 5 outcome unknown. It says up to which line all is
stored."#;

/// What to import, and how.
#[derive(Args, Clone, Debug)]
#[command(after_help = NOTES)]
pub(crate) struct Import {
    /// The file to read; `-`, and without it, stdin
    #[arg(default_value = "-", hide_default_value = true)]
    file: PathBuf,

    /// Go on with an import of FILE that was interrupted
    #[arg(long)]
    resume: bool,

    /// Leave broken lines out, rather than to stop at the first
    #[arg(long)]
    keep_going: bool,

    /// Leave out what is as new in the ring already; needs lines with a version
    #[arg(long)]
    only_newer: bool,

    /// How many batches are on their way at once
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    concurrency: u8,

    #[command(flatten)]
    care: Care,

    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

/// What is noted.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    ring: String,
    place: Place,
    /// Of the bytes before the place.
    crc32: u32,
    tally: Tally,
}

/// The file that is read, for what is noted of it.
struct Source {
    file: File,
    note_path: PathBuf,
    ring: String,
}

/// How far an import is.
struct State {
    /// Up to where all is stored.
    place: Place,
    tally: Tally,
    achieved: Option<Consistency>,
    stopped: Option<Failure>,
}

impl Import {
    /// Imports, and says how much.
    pub(crate) async fn run(&self, target: &Target) -> Result<(), Failure> {
        let stdin = self.file == Path::new("-");
        if stdin && self.resume {
            let message = "only a FILE can be gone on with: of stdin, send the lines that are not yet stored";
            return Err(Failure::new(Exit::Usage, message));
        }
        let file = if stdin { None } else { Some(self.open()?) };
        let client = target.store(&self.care).await?;
        let mut state =
            State { place: Place::default(), tally: Tally::default(), achieved: None, stopped: None };
        let mut source = None;
        let input: Box<dyn Read + Send> = match file {
            None => Box::new(io::stdin()),
            Some(file) => {
                let note_path = note::beside(&self.file, ".imported");
                if self.resume
                    && let Some(noted) = note::read::<Note>(&note_path)?
                {
                    self.must_fit(&noted, &file, &client.layout())?;
                    (state.place, state.tally) = (noted.place, noted.tally);
                }
                source = Some(Source { file, note_path, ring: client.layout().ring.to_string() });
                // One of its own: two that are cloned share the place where they are.
                let mut input = self.open()?;
                let there = input.seek(SeekFrom::Start(state.place.bytes));
                there.map_err(|error| self.unreadable(&error))?;
                Box::new(input)
            }
        };
        let length = source.as_ref().and_then(|source| source.file.metadata().ok()).map(|file| file.len());
        let (sender, chunks) = mpsc::channel(1);
        let (place, keep_going, only_newer) = (state.place, self.keep_going, self.only_newer);
        std::thread::spawn(move || lines::read(input, place, keep_going, only_newer, &sender));
        self.store(&client, chunks, &mut state, source.as_ref(), length).await;
        self.told(state, source.as_ref())
    }

    fn open(&self) -> Result<File, Failure> {
        File::open(&self.file).map_err(|error| self.unreadable(&error))
    }

    fn unreadable(&self, error: &io::Error) -> Failure {
        Failure::new(Exit::Usage, format!("can't read {}: {error}", self.file.display()))
    }

    /// Whether what is noted is of this file and this ring.
    fn must_fit(&self, noted: &Note, file: &File, layout: &Layout) -> Result<(), Failure> {
        let of_ring = layout.former.iter().chain([&layout.ring]).any(|ring| ring.to_string() == noted.ring);
        let same = tail(file, noted.place.bytes).is_ok_and(|crc32| crc32 == noted.crc32);
        let why = match (of_ring, same) {
            (false, _) => format!("it went to another ring, {:.8}", noted.ring),
            (_, false) => "what was stored of it has changed".into(),
            _ => return Ok(()),
        };
        let message =
            format!("can't go on with {}: {why}; without --resume it begins anew", self.file.display());
        Err(Failure::new(Exit::Conflict, message))
    }

    /// Stores chunks until there are no more, or something fails.
    async fn store(
        &self,
        client: &Client,
        mut chunks: mpsc::Receiver<Chunk>,
        state: &mut State,
        source: Option<&Source>,
        length: Option<u64>,
    ) {
        let part = |place: Place| length.map(|length| place.bytes as f64 / length.max(1) as f64);
        let (mut progress, trouble) = (Progress::new("import", length.is_some()), Trouble::default());
        let (before, begun, mut noted) = (state.tally.stored, state.place, None);
        let (mut under_way, mut keys) = (FuturesOrdered::new(), HashSet::<Bytes>::new());
        let (mut waiting, mut ended) = (None::<Chunk>, false);
        let mut look = tokio::time::interval(LOOK);
        loop {
            let apart = |chunk: &Chunk| chunk.lines.iter().all(|(_, line)| !keys.contains(&line.key));
            let room = under_way.len() < usize::from(self.concurrency);
            if let Some(chunk) = waiting.take_if(|chunk| room && (under_way.is_empty() || apart(chunk))) {
                keys.extend(chunk.lines.iter().map(|(_, line)| line.key.clone()));
                under_way.push_back(sending::send(client, chunk, self.only_newer, &trouble));
            }
            if under_way.is_empty() && waiting.is_none() && (ended || state.stopped.is_some()) {
                return;
            }
            tokio::select! {
                chunk = chunks.recv(), if waiting.is_none() && !ended => {
                    ended = chunk.is_none();
                    waiting = chunk;
                }
                Some(sent) = under_way.next(), if !under_way.is_empty() => {
                    sent.keys.iter().for_each(|key| _ = keys.remove(key));
                    state.take(sent);
                    if state.stopped.is_some() {
                        (waiting, ended) = (None, true);
                    }
                }
                _ = look.tick() => {
                    progress.at(state.tally.stored - before, part(state.place), trouble.borrow().as_deref());
                    if let Some(source) = source && state.place != begun && note::is_due(noted) {
                        noted = Some(Instant::now());
                        source.note_down(state);
                    }
                }
            }
        }
    }

    /// How it ended.
    fn told(&self, state: State, source: Option<&Source>) -> Result<(), Failure> {
        if let Some(achieved) = state.achieved {
            self.care.check(TOOL, "stored", achieved);
        }
        let State { place, tally, .. } = state;
        if let Some(Failure { exit, message }) = &state.stopped {
            let lines = place.lines;
            let how = match source {
                Some(source) if source.note_down(&state) => "go on with --resume",
                Some(_) => "what is stored may be stored again",
                None => "send those behind them again",
            };
            let so_far = if lines == 1 { "line 1 is".into() } else { format!("lines up to {lines} are") };
            let so_far = if lines == 0 { "nothing before it is".into() } else { so_far };
            return Err(Failure::new(*exit, format!("{message}; {so_far} stored: {how}")));
        }
        if let Some(source) = source {
            let _as_good = note::remove(&source.note_path);
        }
        match self.json {
            true => common::print(json!(tally))?,
            false => common::print(tally)?,
        }
        match tally.broken {
            0 => Ok(()),
            1 => Err(Failure::new(Exit::Conflict, "one line was broken and left out")),
            broken => Err(Failure::new(Exit::Conflict, format!("{broken} lines were broken and left out"))),
        }
    }
}

impl State {
    /// Takes in what became of the chunk that comes next.
    fn take(&mut self, sent: Sent) {
        if let Some(achieved) = sent.achieved {
            self.achieved = Some(self.achieved.map_or(achieved, |least| least.min(achieved)));
        }
        if self.stopped.is_none() {
            self.stopped = sent.failure;
            if !sent.failed {
                self.place = sent.end;
                self.tally.add(&sent.tally);
            }
        }
    }
}

impl Source {
    /// Notes how far it is; `false` where that can't be.
    fn note_down(&self, state: &State) -> bool {
        let (place, tally, ring) = (state.place, state.tally, self.ring.clone());
        let written = tail(&self.file, place.bytes)
            .and_then(|crc32| note::write(&self.note_path, &Note { ring, place, crc32, tally }));
        written.is_ok()
    }
}

/// What tells a file's bytes before a place from others: of the last of them.
fn tail(mut file: &File, end: u64) -> io::Result<u32> {
    let begin = end.saturating_sub(TAIL_BYTES);
    let mut bytes = vec![0; (end - begin) as usize];
    file.seek(SeekFrom::Start(begin))?;
    file.read_exact(&mut bytes)?;
    Ok(crc32fast::hash(&bytes))
}
