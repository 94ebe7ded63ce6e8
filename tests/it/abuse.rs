//! Raw HTTP/2 from somebody who means harm. While he is at it, and after, the node answers others,
//! and does not grow.

use crate::bad_input::send_raw;
use crate::rig::{Node, Rig, Signal, files};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use thrifty::client::Client;
use thrifty::wire::{MAX_MESSAGE_BYTES, MAX_STREAMS, channel};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What a node may grow by in any of these stories: far less than what is sent at it, or than what
/// it would hold if it kept it all.
const GROWTH: u64 = 96 << 20;

/// How long one abuser goes on, if he is not cut off before.
const ABUSE: Duration = Duration::from_secs(2);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A put over gRPC.
fn headers() -> Vec<u8> {
    headers_of("/thrifty.store.v1.Store/Put")
}

/// A gRPC request, as HPACK without tables or Huffman code has it.
fn headers_of(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    let mut add = |name: &str, value: &str| {
        block.extend([0, name.len() as u8]);
        block.extend(name.bytes());
        block.push(value.len() as u8);
        block.extend(value.bytes());
    };
    add(":path", path);
    add(":authority", "127.0.0.1");
    add("content-type", "application/grpc");
    add("te", "trailers");
    block
}

/// A connection on which HTTP/2 was begun.
fn begin(node: &Node<'_>) -> TcpStream {
    let mut stream = TcpStream::connect(node.address()).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

/// Reads what there is, so that the node never waits for the abuser. `false`: he was cut off.
fn drained(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut buffer = [0; 64 << 10];
    let open = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break false,
            Ok(_) => {}
            Err(error) => break error.kind() == ErrorKind::WouldBlock,
        }
    };
    stream.set_nonblocking(false).unwrap();
    open
}

/// Sends one thing after the other for a while, with a good client beside. How many were sent, and
/// whether he was cut off.
fn abuse(rig: &Rig, node: &Node<'_>, mut next: impl FnMut(u32) -> Vec<u8>) -> (u32, bool) {
    let client = good_client(rig, node);
    let before = resident(node);
    let (mut stream, end) = (begin(node), Instant::now() + ABUSE);
    let (mut sent, mut most) = (0, before);
    let cut_off = loop {
        if sent % 256 == 0 {
            answers(rig, &client);
            most = most.max(resident(node));
            if Instant::now() >= end {
                break false;
            }
        }
        if stream.write_all(&next(sent)).is_err() || !drained(&mut stream) {
            break true;
        }
        sent += 1;
    };
    answers(rig, &client);
    most = most.max(resident(node));
    println!("{sent} sent, cut off: {cut_off}, grew by {} KiB", (most - before) >> 10);
    assert!(most - before < GROWTH, "from {before} to {most} bytes");
    (sent, cut_off)
}

fn good_client(rig: &Rig, node: &Node<'_>) -> Client {
    rig.client(&[node.address()])
}

#[track_caller]
fn answers(rig: &Rig, client: &Client) {
    rig.wait(client.put("good", "client")).unwrap();
    assert_eq!(rig.wait(client.get("good")).unwrap().unwrap().value, "client");
}

/// Bytes that the node's process has in memory.
fn resident(node: &Node<'_>) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", node.pid())).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// The most that it ever had.
fn most_resident(node: &Node<'_>) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn messages_of_nothing_but_empty_parts() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let (client, before) = (good_client(&rig, &nodes[0]), most_resident(&nodes[0]));
    for (method, part) in [
        ("/thrifty.store.v1.StorePeer/Link", [0x12, 0]),
        ("/thrifty.store.v1.StorePeer/CompareDigests", [0x22, 0]),
        ("/thrifty.store.v1.StorePeer/PullSegment", [0x22, 0]),
        ("/thrifty.store.v1.Store/Digests", [0x08, 0]),
    ] {
        let address = nodes[0].address().parse().unwrap();
        let message = part.repeat(MAX_MESSAGE_BYTES / 2).into();
        rig.wait(async { send_raw(&channel::lazy(&address), method, message).await });
    }
    answers(&rig, &client);
    let most = most_resident(&nodes[0]);
    assert!(most - before < GROWTH, "from {before} to {most} bytes");
}

#[test]
fn requests_that_are_taken_back_at_once() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let block = headers();
    let (_, cut_off) = abuse(&rig, &nodes[0], |number| {
        let stream = number * 2 + 1;
        let mut both = frame(HEADERS, END_HEADERS, stream, &block);
        both.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
        both
    });
    assert!(cut_off);
}

#[test]
fn headers_without_end() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let mut header = vec![0, 1, b'x', 127, 0x81, 0x1f];
    header.resize(header.len() + 4096, b'y');
    let (sent, cut_off) = abuse(&rig, &nodes[0], |number| match number {
        0 => frame(HEADERS, 0, 1, &headers()),
        _ => frame(CONTINUATION, 0, 1, &header),
    });
    assert!(cut_off && sent < 1000, "{sent} frames were taken");
}

#[test]
fn data_without_data() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let (_, cut_off) = abuse(&rig, &nodes[0], |number| match number {
        0 => frame(HEADERS, END_HEADERS, 1, &headers()),
        _ => frame(DATA, 0, 1, &[]),
    });
    assert!(cut_off);
}

#[test]
fn headers_and_a_value_drop_by_drop() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    // As many requests as one connection may have, each with the first bytes of a large message.
    let message = [0, 0, 0x10, 0, 0, 1];
    let (sent, _) = abuse(&rig, &nodes[0], |number| {
        let stream = number % MAX_STREAMS * 2 + 1;
        match number / MAX_STREAMS {
            0 => frame(HEADERS, END_HEADERS, stream, &headers()),
            1 => frame(DATA, 0, stream, &message),
            _ => frame(DATA, 0, stream, b"x"),
        }
    });
    assert!(sent > 2000, "that alone is not forbidden");
    let mut slow = TcpStream::connect(nodes[0].address()).unwrap();
    slow.write_all(b"PRI * HTTP").unwrap();
    answers(&rig, &good_client(&rig, &nodes[0]));
}

#[test]
fn many_that_say_nothing() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let before = resident(&nodes[0]);
    let many = files(5000) as usize;
    let idle: Vec<_> = (0..many).map(|_| begin(&nodes[0])).collect();
    answers(&rig, &good_client(&rig, &nodes[0]));
    let grown = resident(&nodes[0]).saturating_sub(before);
    println!("{} idle connections: {} KiB each", idle.len(), (grown >> 10) / many as u64);
    assert!(grown < (many as u64) * (64 << 10), "{grown} bytes");
}

#[test]
fn links_that_say_nothing_keep_no_node_from_talking() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(2);
    let block = headers_of("/thrifty.store.v1.StorePeer/Link");
    let links: Vec<u8> = (0..4).flat_map(|n| frame(HEADERS, END_HEADERS, n * 2 + 1, &block)).collect();
    let idle: Vec<_> = nodes
        .iter()
        .flat_map(|node| (0..256).map(|_| (begin(node), links.clone())))
        .map(|(mut stream, links)| stream.write_all(&links).map(|()| stream).unwrap())
        .collect();
    nodes.push(rig.join("3", &nodes[0].address()));
    rig.settled(&nodes);
    let client = good_client(&rig, &nodes[2]);
    for number in 0..20 {
        rig.wait(client.put(format!("key/{number}"), "value")).unwrap();
    }
    drop(idle);
}

#[test]
fn values_for_a_node_that_hangs() {
    let rig = Rig::new();
    let first = rig.node("1", &rig.any_port(), &["--bootstrap", "--memory"]);
    let join = |name| rig.node(name, &rig.any_port(), &["--peer", &first.address(), "--memory"]);
    let (second, third) = (join("2"), join("3"));
    let nodes = [first, second, third];
    rig.settled(&nodes);
    let [first, second, hung] = &nodes;
    let client = rig.client(&[first.address(), second.address()]);
    let value = vec![b'x'; 1 << 20];
    rig.wait(client.put("big", value.clone())).unwrap();
    let before = [first, second].map(resident);
    hung.signal(Signal::STOP);
    let mut written = 0;
    // Those that the node that hangs should coordinate may have an unknown outcome.
    crate::rig::until("megabytes are written", || {
        written += u32::from(rig.wait(client.put("big", value.clone())).is_ok());
        (written == 300).then_some(())
    });
    for (node, before) in [first, second].into_iter().zip(before) {
        let grown = resident(node).saturating_sub(before);
        println!("grew by {} MiB", grown >> 20);
        // Half of what was written.
        assert!(grown < 150 << 20, "from {before} by {grown} bytes");
    }
    hung.signal(Signal::CONT);
}

#[test]
fn answers_that_nobody_reads() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let (client, big) = (good_client(&rig, &nodes[0]), vec![b'x'; 1 << 20]);
    rig.wait(client.put("big", big)).unwrap();
    let mut block = vec![0x82, 0x86];
    for (name, value) in [(":path", "/v1/kv/big"), (":authority", "127.0.0.1")] {
        block.extend([0, name.len() as u8]);
        block.extend(name.bytes());
        block.push(value.len() as u8);
        block.extend(value.bytes());
    }
    // Far more than a connection may take of memory, on one that takes nothing of an answer.
    let many = MAX_STREAMS;
    let mut stream = TcpStream::connect(nodes[0].address()).unwrap();
    stream.set_read_timeout(Some(crate::rig::PATIENCE)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).unwrap();
    for number in 0..many {
        stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, number * 2 + 1, &block)).unwrap();
    }
    let mut answered = 0;
    while answered < many {
        let mut start = [0; 9];
        stream.read_exact(&mut start).unwrap();
        let length = u32::from_be_bytes([0, start[0], start[1], start[2]]);
        stream.read_exact(&mut vec![0; length as usize]).unwrap();
        answered += u32::from(start[3] == HEADERS);
    }
    answers(&rig, &client);
    assert_eq!(rig.wait(client.get("big")).unwrap().unwrap().value.len(), 1 << 20);
}

/// How long good clients are watched before and during each kind of abuse.
const WATCHED: Duration = Duration::from_secs(6);

/// Their requests per second, all together: well below what a node can do, so that what is missing
/// was taken by the abuse.
const PACE: u32 = 1000;

/// An answer is in time within so many times what 99 of 100 take when nobody does harm.
const SLOWER: u32 = 10;

/// And in any case within this.
const SOON: Duration = Duration::from_millis(100);

/// How long each request of good clients that was answered in [`WATCHED`] took, the fastest first. They
/// start on a schedule, one after the other of [`PACE`] per second.
fn watched(rig: &Rig, node: &Node<'_>) -> Vec<Duration> {
    let client = std::sync::Arc::new(good_client(rig, node));
    rig.wait(async {
        let (start, count) = (tokio::time::Instant::now(), PACE * WATCHED.as_secs() as u32);
        let mut all = tokio::task::JoinSet::new();
        for number in 0..count {
            let due = start + number * (Duration::from_secs(1) / PACE);
            tokio::time::sleep_until(due).await;
            let client = client.clone();
            all.spawn(async move {
                let done = client.put(format!("good/{}", number % 100), "client").await;
                done.is_ok().then(|| due.elapsed())
            });
        }
        let mut times: Vec<Duration> = all.join_all().await.into_iter().flatten().collect();
        times.sort_unstable();
        times
    })
}

/// The slowest of the fastest 99 of 100.
fn slow(times: &[Duration]) -> Duration {
    times.get(times.len() * 99 / 100).copied().unwrap_or(Duration::MAX)
}

/// The frames that do some harm, by their number on a connection.
type Harm<'a> = &'a (dyn Fn(u32) -> Vec<u8> + Sync);

/// Does the same harm again and again, on one connection after the other, until it is told to stop.
/// It leaves the processors to others for as long as it used them.
fn harm(address: &str, stop: &AtomicBool, next: Harm<'_>) -> (u64, u64) {
    let (mut sent, mut connections) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect(address) else { continue };
        stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        connections += 1;
        if stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").is_err() {
            continue;
        }
        let mut number = 0;
        let mut batch = frame(SETTINGS, 0, 0, &[]);
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            for _ in 0..64 {
                batch.extend(next(number));
                number += 1;
            }
            if stream.write_all(&batch).is_err() || !drained(&mut stream) {
                break;
            }
            sent += 64;
            batch.clear();
            std::thread::sleep(began.elapsed().max(Duration::from_millis(1)));
        }
    }
    (sent, connections)
}

#[test]
#[ignore = "it measures, for which the machine has to be quiet: just abuse"]
fn good_clients_keep_their_rate() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let (node, block) = (&nodes[0], headers());
    let mut endless = vec![0, 1, b'x', 127, 0x81, 0x1f];
    endless.resize(endless.len() + 4096, b'y');
    let rapid_reset = |number: u32| {
        let stream = number * 2 + 1;
        let mut both = frame(HEADERS, END_HEADERS, stream, &block);
        both.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
        both
    };
    let endless_headers = |number: u32| match number {
        0 => frame(HEADERS, 0, 1, &block),
        _ => frame(CONTINUATION, 0, 1, &endless),
    };
    let empty_data = |number: u32| match number {
        0 => frame(HEADERS, END_HEADERS, 1, &block),
        _ => frame(DATA, 0, 1, &[]),
    };
    let slow_drip = |number: u32| {
        let stream = number % MAX_STREAMS * 2 + 1;
        match number / MAX_STREAMS {
            0 => frame(HEADERS, END_HEADERS, stream, &block),
            1 => frame(DATA, 0, stream, &[0, 0, 0x10, 0, 0, 1]),
            _ => frame(DATA, 0, stream, b"x"),
        }
    };
    let kinds: [(&str, Harm<'_>); 4] = [
        ("rapid reset", &rapid_reset),
        ("endless headers", &endless_headers),
        ("empty data", &empty_data),
        ("slow drip", &slow_drip),
    ];
    let before = watched(&rig, node);
    let usual = slow(&before);
    let in_time = usual.saturating_mul(SLOWER).max(SOON);
    println!(
        "alone: {} at {PACE} a second for {WATCHED:?}, 99 of 100 within {usual:?}; in time is within {in_time:?}",
        before.len()
    );
    assert!(before.len() as f64 >= 0.95 * PACE as f64 * WATCHED.as_secs_f64(), "alone they get too little");
    let mut held = true;
    let mut judge = |kind: &str, times: Vec<Duration>, what: String| {
        let ratio = |count: usize| count as f64 / before.len() as f64;
        let good = ratio(times.partition_point(|time| *time <= in_time));
        held &= good >= 0.9;
        println!(
            "{kind}: good clients keep {good:.3} in time, {:.3} at all, 99 of 100 within {:?} ({what}, {} MiB)",
            ratio(times.len()),
            slow(&times),
            resident(node) >> 20
        );
    };
    for (kind, next) in kinds {
        let (stop, address) = (AtomicBool::new(false), node.address());
        let (seen, (sent, connections)) = std::thread::scope(|scope| {
            let harming = scope.spawn(|| harm(&address, &stop, next));
            let seen = watched(&rig, node);
            stop.store(true, Ordering::Relaxed);
            (seen, harming.join().unwrap())
        });
        judge(kind, seen, format!("{sent} sent on {connections} connections"));
    }
    let idle: Vec<_> = (0..files(5000)).map(|_| begin(node)).collect();
    judge("idle connections", watched(&rig, node), format!("{} of them", idle.len()));
    println!("abuse: {}", if held { "HELD" } else { "NOT HELD" });
    assert!(held, "good clients keep less than 0.9 of their rate");
}
