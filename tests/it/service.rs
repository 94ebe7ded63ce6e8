//! A node as a service: what its manager is told, what its signals do, and what the programs tell of
//! themselves.

use crate::rig::{Node, Rig, Signal, until};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

/// Within which the watchdog wants to hear of the node.
const WATCHDOG: Duration = Duration::from_secs(1);

/// How long the next word may take.
const SOON: Duration = Duration::from_secs(30);

/// Stands in for the service manager.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    watchdog: String,
}

impl Manager {
    fn new(rig: &Rig) -> Self {
        let path = rig.folder().join("notify");
        let watchdog = WATCHDOG.as_micros().to_string();
        Manager { socket: UnixDatagram::bind(&path).unwrap(), path, watchdog }
    }

    /// What a service manager sets in a process' environment.
    fn variables(&self) -> [(&str, &str); 2] {
        [("NOTIFY_SOCKET", self.path.to_str().unwrap()), ("WATCHDOG_USEC", &self.watchdog)]
    }

    /// The next message, if one comes within this time.
    fn within(&self, time: Duration) -> Option<String> {
        let mut message = [0; 4096];
        self.socket.set_read_timeout(Some(time)).unwrap();
        let length = self.socket.recv(&mut message).ok()?;
        Some(String::from_utf8(message[..length].to_vec()).unwrap())
    }

    /// All that is said until this is, which is the last.
    #[track_caller]
    fn hears(&self, word: &str) -> Vec<String> {
        let mut heard = Vec::new();
        while let Some(message) = self.within(SOON) {
            heard.push(message.clone());
            if message.contains(word) {
                return heard;
            }
        }
        panic!("{word:?} is not among {heard:?}")
    }

    /// A node of a ring, started by this.
    fn starts<'r>(&self, rig: &'r Rig, listen: &str, peer: &str) -> Node<'r> {
        let data = rig.data("managed");
        let arguments = ["--listen", listen, "--ring", rig.ring(), "--data-dir", data.to_str().unwrap()];
        let arguments = [&arguments[..], &["--peer", peer, "--on-term", "stop"]].concat();
        rig.spawn_with(&self.variables(), "storeserver", &arguments)
    }
}

#[test]
fn a_service_manager_is_told_when_a_node_serves_that_it_lives_and_that_it_goes() {
    let rig = Rig::new();
    let manager = Manager::new(&rig);
    let peer = TcpListener::bind(rig.any_port()).unwrap().local_addr().unwrap().to_string();
    let mut node = manager.starts(&rig, &rig.any_port(), &peer);
    let (address, id) = (node.address(), node.id());
    let mut heard = manager.hears(&format!("STATUS=looking for ring {}\n", rig.ring()));
    heard.extend(manager.hears("WATCHDOG=1"));
    assert!(!heard.concat().contains("EXTEND_TIMEOUT_USEC"), "nobody has taken it in: {heard:?}");

    let _first = rig.node("1", &peer, &["--bootstrap"]);
    let heard = manager.hears("READY=1");
    let serves = format!("STATUS=serving ring {} of 2\n", rig.ring());
    assert_eq!(heard.last(), Some(&format!("READY=1\n{serves}")), "{heard:?}");
    assert!(heard.concat().contains("STATUS=joining"), "{heard:?}");

    for _ in 0..3 {
        manager.hears("WATCHDOG=1");
    }
    node.signal(Signal::STOP);
    // What it had said before.
    while manager.within(Duration::from_millis(100)).is_some() {}
    assert_eq!(manager.within(2 * WATCHDOG), None, "it hangs");
    node.signal(Signal::CONT);
    manager.hears("WATCHDOG=1");

    node.signal(Signal::TERM);
    let heard = manager.hears("STOPPING=1").pop().unwrap();
    assert!(heard.contains("EXTEND_TIMEOUT_USEC=") && heard.contains("STATUS=stopping"), "{heard:?}");
    node.ends_well();
    let mut again = manager.starts(&rig, &address, &peer);
    assert_eq!(again.id(), id);
    let heard = manager.hears("READY=1").concat();
    assert!(heard.contains(&serves) && !heard.contains("STATUS=looking"), "{heard:?}");
    again.interrupt();
    manager.hears("STATUS=leaving");
    again.ends_well();
    again.says("left");
}

#[test]
fn on_term_stop_moves_nothing() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(1);
    nodes.push(rig.node("2", &rig.any_port(), &["--peer", &nodes[0].address(), "--on-term", "stop"]));
    let before = rig.settled(&nodes);
    rig.tool("storeput", &["--peer", &nodes[0].address(), "a", "apple"]).silent();
    nodes[1].signal(Signal::TERM);
    nodes[1].ends_well();
    assert_eq!(nodes[1].stderr().lines().last(), Some("stopped"));
    rig.sees_down(&nodes[0].address(), &nodes[1].address());
    let stopped = nodes.pop().unwrap();
    nodes.push(stopped.start_again());
    assert_eq!(rig.settled(&nodes).epoch, before.epoch, "the ring has changed");
    let got = until("both serve", || {
        let got = rig.tool("storeget", &["--peer", &nodes[1].address(), "--strict", "a"]);
        (got.code == Some(0)).then(|| got.ok())
    });
    assert_eq!(got, "apple");
}

#[test]
fn a_second_signal_ends_a_node_at_once() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(2);
    nodes[0].kill();
    // Nobody is left to take over, and a ring of two that lost one can't change.
    nodes[1].interrupt();
    nodes[1].says("leaving");
    nodes[1].signal(Signal::TERM);
    nodes[1].ends_well();
    nodes[1].says("stopping at once; this node stays a member");
}

#[test]
fn options_come_from_the_environment_too_and_nothing_is_as_good_as_unset() {
    let rig = Rig::new();
    let (listen, data) = (rig.any_port(), rig.data("1"));
    let variables = [
        ("THRIFTY_LISTEN", &*listen),
        ("THRIFTY_RING", rig.ring()),
        ("THRIFTY_DATA_DIR", data.to_str().unwrap()),
        ("THRIFTY_ON_TERM", "stop"),
        ("THRIFTY_REMOVE_AFTER", "2h"),
        ("THRIFTY_WEIGHT", ""),
        ("THRIFTY_INSECURE", ""),
        ("THRIFTY_PEER", ""),
        ("THRIFTY_ADVERTISE", ""),
    ];
    let mut node = rig.spawn_with(&variables, "storeserver", &["--bootstrap"]);
    node.says(&format!("started ring {}", rig.ring()));
    node.signal(Signal::TERM);
    node.ends_well();
    node.says("stopped");
    let mut wrong = rig.spawn_with(&[("THRIFTY_REMOVE_AFTER", "1s")], "storeserver", &[]);
    assert_eq!(wrong.end(), Some(2));
    wrong.says("--remove-after");
}

#[test]
fn programs_write_their_manual_pages_and_completions() {
    let rig = Rig::new();
    let folder = rig.data("share");
    let share = folder.to_str().unwrap();
    let page = |path: &str| std::fs::read_to_string(folder.join("man").join(path)).unwrap();
    for name in ["storeserver", "location", "storeput", "storeget", "storectl", "storebench"] {
        assert_eq!(rig.tool(name, &["--generate", share]).silent(), "");
        for file in [
            format!("bash-completion/completions/{name}"),
            format!("zsh/vendor-completions/_{name}"),
            format!("fish/vendor_completions.d/{name}.fish"),
        ] {
            assert!(std::fs::read_to_string(folder.join(&file)).unwrap().contains(name), "{file}");
        }
    }
    let server = page("man8/storeserver.8");
    for part in [".SH EXAMPLES", ".SH \"EXIT STATUS\"", "THRIFTY_REMOVE_AFTER"] {
        assert!(server.contains(part), "{part} is missing:\n{server}");
    }
    assert!(page("man1/storectl.1").contains("storectl\\-leave(1)"));
    assert!(page("man1/storectl-leave.1").contains("storectl leave 3fa9"));
    let file = rig.data("file");
    std::fs::write(&file, "").unwrap();
    rig.tool("storeput", &["--generate", file.to_str().unwrap()]).fails(3, &["can't write"]);
}
