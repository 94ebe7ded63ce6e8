//! Calls to other nodes: they run beside the loop and come back as events.

use super::{Agent, Event};
use crate::core::membership::Message;
use crate::core::node::NodeId;
use crate::location::LocationError;
use crate::location::peers::{Reply, Sender};
use std::sync::Arc;

impl Agent {
    fn sender(&self) -> Sender {
        let layout = self.membership.layout();
        Sender {
            me: self.state.id,
            ring: layout.ring,
            epoch: layout.epoch,
            generation: self.state.generation,
        }
    }

    pub(super) fn send(&self, to: NodeId, message: Message) {
        let Some(address) = self.location.address_of(to) else { return };
        let (location, sender) = (self.location.clone(), self.sender());
        tokio::spawn(async move {
            let event = match location.shared.peers.send(to, &address, sender, message).await {
                Ok(Reply { message: Some(message), .. }) => Event::Message(to, message, None),
                Ok(Reply { message: None, epoch }) => Event::Met(to, epoch),
                Err(status) if status.code() == tonic::Code::AlreadyExists => {
                    Event::Outlived(sender.generation)
                }
                Err(status) if status.code() == tonic::Code::OutOfRange => Event::Pull(to),
                // Whatever it was about is repeated by ticks.
                Err(status) => return tracing::debug!(%address, %status, "a call about membership failed"),
            };
            let _agent_gone = location.shared.events.send(event).await;
        });
    }

    /// One fetch at a time: whoever is behind by many epochs gets the newest at once.
    pub(super) fn pull(&mut self, from: NodeId) {
        if self.pulling.as_ref().is_some_and(|pull| !pull.is_finished()) {
            return;
        }
        let Some(address) = self.location.address_of(from) else { return };
        let (location, ring) = (self.location.clone(), self.membership.layout().ring);
        let pull = tokio::spawn(async move {
            match location.shared.peers.pull_layout(&address, ring).await {
                Ok(layout) => _ = location.shared.events.send(Event::Layout(Arc::new(layout))).await,
                Err(status) => tracing::debug!(%address, %status, "a layout could not be fetched"),
            }
        });
        self.pulling = Some(pull.abort_handle());
    }

    pub(super) async fn run_errands(&mut self) -> Result<(), LocationError> {
        let errands = self.gossip.errands();
        if let Some(generation) = errands.renewed {
            let mut state = self.state.clone();
            self.location.at_disk(move || state.raise_generation(generation)).await?;
            self.state.generation = generation;
        }
        for (after, timer) in errands.timers {
            let events = self.location.shared.events.clone();
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                let _agent_gone = events.send(Event::Timer(timer)).await;
            });
        }
        let sender = self.sender();
        for packet in errands.packets {
            let (location, to) = (self.location.clone(), packet.to);
            tokio::spawn(async move {
                let event = match location.shared.peers.gossip(sender, packet).await {
                    Ok(epoch) => Event::Met(to, epoch),
                    Err(status) if status.code() == tonic::Code::AlreadyExists => {
                        Event::Outlived(sender.generation)
                    }
                    Err(status) if status.code() == tonic::Code::OutOfRange => Event::Pull(to),
                    Err(_) => return,
                };
                let _agent_gone = location.shared.events.send(event).await;
            });
        }
        Ok(())
    }
}
