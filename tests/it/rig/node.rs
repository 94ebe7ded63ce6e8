//! A server's process, and what is done to it.

use super::{Log, Rig, Signal, lock, until};
use rustix::process::Pid;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::thread::JoinHandle;

/// A server process, which ends with this at the latest.
pub(crate) struct Node<'r> {
    pub(super) rig: &'r Rig,
    /// That of its folder, if it was given one.
    pub(super) name: String,
    /// The network namespace it runs in, if it isn't the tester's.
    pub(super) namespace: Option<String>,
    /// Those of its arguments that it gets again.
    pub(super) options: Vec<String>,
    pub(super) child: Child,
    pub(super) log: Arc<Log>,
    pub(super) reader: Option<JoinHandle<()>>,
    pub(super) ended: Option<ExitStatus>,
}

impl Node<'_> {
    /// That of its folder.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What it has said on stderr so far.
    pub(crate) fn stderr(&self) -> String {
        lock(&self.log.text).clone()
    }

    /// Waits until it has said this.
    #[track_caller]
    pub(crate) fn says(&mut self, text: &str) {
        until(&format!("{} says {text:?}", self.log.name), || {
            if self.stderr().contains(text) {
                return Some(());
            }
            if let Some(status) = self.try_end() {
                assert!(self.stderr().contains(text), "it ended ({status}) without saying {text:?}");
            }
            None
        });
    }

    /// The line in which it says who it is and where.
    #[track_caller]
    fn greeting(&self) -> (String, String) {
        until(&format!("{} says where it listens", self.log.name), || {
            let stderr = self.stderr();
            let line = stderr.lines().find(|line| line.contains(" listens on "))?;
            let (id, rest) = line.strip_prefix("node ")?.split_once(" listens on ")?;
            Some((id.to_owned(), rest.split_once(',')?.0.to_owned()))
        })
    }

    /// Where it listens.
    #[track_caller]
    pub(crate) fn address(&self) -> String {
        self.greeting().1
    }

    /// The first digits of its id.
    #[track_caller]
    pub(crate) fn id(&self) -> String {
        self.greeting().0
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let sent = rustix::process::kill_process(Pid::from_child(&self.child), signal);
        assert!(sent.is_ok(), "{signal:?} could not be sent to {}: {sent:?}", self.log.name);
    }

    /// Ctrl-C.
    pub(crate) fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// kill -9. It is dead on return.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.end();
    }

    /// Asserts that it has not ended by itself.
    #[track_caller]
    pub(crate) fn still_runs(&mut self) {
        let ended = self.try_end();
        assert!(ended.is_none(), "{} ended by itself ({ended:?}):\n{}", self.log.name, self.stderr());
    }

    fn try_end(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        if self.ended.is_some()
            && let Some(reader) = self.reader.take()
        {
            reader.join().unwrap();
        }
        self.ended
    }

    /// Waits until it has ended, and returns its exit code; `None` if it was killed.
    #[track_caller]
    pub(crate) fn end(&mut self) -> Option<i32> {
        until(&format!("{} ends", self.log.name), || self.try_end()).code()
    }

    /// Waits until it ends of itself, well, and not because of an error.
    #[track_caller]
    pub(crate) fn ends_well(&mut self) {
        let code = self.end();
        assert_eq!(code, Some(0), "{} ended with {code:?}:\n{}", self.log.name, self.stderr());
    }

    /// Has it stop without leaving the ring, and waits until it has.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.rig.tool("storectl", &["--peer", &self.address(), "shutdown"]).silent();
        self.ends_well();
    }

    /// Kills it if it still runs, and starts it again as it was, at the same address.
    pub(crate) fn start_again(self) -> Self {
        let (rig, name, address, options) =
            (self.rig, self.name.clone(), self.address(), self.options.clone());
        let namespace = self.namespace.clone();
        drop(self);
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        rig.node_in(namespace.as_deref(), &name, &address, &options)
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if self.try_end().is_none() {
            let _gone_already = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}
