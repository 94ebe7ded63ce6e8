//! Requests to gates that make no sense or mean harm: each is refused with the right status and a line
//! that says why, and nothing is stored.

use super::{get, post, storegate};
use crate::rig::http::{Answer, answer, ask, connect};
use crate::rig::{Node, Rig, addresses};
use std::io::Write;
use thrifty::core::record::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

/// A gate of each dialect before a ring of one, which has to stay empty.
fn story(check: impl FnOnce([&str; 3])) {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let dialects = ["velour", "simplestore", "diststore"];
    let ports = [8000, 8001, 8002].map(|port| rig.at(port));
    let start = |(dialect, at): (&&str, &String)| {
        let mut gate = storegate(&rig, dialect, at, &addresses(&nodes));
        gate.says("gate listens on");
        gate
    };
    let mut gates: Vec<Node<'_>> = dialects.iter().zip(&ports).map(start).collect();
    check(ports.each_ref().map(String::as_str));
    assert_eq!(rig.settled(&nodes).nodes[0].keys, Some(0), "something was stored");
    gates.iter_mut().for_each(Node::still_runs);
    let [velour, simplestore, diststore] = &ports;
    assert_eq!(post(velour, "/a", b"apple").status, 200);
    assert_eq!(get(simplestore, "/get/a").text(), r#"{ "value": "apple" }"#);
    assert_eq!(get(diststore, "/get/a").text(), "apple");
}

/// It was refused like this, in a line; in simplestore as JSON.
#[track_caller]
fn refused(what: &str, answer: &Answer, status: u16, words: &[&str]) {
    let text = answer.text();
    assert_eq!(answer.status, status, "{what}: {text}");
    assert!(words.iter().all(|word| text.contains(word)), "{what}: {words:?} not in {text:?}");
}

/// The status that bytes are answered with, however long they last.
#[track_caller]
fn sent(gate: &str, bytes: &[u8]) -> Answer {
    let mut stream = connect(gate).unwrap();
    stream.write_all(bytes).unwrap();
    answer(stream).unwrap()
}

#[test]
fn keys_that_are_none() {
    story(|[velour, simplestore, diststore]| {
        let long = "k".repeat(MAX_KEY_BYTES + 1);
        let cases = [
            ("", "1 to 4096 bytes"),
            (&*long, "1 to 4096 bytes"),
            ("%", "%25"),
            ("a%4", "%25"),
            ("%zz", "%25"),
            ("%ff%fe", "UTF-8"),
            ("a%00b", "NUL"),
            ("../../etc/passwd", "%2F"),
            ("%2e%2e/a", "%2F"),
            ("a/./b", "%2F"),
            ("/", "%2F"),
            ("//a", "%2F"),
            ("a//b", "%2F"),
            ("a/", "%2F"),
            ("a?ttl=1s", "%3F"),
        ];
        let plain = ["content-type: text/plain"];
        for (key, word) in cases {
            for (gate, request) in [
                (velour, format!("POST /{key}")),
                (velour, format!("GET /{key}")),
                (velour, format!("DELETE /{key}")),
                (simplestore, format!("GET /get/{key}")),
                (diststore, format!("GET /get/{key}")),
                (diststore, format!("POST /local/{key}")),
            ] {
                let body: &[u8] = if request.starts_with("POST") { b"value" } else { b"" };
                let answer = ask(gate, &request, &plain, body).unwrap();
                refused(&request, &answer, 400, &[word]);
                assert_eq!(answer.text().starts_with(r#"{ "error": "#), gate == simplestore);
            }
            // Without a key it is a form.
            if !matches!(key, "" | "/") {
                refused(key, &ask(diststore, &format!("POST /{key}"), &plain, b"v").unwrap(), 400, &[word]);
            }
        }
        // What is no part of a URI at all.
        for path in ["/a\0b", "/a b", "/get/\r", "/get/\x7f"] {
            for gate in [velour, simplestore, diststore] {
                let answer = sent(gate, format!("GET {path} HTTP/1.1\r\nhost: {gate}\r\n\r\n").as_bytes());
                assert_eq!(answer.status, 400, "{path:?}");
            }
        }
    });
}

#[test]
fn queries_and_forms_that_make_no_sense() {
    story(|[velour, simplestore, diststore]| {
        let many: String = (0..101).map(|n| format!("&k{n}=v")).collect();
        let long = format!("{}=v", "k".repeat(MAX_KEY_BYTES + 1));
        for (query, word) in [
            ("", "/set?KEY=VALUE"),
            ("&&&", "/set?KEY=VALUE"),
            ("=v", "1 to 4096 bytes"),
            ("good=v&=v", "1 to 4096 bytes"),
            (&*long, "1 to 4096 bytes"),
            ("good=v&bad=%", "%25"),
            ("good=v&b%0=v", "%25"),
            ("good=v&%ff=v", "UTF-8"),
            ("good=v&a%00=v", "NUL"),
            (&*many, "at most 100"),
        ] {
            let answer = get(simplestore, &format!("/set?{query}"));
            refused(query, &answer, 400, &[r#"{ "error": ""#, word]);
        }
        refused("no query", &get(simplestore, "/set"), 400, &["/set?KEY=VALUE"]);
        for (form, word) in [
            ("", "`key`"),
            ("key=a", "`value`"),
            ("value=a", "`key`"),
            ("key&value=", "1 to 4096 bytes"),
            ("key=a&value=%", "%25"),
            ("key=%ff&value=a", "UTF-8"),
            ("key=%00&value=a", "NUL"),
            ("{\"key\":1}", "`key`"),
        ] {
            refused(form, &post(diststore, "/", form.as_bytes()), 400, &[word]);
        }
        let json = ask(diststore, "POST /", &["content-type: application/json"], b"{}").unwrap();
        refused("json", &json, 415, &["form"]);
        refused("a path of none", &get(simplestore, "/"), 404, &["error"]);
        refused("a path of none", &get(simplestore, "/put/a"), 404, &["error"]);
        for (gate, request, allow) in [
            (velour, "PUT /a", "GET,HEAD,POST,DELETE"),
            (velour, "OPTIONS /a", "GET,HEAD,POST,DELETE"),
            (velour, "BREW /a", "GET,HEAD,POST,DELETE"),
            (simplestore, "POST /set?a=b", "GET,HEAD"),
            (simplestore, "HEAD /set?a=b", "GET"),
            (simplestore, "DELETE /get/a", "GET,HEAD"),
            (diststore, "GET /", "POST"),
            (diststore, "GET /a", "POST,DELETE"),
            (diststore, "PUT /a", "POST,DELETE"),
            (diststore, "POST /get/a", "GET,HEAD"),
            (diststore, "GET /local/a", "POST"),
        ] {
            let answer = ask(gate, request, &[], b"").unwrap();
            refused(request, &answer, 405, &[]);
            assert_eq!(answer.header("allow"), Some(allow), "{request}");
        }
    });
}

#[test]
fn bodies_that_are_too_large_or_too_slow() {
    story(|[velour, _, diststore]| {
        for gate in [velour, diststore] {
            for length in [MAX_VALUE_BYTES + 1, 100 << 20, 1 << 50] {
                let head =
                    format!("POST /large HTTP/1.1\r\nhost: {gate}\r\ncontent-length: {length}\r\n\r\n");
                refused(&head, &sent(gate, head.as_bytes()), 413, &["1048576"]);
            }
            let head = format!("POST /a HTTP/1.1\r\nhost: {gate}\r\ncontent-length: -1\r\n\r\n");
            assert_eq!(sent(gate, head.as_bytes()).status, 400);
        }
        let form = format!("POST / HTTP/1.1\r\nhost: {diststore}\r\ncontent-length: {}\r\n\r\n", 4 << 20);
        refused("a form", &sent(diststore, form.as_bytes()), 413, &["1048576"]);
        let value = [&b"key=a&value="[..], &vec![b'v'; MAX_VALUE_BYTES + 1]].concat();
        refused("a value in a form", &post(diststore, "/", &value), 413, &["1048576"]);
        // In pieces, without saying how many: all of them are sent before the answer is looked at.
        let chunk = [&b"10000\r\n"[..], &[b'x'; 1 << 16], b"\r\n"].concat();
        let head = format!("POST /a HTTP/1.1\r\nhost: {velour}\r\ntransfer-encoding: chunked\r\n\r\n");
        let mut endless = connect(velour).unwrap();
        endless.write_all(head.as_bytes()).unwrap();
        let mut sent_bytes = 0;
        while endless.write_all(&chunk).is_ok() {
            sent_bytes += chunk.len();
            assert!(sent_bytes < 64 << 20, "it takes more and more");
        }
        // Pieces that stop coming, and one that never was.
        let beginnings = [&chunk[..], b"5\r\nap", b""].map(|some| {
            let mut slow = connect(velour).unwrap();
            slow.write_all(&[head.as_bytes(), some].concat()).unwrap();
            slow
        });
        let nonsense = [head.as_bytes(), b"not a number\r\n"].concat();
        assert_eq!(sent(velour, &nonsense).status, 400);
        for slow in beginnings {
            refused("a slow one", &answer(slow).unwrap(), 408, &["nothing was done"]);
        }
    });
}

#[test]
fn pages_of_elsewhere_and_heads_without_end() {
    story(|gates| {
        for (gate, request) in gates.iter().zip(["POST /a", "GET /set?a=b", "POST /local/a"]) {
            for (headers, status, word) in [
                (&["host: evil.example"][..], 403, "localhost"),
                (&["host: 127.0.0.1.evil.example:80"], 403, "localhost"),
                (&["origin: http://evil.example"], 403, "other origins"),
                (&["origin: null"], 403, "other origins"),
                (&["origin: http://localhost:3000", "host: localhost:8000"], 403, "other origins"),
                (&["sec-fetch-site: cross-site"], 403, "other origins"),
                (&["sec-fetch-site: same-site"], 403, "other origins"),
                (&["host: "], 400, "names no host"),
            ] {
                refused(request, &ask(gate, request, headers, b"").unwrap(), status, &[word]);
            }
            let without_host = sent(gate, format!("{request} HTTP/1.0\r\n\r\n").as_bytes());
            refused("no host", &without_host, 400, &["names no host"]);
            let uri = "k".repeat(70_000);
            assert_eq!(
                sent(gate, format!("GET /{uri} HTTP/1.1\r\nhost: {gate}\r\n\r\n").as_bytes()).status,
                414
            );
            let header = format!("x: {}\r\n", "y".repeat(1000));
            for headers in [header.repeat(101), header.repeat(1000)] {
                let mut stream = connect(gate).unwrap();
                // It has heard enough before it has heard all.
                let _cut_off = stream.write_all(format!("{request} HTTP/1.1\r\n{headers}\r\n").as_bytes());
                if let Ok(answer) = answer(stream) {
                    assert_eq!(answer.status, 431, "{}", answer.text());
                }
            }
        }
    });
}
