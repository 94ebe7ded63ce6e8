//! The HTTP of three older stores, each spoken by a [`Gate`].
//!
//! | dialect | write | read | absent | delete |
//! | --- | --- | --- | --- | --- |
//! | `velour` | `POST /KEY`, the body is the value: 200 | `GET /KEY`: 200 | 204 | `DELETE /KEY`: 204 |
//! | `simplestore` | `GET /set?KEY=VALUE&...`: 200, JSON | `GET /get/KEY`: 200, JSON | 404, JSON | |
//! | `diststore` | `POST /` of a form, `POST /KEY`: 200 | `GET /get/KEY`: 200 | 404 | `DELETE /KEY`: 204 |
//!
//! `POST /local/KEY` of diststore writes at consistency ONE. Each module says more of its own.
//!
//! Keys are UTF-8 text without NUL and percent-encoded; since other programs on the way take a path's
//! empty, `.` and `..` parts for something else, a key that has such writes its slashes as `%2F`. Values
//! are bytes. A value is given as `application/octet-stream`, whatever it was sent as, and nothing that
//! is answered is to be kept by a cache.
//!
//! What goes wrong is told in a line of text, in `simplestore` as JSON: 400 a request that makes no sense,
//! 403 one of a web page of elsewhere, 405 with Allow another method, 408 a body that takes too long,
//! 413 too large a value, 415 a form of another kind, 503 and 429 with Retry-After when nothing was done,
//! 504 when the outcome of a write is unknown. What is no HTTP (400), too long a path (414), too many headers
//! (431) and more bytes at once than there is room for (429) are told by the status alone.

mod diststore;
mod simplestore;
mod text;
mod velour;

use super::failed::Failed;
use super::gate::Gate;
use super::pages::only_local_pages;
use crate::wire::budget::Held;
use axum::Router;
use axum::body::{Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Whose HTTP a gate speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialect {
    /// Values under their keys, as plain as can be.
    Velour,
    /// Everything by GET, answers in JSON.
    SimpleStore,
    /// Forms, and requests for a node's own copies.
    DistStore,
}

impl Dialect {
    /// All there are.
    pub const ALL: [Dialect; 3] = [Dialect::Velour, Dialect::SimpleStore, Dialect::DistStore];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Velour => "velour",
            Dialect::SimpleStore => "simplestore",
            Dialect::DistStore => "diststore",
        }
    }

    /// What a gate that speaks it answers.
    pub fn routes(self, gate: Arc<Gate>) -> Router {
        let routes = match self {
            Dialect::Velour => velour::routes(),
            Dialect::SimpleStore => simplestore::routes(),
            Dialect::DistStore => diststore::routes(),
        };
        let routes = routes
            .fallback(async || Failed::new(StatusCode::NOT_FOUND, "there is nothing under this path"))
            .method_not_allowed_fallback(async || {
                Failed::new(StatusCode::METHOD_NOT_ALLOWED, "not by this method: see the header Allow")
            })
            .layer(middleware::from_fn(answered))
            .layer(middleware::from_fn(only_local_pages))
            .with_state(gate);
        match self {
            Dialect::SimpleStore => routes.layer(middleware::map_response(simplestore::errors_as_json)),
            _ => routes,
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no dialect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no dialect: give velour, simplestore or diststore")]
pub struct BadDialect(String);

impl FromStr for Dialect {
    type Err = BadDialect;

    fn from_str(text: &str) -> Result<Self, BadDialect> {
        let named = Dialect::ALL.into_iter().find(|dialect| dialect.name() == text);
        named.ok_or_else(|| BadDialect(text.to_owned()))
    }
}

/// Has an answer count for as long as it takes to leave, and kept by nobody on its way.
async fn answered(request: Request, next: Next) -> Response {
    let held = request.extensions().get::<Arc<Held>>().cloned();
    let mut response = next.run(request).await;
    let bytes = response.body().size_hint().exact().unwrap_or_default();
    if let Some(held) = held
        && let Err(status) = held.grow(usize::try_from(bytes).unwrap_or(usize::MAX / 2))
    {
        response = Failed::from(status).into_response();
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The answer that is a value.
fn value(value: Bytes) -> Response {
    const NOTHING_ELSE: [(HeaderName, &str); 2] =
        [(header::CONTENT_TYPE, "application/octet-stream"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (NOTHING_ELSE, value).into_response()
}
