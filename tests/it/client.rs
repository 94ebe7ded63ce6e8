//! What the Rust client does behind its caller's back, and how long it keeps him waiting.

use crate::rig::{Node, Rig, Signal, addresses, until};
use futures_util::future::join_all;
use std::net::TcpListener;
use std::pin::pin;
use std::time::{Duration, Instant};
use thrifty::client::{Client, ClientConfig, ClientError};
use thrifty::wire::MAX_STREAMS;

/// Some keys whose requests go to this node first.
pub(crate) fn keys_of(client: &Client, node: &Node<'_>, count: usize) -> Vec<String> {
    let (layout, address) = (client.layout(), node.address());
    let keys = (0..).map(|n| format!("key {n}")).filter(|key| {
        let first = layout.coordinators(layout.segment(key.as_bytes()))[0];
        layout.member(first).unwrap().address.as_str() == address
    });
    keys.take(count).collect()
}

#[test]
fn who_was_answered_does_not_wait_for_a_newer_layout() {
    let rig = Rig::new();
    // It is asked for layouts first, and never gives any.
    let silent = TcpListener::bind(rig.any_port()).unwrap();
    let mut nodes = rig.ring_of(1);
    let seeds = [silent.local_addr().unwrap().to_string(), nodes[0].address()];
    let client = rig.client(&seeds);
    let before = client.layout().epoch;
    nodes.push(rig.join("2", &seeds[1]));
    rig.settled(&nodes);
    rig.wait(client.put("a", "apple")).unwrap();
    // So the layout can't have been waited for, and it comes all the same.
    assert_eq!(client.layout().epoch, before);
    until("the client learns the layout", || (client.layout().epoch > before).then_some(()));
}

#[test]
fn a_request_ends_in_time_though_no_layout_comes() {
    let rig = Rig::new();
    let silent = [(); 10].map(|()| TcpListener::bind(rig.any_port()).unwrap());
    let mut nodes = rig.ring_of(2);
    let mut seeds: Vec<String> = silent.iter().map(|at| at.local_addr().unwrap().to_string()).collect();
    seeds.extend(addresses(&nodes));
    let timeout = Duration::from_millis(200);
    let client = rig.client_with(&seeds, ClientConfig { timeout, ..ClientConfig::default() });
    let dead = nodes.pop().unwrap();
    let gone = dead.address();
    drop(dead);
    rig.sees_down(&nodes[0].address(), &gone);
    // Of two owners one is down: the other says so at once, and that nothing was done.
    let key = keys_of(&client, &nodes[0], 1).remove(0);
    let began = Instant::now();
    let refused = rig.wait(client.put(key, "value")).unwrap_err();
    // Each address that never answers costs the fetch of a layout a second.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?} for {refused}", began.elapsed());
}

#[test]
fn a_write_that_reached_nobody_did_nothing() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(1);
    let timeout = Duration::from_millis(200);
    let client = rig.client_with(&addresses(&nodes), ClientConfig { timeout, ..ClientConfig::default() });
    nodes[0].kill();
    let refused = rig.wait(client.put("a", "apple")).unwrap_err();
    assert!(matches!(refused, ClientError::Unavailable(_)), "{refused:?}");
}

#[test]
fn what_a_busy_client_never_sent_did_nothing() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let config = ClientConfig { timeout: Duration::from_secs(1), connections: 1, ..ClientConfig::default() };
    let client = rig.client_with(&addresses(&nodes), config);
    nodes[0].signal(Signal::STOP);
    let keys: Vec<_> = (0..MAX_STREAMS * 2).map(|n| format!("key {n}")).collect();
    let ended = rig.wait(join_all(keys.iter().map(|key| client.put(key.clone(), "apple"))));
    nodes[0].signal(Signal::CONT);
    let unsent = ended.iter().zip(&keys).filter(|(e, _)| matches!(e, Err(ClientError::Exhausted(_))));
    let unsent: Vec<_> = unsent.map(|(_, key)| key.clone()).collect();
    assert!(!unsent.is_empty(), "{:?}", ended.last());
    let others = ended.iter().filter(|ended| matches!(ended, Err(ClientError::OutcomeUnknown(_))));
    assert_eq!(others.count() + unsent.len(), keys.len());
    let client = rig.client(&addresses(&nodes));
    let found = rig.wait(join_all(unsent.iter().map(|key| client.get(key.clone()))));
    assert!(found.into_iter().all(|found| found.unwrap().is_none()));
}

#[test]
fn a_read_on_a_connection_that_breaks_is_sent_to_another_node() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let client = rig.client(&addresses(&nodes));
    let (keys, elsewhere) = (keys_of(&client, &nodes[0], 40), keys_of(&client, &nodes[1], 1).remove(0));
    rig.wait(join_all(keys.iter().map(|key| client.put(key.clone(), "apple"))));
    // What is asked of it now is on its way when it dies.
    nodes[0].signal(Signal::STOP);
    rig.wait(async {
        let (read, written) = keys.split_at(20);
        let reads = join_all(read.iter().map(|key| client.get(key.clone())));
        let writes = join_all(written.iter().map(|key| client.put(key.clone(), "pear")));
        let mut both = pin!(futures_util::future::join(reads, writes));
        for _ in 0..20 {
            tokio::select! {
                _ = &mut both => panic!("a node that hangs has answered"),
                // Those before it were sent when this one was answered.
                found = client.get(elsewhere.clone()) => assert!(found.unwrap().is_none()),
            }
        }
        nodes[0].kill();
        let (reads, writes) = both.await;
        reads.into_iter().for_each(|found| assert_eq!(found.unwrap().unwrap().value, "apple"));
        for written in writes.into_iter().filter_map(Result::err) {
            assert!(matches!(written, ClientError::OutcomeUnknown(_)), "{written:?}");
            assert!(written.to_string().contains("broke"), "{written}");
        }
    });
}

#[test]
fn what_a_node_says_of_a_lost_quorum_is_heard() {
    let rig = Rig::new();
    let nodes = rig.ring_of(3);
    let config = ClientConfig { timeout: Duration::from_secs(2), ..ClientConfig::default() };
    let client = rig.client_with(&addresses(&nodes), config);
    let key = keys_of(&client, &nodes[0], 1).remove(0);
    nodes[1..].iter().for_each(|node| node.signal(Signal::STOP));
    let refused = rig.wait(client.get(key));
    nodes[1..].iter().for_each(|node| node.signal(Signal::CONT));
    let refused = refused.unwrap_err();
    assert!(refused.to_string().contains("too few owners"), "{refused}");
    assert!(
        matches!(refused, ClientError::Unavailable(_)),
        "a read does nothing, however it ends: {refused:?}"
    );
}

#[test]
fn a_read_is_not_lost_to_a_node_that_hangs() {
    let rig = Rig::new();
    let nodes = rig.ring_of(3);
    let client = rig.client(&addresses(&nodes));
    let key = keys_of(&client, &nodes[0], 1).remove(0);
    rig.wait(client.put(key.clone(), "apple")).unwrap();
    nodes[0].signal(Signal::STOP);
    assert_eq!(rig.wait(client.get(key)).unwrap().unwrap().value, "apple");
}
