//! Finding nodes by what they announce on the local network: DNS-SD over multicast (RFC 6763, RFC 6762).
//!
//! A node announces itself from when it serves until it ends, and then says goodbye. It listens to others only
//! while it looks for a ring, and forgets it all afterwards. What it hears is a hint by anybody who likes: an
//! address counts if it claims the right ring and kind, and is asked over gRPC like any other before anything is
//! believed. Of a flood it keeps `MAX_HEARD`, and then is deaf for a while; what else the library remembers is
//! forgotten past `MAX_RECORDS`.
//!
//! Every node announces itself before it listens, so of two that seek at once the one that listens later hears the
//! other, as with the loopback ports. Multicast gets lost, though: a seeker asks three times while it `LISTEN`s,
//! and makes no ring before that, nor where it could not announce itself, nor where more claim to be there than
//! it asks at a time.

#[cfg(test)]
mod tests;

use super::{Location, discovery};
use crate::client::{ClientError, members_of_one, program};
use crate::core::layout::Kind;
use crate::core::node::Address;
use crate::wire::convert;
use crate::wire::location::ProbeRequest;
use mdns_sd::{
    DaemonEvent, IfKind, Metrics, Receiver, ServiceDaemon, ServiceEvent, ServiceInfo, TryRecvError,
};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The service that nodes announce.
const SERVICE: &str = "_thrifty._tcp.local.";

/// What an announcement says: the ring's name, the kind of node, and where it is reached.
const RING: &str = "ring";
const KIND: &str = "kind";
const ADDRESS: &str = "address";

/// How many announcements of the wanted ring count, and how many are asked at a time: as many as a seeker
/// remembers other seekers. One that answers is enough.
const MAX_HEARD: usize = 1024;
const ASK: usize = 64;

/// How many records of the protocol are kept, of whatever service, and how often that is looked at.
const MAX_RECORDS: i64 = 10_000;
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long nothing more is listened to once there were too many: the time to ask them all.
const DEAF: Duration = Duration::from_secs(30);

/// How long a seeker listens before silence means that there is nobody: questions go out at once, after one second
/// and after three.
const LISTEN: Duration = Duration::from_millis(3500);

/// How long a tool listens at most; at least, lest there be several rings: it asks twice by then, and who has said
/// something lately says it again only after a second; and how often it looks.
const FIND: Duration = Duration::from_secs(2);
const FIND_ALL: Duration = Duration::from_millis(1500);
const FIND_AGAIN: Duration = Duration::from_millis(50);

/// How long the goodbye may take on its way out.
const GOODBYE: Duration = Duration::from_millis(500);

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Store => "store",
        Kind::Location => "location",
    }
}

/// Whose announcements count.
#[derive(Debug)]
struct Wanted {
    kind: Kind,
    /// `None`: of any ring.
    ring: Option<String>,
}

/// What was announced and counts, by the names of the announcements.
#[derive(Debug)]
struct Heard {
    wanted: Wanted,
    addresses: BTreeMap<String, Address>,
    /// There were more than [`MAX_HEARD`].
    flooded: bool,
    /// How often some were asked.
    turn: usize,
}

impl Heard {
    fn new(wanted: Wanted) -> Self {
        Heard { wanted, addresses: BTreeMap::new(), flooded: false, turn: 0 }
    }

    /// An announcement of this name says these things, or says them from now on.
    fn says<'a>(&mut self, name: &str, value: impl Fn(&str) -> Option<&'a [u8]>) {
        self.addresses.remove(name);
        let Some(address) = self.wanted.address(value) else { return };
        self.flooded |= self.addresses.len() >= MAX_HEARD;
        if self.addresses.len() < MAX_HEARD {
            self.addresses.insert(name.to_owned(), address);
        }
    }

    fn is_gone(&mut self, name: &str) {
        self.addresses.remove(name);
    }

    fn forget(&mut self) {
        self.addresses.clear();
        self.flooded = false;
    }

    /// Whom to ask now, and whether these are all.
    fn whom(&mut self) -> (Vec<Address>, bool) {
        let all: BTreeSet<&Address> = self.addresses.values().collect();
        let skip = if all.len() > ASK { self.turn * ASK % all.len() } else { 0 };
        self.turn += 1;
        let whom = all.iter().cycle().skip(skip).take(ASK.min(all.len()));
        (whom.map(|address| (*address).clone()).collect(), all.len() <= ASK && !self.flooded)
    }
}

impl Wanted {
    /// The address in an announcement, if it counts.
    fn address<'a>(&self, value: impl Fn(&str) -> Option<&'a [u8]>) -> Option<Address> {
        let ring = value(RING)?;
        let of_ring = self.ring.as_ref().is_none_or(|wanted| wanted.as_bytes() == ring);
        let of_kind = value(KIND)? == kind_name(self.kind).as_bytes();
        let address: Address = str::from_utf8(value(ADDRESS)?).ok()?.parse().ok()?;
        (of_ring && of_kind && is_elsewhere(&address)).then_some(address)
    }
}

/// Whether an address that somebody else announces can mean him: his loopback is not this node's.
fn is_elsewhere(address: &Address) -> bool {
    let numbers: Option<SocketAddr> = address.as_str().parse().ok();
    let ip = numbers.map(|address| address.ip().to_canonical());
    address.port() != 0 && ip.is_none_or(|ip| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast())
}

/// The address of this machine, for a node that listens on all of them; or why it can't be told.
pub fn own_address() -> Result<Ipv4Addr, String> {
    let interfaces = if_addrs::get_if_addrs().map_err(|error| format!("can't be read: {error}"))?;
    let up = interfaces.iter().filter(|interface| interface.is_oper_up() && !interface.is_loopback());
    let found = up.filter_map(|interface| match interface.ip() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    });
    the_only(&found.collect())
}

fn the_only(found: &BTreeSet<Ipv4Addr>) -> Result<Ipv4Addr, String> {
    let mut all = found.iter();
    match (all.next(), all.next()) {
        (Some(ip), None) => Ok(*ip),
        (None, _) => Err("are all of loopback".into()),
        _ => {
            let all: Vec<String> = found.iter().take(8).map(Ipv4Addr::to_string).collect();
            Err(format!("are several ({})", all.join(", ")))
        }
    }
}

/// Speaks the protocol on all networks of this machine, in a thread of its own. It keeps what anybody says.
struct Daemon {
    daemon: ServiceDaemon,
    /// What it was last asked of itself.
    asked: Option<Receiver<Metrics>>,
}

impl Daemon {
    fn start() -> Result<Self, mdns_sd::Error> {
        let daemon = ServiceDaemon::new()?;
        daemon.disable_interface(vec![IfKind::LoopbackV4, IfKind::LoopbackV6])?;
        Ok(Daemon { daemon, asked: None })
    }

    /// Whether it kept more than [`MAX_RECORDS`] when this was last asked, or has broken off.
    fn is_spent(&mut self) -> bool {
        let told = match self.asked.as_ref().map(Receiver::try_recv) {
            None => Metrics::new(),
            Some(Ok(told)) => told,
            Some(Err(TryRecvError::Empty)) => return false,
            Some(Err(TryRecvError::Disconnected)) => return true,
        };
        self.asked = match self.daemon.get_metrics() {
            Err(mdns_sd::Error::DaemonShutdown) => return true,
            asked => asked.ok(),
        };
        let kept = told.iter().filter(|(what, _)| what.starts_with("cached-"));
        kept.map(|(_, count)| *count).sum::<i64>() > MAX_RECORDS
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended_already = self.daemon.shutdown();
    }
}

/// A node's announcement, until it says goodbye by being dropped.
pub(super) struct Lan {
    service: ServiceInfo,
    announcer: Mutex<Daemon>,
    events: Receiver<DaemonEvent>,
    since: OnceLock<Instant>,
}

impl Lan {
    /// Announces a node that serves already.
    pub(super) fn announce(location: &Location) -> Result<Self, mdns_sd::Error> {
        let (config, address) = (&location.shared.config, location.address());
        let id = location.me().to_string();
        let says =
            [(RING, config.ring_name.as_str()), (KIND, kind_name(config.kind)), (ADDRESS, address.as_str())];
        let host = format!("thrifty-{id}.local.");
        let mut service =
            ServiceInfo::new(SERVICE, &id, &host, "", address.port(), &says[..])?.enable_addr_auto();
        // Nobody else bears the names, which have the id in them.
        service.set_requires_probe(false);
        if let Ok(listens) = address.as_str().parse::<SocketAddr>()
            && if_addrs::get_if_addrs().is_ok_and(|all| all.iter().any(|own| own.ip() == listens.ip()))
        {
            service.set_interfaces(vec![IfKind::Addr(listens.ip())]);
        }
        let announcer = Daemon::start()?;
        let events = announcer.daemon.monitor()?;
        announcer.daemon.register(service.clone())?;
        Ok(Lan { service, announcer: announcer.into(), events, since: OnceLock::new() })
    }

    /// Sees to it for ever that nobody on the network fills this process's memory: has the announcement made by
    /// another daemon, which knows nothing yet. Where there can be none just now, a member goes on without.
    pub(super) async fn keep_small(&self) -> Infallible {
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            let mut announcer = self.announcer.lock().unwrap_or_else(PoisonError::into_inner);
            if announcer.is_spent() {
                match self.another() {
                    Ok(another) => *announcer = another,
                    Err(error) => tracing::warn!(%error, "this node is not announced on the LAN for now"),
                }
            }
        }
    }

    fn another(&self) -> Result<Daemon, mdns_sd::Error> {
        let another = Daemon::start()?;
        another.daemon.register(self.service.clone())?;
        Ok(another)
    }

    /// Since when its announcement is out; or a network is there, that was not at first, to which it is told.
    fn since(&self) -> Option<Instant> {
        let told = |event| matches!(event, DaemonEvent::Announce(..) | DaemonEvent::IpAdd(_));
        if self.since.get().is_none() && self.events.try_iter().any(told) {
            return Some(*self.since.get_or_init(Instant::now));
        }
        self.since.get().copied()
    }

    /// What this node, which looks for a ring, has to wait for since it listens before silence means that
    /// there is nobody.
    fn unheard(&self, listens: Instant) -> Option<&'static str> {
        match self.since() {
            None => Some(
                "a network that takes this node's announcement (multicast on UDP port 5353; or leave --discover out)",
            ),
            Some(since) if since.max(listens).elapsed() < LISTEN => Some("announcements on the LAN"),
            Some(_) => None,
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let announcer = self.announcer.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Ok(ended) = announcer.daemon.shutdown() {
            let _too_late_or_gone = ended.recv_timeout(GOODBYE);
        }
    }
}

/// Hears what nodes announce, from when it is made.
pub(super) struct Listener<'a> {
    /// This node's own announcement, if there is one.
    lan: Option<&'a Lan>,
    heard: Heard,
    /// When it began to listen, or to be deaf.
    since: Instant,
    /// `None` while it is deaf.
    ear: Option<Ear>,
}

/// What a listener hears with. It has everything in memory that was heard by it.
struct Ear {
    daemon: Daemon,
    events: Receiver<ServiceEvent>,
}

impl Ear {
    fn open() -> Result<Self, mdns_sd::Error> {
        let daemon = Daemon::start()?;
        let events = daemon.daemon.browse(SERVICE)?;
        Ok(Ear { daemon, events })
    }

    /// Takes in what has come since, but for the announcement of this name. No more at a time than the queue
    /// holds: somebody may send faster than this reads.
    fn listen(&self, own: &str, heard: &mut Heard) {
        for _ in 0..=self.events.len() {
            match self.events.try_recv() {
                Ok(ServiceEvent::ServiceResolved(service)) if service.fullname != own => {
                    let says = &service.txt_properties;
                    heard.says(&service.fullname, |key| says.get(key)?.val());
                }
                Ok(ServiceEvent::ServiceRemoved(_, name)) => heard.is_gone(&name),
                Ok(_) => {}
                Err(TryRecvError::Empty) => return,
                // More came than the queue holds.
                Err(TryRecvError::Disconnected) => return heard.flooded = true,
            }
        }
    }
}

impl<'a> Listener<'a> {
    pub(super) fn new(lan: Option<&'a Lan>, kind: Kind, ring: Option<&str>) -> Result<Self, mdns_sd::Error> {
        let heard = Heard::new(Wanted { kind, ring: ring.map(str::to_owned) });
        Ok(Listener { lan, heard, since: Instant::now(), ear: Some(Ear::open()?) })
    }

    /// Whom to ask now, and what has to be waited for before their silence means that there is nobody.
    pub(super) fn hear(&mut self) -> Result<(Vec<Address>, Option<&'static str>), mdns_sd::Error> {
        let unheard = self.lan.and_then(|lan| lan.unheard(self.since));
        if self.ear.is_none() && self.since.elapsed() > DEAF {
            self.heard.forget();
            (self.ear, self.since) = (Some(Ear::open()?), Instant::now());
        }
        if let Some(ear) = &mut self.ear {
            ear.listen(self.lan.map_or("", |lan| lan.service.get_fullname()), &mut self.heard);
            self.heard.flooded |= ear.daemon.is_spent();
            if self.heard.flooded {
                (self.ear, self.since) = (None, Instant::now());
            }
        }
        let (whom, all) = self.heard.whom();
        let more = "somebody to answer: more nodes are announced on the LAN than are asked (give --peer)";
        Ok((whom, unheard.or((!all).then_some(more))))
    }
}

/// Finds the nodes of a ring that are announced on the local network, in about two seconds. Without a
/// name, there must be one ring only.
pub async fn find(kind: Kind, ring_name: Option<&str>) -> Result<Vec<Address>, ClientError> {
    let failed = |error| {
        ClientError::NoNode(format!(
            "can't listen on the LAN ({error}): say where a node is with --peer HOST:PORT"
        ))
    };
    let mut listener = Listener::new(None, kind, ring_name).map_err(failed)?;
    let request = ProbeRequest {
        ring_name: ring_name.unwrap_or_default().to_owned(),
        kind: convert::kind_to(kind),
        seeker_address: String::new(),
    };
    let start = Instant::now();
    loop {
        tokio::time::sleep(FIND_AGAIN).await;
        let (whom, _) = listener.hear().map_err(failed)?;
        let answers = discovery::ask(&whom, &request).await;
        let members = members_of_one(&answers, kind, ring_name, "the LAN")?;
        if !members.is_empty() && (ring_name.is_some() || start.elapsed() >= FIND_ALL) {
            return Ok(members);
        }
        if start.elapsed() >= FIND {
            return Err(nobody(kind, &whom));
        }
    }
}

fn nobody(kind: Kind, heard: &[Address]) -> ClientError {
    let program = program(kind);
    ClientError::NoNode(match heard.first() {
        None => format!(
            "no node is announced on the LAN: start one with `{program} --discover --listen 0.0.0.0:9900 --insecure`, \
             or say where one is with --peer HOST:PORT"
        ),
        Some(first) => format!(
            "{} announced on the LAN, as {first}, but none answers as a member of a ring: try again in a moment, or \
             say where one is with --peer HOST:PORT",
            if heard.len() == 1 { "one node is".to_owned() } else { format!("{} nodes are", heard.len()) }
        ),
    })
}
