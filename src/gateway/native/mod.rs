//! The store for whoever has nothing but HTTP: keys and values as raw bytes, lists and what is told in JSON.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /v1/kv/KEY`, `HEAD` | 200 with the value, its type and its version as ETag; 304; 404; 412 |
//! | `PUT /v1/kv/KEY`, `POST` | 204 with the version as ETag |
//! | `DELETE /v1/kv/KEY` | 204, whether or not it was there |
//! | `GET /v1/kv` | 200 with a page of keys, in the order of the ring (see `list`) |
//! | `POST /v1/batch` | 200 with how each of many puts, gets and deletes ended (see `batch`) |
//! | `GET /v1/status`, `/v1/ring` | 200 with what `storectl status --json` and `storectl ring --json` print |
//! | `GET /livez`, `/readyz` | 200; `/readyz` 503 until the node is part of a ring |
//!
//! A key is what comes after `/v1/kv/`, percent-decoded: any 1 to 4096 bytes. `/`, `//`, `.` and `..` are bytes
//! like others, and so is `+`.
//!
//! | parameter | where | what |
//! | --- | --- | --- |
//! | `consistency=one\|quorum\|all` | keys, list, batch | how many owners must answer; quorum |
//! | `fallback=one` | keys, list, batch | be content with one owner where no quorum answers |
//! | `local=true` | `GET` of a key, list | only what this node holds itself, which counts as one |
//! | `ttl=30s` | `PUT` of a key | for how long the value is kept (in ms, s, m, h or d) |
//! | `prefix`, `limit`, `page_token`, `values` | list | see there |
//!
//! Any other, or one given twice, is 400.
//!
//! `Thrifty-Consistency` says how many owners answered. `Thrifty-Expires-At-Ms` is when the value expires, in
//! milliseconds since 1970; without it, it never does. `If-Match` and `If-None-Match` are for `GET` and `HEAD`
//! only: a write with a condition is 501 and nothing is done, since the store has no conditional writes.
//!
//! An outcome that is unknown is 504, "nothing was done" is 503 with Retry-After, and 429 with it where a node
//! has too much to do or the disks are full; 408 if a body takes too long to arrive, 413 if it is too large.
//! Every other answer than 2xx and 304 has a line of text that says why, but for those given before the request
//! is understood: 400 for what is no HTTP, 414 for too long a path, 431 for too many headers.

mod about;
mod batch;
mod conditions;
mod keys;
mod list;
mod query;
mod text;

use super::failed::Failed;
use super::pages::only_local_pages;
use crate::store::Store;
use crate::wire::budget::Held;
use crate::wire::convert;
use axum::Extension;
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
#[cfg(any(feature = "fuzzing", test))]
pub(crate) use keys::found;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How many owners answered.
const CONSISTENCY: HeaderName = HeaderName::from_static("thrifty-consistency");

/// What a request holds of the node's budget, where somebody counts it.
type Holds = Option<Extension<Arc<Held>>>;

/// The routes of a store.
pub fn routes(store: Store) -> Router {
    let key = || get(keys::read).put(keys::write).post(keys::write).delete(keys::remove);
    Router::new()
        .route("/v1/kv/{*key}", key())
        // The empty key, which is told that it is none.
        .route("/v1/kv/", key())
        .route("/v1/kv", get(list::list))
        .route("/v1/batch", post(batch::batch))
        .route("/v1/status", get(about::status))
        .route("/v1/ring", get(about::ring))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(about::ready))
        .method_not_allowed_fallback(not_allowed)
        .layer(middleware::from_fn(only_local_pages))
        .with_state(store)
}

/// What is told to whoever asks for something that is not there: over gRPC, or by plain HTTP.
pub async fn nothing_there(request: Request) -> Response {
    let kind = request.headers().get(header::CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return Status::unimplemented("").into_http();
    }
    Failed::new(StatusCode::NOT_FOUND, "nothing is served here; keys are under /v1/kv/").into_response()
}

async fn not_allowed(method: Method) -> Failed {
    let message = format!("{method} can't be done here; the header Allow says what can");
    Failed::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

/// Counts what an answer takes, until it has left.
fn hold(holds: &Holds, bytes: usize) -> Result<(), Status> {
    holds.as_ref().map_or(Ok(()), |Extension(held)| held.grow(bytes))
}

/// The consistency achieved, as its header has it.
fn achieved(number: i32) -> HeaderValue {
    HeaderValue::from_static(convert::consistency(number).map_or("unknown", |achieved| achieved.name()))
}

/// A JSON text as an answer. It may be another one soon.
fn json(mut text: Vec<u8>) -> Response {
    text.push(b'\n');
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))], text)
        .into_response()
}
