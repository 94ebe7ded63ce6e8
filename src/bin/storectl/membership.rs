//! `storectl leave` and `storectl shutdown`: both ask the node itself.

use crate::args::Target;
use crate::common::{self, Exit, Failure};
use crate::member::{self, NodeName};
use serde_json::json;
use thrifty::client::{Client, ClientError};
use thrifty::core::node::Address;
use thrifty::wire::location::{LeaveRequest, ShutdownRequest};
use tonic::Request;

/// Asks a node to leave. It does so in its own time.
pub(crate) async fn leave(target: &Target, node: Option<NodeName>, json: bool) -> Result<(), Failure> {
    let (client, address) = node_meant(target, node, "leave").await?;
    let request = timed(target, LeaveRequest {});
    client.location_at(&address).leave(request).await.map_err(|status| unanswered(&address, status))?;
    if json {
        return common::print(json!({ "leaving": address.as_str() }));
    }
    common::print(format!(
        "{address} is leaving: it exits when others hold all its keys; see `storectl status`"
    ))
}

/// Stops a node.
pub(crate) async fn shutdown(target: &Target, node: Option<NodeName>, json: bool) -> Result<(), Failure> {
    let (client, address) = node_meant(target, node, "shutdown").await?;
    let request = timed(target, ShutdownRequest {});
    client.location_at(&address).shutdown(request).await.map_err(|status| unanswered(&address, status))?;
    if json {
        return common::print(json!({ "stopping": address.as_str() }));
    }
    common::print(format!("{address} is stopping: it stays a member and keeps its keys"))
}

async fn node_meant(
    target: &Target,
    node: Option<NodeName>,
    command: &str,
) -> Result<(Client, Address), Failure> {
    let Some(name) = node else {
        let peer = target.connect.node(&format!("`storectl {command}` without NODE"))?;
        return Ok((target.client().await?, peer));
    };
    let client = target.client().await?;
    let status = client.status().await?;
    let address = &member::resolve(&status, &name)?.address;
    let address = address.parse().map_err(|error| {
        Failure::new(Exit::Conflict, format!("where node {name} listens is not known: {error}"))
    })?;
    Ok((client, address))
}

fn timed<T>(target: &Target, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(target.connect.timeout);
    request
}

fn unanswered(address: &Address, status: tonic::Status) -> Failure {
    if thrifty::wire::status::never_connected(&status) {
        return Failure::new(
            Exit::Unavailable,
            format!("nobody listens at {address}: nothing to stop there"),
        );
    }
    ClientError::from(status).into()
}
