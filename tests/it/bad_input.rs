//! Requests that are wrong: each is refused with the right status and a clear line, changes
//! nothing, and leaves the node serving.

use crate::rig::{Node, Rig, addresses};
use bytes::{Buf, BufMut, Bytes};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;
use thrifty::core::node::{Generation, NodeId};
use thrifty::core::record::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use thrifty::location::gossip::{Gossip, Identity};
use thrifty::wire::channel;
use thrifty::wire::convert::{self, id_bytes};
use thrifty::wire::location::location_peer_client::LocationPeerClient;
use thrifty::wire::location::{self as lp, GossipRequest, PullLayoutRequest};
use thrifty::wire::store::store_client::StoreClient;
use thrifty::wire::store::{DeleteRequest, GetRequest, Options, PutRequest};
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

fn connect(rig: &Rig, node: &Node<'_>) -> Channel {
    let address = node.address().parse().unwrap();
    rig.wait(async { channel::lazy(&address) })
}

/// The node still does what it is there for, and has changed nothing about its ring.
#[track_caller]
fn still_serves(rig: &Rig, node: &Node<'_>) {
    let address = node.address();
    assert_eq!(rig.tool("storeput", &["--peer", &address, "a", "apple"]).silent(), "");
    assert_eq!(rig.tool("storeget", &["--peer", &address, "a"]).silent(), "apple");
    assert_eq!(rig.settled(std::slice::from_ref(node)).epoch, 1);
}

#[test]
fn keys_and_values_of_the_wrong_size() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let mut client = StoreClient::new(connect(&rig, &nodes[0]));
    let (longest, long) =
        (Bytes::from(vec![b'k'; MAX_KEY_BYTES]), Bytes::from(vec![b'k'; MAX_KEY_BYTES + 1]));
    let (largest, large) = (Bytes::from(vec![7; MAX_VALUE_BYTES]), Bytes::from(vec![7; MAX_VALUE_BYTES + 1]));
    rig.wait(async {
        let put = |key: &Bytes, value: &Bytes| PutRequest {
            key: key.clone(),
            value: value.clone(),
            ..PutRequest::default()
        };
        client.put(put(&longest, &largest)).await.unwrap();
        let empty = Bytes::new();
        let value = Bytes::from_static(b"v");
        let key = Bytes::from_static(b"k");
        let typed = PutRequest { content_type: "t".repeat(256), ..put(&key, &value) };
        for (request, word) in [
            (put(&empty, &value), "key"),
            (put(&long, &value), "key"),
            (put(&key, &large), "value"),
            (typed, "type"),
            (PutRequest { ttl_ms: Some(0), ..put(&key, &value) }, "ttl"),
            (PutRequest { ttl_ms: Some(u64::MAX), ..put(&key, &value) }, "ttl"),
        ] {
            let refused = client.put(request).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
            assert!(refused.message().contains(word), "{refused}");
        }
        for key in [empty, long] {
            let got = client.get(GetRequest { key: key.clone(), ..GetRequest::default() }).await.unwrap_err();
            let deleted = client.delete(DeleteRequest { key, options: None }).await.unwrap_err();
            assert_eq!((got.code(), deleted.code()), (Code::InvalidArgument, Code::InvalidArgument));
        }
        let absent = client.get(GetRequest { key, ..GetRequest::default() }).await.unwrap_err();
        assert_eq!(absent.code(), Code::NotFound);
    });
    still_serves(&rig, &nodes[0]);
}

#[test]
fn the_tools_refuse_keys_and_values_of_the_wrong_size() {
    let rig = Rig::new();
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    for key in ["", &long] {
        rig.tool("storeput", &[key, "v"]).fails(2, &["key", "4096"]);
        rig.tool("storeget", &[key]).fails(2, &["key", "4096"]);
        rig.tool("storectl", &["del", key]).fails(2, &["key", "4096"]);
    }
    rig.tool_fed("storeput", &["k", "-"], &vec![7; MAX_VALUE_BYTES + 1]).fails(2, &["value", "1048576"]);
}

#[test]
fn the_largest_value_passes_through_the_tools_byte_for_byte() {
    let rig = Rig::new();
    let nodes = rig.ring_of(3);
    let peer = nodes[0].address();
    let mut value = vec![0; MAX_VALUE_BYTES];
    StdRng::seed_from_u64(1).fill_bytes(&mut value);
    rig.tool_fed("storeput", &["--peer", &peer, "photo", "-"], &value).silent();
    let got = rig.tool("storeget", &["--peer", &nodes[2].address(), "photo"]);
    assert_eq!((got.code, &*got.stderr), (Some(0), ""));
    assert!(got.stdout == value, "{} bytes came back", got.stdout.len());
}

#[test]
fn a_message_over_the_limit_and_an_unknown_consistency() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let mut client = StoreClient::new(connect(&rig, &nodes[0]));
    rig.wait(async {
        let huge = PutRequest { key: "k".into(), value: vec![7; 5 << 20].into(), ..PutRequest::default() };
        let refused = client.put(huge).await.unwrap_err();
        assert!(
            matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument),
            "{refused}"
        );
        let options = Some(Options { consistency: 99, fallback_to_one: false });
        let refused =
            client.put(PutRequest { key: "k".into(), options, ..PutRequest::default() }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("consistency"), "{refused}");
        let refused = client.get(GetRequest { key: "k".into(), options, local: false }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert_eq!(
            client.get(GetRequest { key: "k".into(), ..GetRequest::default() }).await.unwrap_err().code(),
            Code::NotFound
        );
    });
    still_serves(&rig, &nodes[0]);
}

#[test]
fn garbage_on_the_port() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let mut random = vec![0; 100_000];
    StdRng::seed_from_u64(2).fill_bytes(&mut random);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // A frame of another length than it says, and headers that make no sense.
    let broken =
        [&preface[..], &[0, 0, 4, 1, 4, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], &random[..200]]
            .concat();
    let http = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    for bytes in [&b""[..], b"\0", http, &preface[..10], preface, &broken, &random] {
        let mut stream = TcpStream::connect(nodes[0].address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        // It may hang up at the first wrong byte, or wait for more: both are fine.
        let _hung_up = stream.write_all(bytes);
        let _hung_up = stream.shutdown(Shutdown::Write);
        let _whatever = stream.read(&mut [0; 1024]);
    }
    still_serves(&rig, &nodes[0]);
}

#[test]
fn peers_of_another_ring() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let mut peer = LocationPeerClient::new(connect(&rig, &nodes[0]));
    let (other, me) = (id_bytes(77), id_bytes(78));
    let refusal = |status: Result<(), Status>| {
        let status = status.unwrap_err();
        assert!(status.message().contains("ring"), "{status}");
        status.code()
    };
    rig.wait(async {
        let gossip = |ring_id: &Bytes| GossipRequest {
            from: me.clone(),
            ring_id: ring_id.clone(),
            epoch: 900,
            ..GossipRequest::default()
        };
        assert_eq!(refusal(peer.gossip(gossip(&other)).await.map(drop)), Code::FailedPrecondition);
        let pull = PullLayoutRequest { ring_id: other.clone() };
        assert_eq!(refusal(peer.pull_layout(pull).await.map(drop)), Code::FailedPrecondition);
        let prepare =
            lp::PrepareRequest { from: me.clone(), ring_id: other.clone(), target: 2, ballot: None };
        assert_eq!(refusal(peer.prepare(prepare).await.map(drop)), Code::FailedPrecondition);
        let short = peer.gossip(gossip(&Bytes::from_static(b"short"))).await.unwrap_err();
        assert_eq!(short.code(), Code::InvalidArgument, "{short}");
        let install = lp::InstallRequest { from: me.clone(), layout: None, succeeds_ring_id: Bytes::new() };
        assert_eq!(peer.install(install).await.unwrap_err().code(), Code::InvalidArgument);
        let join = lp::JoinRequest { ring_name: "other".into(), ..lp::JoinRequest::default() };
        assert_eq!(
            peer.join(join).await.unwrap_err().code(),
            Code::InvalidArgument,
            "a join without a member"
        );
    });
    still_serves(&rig, &nodes[0]);
}

/// What a node, or one that says so, tells another's failure detector to be known to it.
fn greeting(id: NodeId, generation: Generation, to: NodeId) -> Bytes {
    let anywhere = "127.0.0.1:1".parse().unwrap();
    let mut gossip = Gossip::new(Identity::new(id, generation, &anywhere), 1);
    gossip.greet(to, &anywhere);
    gossip.errands().packets.remove(0).bytes
}

#[test]
fn strangers_do_not_keep_the_ring_from_noticing_who_is_dead() {
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let status = rig.settled(&nodes);
    let id_at = |address: &String| {
        let node = status.nodes.iter().find(|node| node.address == *address).unwrap();
        convert::node_id(&node.id).unwrap()
    };
    let ids: Vec<NodeId> = addresses(&nodes).iter().map(id_at).collect();
    let mut peer = LocationPeerClient::new(connect(&rig, &nodes[0]));
    let mut call = |from: NodeId, packets| {
        let (from, ring_id) = (id_bytes(from.0), status.ring_id.clone());
        let request = GossipRequest {
            from,
            ring_id,
            epoch: status.epoch,
            generation: u64::MAX,
            packets,
            ..Default::default()
        };
        rig.wait(peer.gossip(request)).unwrap();
    };
    for _ in 0..20 {
        let packets = (0..500).map(|_| greeting(NodeId(rand::random()), 1, ids[0])).collect();
        call(NodeId(rand::random()), packets);
    }
    // Nor does a member that lives have a later life, whoever says so.
    let later = greeting(ids[1], 1_000_000, ids[0]);
    call(NodeId(rand::random()), vec![later.clone()]);
    call(ids[1], vec![later]);
    let mut dead = nodes.pop().unwrap();
    dead.kill();
    rig.sees_down(&nodes[0].address(), &dead.address());
    rig.sees_down(&nodes[1].address(), &dead.address());
    nodes.iter_mut().for_each(Node::still_runs);
    nodes.push(dead.start_again());
    rig.settled(&nodes);
}

/// Messages as the bytes that they are.
#[derive(Default, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

/// How often all methods get a message of each kind.
const ROUNDS: usize = 25;

/// Every method that takes a message which means something, but those that end the node.
const METHODS: [&str; 20] = [
    "/thrifty.location.v1.Location/GetLayout",
    "/thrifty.location.v1.Location/Locate",
    "/thrifty.location.v1.Location/Status",
    "/thrifty.location.v1.Location/Watch",
    "/thrifty.location.v1.Location/Remove",
    "/thrifty.location.v1.LocationPeer/Probe",
    "/thrifty.location.v1.LocationPeer/Join",
    "/thrifty.location.v1.LocationPeer/Gossip",
    "/thrifty.location.v1.LocationPeer/PullLayout",
    "/thrifty.location.v1.LocationPeer/Prepare",
    "/thrifty.location.v1.LocationPeer/Accept",
    "/thrifty.location.v1.LocationPeer/Install",
    "/thrifty.store.v1.Store/Put",
    "/thrifty.store.v1.Store/Get",
    "/thrifty.store.v1.Store/Delete",
    "/thrifty.store.v1.StorePeer/Link",
    "/thrifty.store.v1.StorePeer/PullSegment",
    "/thrifty.store.v1.StorePeer/CompareDigests",
    "/thrifty.store.v1.StorePeer/ConfirmGarbage",
    "/thrifty.store.v1.StorePeer/ForgetGarbage",
];

/// Sends the bytes of one message, and looks at an answer for a moment if there is one.
pub(crate) async fn send_raw(channel: &Channel, method: &'static str, message: Bytes) {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let mut request = Request::new(tokio_stream::once(message));
    request.set_timeout(Duration::from_millis(500));
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(method);
    let talk = async {
        if let Ok(response) = client.streaming(request, path, Raw).await {
            let _answer_or_error = response.into_inner().message().await;
        }
    };
    let _enough = tokio::time::timeout(Duration::from_millis(500), talk).await;
}

/// Well-formed messages of all kinds, to be spoilt.
fn samples(layout: &thrifty::core::layout::Layout, rng: &mut StdRng) -> Vec<Bytes> {
    use thrifty::wire::store as sp;
    fn bytes(message: &impl prost::Message) -> Bytes {
        message.encode_to_vec().into()
    }
    let (from, ring_id) = (id_bytes(rng.random()), id_bytes(layout.ring.0));
    let to = id_bytes(layout.members[0].id.0);
    let wire = convert::layout_to(layout);
    let ballot = Some(lp::Ballot { round: 3, node: from.clone() });
    let member = lp::Member { id: from.clone(), ..convert::member_to(&layout.members[0]) };
    let questions = vec![
        sp::Question {
            number: 1,
            ask: Some(sp::question::Ask::Read(sp::ReadQuestion {
                epoch: 1,
                key: "k".into(),
                version_only: false,
            })),
        },
        sp::Question {
            number: 2,
            ask: Some(sp::question::Ask::Write(sp::WriteQuestion {
                epoch: 1,
                key: "k".into(),
                record: Some(sp::Record::default()),
                write_back: false,
            })),
        },
        sp::Question {
            number: 3,
            ask: Some(sp::question::Ask::Forward(sp::ForwardedRequest { timeout_ms: 9, request: None })),
        },
    ];
    let hello = Some(sp::LinkHello { from: from.clone(), to: to.clone(), ring_id: ring_id.clone() });
    let segments = vec![sp::SegmentDigest { segment: 70_000, digest: from.clone(), parts: 5, has: vec![9] }];
    vec![
        bytes(&lp::InstallRequest {
            from: from.clone(),
            layout: Some(wire.clone()),
            succeeds_ring_id: Bytes::new(),
        }),
        bytes(&lp::InstallRequest {
            from: from.clone(),
            layout: Some(wire.clone()),
            succeeds_ring_id: ring_id.clone(),
        }),
        bytes(&lp::AcceptRequest { from: from.clone(), ballot: ballot.clone(), layout: Some(wire) }),
        bytes(&lp::PrepareRequest { from: from.clone(), ring_id: ring_id.clone(), target: 2, ballot }),
        bytes(&GossipRequest {
            from: from.clone(),
            ring_id: ring_id.clone(),
            epoch: 7,
            packets: vec![Bytes::from_static(&[1, 2, 3, 255, 255, 255, 255, 255, 255])],
            report: Some(lp::Report {
                installed: 9,
                synced: u64::MAX,
                failed: 1,
                progress: 0,
                leaving: true,
                removals: vec![from.clone()],
                found: 2,
            }),
            join: Some(member),
            all_stop: false,
            ..GossipRequest::default()
        }),
        bytes(&sp::LinkRequest { hello, questions }),
        bytes(&sp::PullSegmentRequest {
            epoch: 1,
            ring_id: ring_id.clone(),
            from: from.clone(),
            segments: segments.clone(),
            ..Default::default()
        }),
        bytes(&sp::ForgetGarbageRequest {
            epoch: layout.epoch,
            ring_id: ring_id.clone(),
            from: from.clone(),
            to,
            garbage: Some(sp::Garbage {
                segment: 3,
                dead: vec![sp::KeyedVersion { key: "k".into(), version: Some(sp::Version::default()) }],
            }),
        }),
        bytes(&sp::CompareDigestsRequest { epoch: 1, ring_id, from, segments, ..Default::default() }),
        bytes(&PutRequest {
            key: "k".into(),
            value: "v".into(),
            options: Some(Options::default()),
            content_type: "t".into(),
            ttl_ms: Some(30_000),
        }),
    ]
}

/// Whole, cut short, with some bytes changed, or nothing but noise.
fn spoilt(sample: &Bytes, rng: &mut StdRng) -> Bytes {
    let mut bytes = sample.to_vec();
    match rng.random_range(0..8) {
        0 => {}
        1 => bytes.truncate(rng.random_range(0..=sample.len())),
        2 => rng.fill_bytes(&mut bytes),
        _ => {
            // Most of what means something stands at the beginning.
            let reach = if rng.random() { bytes.len().min(120) } else { bytes.len() };
            for _ in 0..rng.random_range(1..4) {
                bytes[rng.random_range(0..reach)] = rng.random();
            }
        }
    }
    bytes.into()
}

#[test]
fn no_message_makes_a_server_panic() {
    let rig = Rig::new();
    let node = rig.node("1", &rig.any_port(), &["--bootstrap", "--segments", "16"]);
    rig.settled(std::slice::from_ref(&node));
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let channel = connect(&rig, &node);
    for _ in 0..ROUNDS {
        // What it was told may have put it into another ring by now.
        let layout = rig.layout(&node.address()).unwrap();
        let samples = samples(&layout, &mut rng);
        let work: Vec<_> = METHODS
            .iter()
            .flat_map(|method| samples.iter().map(move |sample| (*method, sample)))
            .map(|(method, sample)| send_raw(&channel, method, spoilt(sample, &mut rng)))
            .collect();
        rig.wait(futures_util::future::join_all(work));
    }
    assert!(rig.status(&node.address()).is_some(), "it does not answer any more");
    // That nothing has panicked is asserted by the rig.
}
