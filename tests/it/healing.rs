//! Nodes that were away catch up by themselves, and a person can make sure of it.

use crate::rig::{Node, Rig, addresses};
use thrifty::client::ClientConfig;
use thrifty::core::quorum::Consistency;

/// Stores keys of this name, and deletes each tenth again.
fn write(rig: &Rig, nodes: &[Node<'_>], name: &str, count: usize) {
    let config = ClientConfig { fallback_to_one: true, ..ClientConfig::default() };
    let client = rig.client_with(&addresses(nodes), config);
    rig.wait(async {
        for at in 0..count {
            client.put(format!("{name}-{at}"), format!("value {at}")).await.unwrap();
            if at % 10 == 0 {
                client.delete(format!("{name}-{at}")).await.unwrap();
            }
        }
    });
}

#[test]
fn a_node_that_was_away_catches_up_by_itself() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let peer = nodes[0].address();
    write(&rig, &nodes, "before", 100);
    rig.tool("storectl", &["--peer", &peer, "verify"]).silent();
    let mut away = nodes.pop().unwrap();
    away.kill();
    rig.sees_down(&peer, &away.address());
    let partly = rig.tool("storectl", &["--peer", &peer, "repair", "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&partly.stdout).unwrap();
    assert_eq!((partly.code, &told["nodes"], &told["unreachable"]), (Some(3), &2.into(), &2.into()));
    write(&rig, &nodes, "meanwhile", 300);
    rig.tool("storectl", &["--peer", &peer, "verify", "--wait", "0.1"]).fails(3, &["could not be compared"]);
    let mut back = away.start_again();
    back.says("caught up on 270 keys");
    nodes.push(back);
    rig.settled(&nodes);
    let verified = rig.tool("storectl", &["--peer", &peer, "verify", "--wait", "30", "--json"]).json();
    assert_eq!(verified["identical"], true);
    let repaired = rig.tool("storectl", &["--peer", &peer, "repair", "--json"]).json();
    assert_eq!((&repaired["nodes"], &repaired["keys"]), (&3.into(), &0.into()));
    assert_eq!(repaired["unreachable"], 0);
    // What it holds now is enough by itself.
    let config = ClientConfig { consistency: Consistency::One, ..ClientConfig::default() };
    nodes.iter_mut().take(2).for_each(Node::kill);
    let client = rig.client_with(&[nodes[2].address()], config);
    rig.wait(async {
        let found = client.get("meanwhile-7").await.unwrap().unwrap();
        assert_eq!(found.value, "value 7");
        assert!(client.get("meanwhile-10").await.unwrap().is_none());
    });
}

#[test]
fn what_one_owner_took_alone_reaches_the_others() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let alone = nodes[0].address();
    let mut away: Vec<_> = nodes.drain(1..).collect();
    for node in &mut away {
        node.kill();
        rig.sees_down(&alone, &node.address());
    }
    write(&rig, &nodes, "alone", 50);
    nodes.extend(away.into_iter().map(Node::start_again));
    rig.settled(&nodes);
    let said = rig.tool("storectl", &["--peer", &alone, "verify", "--wait", "30"]).silent();
    assert!(said.contains("identical"), "{said}");
}
