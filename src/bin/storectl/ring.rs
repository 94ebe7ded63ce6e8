//! Finding the ring that is meant, and connecting to it.

use crate::args::{RingKind, Target};
use crate::common::options::{Care, must_store};
use crate::common::{Exit, Failure};
use thrifty::client::{Client, ClientConfig, ClientError};
use thrifty::core::layout::Kind;
use thrifty::core::node::Address;

impl From<RingKind> for Kind {
    fn from(kind: RingKind) -> Self {
        match kind {
            RingKind::Location => Kind::Location,
            RingKind::Store => Kind::Store,
        }
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Location => "location",
        Kind::Store => "store",
    }
}

impl Target {
    /// A client of the ring that is meant, of whatever kind.
    pub(crate) async fn client(&self) -> Result<Client, Failure> {
        let config = ClientConfig { timeout: self.connect.timeout, ..ClientConfig::default() };
        self.connect_with(config).await
    }

    /// A client of the store ring that is meant.
    pub(crate) async fn store(&self, care: &Care) -> Result<Client, Failure> {
        let config = ClientConfig { timeout: self.connect.timeout, ..care.config() };
        must_store(self.connect_with(config).await?)
    }

    async fn connect_with(&self, config: ClientConfig) -> Result<Client, Failure> {
        let mut seeds = self.connect.peers();
        if seeds.is_empty() || self.connect.discover {
            seeds = self.find().await?;
        }
        let client = Client::connect(seeds, config).await?;
        let layout = client.layout();
        if let Some(wanted) = self.ring.as_ref().filter(|wanted| **wanted != layout.name) {
            let message =
                format!("the ring there is named {}, not {wanted}: mend --peer or --ring", layout.name);
            return Err(Failure::new(Exit::Conflict, message));
        }
        if let Some(wanted) = self.kind.map(Kind::from).filter(|wanted| *wanted != layout.kind) {
            let (is, wanted) = (name(layout.kind), name(wanted));
            let message =
                format!("ring {} is of kind {is}, not {wanted}: mend --peer or --kind", layout.name);
            return Err(Failure::new(Exit::Conflict, message));
        }
        Ok(client)
    }

    async fn find(&self) -> Result<Vec<Address>, ClientError> {
        let ring = self.ring.as_deref();
        if let Some(kind) = self.kind {
            return self.connect.find(kind.into(), ring).await;
        }
        match self.connect.find(Kind::Store, ring).await {
            // Whoever runs no ring at all most likely wants a store: keep what was said of that.
            Err(none @ ClientError::NoNode(_)) => match self.connect.find(Kind::Location, ring).await {
                Err(ClientError::NoNode(_)) => Err(none),
                other => other,
            },
            other => other,
        }
    }
}
