//! The hosts of a ring, each with a disk that outlives its crashes.

use crate::life::{InLife, Life};
use crate::strikes::Strike;
use crate::{Counts, PANICS};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use thrifty::cache::CacheConfig;
use thrifty::core::layout::{Kind, Layout, Phase, Replicas};
use thrifty::core::node::{Address, Liveness, NodeId, RingId};
use thrifty::core::record::{Record, Version};
use thrifty::core::token::{Segment, SegmentCount};
use thrifty::core::transition::Patience;
use thrifty::location::state::NodeState;
use thrifty::location::{Departure, Location, LocationConfig};
use thrifty::node::{self, Command, Listener, Node, Role};
use thrifty::storage::engine::Engine;
use thrifty::storage::memory::MemoryEngine;
use thrifty::storage::vault::MemoryVault;
use thrifty::wire::channel::{self, Stream};
use tokio::sync::mpsc;
use turmoil::net::{TcpListener, TcpStream};

const PORT: u16 = 9900;

/// Short, so that what it does comes to pass while the seed runs.
const PATIENCE: Patience = Patience {
    pull_timeout: Duration::from_secs(8),
    remove_after: Duration::from_secs(12),
    collect_every: Duration::from_secs(10),
};

/// What layouts at which is forgotten are counted as.
pub(crate) const COLLECTING: &str = "collecting layouts";

/// Before a host that went takes part again.
const REST: Duration = Duration::from_millis(500);

/// Has all connections of this process made in the simulated network.
pub(crate) fn simulate_connections() {
    channel::connect_by(|to| {
        let to = (to.host().unwrap_or_default().to_owned(), to.port_u16().unwrap_or_default());
        Box::pin(async move { Ok(Box::new(TcpStream::connect(to).await?) as Box<dyn Stream>) })
    });
}

struct Simulated(TcpListener);

impl Listener for Simulated {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        Ok(self.0.accept().await?.0)
    }
}

#[derive(Default)]
struct Host {
    vault: Arc<MemoryVault>,
    engine: Arc<MemoryEngine>,
    life: Life,
    location: Option<Location>,
    commands: Option<mpsc::Sender<Command>>,
}

/// See the module's documentation.
pub(crate) struct Ring {
    hosts: Vec<RefCell<Host>>,
    layouts: RefCell<HashMap<(RingId, u64), Arc<Layout>>>,
    panics_before: u64,
    log: RefCell<Vec<String>>,
    wrong: RefCell<Option<String>>,
    counts: RefCell<Counts>,
    /// The client has to end what it does.
    pub(crate) over: Cell<bool>,
    /// All owners hold the same: the client reads it once more.
    pub(crate) agreed: Cell<bool>,
}

/// The name of a host.
pub(crate) fn name(host: usize) -> String {
    format!("n{host}")
}

/// Where a host listens.
pub(crate) fn address(host: usize) -> Address {
    format!("{}:{PORT}", name(host)).parse().expect("an address")
}

fn versions(records: &[(Bytes, Record)]) -> Vec<(&Bytes, Version)> {
    records.iter().map(|(key, record)| (key, record.version)).collect()
}

impl Ring {
    pub(crate) fn new(hosts: usize) -> Self {
        Ring {
            hosts: (0..hosts).map(|_| RefCell::default()).collect(),
            layouts: RefCell::default(),
            panics_before: PANICS.load(Ordering::Relaxed),
            log: RefCell::default(),
            wrong: RefCell::default(),
            counts: RefCell::default(),
            over: Cell::new(false),
            agreed: Cell::new(false),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Notes what happens, for whoever looks into a failure.
    pub(crate) fn tell(&self, what: impl std::fmt::Display) {
        let at = turmoil::sim_elapsed().unwrap_or_default().as_secs_f64();
        self.log.borrow_mut().push(if at > 0.0 { format!("{at:9.3} {what}") } else { what.to_string() });
    }

    pub(crate) fn log(&self) -> String {
        let log = self.log.borrow();
        log[log.len().saturating_sub(crate::setting("THRIFTY_TURMOIL_TAIL", 60) as usize)..].join("\n")
    }

    pub(crate) fn count(&self, what: &'static str) {
        *self.counts.borrow_mut().entry(what).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts.borrow().clone()
    }

    /// Something is wrong; the first counts.
    pub(crate) fn fail(&self, why: String) {
        self.tell(&why);
        self.wrong.borrow_mut().get_or_insert(why);
    }

    /// What is wrong so far.
    pub(crate) fn check(&self) -> Result<(), String> {
        for host in &self.hosts {
            let layout = host.borrow().location.as_ref().and_then(Location::layout);
            let Some(layout) = layout else { continue };
            let mut layouts = self.layouts.borrow_mut();
            let known = layouts.entry((layout.ring, layout.epoch)).or_insert_with(|| {
                if layout.collects() {
                    self.count(COLLECTING);
                }
                layout.clone()
            });
            if *known != layout {
                self.fail(format!("two layouts of epoch {}: {known:?} and {layout:?}", layout.epoch));
            }
        }
        if PANICS.load(Ordering::Relaxed) > self.panics_before {
            self.fail("a panic, see above (of this seed, or of one beside it)".into());
        }
        self.wrong.borrow().clone().map_or(Ok(()), Err)
    }

    /// Why the ring is not at rest with every host in it, if it isn't.
    pub(crate) fn unrest(&self) -> Option<String> {
        let mut locations: Vec<Location> = Vec::new();
        let mut layouts: Vec<Arc<Layout>> = Vec::new();
        for (host, state) in self.hosts.iter().enumerate() {
            let state = state.borrow();
            let Some(location) = &state.location else { return Some(format!("{} is away", name(host))) };
            let Some(layout) = location.layout() else {
                return Some(format!("{} seeks{}", name(host), self.views()));
            };
            locations.push(location.clone());
            layouts.push(layout);
        }
        let first = &layouts[0];
        let mut ids: Vec<NodeId> = locations.iter().map(Location::me).collect();
        let mut members: Vec<NodeId> = first.ids().collect();
        ids.sort();
        members.sort();
        let at_rest =
            layouts.iter().all(|layout| layout == first) && first.phase == Phase::Stable && ids == members;
        if !at_rest {
            let epoch = |layout: &Arc<Layout>| {
                format!("{} {:?} of {}", layout.epoch, layout.phase, layout.members.len())
            };
            return Some(layouts.iter().map(epoch).collect::<Vec<_>>().join(", "));
        }
        let pairs = locations.iter().flat_map(|location| members.iter().map(move |id| (location, *id)));
        let mut pairs = pairs.map(|(location, id)| (location.me(), id, location.liveness(id)));
        let doubt = pairs.find(|(_, _, liveness)| *liveness != Liveness::Up);
        doubt.map(|(me, id, liveness)| format!("{me:.8} takes {id:.8} to be {liveness:?}"))
    }

    /// Why the hosts do not hold what they should at rest, if they don't: of each segment all its owners the
    /// same records, and nothing else.
    pub(crate) fn difference(&self) -> Option<String> {
        if let Some(unrest) = self.unrest() {
            return Some(unrest);
        }
        let mut held: HashMap<Segment, (NodeId, Vec<(Bytes, Record)>)> = HashMap::new();
        for host in &self.hosts {
            let host = host.borrow();
            let (me, layout) = host.location.as_ref().and_then(|it| Some((it.me(), it.layout()?)))?;
            let slots = layout.slots(me);
            if let Some((slot, _)) = host.engine.slots().into_iter().find(|(slot, _)| !slots.contains(slot)) {
                return Some(format!("{me:.8} keeps {slot:?}, and should not at epoch {}", layout.epoch));
            }
            for slot in slots {
                let records = match host.engine.scan(slot, Bound::Unbounded, usize::MAX) {
                    Ok(records) => records,
                    Err(error) => return Some(error.to_string()),
                };
                let (other, others) = held.entry(slot.segment).or_insert_with(|| (me, records.clone()));
                if *others != records {
                    let (slot, ours, theirs) = (slot.segment, versions(&records), versions(others));
                    return Some(format!("of {slot} {me:.8} has {ours:?} and {other:.8} {theirs:?}"));
                }
            }
        }
        None
    }

    /// How those who have a layout see its members.
    fn views(&self) -> String {
        let mut views = String::new();
        for (host, state) in self.hosts.iter().enumerate() {
            let state = state.borrow();
            let Some((location, layout)) = state.location.as_ref().and_then(|l| Some((l, l.layout()?)))
            else {
                continue;
            };
            let members = layout.members.iter();
            let members: Vec<_> = members
                .map(|m| format!("{:.8} at {} {:?}", m.id, m.address, location.liveness(m.id)))
                .collect();
            let (epoch, phase) = (layout.epoch, layout.phase);
            views += &format!("; {} is at {epoch} {phase:?} of {}", name(host), members.join(", "));
        }
        views
    }

    /// A host has crashed, and lost its disk if so.
    pub(crate) fn crashed(&self, host: usize, disk_lost: bool) {
        let mut host = self.hosts[host].borrow_mut();
        host.life.end();
        (host.location, host.commands) = (None, None);
        if disk_lost {
            *host = Host::default();
        }
    }

    /// Tells a host's node to go. It may not be there, or be busy going.
    pub(crate) fn command(&self, host: usize, command: Command) {
        if let Some(commands) = &self.hosts[host].borrow().commands {
            let _busy_going = commands.try_send(command);
        }
    }

    /// What a host runs.
    pub(crate) async fn live(self: Rc<Self>, host: usize) -> turmoil::Result {
        loop {
            let departure = self.one_life(host).await.map_err(|why| format!("{}: {why}", name(host)));
            match departure {
                Ok(departure) => {
                    self.tell(format!("{}: {departure:?}", name(host)));
                    self.count(match departure {
                        Departure::Left => Strike::Leave.name(),
                        Departure::Stopped => Strike::Stop.name(),
                        Departure::Removed => "removed",
                    });
                    self.crashed(host, departure == Departure::Removed);
                    tokio::time::sleep(REST).await;
                }
                Err(why) => {
                    self.fail(why.clone());
                    return Err(why.into());
                }
            }
        }
    }

    async fn one_life(&self, host: usize) -> Result<Departure, Box<dyn std::error::Error>> {
        let listener = Simulated(TcpListener::bind(("0.0.0.0", PORT)).await?);
        let (vault, engine) = {
            let mut host = self.hosts[host].borrow_mut();
            host.life = Life::default();
            let life = || host.life.clone();
            let vault = InLife { on_disk: host.vault.clone(), life: life() };
            (Arc::new(vault), Arc::new(InLife { on_disk: host.engine.clone(), life: life() }))
        };
        let state = NodeState::open(vault)?;
        let others = (0..self.len()).filter(|other| *other != host);
        let config = LocationConfig {
            ring_name: "r".into(),
            kind: Kind::Store,
            replicas: Some(Replicas::Count(3)),
            segments: Some(SegmentCount::new(16)?),
            peers: others.map(address).collect(),
            bootstrap: host == 0 && self.layouts.borrow().is_empty(),
            patience: PATIENCE,
            ..LocationConfig::default()
        };
        let role = Role::Store { engine, free_space: None, cache: CacheConfig::default() };
        let node = Node { address: address(host), state, durable: true, config, role };
        let (commands, inbox) = mpsc::channel(4);
        let (location, running) = node::start(listener, node, inbox);
        {
            let mut host = self.hosts[host].borrow_mut();
            (host.location, host.commands) = (Some(location), Some(commands));
        }
        Ok(running.await?)
    }
}
