//! Gates come and go, and so do rings.

use super::{get, is, post, ready, storegate};
use crate::rig::http::{Answer, answer, ask, connect};
use crate::rig::{Node, PATIENCE, Ran, Rig, Signal, addresses, until};
use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;
use thrifty::wire::location::Phase;

/// A client that takes one frontend after the other, and the next one only where a connection is refused.
struct RoundRobin<'a> {
    frontends: &'a [String],
    turn: usize,
}

impl RoundRobin<'_> {
    fn ask(&mut self, request: &str, body: &[u8]) -> Result<Answer, String> {
        for _ in self.frontends {
            self.turn += 1;
            let frontend = &self.frontends[self.turn % self.frontends.len()];
            match ask(frontend, request, &[], body) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(format!("{frontend}: {request}: {error}")),
                Ok(answer) => return Ok(answer),
            }
        }
        Err(format!("{request}: all frontends refuse"))
    }

    /// Writes and reads a key of one's own until told to stop.
    fn work(&mut self, key: &str, stop: &AtomicBool, done: &AtomicUsize) -> Result<(), String> {
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let value = number.to_string();
            let written = self.ask(&format!("POST /{key}"), value.as_bytes())?;
            let read = self.ask(&format!("GET /{key}"), b"")?;
            if (written.status, read.status, read.text()) != (200, 200, &value) {
                let (first, second) = (written.text(), read.text());
                return Err(format!(
                    "{value}: {} {first:?}, then {} {second:?}",
                    written.status, read.status
                ));
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// How often each frontend is stopped and started again.
const ROUNDS: usize = 4;

#[test]
fn velours_frontends_come_and_go_and_no_request_fails() {
    let rig = Rig::new();
    let first = rig.node("1", &rig.any_port(), &["--bootstrap", "--memory"]);
    let peer = first.address();
    let join = |name| rig.node(name, &rig.any_port(), &["--peer", &peer, "--memory"]);
    let mut nodes = vec![first, join("2"), join("3")];
    rig.settled(&nodes);
    let peers = addresses(&nodes);
    let frontends: Vec<String> = (8000..8003).map(|port| rig.at(port)).collect();
    let start = |at: &String| {
        // Each value is read at once, and through another gate, however often its key is read.
        let mut arguments = vec!["--dialect", "velour", "--listen", at, "--cache-ttl", "0"];
        peers.iter().for_each(|peer| arguments.extend(["--peer", peer]));
        let mut gate = rig.spawn("storegate", &arguments);
        gate.says("gate listens on");
        gate
    };
    let mut gates: Vec<Node<'_>> = frontends.iter().map(start).collect();
    let (stop, done, failed) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let goes_on = || {
        let before = done.load(Ordering::Relaxed);
        until("requests go on", || {
            let failed = failed.lock().unwrap();
            assert!(failed.is_empty(), "{failed:?}");
            (done.load(Ordering::Relaxed) >= before + 12).then_some(())
        });
    };
    std::thread::scope(|scope| {
        for turn in 0..4 {
            let mut client = RoundRobin { frontends: &frontends, turn };
            let (stop, done, failed) = (&stop, &done, &failed);
            scope.spawn(move || {
                if let Err(why) = client.work(&format!("key/{turn}"), stop, done) {
                    failed.lock().unwrap().push(why);
                }
            });
        }
        // However this ends, the others do.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            goes_on();
            for round in 0..ROUNDS {
                for (gate, at) in gates.iter_mut().zip(&frontends) {
                    gate.signal(if round % 2 == 0 { Signal::TERM } else { Signal::INT });
                    gate.ends_well();
                    goes_on();
                    *gate = start(at);
                    goes_on();
                }
            }
            nodes.push(join("4"));
            rig.settled(&nodes);
            goes_on();
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    });
    let failed = failed.lock().unwrap();
    assert!(failed.is_empty(), "{failed:?}");
    println!("{} writes and reads", done.load(Ordering::Relaxed));
}

#[test]
fn a_new_node_serves_nothing_before_it_has_its_data() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let client = rig.client(&addresses(&nodes));
    for number in 0..300 {
        rig.wait(client.put(format!("key{number}"), format!("value{number}"))).unwrap();
    }
    let (gate, peer) = (rig.at(8000), nodes[0].address());
    nodes.push(rig.node("4", &rig.any_port(), &["--peer", &peer, "--gate", &format!("velour={gate}")]));
    // From before it is in the ring until after it owns its part of it.
    let (mut refused, end) = (0, Instant::now() + PATIENCE);
    loop {
        let status = rig.status(&peer).unwrap();
        let is_in_it = status.phase() == Phase::Stable && status.nodes.len() == 4;
        let mut found = 0;
        for number in 0..300 {
            match ask(&gate, &format!("GET /key{number}"), &[], b"") {
                Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}"),
                Ok(answer) if answer.status == 503 => {
                    assert_eq!(answer.header("retry-after"), Some("1"));
                    refused += 1;
                }
                Ok(answer) => {
                    is(&answer, 200, &format!("value{number}"));
                    found += 1;
                }
            }
        }
        if is_in_it && found == 300 {
            break;
        }
        assert!(Instant::now() < end, "{found} found, {refused} refused");
    }
    println!("{refused} times it had no ring yet");
    rig.settled(&nodes);
}

#[test]
fn a_gate_waits_for_its_ring_and_for_its_return() {
    let rig = Rig::new();
    let (node, gate) = (rig.at(7001), rig.at(8000));
    let mut frontend = storegate(&rig, "simplestore", &gate, std::slice::from_ref(&node));
    frontend.says("gate listens on");
    frontend.says("gate: waiting for a ring: nobody listens at");
    let waits = |answer: Answer| {
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.text());
        assert!(answer.text().starts_with(r#"{ "error": "#), "{}", answer.text());
    };
    waits(get(&gate, "/get/a"));
    waits(get(&gate, "/set?a=b"));
    let mut first = rig.node("1", &node, &["--bootstrap"]);
    frontend.says("gate: found ring");
    is(&get(&gate, "/get/a"), 404, r#"{ "error": "no value under this key" }"#);
    is(&get(&gate, "/set?a=b"), 200, r#"{ "stored": ["a"] }"#);
    first.kill();
    let set = get(&gate, "/set?a=c");
    assert!([503, 504].contains(&set.status), "{}", set.text());
    until("it is said that the ring is gone", || {
        let said = frontend.stderr();
        said.rsplit_once("found ring").is_some_and(|(_, after)| after.contains("waiting")).then_some(())
    });
    waits(get(&gate, "/get/a"));
    let _again = first.start_again();
    ready(&gate);
    is(&get(&gate, "/get/a"), 200, r#"{ "value": "b" }"#);
    frontend.interrupt();
    frontend.ends_well();
    frontend.says("stopped");
}

#[test]
fn what_is_under_way_is_answered_before_a_gate_ends_but_not_waited_for_without_end() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let (mut frontend, gate) = super::before(&rig, "velour", &nodes);
    let begin = |key: &str| {
        let mut stream = connect(&gate).unwrap();
        let head = format!("POST /{key} HTTP/1.1\r\nhost: {gate}\r\ncontent-length: 5\r\n\r\nap");
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let (mut slow, _stuck) = (begin("slow"), begin("stuck"));
    let idle = connect(&gate).unwrap();
    is(&post(&gate, "/a", b"b"), 200, "");
    frontend.signal(Signal::TERM);
    until("nobody is let in any more", || {
        let error = connect(&gate).err()?;
        (error.kind() == ErrorKind::ConnectionRefused).then_some(())
    });
    frontend.still_runs();
    slow.write_all(b"ple").unwrap();
    is(&answer(slow).unwrap(), 200, "");
    frontend.ends_well();
    drop(idle);
    let client = rig.client(&addresses(&nodes));
    assert_eq!(rig.wait(client.get("slow")).unwrap().unwrap().value, "apple");
    assert!(rig.wait(client.get("stuck")).unwrap().is_none());
}

/// It ended with this code, and said all of these words.
#[track_caller]
fn ended(ran: &Ran, code: i32, words: &[&str]) {
    assert_eq!(ran.code, Some(code), "{ran:?}");
    assert!(words.iter().all(|word| ran.stderr.contains(word)), "{words:?}: {ran:?}");
}

#[test]
fn a_gate_that_cannot_be_had_says_why() {
    let rig = Rig::new();
    let held = TcpListener::bind(rig.any_port()).unwrap();
    let taken = held.local_addr().unwrap().to_string();
    let gate = |arguments: &[&str]| rig.tool("storegate", arguments);
    ended(&gate(&["--dialect", "velour", "--listen", &taken]), 3, &[&taken, "in use", "--listen"]);
    ended(&gate(&["--dialect", "redis", "--listen", &rig.at(8000)]), 2, &["redis", "velour"]);
    ended(&gate(&["--dialect", "velour", "--listen", "0.0.0.0:8000"]), 2, &["0.0.0.0:8000", "--insecure"]);
    ended(&gate(&["--dialect", "velour", "--listen", "nowhere"]), 2, &["nowhere"]);
    ended(&gate(&["--listen", &rig.at(8000)]), 2, &["--dialect"]);
    ended(&gate(&["--dialect", "velour"]), 2, &["--listen"]);

    let server = |program: &str, gate: &str| rig.tool(program, &["--listen", &rig.at(7000), "--gate", gate]);
    ended(&server("storeserver", &format!("velour={taken}")), 3, &[&taken, "in use", "--gate"]);
    ended(&server("storeserver", "velour=0.0.0.0:8000"), 2, &["0.0.0.0:8000", "--insecure"]);
    ended(&server("storeserver", "velour"), 2, &["DIALECT=HOST:PORT"]);
    ended(&server("storeserver", "redis=127.0.0.1:1"), 2, &["redis", "velour"]);
    ended(&server("storeserver", "velour=nowhere"), 2, &["nowhere", "DIALECT=HOST:PORT"]);
    ended(&server("location", "velour=127.0.0.1:1"), 2, &["--gate", "storeserver"]);
    assert_eq!(std::fs::read_dir(rig.folder()).unwrap().count(), 0, "nothing was made");

    let nodes = rig.ring_of(1);
    let before = |peer: &str, ring| {
        gate(&["--dialect", "velour", "--listen", &rig.at(8000), "--peer", peer, "--ring", ring])
    };
    before(&nodes[0].address(), "other").fails(4, &[rig.ring(), "other", "--ring"]);
    let locates = ["--listen", &rig.any_port(), "--memory", "--bootstrap", "--ring", "l"];
    let location = rig.spawn("location", &locates);
    rig.settled(std::slice::from_ref(&location));
    before(&location.address(), "l").fails(4, &["stores none"]);
}
