//! What `storectl` does with keys and values, typed as a person types it.

use crate::rig::{Node, Ran, Rig, addresses, until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};

/// `storectl` at one node.
struct Ctl<'r> {
    rig: &'r Rig,
    peer: String,
}

impl<'r> Ctl<'r> {
    fn new(rig: &'r Rig, node: &Node<'_>) -> Self {
        Ctl { rig, peer: node.address() }
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.fed(arguments, b"")
    }

    fn fed(&self, arguments: &[&str], stdin: &[u8]) -> Ran {
        self.rig.tool_fed("storectl", &[&["--peer", &self.peer], arguments].concat(), stdin)
    }

    fn lines(&self, arguments: &[&str]) -> BTreeSet<String> {
        self.run(arguments).silent().lines().map(str::to_owned).collect()
    }
}

fn set<const N: usize>(lines: [&str; N]) -> BTreeSet<String> {
    lines.into_iter().map(str::to_owned).collect()
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn keys_are_put_listed_read_and_deleted() {
    let rig = Rig::new();
    let nodes = rig.ring_of(2);
    let ctl = Ctl::new(&rig, &nodes[0]);
    assert_eq!(ctl.lines(&["ls"]), set([]));
    ctl.run(&["put", "fruit/a", "apple"]).silent();
    ctl.run(&["set", "fruit/b", "banana", "--ttl", "2h"]).silent();
    ctl.fed(&["put", "nut", "-"], b"\xff\0").silent();
    ctl.run(&["put", "--escaped", r"bin\xff\n\\", "x"]).silent();
    assert_eq!(ctl.run(&["get", "fruit/a"]).silent(), "apple");
    assert_eq!(ctl.run(&["get", "nut"]).stdout, b"\xff\0");
    assert_eq!(ctl.run(&["get", "nut", "--json"]).json()["value_base64"], "/wA=");
    assert_eq!(ctl.run(&["get", "--escaped", r"bin\xff\n\\"]).silent(), "x");
    ctl.run(&["get", "nope"]).fails(1, &["no value under \"nope\""]);
    ctl.run(&["get", "--escaped", r"a\q"]).fails(2, &["backslash"]);

    assert_eq!(ctl.lines(&["ls"]), set(["fruit/a", "fruit/b", "nut", r"bin\xff\n\\"]));
    assert_eq!(ctl.lines(&["ls", "fruit/"]), set(["fruit/a", "fruit/b"]));
    assert_eq!(ctl.lines(&["ls", "--escaped", r"bin\xff"]), set([r"bin\xff\n\\"]));
    assert_eq!(ctl.run(&["ls", "--limit", "3"]).silent().lines().count(), 3);
    // In a ring of two, each holds all, the second owner soon.
    until("both hold all", || (ctl.lines(&["ls", "--local"]).len() == 4).then_some(()));
    assert_eq!(ctl.run(&["get", "--local", "fruit/a"]).silent(), "apple");
    rig.tool("storectl", &["--peer", &ctl.peer, "--peer", &nodes[1].address(), "ls", "--local"])
        .fails(2, &["which node", "--peer"]);

    let long = ctl.run(&["ls", "-l", "fruit/b"]).silent();
    let [written, expires, bytes, key] = long.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("{long}")
    };
    assert!(written.ends_with('Z') && expires.ends_with('Z') && written < expires, "{long}");
    assert_eq!((bytes, key), ("6", "fruit/b"));
    let found = json_lines(&ctl.run(&["ls", "--json"]).silent());
    let of = |name: &str, key: &str| found.iter().find(|found| found[name] == key).unwrap().clone();
    assert_eq!(of("key", "fruit/b")["written_at"], written);
    assert!(of("key", "fruit/b")["expires_at_ms"].is_u64() && of("key", "nut")["expires_at_ms"].is_null());
    assert!(of("key_base64", "Ymlu/wpc")["version"].is_string());

    ctl.run(&["del", "fruit/a"]).silent();
    ctl.run(&["get", "fruit/a"]).fails(1, &["fruit/a"]);
    assert_eq!(ctl.lines(&["ls", "fruit/"]), set(["fruit/b"]));
    let all = ctl.run(&["status", "--keys"]).silent();
    let line = all.lines().find(|line| line.ends_with("  fruit/b")).unwrap();
    assert_eq!(line, format!("{written}  fruit/b"));
    let all = json_lines(&ctl.run(&["status", "--keys", "--json"]).silent());
    assert_eq!((all.len(), &all[0]["ring"]), (4, &Value::from(rig.ring())));
    assert!(all[1..].iter().any(|key| key["key"] == "nut" && key["written_at"].is_string()));
}

/// What an export of these many keys says: text and bytes, some with an expiry that is far away.
fn export_lines(count: usize) -> String {
    let far = 4_000_000_000_000_u64;
    (0..count)
        .map(|n| match n % 4 {
            0 => format!("{{\"key\":\"k/{n}\",\"value\":\"Ä \\n {n}\",\"content_type\":\"text/plain\"}}\n"),
            1 => format!("{{\"key\":\"k/{n}\",\"value_base64\":\"/wA=\"}}\n"),
            2 => format!("{{\"key\":\"k/{n}\",\"value\":\"x\",\"expires_at_ms\":{far}}}\n"),
            _ => format!("{{\"key\":\"\\u0000\\\"k/{n}\",\"value\":\"\"}}\n"),
        })
        .collect()
}

/// The lines without what can't be the same in two rings: when exactly a value expires.
fn essence(lines: &str) -> BTreeSet<String> {
    let lines = json_lines(lines).into_iter().map(|mut line| {
        let near = |at: &Value| (4_000_000_000_000 - at.as_i64().unwrap()).abs() < 60_000;
        if let Some(at) = line.get_mut("expires_at_ms") {
            *at = near(at).into();
        }
        line.to_string()
    });
    lines.collect()
}

/// Two rings of one.
fn two_rings(rig: &Rig) -> [Node<'_>; 2] {
    let other = rig.node("other", &rig.any_port(), &["--bootstrap", "--replicas", "1"]);
    let rings = [rig.first(), other];
    rings.iter().for_each(|node| _ = rig.settled(std::slice::from_ref(node)));
    rings
}

#[test]
fn what_one_ring_exports_another_imports() {
    let rig = Rig::new();
    let rings = two_rings(&rig);
    let [here, there] = rings.each_ref().map(|node| Ctl::new(&rig, node));
    here.run(&["put", "--escaped", r"bin\xff\n", "x"]).silent();
    let lines = export_lines(3_000);
    assert_eq!(here.fed(&["import"], lines.as_bytes()).ok(), "stored 3000 keys\n");
    let said = here.run(&["export", "--output", "all.jsonl"]).ok();
    assert_eq!(said, "exported 3001 keys to all.jsonl\n");
    let all = std::fs::read_to_string(rig.folder().join("all.jsonl")).unwrap();
    assert_eq!(here.run(&["export"]).stdout, all.as_bytes());
    let mut expected = essence(&lines);
    expected.insert(r#"{"key_base64":"Ymlu/wo=","value":"x"}"#.into());
    assert_eq!(essence(&all), expected);
    assert_eq!(there.run(&["import", "all.jsonl", "--json"]).json()["stored"], 3001);
    assert_eq!(essence(&there.run(&["export"]).ok()), expected);
    assert_eq!(there.run(&["export", r"k/17"]).ok().lines().count(), 111 - 111 / 4 - 1);
    for name in ["all.jsonl.part", "all.jsonl.resume", "all.jsonl.imported"] {
        assert!(!rig.folder().join(name).exists(), "{name}");
    }

    here.run(&["export", "-o", "."]).fails(2, &["a folder"]);
    here.run(&["export", "-o", "nowhere/all.jsonl"]).fails(2, &["can't write nowhere/all.jsonl.part"]);

    // Only what is newer, by versions.
    std::fs::write(rig.folder().join("v.jsonl"), here.run(&["export", "--versions"]).stdout).unwrap();
    here.run(&["put", "k/0", "newer"]).silent();
    here.run(&["del", "k/1"]).silent();
    let said = here.run(&["import", "--only-newer", "v.jsonl"]).ok();
    assert_eq!(said, "stored 1 keys, left out 3000 that are as new in the ring\n");
    assert_eq!(here.run(&["get", "k/0"]).silent(), "newer");
    here.run(&["import", "--only-newer", "all.jsonl"])
        .fails(2, &["line 1", "no `version`", "nothing before"]);

    // Who has seen enough goes, and that is no error.
    let mut child = rig.tool_begun("storectl", &["--peer", &here.peer, "export"]);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with('{'));
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
}

#[test]
fn a_broken_line_stops_an_import_and_what_has_expired_is_left_out() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let ctl = Ctl::new(&rig, &nodes[0]);
    let broken = concat!(
        "{\"key\":\"a\",\"value\":\"1\",\"expires_at_ms\":5}\n",
        "{\"key\":\"b\",\"value\":\"1\"}\n",
        "{\"key\":\"b\",\"value\":\"2\"}\n",
        "\n",
        "{\"key\":\"c\",\"value\":\"1\"\n",
        "{\"key\":\"d\",\"value\":\"1\"}"
    );
    ctl.fed(&["import"], broken.as_bytes()).fails(2, &["line 5", "EOF", "lines up to 4 are stored"]);
    assert_eq!(ctl.lines(&["ls"]), set(["b"]));
    assert_eq!(ctl.run(&["get", "b"]).silent(), "2");
    let file = rig.folder().join("broken.jsonl");
    std::fs::write(&file, broken).unwrap();
    ctl.run(&["import", "broken.jsonl"]).fails(2, &["line 5", "--resume"]);
    ctl.run(&["put", "b", "3"]).silent();
    std::fs::write(&file, broken.replace("\"1\"\n{\"key\":\"d", "\"1\"}\n{\"key\":\"d")).unwrap();
    let said = ctl.run(&["import", "broken.jsonl", "--resume"]).ok();
    assert_eq!(said, "stored 4 keys, left out 1 that have expired\n");
    assert_eq!(ctl.run(&["get", "b"]).silent(), "3", "what was stored is not stored again");
    assert_eq!(ctl.lines(&["ls"]), set(["b", "c", "d"]));

    std::fs::write(&file, broken).unwrap();
    ctl.run(&["import", "broken.jsonl"]).fails(2, &["line 5"]);
    std::fs::write(&file, broken.replacen('1', "7", 1)).unwrap();
    ctl.run(&["import", "broken.jsonl", "--resume"]).fails(4, &["has changed", "without --resume"]);
    let gone_on = ctl.run(&["import", "broken.jsonl", "--keep-going"]);
    assert_eq!(
        (gone_on.code, &*gone_on.stdout),
        (Some(4), &b"stored 3 keys, left out 1 that have expired\n"[..])
    );
    assert!(gone_on.stderr.contains("line 5 is left out") && gone_on.stderr.contains("one line was broken"));
    ctl.run(&["import", "nowhere.jsonl"]).fails(2, &["nowhere.jsonl"]);
    ctl.run(&["import", "--resume"]).fails(2, &["stdin"]);
    rig.tool("storectl", &["--peer", "127.0.0.1:1", "import", "broken.jsonl"]).fails(3, &["nobody listens"]);
}

#[test]
fn what_is_killed_half_way_goes_on() {
    const COUNT: usize = 20_000;
    let rig = Rig::new();
    let rings = two_rings(&rig);
    let [here, there] = rings.each_ref().map(|node| Ctl::new(&rig, node));
    let lines = export_lines(COUNT);
    std::fs::write(rig.folder().join("in.jsonl"), &lines).unwrap();
    // Killed when it has noted something, and some more was done since.
    let killed = |arguments: &[&str], note: &str| {
        let mut child = rig.tool_begun("storectl", arguments);
        until("something is noted", || {
            let ended = child.try_wait().unwrap().is_some();
            (ended || rig.folder().join(note).exists()).then_some(())
        });
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), None, "it had ended: {output:?}");
    };
    killed(&["--peer", &here.peer, "import", "in.jsonl"], "in.jsonl.imported");
    let said = here.run(&["import", "in.jsonl", "--resume"]).ok();
    assert_eq!(said, format!("stored {COUNT} keys\n"));
    assert!(essence(&here.run(&["export"]).ok()) == essence(&lines));

    let export = ["--peer", &here.peer, "export", "--output", "out.jsonl"];
    killed(&export, "out.jsonl.resume");
    assert!(!rig.folder().join("out.jsonl").exists(), "a file of that name is whole");
    here.run(&export[2..]).fails(2, &["interrupted", "--resume", "out.jsonl.resume"]);
    here.run(&[&export[2..], &["--resume", "k/"]].concat()).fails(4, &["another PREFIX"]);
    there.run(&[&export[2..], &["--resume"]].concat()).fails(4, &["another ring"]);
    let said = here.run(&[&export[2..], &["--resume"]].concat()).ok();
    assert!(said.starts_with(&format!("exported {COUNT} keys to out.jsonl (")), "{said}");
    let out = std::fs::read_to_string(rig.folder().join("out.jsonl")).unwrap();
    assert_eq!(out.lines().count(), COUNT, "none twice");
    assert!(essence(&out) == essence(&lines));
}

#[test]
fn a_node_that_comes_back_is_waited_for() {
    const COUNT: usize = 20_000;
    let rig = Rig::new();
    let mut nodes = rig.ring_of(1);
    let peer = nodes[0].address();
    let lines = export_lines(COUNT);
    std::fs::write(rig.folder().join("in.jsonl"), &lines).unwrap();
    for (command, note, said) in [
        (&["import", "in.jsonl"][..], "in.jsonl.imported", format!("stored {COUNT} keys\n")),
        (&["export", "-o", "out.jsonl"], "out.jsonl.resume", format!("exported {COUNT} keys to out.jsonl\n")),
    ] {
        let mut child = rig.tool_begun("storectl", &[&["--peer", &peer], command].concat());
        until("something is noted", || {
            let ended = child.try_wait().unwrap().is_some();
            (ended || rig.folder().join(note).exists()).then_some(())
        });
        let mut node = nodes.remove(0);
        node.kill();
        assert!(child.try_wait().unwrap().is_none(), "more keys are needed");
        nodes.push(node.start_again());
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), String::from_utf8(output.stdout.clone()).unwrap()),
            (Some(0), said),
            "{output:?}"
        );
    }
    let out = std::fs::read_to_string(rig.folder().join("out.jsonl")).unwrap();
    assert_eq!(out.lines().count(), COUNT, "none twice");
    assert!(essence(&out) == essence(&lines));
}

#[test]
fn who_watches_sees_a_node_join_and_leave() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(2);
    let peers = addresses(&nodes);
    let mut child =
        rig.tool_begun("storectl", &["--peer", &peers[1], "--peer", &peers[0], "watch", "--json"]);
    let mut plain = rig.tool_begun("storectl", &["--peer", &peers[0], "watch"]);
    let mut seen = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut next = |what: &str| -> Value {
        let mut lines = seen.by_ref().map(|line| serde_json::from_str::<Value>(&line).unwrap());
        lines.find(|line| what == "any" || !line[what].as_array().unwrap().is_empty()).unwrap()
    };
    let first = next("any");
    assert_eq!((&first["ring"], &first["phase"]), (&rig.ring().into(), &"stable".into()));
    assert_eq!(first["members"].as_array().unwrap().len(), 2);
    nodes.push(rig.join("3", &peers[0]));
    let joining = next("joining");
    assert_ne!(joining["phase"], "stable");
    let joined = next("joined");
    assert_eq!((&joined["phase"], &joined["joined"]), (&"stable".into(), &joining["joining"]));
    assert!(joined["joined"][0].as_str().unwrap().starts_with(&nodes[2].id()));
    // The node that is watched goes, and it goes on with another.
    let id = nodes[1].id();
    nodes[1].interrupt();
    nodes[1].ends_well();
    let left = next("left");
    assert!(left["left"][0].as_str().unwrap().starts_with(&id), "{left}");
    drop(seen);

    let mut lines = BufReader::new(plain.stdout.take().unwrap()).lines().map(Result::unwrap);
    let words =
        [format!("{} joins ({})", nodes[2].id(), nodes[2].address()), "joined".into(), format!("{id} left")];
    for word in &words {
        assert!(lines.any(|line| line.contains(word)), "{word}");
    }
    // Nobody reads any more: both end, though there is nothing to say.
    drop(lines);
    for child in [child, plain] {
        let ended = child.wait_with_output().unwrap();
        assert_eq!((ended.status.code(), &*ended.stderr), (Some(0), &b""[..]));
    }
}

#[test]
fn who_looks_on_sees_requests_and_a_handoff() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(1);
    let ctl = Ctl::new(&rig, &nodes[0]);
    ctl.fed(&["import"], export_lines(2_000).as_bytes()).ok();
    let mut child =
        rig.tool_begun("storectl", &["--peer", &ctl.peer, "top", "--json", "--interval", "100ms"]);
    let mut seen = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut next = |what: &dyn Fn(&Value) -> bool| -> Value {
        let mut lines = seen.by_ref().map(|line| serde_json::from_str::<Value>(&line).unwrap());
        lines.find(|line| line["nodes"].as_array().unwrap().iter().any(what)).unwrap()
    };
    let quiet = next(&|node| node["requests_per_s"] == 0.0 && node["keys"] == 2_000);
    assert_eq!(
        (&quiet["nodes"][0]["p99_ms"], &quiet["nodes"][0]["failed_per_s"]),
        (&Value::Null, &0.0.into())
    );
    ctl.run(&["put", "a", "apple"]).silent();
    let busy = next(&|node| node["requests_per_s"].as_f64().unwrap() > 0.0);
    assert!(busy["nodes"][0]["p99_ms"].as_f64().unwrap() > 0.0, "{busy}");
    ctl.run(&["get", "nope"]).fails(1, &["nope"]);
    let busy = next(&|node| node["requests_per_s"].as_f64().unwrap() > 0.0);
    assert_eq!(busy["nodes"][0]["failed_per_s"], 0.0, "{busy}");

    nodes.push(rig.join("2", &ctl.peer));
    let joining = next(&|node| node["state"] == "joining");
    assert_eq!(joining["phase"], "dual");
    rig.settled(&nodes);
    next(&|node| node["address"] == *nodes[1].address() && node["state"] == "up");
    child.kill().unwrap();
    child.wait().unwrap();

    let plain = ctl.run(&["top", "--count", "2", "--interval", "100ms"]).silent();
    assert_eq!(plain.matches(&format!("ring {}: 2 nodes", rig.ring())).count(), 2, "{plain}");
    assert!(!plain.contains('\x1b'), "a pipe is no terminal: {plain:?}");
    for word in ["requests/s", "p99", &nodes[0].id(), &nodes[1].address()] {
        assert!(plain.contains(word), "{plain}");
    }
    assert_eq!(ctl.run(&["top", "--interval", "1ms"]).code, Some(2));
}
