//! One key and what is under it as a line of JSON: what `storectl export` writes and `storectl import` reads.

use crate::common::text;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use thrifty::client::Scanned;
use thrifty::core::record::Version;
use thrifty::wire::convert;

/// The fields. Of `key` and `key_base64` there is one, and so with the value.
#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Fields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    content_type: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
}

/// What a line says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Line {
    /// Valid.
    pub(crate) key: Bytes,
    /// Valid.
    pub(crate) value: Bytes,
    /// May be empty.
    pub(crate) content_type: String,
    /// Milliseconds since 1970.
    pub(crate) expires_at_ms: Option<u64>,
    /// Where it was exported from.
    pub(crate) version: Option<Version>,
}

/// A line without its end.
pub(crate) fn write(found: &Scanned, versions: bool) -> Result<String, serde_json::Error> {
    let either = |bytes| match text::text_or_base64(bytes) {
        Ok(text) => (Some(Cow::Borrowed(text)), None),
        Err(base64) => (None, Some(base64)),
    };
    let ((key, key_base64), (value, value_base64)) = (either(&found.key), either(&found.value));
    serde_json::to_string(&Fields {
        key,
        key_base64,
        value,
        value_base64,
        content_type: found.content_type.as_str().into(),
        expires_at_ms: found.expires_at_ms,
        version: versions.then(|| found.version.to_string()),
    })
}

/// What a line says, or what is wrong with it.
pub(crate) fn read(line: &[u8]) -> Result<Line, String> {
    // An array would do as well, for whoever decodes it.
    if !line.starts_with(b"{") {
        return Err("it is no JSON object, as in {\"key\":\"a\",\"value\":\"apple\"}".into());
    }
    let fields: Fields<'_> = serde_json::from_slice(line).map_err(|error| {
        let said = error.to_string();
        let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _where)| said);
        format!("{said}, at column {}", error.column())
    })?;
    let key = one("key", fields.key, fields.key_base64)?;
    let value = one("value", fields.value, fields.value_base64)?;
    let content_type = fields.content_type.into_owned();
    convert::key(&key)
        .and_then(|()| convert::value(&value, &content_type))
        .map_err(|error| error.to_string())?;
    let version = fields.version.as_deref().map(version).transpose()?;
    Ok(Line { key, value, content_type, expires_at_ms: fields.expires_at_ms, version })
}

fn one(name: &str, text: Option<Cow<'_, str>>, base64: Option<String>) -> Result<Bytes, String> {
    match (text, base64) {
        (Some(text), None) => Ok(text.into_owned().into()),
        (None, Some(base64)) => text::from_base64(&base64).map_err(|error| format!("{name}_base64: {error}")),
        (None, None) => Err(format!("it has no `{name}` (nor `{name}_base64`)")),
        (Some(_), Some(_)) => Err(format!("it has both `{name}` and `{name}_base64`")),
    }
}

/// As [`Version`] is printed.
fn version(text: &str) -> Result<Version, String> {
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let parsed =
        text.split_once('-').and_then(|(hlc, node)| Some(Version { hlc: hex(hlc)?, node: hex(node)? }));
    parsed.ok_or_else(|| format!("{text:?} is no version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        for (key, value, expires_at_ms) in [
            (&b"a"[..], &b"apple"[..], None),
            (b"\"q\"\n\\", "Ä\0\u{2028}".as_bytes(), Some(1_800_000_000_000)),
            (b"\xff\xfe", b"\x80", None),
            (b"k", b"", None),
        ] {
            let (version, content_type) = (Version { hlc: 0xabc, node: 0xf00 }, "text/plain".to_owned());
            let (key, value) = (Bytes::from(key), Bytes::from(value));
            let found = Scanned { key, value, version, content_type, expires_at_ms };
            for versions in [false, true] {
                let text = write(&found, versions).unwrap();
                assert!(!text.contains('\n'), "{text}");
                let line = read(text.as_bytes()).unwrap();
                let Scanned { key, value, version, content_type, expires_at_ms } = found.clone();
                let version = versions.then_some(version);
                assert_eq!(line, Line { key, value, content_type, expires_at_ms, version });
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        let long = format!(r#"{{"key":"{}","value":""}}"#, "k".repeat(4097));
        for (line, words) in [
            (&br#"{"key":"a"}"#[..], "no `value`"),
            (br#"{"value":"a"}"#, "no `key`"),
            (br#"{"key":"a","value":"b","value_base64":"YQ=="}"#, "both"),
            (br#"{"key":"a","valeu":"b"}"#, "unknown field `valeu`"),
            (br#"{"key":"a","key":"b","value":""}"#, "duplicate field"),
            (br#"{"key":"a","value_base64":"?"}"#, "base64"),
            (br#"{"key":"","value":"b"}"#, "a key has 1 to 4096 bytes"),
            (br#"{"key":"a","value":"b","version":"x-1"}"#, "no version"),
            (br#"{"key":"a","value":"b","expires_at_ms":-1}"#, "column"),
            (br#"{"key":"a","value":"b"#, "EOF"),
            (b"{\"key\":\"a\",\"value\":\"\xff\"}", "column"),
            (br#"["a",null,"b"]"#, "no JSON object"),
            (b"a apple", "no JSON object"),
            (br#"{"key":"a","value":"b"} {}"#, "trailing"),
            (long.as_bytes(), "a key has 1 to 4096 bytes"),
        ] {
            let error = read(line).unwrap_err();
            assert!(error.contains(words) && !error.contains("line 1"), "{error}");
        }
    }
}
