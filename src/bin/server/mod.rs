//! What `storeserver` and `location` share: options, the choice of directory and port, signals and
//! what is said on stderr.

mod options;
mod place;
mod talk;

use anyhow::Context;
use options::{Options, Parsed};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use thrifty::core::layout::Kind;
use thrifty::location::state::NodeState;
use thrifty::location::{Departure, LocationConfig};
use thrifty::news;
use thrifty::node::{self, Command, Node, Role};
use thrifty::storage::data_dir::DataDir;
use thrifty::storage::disk::DiskEngine;
use thrifty::storage::engine::Engine;
use thrifty::storage::memory::MemoryEngine;
use thrifty::storage::vault::{MemoryVault, Vault};
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
    let runtime = match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        threads => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    };
    let outcome = runtime.context("the async runtime could not be started").and_then(|runtime| {
        let outcome = runtime.block_on(serve(kind, &options));
        // What still runs beside (a scan for a puller, say) must not hold up the exit.
        runtime.shutdown_timeout(Duration::from_millis(200));
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error:#}", talk::program());
            ExitCode::from(if error.is::<options::Usage>() { 2 } else { 1 })
        }
    }
}

async fn serve(kind: Kind, options: &Parsed) -> anyhow::Result<()> {
    let mut again = None;
    let (commands, mut inbox) = mpsc::channel(4);
    listen_to_signals(commands, options.on_term)?;
    loop {
        let place = place::choose(kind, options, again.take()).await?;
        let (address, directory) = (place.address.clone(), place.directory);
        let (departure, directory) =
            run(kind, options, place.listener, place.address, directory, &mut inbox).await?;
        match departure {
            Departure::Left => news!("left"),
            Departure::Stopped => news!("stopped"),
            Departure::Removed => {
                let aside = directory.map(DataDir::set_aside).transpose()?;
                let where_to = aside
                    .map_or(String::new(), |path| format!("; the old data is kept in {}", path.display()));
                news!(
                    "this node was removed from the ring while it was away: starting over as a new one{where_to}"
                );
                again = Some(address);
                continue;
            }
        }
        return Ok(());
    }
}

async fn run(
    kind: Kind,
    options: &Parsed,
    listener: tokio::net::TcpListener,
    address: thrifty::core::node::Address,
    directory: Option<Arc<DataDir>>,
    inbox: &mut mpsc::Receiver<Command>,
) -> anyhow::Result<(Departure, Option<DataDir>)> {
    let vault: Arc<dyn Vault> = match &directory {
        Some(directory) => Arc::new(directory.vault()),
        None => Arc::new(MemoryVault::new()),
    };
    let state = NodeState::open(vault)?;
    match &directory {
        Some(directory) => {
            news!("node {:.8} listens on {address}, data in {}", state.id, directory.path().display())
        }
        None => news!("node {:.8} listens on {address}, data in memory only", state.id),
    }
    let role = match kind {
        Kind::Location => Role::Location,
        Kind::Store => {
            let engine: Arc<dyn Engine> = match &directory {
                Some(directory) => Arc::new(DiskEngine::open(directory.engine_path())?),
                None => Arc::new(MemoryEngine::new()),
            };
            let free_space = directory.clone().map(|directory| -> thrifty::store::FreeSpace {
                Box::new(move || directory.available_bytes())
            });
            Role::Store { engine, free_space }
        }
    };
    let config = LocationConfig { kind, ..options.location_config() };
    let node = Node { address, state, durable: directory.is_some(), config, role };
    // The node gets a channel of its own, so that it can be run again.
    let (commands, own) = mpsc::channel(4);
    let running = node::run(listener, node, own);
    let mut running = std::pin::pin!(running);
    let departure = loop {
        tokio::select! {
            ended = &mut running => break ended?,
            Some(command) = inbox.recv() => {
                let _node_gone = commands.send(command).await;
            }
        }
    };
    Ok((departure, directory.and_then(Arc::into_inner)))
}

/// SIGINT and SIGTERM ask the node to go; the second one makes it go at once, as if it had crashed,
/// which loses nothing.
fn listen_to_signals(commands: mpsc::Sender<Command>, on_term: Command) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be handled")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be handled")?;
    tokio::spawn(async move {
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
    });
    Ok(())
}
