//! What every story needs: a place of its own, real processes in it, and patience.

pub(crate) mod http;
mod network;
mod node;
mod tools;

pub(crate) use network::Network;
pub(crate) use node::Node;
pub(crate) use rustix::process::Signal;
use rustix::process::{Resource, Rlimit};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use thrifty::client::{Client, ClientConfig};
use thrifty::core::layout::Layout;
use thrifty::core::node::Address;
use thrifty::wire::channel;
use thrifty::wire::convert;
use thrifty::wire::location::location_client::LocationClient;
use thrifty::wire::location::{GetLayoutRequest, NodeState, Phase, StatusRequest, StatusResponse};
use tokio::runtime::Runtime;
pub(crate) use tools::Ran;
use tools::command;

/// How long a condition may take to come about: far more than it needs, so that a slow machine
/// fails no test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How often a condition is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long one question to a node may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Looks until there is something to see.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// A number that whoever runs the tests may choose, by the environment variable `THRIFTY_` and this name.
pub(crate) fn setting(name: &str) -> Option<u64> {
    std::env::var(format!("THRIFTY_{name}")).ok().map(|text| text.parse().unwrap())
}

/// Says what a test leaves out. Not by a macro of the test harness's, which hides what a test says that passes.
pub(crate) fn not_tested(what: &str) {
    let _nobody_listens = writeln!(std::io::stderr(), "NOT TESTED: {what}");
}

/// So many file descriptors as a test needs, or as many as this process may have, half of them for others.
pub(crate) fn files(wanted: u64) -> u64 {
    let limits = rustix::process::getrlimit(Resource::Nofile);
    let most = limits.maximum.unwrap_or(u64::MAX);
    let enough = Rlimit { current: Some(most.min(limits.current.unwrap_or(most).max(3 * wanted))), ..limits };
    let _as_it_is = rustix::process::setrlimit(Resource::Nofile, enough);
    let files = wanted.min(rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / 2);
    if files < wanted {
        not_tested(&format!("{wanted} connections at once, but {files}: `ulimit -n` allows no more"));
    }
    files
}

/// A node's view of its ring in a line.
fn summary(status: Option<&StatusResponse>) -> String {
    let Some(status) = status else { return "nothing".into() };
    let nodes: Vec<_> =
        status.nodes.iter().map(|node| format!("{} {:?}", node.address, node.state())).collect();
    format!("epoch {} {:?}: {}", status.epoch, status.phase(), nodes.join(", "))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The exclusive use of the ports that programs choose by themselves, among the threads of this
/// process and among processes: nextest runs each test in one.
struct Alone {
    _process: MutexGuard<'static, ()>,
    _machine: File,
}

impl Alone {
    fn new() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let process = lock(&TURN);
        let machine = File::create(std::env::temp_dir().join("thrifty-it-ports.lock")).unwrap();
        machine.lock().unwrap();
        until("somebody else's programs use ports 9900 to 9925, which these stories need: stop them", || {
            channel::LOOPBACK_PORTS
                .into_iter()
                .all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
                .then_some(())
        });
        Alone { _process: process, _machine: machine }
    }
}

/// What a program said on stderr.
#[derive(Default)]
struct Log {
    name: String,
    text: Mutex<String>,
}

/// The place where a story happens.
pub(crate) struct Rig {
    folder: TempDir,
    ip: Ipv4Addr,
    ring: String,
    logs: Mutex<Vec<Arc<Log>>>,
    alone: Option<Alone>,
    runtime: Runtime,
}

impl Rig {
    /// A place of its own, side by side with others.
    pub(crate) fn new() -> Self {
        Rig::with(None)
    }

    /// The place that programs choose which are given no flags. Only one story at a time has it.
    pub(crate) fn without_flags() -> Self {
        Rig::with(Some(Alone::new()))
    }

    fn with(alone: Option<Alone>) -> Self {
        static COUNT: AtomicU8 = AtomicU8::new(2);
        // Any address of 127.0.0.0/8 is this machine. The system gives out no port of another one,
        // so a node that comes back finds its port free.
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let ip = Ipv4Addr::new(127, high, low, count);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Rig {
            folder: tempfile::tempdir().unwrap(),
            ip,
            ring: format!("ring-{}-{count}", std::process::id()),
            logs: Mutex::default(),
            alone,
            runtime,
        }
    }

    /// The folder in which everything happens.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The ring's name.
    pub(crate) fn ring(&self) -> &str {
        &self.ring
    }

    /// Some port of this place.
    pub(crate) fn any_port(&self) -> String {
        format!("{}:0", self.ip)
    }

    /// A port of this place that is known beforehand.
    pub(crate) fn at(&self, port: u16) -> String {
        format!("{}:{port}", self.ip)
    }

    /// Runs something asynchronous to its end.
    pub(crate) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Where something asynchronous runs beside the story.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Starts a server with just these arguments.
    pub(crate) fn spawn(&self, name: &str, arguments: &[&str]) -> Node<'_> {
        self.spawn_with(&[], name, arguments)
    }

    /// Starts a server with just these arguments and these variables in its environment.
    pub(crate) fn spawn_with(&self, variables: &[(&str, &str)], name: &str, arguments: &[&str]) -> Node<'_> {
        let mut command = command(name, self.folder(), None);
        command.envs(variables.iter().copied());
        self.spawn_as(command, name, arguments)
    }

    /// Starts one with just these arguments in a network namespace, if one is named.
    pub(crate) fn spawn_in(&self, namespace: Option<&str>, name: &str, arguments: &[&str]) -> Node<'_> {
        self.spawn_as(command(name, self.folder(), namespace), name, arguments)
    }

    fn spawn_as(&self, mut command: Command, name: &str, arguments: &[&str]) -> Node<'_> {
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let number = lock(&self.logs).len() + 1;
        let log = Arc::new(Log {
            name: format!("{name} {} (no. {number})", arguments.join(" ")),
            ..Log::default()
        });
        lock(&self.logs).push(log.clone());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let reader = {
            let log = log.clone();
            std::thread::spawn(move || {
                for line in stderr.lines().map_while(Result::ok) {
                    lock(&log.text).push_str(&format!("{line}\n"));
                }
            })
        };
        Node {
            rig: self,
            name: String::new(),
            namespace: None,
            options: Vec::new(),
            child,
            log,
            reader: Some(reader),
            ended: None,
        }
    }

    /// Starts a server without flags, as far as `arguments` has none.
    pub(crate) fn plain(&self, name: &str, arguments: &[&str]) -> Node<'_> {
        assert!(self.alone.is_some(), "a program without flags needs a place to itself");
        self.spawn(name, arguments)
    }

    /// Starts a store's node in this place, with its data in a folder of this name.
    pub(crate) fn node(&self, name: &str, listen: &str, arguments: &[&str]) -> Node<'_> {
        self.node_in(None, name, listen, arguments)
    }

    /// The same in a network namespace, if one is named.
    pub(crate) fn node_in(
        &self,
        namespace: Option<&str>,
        name: &str,
        listen: &str,
        arguments: &[&str],
    ) -> Node<'_> {
        let data = self.data(name);
        let mut all = vec!["--listen", listen, "--ring", &self.ring];
        if !arguments.contains(&"--memory") {
            all.extend(["--data-dir", data.to_str().unwrap()]);
        }
        all.extend(arguments);
        let command = command("storeserver", self.folder(), namespace);
        let mut node = self.spawn_as(command, "storeserver", &all);
        node.namespace = namespace.map(str::to_owned);
        name.clone_into(&mut node.name);
        node.options = arguments.iter().map(|&argument| argument.to_owned()).collect();
        node
    }

    /// The folder of the node of this name.
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Makes a ring of one.
    pub(crate) fn first(&self) -> Node<'_> {
        self.node("1", &self.any_port(), &["--bootstrap"])
    }

    /// Starts a node that joins the ring of another.
    pub(crate) fn join(&self, name: &str, peer: &str) -> Node<'_> {
        self.node(name, &self.any_port(), &["--peer", peer])
    }

    /// A settled ring of nodes named "1" and so on.
    pub(crate) fn ring_of(&self, count: usize) -> Vec<Node<'_>> {
        let first = self.first();
        let peer = first.address();
        let mut nodes = vec![first];
        nodes.extend((2..=count).map(|name| self.join(&name.to_string(), &peer)));
        self.settled(&nodes);
        nodes
    }

    /// A client at QUORUM that starts from these addresses.
    pub(crate) fn client(&self, seeds: &[String]) -> Client {
        self.client_with(seeds, ClientConfig { timeout: Duration::from_secs(5), ..ClientConfig::default() })
    }

    /// A client that starts from these addresses.
    pub(crate) fn client_with(&self, seeds: &[String], config: ClientConfig) -> Client {
        let seeds: Vec<Address> = seeds.iter().map(|seed| seed.parse().unwrap()).collect();
        until("a client can connect", || self.wait(Client::connect(seeds.clone(), config.clone())).ok())
    }

    /// How the ring is doing, as the node at an address has it; `None` if it doesn't say.
    pub(crate) fn status(&self, address: &str) -> Option<StatusResponse> {
        self.wait(async {
            let mut client = LocationClient::new(channel::lazy(&address.parse().unwrap()));
            let mut request = tonic::Request::new(StatusRequest { local: false });
            request.set_timeout(ASK_TIMEOUT);
            Some(client.status(request).await.ok()?.into_inner())
        })
    }

    /// The layout that the node at an address has installed.
    pub(crate) fn layout(&self, address: &str) -> Option<Layout> {
        self.wait(async {
            let client = LocationClient::new(channel::lazy(&address.parse().unwrap()));
            let mut request = tonic::Request::new(GetLayoutRequest { have_epoch: 0 });
            request.set_timeout(ASK_TIMEOUT);
            let answer = client.max_decoding_message_size(4 << 20).get_layout(request).await.ok()?;
            convert::layout(answer.into_inner().layout?).ok()
        })
    }

    /// Waits until these nodes, and no others, are one ring, nothing moves, and each of them knows
    /// that all are up.
    #[track_caller]
    pub(crate) fn settled(&self, nodes: &[Node<'_>]) -> StatusResponse {
        self.settled_at(&addresses(nodes))
    }

    /// See [`Rig::settled`].
    #[track_caller]
    pub(crate) fn settled_at(&self, addresses: &[String]) -> StatusResponse {
        let mut wanted: Vec<&str> = addresses.iter().map(String::as_str).collect();
        wanted.sort_unstable();
        let settled = |status: &StatusResponse| {
            let mut there: Vec<&str> = status.nodes.iter().map(|node| node.address.as_str()).collect();
            there.sort_unstable();
            let up = status.nodes.iter().all(|node| node.state() == NodeState::Up);
            status.phase() == Phase::Stable && up && there == wanted
        };
        let end = Instant::now() + PATIENCE;
        loop {
            let all: Vec<_> = addresses.iter().map(|address| self.status(address)).collect();
            if let Some(all) = all.iter().cloned().collect::<Option<Vec<_>>>()
                && all.iter().all(settled)
                && all.iter().all(|s| (s.epoch, &s.ring_id) == (all[0].epoch, &all[0].ring_id))
                && let Some(status) = all.into_iter().next()
            {
                return status;
            }
            let seen =
                || addresses.iter().zip(&all).map(|(at, s)| format!("{at} sees {}", summary(s.as_ref())));
            assert!(Instant::now() < end, "no settled ring: {:#?}", seen().collect::<Vec<_>>());
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until the node at one address takes another for dead.
    #[track_caller]
    pub(crate) fn sees_down(&self, address: &str, gone: &str) {
        until(&format!("{address} takes {gone} for dead"), || {
            let status = self.status(address)?;
            let node = status.nodes.iter().find(|node| node.address == gone)?;
            (node.state() == NodeState::Down).then_some(())
        });
    }

    /// Whether any program has panicked so far.
    fn panicked(&self) -> Option<String> {
        let logs = lock(&self.logs);
        let panicked = logs.iter().find(|log| lock(&log.text).contains("panicked"));
        panicked.map(|log| format!("{} panicked:\n{}", log.name, lock(&log.text)))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in lock(&self.logs).iter() {
                println!("--- {}\n{}", log.name, lock(&log.text));
            }
        } else if let Some(panicked) = self.panicked() {
            panic!("{panicked}");
        }
    }
}

/// Where nodes listen.
#[track_caller]
pub(crate) fn addresses(nodes: &[Node<'_>]) -> Vec<String> {
    nodes.iter().map(Node::address).collect()
}
