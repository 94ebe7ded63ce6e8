//! A disk that fills up under a node, for real: a small file system made for this test.

use crate::rig::{Rig, not_tested, until};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use thrifty::wire::channel;
use thrifty::wire::store::PutRequest;
use thrifty::wire::store::store_client::StoreClient;

/// Room for a node and the reserve below which it refuses writes.
const SIZE: &str = "size=640m";

/// A file system of its own, as long as this lives.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where the tester may not mount anything.
    fn mount(at: &Path) -> Option<Self> {
        fs::create_dir(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(at).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(SmallDisk(at.to_owned()));
        }
        not_tested("a full disk, because nothing can be mounted here (it takes root)");
        None
    }

    /// Takes all the room there is but so many MiB.
    fn fill_up_to(&self, remain: u64) {
        let mut filler = File::options().create(true).append(true).open(self.filler()).unwrap();
        let mebibyte = vec![0; 1 << 20];
        while self.free_mebibytes() > remain {
            filler.write_all(&mebibyte).unwrap();
        }
    }

    fn free_mebibytes(&self) -> u64 {
        let said = Command::new("df").args(["--output=avail", "-m"]).arg(&self.0).output().unwrap().stdout;
        String::from_utf8(said).unwrap().lines().last().unwrap().trim().parse().unwrap()
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is about to end may still have files open there.
        let _nothing_more_to_do = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_node_on_a_full_disk_refuses_writes_and_goes_on_reading() {
    let rig = Rig::new();
    let Some(disk) = SmallDisk::mount(&rig.data("disk")) else { return };
    let mut node = rig.node("disk/1", &rig.any_port(), &["--bootstrap"]);
    let address = node.address();
    rig.settled(std::slice::from_ref(&node));
    rig.tool("storeput", &["--peer", &address, "a", "apple"]).silent();

    disk.fill_up_to(500);
    node.says("the disk is nearly full: writes are refused until there is room");
    let put = rig.tool("storeput", &["--peer", &address, "a", "almond"]);
    put.fails(3, &["disks are full", disk.0.join("1").to_str().unwrap(), "nothing was done"]);
    let refused = rig.wait(async {
        let mut client = StoreClient::new(channel::lazy(&address.parse().unwrap()));
        client.put(PutRequest { key: "b".into(), value: "banana".into(), ..PutRequest::default() }).await
    });
    assert_eq!(refused.unwrap_err().code(), tonic::Code::ResourceExhausted);
    assert_eq!(rig.tool("storeget", &["--peer", &address, "a"]).silent(), "apple");
    rig.tool("storeget", &["--peer", &address, "b"]).fails(1, &["no value"]);

    // A node that has no room at all still starts, and reads.
    disk.fill_up_to(1);
    let node = node.start_again();
    rig.settled(std::slice::from_ref(&node));
    assert_eq!(rig.tool("storeget", &["--peer", &address, "a"]).silent(), "apple");

    disk.make_room();
    until("writes are accepted again", || {
        (rig.tool("storeput", &["--peer", &address, "a", "almond"]).code == Some(0)).then_some(())
    });
    drop(node);
}

#[test]
fn reads_go_on_where_one_owner_has_something_newer_than_those_without_room() {
    let rig = Rig::new();
    let disks: Option<Vec<_>> =
        ["disk-1", "disk-2"].map(|name| SmallDisk::mount(&rig.data(name))).into_iter().collect();
    let Some(disks) = disks else { return };
    let mut nodes = vec![rig.node("disk-1/1", &rig.any_port(), &["--bootstrap"])];
    let peer = nodes[0].address();
    nodes.extend(["disk-2/2", "3"].map(|name| rig.node(name, &rig.any_port(), &["--peer", &peer])));
    rig.settled(&nodes);
    let keys: Vec<String> = (0..12).map(|at| format!("key {at}")).collect();
    let put = |key, value| rig.tool("storeput", &["--peer", &peer, "--strict", key, value]);
    keys.iter().for_each(|key| _ = put(key, "old").silent());
    for (disk, node) in disks.iter().zip(&mut nodes) {
        disk.fill_up_to(500);
        node.says("writes are refused until there is room");
    }
    keys.iter().for_each(|key| put(key, "new").fails(5, &["disks are full"]));
    // Those without room take nothing in, and what the third finds with them is older than its own.
    let repaired = rig.tool("storectl", &["--peer", &peer, "repair", "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&repaired.stdout).unwrap();
    assert!(told["differing"].as_u64() > Some(0) && told["keys"] == 0, "{told}");
    // Whether a read meets the third node depends on the key.
    let get = |key: &String| rig.tool("storeget", &["--peer", &peer, "--strict", key]).silent();
    let found: Vec<String> = keys.iter().map(get).collect();
    assert!(found.iter().any(|value| value == "new"), "{found:?}");
    assert!(found.iter().all(|value| value == "new" || value == "old"), "{found:?}");
}

#[test]
fn a_node_that_finds_no_room_for_its_directory_says_so() {
    let rig = Rig::new();
    let Some(disk) = SmallDisk::mount(&rig.data("disk")) else { return };
    let mut filler = File::create(disk.filler()).unwrap();
    // To the last byte.
    while filler.write_all(&[0; 4096]).is_ok() {}
    let mut node = rig.node("disk/1", &rig.any_port(), &["--bootstrap"]);
    assert_eq!(node.end(), Some(3));
    let stderr = node.stderr();
    assert!(stderr.contains("No space left") && stderr.lines().count() <= 2, "{stderr}");
}
