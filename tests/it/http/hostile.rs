//! Requests over HTTP that are wrong or mean harm: each is refused with a clear line, nothing is stored, and the
//! node goes on.

use super::{asked, ends, told};
use crate::rig::Rig;
use crate::rig::http::{answer, connect};
use serde_json::json;
use std::io::{Read, Write};
use std::net::Shutdown;
use thrifty::core::record::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

/// Every route, by a request that would be taken but for what is added to it.
const ROUTES: [(&str, &str); 9] = [
    ("GET /v1/kv/a", ""),
    ("HEAD /v1/kv/a", ""),
    ("PUT /v1/kv/a", "apple"),
    ("POST /v1/kv/a", "apple"),
    ("DELETE /v1/kv/a", ""),
    ("GET /v1/kv", ""),
    ("POST /v1/batch", r#"{"items":[{"put":{"key":"a","value":"apple"}}]}"#),
    ("GET /v1/status", ""),
    ("GET /v1/ring", ""),
];

/// Nothing was stored, and the node serves.
#[track_caller]
fn unharmed(node: &crate::rig::Node<'_>) {
    assert_eq!(told(&ends(node, "GET /v1/kv", &[], "", 200)), json!({ "items": [] }));
}

#[test]
fn pages_of_elsewhere_reach_no_route() {
    let rig = Rig::new();
    let node = &rig.ring_of(1)[0];
    let own = format!("http://{}", node.address());
    for (request, body) in ROUTES.into_iter().chain([("GET /livez", ""), ("GET /readyz", "")]) {
        for headers in [
            &["host: evil.example"][..],
            &["host: evil.example:9900", "origin: http://evil.example:9900"],
            &["host: 127.0.0.1.evil.example"],
            &["origin: http://evil.example"],
            &["origin: null"],
            &["sec-fetch-site: cross-site", "sec-fetch-dest: image"],
            &["sec-fetch-site: same-site"],
            &["sec-fetch-site: cross-site", &format!("origin: {own}")],
        ] {
            let refused = ends(node, request, headers, body, 403);
            let head = request.starts_with("HEAD");
            assert!(head || refused.text().contains("web page"), "{request}: {}", refused.text());
        }
    }
    let refused = ends(node, "PUT /v1/kv/a", &["host:"], "apple", 400);
    assert!(refused.text().contains("host"), "{}", refused.text());
    unharmed(node);
    let own = format!("origin: {own}");
    for headers in [&[&*own, "sec-fetch-site: same-origin"][..], &["sec-fetch-site: none"]] {
        ends(node, "PUT /v1/kv/a", headers, "apple", 204);
    }
}

#[test]
fn what_is_asked_wrongly_is_told_why() {
    let rig = Rig::new();
    let node = &rig.ring_of(1)[0];
    let (long, huge) = ("k".repeat(MAX_KEY_BYTES + 1), "k".repeat(60_000));
    for method in ["GET", "PUT", "POST", "DELETE"] {
        for (path, words) in [
            ("", "1 to 4096"),
            (&*long, "1 to 4096"),
            (&"%00".repeat(MAX_KEY_BYTES + 1), "1 to 4096"),
            (&huge, "1 to 4096"),
            ("a%", "%25"),
            ("a%zz", "%25"),
            ("%c3%", "%25"),
            ("a?conistency=one", "there are consistency"),
            ("a?limit=1", "\"limit\""),
            ("a?%ff=1", "no parameter"),
            ("a?consistency=one&consistency=one", "twice"),
            ("a?consistency=most", "one, quorum or all"),
            ("a?consistency=%ff", "one, quorum or all"),
            ("a?consistency=%", "%25"),
            ("a?fallback=all", "fallback is one"),
            (&format!("a?{huge}"), "no parameter"),
        ] {
            let refused = ends(node, &format!("{method} /v1/kv/{path}"), &[], "apple", 400);
            assert!(refused.text().contains(words), "{method} {path:.30}: {}", refused.text());
            assert!(refused.text().len() < 300 && refused.text().lines().count() == 1, "{}", refused.text());
        }
    }
    for (request, words) in [
        ("PUT /v1/kv/a?ttl=5", "30s"),
        ("PUT /v1/kv/a?local=true", "there are consistency, fallback, ttl"),
        ("GET /v1/kv/a?ttl=5s", "there are consistency, fallback, local"),
        ("GET /v1/kv/a?local=yes", "true or false"),
        ("GET /v1/kv?limit=0", "1 to 10000"),
        ("GET /v1/kv?limit=10001", "1 to 10000"),
        ("GET /v1/kv?limit=1e3", "1 to 10000"),
        ("GET /v1/kv?values=1", "true or false"),
        ("GET /v1/kv?key=a", "there are prefix"),
        ("GET /v1/kv?page_token=*", "page_token"),
        (&format!("GET /v1/kv?prefix={long}"), "4096"),
        ("GET /v1/status?local=true", "there is none"),
        ("GET /v1/ring?x", "there is none"),
        ("POST /v1/batch?ttl=5s", "there are consistency, fallback"),
    ] {
        let refused = ends(node, request, &[], "apple", 400);
        assert!(refused.text().contains(words), "{request:.40}: {}", refused.text());
    }
    for (headers, status) in [
        (&["content-type: \u{e4}"][..], 400),
        (&[&*format!("content-type: {}", "x".repeat(256))], 400),
        (&["content-range: bytes 0-4/9"], 400),
        (&["content-encoding: gzip"], 415),
    ] {
        ends(node, "PUT /v1/kv/a", headers, "apple", status);
    }
    unharmed(node);
}

#[test]
fn other_methods_and_places_are_told_apart() {
    let rig = Rig::new();
    let node = &rig.ring_of(1)[0];
    for (request, allowed) in [
        ("PATCH /v1/kv/a", "GET,HEAD,PUT,POST,DELETE"),
        ("OPTIONS /v1/kv/a", "GET,HEAD,PUT,POST,DELETE"),
        ("BREW /v1/kv/a", "GET,HEAD,PUT,POST,DELETE"),
        ("PUT /v1/kv", "GET,HEAD"),
        ("DELETE /v1/kv", "GET,HEAD"),
        ("GET /v1/batch", "POST"),
        ("PUT /v1/batch", "POST"),
        ("POST /v1/status", "GET,HEAD"),
        ("DELETE /v1/ring", "GET,HEAD"),
        ("POST /livez", "GET,HEAD"),
    ] {
        let refused = ends(node, request, &[], "apple", 405);
        assert_eq!(refused.header("allow"), Some(allowed), "{request}");
        assert!(refused.text().contains("Allow"), "{request}: {}", refused.text());
    }
    for path in
        ["/", "/v1", "/v1/", "/v2/kv/a", "/v1/kvs", "/v1/status/", "/v1%2Fkv/a", "//v1/kv/a", "/V1/kv/a"]
    {
        for method in ["GET", "PUT"] {
            let refused = ends(node, &format!("{method} {path}"), &[], "apple", 404);
            assert!(refused.text().contains("/v1/kv/"), "{path}: {}", refused.text());
        }
    }
    unharmed(node);
}

#[test]
fn bodies_that_are_too_large_or_no_batch_change_nothing() {
    let rig = Rig::new();
    let node = &rig.ring_of(1)[0];
    let refused = ends(node, "PUT /v1/kv/a", &[], vec![7; MAX_VALUE_BYTES + 1], 413);
    assert!(refused.text().contains("1048576"), "{}", refused.text());
    let put = r#"{"put":{"key":"a","value":"apple"}}"#;
    let large = format!(r#"{{"items":[{put}]{}}}"#, " ".repeat(4 << 20));
    let refused = ends(node, "POST /v1/batch", &[], &large, 413);
    assert!(refused.text().contains("4194304"), "{}", refused.text());
    ends(node, "POST /v1/batch", &[], &large[..4 << 20], 400);
    for body in [
        "",
        "\0",
        "\u{feff}{}",
        "[]",
        "null",
        "\"",
        &"[".repeat(1 << 20),
        &format!("{{\"items\":{}", "{\"items\":".repeat(100_000)),
        &format!("{{\"items\":[{put},{}]}}", "[".repeat(1 << 20)),
        &format!("{{\"items\":[{put}],\"items\":[{put}]}}"),
        &format!("{{\"items\":[{put}]}}{put}"),
        &format!("{{\"items\":[{put},{put}"),
        &format!("{{\"items\":[{put},]}}"),
        &format!("{{\"items\":[{put},{{\"get\":{{\"key\":{}}}}}]}}", "9".repeat(1 << 20)),
        &format!("{{\"items\":[{put},{{\"get\":{{\"key\":1e{}}}}}]}}", "9".repeat(1000)),
        &format!("{{\"items\":[{}{put}]}}", format!("{put},").repeat(1000)),
        &format!("{{\"items\":[{put},{{\"put\":{{\"key\":\"b\",\"value\":\"1\",\"TTL\":\"1s\"}}}}]}}"),
    ] {
        let refused = ends(node, "POST /v1/batch", &[], body, 400);
        assert!(refused.text().contains("nothing was done"), "{}", refused.text());
        assert!(refused.text().len() < 300, "{}", refused.text());
    }
    ends(node, "POST /v1/batch", &[], [b"{\"items\":[", put.as_bytes(), b",\"\xff\"]}"].concat(), 400);
    unharmed(node);
}

#[test]
fn bytes_that_are_hardly_http() {
    let rig = Rig::new();
    let node = &rig.ring_of(1)[0];
    let host = format!("host: {}\r\nconnection: close\r\n", node.address());
    let raw = |bytes: &[u8]| {
        let mut stream = connect(&node.address()).unwrap();
        // It may answer, or hang up, before it has heard all.
        let _hung_up = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        answer(stream).map(|answer| answer.status).ok()
    };
    let refused = |bytes: &[u8]| {
        let told = raw(bytes);
        assert!(told.is_none_or(|status| (400..=431).contains(&status)), "{told:?}: {:.60?}", bytes);
    };
    for path in [&b"/v1/kv/a\0b"[..], b"/v1/kv/a b", b"/v1/kv/\xff", b"/v1/kv/\x01", b"", b"v1/kv/a"] {
        for method in ["PUT", "DELETE", "GET"] {
            let head = [method.as_bytes(), b" ", path, b" HTTP/1.1\r\n", host.as_bytes()].concat();
            refused(&[&head[..], b"content-length: 1\r\n\r\nx"].concat());
        }
    }
    let put = |headers: &str, body: &str| {
        refused(format!("PUT /v1/kv/a HTTP/1.1\r\n{host}{headers}\r\n{body}").as_bytes());
    };
    put(&format!("x: {}\r\ncontent-length: 1\r\n", "x".repeat(1 << 20)), "x");
    put(&format!("{}content-length: 1\r\n", "x: y\r\n".repeat(1000)), "x");
    put("content-length: 99999999999999999999\r\n", "x");
    put("content-length: -1\r\n", "x");
    put("content-length: 1\r\ncontent-length: 2\r\n", "xy");
    put("content-length: 5\r\n", "x");
    put("transfer-encoding: chunked\r\n", "zz\r\nx\r\n0\r\n\r\n");
    put("transfer-encoding: chunked\r\n", "ffffffffffffffff1\r\nx");
    refused(format!("PUT /v1/kv/{} HTTP/1.1\r\n{host}\r\n", "x".repeat(1 << 20)).as_bytes());
    refused(format!("PUT {} HTTP/1.1\r\n\r\n", "/v1/kv/a").as_bytes());
    // Who never ends holds nobody up.
    let mut slow = connect(&node.address()).unwrap();
    write!(slow, "PUT /v1/kv/a HTTP/1.1\r\n{host}content-length: 5\r\n\r\nx").unwrap();
    unharmed(node);
    slow.shutdown(Shutdown::Write).unwrap();
    let _whatever = slow.read(&mut [0; 1000]);
    unharmed(node);
    let many = format!("if-none-match: {}", "\"x\",".repeat(3000));
    assert_eq!(asked(node, "GET /v1/kv/a", &[&many], "").status, 404);
}
