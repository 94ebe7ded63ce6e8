//! Conditions on a request, as RFC 9110 has them.

use super::super::failed::Failed;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};

/// What makes a write one with a condition.
const OF_WRITES: [HeaderName; 3] = [header::IF_MATCH, header::IF_NONE_MATCH, header::IF_UNMODIFIED_SINCE];

/// What a header lists.
enum Tags<'a> {
    /// `*`: whatever is there.
    Any,
    /// These, and whether each is a weak one.
    These(Vec<(bool, &'a [u8])>),
}

/// Whether whoever reads what has this ETag, quotes and all, has it already. An error if he wants another one.
pub(super) fn has_it(headers: &HeaderMap, etag: &str) -> Result<bool, Failed> {
    // A weak tag is never certain to mean the same bytes.
    let matches = |tags: Tags<'_>, weak_too: bool| match tags {
        Tags::Any => true,
        Tags::These(tags) => tags.iter().any(|(weak, tag)| (weak_too || !weak) && *tag == etag.as_bytes()),
    };
    if let Some(tags) = tags(headers, header::IF_MATCH)?
        && !matches(tags, false)
    {
        let message = format!("the version is {etag}, and none that If-Match names");
        return Err(Failed::new(StatusCode::PRECONDITION_FAILED, message));
    }
    Ok(tags(headers, header::IF_NONE_MATCH)?.is_some_and(|tags| matches(tags, true)))
}

/// Refuses a write with a condition: it would be carried out without it.
pub(super) fn none(headers: &HeaderMap) -> Result<(), Failed> {
    let Some(name) = OF_WRITES.iter().find(|name| headers.contains_key(*name)) else { return Ok(()) };
    let message = format!("there are no conditional writes: leave the header {name} out; nothing was done");
    Err(Failed::new(StatusCode::NOT_IMPLEMENTED, message))
}

fn tags(headers: &HeaderMap, name: HeaderName) -> Result<Option<Tags<'_>>, Failed> {
    let mut lines = headers.get_all(&name).iter().map(|line| line.as_bytes().trim_ascii()).peekable();
    if lines.peek().is_none() {
        return Ok(None);
    }
    let mut all = Vec::new();
    for line in lines {
        if line == b"*" {
            return Ok(Some(Tags::Any));
        }
        if listed(line, &mut all).is_none() {
            return Err(Failed::bad(format!(
                "{name} is * or a list of versions in double quotes, as in ETag"
            )));
        }
    }
    Ok(Some(Tags::These(all)))
}

/// Reads a line's tags; `None` if it has something else.
fn listed<'a>(mut rest: &'a [u8], all: &mut Vec<(bool, &'a [u8])>) -> Option<()> {
    loop {
        while let Some((b' ' | b'\t' | b',', after)) = rest.split_first() {
            rest = after;
        }
        if rest.is_empty() {
            return Some(());
        }
        let strong = rest.strip_prefix(b"W/");
        let tag = strong.unwrap_or(rest);
        let end = tag.strip_prefix(b"\"")?.iter().position(|&byte| byte == b'"')? + 2;
        all.push((strong.is_some(), &tag[..end]));
        rest = tag[end..].trim_ascii_start();
        if !rest.is_empty() && !rest.starts_with(b",") {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &[(HeaderName, &str)]) -> Result<bool, u16> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, value.parse().unwrap());
        }
        has_it(&headers, "\"5-1\"").map_err(|failed| failed.code.as_u16())
    }

    #[test]
    fn who_has_it_already_needs_no_more() {
        let check = |value: &str, expected| {
            assert_eq!(told(&[(header::IF_NONE_MATCH, value)]), expected, "{value}");
        };
        check("\"5-1\"", Ok(true));
        check("W/\"5-1\"", Ok(true));
        check("*", Ok(true));
        check(" \"a\" ,, W/\"b,c\" ,\"5-1\", ", Ok(true));
        check("\"5-10\", \"5\", \"\"", Ok(false));
        check("", Ok(false));
        for bad in ["5-1", "\"5-1", "w/\"5-1\"", "\"a\" \"5-1\"", "\"5-1\"x", "W/", "*, \"a\""] {
            check(bad, Err(400));
        }
        let two = [(header::IF_NONE_MATCH, "\"a\""), (header::IF_NONE_MATCH, "\"5-1\"")];
        assert_eq!(told(&two), Ok(true), "in several lines");
    }

    #[test]
    fn who_wants_another_one_is_told_so() {
        let check = |value: &str, expected| {
            assert_eq!(told(&[(header::IF_MATCH, value)]), expected, "{value}");
        };
        check("\"5-1\"", Ok(false));
        check("\"a\", \"5-1\"", Ok(false));
        check("*", Ok(false));
        check("W/\"5-1\"", Err(412));
        check("\"a\"", Err(412));
        let both = [(header::IF_MATCH, "\"a\""), (header::IF_NONE_MATCH, "\"5-1\"")];
        assert_eq!(told(&both), Err(412), "what must hold comes first");
    }

    #[test]
    fn no_write_has_a_condition() {
        for name in OF_WRITES {
            let headers = HeaderMap::from_iter([(name, "*".parse().unwrap())]);
            assert_eq!(none(&headers).unwrap_err().code.as_u16(), 501);
        }
        assert!(none(&HeaderMap::new()).is_ok());
    }
}
