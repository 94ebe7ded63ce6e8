//! Members that are taken out, and what becomes of them when they return.

use crate::load::Load;
use crate::rig::{Node, Rig, Signal, addresses, until};
use std::fs;
use std::path::PathBuf;
use thrifty::core::layout::Phase;

/// The folders in which data of removed nodes is kept.
fn kept(rig: &Rig) -> Vec<String> {
    let names = fs::read_dir(rig.folder()).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).filter(|name| name.contains(".removed-")).collect()
}

fn id_of(rig: &Rig, node: &Node<'_>) -> String {
    let status = rig.status(&node.address()).unwrap();
    let address = node.address();
    let entry = status.nodes.iter().find(|entry| entry.address == address).unwrap();
    entry.id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_node_that_was_removed_starts_over_and_its_data_is_kept() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(4);
    let load = Load::start(&rig, &addresses(&nodes));
    load.goes_on(50);
    let mut gone = nodes.pop().unwrap();
    let (id, peer) = (id_of(&rig, &gone), nodes[0].address());
    gone.kill();
    rig.sees_down(&peer, &gone.address());
    rig.tool("storectl", &["--peer", &peer, "remove", &id]).ok();
    rig.settled(&nodes);
    let mut back = gone.start_again();
    back.says("removed from the ring");
    back.says("joined ring");
    nodes.push(back);
    rig.settled(&nodes);
    assert_ne!(id_of(&rig, &nodes[3]), id, "it is a new node");
    assert_eq!(kept(&rig), ["4.removed-1"]);
    load.goes_on(50);
    load.finish(&rig).nothing_missing(&rig, &addresses(&nodes));
}

#[test]
fn whoever_missed_a_forced_removal_learns_of_it() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(2);
    let load = Load::start(&rig, &addresses(&nodes));
    load.goes_on(50);
    let ledger = load.finish(&rig);
    let mut gone = nodes.pop().unwrap();
    let (id, peer) = (id_of(&rig, &gone), nodes[0].address());
    gone.kill();
    rig.sees_down(&peer, &gone.address());
    rig.tool("storectl", &["--peer", &peer, "remove", &id, "--force", "--yes"]).ok();
    rig.settled(&nodes);
    let mut back = gone.start_again();
    back.says("removed from the ring");
    nodes.push(back);
    rig.settled(&nodes);
    assert_eq!(kept(&rig), ["2.removed-1"]);
    ledger.nothing_missing(&rig, &addresses(&nodes));
}

#[test]
fn a_joiner_whose_transition_is_given_up_asks_again() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(1);
    let peer = nodes[0].address();
    let (mut one, mut other) = (rig.join("2", &peer), rig.join("3", &peer));
    one.says("asking to join");
    one.signal(Signal::STOP);
    let id = other.id();
    // Both are taken in at once, or the one that lives alone: in the first case that is given up.
    until("the other is a member of a ring that is at rest", || {
        let layout = rig.layout(&peer)?;
        let member = layout.ids().any(|member| format!("{member}").starts_with(&id));
        (member && layout.phase == Phase::Stable).then_some(())
    });
    println!("{}", other.stderr());
    other.says("joined ring");
    assert_eq!(kept(&rig), [""; 0]);
    one.signal(Signal::CONT);
    one.says("joined ring");
    nodes.extend([one, other]);
    rig.settled(&nodes);
    assert_eq!(kept(&rig), [""; 0]);
}

/// The files of a folder and of those in it.
fn files(folder: PathBuf) -> Vec<PathBuf> {
    let (folders, mut found): (Vec<PathBuf>, Vec<PathBuf>) =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).partition(|path| path.is_dir());
    found.extend(folders.into_iter().flat_map(files));
    found
}

#[test]
fn a_member_without_its_engine_does_not_start_empty() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(2);
    let (mut dead, peer) = (nodes.pop().unwrap(), nodes[0].address());
    let address = dead.address();
    dead.kill();
    drop(dead);
    let engine = rig.data("2").join("engine");
    fs::rename(&engine, rig.folder().join("lost")).unwrap();
    // As if a disk were not mounted.
    fs::create_dir(&engine).unwrap();
    let starts_not = |why: &str| {
        let mut node = rig.node("2", &address, &["--peer", &peer]);
        node.says(why);
        node.says("--replace");
        assert_eq!(node.end(), Some(4));
    };
    starts_not("is missing or empty");
    fs::remove_dir(&engine).unwrap();
    starts_not("is missing or empty");
    fs::rename(rig.folder().join("lost"), &engine).unwrap();
    fs::remove_file(engine.join("0.jnl")).unwrap();
    starts_not("has lost files");
    let mut new = rig.node("2", &address, &["--peer", &peer, "--replace"]);
    new.says("looking for that ring");
    assert_eq!(kept(&rig), ["2.removed-1"]);
}

#[test]
fn a_directory_that_has_lost_its_nodes_state_gives_nothing_away() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(1);
    let (address, id) = (nodes[0].address(), nodes[0].id());
    rig.wait(rig.client(&addresses(&nodes)).put("a", "apple")).unwrap();
    nodes[0].kill();
    drop(nodes);
    let layout = rig.data("1").join("vault/layout.blob");
    fs::rename(&layout, rig.folder().join("lost")).unwrap();
    let mut broken = rig.node("1", &address, &["--bootstrap"]);
    broken.says("has lost its node's state");
    assert_eq!(broken.end(), Some(4));
    drop(broken);
    // Nothing was changed by that.
    fs::rename(rig.folder().join("lost"), &layout).unwrap();
    let node = rig.node("1", &address, &["--bootstrap"]);
    assert_eq!(node.id(), id);
    let found = rig.wait(rig.client(&[node.address()]).get("a")).unwrap().unwrap();
    assert_eq!(&found.value[..], b"apple");
    drop(node);
    fs::remove_file(&layout).unwrap();
    let mut new = rig.node("1", &address, &["--bootstrap", "--replace"]);
    new.says("started ring");
    assert_eq!(kept(&rig), ["1.removed-1"]);
    drop(new);
    // Who it was can be lost as well.
    fs::remove_file(rig.data("1").join("vault/identity.blob")).unwrap();
    let mut nobody = rig.node("1", &address, &["--bootstrap"]);
    nobody.says("--replace");
    assert_eq!(nobody.end(), Some(4));
    drop(nobody);
    let mut new = rig.node("1", &address, &["--bootstrap", "--replace"]);
    new.says("looking for that ring");
    let kept = kept(&rig);
    assert!(kept.len() == 2 && kept.contains(&"1.removed-2".to_owned()), "{kept:?}");
}

#[test]
fn a_damaged_directory_is_replaced_by_a_new_node() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let load = Load::start(&rig, &addresses(&nodes));
    load.goes_on(50);
    let mut dead = nodes.pop().unwrap();
    let (peer, address, old) = (nodes[0].address(), dead.address(), id_of(&rig, &dead));
    dead.kill();
    drop(dead);
    for file in files(rig.data("3").join("vault")) {
        fs::write(file, "rotten").unwrap();
    }
    let mut broken = rig.node("3", &address, &["--peer", &peer]);
    broken.says("--replace");
    assert_eq!(broken.end(), Some(4));
    // What it was can't be read any more, so it has to be said.
    let replace = format!("--replace={old}");
    let mut new = rig.node("3", &address, &["--peer", &peer, &replace]);
    new.says("joined ring");
    nodes.push(new);
    rig.settled(&nodes);
    assert_eq!(kept(&rig), ["3.removed-1"]);
    // With the same options it goes on as what it is now.
    let id = id_of(&rig, &nodes[2]);
    let again = nodes.pop().unwrap().start_again();
    nodes.push(again);
    rig.settled(&nodes);
    assert_eq!(id_of(&rig, &nodes[2]), id);
    assert_eq!(kept(&rig), ["3.removed-1"]);
    load.goes_on(50);
    load.finish(&rig).nothing_missing(&rig, &addresses(&nodes));
    rig.tool("storectl", &["--peer", &peer, "verify", "--wait", "30"]).silent();
}

#[test]
fn a_member_that_lives_is_not_replaced_when_it_is_down_one_day() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let (id, peer) = (id_of(&rig, &nodes[2]), nodes[0].address());
    let replace = format!("--replace={id}");
    let mut new = rig.node("4", &rig.any_port(), &["--peer", &peer, &replace]);
    new.says("--replace counts no more");
    nodes.push(new);
    rig.settled(&nodes);
    let mut down = nodes.remove(2);
    down.kill();
    rig.sees_down(&nodes[2].address(), &down.address());
    // A removal would come before this, or with it.
    let mut another = rig.join("5", &peer);
    another.says("joined ring");
    nodes.extend([another, down.start_again()]);
    rig.settled(&nodes);
    assert_eq!(id_of(&rig, &nodes[4]), id);
}
