//! The servers' options.

use super::caching::Caching;
use super::{command_line, duration, gates};
use clap::builder::FalseyValueParser;
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use thrifty::core::layout::{Kind, MAX_NAME_BYTES, MAX_WEIGHT, Replicas};
use thrifty::core::node::{Address, NodeId};
use thrifty::core::token::SegmentCount;
use thrifty::core::transition::Patience;
use thrifty::core::ttl::Ttl;
use thrifty::location::LocationConfig;
use thrifty::location::lan::own_address;
use thrifty::node::Command;

/// An option that makes no sense, and why.
struct Usage(String);

#[derive(Clone, Copy, ValueEnum, Debug)]
enum OnTerm {
    Leave,
    Stop,
}

#[derive(Parser, Debug)]
#[command(version)]
pub(crate) struct Options {
    /// As in `[[PEER] PORT]`: a port, or a node to ask and a port.
    #[arg(value_name = "[PEER] PORT", num_args = 0..=2)]
    place: Vec<String>,

    /// Port on 127.0.0.1; without it, the port of the directory that is resumed, or the next free
    /// one from 9900 on.
    #[arg(long, env = "THRIFTY_PORT", conflicts_with = "listen")]
    port: Option<u16>,

    /// Address to listen on.
    #[arg(long, value_name = "HOST:PORT", env = "THRIFTY_LISTEN")]
    listen: Option<SocketAddr>,

    /// Address that others reach this node at, if it isn't the one it listens on.
    #[arg(long, value_name = "HOST:PORT", env = "THRIFTY_ADVERTISE")]
    pub(crate) advertise: Option<Address>,

    /// Listen on other addresses than loopback, without encryption: anybody who can reach the port can
    /// then read and change everything.
    #[arg(long, env = "THRIFTY_INSECURE", value_parser = FalseyValueParser::new())]
    insecure: bool,

    /// A node to ask, instead of scanning this machine; may be given several times.
    #[arg(long, value_name = "HOST:PORT", env = "THRIFTY_PEER", value_delimiter = ',')]
    peer: Vec<String>,

    /// Announce this node on the local network (mDNS), and ask those that are announced there instead of
    /// scanning this machine. It has to listen where they reach it: see --listen.
    #[arg(long)]
    discover: bool,

    /// Speak plain HTTP as an older store did, on another port: `velour`, `simplestore` or `diststore`; may
    /// be given several times. `storegate` does the same without a node.
    #[arg(long, value_name = "DIALECT=HOST:PORT", env = "THRIFTY_GATE", value_delimiter = ',', value_parser = gates::asked)]
    pub(crate) gate: Vec<gates::Asked>,

    /// Make a new ring, alone, without looking for one.
    #[arg(long)]
    bootstrap: bool,

    /// The ring's name.
    #[arg(long, value_name = "NAME", default_value = "thrifty", env = "THRIFTY_RING")]
    pub(crate) ring: String,

    /// Owners per segment, or `all`: counts when the ring is made. [default: 3]
    #[arg(long, value_name = "N", env = "THRIFTY_REPLICAS", value_parser = replicas)]
    replicas: Option<Replicas>,

    /// Segments of the ring, a power of two up to 65536: counts when the ring is made. [default: 1024]
    #[arg(long, value_name = "Q", env = "THRIFTY_SEGMENTS", value_parser = segments)]
    segments: Option<SegmentCount>,

    /// Owners of a segment are spread over distinct zones while there are enough.
    #[arg(long, value_name = "NAME", default_value = "", env = "THRIFTY_ZONE", hide_default_value = true)]
    zone: String,

    /// This node's share of the keys, relative to the others'.
    #[arg(long, value_name = "W", default_value_t = 1, env = "THRIFTY_WEIGHT",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_WEIGHT)))]
    weight: u32,

    /// Where to keep the data. [default: ./thrifty-data/PORT]
    #[arg(long, value_name = "DIR", env = "THRIFTY_DATA_DIR", conflicts_with = "memory")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Start as a new node in place of one that is gone for good, and have that one removed from the
    /// ring. With --replace=ID its directory is set aside if this is it; without an ID only a
    /// directory that is damaged is. A member that still lives is not removed, then or later
    #[arg(long, value_name = "ID", num_args = 0..=1, require_equals = true, conflicts_with = "memory")]
    pub(crate) replace: Option<Option<NodeId>>,

    /// Keep everything in memory only: the data is gone when enough nodes are.
    #[arg(long)]
    pub(crate) memory: bool,

    /// How long to wait, on leaving, for others to take over. This and the other times are seconds, or a
    /// number and a unit: 500ms, 30s, 5m, 2h, 7d.
    #[arg(long, value_name = "TIME", default_value = "1m", env = "THRIFTY_LEAVE_TIMEOUT", value_parser = at_least::<0>)]
    leave_timeout: Duration,

    /// After how long a member that is down is removed from the ring: at least 5s, since a busy node may be
    /// silent for as long. The same on all nodes, any of which may be the one that decides.
    #[arg(long, value_name = "TIME", default_value = "5m", env = "THRIFTY_REMOVE_AFTER", value_parser = at_least::<5>)]
    remove_after: Duration,

    /// After how long without progress a handover is given up and tried again later.
    #[arg(long, value_name = "TIME", default_value = "30s", env = "THRIFTY_PULL_TIMEOUT", value_parser = at_least::<2>)]
    pull_timeout: Duration,

    /// How often what was deleted or has expired is looked for, at most, and then forgotten by all its
    /// owners; for the first time a tenth of it after the start.
    #[arg(long, value_name = "TIME", default_value = "1h", env = "THRIFTY_COLLECT_EVERY", value_parser = at_least::<1>)]
    collect_every: Duration,

    #[command(flatten)]
    pub(crate) caching: Caching,

    /// What SIGTERM does: `leave` hands over and leaves the ring, `stop` stays a member (for a service
    /// manager that starts the node again). Ctrl-C always leaves.
    #[arg(long, value_name = "HOW", value_enum, default_value = "leave", env = "THRIFTY_ON_TERM")]
    on_term: OnTerm,

    /// Threads that serve; by default one, or more on a machine with many cores.
    #[arg(long, value_name = "N", env = "THRIFTY_THREADS", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
}

fn replicas(text: &str) -> Result<Replicas, String> {
    match text.parse::<u16>() {
        _ if text == "all" => Ok(Replicas::All),
        Ok(count) if count > 0 => Ok(Replicas::Count(count)),
        _ => Err("replicas must be a number from 1 to 65535, or `all`".into()),
    }
}

fn at_least<const SECONDS: u64>(text: &str) -> Result<Duration, String> {
    duration::between(text, Duration::from_secs(SECONDS), Ttl::MOST)
}

fn segments(text: &str) -> Result<SegmentCount, String> {
    let count = text.parse::<u64>().map_err(|error| error.to_string())?;
    SegmentCount::new(count).map_err(|error| error.to_string())
}

const STORE_EXAMPLES: &str = "\
Examples:
  storeserver                        a node; again in another terminal: a second one, in the same ring
  storeserver --port 9950            on a port of its own
  storeserver --peer 10.0.0.7:9900 --listen 10.0.0.8:9900 --insecure
                                     a node of a ring that spans machines
  storeserver --discover --listen 0.0.0.0:9900 --insecure
                                     the same on every machine of a LAN: they find each other
  storeserver --gate velour=127.0.0.1:8000
                                     a node, and beside it HTTP as `storegate` speaks it
  storeserver --memory               nothing on disk
  storeserver --data-dir old/9901 --port 9955
                                     a member that moved to another port

Ctrl-C hands this node's keys to the others and leaves the ring.
A service manager that sets NOTIFY_SOCKET is told when the node serves, what it is at, and that it lives.

Exit codes: 0 ok, 2 wrong usage, 3 unavailable (a port or directory in use, a disk that fails), 4 conflict
(a directory or a ring of another name, kind or format).";

const LOCATION_EXAMPLES: &str = "\
Examples:
  location                           a node of the location service alone
  location 9905                      on a port of its own
  location localhost:9900 9901       ask the node at localhost:9900, listen on 9901

Exit codes: 0 ok, 2 wrong usage, 3 unavailable (a port or directory in use, a disk that fails), 4 conflict
(a directory or a ring of another name, kind or format).";

impl Options {
    /// Reads the command line, or ends the program with a message.
    pub(crate) fn read(kind: Kind) -> Parsed {
        let (name, about, examples) = match kind {
            Kind::Store => {
                ("storeserver", "Runs a node of the store: finds the ring, or makes one", STORE_EXAMPLES)
            }
            Kind::Location => ("location", "Runs a node of the location service alone", LOCATION_EXAMPLES),
        };
        let command = Options::command().name(name).about(about).after_help(examples);
        let matches = command_line::matches(command.clone(), "8");
        let options = Options::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        match Parsed::new(kind, options) {
            Ok(parsed) => parsed,
            Err(Usage(why)) => command.clone().error(clap::error::ErrorKind::ValueValidation, why).exit(),
        }
    }
}

fn not_encrypted(address: &SocketAddr) -> Usage {
    Usage(format!(
        "{address} can be reached from other machines, and the traffic is not encrypted: \
         add --insecure if that is what you want"
    ))
}

/// Options that make sense together.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) options: Options,
    /// Where to listen, if that was said.
    pub(crate) listen: Option<SocketAddr>,
    /// The host by which others reach it, if it isn't the one it listens on.
    pub(crate) host: Option<Ipv4Addr>,
    pub(crate) peers: Vec<Address>,
    pub(crate) threads: Option<usize>,
    pub(crate) on_term: Command,
}

impl std::ops::Deref for Parsed {
    type Target = Options;

    fn deref(&self) -> &Options {
        &self.options
    }
}

/// Whether this node may and can be reached where it is to listen; and by which host, if not by that one.
fn reached_by(options: &Options, listen: Option<SocketAddr>) -> Result<Option<Ipv4Addr>, Usage> {
    let Some(listen) = listen.filter(|listen| !listen.ip().is_loopback()) else {
        return match options.discover && options.advertise.is_none() {
            true => Err(Usage(
                "with --discover, nodes on other machines are to find this one, and nobody there can reach it on \
                 loopback: add --listen 0.0.0.0:9900 --insecure, or an address of this machine"
                    .into(),
            )),
            false => Ok(None),
        };
    };
    if !options.insecure {
        return Err(Usage(format!(
            "{listen} can be reached from other machines, and the traffic is not encrypted: add --insecure if \
             that is what you want"
        )));
    }
    match listen.ip() {
        _ if options.advertise.is_some() => Ok(None),
        IpAddr::V4(ip) if ip.is_unspecified() && options.discover => match own_address() {
            Ok(host) => Ok(Some(host)),
            Err(why) => Err(Usage(format!(
                "this machine's addresses {why}: say with --advertise HOST:PORT which one others reach this node at"
            ))),
        },
        ip if ip.is_unspecified() => Err(Usage(format!(
            "with --listen {listen}, say with --advertise HOST:PORT how others reach this node"
        ))),
        _ => Ok(None),
    }
}

impl Parsed {
    fn new(kind: Kind, options: Options) -> Result<Self, Usage> {
        let address = |text: &str| text.parse::<Address>().map_err(|error| Usage(error.to_string()));
        // A variable that is set to nothing names no peer.
        let named = options.peer.iter().filter(|peer| !peer.is_empty());
        let mut peers = named.map(|peer| address(peer)).collect::<Result<Vec<_>, _>>()?;
        let (peer, port) = match &options.place[..] {
            [] => (None, None),
            [port] => (None, Some(port)),
            [peer, port, ..] => (Some(peer), Some(port)),
        };
        if let Some(peer) = peer {
            peers.push(address(peer)?);
        }
        let port =
            match port {
                Some(_) if options.port.is_some() || options.listen.is_some() => {
                    return Err(Usage("the port is given twice: leave one out".into()));
                }
                Some(port) => Some(port.parse().map_err(|_error| {
                    Usage(format!("{port:?} is not a port: give a number from 1 to 65535"))
                })?),
                None => options.port,
            };
        let listen = options.listen.or(port.map(|port| SocketAddr::from(([127, 0, 0, 1], port))));
        let host = reached_by(&options, listen)?;
        if let Some((_, gate)) = options.gate.iter().find(|(_, gate)| !gate.ip().is_loopback())
            && !options.insecure
        {
            return Err(not_encrypted(gate));
        }
        if kind == Kind::Location && !options.gate.is_empty() {
            return Err(Usage(
                "a location node stores nothing for a --gate to tell: start `storeserver`".into(),
            ));
        }
        let name = |what, text: &str| match text.len() > MAX_NAME_BYTES {
            true => Err(Usage(format!("the {what}'s name has more than {MAX_NAME_BYTES} bytes"))),
            false => Ok(()),
        };
        name("ring", &options.ring)?;
        name("zone", &options.zone)?;
        if options.ring.is_empty() {
            return Err(Usage("the ring's name is empty".into()));
        }
        if options.replace.is_some() && options.data_dir.is_none() && listen.is_none() {
            return Err(Usage(
                "with --replace, say whose directory is meant with --port or --data-dir".into(),
            ));
        }
        let threads = options.threads.map(usize::from);
        let on_term = match options.on_term {
            OnTerm::Leave => Command::Leave,
            OnTerm::Stop => Command::Stop,
        };
        Ok(Parsed { listen, host, peers, threads, on_term, options })
    }

    /// `replaces` is the member whose place this node takes.
    pub(crate) fn location_config(&self, replaces: Option<NodeId>) -> LocationConfig {
        LocationConfig {
            replaces,
            ring_name: self.ring.clone(),
            replicas: self.replicas,
            segments: self.segments,
            zone: self.zone.clone(),
            weight: self.weight,
            peers: self.peers.clone(),
            discover: self.discover,
            bootstrap: self.bootstrap,
            patience: Patience {
                pull_timeout: self.pull_timeout,
                remove_after: self.remove_after,
                collect_every: self.collect_every,
            },
            leave_timeout: self.leave_timeout,
            ..LocationConfig::default()
        }
    }
}
