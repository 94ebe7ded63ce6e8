//! A network of its own for every node, which can be cut anywhere and in one direction only.
//!
//! Each node gets a network namespace, joined to the others and to the tester by a bridge. A cut
//! is a packet filter in the namespace of who shall not hear: to the nodes it looks as a broken
//! cable does, since nothing tells them that packets are dropped.
//!
//! All names start with the tester's process id, so that rigs don't meet, and so that what a
//! tester left behind that was itself killed is found and removed by the next.

use super::not_tested;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::net::Ipv4Addr;
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// What the names of namespaces start with, before the process id.
const PREFIX: &str = "torture";

/// The port that every node listens on.
const PORT: u16 = 9900;

/// The addresses that are reserved for test rigs (RFC 2544), and how many networks of 16 they make.
const RESERVED: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const NETWORKS: u32 = 1 << 13;

/// Networks that a process may have without meeting that of the next process.
const PER_PROCESS: u32 = 4;

/// Where in its network the tester is: beyond all nodes.
const TESTER: usize = 13;

/// The bridge and the namespaces, which go when this does.
pub(crate) struct Network {
    /// The process and the network's number in it.
    name: String,
    subnet: Ipv4Addr,
    places: usize,
}

impl Network {
    /// A network with so many places. `None`, with a note, where that can't be had.
    pub(crate) fn make(places: usize) -> Option<Self> {
        remove_leftovers();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let number = pid.wrapping_mul(PER_PROCESS).wrapping_add(count) % NETWORKS;
        let subnet = Ipv4Addr::from_bits(RESERVED.to_bits() + 16 * number);
        let network = Network { name: format!("{pid}-{count}"), subnet, places };
        match network.set_up() {
            Ok(()) => Some(network),
            Err(why) => {
                not_tested(&format!("partitions, which take Linux, root, iproute2 and nftables: {why}"));
                None
            }
        }
    }

    fn set_up(&self) -> Result<(), String> {
        let bridge = &self.bridge();
        // Multicast reaches everybody, as it does through a plain switch.
        ip(&format!("link add {bridge} type bridge mcast_snooping 0"))?;
        ip(&format!("addr add {}/28 dev {bridge}", self.ip(TESTER)))?;
        ip(&format!("link set {bridge} up"))?;
        for place in 0..self.places {
            let (space, link) = (self.namespace(place), self.link(place));
            ip(&format!("netns add {space}"))?;
            ip(&format!("link add {link} type veth peer name eth0 netns {space}"))?;
            ip(&format!("link set {link} master {bridge} up"))?;
            ip(&format!("-n {space} addr add {}/28 dev eth0", self.ip(place)))?;
            ip(&format!("-n {space} link set eth0 up"))?;
            ip(&format!("-n {space} link set lo up"))?;
            self.filter(place, "add table inet torture")?;
            self.filter(place, "add chain inet torture heard { type filter hook input priority 0; }")?;
            self.filter(place, "add chain inet torture counted { type filter hook input priority 1; }")?;
            let (first, last) = (self.ip(0), self.ip(self.places - 1));
            let count = format!("add rule inet torture counted ip saddr {first}-{last} counter");
            self.filter(place, &count)?;
        }
        Ok(())
    }

    /// The network namespace of a place.
    pub(crate) fn namespace(&self, place: usize) -> String {
        format!("{PREFIX}{}-{place}", self.name)
    }

    /// Where the node in a place listens.
    pub(crate) fn address(&self, place: usize) -> String {
        format!("{}:{PORT}", self.ip(place))
    }

    /// Runs something with what a place has of the network: it keeps the sockets that it makes there.
    #[cfg(target_os = "linux")]
    pub(crate) fn inside<T: Send>(&self, place: usize, work: impl FnOnce() -> T + Send) -> T {
        use rustix::thread::{LinkNameSpaceType::Network, move_into_link_name_space};
        let space = fs::File::open(Path::new("/run/netns").join(self.namespace(place))).unwrap();
        let there = || {
            move_into_link_name_space(space.as_fd(), Some(Network)).unwrap();
            work()
        };
        // The thread ends there: no other of this process is moved.
        std::thread::scope(|scope| scope.spawn(there).join()).unwrap()
    }

    /// From now on, the second of two places hears nothing of the first.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        let rule = format!("add rule inet torture heard ip saddr {} drop", self.ip(from));
        self.filter(to, &rule).unwrap();
    }

    /// Everybody hears everybody again.
    pub(crate) fn heal(&self) {
        for place in 0..self.places {
            self.filter(place, "flush chain inet torture heard").unwrap();
        }
    }

    /// Bytes that the nodes have heard of each other so far, headers and all; what the tester says
    /// to them does not count.
    pub(crate) fn heard_bytes(&self) -> u64 {
        let heard = |place| {
            let told = self.filter(place, "list chain inet torture counted").unwrap();
            let bytes = told.split_once(" bytes ").and_then(|(_, rest)| rest.split_whitespace().next());
            bytes.unwrap().parse::<u64>().unwrap()
        };
        (0..self.places).map(heard).sum()
    }

    /// The address of a place.
    pub(crate) fn ip(&self, place: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.to_bits() + place as u32 + 1)
    }

    /// The names of the bridge and of the tester's end of a place's cable: the system allows 15 bytes.
    fn bridge(&self) -> String {
        format!("t{}", self.name)
    }

    fn link(&self, place: usize) -> String {
        format!("t{}-{place}", self.name)
    }

    fn filter(&self, place: usize, command: &str) -> Result<String, String> {
        run("ip", &["netns", "exec", &self.namespace(place), "nft", command])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for place in 0..self.places {
            // Its end of the cable goes with the namespace, and the other end with that.
            let _never_made = ip(&format!("netns del {}", self.namespace(place)));
        }
        let _never_made = ip(&format!("link del {}", self.bridge()));
    }
}

fn ip(arguments: &str) -> Result<String, String> {
    run("ip", &arguments.split(' ').collect::<Vec<_>>())
}

/// Runs a program to its end: what it printed, or what went wrong.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let what = format!("`{program} {}`", arguments.join(" "));
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("{what}: {e}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Removes the networks of testers that are gone, and ends the nodes that are still in them.
fn remove_leftovers() {
    let Ok(spaces) = fs::read_dir("/run/netns") else { return };
    for space in spaces.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let Some((network, _)) = space.strip_prefix(PREFIX).and_then(|rest| rest.rsplit_once('-')) else {
            continue;
        };
        let tester = network.split_once('-').map_or(network, |(tester, _)| tester);
        if Path::new("/proc").join(tester).exists() {
            continue;
        }
        let inside = Command::new("ip").args(["netns", "pids", &space]).output();
        let inside = inside.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        for pid in inside.unwrap_or_default().lines() {
            let pid = pid.parse().ok().and_then(Pid::from_raw);
            let _gone_already = pid.map(|pid| kill_process(pid, Signal::KILL));
        }
        let _another_was_faster = ip(&format!("netns del {space}"));
        let _another_was_faster = ip(&format!("link del t{network}"));
    }
}
