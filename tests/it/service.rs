//! What the programs read from their environment, and tell of themselves.

use crate::rig::{Rig, Signal};

#[test]
fn options_come_from_the_environment_too_and_nothing_is_as_good_as_unset() {
    let rig = Rig::new();
    let (listen, data) = (rig.any_port(), rig.data("1"));
    let variables = [
        ("THRIFTY_LISTEN", &*listen),
        ("THRIFTY_RING", rig.ring()),
        ("THRIFTY_DATA_DIR", data.to_str().unwrap()),
        ("THRIFTY_ON_TERM", "stop"),
        ("THRIFTY_REMOVE_AFTER", "2h"),
        ("THRIFTY_WEIGHT", ""),
        ("THRIFTY_INSECURE", ""),
        ("THRIFTY_PEER", ""),
        ("THRIFTY_ADVERTISE", ""),
    ];
    let mut node = rig.spawn_with(&variables, "storeserver", &["--bootstrap"]);
    node.says(&format!("started ring {}", rig.ring()));
    node.signal(Signal::TERM);
    node.ends_well();
    node.says("stopped");
    let mut wrong = rig.spawn_with(&[("THRIFTY_REMOVE_AFTER", "1s")], "storeserver", &[]);
    assert_eq!(wrong.end(), Some(2));
    wrong.says("--remove-after");
}

#[test]
fn programs_write_their_manual_pages_and_completions() {
    let rig = Rig::new();
    let folder = rig.data("share");
    let share = folder.to_str().unwrap();
    let page = |path: &str| std::fs::read_to_string(folder.join("man").join(path)).unwrap();
    for name in ["storeserver", "location", "storeput", "storeget", "storectl", "storebench"] {
        assert_eq!(rig.tool(name, &["--generate", share]).silent(), "");
        for file in [
            format!("bash-completion/completions/{name}"),
            format!("zsh/vendor-completions/_{name}"),
            format!("fish/vendor_completions.d/{name}.fish"),
        ] {
            assert!(std::fs::read_to_string(folder.join(&file)).unwrap().contains(name), "{file}");
        }
    }
    let server = page("man8/storeserver.8");
    for part in [".SH EXAMPLES", ".SH \"EXIT STATUS\"", "THRIFTY_REMOVE_AFTER"] {
        assert!(server.contains(part), "{part} is missing:\n{server}");
    }
    assert!(page("man1/storectl.1").contains("storectl\\-leave(1)"));
    assert!(page("man1/storectl-leave.1").contains("storectl leave 3fa9"));
    let file = rig.data("file");
    std::fs::write(&file, "").unwrap();
    rig.tool("storeput", &["--generate", file.to_str().unwrap()]).fails(3, &["can't write"]);
}
