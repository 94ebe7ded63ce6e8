//! `storegate --dialect DIALECT --listen HOST:PORT`: plain HTTP before a ring, as older stores spoke it.

#[path = "common/mod.rs"]
#[allow(dead_code, reason = "each tool uses its part of what they share")]
mod common;
#[path = "server/talk.rs"]
#[allow(dead_code, reason = "it knows the server's name from elsewhere")]
mod talk;

use clap::Parser;
use common::caching::Caching;
use common::options::Connect;
use common::{Exit, Failure};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use thrifty::cache::CacheUse;
use thrifty::client::ClientError;
use thrifty::gateway::dialects::Dialect;
use thrifty::gateway::gate::{Gate, Wanted};
use thrifty::news;
use thrifty::node::gate::{Serving, serve};
use tokio::net::TcpSocket;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

const TOOL: &str = "storegate";

/// More threads than this bring nothing: the work is the ring's.
const MOST_THREADS: usize = 8;

/// What is under way is not waited for longer than this, however patient requests may be.
const LONGEST_GRACE: Duration = Duration::from_secs(30);

/// Connections that may wait to be let in.
const BACKLOG: u32 = 1024;

const EXAMPLES: &str = "\
Dialects:
  velour        curl -d VALUE localhost:8000/KEY          curl localhost:8000/KEY
  simplestore   curl 'localhost:8000/set?KEY=VALUE'       curl localhost:8000/get/KEY
  diststore     curl -d key=KEY -d value=VALUE localhost:8000    curl localhost:8000/get/KEY

Examples:
  storegate --dialect velour --listen 127.0.0.1:8000
                                     before the ring on this machine
  storegate --dialect velour --listen 127.0.0.1:8000 --peer 10.0.0.5:9900 --peer 10.0.0.6:9900
                                     before the ring that these nodes are of

It holds no data: any number may run, and come and go. While the ring can't be reached it answers 503, and
waits. Requests must name an IP address or localhost as their host, so that no web page can make them.

Exit codes: 0 ended by a signal, 2 wrong usage, 3 unavailable (a port in use), 4 another ring or kind.";

/// Plain HTTP before a ring, as older stores spoke it.
#[derive(Parser)]
#[command(name = TOOL, version, after_help = EXAMPLES)]
struct Cli {
    /// What to speak: velour, simplestore or diststore
    #[arg(long)]
    dialect: Dialect,

    /// Address to listen on
    #[arg(long, value_name = "HOST:PORT")]
    listen: SocketAddr,

    /// Listen on other addresses than loopback, without encryption: anybody who can reach the port can
    /// then read and change everything
    #[arg(long)]
    insecure: bool,

    /// The ring's name, if only that one will do
    #[arg(long, value_name = "NAME", env = "THRIFTY_RING")]
    ring: Option<String>,

    #[command(flatten)]
    caching: Caching,

    #[command(flatten)]
    connect: Connect,
}

fn main() -> ExitCode {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    common::run(TOOL, threads, run(common::parse()))
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { dialect, listen, insecure, ring, caching, connect } = cli;
    if !listen.ip().is_loopback() && !insecure {
        let why = "can be reached from other machines, and the traffic is not encrypted: add --insecure if that \
                   is what you want";
        return Err(Failure::new(Exit::Usage, format!("{listen} {why}")));
    }
    let unbound = |error: std::io::Error| {
        let why = match error.kind() {
            ErrorKind::AddrInUse => format!("{listen} is in use: choose another port with --listen"),
            _ => format!("{listen} can't be listened on: {error}"),
        };
        Failure::new(Exit::Unavailable, why)
    };
    let socket = bound(listen).map_err(unbound)?;
    talk::start();
    let mut signals = signals()?;
    let (tell, told) = oneshot::channel();
    let told_twice = async {
        come(&mut signals).await;
        let _served_already = tell.send(());
        come(&mut signals).await;
    };
    let gate =
        Gate::new(Wanted { peers: connect.peers(), ring, timeout: connect.timeout, cache: caching.config() });
    let work = async {
        // Until the ring was looked for nobody is let in, so that who can goes to another gate.
        if let Err(wrong @ (ClientError::Invalid(_) | ClientError::Refused(_))) = gate.look().await {
            return Err(wrong.into());
        }
        let listener = socket.listen(BACKLOG).map_err(unbound)?;
        news!("{dialect} gate listens on {}", listener.local_addr().unwrap_or(listen));
        let serving = Serving { grace: connect.timeout.min(LONGEST_GRACE), beside_a_node: false };
        let stop = async { drop(told.await) };
        let routes = dialect.routes(gate.clone());
        tokio::select! {
            served = serve(listener, routes, serving, stop) => {
                served.map_err(|error| Failure::new(Exit::Unavailable, error.to_string()))
            }
            () = gate.keep() => Ok(()),
        }
    };
    tokio::select! {
        ended = work => ended?,
        () = told_twice => {}
    }
    match gate.cache_use().filter(|used| used.hits > 0) {
        Some(CacheUse { hits, misses }) => {
            news!("stopped; of {} reads {hits} were answered from the cache", hits + misses);
        }
        None => news!("stopped"),
    }
    Ok(())
}

/// A socket that has the address, and lets nobody in yet.
fn bound(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections of a gate that was here before may still be on their way out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn signals() -> Result<[Signal; 2], Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::new(Exit::Unavailable, error.to_string()));
    Ok([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?])
}

/// Waits for either.
async fn come([interrupt, terminate]: &mut [Signal; 2]) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
