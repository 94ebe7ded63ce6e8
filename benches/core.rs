//! What the pure layers cost. Run with `cargo bench --bench core`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark of values that it makes itself")]

use divan::{Bencher, black_box};
use std::collections::BTreeSet;
use thrifty::core::layout::{Kind, Layout, Member, Replicas, Standing};
use thrifty::core::node::{NodeId, RingId};
use thrifty::core::token::SegmentCount;

fn main() {
    sizes();
    divan::main();
}

fn member(id: u128) -> Member {
    Member {
        id: NodeId(id),
        address: format!("10.{}.{}.1:9900", id / 250, id % 250).parse().unwrap(),
        zone: String::new(),
        weight: 1,
        durable: true,
        standing: Standing::Staying,
    }
}

fn ring(nodes: u128, segments: u64) -> Layout {
    let segments = SegmentCount::new(segments).unwrap();
    let one = Layout::first(RingId(1), "bench".into(), Kind::Store, Replicas::Count(3), segments, member(1));
    let others: Vec<Member> = (2..=nodes).map(member).collect();
    one.dual(&others, &BTreeSet::new()).unwrap().read_new().settled()
}

/// Key to owners, MD5 included.
#[divan::bench(args = [100])]
fn key_to_owners(bencher: Bencher, nodes: u128) {
    let layout = ring(nodes, 1024);
    let mut n = 0u64;
    bencher.bench_local(|| {
        n += 1;
        let mut key = *b"user:00000000000";
        key[5..13].copy_from_slice(&n.to_be_bytes());
        let segment = layout.segment(black_box(&key));
        layout.current_owners(segment).map(|id| id.0).fold(0, u128::wrapping_add)
    });
}

/// The layout of one node joining 1,000, with 4,096 segments.
#[divan::bench]
fn join_of_1000(bencher: Bencher) {
    let layout = ring(1000, 4096);
    bencher.bench_local(|| black_box(&layout).dual(&[member(5000)], &BTreeSet::new()));
}

/// What a layout of 1,000 nodes takes in memory and on the wire.
fn sizes() {
    #[cfg(feature = "client")]
    {
        let layout = ring(1000, 4096);
        let dual = layout.dual(&[member(5000)], &BTreeSet::new()).unwrap();
        let cells = size_of::<thrifty::core::layout::Cell>();
        let row = size_of::<Box<[thrifty::core::layout::Cell]>>();
        let members = size_of::<Member>() + 32;
        let memory = |tables: usize| tables * 4096 * (row + 3 * cells) + 1000 * members;
        println!("1,000 nodes, 4,096 segments:");
        let stable = thrifty::wire::convert::layout_bytes(&layout).len();
        let moving = thrifty::wire::convert::layout_bytes(&dual).len();
        println!("  stable: about {} KiB in memory, {} KiB on the wire", memory(1) >> 10, stable >> 10);
        println!(
            "  one node joining: about {} KiB in memory, {} KiB on the wire",
            memory(2) >> 10,
            moving >> 10
        );
    }
}
