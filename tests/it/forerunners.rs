//! What the manuals of the two systems before this one have people type, on the ports that they name: in a
//! network where nobody else is.

use crate::rig::{Network, Node, Ran, Rig, until};
use serde_json::{Value, json};

/// One machine with a network to itself.
struct Machine {
    network: Network,
    rig: Rig,
}

impl Machine {
    fn new() -> Option<Self> {
        Some(Machine { network: Network::make(1)?, rig: Rig::new() })
    }

    fn start(&self, name: &str, arguments: &[&str]) -> Node<'_> {
        self.rig.spawn_in(Some(&self.network.namespace(0)), name, arguments)
    }

    fn types(&self, name: &str, arguments: &[&str]) -> Ran {
        self.rig.tool_in(Some(&self.network.namespace(0)), name, arguments, b"")
    }

    /// Waits until a node shows a ring of so many that are all up, and returns what it shows.
    #[track_caller]
    fn ring_of(&self, count: usize, peer: &str) -> Value {
        until(&format!("the node at {peer} shows a ring of {count}"), || {
            let ran = self.types("storectl", &["--peer", peer, "status", "--json"]);
            let status: Value = serde_json::from_slice(&ran.stdout).ok()?;
            let nodes = status["nodes"].as_array()?;
            let settled = status["phase"] == "stable" && nodes.iter().all(|node| node["state"] == "up");
            (settled && nodes.len() == count).then_some(status)
        })
    }
}

#[test]
fn a_chain_of_three_on_ports_of_their_own_is_one_cluster() {
    let Some(machine) = Machine::new() else { return };
    let mut nodes = vec![machine.start("storeserver", &["--port", "1234", "--bootstrap"])];
    nodes[0].says("started ring thrifty");
    for (peer, port) in [("localhost:1234", "1235"), ("localhost:1235", "1236")] {
        nodes.push(machine.start("storeserver", &["--port", port, "--peer", peer]));
        nodes.last_mut().unwrap().says("joined ring thrifty of");
    }
    for (node, port) in nodes.iter().zip(1234..) {
        assert_eq!(node.address(), format!("127.0.0.1:{port}"));
    }

    assert_eq!(machine.types("storeput", &["--peer", "localhost:1234", "colour", "blue"]).silent(), "");
    assert_eq!(machine.types("storeget", &["--peer", "localhost:1235", "colour"]).silent(), "blue");
    assert_eq!(machine.types("storeget", &["--peer", "localhost:1236", "colour"]).silent(), "blue");

    for port in 1234..1237 {
        let peer = format!("localhost:{port}");
        let status = machine.ring_of(3, &peer);
        for node in status["nodes"].as_array().unwrap() {
            assert!(node["last_heard_ms"].as_u64().is_some_and(|ago| ago < 60_000), "{node:#}");
        }
        let table = machine.types("storectl", &["--peer", &peer, "status"]).silent();
        let listed = ["last heard", "127.0.0.1:1234", "127.0.0.1:1235", "127.0.0.1:1236"];
        assert!(listed.iter().all(|word| table.contains(word)), "{table}");
    }
    for (node, port) in nodes.iter_mut().zip(1234..) {
        let said = machine.types("storectl", &["--peer", &format!("localhost:{port}"), "shutdown"]).silent();
        assert!(said.contains(&format!("localhost:{port} is stopping")), "{said}");
        node.ends_well();
    }
}

#[test]
fn two_terminals_a_key_found_and_one_not_and_ctrl_c_hands_over() {
    let Some(machine) = Machine::new() else { return };
    let mut first = machine.start("storeserver", &[]);
    first.says("started ring thrifty");
    let mut second = machine.start("storeserver", &[]);
    second.says("joined ring thrifty of 2");
    let both = [first.address(), second.address()];
    assert_eq!(both, ["127.0.0.1:9900", "127.0.0.1:9901"]);
    machine.ring_of(2, &both[0]);

    assert_eq!(machine.types("storeput", &["a", "apple"]).silent(), "");
    assert_eq!(machine.types("storeget", &["a"]).silent(), "apple");
    machine.types("storeget", &["c"]).fails(1, &["no value under \"c\""]);
    machine.types("storectl", &["prime"]).silent();

    // Whoever holds it, or would.
    for key in ["a", "Q", "c", "nobody stored this"] {
        let located = machine.types("storectl", &["locate", key]).silent();
        assert!(both.iter().all(|address| located.contains(address)), "{located}");
        let located = machine.types("storectl", &["locate", key, "--json"]).json();
        assert_eq!(located["owners"].as_array().map(Vec::len), Some(2), "{located:#}");
    }

    second.interrupt();
    second.says("leaving: handing over to 1 other node");
    second.ends_well();
    let status = machine.ring_of(1, &both[0]);
    assert_eq!(status["nodes"][0]["keys"], json!(27), "{status:#}");
    for (key, value) in [("a", "apple"), ("A", "Alpha"), ("Q", "Quebec"), ("Z", "Zulu")] {
        assert_eq!(machine.types("storeget", &[key]).silent(), value);
    }
    let located = machine.types("storectl", &["locate", "a"]).silent();
    assert!(located.contains(&both[0]) && !located.contains(&both[1]), "{located}");
    first.interrupt();
    first.ends_well();
}
