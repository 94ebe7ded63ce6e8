//! The torture: a ring of real processes that are killed, stopped, cut off from each other,
//! joined and left, while others write and read; then every acknowledged write is read back.
//!
//! A seed decides what is done and in which order, and each run prints its own; how it goes then
//! depends on the machine as well. `THRIFTY_TORTURE_KILLS`, `_KEYS` and `_SEED` choose the size and
//! the seed. The history is kept, for this judge and others (`README.md`).

pub(crate) mod history;
pub(crate) mod judge;
pub(crate) mod work;

use crate::rig::{Network, Node, Rig, Signal, setting};
use history::History;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};
use work::Work;

/// How many nodes there are. With three owners per key, one of three may be missing.
const NODES: RangeInclusive<usize> = 3..=5;

/// For how long a node that was killed stays away, in milliseconds: from less than the ring takes
/// to see it to more.
const AWAY_MS: RangeInclusive<u64> = 0..=5_000;

/// For how long a node hangs, or is cut off, in milliseconds.
const HANGS_MS: RangeInclusive<u64> = 1_000..=8_000;

/// For how long a change of the ring has been under way when somebody is killed, in milliseconds.
const INTO_A_CHANGE_MS: RangeInclusive<u64> = 0..=400;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fault {
    /// kill -9 to one node or to as many as are not missed, and start them again.
    Kill,
    /// kill -9 to all, and start them again in any order.
    KillAll,
    /// SIGSTOP, and SIGCONT later.
    Hang,
    /// A node joins, or one leaves on Ctrl-C.
    Change,
    /// The same, and another is killed meanwhile.
    KillInChange,
    /// Some nodes don't hear others.
    Cut,
}

/// What happens in some order before anything happens again, so that each happens in a short run.
const DECK: [(Fault, usize); 6] = [
    (Fault::Kill, 13),
    (Fault::KillAll, 1),
    (Fault::Hang, 1),
    (Fault::Change, 1),
    (Fault::KillInChange, 1),
    (Fault::Cut, 2),
];

#[test]
fn torture_loses_no_acknowledged_write() {
    let (kills, keys) = (setting("TORTURE_KILLS").unwrap_or(50), setting("TORTURE_KEYS").unwrap_or(5_000));
    let seed = setting("TORTURE_SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
    println!("torture: seed {seed}, {kills} kills, {keys} keys");
    let begun = Instant::now();
    let network = Network::make(*NODES.end());
    let rig = Rig::new();
    let history = Arc::new(History::new("torture", &format!("{kills}-kills-{keys}-keys.jsonl")));
    println!("its history: {}", history.path().display());
    history.note(&format!("seed {seed}"));

    let mut torture = Torture::begin(&rig, network.as_ref(), history.clone(), seed);
    let mut deck = Vec::new();
    while torture.kills < kills {
        let fault = deck.pop().unwrap_or_else(|| {
            deck = torture.shuffled_deck();
            deck.pop().unwrap()
        });
        // Kills so far, and those of this time, have so much of the writing to themselves.
        let from = torture.work.acknowledged();
        let to = (keys * (torture.kills + 1) / kills).max(from + 10);
        torture.work.wants(to);
        torture.work.reaches(torture.rng.random_range(from..to));
        torture.strike(fault);
        torture.work.reaches(to);
    }
    torture.work.wants(keys);
    torture.work.reaches(keys);
    torture.settled();
    let places = torture.addresses();
    // The members live on until all is read.
    let Torture { work, kills, done, members: _members, .. } = torture;
    let acknowledged = work.acknowledged();
    let verdict = work.judged(&rig, &places);
    println!(
        "{kills} kills, {acknowledged} unique keys in {} s; {done:?}; {verdict:#?}",
        begun.elapsed().as_secs()
    );
    assert!(verdict.wrong.is_empty(), "seed {seed}: {:#?}", verdict.wrong);
    assert!(verdict.acknowledged >= acknowledged && verdict.read_back >= acknowledged);
    assert!(verdict.deletes > 0);
}

/// A node, and its place in the network.
struct Member<'r> {
    node: Node<'r>,
    name: String,
    place: usize,
}

struct Torture<'r> {
    rig: &'r Rig,
    network: Option<&'r Network>,
    history: Arc<History>,
    rng: StdRng,
    members: Vec<Member<'r>>,
    /// Nodes that ever were; the next one's name.
    names: usize,
    kills: u64,
    done: BTreeMap<Fault, u64>,
    work: Work,
}

fn start<'r>(
    rig: &'r Rig,
    network: Option<&Network>,
    name: usize,
    place: usize,
    arguments: &[&str],
) -> Member<'r> {
    let name = name.to_string();
    // What was deleted is forgotten by the way.
    let mut all = [&["--collect-every", "3s"], arguments].concat();
    let node = match network {
        None => rig.node(&name, &rig.any_port(), &all),
        Some(network) => {
            all.push("--insecure");
            rig.node_in(Some(&network.namespace(place)), &name, &network.address(place), &all)
        }
    };
    Member { node, name, place }
}

impl<'r> Torture<'r> {
    /// Makes a ring and starts the work.
    fn begin(rig: &'r Rig, network: Option<&'r Network>, history: Arc<History>, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(NODES);
        let mut members = vec![start(rig, network, 0, 0, &["--bootstrap"])];
        let peer = members[0].node.address();
        members.extend((1..count).map(|at| start(rig, network, at, at, &["--peer", &peer])));
        let places: Vec<String> = members.iter().map(|member| member.node.address()).collect();
        rig.settled_at(&places);
        let work = Work::start(rig, &places, history.clone());
        Torture { rig, network, history, rng, members, names: count, kills: 0, done: BTreeMap::new(), work }
    }

    fn shuffled_deck(&mut self) -> Vec<Fault> {
        let mut deck: Vec<Fault> =
            DECK.into_iter().flat_map(|(fault, times)| std::iter::repeat_n(fault, times)).collect();
        if self.network.is_none() {
            deck.retain(|fault| *fault != Fault::Cut);
        }
        deck.shuffle(&mut self.rng);
        deck
    }

    fn addresses(&self) -> Vec<String> {
        self.members.iter().map(|member| member.node.address()).collect()
    }

    fn settled(&self) {
        self.rig.settled_at(&self.addresses());
    }

    fn note(&self, what: &str, whom: &[usize]) {
        let whom: Vec<_> = whom.iter().map(|at| self.members[*at].node.address()).collect();
        self.history.note(&format!("{what} {}", whom.join(", ")));
    }

    /// Lets a random time of this range pass, far more often a short one.
    fn pass(&mut self, milliseconds: RangeInclusive<u64>) {
        let shortest = (0..4).map(|_| self.rng.random_range(milliseconds.clone())).min();
        std::thread::sleep(Duration::from_millis(shortest.unwrap()));
    }

    /// Some members that the others don't need, as their indexes.
    fn minority(&mut self) -> Vec<usize> {
        let count = self.rng.random_range(1..=(self.members.len() - 1) / 2);
        let all: Vec<usize> = (0..self.members.len()).collect();
        all.sample(&mut self.rng, count).copied().collect()
    }

    /// Does it, and makes it good again. The ring may still be busy with it on return.
    fn strike(&mut self, fault: Fault) {
        self.members.iter_mut().for_each(|member| member.node.still_runs());
        *self.done.entry(fault).or_default() += 1;
        match fault {
            Fault::Kill => {
                let victims = self.minority();
                self.kill(&victims);
            }
            Fault::KillAll => self.kill(&(0..self.members.len()).collect::<Vec<_>>()),
            Fault::Hang => {
                let victims = self.minority();
                self.note("stop", &victims);
                victims.iter().for_each(|at| self.members[*at].node.signal(Signal::STOP));
                self.pass(HANGS_MS);
                self.note("continue", &victims);
                victims.iter().for_each(|at| self.members[*at].node.signal(Signal::CONT));
            }
            Fault::Change => self.change(false),
            Fault::KillInChange => self.change(true),
            Fault::Cut => self.cut(),
        }
        // Now and then the next blow comes before the ring has got over this one.
        if self.rng.random_bool(0.5) {
            self.settled();
        }
    }

    fn kill(&mut self, victims: &[usize]) {
        self.note("kill", victims);
        victims.iter().for_each(|at| self.members[*at].node.signal(Signal::KILL));
        victims.iter().for_each(|at| assert_eq!(self.members[*at].node.end(), None, "it was killed"));
        self.kills += victims.len() as u64;
        self.pass(AWAY_MS);
        let mut order = victims.to_vec();
        order.shuffle(&mut self.rng);
        for at in order {
            let Member { node, name, place } = self.members.remove(at);
            self.members.insert(at, Member { node: node.start_again(), name, place });
        }
        self.note("started", victims);
    }

    fn change(&mut self, and_kill: bool) {
        // One change after the other, for whoever leaves waits for all that.
        self.settled();
        let count = self.members.len();
        let joins = count == *NODES.start() || count < *NODES.end() && self.rng.random_bool(0.5);
        let victim = self.rng.random_range(0..count);
        if joins {
            let peer = self.members[victim].node.address();
            let place = (0..).find(|place| self.members.iter().all(|m| m.place != *place)).unwrap();
            let joiner = start(self.rig, self.network, self.names, place, &["--peer", &peer]);
            self.names += 1;
            self.history.note(&format!("join {}", joiner.node.address()));
            if and_kill {
                self.pass(INTO_A_CHANGE_MS);
                self.kill(&[victim]);
            }
            self.members.push(joiner);
            self.settled();
        } else {
            let mut leaver = self.members.swap_remove(victim);
            self.history.note(&format!("leave {}", leaver.node.address()));
            leaver.node.interrupt();
            if and_kill {
                let victim = self.rng.random_range(0..self.members.len());
                self.pass(INTO_A_CHANGE_MS);
                self.kill(&[victim]);
            }
            leaver.node.ends_well();
            fs::remove_dir_all(self.rig.data(&leaver.name)).unwrap();
        }
    }

    /// Either a minority is apart from the rest, or two can't reach each other and the rest can
    /// reach both; each in both directions or in one.
    fn cut(&mut self) {
        let network = self.network.unwrap();
        let (some, others): (Vec<usize>, Vec<usize>) = if self.rng.random_bool(0.7) {
            let some = self.minority();
            let others = (0..self.members.len()).filter(|at| !some.contains(at)).collect();
            (some, others)
        } else {
            let all: Vec<usize> = (0..self.members.len()).collect();
            let two: Vec<usize> = all.sample(&mut self.rng, 2).copied().collect();
            (vec![two[0]], vec![two[1]])
        };
        let [outward, inward] = *[[true, true], [true, false], [false, true]].choose(&mut self.rng).unwrap();
        for (one, other) in some.iter().flat_map(|one| others.iter().map(move |other| (one, other))) {
            let (one, other) = (self.members[*one].place, self.members[*other].place);
            if outward {
                network.cut(one, other);
            }
            if inward {
                network.cut(other, one);
            }
        }
        self.note(if outward { "can't be heard:" } else { "can be heard:" }, &some);
        self.note(if inward { "and by them can't be heard:" } else { "and by them can be heard:" }, &others);
        self.pass(HANGS_MS);
        network.heal();
        self.history.note("the network is whole");
    }
}
