//! Bytes and times as people and programs read them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;

/// Bytes on one line, readable: printable UTF-8 as it is, a backslash as `\\`, newline, return and tab as `\n`, `\r`
/// and `\t`, every other byte as `\x` and two digits. [`unescape`] gives the bytes back.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                char if printable(char) => text.push(char),
                char => push_hex(&mut text, char.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        push_hex(&mut text, chunk.invalid());
    }
    text
}

/// What shows itself on a terminal, rather than to move the cursor or to turn other text around.
fn printable(char: char) -> bool {
    !char.is_control()
        && !matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    bytes.iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
}

/// The bytes of which [`escape`] made this.
pub(crate) fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        bytes.extend_from_slice(plain.as_bytes());
        let (byte, length) = match escaped.as_bytes() {
            [b'\\', ..] => (b'\\', 1),
            [b'n', ..] => (b'\n', 1),
            [b'r', ..] => (b'\r', 1),
            [b't', ..] => (b'\t', 1),
            [b'x', a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {
                (u8::from_str_radix(&escaped[1..3], 16).unwrap_or(0), 3)
            }
            _ => {
                return Err(
                    r"after a backslash comes \, n, r, t or x and two digits, as in a\\b or \xff".into()
                );
            }
        };
        bytes.push(byte);
        rest = &escaped[length..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}

/// Bytes as JSON has them: as a string, or else as base64 (RFC 4648 section 4, with padding).
pub(crate) fn text_or_base64(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_binary| STANDARD.encode(bytes))
}

/// Puts bytes into an object: as a string under `name` or, where they are none, under `name` and `_base64`.
pub(crate) fn insert(object: &mut serde_json::Value, name: &str, bytes: &[u8]) {
    match text_or_base64(bytes) {
        Ok(text) => object[name] = text.into(),
        Err(base64) => object[format!("{name}_base64")] = base64.into(),
    }
}

/// Base64 of bytes.
pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The bytes that base64 stands for.
pub(crate) fn from_base64(text: &str) -> Result<Bytes, String> {
    STANDARD.decode(text).map(Bytes::from).map_err(|error| format!("that is no base64 with padding: {error}"))
}

/// A time in milliseconds since 1970, as RFC 3339 has it, in UTC: `2026-11-21T16:00:00.250Z`. It has no way to write what
/// is later than the year 9999.
pub(crate) fn utc(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    format!("{:.3}", time.unwrap_or(Timestamp::MAX))
}

/// Milliseconds since 1970, by this machine's clock.
pub(crate) fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_readable_and_can_be_undone() {
        for (bytes, text) in [
            (&b"plain key/1"[..], "plain key/1"),
            ("Äpfel 🍏".as_bytes(), "Äpfel 🍏"),
            (b"a\\b\nc\td\re", r"a\\b\nc\td\re"),
            (b"\0\x1b[31m\xff\x7f", r"\x00\x1b[31m\xff\x7f"),
            ("a\u{202e}b\u{85}".as_bytes(), r"a\xe2\x80\xaeb\xc2\x85"),
            (b"", ""),
        ] {
            assert_eq!(escape(bytes), text);
            assert_eq!(unescape(text).unwrap(), bytes);
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unescape(&escape(&all)).unwrap(), all);
        assert_eq!(unescape(r"\xFF").unwrap(), [255]);
        for bad in [r"\", r"a\", r"\x", r"\xf", r"\xfg", r"\q", r"\xé", r"\u{41}"] {
            assert!(unescape(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_base64_in_json() {
        let mut object = serde_json::json!({});
        insert(&mut object, "key", b"a\n");
        insert(&mut object, "value", &[0xff, 0xfe, 0xfb]);
        assert_eq!(object.to_string(), r#"{"key":"a\n","value_base64":"//77"}"#);
        assert_eq!(from_base64("//77").unwrap(), [0xff, 0xfe, 0xfb][..]);
        assert!(from_base64("//7").is_err() && from_base64("a b=").is_err());
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599_000, "2024-12-31T23:59:59.000Z"),
            (1_735_689_600_001, "2025-01-01T00:00:00.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(ms), text);
        }
        assert!(utc(u64::MAX).starts_with("9999-12-"));
    }
}
