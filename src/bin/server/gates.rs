//! The gates that run beside a node: frontends before its ring, as `storegate` is one.

use super::place::PlaceError;
use futures_util::future::join_all;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use thrifty::cache::CacheConfig;
use thrifty::client::ClientConfig;
use thrifty::gateway::dialects::{BadDialect, Dialect};
use thrifty::gateway::gate::{Gate, Wanted};
use thrifty::news;
use thrifty::node::gate::{Serving, serve};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// What a gate is to speak, and where.
pub(crate) type Asked = (Dialect, SocketAddr);

/// Reads `DIALECT=HOST:PORT`.
pub(crate) fn asked(text: &str) -> Result<Asked, String> {
    let example = "write DIALECT=HOST:PORT, for example simplestore=127.0.0.1:8001";
    let (dialect, address) = text.split_once('=').ok_or(example)?;
    let dialect = dialect.parse().map_err(|bad: BadDialect| bad.to_string())?;
    Ok((
        dialect,
        address.parse().map_err(|_bad| format!("{address:?} is no IP address and port: {example}"))?,
    ))
}

/// The gates of one life of a node, bound.
pub(crate) struct Gates(Vec<(Dialect, TcpListener)>);

/// Those that serve.
pub(crate) struct Open {
    end: Vec<oneshot::Sender<()>>,
    serving: Vec<JoinHandle<()>>,
    keeping: JoinHandle<()>,
}

impl Gates {
    /// Takes the ports.
    pub(crate) async fn bind(asked: &[Asked]) -> Result<Self, PlaceError> {
        let mut bound = Vec::new();
        for &(dialect, address) in asked {
            let listener = TcpListener::bind(address).await.map_err(|source| match source.kind() {
                ErrorKind::AddrInUse => PlaceError::GateInUse(address),
                _ => PlaceError::Unbound { address, source },
            })?;
            bound.push((dialect, listener));
        }
        Ok(Gates(bound))
    }

    /// Opens them before the ring of this name and the node that listens here.
    pub(crate) fn open(
        self,
        node: SocketAddr,
        ring: &str,
        cache: CacheConfig,
    ) -> std::io::Result<Option<Open>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let timeout = ClientConfig::default().timeout;
        let (peers, ring) = (vec![own(node).into()], Some(ring.to_owned()));
        let gate = Gate::new(Wanted { peers, ring, timeout, cache });
        let (mut end, mut serving) = (Vec::new(), Vec::new());
        for (dialect, listener) in self.0 {
            news!("{dialect} gate listens on {}", listener.local_addr()?);
            let (routes, (tell, told)) = (dialect.routes(gate.clone()), oneshot::channel());
            serving.push(tokio::spawn(async move {
                let served = Serving { grace: timeout, beside_a_node: true };
                if let Err(error) = serve(listener, routes, served, async { drop(told.await) }).await {
                    news!("the {dialect} gate failed: {error}");
                }
            }));
            end.push(tell);
        }
        Ok(Some(Open { keeping: tokio::spawn(async move { gate.keep().await }), end, serving }))
    }
}

impl Open {
    /// Ends them, after the requests that are under way.
    pub(crate) async fn close(self) {
        drop(self.end);
        let _ended = join_all(self.serving).await;
        self.keeping.abort();
    }
}

/// Where a node is reached from its own machine.
fn own(mut node: SocketAddr) -> SocketAddr {
    if node.ip().is_unspecified() {
        node.set_ip(if node.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    node
}
