//! Nodes that come and go as they should, under a writer and a reader that never stop.

use crate::load::Load;
use crate::rig::{Node, Rig, addresses};

/// These nodes are a settled ring, and no two shares differ by more than one segment.
#[track_caller]
pub(crate) fn balanced(rig: &Rig, nodes: &[Node<'_>]) {
    let status = rig.settled(nodes);
    let shares: Vec<u32> = status.nodes.iter().map(|node| node.segments).collect();
    assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
    let owners = nodes.len().min(3) as u32 * status.segments;
    assert_eq!(shares.iter().sum::<u32>(), owners, "{shares:?}");
}

/// The position of the claimant, which drives every change: of the living it has the lowest id.
fn claimant(nodes: &[Node<'_>]) -> usize {
    (0..nodes.len()).min_by_key(|at| nodes[*at].id()).unwrap()
}

#[test]
fn ctrl_c_hands_everything_over_whoever_it_hits_down_to_the_last_node() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(4);
    let load = Load::start(&rig, &addresses(&nodes));
    // First the claimant, then who started first of the rest, then the last.
    while nodes.len() > 1 {
        let victim = match nodes.len() {
            4 => claimant(&nodes),
            3 => 0,
            _ => nodes.len() - 1,
        };
        let mut leaver = nodes.remove(victim);
        leaver.interrupt();
        leaver.ends_well();
        assert!(leaver.stderr().contains("\nleft\n"), "{}", leaver.stderr());
        balanced(&rig, &nodes);
        load.goes_on(100);
    }
    let ledger = load.finish(&rig);
    ledger.nothing_failed();
    ledger.nothing_missing(&rig, &addresses(&nodes));
    nodes[0].interrupt();
    nodes[0].ends_well();
}

#[test]
fn who_is_told_to_leave_by_storectl_hands_over_and_may_come_back() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let peer = nodes[0].address();
    rig.tool("storectl", &["--peer", &peer, "prime"]).silent();
    let mut leaver = nodes.remove(1);
    rig.tool("storectl", &["--peer", &peer, "leave", &leaver.id()]).silent();
    leaver.ends_well();
    balanced(&rig, &nodes);
    // Its directory remembers the ring, and that it is no member any more.
    let (old, address) = (leaver.id(), leaver.address());
    drop(leaver);
    let back = rig.node("2", &address, &["--peer", &peer]);
    assert_ne!(back.id(), old);
    nodes.push(back);
    balanced(&rig, &nodes);
    assert_eq!(rig.tool("storeget", &["--peer", &address, "Z"]).silent(), "Zulu");
}

#[test]
fn storectl_shutdown_stops_a_node_that_stays_a_member() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let epoch = rig.settled(&nodes).epoch;
    let peer = nodes[0].address();
    let mut stopped = nodes.remove(2);
    let (id, address) = (stopped.id(), stopped.address());
    rig.tool("storectl", &["--peer", &peer, "shutdown", &address]).silent();
    stopped.ends_well();
    assert!(stopped.stderr().contains("\nstopped\n"), "{}", stopped.stderr());
    nodes.push(stopped.start_again());
    assert_eq!((nodes[2].id(), rig.settled(&nodes).epoch), (id, epoch));
}
