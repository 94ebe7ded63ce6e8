//! Raw HTTP/2 from somebody who means harm. While he is at it, and after, the node answers others,
//! and does not grow.

use crate::rig::{Node, Rig};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use thrifty::client::Client;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
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

/// A put over gRPC, as HPACK without tables or Huffman code has it.
fn headers() -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    let mut add = |name: &str, value: &str| {
        block.extend([0, name.len() as u8]);
        block.extend(name.bytes());
        block.push(value.len() as u8);
        block.extend(value.bytes());
    };
    add(":path", "/thrifty.store.v1.Store/Put");
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
        let stream = number % 1000 * 2 + 1;
        match number / 1000 {
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
    // Half of the files that this process may have, of which other tests need some.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1024);
    let many = 5000.min(files / 2) as usize;
    let idle: Vec<_> = (0..many).map(|_| begin(&nodes[0])).collect();
    answers(&rig, &good_client(&rig, &nodes[0]));
    let grown = resident(&nodes[0]).saturating_sub(before);
    println!("{} idle connections: {} KiB each", idle.len(), (grown >> 10) / many as u64);
    assert!(grown < (many as u64) * (64 << 10), "{grown} bytes");
}
