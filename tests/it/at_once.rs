//! Several things at the same moment: starts, joins, leaves.

use crate::load::Load;
use crate::rig::{Node, Rig, addresses, until};
use crate::stories_change::balanced;
use thrifty::core::layout::{Kind, Phase};
use thrifty::wire::location::{ProbeRequest, Stage};
use thrifty::wire::{channel, convert};

/// How often five nodes start at the same instant.
const ROUNDS: usize = 20;

#[test]
fn five_nodes_started_at_the_same_instant_make_one_ring_every_time() {
    let rig = Rig::without_flags();
    for round in 1..=ROUNDS {
        let nodes: Vec<Node<'_>> = (0..5).map(|_| rig.plain("storeserver", &["--memory"])).collect();
        let addresses: Vec<String> = nodes.iter().map(Node::address).collect();
        until(&format!("round {round}: five nodes make one ring of five"), || {
            let rings: Vec<_> = addresses.iter().filter_map(|address| ring_of(&rig, address)).collect();
            // Rings never merge: two of them now would be two for ever.
            assert!(rings.iter().all(|(ring, _)| *ring == rings[0].0), "round {round}: several rings");
            rings.iter().all(|(_, members)| *members == 5).then_some(())?;
            (rings.len() == 5).then_some(())
        });
    }
}

#[test]
fn nodes_that_were_told_of_each_other_in_a_circle_or_a_chain_make_one_ring() {
    // Whom each asks. In a circle more than one can be lower than its neighbours.
    let told: [&[(u16, &[u16])]; 4] = [
        &[(1, &[3]), (3, &[2]), (2, &[4]), (4, &[1])],
        &[(1, &[2]), (2, &[3]), (3, &[])],
        &[(3, &[2]), (2, &[1]), (1, &[3]), (4, &[5]), (5, &[4, 1])],
        &[(1, &[3]), (2, &[3]), (3, &[])],
    ];
    for told in told {
        for order in 0..2 {
            let rig = Rig::new();
            let node = |(port, peers): &(u16, &[u16])| {
                let peers: Vec<String> = peers.iter().map(|peer| rig.at(7000 + peer)).collect();
                let mut arguments = vec!["--memory"];
                peers.iter().for_each(|peer| arguments.extend(["--peer", peer]));
                rig.node(&port.to_string(), &rig.at(7000 + port), &arguments)
            };
            let mut nodes: Vec<Node<'_>> = match order {
                0 => told.iter().map(node).collect(),
                _ => told.iter().rev().map(node).collect(),
            };
            nodes.sort_by_key(Node::address);
            rig.settled(&nodes);
        }
    }
}

#[test]
fn who_is_told_of_a_node_that_waits_for_its_ring_waits_with_it() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(2);
    let (mut left, mut stays) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    left.interrupt();
    left.ends_well();
    stays.kill();
    let left = left.start_again();
    // Lower than the other, so that it would make a ring if both looked for any.
    let mut told = rig.node("told", &rig.at(7001), &["--memory", "--peer", &left.address()]);
    told.says("waiting for a member of ring");
    let stays = stays.start_again();
    rig.settled(&[left, stays, told]);
}

/// The ring that a node is a member of, and how many members that has.
fn ring_of(rig: &Rig, address: &str) -> Option<(Vec<u8>, usize)> {
    let request = ProbeRequest {
        ring_name: "thrifty".into(),
        kind: convert::kind_to(Kind::Store),
        ..ProbeRequest::default()
    };
    let probe = rig.wait(channel::probe(&address.parse().unwrap(), request)).ok()?;
    if probe.stage() != Stage::Member {
        return None;
    }
    let layout = rig.layout(address)?;
    Some((probe.ring_id.to_vec(), layout.members.len()))
}

#[test]
fn two_joins_at_once() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let load = Load::start(&rig, &addresses(&nodes));
    let (third, first) = (nodes[2].address(), nodes[0].address());
    nodes.extend([rig.join("4", &third), rig.join("5", &first)]);
    balanced(&rig, &nodes);
    let ledger = load.finish(&rig);
    ledger.nothing_failed();
    ledger.nothing_missing(&rig, &addresses(&nodes));
}

#[test]
fn join_and_leave_at_once() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let load = Load::start(&rig, &addresses(&nodes));
    let mut leaver = nodes.remove(0);
    leaver.interrupt();
    nodes.push(rig.join("4", &nodes[0].address()));
    leaver.ends_well();
    balanced(&rig, &nodes);
    let ledger = load.finish(&rig);
    ledger.nothing_failed();
    ledger.nothing_missing(&rig, &addresses(&nodes));
}

#[test]
fn who_leaves_in_the_middle_of_a_join_leaves_after_it() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let load = Load::start(&rig, &addresses(&nodes));
    let peer = nodes[1].address();
    nodes.push(rig.join("4", &peer));
    until("the ring begins to change", || {
        rig.layout(&peer).filter(|l| l.members.len() == 4 || l.phase != Phase::Stable)
    });
    let mut leaver = nodes.remove(0);
    leaver.interrupt();
    leaver.ends_well();
    balanced(&rig, &nodes);
    let ledger = load.finish(&rig);
    ledger.nothing_failed();
    ledger.nothing_missing(&rig, &addresses(&nodes));
}
