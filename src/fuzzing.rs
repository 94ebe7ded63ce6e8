//! What the fuzzer calls: one function for each family of bytes that come from outside.
//!
//! Each takes any bytes, and panics where a decoder breaks its promise: it refuses, or it gives what
//! is encoded and decoded again without change, and what the rest of the program can rely on. `fuzz/`
//! runs them under libFuzzer; the tests below run them on the committed corpus. Not part of the
//! library's interface.

use crate::cache::CacheConfig;
use crate::core::layout::{BadLayout, Layout, Phase, Replicas};
use crate::core::node::{Address, NodeId, RingId};
use crate::core::replica_request::Answer;
use crate::core::token::SegmentCount;
use crate::gateway::dialects::Dialect;
use crate::gateway::gate::{Gate, Wanted};
use crate::gateway::native;
use crate::location::agent;
use crate::location::gossip::{Gossip, Identity};
use crate::location::state::{self, NodeState};
use crate::location::{LocationConfig, LocationError};
use crate::storage::memory::MemoryEngine;
use crate::storage::vault::{self, MemoryVault, Vault};
use crate::storage::{StorageError, codec, disk};
use crate::store::{self, Store, routing};
use crate::wire::convert::{self, Malformed};
use crate::wire::store::{self as sp, answer::Answer as WireAnswer, batch_item, forwarded_request, question};
use crate::wire::{location as pb, status};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderName, Request, StatusCode, Uri, header};
use bytes::Bytes;
use futures_util::FutureExt;
use prost::Message;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tonic::codegen::Service;

/// A family's name, which is that of its target and of its corpus, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 8] = [
    ("layout", layout),
    ("peer", peer),
    ("store", store_messages),
    ("storage", storage),
    ("state", node_state),
    ("text", text),
    ("http", http),
    ("gossip", gossip),
];

/// By the clock of the node that takes it in.
const NOW_MS: u64 = 1_800_000_000_000;

/// What was decoded is encoded and decoded to the same again.
fn survives<M: Message + Default, T: Clone + PartialEq + Debug>(
    value: &T,
    encode: impl Fn(T) -> M,
    decode: impl Fn(M) -> Result<T, Malformed>,
) {
    let bytes = encode(value.clone()).encode_to_vec();
    let again = M::decode(&bytes[..]).map(decode);
    assert_eq!(again.as_ref(), Ok(&Ok(value.clone())));
}

/// Layouts, as they are sent and kept.
pub fn layout(bytes: &[u8]) {
    let Ok(layout) = convert::layout_from_bytes(bytes) else { return };
    assert_eq!(convert::layout_from_bytes(&convert::layout_bytes(&layout)).as_ref(), Ok(&layout));
    // What follows is for any layout; it is quick enough for small ones only.
    if layout.segments.get() <= 16 && layout.members.len() <= 8 {
        relied_on(&layout);
    }
}

/// Asks a layout all that a node asks one that it was sent.
fn relied_on(layout: &Layout) {
    let all: BTreeSet<NodeId> = layout.ids().collect();
    for segment in layout.segments.all() {
        assert!(!layout.read_owners(segment).is_empty());
        assert!(layout.live_sets(segment).len() <= 2);
        assert_eq!(layout.coordinators(segment).len(), layout.read_owners(segment).len());
    }
    for &id in &all {
        let _counted = (layout.slots(id), layout.pulls(id));
    }
    let _counted = (layout.voters(), layout.shares(), layout.all_pullers(), layout.has_majority(|_| true));
    let _spare = layout.may_lose(|_| true);
    assert!(layout.can_be_gathered(|_| true) && layout.old_reads_are_over(&all));
    let one = all.first().copied().into_iter().collect();
    let followers = match layout.phase {
        Phase::Stable => vec![layout.dual(&[], &one)],
        Phase::Dual => vec![Some(layout.read_new()), Some(layout.aborted())],
        Phase::ReadNew => vec![Some(layout.settled())],
    };
    let fresh = (0..).map(RingId).find(|ring| *ring != layout.ring && !layout.succeeds(*ring));
    let forced = fresh.and_then(|ring| layout.forced(ring, &one));
    for next in followers.into_iter().flatten().chain(forced) {
        let valid = next.validate();
        let last = valid == Err(BadLayout("its epoch is out of range"));
        assert!(valid.is_ok() || last, "{valid:?}: {next:?}");
    }
}

/// Messages between members, and what clients send to the location service: the first byte says
/// which.
pub fn peer(bytes: &[u8]) {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    let _refused = match kind % 8 {
        0 => decoded(bytes, gossip_request),
        1 => decoded(bytes, join_request),
        2 => {
            decoded(bytes, |m: pb::PrepareRequest| ids([&m.ring_id, &m.from]).and_then(|()| ballot(m.ballot)))
        }
        3 => decoded(bytes, prepare_response),
        4 => decoded(bytes, |m: pb::AcceptRequest| {
            ids([&m.from]).and_then(|()| ballot(m.ballot))?;
            convert::layout(m.layout.ok_or(Malformed::Missing("the layout"))?).map(drop)
        }),
        5 => decoded(bytes, |m: pb::AcceptResponse| ids([&m.from]).and_then(|()| ballot(m.refused))),
        6 => decoded(bytes, |m: pb::InstallRequest| {
            ids([&m.from, &m.succeeds_ring_id])?;
            convert::layout(m.layout.ok_or(Malformed::Missing("the layout"))?).map(drop)
        }),
        _ => decoded(bytes, |m: pb::ProbeResponse| {
            ids([&m.ring_id, &m.node_id])?;
            ids(m.former_ring_ids.iter())?;
            convert::kind(m.kind).map(drop)
        }),
    };
}

fn decoded<M: Message + Default>(
    bytes: &[u8],
    check: impl Fn(M) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    check(M::decode(bytes).map_err(|_error| Malformed::Protobuf)?)
}

/// Of nodes and of rings: they are alike.
fn ids<'a>(ids: impl IntoIterator<Item = &'a Bytes>) -> Result<(), Malformed> {
    ids.into_iter().try_for_each(|bytes| {
        let id = convert::node_id(bytes)?;
        assert_eq!(convert::ring_id(bytes), Ok(RingId(id.0)));
        assert_eq!(convert::id_bytes(id.0), bytes);
        Ok(())
    })
}

fn ballot(ballot: Option<pb::Ballot>) -> Result<(), Malformed> {
    let ballot = convert::ballot(ballot)?;
    survives(&ballot, convert::ballot_to, |again| convert::ballot(Some(again)));
    Ok(())
}

fn member(member: pb::Member) -> Result<(), Malformed> {
    let member = convert::member(member)?;
    survives(&member, |member| convert::member_to(&member), convert::member);
    Ok(())
}

fn gossip_request(request: pb::GossipRequest) -> Result<(), Malformed> {
    ids([&request.ring_id, &request.from])?;
    if let Some(report) = request.report {
        survives(&convert::report(report)?, convert::report_to, convert::report);
    }
    request.join.map_or(Ok(()), member)
}

fn join_request(request: pb::JoinRequest) -> Result<(), Malformed> {
    let kind = convert::kind(request.kind)?;
    assert_eq!(convert::kind(convert::kind_to(kind)), Ok(kind));
    if let Some(number) = request.settings.unwrap_or_default().replicas {
        let replicas = convert::replicas(number)?;
        assert_ne!(replicas, Replicas::Count(0));
        assert_eq!(convert::replicas_to(replicas), number);
    }
    member(request.member.ok_or(Malformed::Missing("the member"))?)
}

fn prepare_response(response: pb::PrepareResponse) -> Result<(), Malformed> {
    ballot(response.refused)?;
    let Some(promise) = response.promise else { return Ok(()) };
    let accepted = convert::accepted(promise.accepted)?;
    assert_eq!(convert::accepted(convert::accepted_to(&accepted)), Ok(accepted));
    ids(promise.down.iter())
}

/// Requests, records, keys and versions, from clients and between owners: the first byte says
/// which message it is.
pub fn store_messages(bytes: &[u8]) {
    use forwarded_request::Request;
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    // Those above came later, and what was found before keeps its meaning.
    let kind = if kind < 13 { kind } else { kind % 8 };
    let _refused = match kind {
        0 => decoded(bytes, |put: sp::PutRequest| request(&Request::Put(put))),
        1 => decoded(bytes, |get: sp::GetRequest| request(&Request::Get(get))),
        2 => decoded(bytes, |delete: sp::DeleteRequest| request(&Request::Delete(delete))),
        3 => decoded(bytes, link_request),
        4 => decoded(bytes, |link: sp::LinkResponse| {
            link.answers.into_iter().filter_map(|answer| answer.answer).for_each(link_answer);
            Ok(())
        }),
        5 => decoded(bytes, |page: sp::PullSegmentResponse| {
            convert::segment(page.segment)?;
            convert::stamp(page.clock, NOW_MS)?;
            let keyed = page.records.into_iter();
            keyed.map(|keyed| (keyed.key, keyed.record)).try_for_each(|(key, of)| keyed_record(&key, of))
        }),
        6 => decoded(bytes, |pull: sp::PullSegmentRequest| {
            ids([&pull.ring_id, &pull.from, &pull.to])?;
            let digests =
                |s: &sp::SegmentDigest| Ok(_ = (convert::segment(s.segment)?, convert::digest(&s.digest)?));
            pull.segments.iter().try_for_each(digests)
        }),
        8 => decoded(bytes, |confirm: sp::ConfirmGarbageRequest| {
            ids([&confirm.ring_id, &confirm.from, &confirm.to])?;
            let garbage = convert::garbage(confirm.garbage.ok_or(Malformed::Missing("what to confirm"))?)?;
            survives(&garbage, |(segment, dead)| convert::garbage_to(segment, &dead), convert::garbage);
            Ok(())
        }),
        9 => decoded(bytes, |compared: sp::CompareDigestsResponse| {
            compared.differing.into_iter().try_for_each(|segment| convert::segment(segment).map(drop))?;
            compared.parts.iter().try_for_each(|bytes| {
                let parts = convert::parts(bytes)?;
                assert_eq!(convert::parts_to(&parts), bytes);
                Ok(())
            })
        }),
        10 => page_token(Bytes::copy_from_slice(bytes)),
        11 => decoded(bytes, |scan: sp::ScanRequest| {
            convert::prefix(scan.prefix)?;
            convert::consistency(scan.options.unwrap_or_default().consistency)?;
            page_token(scan.page_token)
        }),
        12 => decoded(bytes, |batch: sp::BatchRequest| {
            let items = batch.items.into_iter().filter_map(|item| item.item);
            items.map(single).try_for_each(|item| request(&item))
        }),
        _ => decoded(bytes, |got: sp::GetResponse| {
            let answer = native::found(got);
            assert_eq!(answer.status(), StatusCode::OK);
            Ok(())
        }),
    };
}

/// What passes is of one ring, in which it says where to go on.
fn page_token(token: Bytes) -> Result<(), Malformed> {
    let mut refused = Ok(());
    for segments in [1, 64, 65_536].into_iter().flat_map(SegmentCount::new) {
        match convert::page_token(&token, segments) {
            Ok(cursor) => {
                assert!(cursor.segment.index() < segments.get());
                assert_eq!(convert::page_token_to(&cursor), token);
            }
            Err(malformed) => refused = Err(malformed),
        }
    }
    refused
}

fn single(item: batch_item::Item) -> forwarded_request::Request {
    match item {
        batch_item::Item::Put(put) => forwarded_request::Request::Put(put),
        batch_item::Item::Get(get) => forwarded_request::Request::Get(get),
        batch_item::Item::Delete(delete) => forwarded_request::Request::Delete(delete),
    }
}

/// What passes has a key and a value that can be stored.
fn request(request: &forwarded_request::Request) -> Result<(), Malformed> {
    let Ok(consistency) = routing::check(request) else { return Ok(()) };
    assert_eq!(convert::consistency(convert::consistency_to(consistency)), Ok(consistency));
    Ok(())
}

fn keyed_record(key: &Bytes, record: Option<sp::Record>) -> Result<(), Malformed> {
    convert::key(key)?;
    let taken_in = |record| convert::record(record, NOW_MS);
    let record = taken_in(record.ok_or(Malformed::Missing("a record"))?)?;
    survives(&record, convert::record_to, taken_in);
    // What comes over the wire can be stored, and is read back as it was.
    let mut stored = Vec::new();
    codec::encode(&record, &mut stored);
    assert_eq!(stored.len(), codec::encoded_len(&record));
    let again = codec::parse(&stored).and_then(codec::Parts::to_record);
    assert_eq!(again.ok(), Some(record));
    Ok(())
}

fn link_request(link: sp::LinkRequest) -> Result<(), Malformed> {
    if let Some(hello) = link.hello {
        ids([&hello.from, &hello.to, &hello.ring_id])?;
    }
    link.questions.into_iter().filter_map(|question| question.ask).try_for_each(|ask| match ask {
        question::Ask::Write(write) => keyed_record(&write.key, write.record),
        question::Ask::Read(read) => convert::key(&read.key),
        question::Ask::Page(page) => convert::stretch(page).map(|_| ()),
        question::Ask::Forward(forward) => forward.request.as_ref().map_or(Ok(()), request),
    })
}

fn link_answer(answer: WireAnswer) {
    if let WireAnswer::Failure(failure) = answer {
        let unknown = failure.outcome_unknown;
        assert!(!(unknown && status::nothing_done(&status::of_failure(failure))));
        return;
    }
    let answer = store::answer_from_wire(answer, NOW_MS);
    if answer != Answer::Silence {
        assert_eq!(store::answer_from_wire(store::answer_to_wire(answer.clone()), NOW_MS), answer);
    }
}

/// What lies on disk: records, stored keys and the vault's files; the first byte says which.
pub fn storage(bytes: &[u8]) {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    match kind % 3 {
        0 => match codec::parse(bytes).and_then(codec::Parts::to_record) {
            Ok(record) => {
                let mut again = Vec::new();
                codec::encode(&record, &mut again);
                assert_eq!((again.len(), &again[..]), (codec::encoded_len(&record), bytes));
            }
            Err(error) => assert!(matches!(error, StorageError::Corrupt { .. }), "{error}"),
        },
        1 => match disk::split_stored_key(bytes) {
            Ok((slot, key)) => assert_eq!(disk::stored_key(slot, key), bytes),
            Err(error) => assert!(matches!(error, StorageError::Corrupt { .. }), "{error}"),
        },
        _ => {
            let whole = |blob: &[u8]| vault::header(blob).map(|header| [&header, blob].concat()).ok();
            if let Ok(blob) = vault::unwrap(bytes) {
                assert_eq!(whole(blob).as_deref(), Some(bytes));
            }
            // No fuzzer guesses a checksum: the way to behind it.
            let file = whole(bytes).unwrap_or_default();
            assert_eq!(vault::unwrap(&file), Ok(bytes));
        }
    }
}

/// A node's own state: each blob is a length of two bytes and as many bytes, 0 for none.
pub fn node_state(mut bytes: &[u8]) {
    let vault: Arc<dyn Vault> = Arc::new(MemoryVault::new());
    for name in state::BLOBS {
        let Some((length, rest)) = bytes.split_first_chunk::<2>() else { break };
        let (blob, rest) = rest.split_at(rest.len().min(u16::from_be_bytes(*length).into()));
        bytes = rest;
        if !blob.is_empty() {
            assert!(vault.save(name, blob).is_ok());
        }
    }
    let _kind = state::peek(&*vault);
    let first = match NodeState::open(vault.clone()) {
        Ok(first) => first,
        Err(error) => {
            assert!(matches!(error, LocationError::Damaged(_)), "{error}");
            return;
        }
    };
    let Ok(again) = NodeState::open(vault) else { panic!("what was opened can't be opened again") };
    if first.layout.is_some() {
        assert_eq!((again.id, again.generation), (first.id, first.generation + 1));
    }
    assert_eq!(again.layout, first.layout);
    assert_eq!((again.left, again.vote, again.clock_mark), (first.left, first.vote, first.clock_mark));
}

/// Texts that people and members write: addresses and ids.
pub fn text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.as_str(), text);
        assert!(text.len() <= Address::MAX_BYTES && text.ends_with(|c: char| c.is_ascii_digit()));
        assert_eq!(address.to_string().parse::<Address>().as_ref(), Ok(&address));
        // What is dialled is what it says.
        let Ok(uri) = format!("http://{text}").parse::<Uri>() else { panic!("{text} can't be dialled") };
        assert_eq!((uri.port_u16(), uri.path()), (Some(address.port()), "/"));
        assert_eq!(uri.host().map(str::len), text.rfind(':'));
    }
    if let Ok(id) = text.parse::<NodeId>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
}

/// HTTP requests to a node that is in no ring yet, and to gates that have found none: method and path on
/// the first line, then headers, an empty line and the body.
pub fn http(bytes: &[u8]) {
    thread_local! {
        static ROUTES: Vec<Router> = in_no_ring();
        // For the gateway's timeouts.
        static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    }
    for mut routes in ROUTES.with(Clone::clone) {
        let Some(request) = http_request(bytes) else { return };
        let (local, nameless) = (is_local(&request), host_of(&request).is_empty());
        let answer = async { routes.call(request).now_or_never() };
        let Some(Ok(response)) = RUNTIME.with(|runtime| runtime.block_on(answer)) else {
            panic!("without a ring all is answered at once");
        };
        match response.status() {
            StatusCode::FORBIDDEN => {}
            StatusCode::BAD_REQUEST if nameless => {}
            StatusCode::OK
            | StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNSUPPORTED_MEDIA_TYPE
            | StatusCode::NOT_IMPLEMENTED
            | StatusCode::SERVICE_UNAVAILABLE => assert!(local, "a page of elsewhere was let in"),
            status => panic!("{status}"),
        }
    }
}

fn text_of(request: &Request<Body>, name: HeaderName) -> Option<&str> {
    request.headers().get(name).map(|value| value.to_str().unwrap_or("?"))
}

fn host_of(request: &Request<Body>) -> &str {
    let named = text_of(request, header::HOST).or(request.uri().authority().map(|a| a.as_str()));
    named.unwrap_or_default()
}

/// A rough likeness of what the gateway must make sure of.
fn is_local(request: &Request<Body>) -> bool {
    let host = host_of(request);
    let letters = |c: char| c.is_ascii_hexdigit() || ".:[]".contains(c);
    let named = !host.is_empty() && host.chars().all(letters);
    let address = named || host.to_ascii_lowercase().starts_with("localhost");
    let site = text_of(request, HeaderName::from_static("sec-fetch-site")).unwrap_or("none");
    let origin = text_of(request, header::ORIGIN);
    address && !site.contains("cross") && origin.is_none_or(|origin| origin.ends_with(host))
}

fn http_request(bytes: &[u8]) -> Option<Request<Body>> {
    let mut lines = bytes.splitn(3, |&byte| byte == b'\n');
    let (method, uri) = std::str::from_utf8(lines.next()?).ok()?.split_once(' ')?;
    let mut request = Request::builder().method(method).uri(uri);
    let mut rest = lines.next().map(|_| &bytes[method.len() + uri.len() + 2..]).unwrap_or_default();
    while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { break };
        request = request.header(&line[..colon], line[colon + 1..].trim_ascii());
    }
    request.body(Body::from(rest.to_vec())).ok()
}

fn in_no_ring() -> Vec<Router> {
    let Ok(state) = NodeState::open(Arc::new(MemoryVault::new())) else {
        unreachable!("memory doesn't fail")
    };
    let store = Store::new(&state, Arc::new(MemoryEngine::new()), None, CacheConfig::default());
    let address = Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], 1)));
    let config = LocationConfig::default();
    let (location, _never_runs) = agent::start(address, config, state, false, Arc::new(store.clone()));
    store.attach(location);
    let gate = Gate::new(Wanted {
        peers: Vec::new(),
        ring: None,
        timeout: Duration::ZERO,
        cache: CacheConfig::default(),
    });
    let gates = Dialect::ALL.map(|dialect| dialect.routes(gate.clone()));
    std::iter::once(native::routes(store)).chain(gates).collect()
}

/// Packets of the failure detector, each with its length in two bytes.
pub fn gossip(mut bytes: &[u8]) {
    let address = Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], 1)));
    let mut gossip = Gossip::new(Identity::new(NodeId(1), 1, &address), 7);
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let (packet, rest) = rest.split_at(rest.len().min(u16::from_be_bytes(*length).into()));
        bytes = rest;
        gossip.receive(NodeId(2), packet, |_| true);
        for (_, timer) in gossip.errands().timers {
            gossip.timer(timer);
        }
        let _packets = gossip.errands();
    }
    assert!(gossip.seen().len() <= 1 << 16);
}

#[cfg(test)]
mod tests;
