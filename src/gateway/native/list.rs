//! Pages of keys: `GET /v1/kv`.
//!
//! ```text
//! {"items":[{"key":"a","version":"199e6a-7c"},
//!           {"key_base64":"/w==","version":"199e6b-7c","expires_at_ms":1795280491168}],
//!  "next":"AQAx"}
//! ```
//!
//! | parameter | what |
//! | --- | --- |
//! | `prefix` | only keys that begin so |
//! | `limit` | at most so many keys, 1 to 10000; 1000 without it |
//! | `values=true` | with `value` (or `value_base64`) and, if there is one, `content_type` |
//! | `page_token` | goes on where `next` says, with the same prefix |
//!
//! A page may end early, also without any key, where there are many bytes or much to look through: there is
//! more as long as there is a `next`. A key that is there all the time is met once.

use super::super::failed::Failed;
use super::query::Query;
use super::{CONSISTENCY, Holds, achieved, hold, json, text};
use crate::store::Store;
use crate::wire::convert;
use crate::wire::store::{ScanItem, ScanRequest, ScanResponse};
use axum::Extension;
use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::Serialize;
use std::time::Duration;
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tonic::Status;

/// Keys on a page for which nothing is said.
const DEFAULT_LIMIT: u64 = 1_000;

/// Keys on a page.
const MAX_LIMIT: u64 = 10_000;

/// Bytes of a page at which it ends; it may be longer by what came last.
const ENOUGH_BYTES: usize = 1 << 20;

/// How long a page may take; what there is then is given.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// A key and what is under it.
#[derive(Serialize)]
struct Listed<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    content_type: &'a str,
}

fn listed(item: &ScanItem, values: bool) -> Listed<'_> {
    let (key, key_base64) = text::told(&item.key);
    let (value, value_base64) = if values { text::told(&item.value) } else { (None, None) };
    Listed {
        key,
        key_base64,
        version: convert::version(item.version).to_string(),
        expires_at_ms: item.expires_at_ms,
        value,
        value_base64,
        content_type: if values { &item.content_type } else { "" },
    }
}

/// A page as far as it is known.
struct Page {
    text: Vec<u8>,
    values: bool,
    begun: bool,
    consistency: i32,
    /// Where it goes on; empty at the end of all.
    next: Bytes,
}

impl Page {
    fn add(&mut self, message: &ScanResponse) -> Result<(), Status> {
        for item in &message.items {
            if !self.text.ends_with(b"[") {
                self.text.push(b',');
            }
            let written = serde_json::to_writer(&mut self.text, &listed(item, self.values));
            written.map_err(|error| Status::internal(error.to_string()))?;
        }
        let least = |so_far: i32| so_far.min(message.consistency);
        self.consistency = if self.begun { least(self.consistency) } else { message.consistency };
        self.next = message.page_token.clone();
        self.begun = true;
        Ok(())
    }

    fn is_enough(&self) -> bool {
        self.begun && (self.next.is_empty() || self.text.len() >= ENOUGH_BYTES)
    }

    fn end(mut self) -> Response {
        self.text.push(b']');
        if !self.next.is_empty() {
            let next = format!(",\"next\":\"{}\"", URL_SAFE_NO_PAD.encode(&self.next));
            self.text.extend_from_slice(next.as_bytes());
        }
        self.text.push(b'}');
        let mut response = json(self.text);
        response.headers_mut().insert(CONSISTENCY, achieved(self.consistency));
        response
    }
}

fn asked(query: &Query) -> Result<ScanRequest, Failed> {
    let token = URL_SAFE_NO_PAD.decode(query.bytes("page_token").unwrap_or_default());
    let token = token.map_err(|_error| Failed::bad("page_token is not one that a list gave as `next`"))?;
    if token.is_empty() && query.bytes("page_token").is_some() {
        return Err(Failed::bad("page_token is empty: leave it out to begin"));
    }
    Ok(ScanRequest {
        prefix: query.bytes("prefix").unwrap_or_default().to_vec().into(),
        page_token: token.into(),
        limit: query.number("limit", 1..=MAX_LIMIT)?.unwrap_or(DEFAULT_LIMIT),
        keys_only: !query.flag("values")?,
        local: query.flag("local")?,
        options: query.options()?,
    })
}

pub(super) async fn list(State(store): State<Store>, holds: Holds, uri: Uri) -> Result<Response, Failed> {
    let known = ["prefix", "limit", "page_token", "values", "local", "consistency", "fallback"];
    let asked = asked(&Query::of(&uri, &known)?)?;
    let text = b"{\"items\":[".to_vec();
    let (values, next) = (!asked.keys_only, Bytes::new());
    let mut page = Page { text, values, begun: false, consistency: 0, next };
    let deadline = Instant::now() + PAGE_TIMEOUT;
    let held = holds.as_ref().map(|Extension(held)| held.clone());
    let mut messages = store.scan(asked, Some(deadline), held)?;
    while !page.is_enough() {
        let before = page.text.len();
        match messages.next().await {
            Some(Ok(message)) => page.add(&message)?,
            // What there is is good; who goes on there is told what is wrong.
            Some(Err(_)) if page.begun => break,
            Some(Err(status)) => return Err(status.into()),
            None => break,
        }
        hold(&holds, page.text.len() - before)?;
    }
    Ok(page.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_asked_for_strictly() {
        let known = ["prefix", "limit", "page_token", "values", "local", "consistency", "fallback"];
        let asked = |text: &str| {
            let uri: Uri = format!("/v1/kv?{text}").parse().unwrap();
            asked(&Query::of(&uri, &known).unwrap()).map_err(|failed| failed.message)
        };
        let plain = asked("").unwrap();
        assert_eq!((plain.limit, plain.keys_only, plain.local), (1000, true, false));
        let all = asked("prefix=%ff&limit=10000&page_token=AQA_&values=true&local=true").unwrap();
        assert_eq!((&all.prefix[..], &all.page_token[..]), (&b"\xff"[..], &b"\x01\0\x3f"[..]));
        assert_eq!((all.limit, all.keys_only, all.local), (10_000, false, true));
        for bad in ["page_token=", "page_token=AQA%2F", "page_token=A", "page_token=AQA=", "limit=10001"] {
            asked(bad).unwrap_err();
        }
    }

    #[test]
    fn a_page_says_what_is_there_and_where_it_goes_on() {
        let item = |key: &'static [u8], expires_at_ms| ScanItem {
            key: key.into(),
            value: "v\"".into(),
            content_type: "t".into(),
            expires_at_ms,
            ..ScanItem::default()
        };
        let told = |messages: &[ScanResponse], values| {
            let (text, next) = (b"{\"items\":[".to_vec(), Bytes::new());
            let mut page = Page { text, values, begun: false, consistency: 0, next };
            messages.iter().for_each(|message| page.add(message).unwrap());
            let least = page.consistency;
            let response = page.end();
            assert_eq!(response.headers()[CONSISTENCY], achieved(least));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let body = runtime.block_on(axum::body::to_bytes(response.into_body(), 1000)).unwrap();
            (least, String::from_utf8(body.to_vec()).unwrap())
        };
        let message = |items, token: &'static [u8], consistency| ScanResponse {
            items,
            page_token: token.into(),
            consistency,
            ..ScanResponse::default()
        };
        let first = message(vec![item(b"a", None), item(b"\xff", Some(7))], b"\x01\0\x3f", 2);
        let last = message(Vec::new(), b"", 1);
        assert_eq!(told(std::slice::from_ref(&last), false), (1, "{\"items\":[]}\n".into()));
        let keys = "{\"items\":[{\"key\":\"a\",\"version\":\"0-0\"},{\"key_base64\":\"/w==\",\"version\":\"0-0\",\
                    \"expires_at_ms\":7}]";
        assert_eq!(told(std::slice::from_ref(&first), false), (2, format!("{keys},\"next\":\"AQA_\"}}\n")));
        assert_eq!(told(&[first, last], false), (1, format!("{keys}}}\n")));
        let valued =
            "{\"items\":[{\"key\":\"a\",\"version\":\"0-0\",\"value\":\"v\\\"\",\"content_type\":\"t\"}]}\n";
        assert_eq!(told(&[message(vec![item(b"a", None)], b"", 3)], true), (3, valued.into()));
    }
}
