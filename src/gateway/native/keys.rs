//! Single keys: `/v1/kv/KEY`.

use super::super::body::{BODY_TIMEOUT, body};
use super::super::failed::Failed;
use super::query::{Query, key};
use super::{CONSISTENCY, Holds, TIMEOUT, achieved, conditions, hold};
use crate::core::record::MAX_VALUE_BYTES;
use crate::store::Store;
use crate::wire::convert;
use crate::wire::store::{DeleteRequest, GetRequest, GetResponse, PutRequest, Version};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// When a value expires, in milliseconds since 1970.
const EXPIRES_AT_MS: HeaderName = HeaderName::from_static("thrifty-expires-at-ms");

/// What a key's answers say whatever is under it. The store is asked each time, and a value that is a web page
/// is one of nobody's: it must not reach into others' keys.
const ALWAYS: [(HeaderName, HeaderValue); 3] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox")),
];

pub(super) async fn read(
    State(store): State<Store>,
    holds: Holds,
    request: Request,
) -> Result<Response, Failed> {
    let query = Query::of(request.uri(), &["consistency", "fallback", "local"])?;
    let (options, local) = (query.options()?, query.flag("local")?);
    let get = GetRequest { key: key(request.uri())?, options, local };
    let got = store.get(get, TIMEOUT).await?;
    let has_it = conditions::has_it(request.headers(), &etag(got.version))?;
    hold(&holds, got.value.len())?;
    let mut response = found(got);
    if has_it {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.body_mut() = axum::body::Body::empty();
    }
    Ok(response)
}

/// The answer with a value.
pub(crate) fn found(found: GetResponse) -> Response {
    // Over gRPC any text could be given.
    let kind = HeaderValue::try_from(found.content_type).ok().filter(|kind| !kind.is_empty());
    let kind = kind.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let about = [(header::CONTENT_TYPE, kind), (CONSISTENCY, achieved(found.consistency))];
    let etag = [(header::ETAG, etag(found.version))];
    let mut response = (ALWAYS, about, etag, found.value).into_response();
    if let Some(at) = found.expires_at_ms {
        response.headers_mut().insert(EXPIRES_AT_MS, at.into());
    }
    response
}

pub(super) async fn write(State(store): State<Store>, request: Request) -> Result<Response, Failed> {
    let query = Query::of(request.uri(), &["consistency", "fallback", "ttl"])?;
    let (options, ttl_ms) = (query.options()?, query.ttl_ms()?);
    let key = key(request.uri())?;
    conditions::none(request.headers())?;
    let content_type = content_type(request.headers())?;
    let value = body(request, MAX_VALUE_BYTES, BODY_TIMEOUT).await?;
    let put = PutRequest { key, value, options, content_type, ttl_ms };
    let written = store.put(put, TIMEOUT).await?;
    let headers = [(CONSISTENCY, achieved(written.consistency))];
    Ok((StatusCode::NO_CONTENT, headers, [(header::ETAG, etag(written.version))]).into_response())
}

/// What the value is; nothing else is kept of what is said about it.
fn content_type(headers: &HeaderMap) -> Result<String, Failed> {
    if headers.contains_key(header::CONTENT_RANGE) {
        return Err(Failed::bad(
            "a part of a value can't be written: leave Content-Range out; nothing was done",
        ));
    }
    if headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        let message = "Content-Encoding is not kept: send the value as it is to be read; nothing was done";
        return Err(Failed::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let kind = headers.get(header::CONTENT_TYPE).map(|kind| kind.to_str()).transpose();
    let kind = kind.map_err(|_error| Failed::bad("Content-Type is not printable ASCII; nothing was done"))?;
    convert::value(&bytes::Bytes::new(), kind.unwrap_or_default())
        .map_err(|bad| Failed::bad(format!("{bad}; nothing was done")))?;
    Ok(kind.unwrap_or_default().to_owned())
}

pub(super) async fn remove(State(store): State<Store>, request: Request) -> Result<Response, Failed> {
    let options = Query::of(request.uri(), &["consistency", "fallback"])?.options()?;
    let key = key(request.uri())?;
    conditions::none(request.headers())?;
    let deleted = store.delete(DeleteRequest { key, options }, TIMEOUT).await?;
    Ok((StatusCode::NO_CONTENT, [(CONSISTENCY, achieved(deleted.consistency))]).into_response())
}

fn etag(version: Option<Version>) -> String {
    format!("\"{}\"", convert::version(version))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_would_be_lost_of_a_value_is_refused() {
        let told = |name: HeaderName, value: &[u8]| {
            let headers = HeaderMap::from_iter([(name, HeaderValue::from_bytes(value).unwrap())]);
            content_type(&headers).map_err(|failed| failed.code.as_u16())
        };
        assert_eq!(told(header::CONTENT_TYPE, b"text/plain"), Ok("text/plain".into()));
        assert_eq!(told(header::CONTENT_TYPE, &[b'x'; 255]), Ok("x".repeat(255)));
        assert_eq!(told(header::CONTENT_TYPE, &[b'x'; 256]), Err(400));
        assert_eq!(told(header::CONTENT_TYPE, b"text/\xff"), Err(400));
        assert_eq!(told(header::CONTENT_RANGE, b"bytes 0-1/2"), Err(400));
        assert_eq!(told(header::CONTENT_ENCODING, b"gzip"), Err(415));
        assert_eq!(told(header::CONTENT_ENCODING, b"identity"), Ok(String::new()));
    }
}
