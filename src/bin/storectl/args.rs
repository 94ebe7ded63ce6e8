//! The command line.

use crate::TOOL;
use crate::common::key::Key;
use crate::common::options::{Care, Connect, seconds};
use crate::common::value::{Get, Put};
use crate::export::Export;
use crate::import::Import;
use crate::ls::Ls;
use crate::member::NodeName;
use crate::top::Top;
use crate::watch::Watch;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  storectl status                           how the ring on this machine is doing
  storectl --peer 10.0.0.5:9900 status      how that node's ring is doing
  storectl ls user/                         the keys that begin so; also: get, put, del
  storectl export > all.jsonl               keys and values; `import` stores them again
  storectl watch                            who joins and leaves, as it happens
  storectl locate apple                     who owns the key `apple`
  storectl leave 3fa9                       have the node whose id begins so hand its keys over and go
  storectl --kind location ring             the table of a ring of the location service

NODE is a node's id, its first digits (4 at least), or its HOST:PORT.

Exit codes: 0 ok, 1 no such node or key, 2 wrong usage, 3 unavailable (nothing done), 4 refused or conflict,
or what `verify` found to differ, 5 outcome unknown.";

/// Ask a ring how it is, and change who is in it.
#[derive(Parser)]
#[command(name = TOOL, version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) target: Target,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which ring is meant.
#[derive(Args, Clone, Debug)]
pub(crate) struct Target {
    #[command(flatten)]
    pub(crate) connect: Connect,

    /// The ring's name, where there are several or to make sure
    #[arg(long, value_name = "NAME", env = "THRIFTY_RING", global = true)]
    pub(crate) ring: Option<String>,

    /// The kind of ring; without it, whichever is found, a store first
    #[arg(long, value_name = "KIND", value_enum, global = true)]
    pub(crate) kind: Option<RingKind>,
}

/// What a ring's members do.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RingKind {
    /// Nodes of the location service alone, started by `location`
    Location,
    /// Nodes that store keys, started by `storeserver`
    Store,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// How the ring and each of its nodes is doing
    #[command(after_help = "\
Examples:
  storectl status
  storectl status --json | jq .may_lose
  storectl status --keys | less             then each key with the time of its last write, in UTC

With --keys --json the status is one line, and then there is one for each key: key (key_base64 if it is
not UTF-8), version, written_at, expires_at_ms.")]
    Status {
        /// Also every key of the ring, as `ls` prints it, and when it was written last
        #[arg(long)]
        keys: bool,
        #[command(flatten)]
        care: Care,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// The members and their shares; with --json the whole table
    #[command(after_help = "Examples:\n  storectl ring\n  storectl ring --json | jq '.rows[0]'")]
    Ring {
        /// Print the whole table as JSON: for each segment its owners, as indexes into `members`
        #[arg(long)]
        json: bool,
    },
    /// Who owns a key, whether or not anything is stored under it
    #[command(
        after_help = "Examples:\n  storectl locate apple\n  storectl locate apple --json | jq -r '.owners[0].address'"
    )]
    Locate {
        #[command(flatten)]
        key: Key,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// What the nodes are doing, again and again: requests, how long they take, keys, handoffs
    Top(Top),
    /// Each new layout of the ring, as it is installed: who joins, who leaves, how far that is
    Watch(Watch),
    /// Keys and values, as lines of JSON
    Export(Export),
    /// Store what lines of JSON say, as `export` writes them
    Import(Import),
    /// The keys, one a line, in the order of the ring; `sort` sorts them
    Ls(Ls),
    /// Print the value under a key, byte for byte, as `storeget` does
    #[command(after_help = "\
Examples:
  storectl get apple
  storectl --peer 127.0.0.1:9901 get --local apple      only if that node holds it itself
  storectl get --escaped 'photo\\xff\\n'                a key as `storectl ls` prints it")]
    Get(Get),
    /// Store a value under a key, as `storeput` does
    #[command(
        visible_alias = "set",
        after_help = "\
Examples:
  storectl put apple red
  storectl set apple - < photo.jpg          the value is what stdin says, byte for byte
  storectl put --ttl 30m session xyz        gone after half an hour"
    )]
    Put(Put),
    /// Delete a key; it is no error if there is nothing under it
    #[command(after_help = "Examples:\n  storectl del apple\n  storectl del --strict apple")]
    Del {
        #[command(flatten)]
        key: Key,
        #[command(flatten)]
        care: Care,
        /// Print the version of the deletion and the consistency achieved, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Store the NATO alphabet, to have something to look at: A = Alpha to Z = Zulu
    #[command(after_help = "Examples:\n  storectl prime && storeget N")]
    Prime {
        #[command(flatten)]
        care: Care,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Whether all owners of all keys hold the same
    #[command(after_help = "\
Examples:
  storectl verify                   exit code 0: they do; 4: they don't, and which segments differ
  storectl verify --wait 60         give a ring that is being written to, or that heals, a minute")]
    Verify {
        /// How long what differs may take to become the same: writes under way look like differences
        #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
        wait: Duration,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Have all nodes compare what they hold with each other now, and catch up
    #[command(after_help = "Examples:\n  storectl repair && storectl verify")]
    Repair {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Have a node hand its keys over, leave the ring and exit
    #[command(after_help = "Examples:\n  storectl leave 3fa9\n  storectl --peer 127.0.0.1:9901 leave")]
    Leave {
        /// Which; without it, the one at --peer
        node: Option<NodeName>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a node that is down and won't come back
    #[command(after_help = "\
Examples:
  storectl remove 3fa9              others gather its segments; needs a quorum of each of them
  storectl remove 3fa9 --force      where there is none: drops every node that can't be reached, and
                                    with them what only they hold")]
    Remove {
        /// Which
        node: NodeName,
        /// Go on without what only unreachable nodes hold. On a terminal it asks first; elsewhere it
        /// says what may be lost and goes on
        #[arg(long)]
        force: bool,
        /// With --force: don't ask on a terminal either
        #[arg(long, requires = "force")]
        yes: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Stop a node; it stays a member and keeps its keys
    #[command(after_help = "Examples:\n  storectl shutdown 3fa9\n  storectl --peer 127.0.0.1:9901 shutdown")]
    Shutdown {
        /// Which; without it, the one at --peer
        node: Option<NodeName>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}
