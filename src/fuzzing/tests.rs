use super::*;
use crate::core::ballot::{Ballot, Vote};
use crate::core::collection::Found;
use crate::core::digest::{Digest, PARTS, Parts};
use crate::core::layout::tests::{member, ring_of};
use crate::core::record::{Record, Version};
use crate::core::token::{Segment, Slot, Token};
use crate::core::transition::Report;
use crate::wire::convert::id_bytes;
use std::fs;
use std::path::{Path, PathBuf};

fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(target)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn what_the_fuzzer_kept_breaks_nothing() {
    for (target, run) in TARGETS {
        let kept = [files(&folder("seeds", target)), files(&folder("corpus", target))].concat();
        assert!(kept.len() > 1, "no corpus of {target}");
        for file in kept {
            let bytes = fs::read(&file).unwrap();
            if std::panic::catch_unwind(|| run(&bytes)).is_err() {
                panic!("{target} fails on {}", file.display());
            }
        }
    }
}

/// Regenerate with `THRIFTY_UPDATE=1`. That they change says that the protocol or a format on disk
/// did.
#[test]
fn the_seeds_are_what_this_program_writes() {
    let update = std::env::var_os("THRIFTY_UPDATE").is_some();
    for (target, name, bytes) in seeds() {
        let file = folder("seeds", target).join(name);
        if update {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, &bytes).unwrap();
        }
        assert_eq!(fs::read(&file).unwrap(), bytes, "{}", file.display());
    }
}

type Seed = (&'static str, String, Vec<u8>);

fn seeds() -> Vec<Seed> {
    let ring = ring_of(3, 3, 8);
    let dual = ring.dual(&[member(9)], &BTreeSet::from([NodeId(2)])).unwrap();
    let forced = ring.forced(RingId(7), &BTreeSet::from([NodeId(1)])).unwrap();
    let layouts = [
        ("stable", ring.clone()),
        ("read_new", dual.read_new()),
        ("settled", dual.read_new().settled()),
        ("dual", dual),
        ("forced", forced),
        ("one", ring_of(1, 3, 1)),
    ];
    let of_layouts = layouts.iter().map(|(name, l)| ("layout", (*name).into(), convert::layout_bytes(l)));
    let texts = ["127.0.0.1:9900", "[::1]:1", "host.example:65535", "000000000000000000000000000000FF"];
    let of_texts =
        texts.iter().enumerate().map(|(i, text)| ("text", i.to_string(), text.as_bytes().to_vec()));
    let mut all: Vec<Seed> = of_layouts.chain(of_texts).collect();
    all.extend(peer_seeds(&ring));
    all.extend(store_seeds());
    all.extend(storage_seeds());
    all.extend(state_seeds(&ring));
    all.extend(http_seeds());
    all.extend(gossip_seeds());
    all
}

/// A message after the byte that says which one it is.
fn told(kind: u8, message: &impl Message) -> Vec<u8> {
    let mut bytes = vec![kind];
    message.encode(&mut bytes).unwrap();
    bytes
}

fn peer_seeds(ring: &Layout) -> Vec<Seed> {
    let (from, ring_id) = (id_bytes(3), id_bytes(ring.ring.0));
    let ballot = || Some(convert::ballot_to(Ballot::new(4, NodeId(3))));
    let layout = || Some(convert::layout_to(ring));
    let report = Report {
        installed: 5,
        synced: 4,
        removals: [NodeId(8)].into(),
        found: Found::Full,
        ..Report::default()
    };
    let joiner = convert::member_to(&member(9));
    let gossip = pb::GossipRequest {
        from: from.clone(),
        ring_id: ring_id.clone(),
        epoch: 5,
        packets: vec![Bytes::from_static(b"packet")],
        report: Some(convert::report_to(report)),
        join: Some(joiner.clone()),
        all_stop: true,
        generation: 2,
        suspected: Some(1),
    };
    let join = pb::JoinRequest {
        ring_name: "test".into(),
        kind: 2,
        ring_id: ring_id.clone(),
        member: Some(joiner),
        settings: Some(pb::Settings { replicas: Some(3), segments: Some(8) }),
    };
    let prepare =
        pb::PrepareRequest { from: from.clone(), ring_id: ring_id.clone(), target: 6, ballot: ballot() };
    let accepted = pb::AcceptedProposal { ballot: ballot(), layout: layout() };
    let promise = pb::PrepareResponse {
        epoch: 5,
        promise: Some(pb::Promise { accepted: Some(accepted), down: vec![id_bytes(1)] }),
        refused: ballot(),
        from: from.clone(),
    };
    let accept = pb::AcceptRequest { from: from.clone(), ballot: ballot(), layout: layout() };
    let refusal = pb::AcceptResponse { epoch: 5, accepted: false, refused: ballot(), from: from.clone() };
    let install = pb::InstallRequest { from: from.clone(), layout: layout(), succeeds_ring_id: id_bytes(2) };
    let probed = pb::ProbeResponse {
        seekers: vec!["127.0.0.1:9901".into()],
        elects: true,
        ring_name: "test".into(),
        kind: 2,
        stage: 3,
        ring_id,
        address: "127.0.0.1:9900".into(),
        node_id: from,
        epoch: 5,
        former_ring_ids: vec![id_bytes(2)],
    };
    let all = [
        ("gossip", told(0, &gossip)),
        ("join", told(1, &join)),
        ("prepare", told(2, &prepare)),
        ("promise", told(3, &promise)),
        ("accept", told(4, &accept)),
        ("refusal", told(5, &refusal)),
        ("install", told(6, &install)),
        ("probed", told(7, &probed)),
    ];
    all.into_iter().map(|(name, bytes)| ("peer", name.into(), bytes)).collect()
}

fn record() -> Record {
    Record {
        version: Version { hlc: 77 << 16, node: 3 },
        expires_at_ms: Some(99),
        value: Some(Bytes::from_static(b"apple")),
        content_type: "text/plain".into(),
    }
}

fn store_seeds() -> Vec<Seed> {
    let key = || Bytes::from_static(b"a");
    let of_wire = || Some(convert::record_to(record()));
    let version = || Some(convert::version_to(record().version));
    let options = Some(sp::Options { consistency: 3, fallback_to_one: true });
    let put = sp::PutRequest {
        key: key(),
        value: Bytes::from_static(b"apple"),
        options,
        content_type: "text/plain".into(),
        ttl_ms: Some(30_000),
    };
    let ask = |number, ask| sp::Question { number, ask: Some(ask) };
    let forward =
        sp::ForwardedRequest { timeout_ms: 900, request: Some(forwarded_request::Request::Put(put.clone())) };
    let questions = sp::LinkRequest {
        hello: Some(sp::LinkHello { from: id_bytes(1), to: id_bytes(2), ring_id: id_bytes(3) }),
        questions: vec![
            ask(
                1,
                question::Ask::Write(sp::WriteQuestion {
                    epoch: 5,
                    key: key(),
                    record: of_wire(),
                    write_back: true,
                }),
            ),
            ask(2, question::Ask::Read(sp::ReadQuestion { epoch: 5, key: key(), version_only: true })),
            ask(3, question::Ask::Forward(forward)),
        ],
    };
    let failure = sp::Failure { code: 14, message: "no".into(), outcome_unknown: true };
    let answers = [
        WireAnswer::Accepted(convert::version_to(record().version)),
        WireAnswer::Record(convert::record_to(record())),
        WireAnswer::Record(sp::Record::default()),
        WireAnswer::StaleEpoch(6),
        WireAnswer::Failure(failure),
    ];
    let answers = answers.into_iter().map(|answer| sp::Answer { number: 1, answer: Some(answer) });
    let page = sp::PullSegmentResponse {
        segment: 7,
        records: vec![sp::KeyedRecord { key: key(), record: of_wire() }],
        done: true,
        clock: 78 << 16,
    };
    let pull = sp::PullSegmentRequest {
        epoch: 5,
        ring_id: id_bytes(3),
        from: id_bytes(1),
        segments: vec![sp::SegmentDigest { segment: 7, digest: id_bytes(99), ..Default::default() }],
        to: id_bytes(2),
    };
    let got = sp::GetResponse {
        value: Bytes::from_static(b"apple"),
        version: version(),
        content_type: "text/plain".into(),
        consistency: 2,
        epoch: 5,
        expires_at_ms: Some(99),
    };
    let confirm = sp::ConfirmGarbageRequest {
        epoch: 5,
        ring_id: id_bytes(3),
        from: id_bytes(1),
        to: id_bytes(2),
        garbage: Some(convert::garbage_to(Segment(7), &[(key(), record().version)])),
    };
    let compared = sp::CompareDigestsResponse {
        differing: vec![7],
        parts: vec![convert::parts_to(&Parts([Digest(99); PARTS]))],
    };
    let segments = SegmentCount::new(64).unwrap();
    let cursor = convert::Cursor { segment: segments.segment(Token::of(b"a")), after: key() };
    let page_token = convert::page_token_to(&cursor);
    let scan = sp::ScanRequest {
        prefix: key(),
        page_token: page_token.clone(),
        limit: 7,
        keys_only: true,
        local: true,
        options,
    };
    let get = || sp::GetRequest { key: key(), options, local: true };
    let items = [batch_item::Item::Put(put.clone()), batch_item::Item::Get(get())];
    let items = items.map(|item| sp::BatchItem { item: Some(item) }).into();
    let all = [
        ("put", told(0, &put)),
        ("get", told(1, &sp::GetRequest { key: key(), options, local: false })),
        ("delete", told(2, &sp::DeleteRequest { key: key(), options })),
        ("questions", told(3, &questions)),
        ("answers", told(4, &sp::LinkResponse { answers: answers.collect() })),
        ("page", told(5, &page)),
        ("pull", told(6, &pull)),
        ("got", told(7, &got)),
        ("confirm", told(8, &confirm)),
        ("compared", told(9, &compared)),
        ("page_token", [&[10], &page_token[..]].concat()),
        ("scan", told(11, &scan)),
        ("batch", told(12, &sp::BatchRequest { items })),
    ];
    all.into_iter().map(|(name, bytes)| ("store", name.into(), bytes)).collect()
}

fn storage_seeds() -> Vec<Seed> {
    let of_record = |record: &Record| {
        let mut bytes = vec![0];
        codec::encode(record, &mut bytes);
        bytes
    };
    let slot = Slot { segment: Segment(7), acquired: 5 };
    let all = [
        ("record", of_record(&record())),
        ("tombstone", of_record(&Record::tombstone(record().version))),
        ("key", [&[1], &disk::stored_key(slot, b"a")[..]].concat()),
        ("blob", [&[2], &vault::header(b"blob").unwrap()[..], b"blob"].concat()),
    ];
    all.into_iter().map(|(name, bytes)| ("storage", name.into(), bytes)).collect()
}

fn state_seeds(ring: &Layout) -> Vec<Seed> {
    let ballot = Ballot::new(4, NodeId(3));
    let next = ring.dual(&[], &BTreeSet::from([NodeId(2)])).unwrap();
    let vote = Vote { promised: ballot, accepted: Some((ballot, Arc::new(next))) };
    let kept = |save: &dyn Fn(&dyn Vault) -> Result<(), StorageError>| {
        let vault = MemoryVault::new();
        vault.save("identity", format!("{} 6\n", NodeId(3)).as_bytes()).unwrap();
        save(&vault).unwrap();
        let blobs = state::BLOBS.map(|name| vault.load(name).unwrap().unwrap_or_default());
        blobs.iter().flat_map(|blob| [&(blob.len() as u16).to_be_bytes(), &blob[..]].concat()).collect()
    };
    let all: [(&str, Vec<u8>); 3] = [
        (
            "member",
            kept(&|vault| {
                state::save_layout(vault, ring)?;
                state::save_vote(vault, ring.epoch + 1, &vote)?;
                state::save_clock(vault, 77)
            }),
        ),
        ("left", kept(&|vault| state::save_departure(vault, ring))),
        ("removed", kept(&|vault| state::save_removal(vault, ring))),
    ];
    all.into_iter().map(|(name, bytes)| ("state", name.into(), bytes)).collect()
}

fn http_seeds() -> Vec<Seed> {
    let all = [
        ("get", "GET /v1/kv/a%20b?consistency=one\nhost: localhost:9900\n\n"),
        ("put", "PUT /v1/kv/a/b\nhost: 127.0.0.1\ncontent-type: text/plain\n\napple"),
        ("delete", "DELETE /v1/kv/a?consistency=all\nhost: [::1]:9900\norigin: http://[::1]:9900\n\n"),
        ("absolute", "GET http://127.0.0.1:9900/v1/kv/a\n\n"),
        ("elsewhere", "GET /livez\nhost: evil.example\n\n"),
        ("ready", "GET /readyz\nhost: 10.0.0.7\n\n"),
        ("condition", "GET /v1/kv/a%ff\nhost: [::1]\nif-none-match: \"5-1\", W/\"6\"\nif-match: *\n\n"),
        ("conditional", "PUT /v1/kv/a?ttl=30s&fallback=one\nhost: [::1]\nif-none-match: *\n\napple"),
        ("coded", "POST /v1/kv/a\nhost: [::1]\ncontent-encoding: gzip\n\napple"),
        ("nameless", "GET /v1/kv/a\nsec-fetch-site: cross-site\n\n"),
        ("image", "GET /v1/kv/a\nhost: localhost\nsec-fetch-site: cross-site\n\n"),
        (
            "list",
            "GET /v1/kv?prefix=a%2f&limit=10&page_token=AQA_&values=true&local=true\nhost: localhost\n\n",
        ),
        ("none", "POST /v1/batch?consistency=one\nhost: localhost\n\n{\"items\":[]}"),
        (
            "batch",
            "POST /v1/batch\nhost: localhost\n\n{\"items\":[{\"put\":{\"key\":\"a\",\"value_base64\":\"//77\",\
             \"ttl\":\"30s\",\"content_type\":\"t\"}},{\"get\":{\"key_base64\":\"/w==\"}},\
             {\"delete\":{\"key\":\"\\u00e9\"}}]}",
        ),
        ("status", "GET /v1/status\nhost: localhost\n\n"),
        ("ring", "HEAD /v1/ring\nhost: localhost\n\n"),
    ];
    all.into_iter().map(|(name, text)| ("http", name.into(), text.into())).collect()
}

fn gossip_seeds() -> Vec<Seed> {
    let identity = |id: u16| {
        let address = format!("127.0.0.1:{id}").parse().unwrap();
        Identity::new(NodeId(id.into()), 1, &address)
    };
    let mut two = Gossip::new(identity(2), 7);
    two.greet(NodeId(1), &"127.0.0.1:1".parse().unwrap());
    let mut packets: Vec<Bytes> = two.errands().packets.into_iter().map(|packet| packet.bytes).collect();
    two.farewell();
    packets.extend(two.errands().packets.into_iter().map(|packet| packet.bytes));
    let seed = packets.iter().flat_map(|p| [&(p.len() as u16).to_be_bytes(), &p[..]].concat()).collect();
    vec![("gossip", "greeting".into(), seed)]
}
