//! Reads at ONE that a node answers from its cache: how stale they may be, and what ends that.

use crate::client::keys_of;
use crate::rig::{Node, Rig, until};
use std::time::{Duration, Instant};
use thrifty::client::{Client, ClientConfig};
use thrifty::core::quorum::Consistency;
use thrifty::wire::convert;
use thrifty::wire::store::store_client::StoreClient;
use thrifty::wire::store::{
    BatchItem, BatchRequest, DeleteRequest, GetRequest, Options, PutRequest, batch_item, batch_result,
};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Never over while a test runs.
const LONG: &str = "1h";

/// A ring in which each key has so many owners, of nodes with these values of `--cache-ttl`.
fn ring<'r>(rig: &'r Rig, replicas: &str, ttls: &[&str]) -> Vec<Node<'r>> {
    let mut nodes: Vec<Node<'_>> = Vec::new();
    for (name, ttl) in (1..).zip(ttls) {
        let peer = nodes.first().map(Node::address);
        let how = match &peer {
            None => vec!["--bootstrap", "--replicas", replicas],
            Some(peer) => vec!["--peer", peer],
        };
        let arguments = [&how[..], &["--memory", "--cache-ttl", ttl]].concat();
        nodes.push(rig.node(&format!("{name}"), &rig.any_port(), &arguments));
    }
    rig.settled(&nodes);
    nodes
}

/// A person who knows one node only.
struct Asker<'r> {
    rig: &'r Rig,
    client: Client,
    node: &'r Node<'r>,
}

impl<'r> Asker<'r> {
    fn of(rig: &'r Rig, node: &'r Node<'r>) -> Self {
        Asker { rig, client: rig.client(&[node.address()]), node }
    }

    fn request<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(TIMEOUT);
        request
    }

    fn options(consistency: Consistency) -> Option<Options> {
        Some(Options { consistency: convert::consistency_to(consistency), fallback_to_one: false })
    }

    /// Has the node asked, and nobody else.
    fn ask<A>(
        &self,
        ask: impl AsyncFnOnce(StoreClient<Channel>) -> Result<Response<A>, Status>,
    ) -> Result<A, Status> {
        let address = self.node.address().parse().unwrap();
        self.rig.wait(async { ask(self.client.store_at(&address)).await.map(Response::into_inner) })
    }

    fn put(&self, key: &str, value: &str, consistency: Consistency) {
        let options = Self::options(consistency);
        let (key, value) = (key.to_owned().into(), value.to_owned().into());
        let put = PutRequest { key, value, options, ..PutRequest::default() };
        self.ask(async |mut store| store.put(Self::request(put)).await).unwrap();
    }

    fn delete(&self, key: &str) {
        let (key, options) = (key.to_owned().into(), Self::options(Consistency::Quorum));
        let delete = DeleteRequest { key, options };
        self.ask(async |mut store| store.delete(Self::request(delete)).await).unwrap();
    }

    /// What the node answers, if there is something.
    fn get(&self, key: &str, consistency: Consistency) -> Option<String> {
        let (key, options) = (key.to_owned().into(), Self::options(consistency));
        let get = GetRequest { key, options, local: false };
        match self.ask(async |mut store| store.get(Self::request(get)).await) {
            Ok(found) => {
                assert_eq!(found.consistency, convert::consistency_to(consistency));
                assert_eq!(found.epoch, self.client.layout().epoch);
                Some(String::from_utf8(found.value.to_vec()).unwrap())
            }
            Err(status) if status.code() == Code::NotFound => None,
            Err(status) => panic!("{status}"),
        }
    }

    fn one(&self, key: &str) -> Option<String> {
        self.get(key, Consistency::One)
    }

    /// Hits and misses, as the node says itself.
    fn used(&self) -> (u64, u64) {
        let address = self.node.address();
        let status = self.rig.status(&address).unwrap();
        let node = status.nodes.into_iter().find(|node| node.address == address).unwrap();
        (node.cache_hits.unwrap(), node.cache_misses.unwrap())
    }
}

fn some(value: &str) -> Option<String> {
    Some(value.to_owned())
}

#[test]
fn a_read_at_one_is_as_stale_as_the_option_says_and_no_staler() {
    let rig = Rig::new();
    let nodes = ring(&rig, "1", &["1s", "400ms", LONG]);
    let [owner, brief, long] = [0, 1, 2].map(|at| Asker::of(&rig, &nodes[at]));
    let keys = keys_of(&owner.client, &nodes[0], 5);
    for key in &keys {
        owner.put(key, "old", Consistency::Quorum);
        assert_eq!((owner.one(key), long.one(key)), (some("old"), some("old")));
        assert_eq!(brief.one(key), some("old"));
        owner.put(key, "new", Consistency::Quorum);
        let changed = Instant::now();
        assert_eq!(owner.one(key), some("new"), "who owns it reads its own");
        until("the new value is seen", || {
            let asked = changed.elapsed();
            match brief.one(key).as_deref() {
                Some("old") => {
                    assert!(asked <= Duration::from_millis(400), "still the old value after {asked:?}");
                    None
                }
                Some("new") => Some(()),
                other => panic!("{other:?}"),
            }
        });
        assert_eq!(long.one(key), some("old"));
        // Nobody who asks for more is answered from a cache.
        for consistency in [Consistency::Quorum, Consistency::All] {
            assert_eq!(long.get(key, consistency), some("new"));
        }
        assert_eq!(long.one(key), some("old"), "and it is kept on");
    }
    let fallback =
        ClientConfig { fallback_to_one: true, any_node: true, timeout: TIMEOUT, ..Default::default() };
    let client =
        rig.client_with(&[nodes[2].address()], ClientConfig { consistency: Consistency::One, ..fallback });
    for _ in &nodes {
        assert_eq!(
            rig.wait(client.get(keys[0].clone())).unwrap().unwrap().value,
            "new",
            "a fallback is none"
        );
    }
}

#[test]
fn what_is_written_through_a_node_is_seen_there_at_once() {
    let rig = Rig::new();
    let nodes = ring(&rig, "1", &[LONG, LONG]);
    let [owner, other] = [0, 1].map(|at| Asker::of(&rig, &nodes[at]));
    for key in keys_of(&owner.client, &nodes[0], 20) {
        assert_eq!(other.one(&key), None);
        owner.put(&key, "1", Consistency::Quorum);
        assert_eq!(other.one(&key), some("1"), "that it is absent is not kept");
        other.put(&key, "2", Consistency::Quorum);
        assert_eq!(other.one(&key), some("2"));
        owner.put(&key, "3", Consistency::Quorum);
        assert_eq!(other.one(&key), some("2"));
        other.delete(&key);
        assert_eq!(other.one(&key), None);
        other.put(&key, "4", Consistency::One);
        assert_eq!((other.one(&key), other.one(&key)), (some("4"), some("4")));
        // In a batch, too, where the requests of one key come one after the other.
        let put = PutRequest { key: key.clone().into(), value: "5".into(), ..PutRequest::default() };
        let options = Asker::options(Consistency::One);
        let get = GetRequest { key: key.clone().into(), options, local: false };
        let items = [batch_item::Item::Put(put), batch_item::Item::Get(get)];
        let items = items.map(|item| BatchItem { item: Some(item) }).into();
        let batch = Asker::request(BatchRequest { items });
        let answer = other.ask(async |mut store| store.batch(batch).await).unwrap();
        let Some(batch_result::Result::Get(got)) = &answer.results[1].result else { panic!("{answer:?}") };
        assert_eq!(got.value, "5");
    }
}

#[test]
fn an_owner_that_is_sent_a_newer_value_gives_out_the_old_one_no_more() {
    let rig = Rig::new();
    let nodes = ring(&rig, "all", &[LONG, LONG, LONG]);
    let [first, second, third] = [0, 1, 2].map(|at| Asker::of(&rig, &nodes[at]));
    for key in keys_of(&first.client, &nodes[0], 20) {
        first.put(&key, "old", Consistency::All);
        for other in [&second, &third] {
            assert_eq!((other.one(&key), other.one(&key)), (some("old"), some("old")));
        }
        first.put(&key, "new", Consistency::All);
        for other in [&second, &third] {
            assert_eq!(other.one(&key), some("new"));
        }
    }
    assert_eq!(second.used(), (20, 40));
}

#[test]
fn how_often_caches_are_of_use_is_in_the_status() {
    let rig = Rig::new();
    let nodes = ring(&rig, "1", &["0", LONG]);
    let peer = nodes[0].address();
    let [off, on] = [0, 1].map(|at| Asker::of(&rig, &nodes[at]));
    let status = || rig.tool("storectl", &["--peer", &peer, "status"]).silent();
    assert!(!status().contains("cache"), "{}", status());
    let (key, others) = (&keys_of(&on.client, &nodes[0], 1)[0], &keys_of(&on.client, &nodes[1], 1)[0]);
    for key in [key, others] {
        on.put(key, "value", Consistency::Quorum);
        for asker in [&off, &on] {
            (0..20).for_each(|_| assert_eq!(asker.one(key), some("value")));
        }
    }
    assert_eq!(on.used(), (19, 1));
    let status = status();
    let row = |address: &str| status.lines().find(|line| line.contains(address)).unwrap().to_owned();
    assert!(row(&nodes[0].address()).ends_with("┆     - │"), "{status}");
    assert!(row(&nodes[1].address()).ends_with("┆   95% │"), "{status}");
    let told = rig.tool("storectl", &["--peer", &peer, "status", "--json"]).json();
    let mut told: Vec<_> = told["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (node["cache_hits"].as_u64(), node["cache_misses"].as_u64()))
        .collect();
    told.sort_unstable();
    assert_eq!(told, [(None, None), (Some(19), Some(1))]);
}

#[test]
fn sizes_and_times_that_make_no_sense_are_refused() {
    let rig = Rig::new();
    for (option, bad, helps) in [
        ("--cache-size", "1KiB", "512MiB"),
        ("--cache-size", "64MB", "512MiB"),
        ("--cache-size", "99999999999999999999", "512MiB"),
        ("--cache-size", "-1", "512MiB"),
        ("--cache-ttl", "soon", "500ms"),
        ("--cache-ttl", "-1s", "500ms"),
    ] {
        let mut node = rig.spawn("storeserver", &["--memory", &format!("{option}={bad}")]);
        assert_eq!(node.end(), Some(2), "{option} {bad}");
        assert!(node.stderr().contains(option) && node.stderr().contains(helps), "{}", node.stderr());
    }
}
