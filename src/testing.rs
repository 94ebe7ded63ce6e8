//! A ring inside of a test, without a process or a folder.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let ring = thrifty::testing::ring(3).await?;
//! let client = ring.client().await?;
//! client.put("a", "apple").await?;
//! assert_eq!(client.get("a").await?.map(|found| found.value), Some("apple".into()));
//! # Ok(())
//! # }
//! ```
//!
//! Its nodes are the real ones, on ports of 127.0.0.1 that were free, and keep everything in memory. They
//! run in the test's runtime and end with it. No two rings ever meet, so that tests run side by side.

use crate::cache::CacheConfig;
use crate::client::{Client, ClientConfig, ClientError};
use crate::core::layout::{Kind, Phase};
use crate::core::node::Address;
use crate::location::state::NodeState;
use crate::location::{Departure, Location, LocationConfig};
use crate::node::{self, Command, Node, NodeError, Role};
use crate::storage::memory::MemoryEngine;
use crate::storage::vault::MemoryVault;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How long a ring may take to come to rest with all its nodes: some hundred times what it does take.
const SETTLED: Duration = Duration::from_secs(60);

/// Why there is no such ring.
#[derive(Debug, thiserror::Error)]
pub enum TestingError {
    /// A ring has one node at least, and this is about one that it doesn't have.
    #[error("there is no node {0}")]
    NoNode(usize),
    /// No port could be bound.
    #[error("no port of 127.0.0.1 can be had: {0}")]
    Bind(#[from] std::io::Error),
    /// A node ended in an error.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A node broke off, by a mistake in this program.
    #[error("a node broke off: {0}")]
    Broken(#[from] tokio::task::JoinError),
    /// The nodes did not become one ring in a minute.
    #[error("the ring did not come to rest with {0} nodes")]
    Restless(usize),
}

struct Member {
    address: Address,
    location: Location,
    commands: mpsc::Sender<Command>,
    running: JoinHandle<Result<Departure, NodeError>>,
}

/// See the module's documentation.
pub struct Ring {
    config: LocationConfig,
    members: Vec<Member>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

/// A ring of so many nodes, with three owners for each key, or as many as there are nodes.
pub async fn ring(nodes: usize) -> Result<Ring, TestingError> {
    ring_with(nodes, LocationConfig::default()).await
}

/// The same, with settings: how many owners a key has, say. Its name, kind and peers are set here.
pub async fn ring_with(nodes: usize, config: LocationConfig) -> Result<Ring, TestingError> {
    let name = format!("test {:032x}", rand::random::<u128>());
    let config = LocationConfig { ring_name: name, kind: Kind::Store, peers: Vec::new(), ..config };
    let mut ring = Ring { config, members: Vec::new() };
    for _ in 0..nodes.max(1) {
        ring.start().await?;
    }
    ring.settled().await?;
    Ok(ring)
}

impl Ring {
    /// Where its nodes are reached, in the order in which they came.
    pub fn addresses(&self) -> Vec<Address> {
        self.members.iter().map(|member| member.address.clone()).collect()
    }

    /// A client of this ring.
    pub async fn client(&self) -> Result<Client, ClientError> {
        Client::connect(self.addresses(), ClientConfig::default()).await
    }

    /// Has another node join, and waits until the ring is at rest with it.
    pub async fn join(&mut self) -> Result<Address, TestingError> {
        let address = self.start().await?;
        self.settled().await?;
        Ok(address)
    }

    /// Has the node of this index hand its keys over and go.
    pub async fn leave(&mut self, index: usize) -> Result<Departure, TestingError> {
        let departure = self.end(index, Command::Leave).await?;
        self.settled().await?;
        Ok(departure)
    }

    /// Stops the node of this index, which stays a member and does not come back.
    pub async fn stop(&mut self, index: usize) -> Result<Departure, TestingError> {
        self.end(index, Command::Stop).await
    }

    async fn end(&mut self, index: usize, command: Command) -> Result<Departure, TestingError> {
        if index >= self.members.len() {
            return Err(TestingError::NoNode(index));
        }
        let Member { commands, running, .. } = self.members.remove(index);
        let _ended_already = commands.send(command).await;
        Ok(running.await??)
    }

    async fn start(&mut self) -> Result<Address, TestingError> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = Address::from(listener.local_addr()?);
        let state = NodeState::open(Arc::new(MemoryVault::new()))
            .map_err(|error| NodeError::Storage(error.to_string()))?;
        let (peers, bootstrap) = (self.addresses(), self.members.is_empty());
        let config = LocationConfig { peers, bootstrap, ..self.config.clone() };
        let (engine, cache) = (Arc::new(MemoryEngine::new()), CacheConfig::default());
        let role = Role::Store { engine, free_space: None, cache };
        let (commands, inbox) = mpsc::channel(1);
        let node = Node { address: address.clone(), state, durable: false, config, role };
        let (location, running) = node::start(listener, node, inbox);
        let running = tokio::spawn(running);
        self.members.push(Member { address: address.clone(), location, commands, running });
        Ok(address)
    }

    /// Waits until all nodes know of a ring of just them that does not change any more.
    async fn settled(&self) -> Result<(), TestingError> {
        let count = self.members.len();
        let all = async {
            for Member { location, .. } in &self.members {
                let mut layouts = location.watch();
                let settled = layouts.wait_for(|layout| {
                    layout.as_ref().is_some_and(|l| l.phase == Phase::Stable && l.members.len() == count)
                });
                settled.await.map_err(|_ended| TestingError::Restless(count))?;
            }
            Ok(())
        };
        tokio::time::timeout(SETTLED, all).await.unwrap_or(Err(TestingError::Restless(count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::layout::Replicas;

    #[tokio::test]
    async fn a_ring_in_a_test_serves_and_changes() {
        let mut ring = ring(3).await.unwrap();
        let client = ring.client().await.unwrap();
        client.put("a", "apple").await.unwrap();
        ring.join().await.unwrap();
        assert_eq!(ring.leave(0).await.unwrap(), Departure::Left);
        assert_eq!(ring.addresses().len(), 3);
        assert_eq!(client.get("a").await.unwrap().unwrap().value, "apple");
        assert!(matches!(ring.stop(3).await, Err(TestingError::NoNode(3))));
        assert_eq!(ring.stop(0).await.unwrap(), Departure::Stopped);
        assert_eq!(client.get("a").await.unwrap().unwrap().value, "apple");
    }

    #[tokio::test]
    async fn every_node_holds_every_key_if_so_asked_as_nodes_come_and_go() {
        let config = LocationConfig { replicas: Some(Replicas::All), ..LocationConfig::default() };
        let mut ring = ring_with(2, config).await.unwrap();
        let client = ring.client().await.unwrap();
        let keys: Vec<String> = (0..50).map(|n| format!("key {n}")).collect();
        for key in &keys {
            client.put(key.clone(), "value").await.unwrap();
        }
        for change in 0..3 {
            match change {
                0 | 1 => drop(ring.join().await.unwrap()),
                _ => drop(ring.leave(0).await.unwrap()),
            }
            for (key, address) in
                keys.iter().flat_map(|key| ring.addresses().into_iter().map(move |a| (key, a)))
            {
                let held = client.get_local(&address, key.clone()).await.unwrap();
                assert!(held.is_some(), "{key} at {address} after change {change}");
            }
        }
    }
}
