//! Where a node lives: which directory, and which port.
//!
//! Without options a server resumes the first directory under `./thrifty-data/` that nobody uses
//! and that holds a membership, on that directory's port; else one whose node left its ring; else
//! it takes the next free port and a directory of that name.

use super::options::Parsed;
use anyhow::Context;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thrifty::core::layout::{Kind, Layout};
use thrifty::core::node::{Address, NodeId};
use thrifty::location::state::{Memory, installed, peek, removed_from, save_departure, whose};
use thrifty::news;
use thrifty::storage::StorageError;
use thrifty::storage::data_dir::{DataDir, DataDirError};
use thrifty::storage::disk::DiskEngine;
use thrifty::storage::engine::Engine;
use thrifty::wire::channel::LOOPBACK_PORTS;
use tokio::net::TcpListener;

/// Under which the directories of nodes are, one a port.
const ROOT: &str = "thrifty-data";

/// Why a node can't live where it was told to. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    /// Somebody listens there.
    #[error("{0} is in use: choose another port with --port, or leave it out to take the next free one")]
    InUse(SocketAddr),

    /// Somebody listens where a gate is to.
    #[error("{0} is in use: choose another port for --gate")]
    GateInUse(SocketAddr),

    /// The operating system refuses.
    #[error("{address} can't be listened on")]
    Unbound {
        /// Where.
        address: SocketAddr,
        /// What it said.
        source: io::Error,
    },

    /// All of the range are in use, or their directories are.
    #[error(
        "no port from {} to {} is free with a directory to use: give one with --port and --data-dir",
        LOOPBACK_PORTS.start(),
        LOOPBACK_PORTS.end()
    )]
    NoPort,

    /// The directory is that of a node of the other kind.
    #[error("{} belongs to a {kind} node: start it with `{program}`, or give another --data-dir", path.display())]
    OtherKind {
        /// The directory.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// The program for it.
        program: &'static str,
    },

    /// The directory is that of a node of another ring.
    #[error("{} belongs to ring {ring:?}: give --ring {ring:?}, or another --data-dir", path.display())]
    OtherRing {
        /// The directory.
        path: PathBuf,
        /// That ring.
        ring: String,
    },

    /// The directory is not damaged.
    #[error(
        "{} is sound: leave --replace out to go on with it, or give its data up with --replace={id}",
        path.display()
    )]
    Sound {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        id: NodeId,
    },
}

/// A bound listener, and the directory that goes with it.
pub(crate) struct Place {
    pub(crate) listener: TcpListener,
    pub(crate) address: Address,
    pub(crate) directory: Option<Arc<DataDir>>,
    /// The member whose place is taken.
    pub(crate) replaces: Option<NodeId>,
}

/// Chooses; `again` is where the node listened that starts over in the same process.
pub(crate) async fn choose(kind: Kind, options: &Parsed, again: Option<SocketAddr>) -> anyhow::Result<Place> {
    let listen = again.or(options.listen);
    if options.memory {
        let listener = match listen {
            Some(address) => bind(address).await?,
            None => next_free_port(|_| true).await?,
        };
        return place(options, listener, None);
    }
    // Bound first: a port in use is the clearer message than its directory in use, and it must not
    // leave a new directory behind.
    if let Some(path) = &options.data_dir {
        let listener = match listen {
            Some(address) => bind(address).await?,
            None => next_free_port(|_| true).await?,
        };
        let directory = DataDir::open(path)?;
        fits(kind, options, &directory)?;
        return place(options, listener, Some(directory));
    }
    if let Some(address) = listen {
        let listener = bind(address).await?;
        let port = listener.local_addr()?.port();
        let directory = DataDir::open(of_port(port))?;
        fits(kind, options, &directory)?;
        return place(options, listener, Some(directory));
    }
    for wanted in [Memory::Member(kind), Memory::Left(kind), Memory::Removed(kind)] {
        for path in DataDir::candidates(ROOT) {
            let Some(port) = port_of(&path) else { continue };
            let Some(directory) = unused(&path)? else { continue };
            let (memory, ring) = peek(&directory.vault()).with_context(|| format!("{}", path.display()))?;
            if memory == wanted
                && ring.as_deref() == Some(&options.ring)
                && let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await
            {
                return place(options, listener, Some(directory));
            }
        }
    }
    loop {
        let mut directory = None;
        let listener = next_free_port(|port| {
            let opened = DataDir::open(of_port(port)).ok();
            directory = opened.filter(|d| {
                fits(kind, options, d).is_ok() && peek(&d.vault()).is_ok_and(|(m, _)| m == Memory::Fresh)
            });
            directory.is_some()
        })
        .await?;
        if directory.is_some() {
            return place(options, listener, directory);
        }
    }
}

fn place(options: &Parsed, listener: TcpListener, directory: Option<DataDir>) -> anyhow::Result<Place> {
    let (directory, replaces) = match (directory, options.replace) {
        (Some(directory), Some(of)) => replaced(directory, of).map(|(new, id)| (Some(new), id))?,
        (directory, _) => (directory.map(renewed).transpose()?, None),
    };
    let bound = listener.local_addr().context("the bound address can't be read")?;
    let reached = options.host.map_or(bound, |host| SocketAddr::from((host, bound.port())));
    let address = options.advertise.clone().unwrap_or_else(|| reached.into());
    Ok(Place { listener, address, directory: directory.map(Arc::new), replaces })
}

/// The directory itself; or, if its node was removed from its ring, a new one in its place.
fn renewed(directory: DataDir) -> anyhow::Result<DataDir> {
    match removed_from(&directory.vault())? {
        Some(last) => start_over(directory, Some(&last)),
        None => Ok(directory),
    }
}

/// Sets a directory aside for a new one in its place, whose node looks for the ring of this layout.
fn start_over(directory: DataDir, last: Option<&Layout>) -> anyhow::Result<DataDir> {
    let path = directory.path().to_owned();
    let aside = directory.set_aside()?;
    news!("the data of the node that was here is kept in {}", aside.display());
    let directory = DataDir::open(&path)?;
    if let Some(last) = last {
        save_departure(&directory.vault(), last)?;
    }
    Ok(directory)
}

/// With `--replace`: a directory for a new node, and the member that is to be removed for it. Started
/// again with the same options, it finds its own new directory and keeps it.
fn replaced(directory: DataDir, of: Option<NodeId>) -> anyhow::Result<(DataDir, Option<NodeId>)> {
    let vault = directory.vault();
    let here = whose(&vault);
    let last = removed_from(&vault).ok().flatten().or_else(|| installed(&vault).ok().flatten());
    if of.is_some() && here == of {
        return Ok((start_over(directory, last.as_deref())?, of));
    }
    let damaged = match peek(&vault) {
        // A member that does not know who it is.
        Ok((Memory::Member(_), _)) if here.is_none() => true,
        Ok((memory @ (Memory::Member(Kind::Store) | Memory::Fresh), _)) => is_damaged(&directory, memory),
        Ok(_) => false,
        Err(_) => true,
    };
    match (damaged, of) {
        (true, _) => Ok((start_over(directory, last.as_deref())?, of.or(here))),
        (false, Some(_)) => Ok((renewed(directory)?, of)),
        (false, None) => match here {
            Some(id) => Err(PlaceError::Sound { path: directory.path().to_owned(), id }.into()),
            None => Ok((directory, None)),
        },
    }
}

fn is_damaged(directory: &DataDir, memory: Memory) -> bool {
    matches!(engine(directory, memory), Err(StorageError::Corrupt { .. } | StorageError::Foreign { .. }))
}

/// The engine of a directory which remembers this. One that has lost what a member wrote there does not
/// start empty, and one whose node can't be told any more does not give away what it holds.
pub(super) fn engine(directory: &DataDir, memory: Memory) -> Result<DiskEngine, StorageError> {
    let path = directory.engine_path();
    match memory {
        Memory::Member(_) => DiskEngine::reopen(path),
        Memory::Left(_) | Memory::Removed(_) => DiskEngine::open(path),
        Memory::Fresh => {
            let engine = DiskEngine::open(path)?;
            let what = || format!("{} has lost its node's state, and holds keys", directory.path().display());
            if engine.slots().is_empty() { Ok(engine) } else { Err(StorageError::Corrupt { what: what() }) }
        }
    }
}

fn of_port(port: u16) -> PathBuf {
    Path::new(ROOT).join(port.to_string())
}

fn port_of(path: &Path) -> Option<u16> {
    path.file_name()?.to_str()?.parse().ok()
}

/// The directory, unless somebody else uses it.
fn unused(path: &Path) -> anyhow::Result<Option<DataDir>> {
    match DataDir::open(path) {
        Ok(directory) => Ok(Some(directory)),
        Err(DataDirError::InUse { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a directory can be this node's: of the same kind and ring, or new.
fn fits(kind: Kind, options: &Parsed, directory: &DataDir) -> anyhow::Result<()> {
    let path = directory.path();
    let peeked = peek(&directory.vault());
    if peeked.is_err() && options.replace.is_some() {
        return Ok(());
    }
    let (memory, ring) = peeked.with_context(|| format!("{}", path.display()))?;
    let of = match memory {
        Memory::Fresh => return Ok(()),
        Memory::Member(of) | Memory::Left(of) | Memory::Removed(of) => of,
    };
    let path = path.to_owned();
    if of != kind {
        let (kind, program) = match of {
            Kind::Store => ("store", "storeserver"),
            Kind::Location => ("location", "location"),
        };
        return Err(PlaceError::OtherKind { path, kind, program }.into());
    }
    match ring {
        Some(ring) if ring != options.ring => Err(PlaceError::OtherRing { path, ring }.into()),
        _ => Ok(()),
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, PlaceError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => PlaceError::InUse(address),
        _ => PlaceError::Unbound { address, source },
    })
}

/// The first port of the range that can be bound and that `suits`.
async fn next_free_port(mut suits: impl FnMut(u16) -> bool) -> Result<TcpListener, PlaceError> {
    for port in LOOPBACK_PORTS {
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await
            && suits(port)
        {
            return Ok(listener);
        }
    }
    Err(PlaceError::NoPort)
}
