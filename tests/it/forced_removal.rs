//! A ring of two that lost one for good, and what a forced removal makes of it.

use crate::load::Load;
use crate::rig::{Rig, Signal, addresses, until};
use std::time::Duration;
use thrifty::client::{ClientConfig, ClientError};
use thrifty::core::layout::Phase;
use thrifty::core::quorum::Consistency;

#[test]
fn the_survivor_of_two_serves_all_that_was_acknowledged_once_the_dead_one_is_dropped() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(2);
    let load = Load::start(&rig, &addresses(&nodes));
    load.goes_on(100);
    let ledger = load.finish(&rig);
    ledger.nothing_failed();
    let mut dead = nodes.pop().unwrap();
    let (id, gone) = (dead.id(), dead.address());
    let peer = nodes[0].address();
    let remove = |more: &[&str]| rig.tool("storectl", &[&["--peer", &peer, "remove", &id], more].concat());
    remove(&["--force"]).fails(4, &["not down", "leave"]);
    dead.kill();

    // What only the survivor has acknowledged stays with it.
    let one = ClientConfig { consistency: Consistency::One, ..ClientConfig::default() };
    let one = rig.client_with(&addresses(&nodes), one);
    let alone: Vec<String> = (0..50).map(|n| format!("alone/{n}")).collect();
    for key in &alone {
        until("the survivor takes it at consistency one", || rig.wait(one.put(key.clone(), "kept")).ok());
    }
    rig.sees_down(&peer, &gone);
    remove(&[]).fails(4, &["--force"]);

    // Nobody is asked where there is no terminal; what may be lost is said all the same.
    let removed = remove(&["--force"]);
    assert!(removed.stderr.starts_with("storectl: warning: "), "{removed:?}");
    assert!(removed.stderr.contains(&format!("{id} at {gone}")), "{removed:?}");
    assert_eq!(removed.ok(), format!("dropped {id}; see `storectl status`\n"));

    let status = rig.settled(&nodes);
    assert_eq!((status.nodes.len(), status.nodes[0].segments), (1, status.segments));
    ledger.nothing_missing(&rig, &addresses(&nodes));
    let client = rig.client(&addresses(&nodes));
    for key in &alone {
        let found = rig.wait(client.get(key.clone())).unwrap().unwrap();
        assert_eq!((&found.value[..], found.consistency), (&b"kept"[..], Consistency::Quorum), "{key}");
    }
    rig.wait(client.put("after", "all")).unwrap();
}

#[test]
fn a_member_that_is_only_slow_is_not_dropped_with_the_dead_one() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let (mut dead, peer) = (nodes.pop().unwrap(), nodes[0].address());
    dead.kill();
    rig.sees_down(&peer, &dead.address());
    let config = ClientConfig { timeout: Duration::from_secs(5), ..ClientConfig::default() };
    let client = rig.client_with(&[peer], config);
    let id = client.layout().ids().find(|id| format!("{id:.8}") == dead.id()).unwrap();
    nodes[1].signal(Signal::STOP);
    let refused = rig.wait(client.remove(id, true));
    nodes[1].signal(Signal::CONT);
    let refused = refused.unwrap_err();
    assert!(matches!(refused, ClientError::Unavailable(_)), "{refused:?}");
    assert!(refused.to_string().contains(&nodes[1].address()), "{refused}");
    assert_eq!(rig.wait(client.remove(id, true)).unwrap().dropped, [id]);
    assert_eq!(rig.settled(&nodes).nodes.len(), 2);
}

#[test]
fn after_a_forced_removal_every_segment_has_all_its_owners_again() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(5);
    let keys: Vec<String> = (0..300).map(|n| format!("key/{n}")).collect();
    let client = rig.client(&addresses(&nodes));
    for key in &keys {
        rig.wait(client.put(key.clone(), key.clone())).unwrap();
    }
    let before = rig.layout(&nodes[0].address()).unwrap();
    let mut dead = nodes.split_off(3);
    let peer = nodes[0].address();
    for node in &mut dead {
        node.kill();
    }
    nodes
        .iter()
        .for_each(|node| dead.iter().for_each(|gone| rig.sees_down(&node.address(), &gone.address())));
    rig.tool("storectl", &["--peer", &peer, "remove", &dead[0].id(), "--force"]).ok();

    let layout = until("every segment has three owners", || {
        let layout = rig.layout(&peer)?;
        (layout.phase == Phase::Stable && layout.members.len() == 3 && layout.short() == 0).then_some(layout)
    });
    assert!(layout.segments.all().all(|segment| layout.read_owners(segment).len() == 3));
    assert_eq!(rig.settled(&nodes).may_lose, 1);
    let status = rig.tool("storectl", &["--peer", &peer, "status"]).silent();
    assert!(status.contains(", may lose 1\n"), "{status}");
    let said = rig.tool("storectl", &["--peer", &peer, "verify", "--wait", "30"]).silent();
    assert!(said.ends_with("segments, on 3 nodes\n"), "{said}");

    // What the survivors could not but have: at a quorum of three owners, one of which at most is gone.
    let gone = before.ids().filter(|id| !layout.is_member(*id)).collect();
    let kept: Vec<&String> =
        keys.iter().filter(|key| before.remains_whole(before.segment(key.as_bytes()), &gone)).collect();
    assert!(!kept.is_empty());
    let client = rig.client(&addresses(&nodes));
    let found = |key: &String| rig.wait(client.get(key.clone())).unwrap();
    kept.into_iter().for_each(|key| assert_eq!(found(key).unwrap().value, *key));
    // So the next that fails takes nothing along.
    nodes[2].kill();
    rig.wait(client.put("after", "all")).unwrap();
}
