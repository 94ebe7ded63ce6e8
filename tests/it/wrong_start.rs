//! Servers that can't start as they were told: each says why in a line, and changes nothing.

use crate::rig::{Node, Rig};
use std::fs;
use std::net::TcpListener;
use std::path::Path;

/// The exit code for what can't be had now, as the tools have it.
const UNAVAILABLE: i32 = 3;

/// And for what is another's.
const CONFLICT: i32 = 4;

/// It ends with this code, and says all of these words in one line.
#[track_caller]
fn fails(mut node: Node<'_>, code: i32, words: &[&str]) {
    let ended = node.end();
    let stderr = node.stderr();
    assert_eq!(ended, Some(code), "{stderr}");
    let clear = stderr.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(clear, "no line has all of {words:?}:\n{stderr}");
}

/// The names of all that is in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn options_that_make_no_sense() {
    let rig = Rig::new();
    let check = |arguments: &[&str], words: &[&str]| fails(rig.spawn("storeserver", arguments), 2, words);
    check(&["--replicas", "0"], &["--replicas", "from 1"]);
    check(&["--replicas", "some"], &["--replicas", "`all`"]);
    check(&["--segments", "1000"], &["--segments", "power of two"]);
    check(&["--weight", "0"], &["--weight", "1"]);
    check(&["--remove-after", "4"], &["--remove-after", "seconds from 5", "5m"]);
    check(&["--remove-after", "5x"], &["--remove-after", "seconds from 5", "5m"]);
    check(&["--port", "99999"], &["--port", "65535"]);
    check(&["--listen", "0.0.0.0:9950"], &["0.0.0.0:9950", "--insecure"]);
    check(&["--listen", "0.0.0.0:9950", "--insecure"], &["--advertise"]);
    check(&["--discover"], &["--discover", "loopback", "--listen", "--insecure"]);
    check(&["--discover", "--port", "9950"], &["--discover", "loopback", "--listen", "--insecure"]);
    check(&["--discover", "--listen", "0.0.0.0:9950"], &["0.0.0.0:9950", "--insecure"]);
    check(&["--discover", "--listen", "[::]:9950", "--insecure"], &["--advertise"]);
    check(&["--peer", "nowhere"], &["nowhere", "HOST:PORT"]);
    check(&["nowhere", "9950"], &["nowhere", "HOST:PORT"]);
    check(&["port"], &["port", "65535"]);
    check(&["--port", "9950", "9951"], &["twice"]);
    check(&["--memory", "--data-dir", "data"], &["--memory", "--data-dir"]);
    check(&["--ring", ""], &["ring", "empty"]);
    check(&["--colour", "red"], &["--colour"]);
    assert_eq!(names(rig.folder()), [""; 0], "nothing was made");
}

#[test]
fn a_port_in_use() {
    let rig = Rig::new();
    let other = TcpListener::bind(rig.any_port()).unwrap();
    let address = other.local_addr().unwrap().to_string();
    fails(rig.spawn("storeserver", &["--listen", &address]), UNAVAILABLE, &[&address, "in use", "--port"]);
    fails(
        rig.spawn("storeserver", &["--listen", &address, "--data-dir", "data"]),
        UNAVAILABLE,
        &[&address, "in use"],
    );
    assert_eq!(names(rig.folder()), [""; 0], "nothing was made");
}

#[test]
fn an_address_that_is_not_this_machines() {
    let rig = Rig::new();
    // Of the block that is for documentation: nobody has it.
    let arguments = ["--listen", "192.0.2.1:9950", "--insecure", "--memory"];
    fails(rig.spawn("storeserver", &arguments), UNAVAILABLE, &["192.0.2.1:9950", "can't be listened on"]);
}

#[test]
fn a_name_that_two_rings_bear() {
    let rig = Rig::new();
    let one = rig.first();
    let other = rig.node("2", &rig.any_port(), &["--bootstrap"]);
    let (first, second) = (one.address(), other.address());
    rig.settled(std::slice::from_ref(&one));
    rig.settled(std::slice::from_ref(&other));
    let arguments = ["--peer", &first, "--peer", &second];
    fails(rig.node("3", &rig.any_port(), &arguments), CONFLICT, &["two rings", &first, &second]);
}

#[test]
fn a_data_directory_that_cannot_be_used() {
    let rig = Rig::new();
    // As good as unreadable, also for root, whom permissions don't stop.
    fs::write(rig.data("file"), "text").unwrap();
    fails(
        rig.node("file", &rig.any_port(), &["--bootstrap"]),
        UNAVAILABLE,
        &["file", "can't be used", "choose another"],
    );
    assert_eq!(fs::read(rig.data("file")).unwrap(), b"text");

    fs::create_dir(rig.data("home")).unwrap();
    fs::write(rig.data("home").join("thesis.tex"), "text").unwrap();
    fails(
        rig.node("home", &rig.any_port(), &["--bootstrap"]),
        CONFLICT,
        &["home", "not a thrifty data folder"],
    );
    assert_eq!(names(&rig.data("home")), ["thesis.tex"]);

    fs::create_dir(rig.data("newer")).unwrap();
    fs::write(rig.data("newer").join("THRIFTY"), "thrifty data 99\n").unwrap();
    fails(
        rig.node("newer", &rig.any_port(), &["--bootstrap"]),
        CONFLICT,
        &["newer", "format 99", "newer thrifty"],
    );
    assert_eq!(names(&rig.data("newer")), ["THRIFTY"]);
}

#[test]
fn a_data_directory_in_use() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let pid = format!("process {}", nodes[0].pid());
    fails(rig.node("1", &rig.any_port(), &[]), UNAVAILABLE, &["in use", &pid]);
    rig.settled(&nodes);
}

#[test]
fn a_data_directory_with_damaged_state() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(1);
    nodes[0].stop();
    let damaged = |name: &str| {
        let file = rig.data("1").join("vault").join(name);
        let whole = fs::read(&file).unwrap();
        fs::write(&file, b"this is no layout").unwrap();
        let node = rig.node("1", &rig.any_port(), &[]);
        fails(node, CONFLICT, &["damaged"]);
        fs::write(&file, whole).unwrap();
    };
    for name in names(&rig.data("1").join("vault")) {
        damaged(&name);
    }
    // Mended, it is what it was.
    let node = nodes.pop().unwrap().start_again();
    rig.settled(&[node]);
}

#[test]
fn a_data_directory_of_another_ring_or_kind() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(1);
    nodes[0].stop();
    let port = rig.any_port();
    let other = rig.spawn("storeserver", &["--listen", &port, "--ring", "other", "--data-dir", "1"]);
    fails(other, CONFLICT, &["belongs to ring", rig.ring(), "--data-dir"]);
    let other = rig.spawn("location", &["--listen", &port, "--ring", rig.ring(), "--data-dir", "1"]);
    fails(other, CONFLICT, &["store node", "`storeserver`"]);
    let node = nodes.pop().unwrap().start_again();
    rig.settled(&[node]);
}

#[test]
fn a_ring_that_is_of_another_name_kind_or_make() {
    let rig = Rig::new();
    let nodes = rig.ring_of(2);
    let before = rig.settled(&nodes);
    let (peer, port) = (nodes[0].address(), rig.any_port());
    let asks = |program: &str, more: &[&str]| {
        let mut arguments = vec!["--listen", &port, "--peer", &peer, "--memory"];
        arguments.extend(more);
        rig.spawn(program, &arguments)
    };
    fails(asks("storeserver", &["--ring", "other"]), CONFLICT, &[rig.ring(), "other", "--ring"]);
    fails(asks("location", &["--ring", rig.ring()]), CONFLICT, &["never in one ring"]);
    fails(asks("storeserver", &["--ring", rig.ring(), "--replicas", "2"]), CONFLICT, &["--replicas 3"]);
    fails(asks("storeserver", &["--ring", rig.ring(), "--segments", "64"]), CONFLICT, &["--segments 1024"]);
    assert_eq!(rig.settled(&nodes).epoch, before.epoch, "nobody was taken in");
}

#[test]
fn a_peer_that_answers_nothing_is_waited_for_and_ctrl_c_ends_that() {
    let rig = Rig::new();
    let silent = TcpListener::bind(rig.any_port()).unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let mut node = rig.join("1", &address);
    node.says(&format!("waiting for a member of ring {} at {address}, given with --peer", rig.ring()));
    rig.tool("storeget", &["--peer", &node.address(), "a"]).fails(3, &["not yet part of a ring"]);
    node.interrupt();
    node.ends_well();
    rig.tool("storeget", &["--peer", &address, "a"]).fails(3, &[&address, "does not answer"]);
}
