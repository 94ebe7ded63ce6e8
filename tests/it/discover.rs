//! Nodes on hosts of their own find each other by what they announce on their network, and nothing else.

use crate::rig::{Network, Node, Ran, Rig, addresses, until};
use std::net::{Ipv4Addr, UdpSocket};
use std::slice;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// What a node is started with, beside where it listens.
const HOW: [&str; 2] = ["--discover", "--insecure"];

/// Where announcements go.
const GROUP: (Ipv4Addr, u16) = (Ipv4Addr::new(224, 0, 0, 251), 5353);

fn start<'r>(rig: &'r Rig, network: &Network, place: usize, port: u16) -> Node<'r> {
    let name = format!("{place}-{port}");
    rig.node_in(Some(&network.namespace(place)), &name, &format!("0.0.0.0:{port}"), &HOW)
}

fn founders(nodes: &[Node<'_>]) -> usize {
    nodes.iter().filter(|node| node.stderr().contains("started ring")).count()
}

#[test]
fn three_hosts_become_one_ring_and_a_fourth_finds_it() {
    let Some(network) = Network::make(4) else { return };
    let (rig, other) = (Rig::new(), Rig::new());
    let tool = |name, arguments: &[&str]| -> Ran {
        let arguments = [&["--discover"], arguments].concat();
        rig.tool_in(Some(&network.namespace(3)), name, &arguments, b"")
    };
    tool("storeget", &["a"])
        .fails(3, &["no node is announced on the LAN", "storeserver --discover", "--peer"]);

    // All at once, and among them one of another ring.
    let mut nodes: Vec<Node<'_>> = (0..3).map(|place| start(&rig, &network, place, 9900)).collect();
    let mut stranger = start(&other, &network, 0, 9901);
    rig.settled(&nodes);
    other.settled(slice::from_ref(&stranger));
    assert_eq!(addresses(&nodes), [0, 1, 2].map(|place| network.address(place)), "the hosts' own addresses");
    assert_eq!((founders(&nodes), founders(slice::from_ref(&stranger))), (1, 1));

    tool("storeget", &["a"]).fails(2, &["several rings on the LAN", rig.ring(), other.ring(), "--peer"]);
    tool("storectl", &["--ring", "nobodys", "status"]).fails(3, &["no node is announced on the LAN"]);
    let status = tool("storectl", &["--ring", rig.ring(), "status", "--json"]).json();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3, "{status:#}");
    stranger.interrupt();
    stranger.ends_well();

    // It has said goodbye, so there is but one ring.
    assert_eq!(tool("storeput", &["a", "apple"]).silent(), "");
    assert_eq!(tool("storeget", &["a"]).silent(), "apple");
    tool("storeget", &["--peer", &nodes[0].address(), "a"])
        .fails(2, &["--peer", "--discover", "leave one out"]);

    let mut leaver = nodes.pop().unwrap();
    leaver.interrupt();
    leaver.ends_well();
    rig.settled(&nodes);
    drop(leaver);
    nodes.push(start(&rig, &network, 2, 9900));
    rig.settled(&nodes);
    assert_eq!(founders(&nodes), 1);
    assert_eq!(tool("storeget", &["a"]).silent(), "apple");
}

/// Labels as DNS writes them.
fn name(labels: &[&str]) -> Vec<u8> {
    let label = |label: &&str| [&[label.len() as u8], label.as_bytes()].concat();
    [labels.iter().flat_map(label).collect(), vec![0]].concat()
}

fn record(name: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let (class, ttl, length) = (1u16.to_be_bytes(), 120u32.to_be_bytes(), (data.len() as u16).to_be_bytes());
    [name, &kind.to_be_bytes(), &class, &ttl, &length, data].concat()
}

/// The announcement of a node of this ring, as a stranger would forge it.
fn forged(number: u16, ring: &str, ip: Ipv4Addr) -> Vec<u8> {
    const SERVICE: [&str; 3] = ["_thrifty", "_tcp", "local"];
    let instance = name(&[&[&*format!("n{number}")], &SERVICE[..]].concat());
    let host = name(&[&format!("h{number}"), "local"]);
    let port = 20_000 + number;
    let says = [format!("ring={ring}"), "kind=store".to_owned(), format!("address={ip}:{port}")];
    let says: Vec<u8> = says.iter().flat_map(|one| [&[one.len() as u8], one.as_bytes()].concat()).collect();
    let service = [&[0; 4], &port.to_be_bytes()[..], &host].concat();
    let answers = [
        record(&name(&SERVICE), 12, &instance),
        record(&instance, 33, &service),
        record(&instance, 16, &says),
        record(&host, 1, &ip.octets()),
    ];
    [&[0, 0, 0x84, 0, 0, 0, 0, 4, 0, 0, 0, 0][..], &answers.concat()].concat()
}

#[test]
fn forged_announcements_are_hints_that_lead_nowhere_and_who_ends_says_goodbye() {
    let Some(network) = Network::make(3) else { return };
    let rig = Rig::new();
    let mut first = start(&rig, &network, 0, 9900);
    first.says("started ring");
    let (ip, ring) = (network.ip(2), rig.ring().to_owned());
    let mouth = network.inside(2, || UdpSocket::bind((ip, GROUP.1))).unwrap();
    let (stop, stopped) = channel::<()>();
    let forger = std::thread::spawn(move || {
        for number in (0..200).cycle() {
            let whole = forged(number, &ring, ip);
            let mut garbage = whole.clone();
            garbage.truncate(rand::random_range(0..whole.len()));
            garbage.iter_mut().for_each(|byte| *byte ^= u8::from(rand::random_ratio(1, 20)));
            for packet in [whole, garbage] {
                let _queue_full = mouth.send_to(&packet, GROUP);
            }
            if stopped.recv_timeout(Duration::from_millis(1)) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    });
    let nodes = [first, start(&rig, &network, 1, 9900)];
    rig.settled(&nodes);
    drop(stop);
    forger.join().unwrap();
    assert_eq!(founders(&nodes), 1);

    let ear = network.inside(2, || UdpSocket::bind(GROUP)).unwrap();
    ear.join_multicast_v4(&GROUP.0, &ip).unwrap();
    let [first, mut second] = nodes;
    second.interrupt();
    second.ends_well();
    // The end of a pointer to the service: kind, class, and no more time to live.
    let goodbye = [0, 12, 0, 1, 0, 0, 0, 0];
    ear.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut packet = [0; 9000];
    until("the node says goodbye", || {
        let (length, from) = ear.recv_from(&mut packet).ok()?;
        let said = from.ip() == network.ip(1) && packet[..length].windows(8).any(|part| part == goodbye);
        said.then_some(())
    });
    rig.settled(slice::from_ref(&first));
}
