//! How a ring comes about, when its nodes are started with no flag at all.

use crate::load::Load;
use crate::rig::{Node, Rig, until};
use serde_json::json;
use std::collections::BTreeSet;
use thrifty::core::layout::Layout;
use thrifty::wire::channel;

#[test]
fn one_node_keeps_a_key_over_ctrl_c_and_a_new_start() {
    let rig = Rig::without_flags();
    let mut node = rig.plain("storeserver", &[]);
    node.says("started ring thrifty");
    assert_eq!(node.address(), "127.0.0.1:9900");
    assert_eq!(rig.tool("storeput", &["a", "apple"]).silent(), "");
    assert_eq!(rig.tool("storeget", &["a"]).silent(), "apple", "and no newline, since this is no terminal");
    rig.tool("storeget", &["b"]).fails(1, &["no value under \"b\""]);
    node.interrupt();
    node.ends_well();

    let mut node = rig.plain("storeserver", &[]);
    node.says("resuming as a member of ring thrifty");
    let got = until("the key is there again", || {
        let ran = rig.tool("storeget", &["a"]);
        (ran.code == Some(0)).then_some(ran.stdout)
    });
    assert_eq!(got, b"apple");
    node.interrupt();
    node.ends_well();
}

/// Segment replicas that a change of the ring moves, and the least that its new shares require.
fn moved_and_least(before: &Layout, after: &Layout) -> (usize, usize) {
    let newcomers = |segment| {
        let old: BTreeSet<_> = before.current_owners(segment).collect();
        after.current_owners(segment).filter(|id| !old.contains(id)).count()
    };
    let share = |layout: &Layout, id| {
        layout.segments.all().filter(|s| layout.current_owners(*s).any(|o| o == id)).count()
    };
    let moved = after.segments.all().map(newcomers).sum();
    let least = after.ids().map(|id| share(after, id).saturating_sub(share(before, id))).sum();
    (moved, least)
}

/// The letters of the NATO alphabet that `storectl prime` stores, each with its word.
fn reads_the_alphabet(rig: &Rig, node: &str) {
    let client = rig.client(&[node.to_owned()]);
    for letter in 'A'..='Z' {
        let found = rig.wait(client.get(letter.to_string())).unwrap().unwrap();
        assert!(found.value.starts_with(letter.to_string().as_bytes()), "{letter}: {found:?}");
    }
}

#[test]
fn three_terminals_are_a_ring_and_a_fourth_takes_its_share_under_load() {
    let rig = Rig::without_flags();
    let mut nodes: Vec<Node<'_>> = Vec::new();
    for port in 9900..9903 {
        nodes.push(rig.plain("storeserver", &[]));
        assert_eq!(nodes.last().unwrap().address(), format!("127.0.0.1:{port}"));
    }
    nodes[1].says("joined ring thrifty of");
    nodes[2].says("joined ring thrifty of 3");
    rig.settled(&nodes);

    let status = rig.tool("storectl", &["status", "--json"]).json();
    let seen = json!([status["ring"], status["phase"], status["replicas"], status["may_lose"]]);
    assert_eq!(seen, json!(["thrifty", "stable", 3, 1]), "{status:#}");
    for node in status["nodes"].as_array().unwrap() {
        assert_eq!((&node["state"], &node["segments"]), (&json!("up"), &json!(1024)), "{node:#}");
    }
    let table = rig.tool("storectl", &["status"]).silent();
    assert!(table.starts_with("ring thrifty: 3 nodes, 3 replicas, may lose 1\n"), "{table}");

    assert_eq!(rig.tool("storectl", &["prime"]).silent(), "stored 26 keys, A = Alpha to Z = Zulu\n");
    assert_eq!(rig.tool("storeget", &["N"]).silent(), "November");
    for node in &nodes {
        assert_eq!(rig.tool("storeget", &["--peer", &node.address(), "Q"]).silent(), "Quebec");
        through_one_node_only(&rig, &node.address());
    }

    let load = Load::start(&rig, &[nodes[0].address()]);
    let before = rig.layout(&nodes[0].address()).unwrap();
    nodes.push(rig.plain("storeserver", &[]));
    nodes[3].says("joined ring thrifty of 4");
    rig.settled(&nodes);
    load.goes_on(100);
    let after = rig.layout(&nodes[0].address()).unwrap();

    let shares = after.shares();
    assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
    let (moved, least) = moved_and_least(&before, &after);
    println!("the fourth node's join moved {moved} segment replicas, the least possible is {least}");
    assert_eq!(moved, least);

    let ledger = load.finish(&rig);
    ledger.nothing_failed();
    for node in &nodes {
        ledger.nothing_missing(&rig, &[node.address()]);
        reads_the_alphabet(&rig, &node.address());
    }
}

/// Reads all letters by asking one node for each, whoever owns it.
fn through_one_node_only(rig: &Rig, node: &str) {
    use thrifty::wire::store::{GetRequest, store_client::StoreClient};
    rig.wait(async {
        let mut client = StoreClient::new(channel::lazy(&node.parse().unwrap()));
        for letter in 'A'..='Z' {
            let request = GetRequest { key: letter.to_string().into(), ..GetRequest::default() };
            let got = client.get(request).await.unwrap().into_inner();
            assert!(
                got.value.starts_with(letter.to_string().as_bytes()),
                "{letter} by way of {node}: {got:?}"
            );
        }
    });
}

#[test]
fn the_forerunners_session_makes_one_location_ring_of_three() {
    let rig = Rig::without_flags();
    let mut nodes = vec![rig.plain("location", &[])];
    assert_eq!(nodes[0].address(), "127.0.0.1:9900");
    nodes.push(rig.plain("location", &["localhost:9900", "9901"]));
    nodes.push(rig.plain("location", &["localhost:9901", "9902"]));
    assert_eq!(nodes[1].address(), "127.0.0.1:9901");
    assert_eq!(nodes[2].address(), "127.0.0.1:9902");
    rig.settled(&nodes);
    let status = rig.tool("storectl", &["--kind", "location", "status", "--json"]).json();
    assert_eq!(
        (status["nodes"].as_array().unwrap().len(), &status["phase"]),
        (3, &json!("stable")),
        "{status:#}"
    );
    let located = rig.tool("storectl", &["--kind", "location", "locate", "apple"]).silent();
    assert!(located.contains("127.0.0.1:99"), "{located}");
    rig.tool("storeget", &["a"]).fails(3, &["no node found", "storeserver"]);
    rig.tool("storeput", &["--peer", "127.0.0.1:9900", "a", "apple"])
        .fails(4, &["locates keys and stores none"]);
    for node in &mut nodes {
        node.interrupt();
        node.ends_well();
    }
}
