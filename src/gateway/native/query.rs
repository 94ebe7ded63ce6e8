//! What a request line says: the key, and the parameters after it.

use super::super::failed::Failed;
use crate::core::ttl::Ttl;
use crate::wire::convert;
use crate::wire::store::{Consistency, Options};
use axum::http::Uri;
use bytes::Bytes;
use std::ops::RangeInclusive;

/// Where keys are.
const KEYS: &str = "/v1/kv/";

/// How much of what somebody sent is repeated to him.
const SHOWN: usize = 40;

/// The key that a request is about.
pub(super) fn key(uri: &Uri) -> Result<Bytes, Failed> {
    let raw = uri.path().strip_prefix(KEYS).unwrap_or_default();
    let key = decoded(raw.as_bytes(), "the key")?.into();
    convert::key(&key).map_err(|bad| Failed::bad(bad.to_string()))?;
    Ok(key)
}

/// Bytes of which some stand there as % and two hexadecimal digits.
fn decoded(raw: &[u8], what: &str) -> Result<Vec<u8>, Failed> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.iter();
    while let Some(&byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|&digit| char::from(digit).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) => bytes.push((high << 4 | low) as u8),
            _ => {
                let message =
                    format!("in {what} there is a % without two hexadecimal digits; % itself is %25");
                return Err(Failed::bad(message));
            }
        }
    }
    Ok(bytes)
}

/// The parameters of a request, each given once at the most.
#[derive(Debug)]
pub(super) struct Query(Vec<(&'static str, Vec<u8>)>);

impl Query {
    /// Those of a request that knows just these. `+` is a space, as programs write it that encode forms.
    pub(super) fn of(uri: &Uri, known: &[&'static str]) -> Result<Self, Failed> {
        let mut given = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decoded(name.as_bytes(), "a parameter's name")?;
            let Some(&name) = known.iter().find(|known| known.as_bytes() == name) else {
                let name: String = String::from_utf8_lossy(&name).chars().take(SHOWN).collect();
                let there = match known.is_empty() {
                    true => "there is none".to_owned(),
                    false => format!("there are {}", known.join(", ")),
                };
                return Err(Failed::bad(format!("no parameter is called {name:?} here; {there}")));
            };
            if given.iter().any(|(other, _)| *other == name) {
                return Err(Failed::bad(format!("{name} is given twice")));
            }
            let value = decoded(value.replace('+', " ").as_bytes(), name)?;
            given.push((name, value));
        }
        Ok(Query(given))
    }

    /// A parameter's bytes.
    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(given, _)| *given == name).map(|(_, value)| &value[..])
    }

    /// A parameter's text. What is none is not what anybody expects there.
    fn text(&self, name: &str) -> Option<&str> {
        self.bytes(name).map(|bytes| std::str::from_utf8(bytes).unwrap_or("\u{fffd}"))
    }

    /// Whether a parameter is true; false without it.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Failed> {
        match self.text(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Failed::bad(format!("{name} is true or false"))),
        }
    }

    /// A parameter's number.
    pub(super) fn number(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, Failed> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|number| digits && range.contains(number));
        let bad = || Failed::bad(format!("{name} is a number from {} to {}", range.start(), range.end()));
        number.map(Some).ok_or_else(bad)
    }

    /// How a request is to be carried out.
    pub(super) fn options(&self) -> Result<Option<Options>, Failed> {
        let consistency = match self.text("consistency") {
            None | Some("quorum") => Consistency::Quorum,
            Some("one") => Consistency::One,
            Some("all") => Consistency::All,
            Some(_) => return Err(Failed::bad("consistency is one, quorum or all")),
        };
        let fallback_to_one = match self.text("fallback") {
            None => false,
            Some("one") => true,
            Some(_) => return Err(Failed::bad("fallback is one, or left out")),
        };
        Ok(Some(Options { consistency: consistency.into(), fallback_to_one }))
    }

    /// For how long a value is to be kept, in milliseconds.
    pub(super) fn ttl_ms(&self) -> Result<Option<u64>, Failed> {
        self.text("ttl").map(ttl_ms).transpose().map_err(Failed::bad)
    }
}

/// For how long a value is to be kept, in milliseconds.
pub(super) fn ttl_ms(text: &str) -> Result<u64, String> {
    text.parse::<Ttl>().map(Ttl::as_ms).map_err(|bad| bad.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(path: &str) -> Result<Vec<u8>, u16> {
        let uri = path.parse::<Uri>().unwrap();
        key(&uri).map(|key| key.to_vec()).map_err(|failed| failed.code.as_u16())
    }

    #[test]
    fn a_key_is_any_bytes() {
        let check = |path: &str, key: &[u8]| assert_eq!(key_of(path), Ok(key.to_vec()), "{path}");
        check("/v1/kv/a", b"a");
        check("/v1/kv/a/b", b"a/b");
        check("/v1/kv//", b"/");
        check("/v1/kv/a%2Fb", b"a/b");
        check("/v1/kv/../status", b"../status");
        check("/v1/kv/.", b".");
        check("/v1/kv/a+b%20c?limit=1", b"a+b c");
        check("/v1/kv/%ff%00%25%3F", b"\xff\0%?");
        check(&format!("/v1/kv/{}", "%00".repeat(4096)), &[0; 4096]);
        for bad in ["", "%", "%4", "%4g", "a%", "%%41", "%+1", "%\u{e9}", &"x".repeat(4097)] {
            assert_eq!(key_of(&format!("/v1/kv/{bad}")), Err(400), "{bad:.20}");
        }
    }

    const KNOWN: [&str; 7] = ["consistency", "fallback", "ttl", "limit", "local", "prefix", "none"];

    fn query(text: &str) -> Result<Query, Failed> {
        Query::of(&format!("/v1/kv?{text}").parse().unwrap(), &KNOWN)
    }

    #[test]
    fn parameters_are_read_strictly() {
        let all = query("&consistency=all&fallback=one&ttl=30s&limit=7&local=true&prefix=a+%2B%ff&").unwrap();
        let options = Options { consistency: Consistency::All.into(), fallback_to_one: true };
        assert_eq!(all.options().unwrap(), Some(options));
        assert_eq!(all.ttl_ms().unwrap(), Some(30_000));
        assert_eq!(all.number("limit", 1..=7).unwrap(), Some(7));
        assert!(all.flag("local").unwrap() && !all.flag("none").unwrap());
        assert_eq!(all.bytes("prefix"), Some(&b"a +\xff"[..]));
        assert_eq!(query("").unwrap().number("limit", 1..=7).unwrap(), None);

        for (text, word) in [
            ("limits=1", "\"limits\""),
            ("%6cimit=1&limit=1", "twice"),
            ("prefix=%f", "%25"),
            ("consistency=One", "quorum"),
            ("consistency", "quorum"),
            ("fallback=quorum", "fallback"),
            ("ttl=5", "30s"),
            ("limit=0", "1 to 7"),
            ("limit=8", "1 to 7"),
            ("limit=%2B7", "1 to 7"),
            ("limit=", "1 to 7"),
            ("limit=99999999999999999999", "1 to 7"),
            ("local=1", "true or false"),
            ("local=%ff", "true or false"),
        ] {
            let refused = query(text).and_then(|query| {
                query.options()?;
                query.ttl_ms()?;
                query.number("limit", 1..=7)?;
                query.flag("local")
            });
            let refused = refused.unwrap_err();
            assert_eq!(refused.code.as_u16(), 400, "{text}");
            assert!(refused.message.contains(word), "{text}: {}", refused.message);
        }
        let long = query(&"x".repeat(10_000)).unwrap_err();
        assert!(long.message.len() < 200, "{}", long.message);
    }
}
