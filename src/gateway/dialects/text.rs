//! Keys and values as they are written in paths, queries and forms.

use super::super::failed::Failed;
use axum::http::Uri;
use bytes::Bytes;

/// Bytes in which %XX stands for a byte, and + for a space if that is so.
fn decoded(text: &[u8], plus_is_space: bool) -> Result<Vec<u8>, Failed> {
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut bytes, mut at) = (Vec::with_capacity(text.len()), 0);
    while let Some(&byte) = text.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high << 4 | low) as u8);
                at += 3;
                continue;
            }
            (b'%', ..) => {
                return Err(Failed::bad("two hexadecimal digits must follow a %: write % itself as %25"));
            }
            (b'+', ..) if plus_is_space => bytes.push(b' '),
            _ => bytes.push(byte),
        }
        at += 1;
    }
    Ok(bytes)
}

/// A key, if it is text. How long it may be is for the gate to know.
pub(super) fn key(bytes: Vec<u8>) -> Result<Bytes, Failed> {
    match std::str::from_utf8(&bytes) {
        Ok(text) if text.contains('\0') => Err(Failed::bad("a key has no NUL")),
        Ok(_) => Ok(bytes.into()),
        Err(_) => Err(Failed::bad("a key must be UTF-8")),
    }
}

/// The key that a path has after `before`.
pub(super) fn path_key(uri: &Uri, before: &str) -> Result<Bytes, Failed> {
    if uri.query().is_some() {
        return Err(Failed::bad("a query means nothing here: write a key's ? as %3F"));
    }
    let written = uri.path().strip_prefix(before).unwrap_or_default();
    let means_another =
        |part: &str| matches!(&*part.to_ascii_lowercase().replace("%2e", "."), "" | "." | "..");
    if !written.is_empty() && written.split('/').any(means_another) {
        return Err(Failed::bad("a path with empty, . or .. parts is no key: write a key's / as %2F"));
    }
    key(decoded(written.as_bytes(), false)?)
}

/// Keys, each in a line. What is not text stands there as %XX, and so does %.
pub(super) fn lines(keys: &[Bytes]) -> Bytes {
    let mut lines = String::new();
    for key in keys {
        for part in key.utf8_chunks() {
            for letter in part.valid().chars() {
                match letter.is_control() || letter == '%' {
                    true => letter.to_string().bytes().for_each(|byte| lines += &format!("%{byte:02X}")),
                    false => lines.push(letter),
                }
            }
            part.invalid().iter().for_each(|byte| lines += &format!("%{byte:02X}"));
        }
        lines.push('\n');
    }
    lines.into()
}

/// A name and its value.
pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// The pairs of a form or a query, in their order.
pub(super) fn pairs(form: &[u8]) -> Result<Vec<Pair>, Failed> {
    let pair = |pair: &[u8]| {
        let end = pair.iter().position(|&byte| byte == b'=').unwrap_or(pair.len());
        let value = pair.get(end + 1..).unwrap_or_default();
        Ok((decoded(&pair[..end], true)?, decoded(value, true)?))
    };
    form.split(|&byte| byte == b'&').filter(|part| !part.is_empty()).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_list_has_a_key_in_each_line_whatever_they_are() {
        let keys = ["a/b", "100%", "two\nlines", "ü"].map(Bytes::from);
        assert_eq!(lines(&keys), "a/b\n100%25\ntwo%0Alines\nü\n");
        assert_eq!(lines(&[Bytes::from_static(b"a\xff\0")]), "a%FF%00\n");
        assert_eq!(lines(&[]), "");
    }

    fn in_path(path: &str) -> Result<Bytes, String> {
        path_key(&path.parse().unwrap(), "/get/").map_err(|failed| failed.message)
    }

    #[test]
    fn a_key_is_what_its_path_says() {
        for (path, key) in [
            ("/get/a", "a"),
            ("/get/a/b", "a/b"),
            ("/get/a%20b+c", "a b+c"),
            ("/get/%c3%BC", "ü"),
            ("/get/%2E%2e%2Fetc", "../etc"),
            ("/get/a%2F%2Fb", "a//b"),
            ("/get/...", "..."),
            ("/get/a%3Fb", "a?b"),
            ("/get/", ""),
        ] {
            assert_eq!(in_path(path), Ok(key.to_owned().into()), "{path}");
        }
    }

    #[test]
    fn a_path_that_is_no_key_says_why() {
        for (path, word) in [
            ("/get/..", "%2F"),
            ("/get/a/../b", "%2F"),
            ("/get/a/%2E%2e", "%2F"),
            ("/get/./a", "%2F"),
            ("/get//a", "%2F"),
            ("/get/a/", "%2F"),
            ("/get/a?b", "%3F"),
            ("/get/a?", "%3F"),
            ("/get/%", "%25"),
            ("/get/%4", "%25"),
            ("/get/%zz", "%25"),
            ("/get/%+1", "%25"),
            ("/get/%ff", "UTF-8"),
            ("/get/a%00", "NUL"),
        ] {
            let refused = in_path(path).unwrap_err();
            assert!(refused.contains(word), "{path}: {refused}");
        }
    }

    #[test]
    fn a_form_is_read_in_its_order() {
        let read = |form: &str| {
            let text = |bytes| String::from_utf8(bytes).unwrap();
            let pairs = pairs(form.as_bytes()).map_err(|failed| failed.message)?;
            Ok::<_, String>(pairs.into_iter().map(|(k, v)| (text(k), text(v))).collect::<Vec<_>>())
        };
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(read("test=lol&msg=a+b%21"), Ok(vec![pair("test", "lol"), pair("msg", "a b!")]));
        assert_eq!(read("a=1&&a=2&"), Ok(vec![pair("a", "1"), pair("a", "2")]));
        assert_eq!(read("a=b=c"), Ok(vec![pair("a", "b=c")]));
        assert_eq!(read("a&=b"), Ok(vec![pair("a", ""), pair("", "b")]));
        assert_eq!(read(""), Ok(Vec::new()));
        assert!(read("a=%").unwrap_err().contains("%25"));
        assert!(read("%f=a").unwrap_err().contains("%25"));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(bytes in proptest::collection::vec(any::<u8>(), 0..64), plus: bool) {
            let encoded: String = bytes.iter().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(decoded(encoded.as_bytes(), plus).unwrap(), bytes);
        }

        #[test]
        fn anything_is_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(pairs) = pairs(&bytes) {
                prop_assert!(pairs.len() <= bytes.len());
            }
        }
    }
}
