//! What the service manager is told, where one asks for it (`NOTIFY_SOCKET`, as systemd does): that
//! the node serves, what it is at, that it lives, and that it goes.
//!
//! It lives while the runtime that serves has its turns and the node's event loop comes round. Not
//! asked for is what a restart would not mend: a disk that hangs, peers that don't answer, load.

use sd_notify::NotifyState;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::time::Duration;
use thrifty::location::Location;
use thrifty::location::pulse::Doing;
use tokio::time::MissedTickBehavior;

/// How often it is looked what the node is at.
const LOOK: Duration = Duration::from_millis(500);

/// How often the node says that it lives, where no watchdog has to hear it more often.
const BEAT: Duration = Duration::from_secs(10);

/// A shorter one would be all that a node does.
const SHORTEST_BEAT: Duration = Duration::from_millis(10);

/// How many beats may stay away before a start or an end that takes long is given up.
const PATIENCE: u32 = 3;

/// How long a service manager may take to take a word.
const SAY_TIMEOUT: Duration = Duration::from_secs(1);

/// The service manager, if there is one, and what it was told.
pub(crate) struct Manager {
    listens: bool,
    watchdog: bool,
    /// How often the node says that it lives.
    beat: Duration,
    /// What the ring is called.
    ring: String,
    ready: Cell<bool>,
    stopping: Cell<bool>,
    said: RefCell<String>,
}

impl Manager {
    /// The one that started this process, if one did, of a node of this ring.
    pub(crate) fn of(ring: &str) -> Self {
        let within = sd_notify::watchdog_enabled().filter(|within| !within.is_zero());
        Manager {
            listens: std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty()),
            watchdog: within.is_some(),
            beat: within.map_or(BEAT, |within| BEAT.min((within / 2).max(SHORTEST_BEAT))),
            // A line is a word of its own.
            ring: ring.replace(char::is_control, " "),
            ready: Cell::new(false),
            stopping: Cell::new(false),
            said: RefCell::default(),
        }
    }

    /// Tells of this node for as long as it is polled.
    pub(crate) async fn follow(&self, node: &Location) -> Infallible {
        if self.listens {
            tokio::join!(self.tell(node), self.beat(node));
        }
        std::future::pending().await
    }

    async fn tell(&self, node: &Location) {
        let mut layouts = node.watch();
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                _ = look.tick() => {}
                Ok(()) = layouts.changed() => {}
            }
            match node.doing() {
                Doing::Leaving => self.goes("leaving").await,
                _ if self.stopping.get() => {}
                doing => {
                    let members = node.layout().map_or(0, |layout| layout.members.len());
                    let serves = matches!(doing, Doing::Serving(_));
                    let ready = (serves && !self.ready.replace(true)).then_some(NotifyState::Ready);
                    self.say(ready.into_iter().collect(), Some(self.status(doing, members))).await;
                }
            }
        }
    }

    async fn beat(&self, node: &Location) {
        let mut beat = tokio::time::interval(self.beat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            node.alive().await;
            let mut words: Vec<_> = self.watchdog.then_some(NotifyState::Watchdog).into_iter().collect();
            // For how long a ring is looked for is the service manager's business.
            let starting = !self.ready.get() && node.doing() != Doing::Seeking;
            if starting || self.stopping.get() {
                words.push(self.more_time());
            }
            self.say(words, None).await;
        }
    }

    /// The node is on its way out: `how` says in which way.
    pub(crate) async fn goes(&self, how: &str) {
        if !self.stopping.replace(true) {
            let words = vec![NotifyState::Stopping, self.more_time()];
            let said = self.say(words, Some(format!("{how} ring {}", self.ring)));
            let _or_it_hangs = tokio::time::timeout(SAY_TIMEOUT, said).await;
        }
    }

    /// A start or an end may take so much longer from now on.
    fn more_time(&self) -> NotifyState<'static> {
        NotifyState::ExtendTimeoutUsec((self.beat * PATIENCE).as_micros() as u32)
    }

    /// What the node is at, in a line; `members` are those of its ring.
    fn status(&self, doing: Doing, members: usize) -> String {
        let ring = &self.ring;
        let gathering = |gathered: Option<(u64, u64)>| match gathered {
            Some((done, total)) if total > 0 => format!(", gathering: {done} of {total} segments"),
            _ => String::new(),
        };
        match doing {
            Doing::Seeking => format!("looking for ring {ring}"),
            Doing::Waiting => format!("entering ring {ring}"),
            Doing::Joining(gathered) => format!("joining ring {ring} of {members}{}", gathering(gathered)),
            Doing::Serving(gathered) => format!("serving ring {ring} of {members}{}", gathering(gathered)),
            Doing::Leaving => format!("leaving ring {ring}"),
        }
    }

    /// Says these words, and how it is if that is news. Blocks nobody else: who listens may hang.
    async fn say(&self, words: Vec<NotifyState<'static>>, status: Option<String>) {
        let news = status.filter(|status| self.said.replace(status.clone()) != *status);
        if !self.listens || (words.is_empty() && news.is_none()) {
            return;
        }
        let say = move || {
            let mut words: Vec<NotifyState<'_>> = words;
            words.extend(news.as_deref().map(NotifyState::Status));
            sd_notify::notify(&words)
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(say).await {
            tracing::debug!(%error, "the service manager was not told");
        }
    }
}
