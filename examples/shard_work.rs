//! Shares named jobs out over a ring, with the location service alone: no store, no keys.
//!
//! Each process is a node. A job runs on the node that owns its name; when nodes come and go, the
//! jobs move with the segments, as few as possible. Start it in several terminals, and end some
//! of them with Ctrl-C:
//!
//! ```text
//! cargo run --example shard_work
//! ```

#![allow(clippy::print_stdout, reason = "it talks to the person who runs it")]

use std::collections::BTreeSet;
use std::sync::Arc;
use thrifty::core::layout::{Kind, Layout, Phase, Replicas};
use thrifty::core::node::NodeId;
use thrifty::location::LocationConfig;
use thrifty::location::state::NodeState;
use thrifty::node::{self, Command, Node, Role};
use thrifty::storage::vault::MemoryVault;
use thrifty::wire::channel::LOOPBACK_PORTS;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const JOBS: [&str; 12] = [
    "backup", "billing", "cleanup", "crawl", "export", "index", "mail", "metrics", "report", "resize",
    "sync", "thumbs",
];

/// The jobs that a node runs: those whose name it owns.
fn jobs_of(node: NodeId, layout: &Layout) -> BTreeSet<&'static str> {
    let owns = |job: &&str| layout.current_owners(layout.segment(job.as_bytes())).next() == Some(node);
    JOBS.into_iter().filter(owns).collect()
}

async fn listen() -> std::io::Result<TcpListener> {
    for port in LOOPBACK_PORTS {
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await {
            return Ok(listener);
        }
    }
    TcpListener::bind("127.0.0.1:0").await
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = listen().await?;
    let config = LocationConfig {
        ring_name: "shard-work".into(),
        kind: Kind::Location,
        // One owner per job: two nodes never run the same one in a stable ring.
        replicas: Some(Replicas::Count(1)),
        ..LocationConfig::default()
    };
    let state = NodeState::open(Arc::new(MemoryVault::new()))?;
    let address = listener.local_addr()?.into();
    println!("node {:.8} on {address}, looking for others", state.id);
    let (commands, inbox) = mpsc::channel(1);
    let node = Node { address, state, durable: false, config, role: Role::Location };
    let (location, running) = node::start(listener, node, inbox);

    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            println!("handing my jobs over");
            let _already_gone = commands.send(Command::Leave).await;
        }
    });
    let me = location.me();
    let mut layouts = location.watch();
    tokio::spawn(async move {
        let mut mine = BTreeSet::new();
        while let Ok(()) = layouts.changed().await {
            let Some(layout) = layouts.borrow_and_update().clone() else { continue };
            if layout.phase != Phase::Stable {
                continue;
            }
            let now = jobs_of(me, &layout);
            for job in now.difference(&mine) {
                println!("+ {job}");
            }
            for job in mine.difference(&now) {
                println!("- {job}");
            }
            println!("{} nodes, {} of {} jobs here", layout.members.len(), now.len(), JOBS.len());
            mine = now;
        }
    });
    running.await?;
    Ok(())
}
