//! Members that are taken out, and what becomes of them when they return.

use crate::load::Load;
use crate::rig::{Node, Rig, addresses, until};
use std::fs;
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
    one.signal("STOP");
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
    one.signal("CONT");
    one.says("joined ring");
    nodes.extend([one, other]);
    rig.settled(&nodes);
    assert_eq!(kept(&rig), [""; 0]);
}
