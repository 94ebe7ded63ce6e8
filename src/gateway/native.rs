//! Keys and values for whoever has nothing but HTTP: raw bytes under `/v1/kv/KEY`.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /v1/kv/KEY` | 200 with the value, its type and its version as ETag; 404 |
//! | `PUT /v1/kv/KEY`, `POST` | 204 with the version as ETag; 408 if the value takes too long to arrive |
//! | `DELETE /v1/kv/KEY` | 204 |
//! | `GET /livez`, `/readyz` | 200; `/readyz` 503 until the node is part of a ring |
//!
//! `?consistency=one|quorum|all` says how many owners must answer, `?ttl=30s` on a write for how long the value
//! is kept (in ms, s, m, h or d). Keys are percent-encoded. An outcome that is unknown is 504,
//! "nothing was done" is 503 with Retry-After, and 429 with it where a node has too much to do or the disks
//! are full.
//!
//! Every request must name a host that is an IP address or `localhost`, and none may come from a
//! web page of another origin: a page in somebody's browser must not write to a node on his
//! machine.

use crate::core::record::MAX_VALUE_BYTES;
use crate::core::ttl::Ttl;
use crate::store::Store;
use crate::wire::budget::Held;
use crate::wire::convert;
use crate::wire::status;
use crate::wire::store::{Consistency, DeleteRequest, GetRequest, GetResponse, Options, PutRequest};
use axum::Extension;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Status};

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How long a value may take to arrive: the largest at less than a megabit a second. Until then
/// nothing is done.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The routes of a store.
pub fn routes(store: Store) -> Router {
    Router::new()
        .route("/v1/kv/{*key}", get(read).put(write).post(write).delete(remove))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .layer(DefaultBodyLimit::max(MAX_VALUE_BYTES))
        .layer(middleware::from_fn(only_local_pages))
        .with_state(store)
}

/// A gRPC status as an HTTP one.
struct Failed(Status);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let code = match self.0.code() {
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unavailable if status::nothing_done(&self.0) => StatusCode::SERVICE_UNAVAILABLE,
            Code::Aborted | Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut response = (code, format!("{}\n", self.0.message())).into_response();
        if status::nothing_done(&self.0) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

fn options(query: &HashMap<String, String>) -> Result<Option<Options>, Failed> {
    let consistency = match query.get("consistency").map(String::as_str) {
        None | Some("quorum") => Consistency::Quorum,
        Some("one") => Consistency::One,
        Some("all") => Consistency::All,
        Some(_) => return Err(Failed(Status::invalid_argument("consistency is one, quorum or all"))),
    };
    Ok(Some(Options { consistency: consistency.into(), fallback_to_one: false }))
}

/// For how long a value is to be kept, in milliseconds.
fn ttl_ms(query: &HashMap<String, String>) -> Result<Option<u64>, Failed> {
    let ttl = query.get("ttl").map(|text| text.parse::<Ttl>()).transpose();
    ttl.map(|ttl| ttl.map(Ttl::as_ms)).map_err(|bad| Failed(Status::invalid_argument(bad.to_string())))
}

type Asked = (State<Store>, Path<String>, Query<HashMap<String, String>>);

async fn read(
    (State(store), Path(key), Query(query)): Asked,
    held: Option<Extension<Arc<Held>>>,
) -> Result<Response, Failed> {
    let request = GetRequest { key: key.into(), options: options(&query)?, local: false };
    let found = store.get(request, TIMEOUT).await.map_err(Failed)?;
    if let Some(Extension(held)) = held {
        held.grow(found.value.len()).map_err(Failed)?;
    }
    Ok(self::found(found))
}

/// The answer with a value.
pub(crate) fn found(found: GetResponse) -> Response {
    let (etag_name, etag) = etag(found.version);
    // Over gRPC any text could be given.
    let kind = HeaderValue::try_from(found.content_type).ok().filter(|kind| !kind.is_empty());
    let kind = kind.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    ([(header::CONTENT_TYPE, kind)], [(etag_name, etag)], found.value).into_response()
}

async fn write(
    (State(store), Path(key), Query(query)): Asked,
    request: Request,
) -> Result<Response, Response> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_owned();
    let options = options(&query).map_err(IntoResponse::into_response)?;
    let ttl_ms = ttl_ms(&query).map_err(IntoResponse::into_response)?;
    let value = body(request, BODY_TIMEOUT).await?;
    let request = PutRequest { key: key.into(), value, options, content_type, ttl_ms };
    let written = store.put(request, TIMEOUT).await.map_err(|status| Failed(status).into_response())?;
    Ok((StatusCode::NO_CONTENT, [etag(written.version)]).into_response())
}

/// All of a request's body, if it arrives in time.
async fn body(request: Request, limit: Duration) -> Result<Bytes, Response> {
    match tokio::time::timeout(limit, Bytes::from_request(request, &())).await {
        Ok(arrived) => arrived.map_err(IntoResponse::into_response),
        Err(_late) => {
            Err((StatusCode::REQUEST_TIMEOUT, "the value did not arrive in time; nothing was done\n")
                .into_response())
        }
    }
}

async fn remove((State(store), Path(key), Query(query)): Asked) -> Result<Response, Failed> {
    let request = DeleteRequest { key: key.into(), options: options(&query)? };
    store.delete(request, TIMEOUT).await.map_err(Failed)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn ready(State(store): State<Store>) -> Response {
    match store.is_ready() {
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not yet part of a ring\n").into_response(),
    }
}

fn etag(version: Option<crate::wire::store::Version>) -> (HeaderName, String) {
    (header::ETAG, format!("\"{}\"", convert::version(version)))
}

/// Whether the host that a request names can't be a web site's: else a page could reach this node
/// by having its own name point here.
fn host_is_local(host: &str) -> bool {
    let name =
        host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok(),
    }
}

fn is_local(request: &Request) -> bool {
    let text = |name: HeaderName| request.headers().get(name).map(|v| v.to_str().unwrap_or("?"));
    let host =
        text(header::HOST).or_else(|| request.uri().authority().map(|a| a.as_str())).unwrap_or_default();
    let same_origin = |origin: &str| origin.split_once("://").is_some_and(|(_, of)| of == host);
    host_is_local(host) && text(header::ORIGIN).is_none_or(same_origin)
}

async fn only_local_pages(request: Request, next: Next) -> Response {
    match is_local(&request) {
        true => next.run(request).await,
        false => {
            (StatusCode::FORBIDDEN, "requests of web pages of other origins are refused\n").into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_does_not_arrive_is_not_waited_for() {
        let never = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let late = runtime.block_on(async {
            let request = Request::new(axum::body::Body::from_stream(never));
            body(request, Duration::from_millis(10)).await.unwrap_err()
        });
        assert_eq!(late.status(), StatusCode::REQUEST_TIMEOUT);
    }

    #[test]
    fn a_value_is_given_whatever_its_writer_called_it() {
        let kind_of = |content_type: &str| {
            let response = found(GetResponse { content_type: content_type.into(), ..Default::default() });
            assert_eq!(response.status(), StatusCode::OK, "{content_type:?}");
            response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned()
        };
        assert_eq!(kind_of("text/plain"), "text/plain");
        for none in ["", "text/plain\r\nset-cookie: a=b", "\0"] {
            assert_eq!(kind_of(none), "application/octet-stream", "{none:?}");
        }
    }

    #[test]
    fn only_addresses_and_localhost_are_local() {
        for good in ["localhost", "localhost:9900", "127.0.0.1:9900", "[::1]:9900", "[::1]", "10.0.0.7"] {
            assert!(host_is_local(good), "{good}");
        }
        for bad in
            ["", "evil.example", "evil.example:9900", "127.0.0.1.evil.example", "[localhost:80", "[10.0.0.7]"]
        {
            assert!(!host_is_local(bad), "{bad}");
        }
    }
}
