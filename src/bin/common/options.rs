//! The options that the client tools share.

use super::{Exit, Failure, duration, notice};
use clap::{Args, ValueEnum};
use std::time::Duration;
use thrifty::client::{Client, ClientConfig, ClientError, find_on_loopback};
use thrifty::core::layout::Kind;
use thrifty::core::node::{Address, BadAddress};
use thrifty::core::quorum::Consistency;
use thrifty::location::lan;

/// Which ring is meant, and how patient to be.
#[derive(Args, Clone, Debug)]
pub(crate) struct Connect {
    /// A node of the ring; may be given several times. Without it, ports 9900 to 9925 of 127.0.0.1
    /// are asked
    #[arg(long, value_name = "HOST:PORT", env = "THRIFTY_PEER", value_delimiter = ',', global = true, value_parser = peer)]
    peer: Vec<Option<Address>>,

    /// Find a node that is announced on the local network, as those started with --discover are
    #[arg(long, global = true)]
    pub(crate) discover: bool,

    /// How long a request may take: seconds, or a number and a unit as in 500ms
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = seconds, global = true)]
    pub(crate) timeout: Duration,
}

impl Connect {
    /// A client of the store ring that is meant.
    pub(crate) async fn store(&self, care: &Care) -> Result<Client, Failure> {
        let client = self.client(ClientConfig { timeout: self.timeout, ..care.config() }).await?;
        must_store(client)
    }

    /// A client of the ring that is meant, of whatever kind; a store ring if it has to be found.
    pub(crate) async fn client(&self, config: ClientConfig) -> Result<Client, ClientError> {
        let mut seeds = self.peers();
        if seeds.is_empty() || self.discover {
            seeds = self.find(Kind::Store, None).await?;
        }
        Client::connect(seeds, config).await
    }

    /// The nodes of the ring that is meant, where none were named.
    pub(crate) async fn find(&self, kind: Kind, ring: Option<&str>) -> Result<Vec<Address>, ClientError> {
        if !self.discover {
            return find_on_loopback(kind, ring).await;
        }
        if !self.peers().is_empty() {
            let twice = "--peer (or THRIFTY_PEER) and --discover are both given: leave one out";
            return Err(ClientError::Invalid(twice.into()));
        }
        lan::find(kind, ring).await
    }

    /// The one node that was named, for what is asked of a node and not of the ring.
    pub(crate) fn node(&self, what: &str) -> Result<Address, Failure> {
        match &self.peers()[..] {
            [node] => Ok(node.clone()),
            _ => Err(Failure::new(
                Exit::Usage,
                format!("say which node: {what} takes one --peer HOST:PORT; see `storectl status`"),
            )),
        }
    }

    /// The nodes that were named.
    pub(crate) fn peers(&self) -> Vec<Address> {
        self.peer.iter().flatten().cloned().collect()
    }
}

/// Refuses a ring that stores nothing.
pub(crate) fn must_store(client: Client) -> Result<Client, Failure> {
    let layout = client.layout();
    if layout.kind == Kind::Store {
        return Ok(client);
    }
    let message = format!(
        "ring {} locates keys and stores none: give --peer a node that `storeserver` started",
        layout.name
    );
    Err(Failure::new(Exit::Conflict, message))
}

/// How sure a request has to be.
#[derive(Args, Clone, Debug)]
pub(crate) struct Care {
    /// How many of the key's owners must answer
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t = Level::Quorum)]
    pub(crate) consistency: Level,

    /// Fail where no quorum is up, rather than be content with one owner and say so
    #[arg(long)]
    pub(crate) strict: bool,
}

impl Care {
    /// A client's settings with this care.
    pub(crate) fn config(&self) -> ClientConfig {
        let consistency = self.consistency.into();
        let fallback_to_one = !self.strict && consistency == Consistency::Quorum;
        ClientConfig { consistency, fallback_to_one, ..ClientConfig::default() }
    }

    /// Says so where less was achieved than was asked for.
    pub(crate) fn check(&self, tool: &str, done: &str, achieved: Consistency) {
        let asked = Consistency::from(self.consistency);
        if achieved < asked {
            let less = format!("{done} at consistency {}, not {}", achieved.name(), asked.name());
            notice(tool, &format!("{less}: too few of the key's owners answered (--strict refuses this)"));
        }
    }
}

/// [`Consistency`] as an option's value.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Level {
    /// One owner: available while one is, and may be stale
    One,
    /// A majority: the latest value
    Quorum,
    /// Every owner
    All,
}

impl From<Level> for Consistency {
    fn from(level: Level) -> Self {
        match level {
            Level::One => Consistency::One,
            Level::Quorum => Consistency::Quorum,
            Level::All => Consistency::All,
        }
    }
}

/// An address, or nothing: a variable of the environment that is set to nothing is as good as unset.
fn peer(text: &str) -> Result<Option<Address>, BadAddress> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

/// How long to wait: up to a day, since whoever waits longer has made a typing mistake.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    duration::between(text, Duration::from_millis(1), Duration::from_secs(86_400))
}
