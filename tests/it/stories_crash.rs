//! Nodes that are killed, stopped, moved and started again: no acknowledged write is ever missing.

use crate::load::Load;
use crate::rig::{Node, Rig, Signal, addresses, until};
use bytes::Bytes;
use rand::seq::SliceRandom;
use std::collections::BTreeSet;
use thrifty::client::ClientConfig;
use thrifty::core::layout::{Layout, Phase};
use thrifty::core::quorum::Consistency;
use thrifty::wire::channel;
use thrifty::wire::store::store_client::StoreClient;
use thrifty::wire::store::{GetRequest, PutRequest};

fn ids(nodes: &[Node<'_>]) -> BTreeSet<String> {
    nodes.iter().map(Node::id).collect()
}

/// Lets a random number of writes pass, to strike at a moment that differs from run to run.
fn some_moment(load: &Load) {
    let writes = rand::random_range(1..150);
    println!("striking after {writes} more writes");
    load.goes_on(writes);
}

#[test]
fn any_one_of_three_is_killed_and_reads_and_writes_go_on() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let load = Load::start(&rig, &addresses(&nodes));
    let epoch = rig.settled(&nodes).epoch;
    for _ in 0..nodes.len() {
        some_moment(&load);
        let mut victim = nodes.remove(0);
        victim.kill();
        load.goes_on(200);
        nodes.push(victim.start_again());
        rig.settled(&nodes);
        load.goes_on(20);
    }
    let ledger = load.finish(&rig);
    ledger.nothing_failed();
    ledger.nothing_missing(&rig, &addresses(&nodes));
    assert_eq!(rig.settled(&nodes).epoch, epoch, "nobody joined or left");
}

#[test]
fn a_node_that_was_dead_catches_up_what_is_read() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let peer = nodes[0].address();
    rig.tool("storectl", &["--peer", &peer, "prime"]).silent();
    nodes[2].kill();
    let client = rig.client(&[peer]);
    for letter in 'A'..='Z' {
        rig.wait(client.put(letter.to_string(), format!("newer {letter}"))).unwrap();
    }
    let dead = nodes.pop().unwrap();
    nodes.push(dead.start_again());
    rig.settled(&nodes);
    let config = ClientConfig { consistency: Consistency::All, ..ClientConfig::default() };
    let all = rig.client_with(&addresses(&nodes), config);
    for letter in 'A'..='Z' {
        let found = rig.wait(all.get(letter.to_string())).unwrap().unwrap();
        assert_eq!(found.value, format!("newer {letter}"));
    }
    // Now it knows them all by itself.
    let seeds = [nodes[2].address()];
    nodes.drain(..2).for_each(drop);
    let one =
        rig.client_with(&seeds, ClientConfig { consistency: Consistency::One, ..ClientConfig::default() });
    for letter in 'A'..='Z' {
        let found = rig.wait(one.get(letter.to_string())).unwrap().unwrap();
        assert_eq!(found.value, format!("newer {letter}"));
    }
}

/// Whom it hits in the middle of a join.
#[derive(Clone, Copy, Debug)]
enum Victim {
    /// Who drives the change.
    Claimant,
    /// Another old member.
    Member,
    /// Who joins.
    Joiner,
}

fn killed_in_the_middle_of_a_join(victim: Victim) {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    nodes.sort_by_key(Node::id);
    let load = Load::start(&rig, &addresses(&nodes));
    let peer = nodes[1].address();
    nodes.push(rig.join("joiner", &peer));
    let at = match victim {
        Victim::Claimant => 0,
        Victim::Member => 2,
        Victim::Joiner => 3,
    };
    let phase = until("the ring begins to change", || {
        let layout = rig.layout(&peer)?;
        (layout.members.len() == 4).then_some(layout.phase)
    });
    println!("killing the {victim:?} in phase {}", phase.name());
    let mut dead = nodes.remove(at);
    dead.kill();
    load.goes_on(200);
    nodes.push(dead.start_again());
    rig.settled(&nodes);
    load.goes_on(20);
    let ledger = load.finish(&rig);
    ledger.nothing_failed();
    ledger.nothing_missing(&rig, &addresses(&nodes));
    assert_eq!(rig.layout(&peer).unwrap().phase, Phase::Stable);
}

#[test]
fn whoever_is_killed_in_the_middle_of_a_join_is_taken_back() {
    std::thread::scope(|scope| {
        for victim in [Victim::Claimant, Victim::Member, Victim::Joiner] {
            scope.spawn(move || killed_in_the_middle_of_a_join(victim));
        }
    });
}

#[test]
fn one_is_killed_while_another_leaves() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let load = Load::start(&rig, &addresses(&nodes));
    let peer = nodes[0].address();
    let mut leaver = nodes.remove(2);
    leaver.interrupt();
    until("the ring begins to change", || {
        let layout = rig.layout(&peer)?;
        (layout.phase != Phase::Stable || layout.members.len() < 3).then_some(())
    });
    let mut dead = nodes.remove(1);
    dead.kill();
    // Of two owners, one is dead: writes can't go on everywhere. When it is back, the other goes.
    nodes.push(dead.start_again());
    leaver.ends_well();
    rig.settled(&nodes);
    load.goes_on(20);
    load.finish(&rig).nothing_missing(&rig, &addresses(&nodes));
}

/// Stores some keys at QUORUM by way of one node, whoever owns them, and reads them back.
fn stores_and_reads_by_way_of(rig: &Rig, node: &str) {
    rig.wait(async {
        let mut client = StoreClient::new(channel::lazy(&node.parse().unwrap()));
        for at in 0..60 {
            let (key, value) = (Bytes::from(format!("key {at}")), Bytes::from(format!("value {at}")));
            let put = PutRequest { key: key.clone(), value: value.clone(), ..PutRequest::default() };
            client.put(put).await.unwrap();
            let got = client.get(GetRequest { key, ..GetRequest::default() }).await.unwrap().into_inner();
            assert_eq!(got.value, value);
        }
    });
}

#[test]
fn a_node_that_hangs_is_worked_around_by_the_others() {
    let rig = Rig::new();
    let nodes = rig.ring_of(3);
    nodes[1].signal(Signal::STOP);
    rig.sees_down(&nodes[0].address(), &nodes[1].address());
    stores_and_reads_by_way_of(&rig, &nodes[0].address());
    nodes[1].signal(Signal::CONT);
    rig.settled(&nodes);
    stores_and_reads_by_way_of(&rig, &nodes[1].address());
}

#[test]
fn all_three_are_killed_and_started_again_in_any_order_without_flags() {
    let rig = Rig::without_flags();
    let mut nodes: Vec<Node<'_>> = (0..3).map(|_| rig.plain("storeserver", &[])).collect();
    rig.settled(&nodes);
    let (members, places) = (ids(&nodes), addresses(&nodes));

    let load = Load::start(&rig, &places);
    some_moment(&load);
    nodes.iter_mut().for_each(Node::kill);
    let ledger = load.finish(&rig);
    // All at once: who gets which directory is for them to settle.
    nodes = (0..3).map(|_| rig.plain("storeserver", &[])).collect();
    rig.settled(&nodes);
    assert_eq!(ids(&nodes), members);
    ledger.nothing_missing(&rig, &places);

    let load = Load::start(&rig, &places);
    some_moment(&load);
    nodes.shuffle(&mut rand::rng());
    nodes.iter_mut().for_each(Node::kill);
    let again = load.finish(&rig);
    // In some order, by the port that each had.
    let ports: Vec<String> =
        places.iter().map(|place| place.rsplit_once(':').unwrap().1.to_owned()).collect();
    nodes = [2, 0, 1].map(|at: usize| rig.plain("storeserver", &[&ports[at]])).into();
    rig.settled(&nodes);
    assert_eq!(ids(&nodes), members);
    again.nothing_missing(&rig, &places);
}

#[test]
fn ctrl_c_on_three_in_turn_and_all_keys_are_there_when_three_start_again() {
    let rig = Rig::without_flags();
    let nodes: Vec<Node<'_>> = (0..3).map(|_| rig.plain("storeserver", &[])).collect();
    rig.settled(&nodes);
    let load = Load::start(&rig, &addresses(&nodes));
    load.goes_on(100);
    let ledger = load.finish(&rig);
    ledger.nothing_failed();
    let last = nodes[2].address();
    for mut node in nodes {
        node.interrupt();
        node.ends_well();
    }
    // The last one's directory has everything; those of the others remember whom to look for.
    let mut nodes = vec![rig.plain("storeserver", &[])];
    assert_eq!(nodes[0].address(), last);
    nodes.extend((0..2).map(|_| rig.plain("storeserver", &[])));
    rig.settled(&nodes);
    for node in &nodes {
        ledger.nothing_missing(&rig, &[node.address()]);
    }
}

#[test]
fn ctrl_c_on_all_three_at_once_and_all_keys_are_there_when_they_start_again() {
    let rig = Rig::without_flags();
    let mut nodes: Vec<Node<'_>> = (0..3).map(|_| rig.plain("storeserver", &[])).collect();
    rig.settled(&nodes);
    let load = Load::start(&rig, &addresses(&nodes));
    load.goes_on(100);
    let ledger = load.finish(&rig);
    ledger.nothing_failed();
    nodes.iter().for_each(Node::interrupt);
    nodes.iter_mut().for_each(Node::ends_well);
    nodes = (0..3).map(|_| rig.plain("storeserver", &[])).collect();
    rig.settled(&nodes);
    ledger.nothing_missing(&rig, &addresses(&nodes));
}

#[test]
fn a_node_moved_to_another_port_is_the_same_member() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let load = Load::start(&rig, &addresses(&nodes));
    let before = rig.layout(&nodes[0].address()).unwrap();
    let mut old = nodes.pop().unwrap();
    old.stop();
    let moved = rig.node("3", &rig.any_port(), &[]);
    assert_eq!(moved.id(), old.id());
    assert_ne!(moved.address(), old.address());
    nodes.push(moved);
    rig.settled(&nodes);
    load.goes_on(50);
    let after = rig.layout(&nodes[0].address()).unwrap();
    let owners = |layout: &Layout| -> Vec<BTreeSet<_>> {
        layout.segments.all().map(|segment| layout.current_owners(segment).collect()).collect()
    };
    assert_eq!(owners(&before), owners(&after), "no segment moved");
    let ledger = load.finish(&rig);
    ledger.nothing_failed();
    ledger.nothing_missing(&rig, &addresses(&nodes));
}

#[test]
fn of_two_nodes_one_is_killed_and_the_tools_are_content_with_the_other_and_say_so() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(2);
    let peer = nodes[0].address();
    assert_eq!(rig.tool("storeput", &["--peer", &peer, "a", "apple"]).silent(), "");
    let gone = nodes[1].address();
    nodes[1].kill();
    // At once, when nobody knows yet that it is dead, and again when everybody does.
    for value in ["almond", "apricot"] {
        let put = rig.tool("storeput", &["--peer", &peer, "a", value]);
        assert!(put.stderr.contains("stored at consistency one, not quorum"), "{put:?}");
        put.ok();
        let got = rig.tool("storeget", &["--peer", &peer, "a"]);
        assert!(got.stderr.contains("read at consistency one, not quorum"), "{got:?}");
        assert_eq!(got.ok(), value);
        rig.sees_down(&peer, &gone);
    }
    for strict in [
        rig.tool("storeput", &["--peer", &peer, "--strict", "--timeout", "1", "a", "avocado"]),
        rig.tool("storeget", &["--peer", &peer, "--strict", "--timeout", "1", "a"]),
    ] {
        assert!(matches!(strict.code, Some(3 | 5)), "{strict:?}");
        assert_eq!((&*strict.stdout, strict.stderr.lines().count()), (&b""[..], 1), "{strict:?}");
    }
    let dead = nodes.pop().unwrap();
    nodes.push(dead.start_again());
    rig.settled(&nodes);
    // What only one knew is known to both again once it was read.
    let found = rig.wait(rig.client(&[gone]).get("a")).unwrap().unwrap();
    assert!(["apricot", "avocado"].iter().any(|newer| found.value == newer), "{found:?}");
}
