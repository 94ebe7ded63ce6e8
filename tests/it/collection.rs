//! What was deleted or has expired takes no room for ever, and never comes back.

use crate::rig::{Node, Rig, addresses, until};
use std::time::Duration;
use thrifty::client::{Client, ClientConfig, PutOptions};
use thrifty::core::ttl::Ttl;
use thrifty::wire::store::DigestsRequest;

/// A node of a ring that collects all the time.
fn node<'r>(rig: &'r Rig, name: &str, arguments: &[&str]) -> Node<'r> {
    let often = ["--collect-every", "1", "--remove-after", "8s"];
    rig.node(name, &rig.any_port(), &[&often, arguments].concat())
}

fn ring_of_three(rig: &Rig) -> Vec<Node<'_>> {
    let mut nodes = vec![node(rig, "1", &["--bootstrap", "--segments", "64"])];
    let peer = nodes[0].address();
    nodes.extend(["2", "3"].map(|name| node(rig, name, &["--peer", &peer])));
    rig.settled(&nodes);
    nodes
}

/// What a node holds, tombstones and all.
fn digests(rig: &Rig, client: &Client, node: &Node<'_>) -> Option<Vec<Vec<u8>>> {
    let mut at = client.store_at(&node.address().parse().unwrap());
    let answer = rig.wait(at.digests(DigestsRequest::default())).ok()?.into_inner();
    Some(answer.segments.into_iter().map(|segment| segment.digest.to_vec()).collect())
}

fn alone(rig: &Rig, nodes: &[Node<'_>]) -> Client {
    let config =
        ClientConfig { fallback_to_one: true, timeout: Duration::from_secs(5), ..ClientConfig::default() };
    rig.client_with(&addresses(nodes), config)
}

fn write(rig: &Rig, client: &Client, name: &str, count: usize) {
    rig.wait(async {
        for at in 0..count {
            client.put(format!("{name} {at}"), "value").await.unwrap();
        }
    });
}

/// A request that is under way when the ring comes to collect may end so.
async fn delete(client: &Client, key: &str) {
    while client.delete(key.to_owned()).await.is_err() {}
}

#[test]
fn deleted_and_expired_records_go_and_the_others_stay() {
    let rig = Rig::new();
    let nodes = ring_of_three(&rig);
    let client = alone(&rig, &nodes);
    write(&rig, &client, "kept", 20);
    let before = digests(&rig, &client, &nodes[0]).unwrap();
    write(&rig, &client, "deleted", 100);
    rig.wait(async {
        let ttl = Some(Ttl::from_ms(1).unwrap());
        for at in 0..50 {
            let options = PutOptions { ttl, ..PutOptions::default() };
            let key = format!("expired {at}");
            while client.put_with(key.clone(), "value", options.clone()).await.is_err() {}
        }
        for at in 0..100 {
            delete(&client, &format!("deleted {at}")).await;
        }
    });
    for node in &nodes {
        until("only what is kept is left", || (digests(&rig, &client, node)? == before).then_some(()));
    }
    assert!(rig.layout(&nodes[0].address()).unwrap().collected > 0);
    rig.tool("storectl", &["--peer", &nodes[0].address(), "verify", "--wait", "30"]).ok();
    // A node that starts again, too, starts without them, and above the versions that they had.
    let nodes: Vec<_> = nodes.into_iter().map(Node::start_again).collect();
    rig.settled(&nodes);
    let client = alone(&rig, &nodes);
    rig.wait(async {
        for key in ["deleted 7", "expired 7"] {
            assert!(client.get(key).await.unwrap().is_none());
            client.put(key, "again").await.unwrap();
            assert_eq!(client.get(key).await.unwrap().unwrap().value, "again");
        }
        assert_eq!(client.get("kept 7").await.unwrap().unwrap().value, "value");
    });
}

#[test]
fn nothing_is_collected_while_a_node_is_away_that_could_bring_it_back() {
    let rig = Rig::new();
    let mut nodes = ring_of_three(&rig);
    let client = alone(&rig, &nodes);
    write(&rig, &client, "deleted", 100);
    let mut away = nodes.pop().unwrap();
    away.kill();
    let (peer, gone) = (nodes[0].address(), away.address());
    rig.sees_down(&peer, &gone);
    rig.wait(async {
        for at in 0..100 {
            delete(&client, &format!("deleted {at}")).await;
        }
    });
    // Not before it was removed, which takes several times as long as to collect.
    let removed = until("it is removed, and then what was deleted is collected", || {
        let layout = rig.layout(&peer)?;
        let member = layout.members.iter().any(|m| m.address.as_str() == gone);
        assert!(!member || layout.collected == 0, "collected at {} while it is a member", layout.collected);
        (layout.collected > 0).then_some(layout)
    });
    assert_eq!(removed.members.len(), 2);
    let empty = |digests: Vec<Vec<u8>>| digests.iter().flatten().all(|byte| *byte == 0).then_some(());
    for node in &nodes {
        until("nothing is left", || empty(digests(&rig, &client, node)?));
    }
    // It has all the old values, and is back as a new node that has none.
    let back = away.start_again();
    until("it starts over", || rig.layout(&peer).filter(|layout| layout.members.len() == 3));
    nodes.push(back);
    until("it is settled", || {
        let layouts: Vec<_> = nodes.iter().map(|node| rig.layout(&node.address())).collect();
        layouts
            .iter()
            .all(|l| l.as_ref().is_some_and(|l| l.next.is_none() && l.members.len() == 3))
            .then_some(())
    });
    let client = alone(&rig, &nodes);
    rig.wait(async {
        for at in 0..100 {
            assert!(client.get(format!("deleted {at}")).await.unwrap().is_none());
        }
    });
    for node in &nodes {
        until("nothing is there", || empty(digests(&rig, &client, node)?));
    }
}
