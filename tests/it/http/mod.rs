//! The store over plain HTTP.

mod hostile;

use crate::rig::http::{Answer, ask};
use crate::rig::{Node, Rig, addresses, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use thrifty::core::record::MAX_VALUE_BYTES;

/// One request to a node; `headers` are lines.
fn asked(node: &Node<'_>, request: &str, headers: &[&str], body: impl AsRef<[u8]>) -> Answer {
    ask(&node.address(), request, headers, body.as_ref()).unwrap()
}

/// One that has to end so.
#[track_caller]
fn ends(node: &Node<'_>, request: &str, headers: &[&str], body: impl AsRef<[u8]>, status: u16) -> Answer {
    let answer = asked(node, request, headers, body);
    assert_eq!(answer.status, status, "{request}: {}", String::from_utf8_lossy(&answer.body));
    answer
}

/// What is answered in JSON.
#[track_caller]
fn told(answer: &Answer) -> Value {
    assert_eq!(answer.header("content-type"), Some("application/json"));
    serde_json::from_str(answer.text()).unwrap()
}

#[test]
fn a_value_comes_back_with_what_is_known_of_it() {
    let rig = Rig::new();
    let nodes = rig.ring_of(3);
    let put = ends(&nodes[0], "PUT /v1/kv/a?ttl=1h", &["content-type: text/plain"], "apple", 204);
    let version = put.header("etag").unwrap();
    assert_eq!(put.header("thrifty-consistency"), Some("quorum"));
    let got = ends(&nodes[1], "GET /v1/kv/a?consistency=all", &[], "", 200);
    let headers = |answer: &Answer| {
        ["etag", "content-type", "content-length", "thrifty-consistency", "thrifty-expires-at-ms"]
            .map(|name| answer.header(name).unwrap_or_default().to_owned())
    };
    let [etag, kind, length, consistency, expires] = headers(&got);
    assert_eq!((got.text(), &*etag, &*kind, &*length), ("apple", version, "text/plain", "5"));
    assert_eq!(consistency, "all");
    assert!(expires.parse::<u64>().unwrap() > 1_700_000_000_000, "{expires}");
    let head = ends(&nodes[1], "HEAD /v1/kv/a?consistency=all", &[], "", 200);
    assert_eq!((head.text(), headers(&head)), ("", headers(&got)));

    // What a value says that it is does nobody harm.
    ends(&nodes[0], "POST /v1/kv/page", &["content-type: text/html"], "<script>", 204);
    let page = ends(&nodes[0], "GET /v1/kv/page", &[], "", 200);
    assert_eq!(page.header("content-security-policy"), Some("sandbox"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(page.header("thrifty-expires-at-ms"), None);

    let deleted = ends(&nodes[2], "DELETE /v1/kv/a", &[], "", 204);
    assert_eq!(deleted.header("thrifty-consistency"), Some("quorum"));
    assert_eq!(ends(&nodes[0], "GET /v1/kv/a", &[], "", 404).text(), "no such key\n");
    assert_eq!(ends(&nodes[0], "HEAD /v1/kv/a", &[], "", 404).text(), "");
    ends(&nodes[2], "DELETE /v1/kv/a", &[], "", 204);
}

#[test]
fn a_version_that_is_known_is_not_sent_again() {
    let rig = Rig::new();
    let node = &rig.ring_of(1)[0];
    let old = ends(node, "PUT /v1/kv/a", &[], "old", 204).header("etag").unwrap().to_owned();
    let new = ends(node, "PUT /v1/kv/a", &[], "new", 204).header("etag").unwrap().to_owned();
    for known in [new.clone(), format!("W/{new}"), format!("{old}, {new}"), "*".into()] {
        for method in ["GET", "HEAD"] {
            let header = format!("if-none-match: {known}");
            let answer = ends(node, &format!("{method} /v1/kv/a"), &[&header], "", 304);
            assert_eq!((answer.text(), answer.header("etag")), ("", Some(&*new)));
        }
        ends(node, "GET /v1/kv/none", &[&format!("if-none-match: {known}")], "", 404);
    }
    assert_eq!(ends(node, "GET /v1/kv/a", &[&format!("if-none-match: {old}")], "", 200).text(), "new");
    ends(node, "GET /v1/kv/a", &[&format!("if-match: {new}")], "", 200);
    ends(node, "GET /v1/kv/a", &["if-match: *"], "", 200);
    let other = ends(node, "GET /v1/kv/a", &[&format!("if-match: {old}")], "", 412);
    assert!(other.text().contains(&new), "{}", other.text());
    let bare = new.trim_matches('"');
    ends(node, "GET /v1/kv/a", &[&format!("if-none-match: {bare}")], "", 400);

    // A write with a condition is not carried out without it.
    let date = "if-unmodified-since: Sun, 06 Nov 1994 08:49:37 GMT";
    for condition in [&*format!("if-match: {new}"), "if-none-match: *", date] {
        for method in ["PUT", "POST", "DELETE"] {
            let refused = ends(node, &format!("{method} /v1/kv/a"), &[condition], "newer", 501);
            assert!(refused.text().contains("nothing was done"), "{}", refused.text());
        }
    }
    assert_eq!(ends(node, "GET /v1/kv/a", &[], "", 200).text(), "new");
}

#[test]
fn any_bytes_are_a_key() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let keys: [(&str, &[u8]); 8] = [
        ("a/b", b"a/b"),
        ("/", b"/"),
        ("a//b/", b"a//b/"),
        (".", b"."),
        ("../status", b"../status"),
        ("%FF%00%fe", b"\xff\0\xfe"),
        ("a+b%2Bc%3F%25", b"a+b+c?%"),
        ("%C3%A4", "\u{e4}".as_bytes()),
    ];
    for (path, _) in keys {
        ends(&nodes[0], &format!("PUT /v1/kv/{path}"), &[], path, 204);
    }
    let client = rig.client(&addresses(&nodes));
    for (path, key) in keys {
        assert_eq!(ends(&nodes[0], &format!("GET /v1/kv/{path}"), &[], "", 200).text(), path);
        let found = rig.wait(client.get(key)).unwrap();
        assert_eq!(found.unwrap().value, path, "{key:?}");
    }
    let listed = told(&ends(&nodes[0], "GET /v1/kv", &[], "", 200));
    assert_eq!(listed["items"].as_array().unwrap().len(), keys.len());
    // The same bytes in another spelling.
    assert_eq!(ends(&nodes[0], "GET /v1/kv/%61%2f%62", &[], "", 200).text(), "a/b");
}

#[test]
fn one_owner_is_enough_for_who_says_so() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(2);
    ends(&nodes[0], "PUT /v1/kv/a?consistency=all", &[], "apple", 204);
    let mut dead = nodes.pop().unwrap();
    dead.kill();
    rig.sees_down(&nodes[0].address(), &dead.address());
    for request in ["GET /v1/kv/a", "PUT /v1/kv/a", "DELETE /v1/kv/a", "GET /v1/kv"] {
        let refused = ends(&nodes[0], request, &[], "", 503);
        assert_eq!(refused.header("retry-after"), Some("1"), "{request}");
        assert!(refused.text().contains("nothing was done"), "{}", refused.text());
    }
    for (request, status) in [
        ("GET /v1/kv/a?fallback=one", 200),
        ("GET /v1/kv/a?consistency=one", 200),
        ("GET /v1/kv/a?local=true", 200),
        ("GET /v1/kv?local=true", 200),
        ("GET /v1/kv?fallback=one", 200),
        ("PUT /v1/kv/a?fallback=one", 204),
        ("DELETE /v1/kv/a?fallback=one", 204),
    ] {
        let answer = ends(&nodes[0], request, &[], "", status);
        assert_eq!(answer.header("thrifty-consistency"), Some("one"), "{request}");
    }
    let batch = r#"{"items":[{"put":{"key":"b","value":"1"}},{"get":{"key":"b"}}]}"#;
    let results = told(&ends(&nodes[0], "POST /v1/batch", &[], batch, 200));
    assert_eq!(
        (&results["results"][0]["status"], &results["results"][1]["status"]),
        (&json!(503), &json!(503))
    );
    let results = told(&ends(&nodes[0], "POST /v1/batch?fallback=one", &[], batch, 200));
    assert_eq!(results["results"][0]["consistency"], "one");
    assert_eq!(results["results"][1]["value"], "1");
}

#[test]
fn a_node_tells_what_it_holds_itself() {
    let rig = Rig::new();
    let nodes = rig.ring_of(4);
    ends(&nodes[0], "PUT /v1/kv/a", &[], "apple", 204);
    until("all owners hold it", || {
        let held = nodes.iter().filter(|node| {
            let key = asked(node, "GET /v1/kv/a?local=true", &[], "");
            let list = told(&ends(node, "GET /v1/kv?local=true", &[], "", 200));
            let listed = list["items"][0]["key"] == "a";
            assert!(key.status == 200 || key.status == 404, "{}", key.text());
            key.status == 200 && listed
        });
        (held.count() == 3).then_some(())
    });
    assert_eq!(ends(&nodes[0], "GET /v1/kv/a?local=false", &[], "", 200).text(), "apple");
}

/// Every key that a list has, page by page, and how many pages there are.
fn all(node: &Node<'_>, query: &str) -> (Vec<Value>, usize) {
    let (mut items, mut pages, mut token) = (Vec::new(), 0, String::new());
    loop {
        let page = told(&ends(node, &format!("GET /v1/kv?{query}{token}"), &[], "", 200));
        items.extend(page["items"].as_array().unwrap().iter().cloned());
        pages += 1;
        match page.get("next") {
            Some(next) => token = format!("&page_token={}", next.as_str().unwrap()),
            None => return (items, pages),
        }
    }
}

#[test]
fn a_list_has_every_key_once_page_by_page() {
    let rig = Rig::new();
    let nodes = rig.ring_of(3);
    let put =
        |n: usize| json!({ "put": { "key": format!("{}/{n:03}", ["even", "odd"][n % 2]), "value": "v" } });
    let batch = json!({ "items": (0..300).map(put).collect::<Vec<_>>() }).to_string();
    ends(&nodes[0], "POST /v1/batch", &[], batch, 200);
    ends(&nodes[0], "PUT /v1/kv/%FF?ttl=1h", &["content-type: t"], b"\xfe", 204);
    let (items, pages) = all(&nodes[1], "limit=7");
    let keys: BTreeSet<&str> = items.iter().filter_map(|item| item["key"].as_str()).collect();
    assert_eq!((keys.len(), items.len()), (300, 301));
    assert!(pages >= 43, "{pages}");
    let odd = items.iter().find(|item| item.get("key").is_none()).unwrap();
    assert_eq!(odd["key_base64"], "/w==");
    assert!(odd["expires_at_ms"].as_u64().is_some() && odd.get("value_base64").is_none());

    let (items, _) = all(&nodes[2], "prefix=odd%2F&values=true");
    assert_eq!(items.len(), 150);
    assert!(
        items.iter().all(|item| item["key"].as_str().unwrap().starts_with("odd/") && item["value"] == "v")
    );
    let (items, _) = all(&nodes[2], "prefix=%FF&values=true");
    assert_eq!(
        (items[0]["value_base64"].as_str(), items[0]["content_type"].as_str()),
        (Some("/g=="), Some("t"))
    );
    assert_eq!(all(&nodes[0], "prefix=odd%2F9").0, [] as [Value; 0]);

    // A page with much in it ends before it has as many keys as it may have.
    let large = vec![b'x'; MAX_VALUE_BYTES];
    for n in 0..5 {
        ends(&nodes[0], &format!("PUT /v1/kv/large/{n}"), &[], &large, 204);
    }
    let (items, pages) = all(&nodes[1], "prefix=large/&values=true&limit=10000");
    assert_eq!(items.len(), 5);
    assert!(pages >= 3, "{pages}");
    assert!(items.iter().all(|item| item["value"].as_str().unwrap().len() == MAX_VALUE_BYTES));
    assert_eq!(all(&nodes[1], "prefix=large/&limit=10000").1, 1);
    for token in ["", "AQA", "%00", "AQD__w", "AQAAYQ%3D%3D", "AQAAYWFhYWFh", &"A".repeat(6000)] {
        ends(&nodes[0], &format!("GET /v1/kv?page_token={token}"), &[], "", 400);
    }
}

#[test]
fn each_item_of_a_batch_ends_on_its_own() {
    let rig = Rig::new();
    let nodes = rig.ring_of(3);
    let batch = json!({ "items": [
        { "put": { "key": "a", "value": "1", "ttl": "1h", "content_type": "text/plain" } },
        { "get": { "key": "a" } },
        { "put": { "key": "a", "value_base64": "/w==" } },
        { "get": { "key_base64": "YQ==" } },
        { "delete": { "key": "a" } },
        { "get": { "key": "a" } },
        { "put": { "key": "", "value": "1" } },
        { "put": { "key": "large", "value": "x".repeat(MAX_VALUE_BYTES + 1) } },
        { "put": { "key": "b", "value": "2", "content_type": "x".repeat(256) } },
        { "put": { "key_base64": "/w==", "value": "" } },
    ] });
    let answer = ends(&nodes[0], "POST /v1/batch?consistency=all", &[], batch.to_string(), 200);
    let results = told(&answer)["results"].as_array().unwrap().clone();
    let statuses: Vec<u64> = results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [204, 200, 204, 200, 204, 404, 400, 400, 400, 204]);
    assert_eq!((&results[1]["value"], &results[1]["content_type"]), (&json!("1"), &json!("text/plain")));
    assert_eq!(results[1]["version"], results[0]["version"]);
    assert_eq!(results[1]["consistency"], "all");
    assert!(results[1]["expires_at_ms"].is_u64() && results[3].get("expires_at_ms").is_none());
    assert_eq!((&results[3]["value_base64"], results[3].get("value")), (&json!("/w=="), None));
    assert_eq!(results[5]["error"], "no such key");
    assert!(results[6]["error"].as_str().unwrap().contains("1 to 4096"));
    assert_eq!(all(&nodes[1], "").0.len(), 1, "the last");
    assert_eq!(
        told(&ends(&nodes[0], "POST /v1/batch", &[], r#"{"items":[]}"#, 200)),
        json!({ "results": [] })
    );

    // Values that together are more than an answer holds.
    for n in 0..5 {
        ends(&nodes[0], &format!("PUT /v1/kv/large/{n}"), &[], vec![b'x'; MAX_VALUE_BYTES], 204);
    }
    let gets = json!({ "items": (0..5).map(|n| json!({ "get": { "key": format!("large/{n}") } })).collect::<Vec<_>>() });
    let answer = told(&ends(&nodes[0], "POST /v1/batch", &[], gets.to_string(), 200));
    let mut statuses: Vec<u64> = answer["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["status"].as_u64().unwrap())
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 413, 413]);
}

#[test]
fn the_status_and_the_table_are_those_of_storectl() {
    let rig = Rig::new();
    let nodes = rig.ring_of(2);
    let peer = nodes[0].address();
    let printed = |command| rig.tool("storectl", &["--peer", &peer, command, "--json"]).json();
    assert_eq!(told(&ends(&nodes[0], "GET /v1/ring", &[], "", 200)), printed("ring"));
    let steady = |mut status: Value| {
        for node in status["nodes"].as_array_mut().unwrap() {
            let node = node.as_object_mut().unwrap();
            assert!(node.remove("last_heard_ms").is_some() && node.remove("skew_ms").is_some());
        }
        status
    };
    let status = steady(told(&ends(&nodes[0], "GET /v1/status", &[], "", 200)));
    assert_eq!(status, steady(printed("status")));
    assert_eq!((&status["nodes"][1]["state"], &status["nodes"][1]["keys"]), (&json!("up"), &json!(0)));
    assert_eq!(ends(&nodes[0], "HEAD /v1/status", &[], "", 200).text(), "");
}

#[test]
fn a_node_in_no_ring_says_so() {
    let rig = Rig::new();
    let silent = std::net::TcpListener::bind(rig.any_port()).unwrap();
    let waiting = rig.join("waiting", &silent.local_addr().unwrap().to_string());
    for request in
        ["GET /v1/kv/a", "PUT /v1/kv/a", "DELETE /v1/kv/a", "GET /v1/kv", "GET /v1/status", "GET /v1/ring"]
    {
        let refused = ends(&waiting, request, &[], "", 503);
        assert_eq!(refused.header("retry-after"), Some("1"), "{request}");
        assert_eq!(refused.text(), "this node is not yet part of a ring\n", "{request}");
    }
    ends(&waiting, "GET /readyz", &[], "", 503);
    ends(&waiting, "GET /livez", &[], "", 200);
}
