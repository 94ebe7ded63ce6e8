//! The way into a ring: find one and be taken in, or make one.
//!
//! A joiner repeats its request to any member until the layout shows it. Whoever was found and is
//! gone again is looked for anew.

use super::agent::Event;
use super::lan::Lan;
use super::state::NodeState;
use super::{DEFAULT_REPLICAS, Location, LocationError, Stage, discovery};
use crate::core::layout::{Layout, Member, Standing};
use crate::core::node::{Address, RingId};
use crate::core::token::SegmentCount;
use crate::news;
use crate::wire::convert::{self, id_bytes};
use crate::wire::location::{JoinRequest, Settings};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often a joiner repeats its request; the claimant forgets it after six times that.
const JOIN_AGAIN: Duration = Duration::from_millis(500);

/// Finds a ring and is taken in, or makes one (`true`). `None`: told to stop before that.
pub(super) async fn enter_ring(
    location: &Location,
    lan: Option<&Lan>,
    state: &NodeState,
    inbox: &mut mpsc::Receiver<Event>,
) -> Result<Option<(Arc<Layout>, bool)>, LocationError> {
    let left = state.left.as_ref();
    let hints: Vec<Address> =
        left.map(|l| l.members.iter().map(|m| m.address.clone()).collect()).unwrap_or_default();
    if let Some(left) = left {
        news!("this node was part of ring {} before: looking for that ring, to join it", left.name);
    }
    let ring_id = left.map(|left| id_bytes(left.ring.0));
    loop {
        let found = tokio::select! {
            found = discovery::seek(location, lan, ring_id.clone(), &hints) => found?,
            () = told_to_stop(inbox) => return Ok(None),
        };
        let Some(members) = found else { return Ok(Some((found_ring(location), true))) };
        let joined = tokio::select! {
            joined = join(location, &members, ring_id.clone()) => joined?,
            () = told_to_stop(inbox) => return Ok(None),
        };
        if let Some(layout) = joined {
            return Ok(Some((layout, false)));
        }
        // Whoever was there is gone: look again.
        *location.shared.stage.lock().unwrap_or_else(PoisonError::into_inner) = Stage::Seeking(Vec::new());
    }
}

async fn told_to_stop(inbox: &mut mpsc::Receiver<Event>) {
    loop {
        match inbox.recv().await {
            Some(Event::Stop | Event::Leave) | None => return,
            // Not a member yet: nothing of this concerns it.
            Some(_) => {}
        }
    }
}

fn found_ring(location: &Location) -> Arc<Layout> {
    let config = &location.shared.config;
    Arc::new(Layout::first(
        RingId(rand::random()),
        config.ring_name.clone(),
        config.kind,
        config.replicas.unwrap_or(DEFAULT_REPLICAS),
        config.segments.unwrap_or(SegmentCount::DEFAULT),
        myself(location),
    ))
}

fn myself(location: &Location) -> Member {
    let shared = &location.shared;
    Member {
        id: shared.me,
        address: shared.address.clone(),
        zone: shared.config.zone.clone(),
        weight: shared.config.weight,
        durable: shared.durable,
        standing: Standing::Joining,
    }
}

/// Repeats the request to be taken in until the layout shows this node. `None`: nobody answers any
/// more.
async fn join(
    location: &Location,
    members: &[Address],
    ring_id: Option<Bytes>,
) -> Result<Option<Arc<Layout>>, LocationError> {
    let config = &location.shared.config;
    let join = JoinRequest {
        ring_name: config.ring_name.clone(),
        kind: convert::kind_to(config.kind),
        ring_id: ring_id.unwrap_or_default(),
        member: Some(convert::member_to(&myself(location))),
        settings: Some(Settings {
            replicas: config.replicas.map(convert::replicas_to),
            segments: config.segments.map(|count| count.get() as u32),
        }),
    };
    let mut said = false;
    let mut addresses: VecDeque<Address> = members.iter().cloned().collect();
    let mut silent = 0;
    while silent < 2 * addresses.len() + 4 {
        let Some(address) = addresses.front().cloned() else { break };
        match location.shared.peers.join(&address, join.clone()).await {
            Ok(layout) if layout.is_member(location.me()) => return Ok(Some(Arc::new(layout))),
            Ok(layout) => {
                silent = 0;
                for member in &layout.members {
                    if !addresses.contains(&member.address) {
                        addresses.push_back(member.address.clone());
                    }
                }
                if !said {
                    said = true;
                    news!("found ring {} of {}, asking to join", layout.name, layout.members.len());
                }
            }
            Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                return Err(LocationError::Refused(status.message().to_owned()));
            }
            Err(status) => {
                tracing::debug!(%address, %status, "no answer to a request to join");
                silent += 1;
                addresses.rotate_left(1);
            }
        }
        tokio::time::sleep(JOIN_AGAIN).await;
    }
    Ok(None)
}
