//! What the Rust client does behind its caller's back, and how long it keeps him waiting.

use crate::rig::{Rig, addresses, until};
use std::net::TcpListener;
use std::time::{Duration, Instant};
use thrifty::client::{ClientConfig, ClientError};

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
    let silent = TcpListener::bind(rig.any_port()).unwrap();
    let mut nodes = rig.ring_of(2);
    let mut seeds = vec![silent.local_addr().unwrap().to_string()];
    seeds.extend(addresses(&nodes));
    let timeout = Duration::from_millis(200);
    let client = rig.client_with(&seeds, ClientConfig { timeout, ..ClientConfig::default() });
    let dead = nodes.pop().unwrap();
    let gone = dead.address();
    drop(dead);
    rig.sees_down(&nodes[0].address(), &gone);
    // Of two owners one is down: the other says so at once, and that nothing was done.
    let layout = client.layout();
    let survivor = nodes[0].address();
    let key = (0..).map(|n| format!("key {n}")).find(|key| {
        let first = layout.coordinators(layout.segment(key.as_bytes()))[0];
        layout.member(first).unwrap().address.as_str() == survivor
    });
    let began = Instant::now();
    let refused = rig.wait(client.put(key.unwrap(), "value")).unwrap_err();
    // One address that never answers costs the fetch of a layout a second.
    assert!(began.elapsed() < Duration::from_millis(800), "{:?} for {refused}", began.elapsed());
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
