//! Calls to other nodes: one connection per address, made when first needed.

use super::gossip::Packet;
use crate::core::layout::Layout;
use crate::core::membership::Message;
use crate::core::node::{Address, Generation, NodeId, RingId};
use crate::core::token::Epoch;
use crate::wire::MAX_MESSAGE_BYTES;
use crate::wire::channel::{self, within};
use crate::wire::convert::{self, id_bytes};
use crate::wire::location::location_peer_client::LocationPeerClient;
use crate::wire::location::{
    AcceptRequest, GossipRequest, InstallRequest, JoinRequest, PrepareRequest, PullLayoutRequest,
};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// How long a call about membership may take. What it was about is repeated by then anyway.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// How many connections are kept; past that, all are dropped and made again as needed. Far above
/// any ring's size, it only bounds what addresses from outside can make this node hold.
const MAX_CONNECTIONS: usize = 8192;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Peers {
    channels: Mutex<HashMap<Address, Channel>>,
}

/// What a call brought: an answer to feed to the membership, if any, and the other's epoch.
#[derive(Debug)]
pub struct Reply {
    /// The answer.
    pub message: Option<Message>,
    /// The epoch of the node that answered.
    pub epoch: Epoch,
}

/// What every call says of its sender.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    /// Who.
    pub me: NodeId,
    /// Of which ring.
    pub ring: RingId,
    /// At which epoch.
    pub epoch: Epoch,
    /// In which of its lives.
    pub generation: Generation,
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

fn malformed(error: impl std::fmt::Display) -> Status {
    Status::internal(format!("an answer that makes no sense: {error}"))
}

impl Peers {
    /// The connection to an address.
    pub fn channel(&self, address: &Address) -> Channel {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return channel.clone();
        }
        if channels.len() >= MAX_CONNECTIONS {
            channels.clear();
        }
        let channel = channel::lazy(address);
        channels.insert(address.clone(), channel.clone());
        channel
    }

    fn client(&self, address: &Address) -> LocationPeerClient<Channel> {
        LocationPeerClient::new(self.channel(address))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Sends one of the membership's messages to a node, and brings back what that very node
    /// answers: a vote must never count for whoever lived at the address before.
    pub async fn send(
        &self,
        to: NodeId,
        address: &Address,
        sender: Sender,
        message: Message,
    ) -> Result<Reply, Status> {
        let mut client = self.client(address);
        let (from, ring_id) = (id_bytes(sender.me.0), id_bytes(sender.ring.0));
        let gossip = GossipRequest {
            from: from.clone(),
            ring_id: ring_id.clone(),
            epoch: sender.epoch,
            generation: sender.generation,
            ..Default::default()
        };
        let gossip = match message {
            Message::Prepare { target, ballot } => {
                let ballot_sent = Some(convert::ballot_to(ballot));
                let prepare = PrepareRequest { from, ring_id, target, ballot: ballot_sent };
                let answer = within(CALL_TIMEOUT, client.prepare(request(prepare))).await?.into_inner();
                meant(to, &answer.from)?;
                let message = if let Some(promise) = answer.promise {
                    let accepted = convert::accepted(promise.accepted).map_err(malformed)?;
                    let down = promise.down.iter().map(|id| convert::node_id(id)).collect::<Result<_, _>>();
                    Some(Message::Promise { target, ballot, accepted, down: down.map_err(malformed)? })
                } else {
                    refused(target, answer.refused)?
                };
                return Ok(Reply { message, epoch: answer.epoch });
            }
            Message::Accept { ballot, layout } => {
                let target = layout.epoch;
                let layout = Some(convert::layout_to(&layout));
                let accept = AcceptRequest { from, ballot: Some(convert::ballot_to(ballot)), layout };
                let answer = within(CALL_TIMEOUT, client.accept(request(accept))).await?.into_inner();
                meant(to, &answer.from)?;
                let message = match answer.accepted {
                    true => Some(Message::Accepted { target, ballot }),
                    false => refused(target, answer.refused)?,
                };
                return Ok(Reply { message, epoch: answer.epoch });
            }
            Message::Install(layout) => {
                let epoch = self.install(to, address, sender.me, &layout, None).await?;
                return Ok(Reply { message: None, epoch });
            }
            Message::Report(report) => GossipRequest { report: Some(convert::report_to(report)), ..gossip },
            Message::Join(member) => GossipRequest { join: Some(convert::member_to(&member)), ..gossip },
            Message::AllStop => GossipRequest { all_stop: true, ..gossip },
            // These are answers, and travel as such.
            Message::Promise { .. } | Message::Accepted { .. } | Message::Refused { .. } => {
                return Ok(Reply { message: None, epoch: sender.epoch });
            }
        };
        let answer = within(CALL_TIMEOUT, client.gossip(request(gossip))).await?.into_inner();
        meant(to, &answer.from)?;
        Ok(Reply { message: None, epoch: answer.epoch })
    }

    /// Tells a node of a layout that was chosen, or (`succeeds`) that is forced upon the survivors
    /// of a ring.
    pub async fn install(
        &self,
        to: NodeId,
        address: &Address,
        me: NodeId,
        layout: &Layout,
        succeeds: Option<RingId>,
    ) -> Result<Epoch, Status> {
        let install = InstallRequest {
            from: id_bytes(me.0),
            layout: Some(convert::layout_to(layout)),
            succeeds_ring_id: succeeds.map(|ring| id_bytes(ring.0)).unwrap_or_default(),
        };
        let answer = within(CALL_TIMEOUT, self.client(address).install(request(install))).await?.into_inner();
        meant(to, &answer.from)?;
        Ok(answer.epoch)
    }

    /// Delivers a packet of the failure detector; answers the other's epoch.
    pub async fn gossip(&self, sender: Sender, packet: Packet) -> Result<Epoch, Status> {
        let gossip = GossipRequest {
            from: id_bytes(sender.me.0),
            ring_id: id_bytes(sender.ring.0),
            epoch: sender.epoch,
            generation: sender.generation,
            packets: vec![packet.bytes],
            suspected: packet.suspected.map(u32::from),
            ..Default::default()
        };
        let mut client = self.client(&packet.address);
        let answer = within(CALL_TIMEOUT, client.gossip(request(gossip))).await?.into_inner();
        meant(packet.to, &answer.from)?;
        Ok(answer.epoch)
    }

    /// Fetches the layout that a node has installed.
    pub async fn pull_layout(&self, address: &Address, ring: RingId) -> Result<Layout, Status> {
        let pull = PullLayoutRequest { ring_id: id_bytes(ring.0) };
        let layout =
            within(CALL_TIMEOUT, self.client(address).pull_layout(request(pull))).await?.into_inner().layout;
        convert::layout(layout.ok_or_else(|| malformed("no layout"))?).map_err(malformed)
    }

    /// Asks to be taken in; answers the layout as it is.
    pub async fn join(&self, address: &Address, join: JoinRequest) -> Result<Layout, Status> {
        let layout =
            within(CALL_TIMEOUT, self.client(address).join(request(join))).await?.into_inner().layout;
        convert::layout(layout.ok_or_else(|| malformed("no layout"))?).map_err(malformed)
    }
}

fn meant(to: NodeId, from: &[u8]) -> Result<(), Status> {
    match convert::node_id(from) {
        Ok(from) if from == to => Ok(()),
        _ => Err(malformed("another node answers at this address")),
    }
}

fn refused(target: Epoch, ballot: Option<crate::wire::location::Ballot>) -> Result<Option<Message>, Status> {
    match ballot {
        Some(ballot) => {
            let promised = convert::ballot(Some(ballot)).map_err(malformed)?;
            Ok(Some(Message::Refused { target, promised }))
        }
        None => Ok(None),
    }
}
