//! Layouts that this node installs, and what each makes of it.

use super::{Agent, Event};
use crate::core::layout::{Layout, Phase, Standing};
use crate::core::membership::Output;
use crate::core::node::{Liveness, NodeId};
use crate::location::{Departure, LocationError, Progress, state};
use crate::news;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a ring may stand beside one that succeeds it before a person is told: well above what gossip
/// takes to notice who is gone.
const RIVAL_NEWS: Duration = Duration::from_secs(15);

impl Agent {
    /// The ring goes on without its lost majority, and this node has missed that. It follows, be it
    /// as a member or to learn that it was dropped, unless its own ring has a majority still: then
    /// the removal was forced in error, and what was acknowledged here must not be given up for it.
    pub(super) async fn succeeded(
        &mut self,
        layout: Arc<Layout>,
    ) -> Result<Option<Departure>, LocationError> {
        let (me, members, old) = (self.state.id, &self.members, self.membership.layout());
        let perhaps = |id| id == me || members.liveness(id) != Liveness::Down;
        if old.gives_way_to(&layout, perhaps) {
            self.rival = None;
            return self.carry_out(vec![Output::Install(layout)], None).await;
        }
        // Gossip may not have noticed yet who has gone over to the other ring.
        let (since, told) = self.rival.get_or_insert((Instant::now(), false));
        if since.elapsed() >= RIVAL_NEWS && !std::mem::replace(told, true) {
            news!(
                "there are two rings {} now: a removal was forced elsewhere, and this one has its majority still. \
                 They never merge, so keep one: stop the nodes of the other, move their data directories away, \
                 and start them again with --peer and a node of the one that is kept",
                old.name
            );
        }
        Ok(None)
    }

    /// Installs a newer layout: durable, then fenced, then known. `false` if it isn't newer.
    pub(super) async fn install(&mut self, layout: Arc<Layout>) -> Result<bool, LocationError> {
        let old = self.membership.layout().clone();
        if layout.ring == old.ring && layout.epoch <= old.epoch {
            return Ok(false);
        }
        let (vault, saved) = (self.state.vault(), layout.clone());
        self.location.at_disk(move || state::save_layout(&*vault, &saved)).await?;
        self.apply(layout.clone()).await?;
        let now = self.now();
        self.membership.installed(layout.clone(), now);
        self.say(&old, &layout);
        Ok(true)
    }

    /// Fences, publishes, and starts gathering: the layout is durable already.
    pub(super) async fn apply(&mut self, layout: Arc<Layout>) -> Result<(), LocationError> {
        self.abort_gathering();
        let (host, installed) = (self.host.clone(), layout.clone());
        self.location.at_disk(move || host.install(installed)).await?;
        let now = Instant::now();
        for id in layout.ids() {
            self.members.expected.entry(id).or_insert(now);
        }
        self.members.expected.retain(|id, _| layout.is_member(*id));
        self.members.heard.retain(|id, _| layout.is_member(*id));
        self.publish_members();
        self.location.shared.layout.store(Some(layout.clone()));
        self.location.shared.layouts.send_replace(Some(layout.clone()));

        let me = self.state.id;
        let leaving = layout.member(me).is_some_and(|m| m.standing == Standing::Leaving);
        if layout.phase == Phase::Dual && (leaving || layout.all_pullers().contains(&me)) {
            let progress = Arc::new(Progress::default());
            self.location.shared.progress.store(Some(progress.clone()));
            let gathering = self.host.gather(self.location.clone(), layout.clone(), progress);
            let (events, epoch) = (self.location.shared.events.clone(), layout.epoch);
            let task = tokio::spawn(async move {
                let complete = gathering.await;
                let _agent_gone = events.send(Event::Gathered(epoch, complete)).await;
            });
            self.gathering = Some((epoch, task.abort_handle()));
        }
        Ok(())
    }

    pub(super) fn abort_gathering(&mut self) {
        if let Some((_, task)) = self.gathering.take() {
            task.abort();
        }
        self.location.shared.progress.store(None);
    }

    /// Whether the installed layout ends this node's part in the ring; `before` is the one before it.
    pub(super) async fn departure(&mut self, before: &Layout) -> Result<Option<Departure>, LocationError> {
        let me = self.state.id;
        let asks_again = before.asks_again(me, self.membership.layout()) && self.leaving_since.is_none();
        if self.membership.is_member() || asks_again {
            return Ok(None);
        }
        let (vault, last, left) =
            (self.state.vault(), self.membership.layout().clone(), self.leaving_since.is_some());
        let note = move || match left {
            true => state::save_departure(&*vault, &last),
            false => state::save_removal(&*vault, &last),
        };
        self.location.at_disk(note).await?;
        Ok(Some(if left { Departure::Left } else { Departure::Removed }))
    }

    /// Tells a person what has changed.
    fn say(&self, old: &Layout, new: &Layout) {
        let me = self.state.id;
        let before: BTreeSet<NodeId> = old.ids().collect();
        let after: BTreeSet<NodeId> = new.ids().collect();
        if new.phase != Phase::Stable {
            return tracing::debug!(epoch = new.epoch, phase = new.phase.name(), "the ring changes");
        }
        let was_joining = old.member(me).is_some_and(|m| m.standing == Standing::Joining);
        if was_joining && after.contains(&me) {
            return news!("joined ring {} of {}", new.name, after.len());
        }
        let joined: Vec<NodeId> = old
            .members
            .iter()
            .filter(|m| m.standing == Standing::Joining && after.contains(&m.id))
            .map(|m| m.id)
            .collect();
        for id in joined.iter().chain(after.difference(&before)) {
            news!("{} joined: ring of {}", self.name_of(*id), after.len());
        }
        for member in old.members.iter().filter(|m| !after.contains(&m.id) && m.standing != Standing::Joining)
        {
            if member.id != me {
                let how = if new.ring == old.ring { "left" } else { "was dropped" };
                news!("node {:.8} at {} {how}: ring of {}", member.id, member.address, after.len());
            }
        }
    }

    pub(super) fn name_of(&self, id: NodeId) -> String {
        match self.location.address_of(id) {
            Some(address) => format!("node {id:.8} at {address}"),
            None => format!("node {id:.8}"),
        }
    }
}
