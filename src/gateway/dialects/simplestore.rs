//! simplestore: everything by GET, so that a browser's address bar is enough.
//!
//! ```text
//! $ curl 'localhost:8001/set?test=lol&msg=this_is_a_message'
//! { "stored": ["test","msg"] }
//! $ curl localhost:8001/get/test
//! { "value": "lol" }
//! ```
//!
//! `/set` stores each pair of its query, up to 100; of a key that comes twice the last value counts.
//! Nothing is stored if any of it makes no sense. The pairs are stored one by one, not all or nothing:
//! where some fail, the answer names those that were `stored`, those that were `not_stored`, and those of
//! which it is `unknown`, with status 504 if there are any of these.
//!
//! That a GET writes is for machines of one's own: a browser says of an image on a web page where it comes
//! from only to loopback (and is refused), and to other addresses over plain HTTP it does not.
//!
//! JSON has no bytes: a value that is not UTF-8 is 422 here; the other dialects and the tools give it. All
//! errors are `{ "error": "..." }`.

use super::super::failed::Failed;
use super::super::gate::Gate;
use super::text::{key, pairs, path_key};
use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::Value;
use std::sync::Arc;

/// Pairs that one request may store: so many requests come of it.
const MAX_PAIRS: usize = 100;

/// No line that says what went wrong is longer.
const MAX_ERROR_BYTES: usize = 8 << 10;

pub(super) fn routes() -> Router<Arc<Gate>> {
    Router::new().route("/set", get(set)).route("/get/", get(read)).route("/get/{*key}", get(read))
}

async fn read(State(gate): State<Arc<Gate>>, uri: Uri) -> Result<Response, Failed> {
    let found = gate.get(path_key(&uri, "/get/")?).await?;
    let value = found.ok_or_else(|| Failed::new(StatusCode::NOT_FOUND, "no value under this key"))?;
    match std::str::from_utf8(&value) {
        Ok(text) => Ok(object(&[("value", text.into())]).into_response()),
        Err(_) => {
            let why = "the value under this key is not UTF-8, which JSON can't tell";
            Err(Failed::new(StatusCode::UNPROCESSABLE_ENTITY, why))
        }
    }
}

async fn set(State(gate): State<Arc<Gate>>, request: Request) -> Result<Response, Response> {
    // It writes, which HEAD must not.
    if request.method() == Method::HEAD {
        return Err((StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET")]).into_response());
    }
    let wanted = wanted(request.uri().query().unwrap_or_default()).map_err(IntoResponse::into_response)?;
    let stored = wanted.into_iter().map(async |(key, value)| {
        let result = gate.put(key.clone(), value, None).await;
        (String::from_utf8_lossy(&key).into_owned(), result)
    });
    Ok(told(join_all(stored).await))
}

/// What is to be stored, each key once.
fn wanted(query: &str) -> Result<Vec<(Bytes, Bytes)>, Failed> {
    let mut wanted: Vec<(Bytes, Bytes)> = Vec::new();
    for (name, value) in pairs(query.as_bytes())? {
        let (key, value) = (key(name)?, value.into());
        crate::wire::convert::key(&key).map_err(|wrong| Failed::bad(wrong.to_string()))?;
        match wanted.iter().position(|(known, _)| *known == key) {
            Some(at) => wanted[at].1 = value,
            None if wanted.len() == MAX_PAIRS => {
                return Err(Failed::bad(format!("one request stores at most {MAX_PAIRS} pairs")));
            }
            None => wanted.push((key, value)),
        }
    }
    match wanted.is_empty() {
        true => Err(Failed::bad("nothing to store: write /set?KEY=VALUE")),
        false => Ok(wanted),
    }
}

/// What became of each pair.
fn told(outcomes: Vec<(String, Result<(), Failed>)>) -> Response {
    let (mut stored, mut not_stored, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    let mut worst: Option<Failed> = None;
    for (key, outcome) in outcomes {
        let Err(failed) = outcome else {
            stored.push(key);
            continue;
        };
        let is_unknown = failed.code == StatusCode::GATEWAY_TIMEOUT;
        if is_unknown {
            unknown.push(key)
        } else {
            not_stored.push(key)
        }
        if is_unknown || worst.is_none() {
            worst = Some(failed);
        }
    }
    let mut members = vec![("stored", Value::from(stored))];
    let Some(failed) = worst else { return object(&members).into_response() };
    members.insert(0, ("error", failed.message.as_str().into()));
    members.extend([("not_stored", not_stored.into()), ("unknown", unknown.into())]);
    failed.answer(object(&members))
}

/// A JSON object, with spaces where they have always been.
fn object(members: &[(&str, Value)]) -> impl IntoResponse + use<> {
    let members: Vec<_> =
        members.iter().map(|(name, value)| format!("{}: {value}", Value::from(*name))).collect();
    ([(header::CONTENT_TYPE, "application/json")], format!("{{ {} }}", members.join(", ")))
}

/// Has whatever went wrong told as JSON.
pub(super) async fn errors_as_json(response: Response) -> Response {
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if is_json || !(response.status().is_client_error() || response.status().is_server_error()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let text = to_bytes(body, MAX_ERROR_BYTES).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let told = match text.trim() {
        "" => parts.status.canonical_reason().unwrap_or("failed"),
        told => told,
    };
    parts.headers.remove(header::CONTENT_LENGTH);
    let (json, body) = object(&[("error", told.into())]).into_response().into_parts();
    parts.headers.extend(json.headers);
    Response::from_parts(parts, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(response: Response) -> (u16, bool, String) {
        let (head, body) = response.into_parts();
        assert_eq!(head.headers[header::CONTENT_TYPE], "application/json");
        let text = to_bytes(body, usize::MAX).await.unwrap().to_vec();
        let again = head.headers.contains_key(header::RETRY_AFTER);
        (head.status.as_u16(), again, String::from_utf8(text).unwrap())
    }

    #[tokio::test]
    async fn it_is_told_what_became_of_each_pair() {
        let stored = |key: &str| (key.to_owned(), Ok(()));
        let not = |key: &str| (key.to_owned(), Err(Failed::unavailable("no \"quorum\"")));
        let unknown =
            |key: &str| (key.to_owned(), Err(Failed::new(StatusCode::GATEWAY_TIMEOUT, "outcome unknown")));
        let all = read(told(vec![stored("a"), stored("\n")])).await;
        assert_eq!(all, (200, false, r#"{ "stored": ["a","\n"] }"#.into()));
        let some = read(told(vec![not("a"), stored("b")])).await;
        let text = r#"{ "error": "no \"quorum\"", "stored": ["b"], "not_stored": ["a"], "unknown": [] }"#;
        assert_eq!(some, (503, true, text.into()));
        let text = r#"{ "error": "outcome unknown", "stored": [], "not_stored": ["a"], "unknown": ["b"] }"#;
        for outcomes in [vec![not("a"), unknown("b")], vec![unknown("b"), not("a")]] {
            assert_eq!(read(told(outcomes)).await, (504, false, text.into()));
        }
    }

    #[tokio::test]
    async fn errors_of_all_kinds_are_json() {
        let failed = read(errors_as_json(Failed::unavailable("no ring").into_response()).await).await;
        assert_eq!(failed, (503, true, r#"{ "error": "no ring" }"#.into()));
        let empty = read(errors_as_json(StatusCode::PAYLOAD_TOO_LARGE.into_response()).await).await;
        assert_eq!(empty.2, r#"{ "error": "Payload Too Large" }"#);
    }

    #[test]
    fn a_key_is_stored_once_and_as_last_said() {
        let last = wanted("a=1&b=2&a=3").unwrap();
        assert_eq!(last, [("a".into(), "3".into()), ("b".into(), "2".into())]);
        let most: String = (0..MAX_PAIRS).map(|n| format!("k{n}=v&k{n}=v&")).collect();
        assert_eq!(wanted(&most).unwrap().len(), MAX_PAIRS);
        assert!(wanted(&format!("{most}one=more")).is_err());
    }
}
