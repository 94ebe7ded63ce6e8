//! Catching up: owners of a segment compare what they hold, and each pulls what it lacks.
//!
//! In a Stable layout a node compares the digests of its segments with each other owner; where they
//! differ, it lists what it has of the parts that differ, and the other sends the rest. What
//! travels is in proportion to what differs: some kilobytes where nothing does. A write that is on its
//! way looks like a difference and is pulled for nothing, which harms nobody, since writes are
//! merged.
//!
//! It runs every ten seconds, and soon after this node has come to a new Stable layout or is back among
//! owners it was apart from. Each node only pulls: what it has and others lack is their
//! business, so that there is one direction to get right.

use super::Store;
use super::handoff::{self, Clients};
use crate::core::digest::{PartSet, fingerprint, part_of};
use crate::core::layout::{Layout, Phase};
use crate::core::node::{Liveness, NodeId};
use crate::core::token::{Segment, Token};
use crate::location::Progress;
use crate::news;
use crate::wire::convert::{self, id_bytes};
use crate::wire::status;
use crate::wire::store::{CompareDigestsRequest, RepairResponse, SegmentDigest};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Status};

/// How long a node is content with what it found.
const EVERY: Duration = Duration::from_secs(10);

/// How often a node looks whether there is a reason to compare sooner.
const LOOK: Duration = Duration::from_millis(500);

/// Fingerprints in one call, 8 bytes each.
const LISTED_PER_CALL: usize = 256 << 10;

/// Bytes a second that a node lists and takes in, so that its clients hardly notice: a fraction of what
/// a disk and a network of the last ten years do.
const BYTES_PER_SECOND: f64 = 64e6;

/// How far a round has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Comparisons of a segment with one other owner that were made.
    pub compared: u64,
    /// Those to make.
    pub to_compare: u64,
    /// Those that found something else.
    pub differing: u64,
    /// Keys with a value that was newer than what was here; what was deleted elsewhere comes on top.
    pub keys: u64,
    /// Bytes that were listed and pulled.
    pub bytes: u64,
    /// Owners that could not be compared with.
    pub unreachable: u64,
}

/// Compares again and again, for as long as the node runs.
pub(super) async fn run(store: Store) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reasons = Reasons::default();
    loop {
        tick.tick().await;
        let Some(layout) = store.location().layout().filter(|layout| layout.phase == Phase::Stable) else {
            continue;
        };
        let away = |id: &NodeId| store.location().liveness(*id) == Liveness::Down;
        let away: BTreeSet<NodeId> = layout.ids().filter(away).collect();
        // What was sent on the connection to a node that is cut off may take long to arrive even when it
        // is back.
        if let Ok(mut clients) = store.0.repairing.try_lock() {
            clients.retain(|id| !away.contains(&id));
        }
        if !reasons.due(&layout, away, store.now()) {
            continue;
        }
        match round(&store, &mut |_| ()).await {
            Ok(tally) if tally.keys > 0 => {
                news!("caught up on {} keys: {} KiB compared and pulled", tally.keys, tally.bytes >> 10);
            }
            Ok(_) => {}
            Err(status) => tracing::debug!(%status, "comparing with other owners was given up"),
        }
        reasons.compared(store.now());
    }
}

/// Why to compare now.
#[derive(Debug, Default)]
struct Reasons {
    epoch: u64,
    away: BTreeSet<NodeId>,
    /// When it compared itself last.
    last: Option<Duration>,
    /// When it does so next, if nothing comes up.
    next: Duration,
}

impl Reasons {
    /// Whether time is up, the layout is new, or this node was apart from most others and is no more.
    /// Where others were apart, they go first, and by the next time they have caught up: until then
    /// everything that they lack would look as if this node lacked it. However often that happens,
    /// they are waited for no longer than once.
    fn due(&mut self, layout: &Layout, away: BTreeSet<NodeId>, now: Duration) -> bool {
        let met_again = self.away.iter().any(|id| layout.is_member(*id) && !away.contains(id));
        let back = met_again && 2 * self.away.len() >= layout.members.len();
        if met_again && !back {
            self.next = self.last.map_or(now, |last| (now + EVERY).min(last + 2 * EVERY));
        }
        // At a collecting layout owners forget, one a moment before the other.
        let new = layout.epoch != self.epoch && !layout.collects();
        self.away = away;
        self.epoch = layout.epoch;
        layout.members.len() > 1 && (new || back || now >= self.next)
    }

    fn compared(&mut self, now: Duration) {
        self.last = Some(now);
        self.next = now + EVERY;
    }
}

/// Compares all segments with all their owners that answer, pulls what is lacking here, and makes it
/// durable. One round at a time.
pub(super) async fn round(store: &Store, said: &mut (dyn FnMut(Tally) + Send)) -> Result<Tally, Status> {
    let mut clients = store.0.repairing.lock().await;
    let layout = store.layout()?;
    if layout.phase != Phase::Stable {
        return Err(status::unavailable("the ring is changing: owners are compared when it is done"));
    }
    let mut shared: BTreeMap<NodeId, Vec<Segment>> = BTreeMap::new();
    let me = store.location().me();
    for segment in layout.segments.all() {
        let owners = layout.read_owners(segment);
        if owners.contains(&me) {
            for other in owners.into_iter().filter(|id| *id != me) {
                shared.entry(other).or_default().push(segment);
            }
        }
    }
    let to_compare = shared.values().map(|segments| segments.len() as u64).sum();
    clients.retain(|id| shared.contains_key(&id));
    let tally = Tally { to_compare, ..Tally::default() };
    let mut round = Round { store, layout: &layout, clients: &mut clients, tally };
    for (other, segments) in shared {
        let up = store.location().liveness(other) != Liveness::Down;
        let compared = match up {
            true => round.compare_all(other, &segments, said).await,
            false => Err(Status::unavailable("it is down")),
        };
        if let Err(status) = compared {
            let now = store.layout()?;
            if (now.ring, now.epoch) != (layout.ring, layout.epoch) {
                return Err(status); // the ring has changed under the round
            }
            tracing::debug!(node = %other, %status, "an owner could not be compared with");
            round.tally.unreachable += 1;
            // What failed may be the connection. The next is a new one.
            round.clients.retain(|id| id != other);
        }
    }
    let tally = round.tally;
    // What was pulled may be deletes alone.
    if tally.differing > 0 || tally.keys > 0 {
        store.keep_pulled().await?;
    }
    Ok(tally)
}

/// How a round that somebody asked for gets on.
pub(super) type Progressing = Pin<Box<dyn Stream<Item = Result<RepairResponse, Status>> + Send>>;

/// A round now, for as long as somebody listens.
pub(super) fn on_demand(store: Store) -> Progressing {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let mut say = |tally| _ = sender.send_replace(Some(Ok(told(tally, false))));
        let ended = tokio::select! {
            ended = round(&store, &mut say) => ended,
            () = sender.closed() => return,
        };
        sender.send_replace(Some(ended.map(|tally| told(tally, true))));
    });
    Box::pin(WatchStream::new(receiver).filter_map(|progress| progress))
}

fn told(tally: Tally, done: bool) -> RepairResponse {
    let Tally { compared, to_compare, differing, keys, bytes, unreachable } = tally;
    RepairResponse { compared, to_compare, differing, keys, bytes, unreachable, done }
}

struct Round<'a> {
    store: &'a Store,
    layout: &'a Arc<Layout>,
    clients: &'a mut Clients,
    tally: Tally,
}

impl Round<'_> {
    async fn compare_all(
        &mut self,
        other: NodeId,
        segments: &[Segment],
        said: &mut (dyn FnMut(Tally) + Send),
    ) -> Result<(), Status> {
        for some in segments.chunks(handoff::MAX_COMPARED) {
            for (segment, parts) in self.compare(other, some).await? {
                self.pull(other, segment, parts).await?;
                self.tally.differing += 1;
                said(self.tally);
            }
            self.tally.compared += some.len() as u64;
            said(self.tally);
        }
        Ok(())
    }

    /// The segments, and their parts, in which the other owner has something else.
    async fn compare(
        &mut self,
        other: NodeId,
        segments: &[Segment],
    ) -> Result<Vec<(Segment, PartSet)>, Status> {
        let (store, epoch) = (self.store, self.layout.epoch);
        let mut compare = Request::new(CompareDigestsRequest {
            epoch,
            ring_id: id_bytes(self.layout.ring.0),
            from: id_bytes(store.location().me().0),
            segments: handoff::digests(store, epoch, segments)?,
            to: id_bytes(other.0),
            in_parts: true,
        });
        compare.set_timeout(handoff::COMPARE_TIMEOUT);
        let answer = self.clients.of(store, other)?.compare_digests(compare).await?.into_inner();
        let pairs = answer.differing.into_iter().zip(answer.parts);
        pairs
            .map(|(segment, theirs)| {
                let (segment, theirs) = (convert::segment(segment)?, convert::parts(&theirs)?);
                let own = store.replica()?.parts(epoch, segment);
                Ok((segment, own.map_err(|refusal| store.refused(&refusal))?.differing(&theirs)))
            })
            .collect()
    }

    /// Pulls what this node lacks in some parts of a segment.
    async fn pull(&mut self, other: NodeId, segment: Segment, parts: PartSet) -> Result<(), Status> {
        let (began, epoch) = (tokio::time::Instant::now(), self.layout.epoch);
        let mut bytes = 0;
        for (parts, has) in self.list(segment, parts).await? {
            let digest = handoff::digests(self.store, epoch, &[segment])?.remove(0);
            let asked = SegmentDigest { parts: parts.0, has, ..digest };
            bytes += asked.encoded_len() as u64;
            let client = self.clients.of(self.store, other)?;
            let (progress, mut done) = (Progress::default(), BTreeSet::new());
            let pulled =
                handoff::pull(self.store, self.layout, other, client, vec![asked], &progress, &mut done)
                    .await?;
            bytes += pulled.bytes;
            self.tally.keys += pulled.keys;
        }
        self.tally.bytes += bytes;
        tokio::time::sleep_until(began + Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND)).await;
        Ok(())
    }

    /// What this node has in these parts, in lists that fit a call.
    async fn list(&self, segment: Segment, parts: PartSet) -> Result<Vec<(PartSet, Vec<u64>)>, Status> {
        let mut has: BTreeMap<usize, Vec<u64>> = parts.iter().map(|part| (part, Vec::new())).collect();
        let mut after = None;
        loop {
            let page = handoff::snapshot(self.store, self.layout.epoch, segment, after).await?;
            for (key, record) in &page.records {
                let token = Token::of(key);
                if let Some(list) = has.get_mut(&part_of(token)) {
                    list.push(fingerprint(token, record.version));
                }
            }
            match page.records.last() {
                Some((key, _)) => after = Some(key.clone()),
                None => break,
            }
        }
        let mut lists: Vec<(PartSet, Vec<u64>)> = Vec::new();
        for (part, mut list) in has {
            match lists.last_mut() {
                Some((parts, last)) if last.len() + list.len() <= LISTED_PER_CALL => {
                    parts.0 |= 1 << part;
                    last.append(&mut list);
                }
                _ => lists.push((PartSet(1 << part), list)),
            }
        }
        Ok(lists)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::layout::tests::ring_of;
    use crate::store::service::peer_service;
    use crate::store::tests::member_of;
    use tonic::transport::Server;
    use tonic::transport::server::TcpIncoming;

    #[test]
    fn who_was_apart_catches_up_first() {
        let layout = ring_of(3, 3, 4);
        let ids: Vec<NodeId> = layout.ids().collect();
        let at = Duration::from_secs;
        let away = |ids: &[NodeId]| ids.iter().copied().collect::<BTreeSet<_>>();
        let mut reasons = Reasons::default();
        assert!(reasons.due(&layout, away(&[]), at(0)), "it has only begun");
        reasons.compared(at(0));
        assert!(!reasons.due(&layout, away(&ids[1..]), at(1)), "it is alone");
        assert!(reasons.due(&layout, away(&[]), at(2)), "it is back");
        reasons.compared(at(2));
        assert!(!reasons.due(&layout, away(&ids[2..]), at(3)), "another is gone");
        assert!(!reasons.due(&layout, away(&[]), at(12)), "which has some time to catch up");
        assert!(!reasons.due(&layout, away(&[]), at(21)));
        assert!(reasons.due(&layout, away(&[]), at(22)));
    }

    #[test]
    fn who_comes_and_goes_keeps_nobody_from_comparing() {
        let layout = ring_of(3, 3, 4);
        let flapping = BTreeSet::from([layout.ids().last().unwrap()]);
        let mut reasons = Reasons::default();
        let mut compared = Vec::new();
        for second in 0..60 {
            let (now, away) =
                (Duration::from_secs(second), if second % 2 == 1 { &flapping } else { &BTreeSet::new() });
            if reasons.due(&layout, away.clone(), now) {
                reasons.compared(now);
                compared.push(second);
            }
        }
        assert_eq!(compared, [0, 20, 40]);
    }

    #[tokio::test]
    async fn an_owner_whose_address_is_wrong_leaves_out_no_other() {
        let at_it = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut layout = ring_of(3, 3, 4);
        for other in &mut layout.members[1..] {
            other.address = at_it.local_addr().unwrap().to_string().parse().unwrap();
        }
        let store = member_of(layout).await;
        // This very node answers where it looks for the others.
        let server = Server::builder().add_service(peer_service(store.clone()));
        tokio::spawn(server.serve_with_incoming(at_it));
        let mut refused = Vec::new();
        for id in [NodeId(2), NodeId(3)] {
            assert_ne!(store.location().liveness(id), Liveness::Down);
            let request = CompareDigestsRequest { to: id_bytes(id.0), ..Default::default() };
            let mut client = Clients::default().of(&store, id).unwrap();
            refused.push(client.compare_digests(request).await.unwrap_err().code());
        }
        assert_eq!(refused, [tonic::Code::FailedPrecondition; 2]);
        assert_eq!(round(&store, &mut |_| ()).await.unwrap().unreachable, 2);
    }
}
