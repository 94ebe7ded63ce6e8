//! The command line.

use crate::TOOL;
use crate::common::options::{Connect, Level, seconds};
use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::time::Duration;
use thrifty::core::record::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

const EXAMPLES: &str = "\
Examples:
  storebench put                                  the ring on this machine, 10 seconds, as fast as it can
  storebench get --preload --keys 1000000         store a million keys first, then read
  storebench mix --rate 20000 --seconds 60        20,000 requests a second on a fixed schedule, half of
                                                  them reads, and how long each of them took
  storebench get --preload --consistency one --any-node --zipf 1.2
                                                  some keys far more often than others, from all nodes' caches
  storebench put --json > put.json                for programs
  storebench overload                             many more callers than the ring can serve, for a while

The ceiling to compare with, on the same machine:
  storebench null --listen 127.0.0.1:9990 &
  storebench put --peer 127.0.0.1:9990";

/// Measure a ring: requests per second, and how long they take.
#[derive(Parser)]
#[command(name = TOOL, version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Store values
    #[command(after_help = "Example:\n  storebench put --callers 256 --seconds 30")]
    Put(Load),
    /// Read values
    #[command(after_help = "Example:\n  storebench get --preload --consistency one")]
    Get(Load),
    /// Store and read
    #[command(after_help = "Example:\n  storebench mix --preload --read-ratio 0.95 --rate 10000")]
    Mix {
        #[command(flatten)]
        load: Load,
        /// Which part of the requests are reads, 0 to 1
        #[arg(long, value_name = "PART", default_value = "0.5", value_parser = ratio)]
        read_ratio: f64,
    },
    /// Ask for far more than the ring can do, and see what is answered in time and how soon all is well
    #[command(after_help = "Example:\n  storebench overload --crowd 20000 --timeout 2")]
    Overload(Overload),
    /// Serve the same protocol and do nothing: what the client could do at the most
    #[command(after_help = "Example:\n  storebench null --listen 127.0.0.1:9990")]
    Null(Null),
}

/// What is sent, and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct Load {
    #[command(flatten)]
    pub(crate) connect: Connect,

    /// How many requests are under way at once, at the most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) callers: u32,

    /// Connections to each node
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) connections: u16,

    /// How many keys there are to choose from, each as likely as any other unless there is a --zipf
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) keys: u64,

    /// Choose the Nth key with a likelihood of 1 / N^S, so that some are chosen far more often than others
    #[arg(long, value_name = "S", value_parser = exponent)]
    pub(crate) zipf: Option<f64>,

    /// Bytes of a key
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_most::<MAX_KEY_BYTES>)]
    pub(crate) key_bytes: usize,

    /// Bytes of a value
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = at_most::<MAX_VALUE_BYTES>)]
    pub(crate) value_bytes: usize,

    /// How long to measure
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub(crate) seconds: Duration,

    /// Measure this many requests instead, however long they take
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) requests: Option<u64>,

    /// Start this many requests a second on a fixed schedule; latency counts from when one was due
    #[arg(long, value_name = "R", value_parser = rate)]
    pub(crate) rate: Option<f64>,

    /// How many of a key's owners must answer
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t = Level::Quorum)]
    pub(crate) consistency: Level,

    /// Store every key first
    #[arg(long)]
    pub(crate) preload: bool,

    /// Send requests to all nodes in turn, rather than to the key's owner
    #[arg(long)]
    pub(crate) any_node: bool,

    /// Send requests for so long before the measurement; 0 for not at all
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = warmup)]
    pub(crate) warmup: Duration,

    /// Threads of this program
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) threads: usize,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Three phases of --seconds each: --callers in a closed loop, whose rate is the peak; then a crowd;
/// then --callers as before. What is answered within --timeout is good.
#[derive(Args, Clone, Debug)]
pub(crate) struct Overload {
    #[command(flatten)]
    pub(crate) load: Load,

    /// Which part of the requests are reads, 0 to 1
    #[arg(long, value_name = "PART", default_value = "0", value_parser = ratio)]
    pub(crate) read_ratio: f64,

    /// How many requests of the crowd are under way at once, at the most
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) crowd: u32,

    /// The crowd starts so many times the peak, at the most
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) times: u32,
}

/// The server that does nothing.
#[derive(Args, Clone, Debug)]
pub(crate) struct Null {
    /// Where to listen. Outside of 9900 to 9925, so that nobody takes it for a ring by accident
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9990")]
    pub(crate) listen: SocketAddr,

    /// Bytes of the value that every get returns
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = at_most::<MAX_VALUE_BYTES>)]
    pub(crate) value_bytes: usize,

    /// Threads
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) threads: usize,
}

fn at_most<const MAX: usize>(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n <= MAX).ok_or_else(|| format!("write a number from 0 to {MAX}"))
}

fn ratio(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|r| (0.0..=1.0).contains(r)).ok_or_else(|| "write a number from 0 to 1".into())
}

fn exponent(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|s| (0.0..=10.0).contains(s));
    number.ok_or_else(|| "write a number from 0 (all the same) to 10".into())
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|r| (0.1..=10_000_000.0).contains(r));
    number.ok_or_else(|| "write how many requests a second, from 0.1 to 10000000".into())
}

fn warmup(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { seconds(text) }
}

/// The load of `storebench put` with these options.
#[cfg(test)]
pub(crate) fn load_of(args: &[&str]) -> Load {
    match Cli::parse_from(["storebench", "put"].iter().chain(args)).command {
        Command::Put(load) => load,
        _ => unreachable!("a put was parsed"),
    }
}
