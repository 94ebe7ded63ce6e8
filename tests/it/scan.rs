//! Scans and batches, while nothing happens and while much does.

use crate::client::keys_of;
use crate::rig::{Node, Rig, Signal, addresses, until};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::time::Duration;
use thrifty::client::{Client, Done, Item, PutOptions, ScanOptions, Scanned};
use thrifty::core::quorum::Consistency;
use thrifty::core::record::MAX_VALUE_BYTES;
use thrifty::core::token::Token;
use thrifty::wire::convert;
use thrifty::wire::store::{
    BatchItem, BatchRequest, BatchResult, Options, PutRequest, ScanRequest, batch_item, batch_result,
};
use tonic::Code;

fn name(number: usize) -> String {
    format!("{}/{number:05}", ["even", "odd"][number % 2])
}

fn names(count: usize) -> BTreeSet<String> {
    (0..count).map(name).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn put_all(client: &Client, count: usize) {
    let puts =
        (0..count).map(|n| Item::Put(name(n).into(), format!("value {n}").into(), PutOptions::default()));
    for result in client.batch(puts.collect()).await {
        assert!(matches!(result.unwrap(), Done::Written(_)));
    }
}

async fn all(client: &Client, options: ScanOptions) -> Vec<Scanned> {
    let (mut scan, mut found) = (client.scan(options), Vec::new());
    while let Some(item) = scan.next().await {
        found.push(item.unwrap());
    }
    found
}

/// Each key once.
fn keys(found: &[Scanned]) -> BTreeSet<String> {
    let keys: BTreeSet<String> = found.iter().map(|item| text(&item.key)).collect();
    assert_eq!(keys.len(), found.len(), "a key was met twice");
    keys
}

#[test]
fn a_scan_meets_every_key_once_in_the_order_of_the_ring() {
    let rig = Rig::new();
    let nodes = rig.ring_of(3);
    let client = rig.client(&addresses(&nodes));
    rig.wait(async {
        assert!(all(&client, ScanOptions::default()).await.is_empty());
        put_all(&client, 2_000).await;
        client.put("large/1", vec![1; MAX_VALUE_BYTES]).await.unwrap();
        client.put("large/2", vec![2; MAX_VALUE_BYTES]).await.unwrap();
        client.delete(name(7)).await.unwrap();
        let found = all(&client, ScanOptions::default()).await;
        let mut expected = names(2_000);
        expected.extend(["large/1".into(), "large/2".into()]);
        expected.remove(&name(7));
        assert_eq!(keys(&found), expected);
        let segments = client.layout().segments;
        assert!(found.is_sorted_by_key(|item| (segments.segment(Token::of(&item.key)), item.key.clone())));
        let value = |key: &str| found.iter().find(|item| item.key == *key).unwrap().value.clone();
        assert_eq!(value(&name(42)), "value 42");
        assert_eq!(value("large/2").len(), MAX_VALUE_BYTES);

        let odd = ScanOptions { prefix: "odd/".into(), keys_only: true, ..ScanOptions::default() };
        let found = all(&client, odd).await;
        assert_eq!(found.len(), 999);
        assert!(found.iter().all(|item| item.key.starts_with(b"odd/") && item.value.is_empty()));
        let none = ScanOptions { prefix: "odd/9".into(), ..ScanOptions::default() };
        assert!(all(&client, none).await.is_empty());
    });
}

#[test]
fn a_scan_goes_on_where_another_was() {
    let rig = Rig::new();
    let nodes = rig.ring_of(3);
    let client = rig.client(&addresses(&nodes));
    rig.wait(async {
        put_all(&client, 300).await;
        let (mut found, mut page_token) = (Vec::new(), Default::default());
        loop {
            let options = ScanOptions { page_token, ..ScanOptions::default() };
            let mut scan = client.scan(options);
            let mut ended = false;
            for _ in 0..7 {
                match scan.next().await {
                    Some(item) => found.push(item.unwrap()),
                    None => ended = true,
                }
            }
            page_token = scan.page_token();
            if ended {
                break;
            }
        }
        assert_eq!(keys(&found), names(300));

        // The same by the protocol itself, page by page.
        let address = nodes[1].address().parse().unwrap();
        let (mut count, mut token) = (0, bytes::Bytes::new());
        loop {
            let request = ScanRequest { limit: 11, page_token: token, ..ScanRequest::default() };
            let mut pages = client.store_at(&address).scan(request).await.unwrap().into_inner();
            let mut last = Default::default();
            while let Some(page) = pages.message().await.unwrap() {
                count += page.items.len();
                last = page.page_token;
            }
            token = last;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(count, 300);
        for bad in ["", "\u{1}", "\u{1}\0\0not of this segment", "x"].map(|bad| bad.to_owned() + "?") {
            let request = ScanRequest { page_token: bad.into(), ..ScanRequest::default() };
            let refused = client.store_at(&address).scan(request).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        }
    });
}

#[test]
fn a_scan_misses_nothing_and_shows_nothing_twice_while_the_ring_changes() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let client = rig.client(&addresses(&nodes));
    rig.wait(put_all(&client, 3_000));
    let over = tokio::sync::watch::Sender::new(false);
    let (seeds, ended) = (addresses(&nodes), over.subscribe());
    let scans = rig.runtime().spawn({
        let client = rig.client(&seeds);
        async move {
            let mut scans = 0;
            while !*ended.borrow() {
                assert_eq!(keys(&all(&client, ScanOptions::default()).await), names(3_000));
                scans += 1;
            }
            scans
        }
    });
    let peer = nodes[0].address();
    nodes.push(rig.join("4", &peer));
    rig.settled(&nodes);
    nodes.push(rig.join("5", &peer));
    rig.settled(&nodes);
    let mut gone = nodes.remove(1);
    gone.interrupt();
    gone.ends_well();
    rig.settled(&nodes);
    nodes[1].kill();
    rig.sees_down(&peer, &nodes[1].address());
    over.send_replace(true);
    let scans = rig.wait(scans).unwrap();
    assert!(scans > 3, "{scans} scans");
}

#[test]
fn a_node_tells_what_it_holds_itself() {
    let rig = Rig::new();
    let nodes = rig.ring_of(4);
    let client = rig.client(&addresses(&nodes));
    rig.wait(put_all(&client, 200));
    let held = async |node: &Node<'_>| {
        let local = Some(node.address().parse().unwrap());
        keys(&all(&client, ScanOptions { local, ..ScanOptions::default() }).await)
    };
    // A quorum has each at once, the third owner soon.
    let held = until("all owners hold all", || {
        let held: Vec<_> = nodes.iter().map(|node| rig.wait(held(node))).collect();
        (held.iter().map(BTreeSet::len).sum::<usize>() == 600).then_some(held)
    });
    rig.wait(async {
        for (node, held) in nodes.iter().zip(held) {
            let address = node.address().parse().unwrap();
            for number in 0..200 {
                let found = client.get_local(&address, name(number)).await.unwrap();
                assert_eq!(found.is_some(), held.contains(&name(number)), "{number}");
            }
        }
    });
}

#[test]
fn each_item_of_a_batch_ends_on_its_own() {
    let rig = Rig::new();
    let nodes = rig.ring_of(3);
    let client = rig.client(&addresses(&nodes));
    rig.wait(async {
        let put = |key: &'static str, value: &'static str| {
            Item::Put(key.into(), value.into(), PutOptions::default())
        };
        let large = Item::Put("large".into(), vec![0; MAX_VALUE_BYTES + 1].into(), PutOptions::default());
        let items = vec![
            put("a", "1"),
            Item::Get("a".into()),
            put("a", "2"),
            Item::Get("a".into()),
            Item::Delete("a".into()),
            Item::Get("a".into()),
            large,
            Item::Get("nothing".into()),
            put("b", "3"),
            Item::Get("".into()),
        ];
        let ended = client.batch(items).await;
        let told: Vec<String> = ended
            .into_iter()
            .map(|ended| match ended {
                Ok(Done::Written(_)) => "written".into(),
                Ok(Done::Got(found)) => found.map_or("nothing".into(), |found| text(&found.value)),
                Err(error) => error.to_string().split(',').next().unwrap().to_owned(),
            })
            .collect();
        let key = "a key has 1 to 4096 bytes";
        let value = "a value has at most 1048576 bytes";
        assert_eq!(
            told,
            ["written", "1", "written", "2", "written", "nothing", value, "nothing", "written", key]
        );
        assert!(client.get("large").await.unwrap().is_none());

        // Far more than a call takes, in items and in bytes.
        let items = (0..12)
            .map(|n| Item::Put(format!("big/{n}").into(), vec![n; 900_000].into(), PutOptions::default()));
        assert!(client.batch(items.collect()).await.iter().all(Result::is_ok));
        let many: Vec<Item> = (0..4_000).map(|n| Item::Get(format!("big/{n}").into())).collect();
        let found = client.batch(many).await;
        let there = found
            .into_iter()
            .filter(|found| matches!(found, Ok(Done::Got(Some(found))) if found.value.len() == 900_000));
        assert_eq!(there.count(), 12);

        // Of one key, too.
        let many = client.batch(vec![Item::Get("big/7".into()); 20]).await;
        assert!(many.iter().all(|found| matches!(found, Ok(Done::Got(Some(_))))));

        let mut node = client.store_at(&nodes[0].address().parse().unwrap());
        for items in [vec![BatchItem { item: None }], vec![BatchItem::default(); 1001]] {
            let refused = node.batch(BatchRequest { items }).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
            assert!(refused.message().contains("nothing was done"), "{refused}");
        }
        assert_eq!(node.batch(BatchRequest::default()).await.unwrap().into_inner().results, []);
    });
}

#[test]
fn a_batch_tells_in_time_what_came_of_each_item() {
    let rig = Rig::new();
    let nodes = rig.ring_of(3);
    let client = rig.client(&addresses(&nodes));
    let of = |node: &Node<'_>| Bytes::from(keys_of(&client, node, 1).remove(0));
    let (here, there) = (of(&nodes[0]), of(&nodes[1]));
    nodes[1..].iter().for_each(|node| node.signal(Signal::STOP));
    let put = |key: &Bytes, consistency: Consistency| {
        let options =
            Some(Options { consistency: convert::consistency_to(consistency), fallback_to_one: false });
        let put = PutRequest { key: key.clone(), options, ..PutRequest::default() };
        BatchItem { item: Some(batch_item::Item::Put(put)) }
    };
    let one = put(&here, Consistency::One);
    let all = std::iter::once(one).chain((0..5).map(|_| put(&there, Consistency::Quorum)));
    let mut request = tonic::Request::new(BatchRequest { items: all.collect() });
    request.set_timeout(Duration::from_secs(1));
    let address = nodes[0].address().parse().unwrap();
    let answer = rig.wait(async { client.store_at(&address).batch(request).await });
    nodes[1..].iter().for_each(|node| node.signal(Signal::CONT));
    let results = answer.unwrap().into_inner().results;
    assert!(matches!(results[0].result, Some(batch_result::Result::Put(_))), "{:?}", results[0]);
    let failed = |result: &BatchResult| matches!(result.result, Some(batch_result::Result::Failure(_)));
    assert!(results[1..].iter().all(failed), "{results:?}");
    let Some(batch_result::Result::Failure(last)) = &results[5].result else { unreachable!() };
    assert!(!last.outcome_unknown && last.code == i32::from(Code::Unavailable), "never begun: {last:?}");
}

#[test]
fn a_scan_waits_for_who_takes_his_time() {
    let rig = Rig::new();
    let nodes = rig.ring_of(3);
    let client = rig.client(&addresses(&nodes));
    rig.wait(async {
        let put = |n: usize| Item::Put(name(n).into(), vec![1; 100_000].into(), PutOptions::default());
        assert!(client.batch((0..400).map(put).collect()).await.iter().all(Result::is_ok));
        let address = nodes[0].address().parse().unwrap();
        let mut node = client.store_at(&address);
        let mut messages = node.scan(ScanRequest::default()).await.unwrap().into_inner();
        let mut count = messages.message().await.unwrap().unwrap().items.len();
        // Longer than any stretch may take: more than the connection takes in is not sent meanwhile.
        tokio::time::sleep(Duration::from_secs(6)).await;
        while let Some(message) = messages.message().await.unwrap() {
            count += message.items.len();
        }
        assert_eq!(count, 400);
    });
}
