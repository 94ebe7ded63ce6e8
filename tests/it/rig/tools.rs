//! The programs as they are started, and tools that are run to their end.

use super::Rig;
use std::fmt::Debug;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

fn program(name: &str) -> &'static str {
    match name {
        "storeserver" => env!("CARGO_BIN_EXE_storeserver"),
        "location" => env!("CARGO_BIN_EXE_location"),
        "storeput" => env!("CARGO_BIN_EXE_storeput"),
        "storeget" => env!("CARGO_BIN_EXE_storeget"),
        "storectl" => env!("CARGO_BIN_EXE_storectl"),
        "storebench" => env!("CARGO_BIN_EXE_storebench"),
        "storegate" => env!("CARGO_BIN_EXE_storegate"),
        _ => panic!("no program is called {name}"),
    }
}

/// A program about to be started in a folder, and in a network namespace if one is named. What the
/// tester's own shell says of rings, or a service manager above it, must not reach it.
pub(super) fn command(name: &str, folder: &Path, namespace: Option<&str>) -> Command {
    let mut command = Command::new(namespace.map_or(program(name), |_| "ip"));
    if let Some(namespace) = namespace {
        command.args(["netns", "exec", namespace, program(name)]);
    }
    command.current_dir(folder);
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("THRIFTY_") || name == "NOTIFY_SOCKET" {
            command.env_remove(variable);
        }
    }
    command
}

/// A tool that was started, with its three streams on pipes.
fn begun(namespace: Option<&str>, name: &str, arguments: &[&str], folder: &Path) -> Child {
    let mut command = command(name, folder, namespace);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// How a tool ended.
pub(crate) struct Ran {
    what: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Debug for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Ran { what, code, stderr, .. } = self;
        let stdout = String::from_utf8_lossy(&self.stdout);
        write!(f, "`{what}` ended with {code:?}\nstdout: {stdout:?}\nstderr: {stderr:?}")
    }
}

impl Ran {
    /// It went well: what it printed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        String::from_utf8(self.stdout).unwrap()
    }

    /// It went well and had nothing to remark.
    #[track_caller]
    pub(crate) fn silent(self) -> String {
        assert_eq!(self.stderr, "", "{self:?}");
        self.ok()
    }

    /// It went well: what it printed, as JSON.
    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// It failed with this code, nothing on stdout, and one line on stderr that says all of this.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, b"", "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing: {self:?}");
        }
    }
}

impl Rig {
    /// Runs a tool to its end.
    pub(crate) fn tool(&self, name: &str, arguments: &[&str]) -> Ran {
        self.tool_fed(name, arguments, b"")
    }

    /// Runs a tool to its end, with this on its stdin.
    pub(crate) fn tool_fed(&self, name: &str, arguments: &[&str], stdin: &[u8]) -> Ran {
        self.tool_in(None, name, arguments, stdin)
    }

    /// The same in a network namespace, if one is named.
    pub(crate) fn tool_in(
        &self,
        namespace: Option<&str>,
        name: &str,
        arguments: &[&str],
        stdin: &[u8],
    ) -> Ran {
        let mut child = begun(namespace, name, arguments, self.folder());
        // A tool that has read enough closes its end, and is right to.
        let _closed_early = child.stdin.take().unwrap().write_all(stdin);
        let output = child.wait_with_output().unwrap();
        let ran = Ran {
            what: format!("{name} {}", arguments.join(" ").chars().take(200).collect::<String>()),
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        assert!(!ran.stderr.contains("panicked"), "{ran:?}");
        ran
    }

    /// Starts a tool, with its three streams on pipes.
    pub(crate) fn tool_begun(&self, name: &str, arguments: &[&str]) -> Child {
        begun(None, name, arguments, self.folder())
    }
}
