//! What was asked and what came of it, one JSON line each; `README.md` says what is in a line.

use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;
use thrifty::client::{ClientError, Found, Written};
use thrifty::core::record::Version;

/// What is asked of a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    Read,
    Write,
    Delete,
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::Delete => "delete",
        }
    }
}

/// A request under way.
pub(crate) struct Call {
    id: u64,
    line: Value,
}

impl Call {
    /// The value that a write writes: the write's own number, so that no two are equal.
    pub(crate) fn value(&self) -> String {
        self.id.to_string()
    }
}

struct Open {
    file: BufWriter<File>,
    next: u64,
}

/// A history being written.
pub(crate) struct History {
    path: PathBuf,
    started: Instant,
    open: Mutex<Open>,
}

impl History {
    /// Begins a history in a folder of the build's, in place of an older one of this name.
    pub(crate) fn new(folder: &str, name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("README.md"), include_str!("README.md")).unwrap();
        let path = folder.join(name);
        let file = BufWriter::with_capacity(1 << 20, File::create(&path).unwrap());
        History { path, started: Instant::now(), open: Mutex::new(Open { file, next: 1 }) }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes down a request that is about to be sent.
    pub(crate) fn invoke(&self, process: usize, op: Op, key: &str) -> Call {
        let mut open = self.open.lock().unwrap();
        let id = open.next;
        open.next += 1;
        let mut line = json!({
            "type": "invoke",
            "id": id,
            "process": process,
            "op": op.name(),
            "key": key,
            "consistency": "quorum",
            "start": self.now(),
        });
        if op == Op::Write {
            line["value"] = id.to_string().into();
        }
        append(&mut open, &line);
        Call { id, line }
    }

    /// Takes down what became of a write or a delete.
    pub(crate) fn wrote(&self, call: Call, result: &Result<Written, ClientError>) {
        let written = result.as_ref();
        self.complete(call, written.map(|written| vec![("version", show(written.version).into())]));
    }

    /// Takes down what became of a read.
    pub(crate) fn read(&self, call: Call, result: &Result<Option<Found>, ClientError>) {
        let found = result.as_ref().map(|found| match found {
            Some(found) => {
                let value = String::from_utf8_lossy(&found.value).into_owned();
                vec![("value", value.into()), ("version", show(found.version).into())]
            }
            None => vec![("value", Value::Null)],
        });
        self.complete(call, found);
    }

    /// Takes down what is done to the ring.
    pub(crate) fn note(&self, what: &str) {
        let mut open = self.open.lock().unwrap();
        let line = json!({ "type": "note", "what": what, "start": self.now() });
        append(&mut open, &line);
    }

    /// Puts everything into the file.
    pub(crate) fn flush(&self) {
        self.open.lock().unwrap().file.flush().unwrap();
    }

    fn complete(&self, call: Call, outcome: Result<Vec<(&str, Value)>, &ClientError>) {
        let mut line = call.line;
        let (outcome, more) = match outcome {
            Ok(more) => ("ok", more),
            Err(error) => {
                let unknown = matches!(error, ClientError::OutcomeUnknown(_)) && line["op"] != "read";
                (if unknown { "unknown" } else { "fail" }, vec![("error", error.to_string().into())])
            }
        };
        line["type"] = outcome.into();
        for (name, value) in more {
            line[name] = value;
        }
        let mut open = self.open.lock().unwrap();
        line["end"] = self.now().into();
        append(&mut open, &line);
    }

    /// Nanoseconds since the history began. Asked for while it is locked, so that lines are in order.
    fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }
}

fn append(open: &mut Open, line: &Value) {
    serde_json::to_writer(&mut open.file, line).unwrap();
    open.file.write_all(b"\n").unwrap();
}

/// A version as text that sorts as versions do.
pub(crate) fn show(version: Version) -> String {
    format!("{:016x}-{:016x}", version.hlc, version.node)
}
