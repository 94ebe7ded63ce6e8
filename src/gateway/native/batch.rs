//! Many requests in one: `POST /v1/batch`.
//!
//! ```text
//! {"items":[{"put":{"key":"a","value":"apple","ttl":"30s","content_type":"text/plain"}},
//!           {"get":{"key":"a"}},
//!           {"delete":{"key_base64":"/w=="}}]}
//! ```
//!
//! Keys and values that are no text are `key_base64` and `value_base64` (RFC 4648 section 4, with padding), in
//! the answer too. `consistency` and `fallback` after the `?` are for all items. Those of one key are carried
//! out in order, others side by side, and each ends on its own:
//!
//! ```text
//! {"results":[{"status":204,"version":"199e6a-7c","consistency":"quorum"},
//!             {"status":200,"version":"199e6a-7c","consistency":"quorum","value":"apple"},
//!             {"status":503,"error":"too few owners are up"}]}
//! ```
//!
//! A status is what a request of its own would have had; 413 of a `get` says that its value did not fit the
//! answer any more. Where anything about the whole can't be read, it is 400 and nothing is done.

use super::super::body::{BODY_TIMEOUT, body};
use super::super::failed::Failed;
use super::query::{Query, ttl_ms};
use super::text::{given, told};
use super::{Holds, TIMEOUT, hold, json};
use crate::store::Store;
use crate::store::batch::MAX_ITEMS;
use crate::wire::store::batch_item::Item;
use crate::wire::store::batch_result::Result as Ended;
use crate::wire::store::{
    BatchItem, BatchRequest, BatchResult, DeleteRequest, GetRequest, Options, PutRequest, Version,
};
use crate::wire::{convert, status};
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::marker::PhantomData;
use tonic::{Code, Status};

/// Of a batch in JSON.
const MAX_BYTES: usize = 4 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    items: Items,
}

struct Items(Vec<Item>);

/// Fields in braces: those of a struct may as well stand in a list, in their order, without this.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields)).map(Object)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// Exactly one of these.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct One {
    put: Option<Object<Put>>,
    get: Option<Object<Key>>,
    delete: Option<Object<Key>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Put {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    ttl: Option<String>,
    #[serde(default)]
    content_type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    key: Option<String>,
    key_base64: Option<String>,
}

impl TryFrom<One> for Item {
    type Error = String;

    fn try_from(one: One) -> Result<Self, String> {
        let key = |key: Key| given("key", key.key, key.key_base64);
        match one {
            One { put: Some(Object(put)), get: None, delete: None } => Ok(Item::Put(PutRequest {
                key: given("key", put.key, put.key_base64)?,
                value: given("value", put.value, put.value_base64)?,
                options: None,
                content_type: put.content_type,
                ttl_ms: put.ttl.as_deref().map(ttl_ms).transpose()?,
            })),
            One { put: None, get: Some(Object(get)), delete: None } => {
                Ok(Item::Get(GetRequest { key: key(get)?, ..GetRequest::default() }))
            }
            One { put: None, get: None, delete: Some(Object(delete)) } => {
                Ok(Item::Delete(DeleteRequest { key: key(delete)?, options: None }))
            }
            _ => Err("it is exactly one of put, get and delete".into()),
        }
    }
}

/// Reads no more of them than a batch may have, and says which of them is wrong.
impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;

        impl<'de> Visitor<'de> for Each {
            type Value = Items;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of items")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut given: A) -> Result<Items, A::Error> {
                let mut items = Vec::new();
                loop {
                    let wrong = |why: String| A::Error::custom(format!("item {}: {why}", items.len()));
                    let Some(Object(one)) =
                        given.next_element::<Object<One>>().map_err(|bad| wrong(bad.to_string()))?
                    else {
                        return Ok(Items(items));
                    };
                    let item = Item::try_from(one).map_err(wrong)?;
                    if items.len() == MAX_ITEMS {
                        return Err(A::Error::custom(format!("a batch has at most {MAX_ITEMS} items")));
                    }
                    items.push(item);
                }
            }
        }

        deserializer.deserialize_seq(Each)
    }
}

/// What a JSON text asks for.
fn batch_of(text: &[u8], options: Option<Options>) -> Result<BatchRequest, Failed> {
    let Object(Batch { items: Items(mut items) }) = serde_json::from_slice(text)
        .map_err(|bad| Failed::bad(format!("this is no batch: {bad}; nothing was done")))?;
    for item in &mut items {
        match item {
            Item::Put(put) => put.options = options,
            Item::Get(get) => get.options = options,
            Item::Delete(delete) => delete.options = options,
        }
    }
    Ok(BatchRequest { items: items.into_iter().map(|item| BatchItem { item: Some(item) }).collect() })
}

/// How an item ended.
#[derive(Serialize, Default)]
struct Told<'a> {
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consistency: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    content_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl<'a> Told<'a> {
    fn of(result: &'a BatchResult) -> Self {
        let code = |code: StatusCode| code.as_u16();
        match &result.result {
            Some(Ended::Put(put)) => Told::done(code(StatusCode::NO_CONTENT), put.version, put.consistency),
            Some(Ended::Delete(deleted)) => {
                Told::done(code(StatusCode::NO_CONTENT), deleted.version, deleted.consistency)
            }
            Some(Ended::Get(got)) => {
                let (value, value_base64) = told(&got.value);
                Told {
                    expires_at_ms: got.expires_at_ms,
                    value,
                    value_base64,
                    content_type: &got.content_type,
                    ..Told::done(code(StatusCode::OK), got.version, got.consistency)
                }
            }
            Some(Ended::Failure(failure)) => Told::failed(status::of_failure(failure.clone())),
            None => Told::failed(Status::internal("nothing is known of this item")),
        }
    }

    fn done(status: u16, version: Option<Version>, consistency: i32) -> Self {
        let version = Some(convert::version(version).to_string());
        let consistency = convert::consistency(consistency).ok().map(|achieved| achieved.name());
        Told { status, version, consistency, ..Told::default() }
    }

    fn failed(status: Status) -> Self {
        let too_large = status.code() == Code::OutOfRange;
        let Failed { code, message, .. } = status.into();
        let code = if too_large { StatusCode::PAYLOAD_TOO_LARGE } else { code };
        Told { status: code.as_u16(), error: Some(message), ..Told::default() }
    }
}

pub(super) async fn batch(
    State(store): State<Store>,
    holds: Holds,
    request: Request,
) -> Result<Response, Failed> {
    let options = Query::of(request.uri(), &["consistency", "fallback"])?.options()?;
    let text = body(request, MAX_BYTES, BODY_TIMEOUT).await?;
    // What is read from it is a copy.
    hold(&holds, text.len())?;
    let asked = batch_of(&text, options)?;
    let held = holds.as_ref().map(|Extension(held)| &**held);
    let ended = store.batch(asked, TIMEOUT, held).await?;
    let mut told = b"{\"results\":[".to_vec();
    for (at, result) in ended.results.iter().enumerate() {
        if at > 0 {
            told.push(b',');
        }
        let written = serde_json::to_writer(&mut told, &Told::of(result));
        written.map_err(|error| Status::internal(error.to_string()))?;
    }
    told.extend_from_slice(b"]}");
    Ok(json(told))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::store::{Failure, GetResponse, PutResponse};

    fn refused(text: impl AsRef<[u8]>) -> String {
        let failed = batch_of(text.as_ref(), None).unwrap_err();
        assert_eq!(failed.code, StatusCode::BAD_REQUEST);
        assert!(failed.message.ends_with("nothing was done"), "{}", failed.message);
        failed.message
    }

    #[test]
    fn a_batch_is_read_as_it_was_written() {
        let options = Some(Options { consistency: 1, fallback_to_one: true });
        let text = r#"{"items":[
            {"put":{"key":"a","value_base64":"//77","ttl":"30s","content_type":"text/plain"}},
            {"get":{"key_base64":"/w=="}}, {"delete":{"key":"\u0000"}}]}"#;
        let items = batch_of(text.as_bytes(), options).unwrap().items;
        let put = PutRequest {
            key: "a".into(),
            value: b"\xff\xfe\xfb".to_vec().into(),
            options,
            content_type: "text/plain".into(),
            ttl_ms: Some(30_000),
        };
        let get = GetRequest { key: b"\xff".to_vec().into(), options, local: false };
        let delete = DeleteRequest { key: "\0".into(), options };
        let read: Vec<Item> = items.into_iter().filter_map(|item| item.item).collect();
        assert_eq!(read, [Item::Put(put), Item::Get(get), Item::Delete(delete)]);
        assert!(batch_of(br#"{"items":[]}"#, None).unwrap().items.is_empty());
    }

    #[test]
    fn what_is_no_batch_is_refused_and_the_item_named() {
        let get = r#"{"get":{"key":"a"}}"#;
        for (item, words) in [
            (r#"{"get":{"key":"a","local":true}}"#, "unknown field `local`"),
            (r#"{"take":{"key":"a"}}"#, "unknown field `take`"),
            (r#"{"get":{"key":"a"},"get":{"key":"b"}}"#, "duplicate field `get`"),
            (r#"{"get":{"key":"a","key":"b"}}"#, "duplicate field `key`"),
            (r#"{"get":{"key":"a"},"delete":{"key":"b"}}"#, "exactly one"),
            ("{}", "exactly one"),
            ("7", "integer `7`, expected an object"),
            (r#"{"get":"a"}"#, "expected an object"),
            (r#"{"get":["a",null]}"#, "expected an object"),
            (r#"[null,{"key":"a"},null]"#, "expected an object"),
            (r#"{"get":{}}"#, "neither key nor key_base64"),
            (r#"{"get":{"key":"a","key_base64":"YQ=="}}"#, "both key and key_base64"),
            (r#"{"get":{"key_base64":"YQ"}}"#, "key_base64"),
            (r#"{"get":{"key":1e999}}"#, "number out of range"),
            (r#"{"get":{"key":123456789012345678901234567890}}"#, "invalid type"),
            (r#"{"put":{"key":"a"}}"#, "neither value nor value_base64"),
            (r#"{"put":{"key":"a","value":"b","ttl":"5"}}"#, "30s"),
            (r#"{"put":{"key":"a","value":"b","ttl":5}}"#, "invalid type"),
            (r#"{"get":{"key":"\ud800"}}"#, "hex escape"),
        ] {
            let message = refused(format!(r#"{{"items":[{get},{item}]}}"#));
            assert!(message.contains("item 1: ") && message.contains(words), "{item}: {message}");
        }
        let deep = "[".repeat(100_000);
        let many = format!(r#"{{"items":[{}{get}]}}"#, format!("{get},").repeat(MAX_ITEMS));
        for (text, words) in [
            (String::new(), "EOF"),
            (" ".into(), "EOF"),
            ("null".into(), "expected an object"),
            (format!("[[{get}]]"), "expected an object"),
            ("{}".into(), "missing field `items`"),
            (r#"{"items":{}}"#.into(), "a list of items"),
            (r#"{"items":[],"items":[]}"#.into(), "duplicate field `items`"),
            (r#"{"items":[],"more":1}"#.into(), "unknown field `more`"),
            (r#"{"items":[]} {}"#.into(), "trailing"),
            (r#"{"items":[{"get":{"key":"a"}"#.into(), "EOF"),
            (deep.clone(), "line 1"),
            (format!(r#"{{"items":{deep}"#), "line 1"),
            (format!(r#"{{"items":[{{"get":{{"key":{deep}"#), "invalid type"),
            (many, "at most 1000 items"),
        ] {
            let message = refused(&text);
            assert!(message.contains(words) && message.len() < 300, "{text:.60}: {message}");
        }
        assert!(refused(b"{\"items\":[{\"get\":{\"key\":\"\xff\"}}]}").contains("unicode"));
    }

    #[test]
    fn each_item_is_told_as_a_request_of_its_own() {
        let told = |ended| {
            let result = BatchResult { result: Some(ended) };
            serde_json::to_string(&Told::of(&result)).unwrap()
        };
        let version = Some(Version { hlc: 5, node: 1 });
        let put = PutResponse { version, consistency: 2, ..PutResponse::default() };
        assert_eq!(told(Ended::Put(put)), r#"{"status":204,"version":"5-1","consistency":"quorum"}"#);
        let got = GetResponse {
            value: b"\xff".to_vec().into(),
            version,
            consistency: 1,
            expires_at_ms: Some(9),
            ..GetResponse::default()
        };
        let expected =
            r#"{"status":200,"version":"5-1","consistency":"one","expires_at_ms":9,"value_base64":"/w=="}"#;
        assert_eq!(told(Ended::Get(got)), expected);
        let failed = |code: Code, outcome_unknown| {
            let failure = Failure { code: code.into(), message: "why".into(), outcome_unknown };
            told(Ended::Failure(failure))
        };
        assert_eq!(failed(Code::NotFound, false), r#"{"status":404,"error":"why"}"#);
        for (code, unknown, status) in [
            (Code::InvalidArgument, false, 400),
            (Code::OutOfRange, false, 413),
            (Code::ResourceExhausted, false, 429),
            (Code::Unavailable, false, 503),
            (Code::Aborted, true, 504),
        ] {
            assert!(failed(code, unknown).starts_with(&format!("{{\"status\":{status},")), "{code:?}");
        }
    }
}
