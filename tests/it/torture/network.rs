//! A network of its own for every node, which can be cut anywhere and in one direction only.
//!
//! Each node gets a network namespace, joined to the others and to the tester by a bridge. A cut
//! is a packet filter in the namespace of who shall not hear: to the nodes it looks as a broken
//! cable does, since nothing tells them that packets are dropped.
//!
//! All names start with the tester's process id, so that rigs don't meet, and so that what a
//! tester left behind that was itself killed is found and removed by the next.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// What the names of everything start with, before the process id.
const PREFIX: &str = "torture";

/// The port that every node listens on.
const PORT: u16 = 9900;

/// The bridge and the namespaces, which go when this does.
pub(crate) struct Network {
    name: String,
    /// The first three bytes of all addresses, out of the range that is reserved for test rigs
    /// (RFC 2544).
    subnet: String,
    places: usize,
}

impl Network {
    /// A network with so many places. `None`, with a note, where that can't be had.
    pub(crate) fn make(places: usize) -> Option<Self> {
        remove_leftovers();
        let pid = std::process::id();
        let subnet = format!("198.{}.{}", 18 + (pid >> 8) % 2, pid % 256);
        let network = Network { name: format!("{PREFIX}{pid}"), subnet, places };
        match network.set_up() {
            Ok(()) => Some(network),
            Err(why) => {
                // Not by a macro of the test harness's, which hides what a test says that passes.
                let _nobody_listens = writeln!(
                    std::io::stderr(),
                    "NOT TESTED: partitions, which take Linux, root, iproute2 and nftables: {why}"
                );
                None
            }
        }
    }

    fn set_up(&self) -> Result<(), String> {
        let (bridge, subnet) = (&self.name, &self.subnet);
        ip(&format!("link add {bridge} type bridge"))?;
        ip(&format!("addr add {subnet}.254/24 dev {bridge}"))?;
        ip(&format!("link set {bridge} up"))?;
        for place in 0..self.places {
            let (space, link) = (self.namespace(place), self.link(place));
            ip(&format!("netns add {space}"))?;
            ip(&format!("link add {link} type veth peer name eth0 netns {space}"))?;
            ip(&format!("link set {link} master {bridge} up"))?;
            ip(&format!("-n {space} addr add {}/24 dev eth0", self.ip(place)))?;
            ip(&format!("-n {space} link set eth0 up"))?;
            ip(&format!("-n {space} link set lo up"))?;
            self.filter(place, "add table inet torture")?;
            self.filter(place, "add chain inet torture heard { type filter hook input priority 0; }")?;
        }
        Ok(())
    }

    /// The network namespace of a place.
    pub(crate) fn namespace(&self, place: usize) -> String {
        format!("{}-{place}", self.name)
    }

    /// Where the node in a place listens.
    pub(crate) fn address(&self, place: usize) -> String {
        format!("{}:{PORT}", self.ip(place))
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

    fn ip(&self, place: usize) -> String {
        format!("{}.{}", self.subnet, place + 1)
    }

    /// The name of the tester's end of a place's cable: the system allows 15 bytes.
    fn link(&self, place: usize) -> String {
        format!("t{}-{place}", self.name.trim_start_matches(PREFIX))
    }

    fn filter(&self, place: usize, command: &str) -> Result<(), String> {
        run("ip", &["netns", "exec", &self.namespace(place), "nft", command])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for place in 0..self.places {
            // Its end of the cable goes with the namespace, and the other end with that.
            let _never_made = ip(&format!("netns del {}", self.namespace(place)));
        }
        let _never_made = ip(&format!("link del {}", self.name));
    }
}

fn ip(arguments: &str) -> Result<(), String> {
    run("ip", &arguments.split(' ').collect::<Vec<_>>())
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let what = format!("`{program} {}`", arguments.join(" "));
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("{what}: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Removes the networks of testers that are gone, and ends the nodes that are still in them.
fn remove_leftovers() {
    let Ok(spaces) = fs::read_dir("/run/netns") else { return };
    for space in spaces.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let Some((tester, _)) = space.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')) else {
            continue;
        };
        if Path::new("/proc").join(tester).exists() {
            continue;
        }
        let inside = Command::new("ip").args(["netns", "pids", &space]).output();
        let inside = inside.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        for pid in inside.unwrap_or_default().lines() {
            let _gone_already = run("kill", &["-9", pid]);
        }
        let _another_was_faster = ip(&format!("netns del {space}"));
        let _another_was_faster = ip(&format!("link del {PREFIX}{tester}"));
    }
}
