//! velour: a value under its key.
//!
//! ```text
//! $ curl -d VALUE localhost:8000/KEY
//! $ curl localhost:8000/KEY
//! VALUE
//! ```

use super::super::body::{BODY_TIMEOUT, body};
use super::super::failed::Failed;
use super::super::gate::Gate;
use super::text::path_key;
use super::value;
use crate::core::record::MAX_VALUE_BYTES;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::sync::Arc;

pub(super) fn routes() -> Router<Arc<Gate>> {
    let key = get(read).post(write).delete(remove);
    Router::new().route("/", key.clone()).route("/{*key}", key)
}

async fn read(State(gate): State<Arc<Gate>>, uri: Uri) -> Result<Response, Failed> {
    let found = gate.get(path_key(&uri, "/")?).await?;
    Ok(found.map_or(StatusCode::NO_CONTENT.into_response(), value))
}

async fn write(State(gate): State<Arc<Gate>>, request: Request) -> Result<StatusCode, Failed> {
    let key = path_key(request.uri(), "/")?;
    let value = body(request, MAX_VALUE_BYTES, BODY_TIMEOUT).await?;
    gate.put(key, value, None).await?;
    Ok(StatusCode::OK)
}

async fn remove(State(gate): State<Arc<Gate>>, uri: Uri) -> Result<StatusCode, Failed> {
    gate.delete(path_key(&uri, "/")?).await?;
    Ok(StatusCode::NO_CONTENT)
}
