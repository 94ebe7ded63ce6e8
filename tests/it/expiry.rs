//! Values that are kept for a while.

use crate::rig::http::{Answer, ask};
use crate::rig::{Node, Rig, addresses, until};
use std::time::{SystemTime, UNIX_EPOCH};

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn get_http(node: &Node<'_>, key: &str) -> Answer {
    ask(&node.address(), &format!("GET /v1/kv/{key}"), &[], b"").unwrap()
}

fn get(rig: &Rig, node: &Node<'_>, arguments: &[&str]) -> Option<i32> {
    rig.tool("storeget", &[&["--peer", &node.address()], arguments].concat()).code
}

#[test]
fn a_value_with_a_ttl_is_there_and_then_it_is_gone() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let put = |node: &Node<'_>, arguments: &[&str]| {
        rig.tool("storeput", &[&["--peer", &node.address()], arguments].concat()).silent();
    };
    // Whichever of the nodes coordinates.
    let began = now_ms();
    for key in ["a", "b", "c", "d"] {
        put(&nodes[0], &["--ttl", "1h", key, "long"]);
    }
    for key in ["e", "f", "g", "h"] {
        put(&nodes[0], &["--ttl", "1500ms", key, "short"]);
        // The newest write says how long, be it for ever.
        put(&nodes[1], &["--ttl", "1ms", &format!("{key}-kept"), "short"]);
        put(&nodes[2], &[&format!("{key}-kept"), "kept"]);
    }
    assert_eq!(ask(&nodes[1].address(), "PUT /v1/kv/web?ttl=1500ms", &[], b"page").unwrap().status, 204);
    let hour = 3_600_000;
    for (node, key) in nodes.iter().zip(["a", "b", "c"]) {
        let found = rig.tool("storeget", &["--peer", &node.address(), "--json", key]).json();
        let at = found["expires_at_ms"].as_u64().unwrap();
        assert!((began + hour..=now_ms() + hour).contains(&at), "{at}");
        let kept = rig.tool("storeget", &["--peer", &node.address(), "--json", "e-kept"]).json();
        assert_eq!((kept["value"].as_str(), kept.get("expires_at_ms")), (Some("kept"), None));
    }
    for node in &nodes {
        for key in ["e", "f", "g", "h"] {
            until("it expires", || (get(&rig, node, &[key]) == Some(1)).then_some(()));
            assert_eq!(get(&rig, node, &["--consistency", "one", key]), Some(1));
        }
        until("it expires", || (get_http(node, "web").status == 404).then_some(()));
        let kept = get_http(node, "a");
        assert_eq!((kept.status, kept.text()), (200, "long"));
    }
    // When it expires lies with the value, on disk and with every owner.
    for node in &mut nodes {
        node.kill();
    }
    let nodes: Vec<_> = nodes.into_iter().map(Node::start_again).collect();
    rig.settled(&nodes);
    let client = rig.client(&addresses(&nodes));
    assert!(rig.wait(client.get("e")).unwrap().is_none());
    let found = rig.wait(client.get("a")).unwrap().unwrap();
    assert!((began + hour..=now_ms() + hour).contains(&found.expires_at_ms.unwrap()));
}

#[test]
fn what_is_no_ttl_is_refused_and_nothing_is_stored() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let peer = nodes[0].address();
    for bad in ["0s", "10", "soon", "36501d", "-1s"] {
        let refused = rig.tool("storeput", &["--peer", &peer, &format!("--ttl={bad}"), "a", "apple"]);
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains("30s, 5m, 2h or 1d"), "{refused:?}");
        let refused = ask(&peer, &format!("PUT /v1/kv/a?ttl={bad}"), &[], b"apple").unwrap();
        let (status, why) = (refused.status, refused.text());
        assert_eq!(status, 400, "{bad}: {why}");
        assert!(why.contains("30s, 5m, 2h or 1d"), "{why}");
    }
    assert_eq!(get(&rig, &nodes[0], &["a"]), Some(1));
}
