//! `storectl export`: keys and values as lines of JSON.
//!
//! To a file it writes `FILE.part` and, once a second, notes in `FILE.resume` how far that is: first the lines are
//! made durable, then the note of them. `--resume` cuts off what came after the note and goes on there. In the end
//! `FILE.part` becomes `FILE`, which so is always whole.

use crate::TOOL;
use crate::args::Target;
use crate::common::key::typed;
use crate::common::options::Care;
use crate::common::{self, Exit, Failure, Lines, text};
use crate::progress::Progress;
use crate::{line, note};
use bytes::Bytes;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, IsTerminal, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thrifty::client::{Client, ClientError, Scan, ScanOptions, Scanned};
use thrifty::core::layout::Layout;

/// How long it is tried where nobody has the next keys, on top of what a client tries by itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// Before it is tried again.
const PAUSE: Duration = Duration::from_millis(500);

const NOTES: &str = r#"Examples:
  storectl export > all.jsonl
  storectl export user/ --output users.jsonl            begun again, it begins anew
  storectl export --output all.jsonl --resume           goes on where it was interrupted, if it was
  storectl export | gzip > all.jsonl.gz

Each line is an object: key and value (key_base64 and value_base64 where they are not UTF-8); where
there are any, content_type and expires_at_ms (milliseconds since 1970); and with --versions, version.
A key that is there throughout comes once, others that come or go meanwhile once or not; each is at
least as new as it was when the export began. FILE appears when it is complete, and takes the place of
another one then; until then there are FILE.part and FILE.resume.

Exit codes: 0 all exported, 2 wrong usage, 3 unavailable or the disk is full (go on with --resume),
4 FILE.part is another export's."#;

/// What to export, and where to.
#[derive(Args, Clone, Debug)]
#[command(after_help = NOTES)]
pub(crate) struct Export {
    /// Only keys that begin so
    #[arg(default_value = "", hide_default_value = true, allow_negative_numbers = true)]
    prefix: String,

    /// PREFIX is written as `storectl ls` prints keys: \xff is a byte, \n a newline, \\ a backslash
    #[arg(long)]
    escaped: bool,

    /// The file to write; without it, stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Go on with an export to FILE that was interrupted
    #[arg(long, requires = "output")]
    resume: bool,

    /// With the version of each value
    #[arg(long)]
    versions: bool,

    #[command(flatten)]
    care: Care,
}

/// What is noted.
#[derive(Serialize, Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct Note {
    ring: String,
    prefix_base64: String,
    versions: bool,
    page_token_base64: String,
    /// Of `FILE.part`, that are durable and whole lines.
    bytes: u64,
    keys: u64,
}

impl Export {
    /// Exports, and says on stdout how many if that went to a file.
    pub(crate) async fn run(&self, target: &Target) -> Result<(), Failure> {
        let prefix = typed(&self.prefix, self.escaped)?;
        let client = target.store(&self.care).await?;
        let Some(path) = self.output.as_ref().filter(|path| path.as_os_str() != "-") else {
            return self.to_stdout(&client, prefix).await;
        };
        // What a link leads to is written, and the link stays.
        let path = &path.canonicalize().unwrap_or_else(|_none_yet| path.clone());
        let mut part = Part::open(path, self.fresh(&client, &prefix), self.resume, &client.layout())?;
        let page_token = text::from_base64(&part.note.page_token_base64);
        let page_token = page_token.map_err(|error| Failure::new(Exit::Conflict, error))?;
        let earlier = part.keys;
        let mut scan = client.scan(ScanOptions { prefix, page_token, ..ScanOptions::default() });
        self.to_file(&client, &mut scan, &mut part).await?;
        self.care.check(TOOL, "exported", scan.achieved());
        let keys = part.keys;
        part.finish(path).map_err(|error| unwritable(path, &error))?;
        let earlier = if earlier > 0 { format!(" ({earlier} of them earlier)") } else { String::new() };
        common::print(format!("exported {keys} keys to {}{earlier}", path.display()))
    }

    async fn to_stdout(&self, client: &Client, prefix: Bytes) -> Result<(), Failure> {
        let mut scan = client.scan(ScanOptions { prefix, ..ScanOptions::default() });
        let (mut lines, mut keys) = (Lines::new(), 0);
        let mut progress = Progress::new("export", !io::stdout().is_terminal());
        while let Some(found) = next(&mut scan, |why| progress.at(keys, None, Some(why))).await {
            let found = found?;
            if !lines.line(self.line(&found)?)? {
                return Ok(());
            }
            keys += 1;
            progress.at(keys, Some(part_of(client, &found.key)), None);
        }
        lines.flush()?;
        drop(progress);
        self.care.check(TOOL, "exported", scan.achieved());
        Ok(())
    }

    async fn to_file(&self, client: &Client, scan: &mut Scan<'_>, part: &mut Part) -> Result<(), Failure> {
        let (mut progress, before) = (Progress::new("export", true), part.keys);
        while let Some(found) = next(scan, |why| progress.at(part.keys - before, None, Some(why))).await {
            let found = found.map_err(|error| part.stopped(scan, error.into()))?;
            // Of what could not be written nothing may be noted: the scan is past it.
            part.add(&self.line(&found)?, scan).map_err(|error| {
                let Failure { exit, message } = unwritable(&part.path, &error);
                Failure::new(exit, format!("{message}: make room and go on with --resume"))
            })?;
            progress.at(part.keys - before, Some(part_of(client, &found.key)), None);
        }
        Ok(())
    }

    fn line(&self, found: &Scanned) -> Result<String, Failure> {
        line::write(found, self.versions).map_err(|error| Failure::new(Exit::Conflict, error.to_string()))
    }

    /// The note of an export that has just begun.
    fn fresh(&self, client: &Client, prefix: &[u8]) -> Note {
        Note {
            ring: client.layout().ring.to_string(),
            prefix_base64: text::base64(prefix),
            versions: self.versions,
            page_token_base64: String::new(),
            bytes: 0,
            keys: 0,
        }
    }
}

/// The next key. Where there is trouble that may pass, it says so again and again, and has some patience.
async fn next(scan: &mut Scan<'_>, mut trouble: impl FnMut(&str)) -> Option<Result<Scanned, ClientError>> {
    let begun = Instant::now();
    loop {
        match scan.next().await {
            Some(Err(ClientError::Unavailable(why) | ClientError::Exhausted(why)))
                if begun.elapsed() < PATIENCE =>
            {
                trouble(&why);
                tokio::time::sleep(PAUSE).await;
            }
            ended => return ended,
        }
    }
}

/// How far a scan of the ring is at this key: segments are scanned in order, and hold about the same.
fn part_of(client: &Client, key: &[u8]) -> f64 {
    let layout = client.layout();
    layout.segment(key).index() as f64 / layout.segments.get() as f64
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Unavailable, format!("can't write {}: {error}", path.display()))
}

/// A file that is being written.
struct Part {
    path: PathBuf,
    file: BufWriter<File>,
    /// Those that were written, not all of them noted.
    bytes: u64,
    keys: u64,
    note: Note,
    note_path: PathBuf,
    noted: Option<Instant>,
}

impl Part {
    /// Begins or goes on, as the one or other was asked for and is possible.
    fn open(file: &Path, fresh: Note, resume: bool, layout: &Layout) -> Result<Part, Failure> {
        let there = std::fs::metadata(file).ok();
        if let Some(other) = there.as_ref().filter(|there| !there.is_file()) {
            let what = if other.is_dir() { "a folder" } else { "no file" };
            let message = format!("{} is {what}: name a file to write, or - for stdout", file.display());
            return Err(Failure::new(Exit::Usage, message));
        }
        let (path, note_path) = (note::beside(file, ".part"), note::beside(file, ".resume"));
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let part = open.map_err(|error| Failure::new(Exit::Usage, unwritable(&path, &error).message))?;
        match part.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let message = format!(
                    "another export is writing {}: wait for it, or name another FILE",
                    path.display()
                );
                return Err(Failure::new(Exit::Conflict, message));
            }
            // It was renamed since it was opened here: that export is complete.
            _ if !path.exists() => {
                let message = format!("another export to {} has just ended", file.display());
                return Err(Failure::new(Exit::Conflict, message));
            }
            Err(TryLockError::Error(_)) | Ok(()) => {}
        }
        let note = match note::read::<Note>(&note_path)? {
            Some(_) if !resume => {
                let (file, note) = (file.display(), note_path.display());
                let message = format!(
                    "an export to {file} was interrupted: --resume goes on; without {note} it begins anew"
                );
                return Err(Failure::new(Exit::Usage, message));
            }
            Some(note) => {
                let length = part.metadata().map_err(|error| unwritable(&path, &error))?.len();
                note.must_fit(&fresh, layout, length).map_err(|why| {
                    let (path, note) = (path.display(), note_path.display());
                    Failure::new(
                        Exit::Conflict,
                        format!("can't go on with {path}: {why}; without {note} it begins anew"),
                    )
                })?;
                note
            }
            None => fresh,
        };
        // Who may read the old one may read the new one, and nobody else.
        if let Some(there) = &there {
            part.set_permissions(there.permissions()).map_err(|error| unwritable(&path, &error))?;
        }
        let mut part = BufWriter::new(part);
        let cut = part.get_ref().set_len(note.bytes).and_then(|()| part.seek(SeekFrom::Start(note.bytes)));
        cut.map_err(|error| unwritable(&path, &error))?;
        Ok(Part { path, file: part, bytes: note.bytes, keys: note.keys, note, note_path, noted: None })
    }

    /// Writes a line, and now and then notes how far it is.
    fn add(&mut self, line: &str, scan: &Scan<'_>) -> io::Result<()> {
        writeln!(self.file, "{line}")?;
        self.bytes += line.len() as u64 + 1;
        self.keys += 1;
        if note::is_due(self.noted) { self.note_down(scan) } else { Ok(()) }
    }

    /// Notes that the scan's keys up to the last one are durable here.
    fn note_down(&mut self, scan: &Scan<'_>) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_data()?;
        self.note.page_token_base64 = text::base64(&scan.page_token());
        (self.note.bytes, self.note.keys) = (self.bytes, self.keys);
        note::write(&self.note_path, &self.note)?;
        self.noted = Some(Instant::now());
        Ok(())
    }

    /// Why the scan can't go on, and what helps.
    fn stopped(&mut self, scan: &Scan<'_>, Failure { exit, message }: Failure) -> Failure {
        match self.note_down(scan) {
            Ok(()) => {
                let (keys, path) = (self.keys, self.path.display());
                Failure::new(exit, format!("{message}; {keys} keys are in {path}: go on with --resume"))
            }
            Err(error) => unwritable(&self.path, &error),
        }
    }

    /// It is whole.
    fn finish(mut self, file: &Path) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        // In this order: a note without its part could not be gone on with.
        note::remove(&self.note_path)?;
        std::fs::rename(&self.path, file)?;
        note::sync_folder_of(file)
    }
}

impl Note {
    /// Whether what is noted is the same export, of which a file of this length has all.
    fn must_fit(&self, wanted: &Note, layout: &Layout, length: u64) -> Result<(), String> {
        let of_ring = layout.former.iter().chain([&layout.ring]).any(|ring| ring.to_string() == self.ring);
        match () {
            () if !of_ring => Err(format!("it is of another ring, {:.8}", self.ring)),
            () if self.prefix_base64 != wanted.prefix_base64 => Err("it has another PREFIX".into()),
            () if self.versions && !wanted.versions => Err("it was begun with --versions".into()),
            () if !self.versions && wanted.versions => Err("it was begun without --versions".into()),
            () if length < self.bytes => Err(format!("it should have {} bytes and has {length}", self.bytes)),
            () => Ok(()),
        }
    }
}
