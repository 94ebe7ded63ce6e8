//! What the client tools share: how they find a ring, what their options mean, and how they end.
//!
//! Values and tables go to stdout, everything else to stderr, and an error is one line that says
//! what went wrong and what helps. The exit codes are part of the interface: 0 ok, 1 not found,
//! 2 usage, 3 unavailable and nothing done, 4 differs or conflict, 5 outcome unknown.

pub(crate) mod caching;
mod command_line;
pub(crate) mod duration;
pub(crate) mod key;
pub(crate) mod options;
pub(crate) mod text;
pub(crate) mod value;

use clap::Parser;
use std::fmt::Display;
use std::io::{BufWriter, ErrorKind, Stdout, Write};
use std::process::ExitCode;
use thrifty::client::ClientError;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What [`Lines`] gathers.
const LINES_BYTES: usize = 64 << 10;

/// How a tool ends that does not end well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// There is no such key or node.
    NotFound = 1,
    /// The request is wrong, and would be wrong again.
    Usage = 2,
    /// Nothing was done; it may work later.
    Unavailable = 3,
    /// The ring's state forbids it, or it is another ring.
    Conflict = 4,
    /// It may have happened or not.
    Unknown = 5,
}

/// Why a tool does not end well, in one line.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Its exit code.
    pub(crate) exit: Exit,
    /// What went wrong and what helps.
    pub(crate) message: String,
}

impl Failure {
    /// A failure with this exit code and message.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure { exit, message: message.into() }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Invalid(_) => Exit::Usage,
            ClientError::NoNode(_) | ClientError::Unavailable(_) | ClientError::Exhausted(_) => {
                Exit::Unavailable
            }
            ClientError::Refused(_) => Exit::Conflict,
            ClientError::OutcomeUnknown(_) => Exit::Unknown,
        };
        let hint = match exit {
            Exit::Unknown => " (it may have happened or not: read before you repeat it)",
            _ => "",
        };
        Failure::new(exit, format!("{error}{hint}"))
    }
}

/// Reads a tool's command line, or ends the program with a message.
pub(crate) fn parse<T: Parser>() -> T {
    let matches = command_line::matches(T::command(), "1");
    T::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Runs a tool to its exit code, on one thread or several, and says on stderr why it failed if it
/// did.
pub(crate) fn run(tool: &str, threads: usize, work: impl Future<Output = Result<(), Failure>>) -> ExitCode {
    let mut runtime = match threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.worker_threads(threads.max(1)).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => Err(Failure::new(Exit::Unavailable, format!("can't start: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            notice(tool, &failure.message);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// One line on stderr. If that is closed nobody listens, and that is no reason to fail.
pub(crate) fn notice(tool: &str, message: &str) {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let _ = writeln!(std::io::stderr(), "{tool}: {line}");
}

/// Bytes to stdout, as they are. A reader that went away, as `head` does, has all it wanted.
pub(crate) fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    went_out(out.write_all(bytes).and_then(|()| out.flush())).map(|_reader| ())
}

/// Many lines to stdout, written when some have gathered or [`Lines::flush`] is called.
pub(crate) struct Lines(BufWriter<Stdout>);

impl Lines {
    /// To stdout.
    pub(crate) fn new() -> Self {
        Lines(BufWriter::with_capacity(LINES_BYTES, std::io::stdout()))
    }

    /// One more line; `false`: the reader went away, as `head` does, and has all it wanted.
    pub(crate) fn line(&mut self, text: impl Display) -> Result<bool, Failure> {
        went_out(writeln!(self.0, "{text}"))
    }

    /// What was written so far goes out; `false` as in [`Lines::line`].
    pub(crate) fn flush(&mut self) -> Result<bool, Failure> {
        went_out(self.0.flush())
    }
}

/// Waits until nobody reads stdout any more; for ever where that can't be seen, as with a file. Who writes seldom
/// would not notice otherwise.
pub(crate) async fn reader_left() {
    #[allow(
        deprecated,
        reason = "it is safe for what stays open, as stdout does; what replaces it is not safe code"
    )]
    let stdout = AsyncFd::with_interest(std::io::stdout(), Interest::ERROR);
    let Ok(stdout) = stdout else { return std::future::pending().await };
    let _closed = stdout.ready(Interest::ERROR).await;
}

/// Whether there still is a reader.
fn went_out(written: std::io::Result<()>) -> Result<bool, Failure> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(Exit::Unavailable, format!("can't write to stdout: {error}"))),
    }
}

/// One or more lines to stdout.
pub(crate) fn print(text: impl Display) -> Result<(), Failure> {
    write_out(format!("{text}\n").as_bytes())
}
