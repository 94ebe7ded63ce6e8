//! Who may ask over plain HTTP.
//!
//! Every request must name a host that is an IP address or `localhost`, and none may come from a
//! web page of another origin: a page in somebody's browser must not write to a node on his
//! machine. A browser says in `Sec-Fetch-Site` where a request comes from that brings no `Origin`,
//! such as an image's.

use super::failed::Failed;
use axum::extract::Request;
use axum::http::{HeaderName, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Where a browser says that a request comes from.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether the host that a request names can't be a web site's: else a page could reach this node
/// by having its own name point here.
fn host_is_local(host: &str) -> bool {
    // A number may have a sign elsewhere.
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let name = host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |(name, _)| name);
    match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok(),
    }
}

/// Why a request is not even looked at, if it isn't.
fn refusal(request: &Request) -> Option<Failed> {
    let text = |name: HeaderName| request.headers().get(name).map(|v| v.to_str().unwrap_or("?"));
    let host =
        text(header::HOST).or_else(|| request.uri().authority().map(|a| a.as_str())).unwrap_or_default();
    if host.is_empty() {
        return Some(Failed::bad("the request names no host"));
    }
    let forbidden = |why| Some(Failed::new(StatusCode::FORBIDDEN, why));
    if !host_is_local(host) {
        return forbidden("ask by an IP address or localhost: any other host may be a web page's");
    }
    let same_origin = |origin: &str| origin.split_once("://").is_some_and(|(_, of)| of == host);
    // `none` is a person, who typed the address or chose a bookmark.
    let same_site = |site| matches!(site, "same-origin" | "none");
    if !text(header::ORIGIN).is_none_or(same_origin) || !text(SEC_FETCH_SITE).is_none_or(same_site) {
        return forbidden("requests of web pages of other origins are refused");
    }
    let named_twice = request.headers().get_all(header::HOST).iter().count() > 1;
    let named_apart = request.uri().authority().is_some_and(|named| named.as_str() != host);
    (named_twice || named_apart).then(|| Failed::bad("the request names two hosts"))
}

/// Lets only those requests through that no web page of elsewhere can have made.
pub(super) async fn only_local_pages(request: Request, next: Next) -> Response {
    match refusal(&request) {
        None => next.run(request).await,
        Some(refused) => refused.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_addresses_and_localhost_are_local() {
        for good in ["localhost", "localhost:9900", "127.0.0.1:9900", "[::1]:9900", "[::1]", "10.0.0.7"] {
            assert!(host_is_local(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "evil.example:9900",
            "127.0.0.1.evil.example",
            "[localhost:80",
            "[10.0.0.7]",
            "[::1]:+900",
        ] {
            assert!(!host_is_local(bad), "{bad}");
        }
    }

    #[test]
    fn pages_of_elsewhere_are_refused_with_and_without_an_origin() {
        let refused = |headers: &[(&str, &str)]| {
            let mut request = Request::new(axum::body::Body::empty());
            for (name, value) in headers {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
            }
            refusal(&request).map(|failed| failed.code.as_u16())
        };
        let here = ("host", "localhost:9900");
        assert_eq!(refused(&[]), Some(400));
        assert_eq!(refused(&[("host", "evil.example")]), Some(403));
        assert_eq!(refused(&[("host", "localhost"), ("host", "evil.example")]), Some(400));
        assert_eq!(refused(&[here]), None);
        assert_eq!(refused(&[here, ("origin", "http://localhost:9900")]), None);
        for origin in ["http://localhost:3000", "http://evil.example", "null", ""] {
            assert_eq!(refused(&[here, ("origin", origin)]), Some(403), "{origin:?}");
        }
        for (site, is_refused) in
            [("none", false), ("same-origin", false), ("same-site", true), ("cross-site", true), ("?", true)]
        {
            assert_eq!(refused(&[here, ("sec-fetch-site", site)]).is_some(), is_refused, "{site}");
        }
    }
}
