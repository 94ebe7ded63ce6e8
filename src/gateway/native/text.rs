//! Bytes in JSON: as text, or else as base64 under another name.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

/// As text and as base64 (RFC 4648 section 4, with padding): one of them.
pub(super) fn told(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

/// The reverse of [`told`], for what is called `name`.
pub(super) fn given(name: &str, text: Option<String>, base64: Option<String>) -> Result<Bytes, String> {
    match (text, base64) {
        (Some(text), None) => Ok(text.into()),
        (None, Some(base64)) => STANDARD
            .decode(base64)
            .map(Bytes::from)
            .map_err(|bad| format!("{name}_base64 is no base64 with padding: {bad}")),
        (Some(_), Some(_)) => Err(format!("it has both {name} and {name}_base64")),
        (None, None) => Err(format!("it has neither {name} nor {name}_base64")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_given_as_they_are_told() {
        for bytes in [&b""[..], b"apple", b"\xff\xfe\xfb", b"\0"] {
            let (text, base64) = told(bytes);
            assert_eq!(given("key", text.map(str::to_owned), base64).as_deref(), Ok(bytes));
        }
        assert_eq!(told(b"\xff\xfe\xfb"), (None, Some("//77".into())));
        let some = || Some("//77".to_owned());
        for (text, base64) in [(None, None), (some(), some()), (None, Some("//7".into()))] {
            assert!(given("key", text, base64).unwrap_err().contains("key_base64"));
        }
    }
}
