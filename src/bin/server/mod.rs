//! What `storeserver` and `location` share: options, the choice of directory and port, signals and
//! what is said on stderr.

#[path = "../common/caching.rs"]
mod caching;
#[path = "../common/command_line.rs"]
mod command_line;
#[path = "../common/duration.rs"]
mod duration;
mod exit;
mod gates;
mod notify;
mod options;
mod place;
mod talk;

use anyhow::{Context, bail};
use gates::Gates;
use notify::Manager;
use options::{Options, Parsed};
use place::Place;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use thrifty::core::layout::Kind;
use thrifty::location::state::{NodeState, peek, removed_from, save_departure};
use thrifty::location::{Departure, LocationConfig};
use thrifty::news;
use thrifty::node::{self, Command, Node, Role};
use thrifty::storage::data_dir::DataDir;
use thrifty::storage::engine::Engine;
use thrifty::storage::memory::MemoryEngine;
use thrifty::storage::vault::{MemoryVault, Vault};
use thrifty::store::room::FreeSpace;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// On a machine with more cores than this the server spreads over several threads. With fewer, one
/// thread with the disk's work beside it is faster: threads that hand work to each other cost more
/// than they bring.
const FEW_CORES: usize = 4;

/// A server program: reads its options, runs the node, and says how that ended.
pub(crate) fn main(kind: Kind) -> ExitCode {
    let options = Options::read(kind);
    talk::start();
    let threads = options.threads.unwrap_or_else(|| {
        match std::thread::available_parallelism().map_or(1, usize::from) {
            cores if cores <= FEW_CORES => 1,
            cores => cores.min(8),
        }
    });
    match lives(kind, &options, threads) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error:#}", talk::program());
            ExitCode::from(exit::code(&error))
        }
    }
}

fn runtime(threads: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    let built = match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        threads => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    };
    built.context("the async runtime could not be started")
}

/// Runs the node, and once it was removed from its ring, a new one in its place. Each life has a
/// runtime of its own, so that nothing of it goes on in the next one's directory.
fn lives(kind: Kind, options: &Parsed, threads: usize) -> anyhow::Result<()> {
    let (commands, mut inbox) = mpsc::channel(4);
    listen_to_signals(commands, options.on_term)?;
    let manager = Manager::of(&options.ring);
    let mut memory = Arc::new(MemoryVault::new());
    let mut again = None;
    loop {
        let runtime = runtime(threads)?;
        let ended = runtime.block_on(live(kind, options, &memory, again, &mut inbox, &manager));
        let removed = ended.as_ref().is_ok_and(|life| life.departure == Departure::Removed);
        // What still runs beside (a scan for a puller, say) must not hold up the exit; but a
        // directory must be let go of before it is opened again.
        runtime.shutdown_timeout(if removed { LET_GO } else { Duration::from_millis(200) });
        let life = ended?;
        match life.departure {
            Departure::Left => news!("left"),
            Departure::Stopped => news!("stopped"),
            Departure::Removed => {
                news!("this node was removed from the ring while it was away: starting over as a new one");
                if !is_let_go(&life.directory) {
                    bail!("the old data is still in use by this process: start it again");
                }
                let former = std::mem::replace(&mut memory, Arc::new(MemoryVault::new()));
                if let Some(last) = removed_from(&*former)? {
                    save_departure(&*memory, &last)?;
                }
                again = Some(life.bound);
                continue;
            }
        }
        return Ok(());
    }
}

/// How long what works for a node may take to end, once the node has.
const LET_GO: Duration = Duration::from_secs(10);

/// Waits until nobody has the directory any more: the committer's thread and the engine's own end on
/// their own once they are not needed.
fn is_let_go(directory: &Weak<DataDir>) -> bool {
    let end = Instant::now() + LET_GO;
    while directory.strong_count() > 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    directory.strong_count() == 0
}

/// What a node that stops does to its ring.
const STAYS: &str = "stopping, and staying in";

/// How one life of a node ended.
struct Life {
    departure: Departure,
    bound: SocketAddr,
    directory: Weak<DataDir>,
}

async fn live(
    kind: Kind,
    options: &Parsed,
    memory: &Arc<MemoryVault>,
    again: Option<SocketAddr>,
    inbox: &mut mpsc::Receiver<Command>,
    manager: &Manager,
) -> anyhow::Result<Life> {
    // First, so that a node whose gate can't be had changes nothing.
    let gates = Gates::bind(&options.gate).await?;
    let Place { listener, address, directory, replaces } = place::choose(kind, options, again).await?;
    let bound = listener.local_addr().context("the bound address can't be read")?;
    let vault: Arc<dyn Vault> = match &directory {
        Some(directory) => Arc::new(directory.vault()),
        None => memory.clone(),
    };
    // Before the node's state is, for what is damaged is to be left as it is.
    let engine: Option<Arc<dyn Engine>> = match (kind, &directory) {
        (Kind::Location, _) => None,
        (Kind::Store, Some(directory)) => Some(Arc::new(place::engine(directory, peek(&*vault)?.0)?)),
        (Kind::Store, None) => Some(Arc::new(MemoryEngine::new())),
    };
    let state = NodeState::open(vault)?;
    match &directory {
        Some(directory) => {
            news!("node {:.8} listens on {address}, data in {}", state.id, directory.path().display())
        }
        None => news!("node {:.8} listens on {address}, data in memory only", state.id),
    }
    let gates =
        gates.open(bound, &options.ring, options.caching.config()).context("a gate could not be opened")?;
    let role = match engine {
        None => Role::Location,
        Some(engine) => {
            let free_space = directory.clone().map(|directory| FreeSpace {
                folder: directory.path().to_owned(),
                bytes: Box::new(move || directory.available_bytes()),
            });
            Role::Store { engine, free_space, cache: options.caching.config() }
        }
    };
    let config = LocationConfig { kind, ..options.location_config(replaces) };
    let node = Node { address, state, durable: directory.is_some(), config, role };
    // The node gets a channel of its own, so that it can be run again.
    let (commands, own) = mpsc::channel(4);
    let (location, running) = node::start(listener, node, own);
    let mut running = std::pin::pin!(running);
    let mut following = std::pin::pin!(manager.follow(&location));
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended,
            never = &mut following => match never {},
            Some(command) = inbox.recv() => {
                manager.goes(if command == Command::Leave { "leaving" } else { STAYS }).await;
                let _node_gone = commands.send(command).await;
            }
        }
    };
    if let Some(gates) = gates {
        gates.close().await;
    }
    match ended {
        Ok(Departure::Left) => manager.goes("left").await,
        Ok(Departure::Stopped) => manager.goes(STAYS).await,
        Ok(Departure::Removed) => {}
        Err(_) => manager.goes("failed in").await,
    }
    let departure = ended?;
    Ok(Life { departure, bound, directory: directory.as_ref().map_or(Weak::new(), Arc::downgrade) })
}

/// SIGINT and SIGTERM ask the node to go; the second one makes it go at once, as if it had crashed,
/// which loses nothing.
fn listen_to_signals(commands: mpsc::Sender<Command>, on_term: Command) -> anyhow::Result<()> {
    let runtime = runtime(1)?;
    let (mut interrupt, mut terminate) = {
        let _of_this_runtime = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be handled")?;
        (interrupt, signal(SignalKind::terminate()).context("SIGTERM can't be handled")?)
    };
    let listen = async move {
        let first = tokio::select! {
            _ = interrupt.recv() => Command::Leave,
            _ = terminate.recv() => on_term,
        };
        let _node_gone = commands.send(first).await;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        news!("stopping at once; this node stays a member");
        std::process::exit(0);
    };
    let thread = std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(listen));
    thread.map(drop).context("the thread that listens to signals could not be started")
}
