//! One node, put together: `run` binds nothing and reads no arguments, so that tests and other
//! programs start nodes the way the programs do.
//!
//! The order matters: the listener is bound already, then the node serves, and only then does it
//! look for a ring, so that of several that start at once no two miss each other. At the end it
//! goes on serving until it is out of the ring, then lets the requests it works on finish.
//!
//! What comes in is bounded at the `door`, by connections, below by what one connection may ask
//! for, and by the `guard`, by what all messages may take in memory; `health` is what others are
//! told of how the node does. `gate` serves what is no node, with the same bounds.

mod door;
#[cfg(feature = "gateway")]
pub mod gate;
mod guard;
mod health;

#[cfg(feature = "store")]
use crate::cache::CacheConfig;
use crate::core::node::Address;
#[cfg(feature = "gateway")]
use crate::gateway::native;
use crate::location::state::NodeState;
use crate::location::{Boxed, Departure, Location, LocationConfig, LocationError, NoSegments, agent};
#[cfg(feature = "store")]
use crate::store::{Store, commit::AnyEngine, room::FreeSpace};
use crate::wire::{DESCRIPTORS, MAX_STREAMS};
pub use door::Listener;
use door::Silent;
use guard::{Budgets, Guard};
use health::Health;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus::NotServing;

/// How long requests that are being worked on may take to finish once the node is out.
#[cfg(feature = "store")]
const DRAIN: Duration = Duration::from_secs(2);

/// How long the last answers may take on their way out.
const GOODBYE: Duration = Duration::from_millis(200);

/// Of all headers of a request together. The longest key has 12 KiB in the path of a plain HTTP
/// request, where each of its bytes may take three.
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// A connection that is silent for so long is asked whether it lives, and closed if it doesn't.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// What a node is told while it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Hand over and leave the ring.
    Leave,
    /// Stop at once and stay a member.
    Stop,
}

/// Why a node ended in an error.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It could not take part in a ring.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// Its storage failed: it stopped so as not to say anything that it can't keep.
    #[error("the storage failed, and the node stopped so as not to acknowledge what it can't keep: {0}")]
    Storage(String),
    /// What looks after the store broke off, by a mistake in this program.
    #[error("what looks after the store broke off, and the node stopped: {0}")]
    Housekeeping(String),
    /// Serving failed.
    #[error("serving failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// What a node does besides being in the ring.
pub enum Role {
    /// Nothing: it only knows who owns what.
    Location,
    /// It stores keys.
    #[cfg(feature = "store")]
    Store {
        /// Where.
        engine: AnyEngine,
        /// How much room there is left.
        free_space: Option<FreeSpace>,
        /// For reads at ONE of keys that other nodes hold.
        cache: CacheConfig,
    },
}

impl std::fmt::Debug for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Location => "Location",
            #[cfg(feature = "store")]
            Role::Store { .. } => "Store",
        })
    }
}

/// What a node is made of.
#[derive(Debug)]
pub struct Node {
    /// Where others reach it.
    pub address: Address,
    /// What it remembers.
    pub state: NodeState,
    /// Whether that survives a restart.
    pub durable: bool,
    /// How it takes part in the ring.
    pub config: LocationConfig,
    /// What it does.
    pub role: Role,
}

/// Runs a node on a bound listener until it leaves, is removed or told to stop.
pub async fn run(
    listener: impl Listener,
    node: Node,
    commands: mpsc::Receiver<Command>,
) -> Result<Departure, NodeError> {
    start(listener, node, commands).1.await
}

/// The same, with the handle to its place in the ring, for programs that want to know who owns
/// what. Nothing happens until the future is polled.
pub fn start(
    listener: impl Listener,
    node: Node,
    commands: mpsc::Receiver<Command>,
) -> (Location, impl Future<Output = Result<Departure, NodeError>>) {
    let Node { address, state, durable, config, role } = node;
    match role {
        Role::Location => {
            let (location, agent) = agent::start(address, config, state, durable, Arc::new(NoSegments));
            let serving = serve(listener, location.clone(), Box::pin(agent), None, commands);
            (location, serving)
        }
        #[cfg(feature = "store")]
        Role::Store { engine, free_space, cache } => {
            let store = Store::new(&state, engine, free_space, cache);
            let (location, agent) = agent::start(address, config, state, durable, Arc::new(store.clone()));
            store.attach(location.clone());
            let serving = serve(listener, location.clone(), Box::pin(agent), Some(store), commands);
            (location, serving)
        }
    }
}

/// The store of a node that has one.
#[cfg(feature = "store")]
type MaybeStore = Option<Store>;
#[cfg(not(feature = "store"))]
type MaybeStore = Option<std::convert::Infallible>;

async fn serve(
    listener: impl Listener,
    location: Location,
    mut agent: Boxed<Result<Departure, LocationError>>,
    store: MaybeStore,
    mut commands: mpsc::Receiver<Command>,
) -> Result<Departure, NodeError> {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let mut routes = Routes::new(health_service)
        .add_service(crate::location::service::location_service(location.clone()))
        .add_service(crate::location::service::peer_service(location.clone()));
    // What the standard tools ask for, in both of its versions. The descriptors were compiled in.
    let described =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    if let (Ok(v1), Ok(alpha)) = (described().build_v1(), described().build_v1alpha()) {
        routes = routes.add_service(v1).add_service(alpha);
    }
    #[cfg(feature = "store")]
    if let Some(store) = &store {
        let former = store.clone();
        match tokio::task::spawn_blocking(move || former.forget_former_life()).await {
            Ok(forgotten) => forgotten.map_err(|error| NodeError::Storage(error.to_string()))?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
        routes = routes
            .add_service(crate::store::service::store_service(store.clone()))
            .add_service(crate::store::service::peer_service(store.clone()));
    }
    let mut health = Health::new(reporter, for_clients(&store)).await;
    let routes = with_http(routes.prepare(), &store);
    let (stop_serving, stopped) = oneshot::channel::<()>();
    #[cfg(feature = "store")]
    let budget = store.as_ref().map(|store| store.budget().clone());
    #[cfg(not(feature = "store"))]
    let budget = None;
    let budgets = Budgets::new(budget);
    let incoming = door::incoming(listener, budgets.clone(), door::max_connections(), Silent::default());
    let serve = server().serve_with_incoming_shutdown(Guard::new(routes, budgets), incoming, async {
        let _told_or_dropped = stopped.await;
    });
    let mut server = tokio::spawn(serve);
    #[cfg(feature = "store")]
    let housekeeping = store.as_ref().map(|store| tokio::spawn(store.clone().housekeeping()));
    #[cfg(feature = "store")]
    let stop_housekeeping = housekeeping.as_ref().map(tokio::task::JoinHandle::abort_handle);
    #[cfg(feature = "store")]
    let mut broken = std::pin::pin!(broken(&store, housekeeping));
    #[cfg(not(feature = "store"))]
    let mut broken = std::future::pending();

    let mut going = false;
    let ended = loop {
        tokio::select! {
            () = health.follow(&location), if !going => {
                going = true;
                health.say(NotServing).await;
            }
            departure = &mut agent => break departure.map_err(NodeError::from),
            served = &mut server => match served {
                Ok(Ok(())) => break Ok(Departure::Stopped),
                Ok(Err(error)) => break Err(error.into()),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            },
            error = &mut broken => break Err(error),
            // A closed channel sends nothing any more: the branch is then off.
            Some(command) = commands.recv() => {
                going = true;
                health.say(NotServing).await;
                match command {
                    Command::Leave => location.leave().await,
                    Command::Stop => location.stop().await,
                }
            }
        }
    };
    health.say(NotServing).await;
    drop(stop_serving);
    #[cfg(feature = "store")]
    if let (Some(store), Ok(_)) = (&store, &ended) {
        drain(store).await;
        if let Some(housekeeping) = stop_housekeeping {
            housekeeping.abort();
        }
        let store = store.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || store.flush()).await {
            return Err(NodeError::Storage(error.to_string()));
        }
    }
    // Answers and farewells that are on their way get there; links would keep the server up for ever.
    if !server.is_finished() {
        let _links_remain = tokio::time::timeout(GOODBYE, &mut server).await;
    }
    server.abort();
    #[cfg(feature = "store")]
    if let Some(store) = &store {
        store.end_links();
    }
    ended
}

/// What one connection may ask for, and when it is taken for dead.
fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        // A client may run out of patience with all of them at once, while the node hangs.
        .http2_max_pending_accept_reset_streams(Some(MAX_STREAMS as usize))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .accept_http1(cfg!(feature = "gateway"))
}

/// The services that this node serves to clients.
fn for_clients(store: &MaybeStore) -> Vec<&'static str> {
    let location = crate::wire::location::location_server::SERVICE_NAME;
    #[cfg(feature = "store")]
    if store.is_some() {
        return vec![location, crate::wire::store::store_server::SERVICE_NAME];
    }
    let _without_store = store;
    vec![location]
}

/// Adds plain HTTP beside gRPC, where this build has it and the node a store.
fn with_http(routes: Routes, store: &MaybeStore) -> Routes {
    #[cfg(feature = "gateway")]
    if let Some(store) = store {
        let routes = routes.into_axum_router().merge(native::routes(store.clone()));
        return Routes::from(routes.fallback(native::nothing_there));
    }
    let _without_gateway = store;
    routes
}

/// Waits until the store, if there is one, can't go on, and says why.
#[cfg(feature = "store")]
async fn broken(store: &MaybeStore, housekeeping: Option<tokio::task::JoinHandle<()>>) -> NodeError {
    let (Some(store), Some(housekeeping)) = (store, housekeeping) else {
        return std::future::pending().await;
    };
    tokio::select! {
        why = store.failed() => NodeError::Storage(why),
        ended = housekeeping => {
            NodeError::Housekeeping(ended.map_or_else(|panic| panic.to_string(), |()| "it ended".to_owned()))
        }
    }
}

/// Waits until no client request is being worked on any more, or for long enough.
#[cfg(feature = "store")]
async fn drain(store: &Store) {
    let end = tokio::time::Instant::now() + DRAIN;
    while store.in_flight() > 0 && tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[cfg(all(test, feature = "store"))]
mod tests {
    use super::*;
    use crate::core::layout::Kind;
    use crate::storage::simulated::SimulatedEngine;
    use crate::storage::vault::MemoryVault;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test]
    async fn a_node_whose_housekeeping_panics_ends_and_says_so() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let state = NodeState::open(Arc::new(MemoryVault::new())).unwrap();
        // Asked first as the node becomes a member, then by the housekeeping.
        let asked = AtomicBool::new(false);
        let bytes = move || match asked.swap(true, Ordering::Relaxed) {
            false => Ok(u64::MAX),
            true => panic!("a mistake"),
        };
        let free_space = Some(FreeSpace { folder: "data/1".into(), bytes: Box::new(bytes) });
        let (engine, cache) = (Arc::new(SimulatedEngine::new()), CacheConfig::default());
        let role = Role::Store { engine, free_space, cache };
        let config = LocationConfig { kind: Kind::Store, bootstrap: true, ..LocationConfig::default() };
        let node = Node { address, state, durable: false, config, role };
        let (_commands, inbox) = mpsc::channel(1);
        let ended = tokio::time::timeout(Duration::from_secs(20), run(listener, node, inbox)).await;
        let error = ended.expect("it ends").unwrap_err();
        assert!(matches!(&error, NodeError::Housekeeping(why) if why.contains("a mistake")), "{error}");
    }
}
