use super::*;

fn heard() -> Heard {
    Heard::new(Wanted { kind: Kind::Store, ring: Some("r".into()) })
}

fn say(heard: &mut Heard, name: &str, says: &[(&str, &[u8])]) {
    heard.says(name, |key| says.iter().find(|(k, _)| *k == key).map(|(_, value)| *value));
}

fn announce(heard: &mut Heard, name: &str, address: &str) {
    say(heard, name, &[(RING, b"r"), (KIND, b"store"), (ADDRESS, address.as_bytes())]);
}

fn whom(heard: &mut Heard) -> Vec<String> {
    heard.whom().0.iter().map(Address::to_string).collect()
}

#[test]
fn only_nodes_that_claim_the_ring_and_the_kind_are_asked() {
    let mut heard = heard();
    say(&mut heard, "a", &[(RING, b"other"), (KIND, b"store"), (ADDRESS, b"10.0.0.1:1")]);
    say(&mut heard, "b", &[(RING, b"r"), (KIND, b"location"), (ADDRESS, b"10.0.0.2:1")]);
    say(&mut heard, "c", &[(RING, b"r"), (KIND, b"store")]);
    say(&mut heard, "d", &[]);
    assert!(heard.whom().0.is_empty());
    announce(&mut heard, "e", "10.0.0.5:1");
    assert_eq!(whom(&mut heard), ["10.0.0.5:1"]);
    let mut any = Heard::new(Wanted { kind: Kind::Store, ring: None });
    announce(&mut any, "e", "10.0.0.5:1");
    assert_eq!(whom(&mut any), ["10.0.0.5:1"]);
}

#[test]
fn who_moves_is_asked_there_and_who_says_goodbye_no_more() {
    let mut heard = heard();
    announce(&mut heard, "a", "10.0.0.1:1");
    announce(&mut heard, "a", "10.0.0.2:1");
    announce(&mut heard, "b", "10.0.0.2:1");
    assert_eq!(whom(&mut heard), ["10.0.0.2:1"], "each once");
    heard.is_gone("a");
    heard.is_gone("never");
    assert_eq!(whom(&mut heard), ["10.0.0.2:1"]);
    say(&mut heard, "b", &[(RING, b"other"), (KIND, b"store"), (ADDRESS, b"10.0.0.2:1")]);
    assert!(heard.whom().0.is_empty());
}

#[test]
fn what_is_no_address_of_somebody_else_is_not_asked() {
    let mut heard = heard();
    let long = format!("{}:1", "h".repeat(300));
    let bad = [
        "",
        "10.0.0.1",
        "127.0.0.1:9900",
        "127.9.9.9:1",
        "[::1]:9900",
        "[::ffff:127.0.0.1]:9900",
        "0.0.0.0:9900",
        "[::]:1",
        "224.0.0.251:5353",
        "10.0.0.1:0",
        "me@host:1",
        "host/path:1",
        &long,
    ];
    for (number, address) in bad.into_iter().enumerate() {
        announce(&mut heard, &number.to_string(), address);
        assert_eq!(whom(&mut heard), [""; 0], "{address}");
    }
    say(&mut heard, "x", &[(RING, b"r"), (KIND, b"store"), (ADDRESS, b"\xff\xfe:1")]);
    assert!(heard.whom().0.is_empty());
    announce(&mut heard, "y", "host.example:9900");
    assert_eq!(whom(&mut heard), ["host.example:9900"]);
}

fn flood(heard: &mut Heard, count: usize) {
    (0..count).for_each(|n| announce(heard, &n.to_string(), &format!("10.0.0.1:{}", n + 1)));
}

#[test]
fn of_many_all_are_asked_in_turn_and_their_silence_means_nothing() {
    let mut heard = heard();
    flood(&mut heard, ASK);
    assert_eq!((heard.whom().0.len(), heard.whom().1), (ASK, true));
    flood(&mut heard, 5 * ASK - 1);
    let rounds: Vec<_> = (0..5).map(|_| heard.whom()).collect();
    assert!(rounds.iter().all(|(whom, all)| whom.len() == ASK && !all));
    let asked: BTreeSet<&Address> = rounds.iter().flat_map(|(whom, _)| whom).collect();
    assert_eq!(asked.len(), 5 * ASK - 1);
}

#[test]
fn a_flood_is_cut_off() {
    let mut heard = heard();
    flood(&mut heard, MAX_HEARD);
    flood(&mut heard, MAX_HEARD);
    assert!(!heard.flooded, "the same ones again");
    flood(&mut heard, MAX_HEARD + 1);
    assert_eq!((heard.addresses.len(), heard.flooded), (MAX_HEARD, true));
    heard.forget();
    assert_eq!(heard.whom(), (Vec::new(), true));
}

#[test]
fn a_machine_with_several_addresses_does_not_guess() {
    let all = |all: &[u8]| the_only(&all.iter().map(|last| Ipv4Addr::new(10, 0, 0, *last)).collect());
    assert_eq!(all(&[5]), Ok(Ipv4Addr::new(10, 0, 0, 5)));
    assert!(all(&[5, 6]).unwrap_err().contains("10.0.0.5, 10.0.0.6"));
    assert!(all(&[]).is_err());
}
