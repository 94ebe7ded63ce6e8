//! A node that was cut off catches up by itself, soon, and without much more traffic than what it missed.
//!
//! `THRIFTY_HEAL_KEYS` says how many keys are written meanwhile (`just heal 100000`). With it set, ten
//! times as many are there before, and time and traffic are held to what is promised, too.
//!
//! Traffic is what the nodes' own packet filters count of what they hear of each other, headers
//! and gossip included, and what the tester says to them not.

use crate::rig::{Network, PATIENCE, Rig, setting};
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use thrifty::client::{Client, ClientConfig};

/// Keys that are there before, for each that is written meanwhile: in a small run, and when asked.
const BEFORE: [usize; 2] = [2, 10];

/// Bytes of a value.
const VALUE_BYTES: usize = 100;

/// Who writes at a time.
const WRITERS: usize = 128;

/// How long traffic is watched while nothing happens: as long as owners are content with what they
/// found, so that each compares itself once.
const IDLE: Duration = Duration::from_secs(10);

/// What is promised of 100,000 keys.
const SOON: Duration = Duration::from_secs(30);
const TIMES_THE_BYTES: f64 = 3.0;

/// Stores so many keys of this name, and returns their bytes and those of their values.
fn write(rig: &Rig, client: &Arc<Client>, name: &'static str, count: usize) -> u64 {
    let (next, bytes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let writer = || {
        let (client, next, bytes) = (client.clone(), next.clone(), bytes.clone());
        rig.runtime().spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                let key = format!("{name}/{number:08}");
                let value: Vec<u8> = (0..VALUE_BYTES).map(|_| rand::random()).collect();
                bytes.fetch_add(key.len() + value.len(), Ordering::Relaxed);
                // The node that is cut off says that it can't; and it is all the same here if a write
                // of unknown outcome happens twice.
                let end = Instant::now() + PATIENCE;
                while let Err(error) = client.put(key.clone(), value.clone()).await {
                    assert!(Instant::now() < end, "{error}");
                }
            }
        })
    };
    for writer in (0..WRITERS).map(|_| writer()).collect::<Vec<_>>() {
        rig.wait(writer).unwrap();
    }
    bytes.load(Ordering::Relaxed) as u64
}

fn megabytes(bytes: impl Display, text: &str) -> String {
    let bytes: f64 = bytes.to_string().parse().unwrap();
    format!("{:.1} MB {text}", bytes / 1e6)
}

#[test]
fn a_node_that_was_cut_off_catches_up_soon_and_with_little_traffic() {
    let Some(network) = Network::make(3) else { return };
    let (asked, rig) = (setting("HEAL_KEYS"), Rig::new());
    let keys = asked.unwrap_or(2_000) as usize;
    let keys_before = keys * BEFORE[usize::from(asked.is_some())];
    let places: Vec<String> = (0..3).map(|place| network.address(place)).collect();
    let start = |place: usize, how: &[&str]| {
        let arguments = [&["--insecure"], how].concat();
        rig.node_in(Some(&network.namespace(place)), &place.to_string(), &places[place], &arguments)
    };
    let mut nodes = vec![start(0, &["--bootstrap"])];
    nodes[0].says("listens on");
    nodes.extend([start(1, &["--peer", &places[0]]), start(2, &["--peer", &places[0]])]);
    rig.settled(&nodes);
    let client = Arc::new(rig.client_with(
        &places[..2],
        ClientConfig { timeout: Duration::from_secs(10), ..ClientConfig::default() },
    ));

    write(&rig, &client, "before", keys_before);
    let identical = || rig.tool("storectl", &["--peer", &places[0], "verify", "--wait", "60"]).silent();
    identical();
    let idle = if asked.is_some() { IDLE } else { IDLE / 20 };
    let before = network.heard_bytes();
    std::thread::sleep(idle);
    let idle_per_second = (network.heard_bytes() - before) as f64 / idle.as_secs_f64();

    for other in 0..2 {
        network.cut(2, other);
        network.cut(other, 2);
    }
    (0..2).for_each(|other| {
        rig.sees_down(&places[other], &places[2]);
        rig.sees_down(&places[2], &places[other]);
    });
    let missed = write(&rig, &client, "meanwhile", keys);
    rig.tool("storectl", &["--peer", &places[0], "verify", "--wait", "0.1"]).fails(4, &["different things"]);

    let before = network.heard_bytes();
    network.heal();
    let healed = Instant::now();
    identical();
    let took = healed.elapsed();
    // What comes late is traffic, too.
    rig.settled(&nodes);
    std::thread::sleep(idle / 2);
    let heard = network.heard_bytes() - before;
    let without_idle = heard as f64 - idle_per_second * healed.elapsed().as_secs_f64();
    let ratio = without_idle / missed as f64;

    for (node, place) in nodes.iter().zip(&places) {
        for line in node.stderr().lines().filter(|line| line.contains("caught up")) {
            println!("{place}: {line}");
        }
    }
    println!("{keys} keys of {}, {} others were there before", megabytes(missed, "differed"), keys_before);
    println!("identical {:.1} s after the network was whole", took.as_secs_f64());
    println!(
        "{}, {}: {ratio:.2} times what differed",
        megabytes(heard, "travelled between the nodes"),
        megabytes(without_idle, &format!("without the {:.0} KB/s of idle ones", idle_per_second / 1e3))
    );
    if asked.is_some() {
        assert!(took <= SOON && ratio <= TIMES_THE_BYTES, "{took:?}, {ratio:.2} times");
    }
}
