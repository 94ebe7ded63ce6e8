//! Gates: frontends that speak as older stores did, each used as its manual said.

mod bad_requests;
mod frontends;

use crate::rig::http::{Answer, ask};
use crate::rig::{Node, Rig, addresses, until};

/// Types `curl ADDRESS PATH`.
#[track_caller]
fn get(gate: &str, path: &str) -> Answer {
    ask(gate, &format!("GET {path}"), &[], b"").unwrap()
}

/// Types `curl -d BODY ADDRESS PATH`.
#[track_caller]
fn post(gate: &str, path: &str, body: &[u8]) -> Answer {
    ask(gate, &format!("POST {path}"), &["content-type: application/x-www-form-urlencoded"], body).unwrap()
}

/// It was answered with this status and just this.
#[track_caller]
fn is(answer: &Answer, status: u16, text: &str) {
    assert_eq!((answer.status, answer.text()), (status, text));
}

/// Waits until the ring is there for a gate.
#[track_caller]
fn ready(gate: &str) {
    let path = "/get/nothing-is-here";
    until(&format!("the gate at {gate} has found its ring"), || {
        let answer = ask(gate, &format!("GET {path}"), &[], b"").ok()?;
        (answer.status != 503).then_some(())
    });
}

#[test]
fn simplestores_nodes_in_a_circle() {
    let rig = Rig::new();
    let at = |port| rig.at(port);
    let node = |port: u16, peers: &[u16]| {
        let gate = format!("simplestore={}", at(port + 1000));
        let peers: Vec<String> = peers.iter().map(|peer| at(*peer)).collect();
        let mut arguments = vec!["--gate", &gate];
        peers.iter().for_each(|peer| arguments.extend(["--peer", peer]));
        rig.node(&port.to_string(), &at(port), &arguments)
    };
    // A knows B, B knows C and D, and these know A. Nobody is told to begin.
    let nodes = [node(7001, &[7002]), node(7002, &[7003, 7004]), node(7003, &[7001]), node(7004, &[7001])];
    rig.settled(&nodes);
    let gates: Vec<String> = (8001..=8004).map(at).collect();
    gates.iter().for_each(|gate| ready(gate));
    is(&get(&gates[0], "/set?test=lol&msg=this_is_a_message"), 200, r#"{ "stored": ["test","msg"] }"#);
    for gate in &gates {
        let answer = get(gate, "/get/test");
        is(&answer, 200, r#"{ "value": "lol" }"#);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        is(&get(gate, "/get/msg"), 200, r#"{ "value": "this_is_a_message" }"#);
        is(&get(gate, "/get/nope"), 404, r#"{ "error": "no value under this key" }"#);
    }
    for (number, gate) in gates.iter().enumerate() {
        is(&get(gate, &format!("/set?from={number}")), 200, r#"{ "stored": ["from"] }"#);
        for other in &gates {
            is(&get(other, "/get/from"), 200, &format!(r#"{{ "value": "{number}" }}"#));
        }
    }
    // What is written is read as it was meant, and the last of two counts.
    get(&gates[1], "/set?a+b=%22c%22%0Ad+%C3%BC&twice=1&twice=2");
    is(&get(&gates[2], "/get/a%20b"), 200, r#"{ "value": "\"c\"\nd ü" }"#);
    is(&get(&gates[3], "/get/twice"), 200, r#"{ "value": "2" }"#);
    // The tools see the same.
    assert_eq!(rig.tool("storeget", &["--peer", &nodes[2].address(), "twice"]).silent(), "2");
}

#[test]
fn a_lone_simplestore_whose_neighbours_come_later() {
    let rig = Rig::new();
    let (gate, absent) = (format!("simplestore={}", rig.at(8001)), rig.at(7002));
    let mut first = rig.node("1", &rig.at(7001), &["--bootstrap", "--peer", &absent, "--gate", &gate]);
    ready(&rig.at(8001));
    for number in 0..50 {
        let set = get(&rig.at(8001), &format!("/set?key{number}=value{number}"));
        assert_eq!(set.status, 200, "{}", set.text());
    }
    let later = |name: &str, port: u16| {
        let gate = format!("simplestore={}", rig.at(port + 1000));
        rig.node(name, &rig.at(port), &["--peer", &first.address(), "--gate", &gate])
    };
    let others = [later("2", 7002), later("3", 7003)];
    rig.settled_at(&[first.address(), others[0].address(), others[1].address()]);
    let has_all = |gate: &str| {
        for number in 0..50 {
            let value = format!(r#"{{ "value": "value{number}" }}"#);
            is(&get(gate, &format!("/get/key{number}")), 200, &value);
        }
    };
    [8002, 8003].iter().for_each(|port| ready(&rig.at(*port)));
    [8001, 8002, 8003].iter().for_each(|port| has_all(&rig.at(*port)));
    // On its way out its gate answers for as long as it is there, and rightly.
    first.interrupt();
    let mut answered = 0;
    while let Ok(answer) = ask(&rig.at(8001), &format!("GET /get/key{}", answered % 50), &[], b"") {
        is(&answer, 200, &format!(r#"{{ "value": "value{}" }}"#, answered % 50));
        answered += 1;
    }
    assert!(answered > 0);
    first.ends_well();
    rig.settled(&others);
    [8002, 8003].iter().for_each(|port| has_all(&rig.at(*port)));
}

#[test]
fn velour_as_its_manual_has_it() {
    let rig = Rig::new();
    let nodes = rig.ring_of(3);
    let (_runs, gate) = before(&rig, "velour", &nodes);
    is(&post(&gate, "/fruit", b"apple"), 200, "");
    is(&get(&gate, "/fruit"), 200, "apple");
    is(&get(&gate, "/nope"), 204, "");
    is(&post(&gate, "/a/deep%20key", &[0, 255, b'\n']), 200, "");
    assert_eq!(get(&gate, "/a/deep%20key").body, [0, 255, b'\n']);
    is(&ask(&gate, "DELETE /fruit", &[], b"").unwrap(), 204, "");
    is(&get(&gate, "/fruit"), 204, "");
    is(&ask(&gate, "DELETE /fruit", &[], b"").unwrap(), 204, "");
    let head = ask(&gate, "HEAD /a/deep%20key", &[], b"").unwrap();
    assert_eq!((head.status, head.header("content-length"), &head.body[..]), (200, Some("3"), &b""[..]));
}

#[test]
fn diststore_as_its_manual_has_it() {
    let rig = Rig::new();
    let nodes = rig.ring_of(3);
    let (_runs, gate) = before(&rig, "diststore", &nodes);
    is(&post(&gate, "/", b"key=fruit&value=an+apple"), 200, "");
    is(&get(&gate, "/get/fruit"), 200, "an apple");
    is(&post(&gate, "/tree", b"an oak"), 200, "");
    is(&get(&gate, "/get/tree"), 200, "an oak");
    is(&post(&gate, "/local/near", b"here"), 200, "");
    until("what one owner has a majority has soon", || {
        (get(&gate, "/get/near").text() == "here").then_some(())
    });
    is(&get(&gate, "/get/nope"), 404, "no value under this key\n");
    is(&ask(&gate, "DELETE /tree", &[], b"").unwrap(), 204, "");
    assert_eq!(get(&gate, "/get/tree").status, 404);
    let part = "content-type: multipart/form-data; boundary=x";
    let refused = ask(&gate, "POST /", &[part], b"--x").unwrap();
    is(&refused, 415, "send a form with key and value, url-encoded, or the value itself to /KEY\n");
    // A form may be three times as large as the value that is in it.
    let large = [&b"key=large&value="[..], &b"%41".repeat(1 << 20)].concat();
    is(&post(&gate, "/", &large), 200, "");
    assert!(get(&gate, "/get/large").body == vec![b'A'; 1 << 20]);

    is(&post(&gate, "/two%0Alines", b""), 200, "");
    until("the node beside which it stands holds all", || {
        let list = get(&gate, "/list");
        let mut lines: Vec<&str> = list.text().lines().collect();
        lines.sort_unstable();
        (lines == ["fruit", "large", "near", "two%0Alines"]).then_some(())
    });
    is(&get(&gate, "/getlocal/fruit"), 200, "an apple");
    is(&get(&gate, "/getlocal/tree"), 404, "this node has no value under this key\n");
    assert_eq!(post(&gate, "/getlocal/fruit", b"").status, 405);
    is(&post(&gate, "/list", b"a key like others"), 200, "");
    is(&get(&gate, "/get/list"), 200, "a key like others");
}

#[test]
fn what_many_read_a_gate_keeps_for_as_long_as_it_says() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let at = rig.at(8000);
    let arguments =
        ["--dialect", "velour", "--listen", &at, "--cache-ttl", "1h", "--peer", &nodes[0].address()];
    let mut gate = rig.spawn("storegate", &arguments);
    gate.says("gate listens on");
    let client = rig.client(&addresses(&nodes));
    rig.wait(client.put("k", "old")).unwrap();
    for _ in 0..8 {
        is(&get(&at, "/k"), 200, "old");
    }
    rig.wait(client.put("k", "elsewhere")).unwrap();
    is(&get(&at, "/k"), 200, "old");
    is(&post(&at, "/k", b"here"), 200, "");
    is(&get(&at, "/k"), 200, "here");
    rig.wait(client.put("k", "elsewhere")).unwrap();
    is(&get(&at, "/k"), 200, "elsewhere");
    gate.interrupt();
    gate.says("of 11 reads 1 were answered from the cache");
    gate.ends_well();
}

/// Starts a gate before these nodes that has found their ring.
fn before<'r>(rig: &'r Rig, dialect: &str, nodes: &[Node<'_>]) -> (Node<'r>, String) {
    let at = rig.at(8000);
    let mut gate = storegate(rig, dialect, &at, &addresses(nodes));
    gate.says("gate listens on");
    (gate, at)
}

/// Starts a gate.
fn storegate<'r>(rig: &'r Rig, dialect: &str, at: &str, peers: &[String]) -> Node<'r> {
    let mut arguments = vec!["--dialect", dialect, "--listen", at, "--ring", rig.ring()];
    peers.iter().for_each(|peer| arguments.extend(["--peer", peer]));
    rig.spawn("storegate", &arguments)
}
