//! diststore: forms and bodies.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /` of a url-encoded form with `key` and `value` | 200 |
//! | `POST /KEY`, the body is the value | 200 |
//! | `POST /local/KEY` | the same at consistency ONE |
//! | `GET /get/KEY` | 200 with the value; 404 |
//! | `GET /getlocal/KEY` | the same of what the node itself holds |
//! | `GET /list` | 200 with the keys of what the node itself holds, one in a line |
//! | `DELETE /KEY` | 204 |
//!
//! The node is the one beside which the gate runs, or the first that it was told of and
//! that is there. In a list, %XX stands for
//! % and for each byte that is not text. If the node fails half-way, the list breaks off as a download does.
//!
//! Of a field that comes twice, the last one counts; fields of other names are ignored. A key that begins
//! with `get/`, `getlocal/` or `local/` writes that slash as `%2F`.

use super::super::body::{BODY_TIMEOUT, body};
use super::super::failed::Failed;
use super::super::gate::Gate;
use super::text::{self, Pair, pairs, path_key};
use super::value;
use crate::core::quorum::Consistency;
use crate::core::record::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::{StreamExt, TryStreamExt};
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;

/// The largest form: each byte of a key and a value may take three, and there may be more to it.
const FORM_BYTES: usize = 3 * (MAX_KEY_BYTES + MAX_VALUE_BYTES) + (64 << 10);

pub(super) fn routes() -> Router<Arc<Gate>> {
    Router::new()
        .route("/", post(form))
        .route("/get/", get(read))
        .route("/get/{*key}", get(read))
        .route("/getlocal/", get(read_local))
        .route("/getlocal/{*key}", get(read_local))
        .route("/list", get(list).post(write).delete(remove))
        .route("/local/", post(write_at_one))
        .route("/local/{*key}", post(write_at_one))
        .route("/{*key}", post(write).delete(remove))
}

async fn read(State(gate): State<Arc<Gate>>, uri: Uri) -> Result<Response, Failed> {
    let found = gate.get(path_key(&uri, "/get/")?).await?;
    found.map(value).ok_or_else(|| Failed::new(StatusCode::NOT_FOUND, "no value under this key"))
}

async fn read_local(State(gate): State<Arc<Gate>>, uri: Uri) -> Result<Response, Failed> {
    let found = gate.get_local(path_key(&uri, "/getlocal/")?).await?;
    found
        .map(value)
        .ok_or_else(|| Failed::new(StatusCode::NOT_FOUND, "this node has no value under this key"))
}

async fn list(State(gate): State<Arc<Gate>>) -> Result<Response, Failed> {
    let mut keys = gate.list_local();
    // What fails at once is told as such.
    let first = keys.recv().await.unwrap_or_else(|| Ok(Vec::new()))?;
    let rest =
        ReceiverStream::new(keys).map(|keys| keys.map_err(|failed| std::io::Error::other(failed.message)));
    let lines = futures_util::stream::iter([Ok(first)]).chain(rest).map_ok(|keys| text::lines(&keys));
    let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    Ok((kind, Body::from_stream(lines)).into_response())
}

async fn write(State(gate): State<Arc<Gate>>, request: Request) -> Result<StatusCode, Failed> {
    put(&gate, "/", request, None).await
}

async fn write_at_one(State(gate): State<Arc<Gate>>, request: Request) -> Result<StatusCode, Failed> {
    put(&gate, "/local/", request, Some(Consistency::One)).await
}

async fn put(
    gate: &Gate,
    before: &str,
    request: Request,
    consistency: Option<Consistency>,
) -> Result<StatusCode, Failed> {
    let key = path_key(request.uri(), before)?;
    let value = body(request, MAX_VALUE_BYTES, BODY_TIMEOUT).await?;
    gate.put(key, value, consistency).await?;
    Ok(StatusCode::OK)
}

async fn remove(State(gate): State<Arc<Gate>>, uri: Uri) -> Result<StatusCode, Failed> {
    gate.delete(path_key(&uri, "/")?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn form(State(gate): State<Arc<Gate>>, request: Request) -> Result<StatusCode, Failed> {
    let kind = request.headers().get(header::CONTENT_TYPE).map_or("", |kind| kind.to_str().unwrap_or("?"));
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.is_empty() && !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        let why = "send a form with key and value, url-encoded, or the value itself to /KEY";
        return Err(Failed::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    let fields = pairs(&body(request, FORM_BYTES, BODY_TIMEOUT).await?)?;
    let (key, value) = key_and_value(fields)?;
    gate.put(key, value, None).await?;
    Ok(StatusCode::OK)
}

fn key_and_value(fields: Vec<Pair>) -> Result<(Bytes, Bytes), Failed> {
    let (mut key, mut value) = (None, None);
    for (name, field) in fields {
        match &name[..] {
            b"key" => key = Some(field),
            b"value" => value = Some(field),
            _ => {}
        }
    }
    match (key, value) {
        (Some(key), Some(value)) => Ok((text::key(key)?, value.into())),
        (None, _) => Err(Failed::bad("the form has no field `key`")),
        (_, None) => Err(Failed::bad("the form has no field `value`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_has_a_key_and_a_value() {
        let read = |form: &str| {
            let fields = pairs(form.as_bytes()).unwrap();
            key_and_value(fields).map_err(|failed| failed.message)
        };
        let good = |key: &'static str, value: &'static str| Ok((key.into(), value.into()));
        assert_eq!(read("key=a&value=apple"), good("a", "apple"));
        assert_eq!(read("value=apple&submit=Send&key=a"), good("a", "apple"));
        assert_eq!(read("key=a&value="), good("a", ""));
        assert_eq!(read("key=a&value=1&value=2"), good("a", "2"));
        assert!(read("key=a").unwrap_err().contains("`value`"));
        assert!(read("value=a").unwrap_err().contains("`key`"));
        assert!(read("key=%00&value=a").unwrap_err().contains("NUL"));
    }
}
