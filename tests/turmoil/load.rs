//! The client: it writes values that are never written twice, reads, and minds what it is told.

use crate::ring::{Ring, address};
use crate::rng::Rng;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;
use thrifty::client::{Client, ClientConfig, ClientError};
use thrifty::core::record::Version;
use tokio::time::Instant;

const KEYS: u64 = 6;

/// Requests at once.
const WORKERS: u64 = 4;

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How much longer it takes at the most: timers are as coarse as the simulation's steps.
const SLACK: Duration = Duration::from_millis(100);

/// Some values fill many packets, to be cut half-way.
const LARGE: usize = 300 << 10;

/// How often the last reads are tried.
const LAST_TRIES: usize = 10;

/// What is known of a key.
#[derive(Default)]
struct Key {
    /// The newest version acknowledged or returned.
    floor: Version,
    /// The values that were acknowledged or returned, by their versions.
    known: HashMap<Version, u64>,
    /// The values of writes that were refused: nothing was done.
    refused: Vec<u64>,
    /// The last value sent.
    sent: u64,
}

struct Load {
    ring: Rc<Ring>,
    client: Client,
    keys: RefCell<Vec<Key>>,
}

/// The number that a value begins with, if the value is whole.
fn number(value: &[u8]) -> Option<u64> {
    let number = u64::from_be_bytes(*value.first_chunk()?);
    (value.len() == length(number) && value[8..].iter().all(|byte| *byte == number as u8)).then_some(number)
}

fn length(number: u64) -> usize {
    if number.is_multiple_of(16) { LARGE } else { 16 }
}

fn value(number: u64) -> Vec<u8> {
    let mut value = number.to_be_bytes().to_vec();
    value.resize(length(number), number as u8);
    value
}

impl Load {
    /// A version was acknowledged or returned with this value, to a request that began at `floor`.
    fn learn(&self, key: u64, version: Version, number: u64, floor: Version, by: &str) {
        let state = &mut self.keys.borrow_mut()[key as usize];
        let known = *state.known.entry(version).or_insert(number);
        let late = if by == "put" { version <= floor } else { version < floor };
        if late || known != number || state.refused.contains(&number) || number > state.sent {
            self.ring.fail(format!(
                "key {key}: a {by} ended with {number} at {version:?}, where {floor:?} was known before, \
                 {known} had that version, and {:?} were refused",
                state.refused
            ));
        }
        state.floor = state.floor.max(version);
    }

    async fn put(&self, key: u64) {
        let (number, floor) = {
            let state = &mut self.keys.borrow_mut()[key as usize];
            state.sent += 1;
            (state.sent, state.floor)
        };
        let begun = Instant::now();
        let result = self.client.put(format!("key {key}"), value(number)).await;
        self.timely("put", begun);
        self.ring.tell(format_args!("key {key}: put {number} {}", said(&result)));
        match result {
            Ok(written) => {
                self.ring.count("puts acknowledged");
                self.learn(key, written.version, number, floor, "put");
            }
            Err(ClientError::OutcomeUnknown(_)) => self.ring.count("puts of unknown outcome"),
            Err(_) => {
                self.ring.count("puts refused");
                self.keys.borrow_mut()[key as usize].refused.push(number);
            }
        }
    }

    async fn get(&self, key: u64) -> bool {
        let floor = self.keys.borrow()[key as usize].floor;
        let begun = Instant::now();
        let result = self.client.get(format!("key {key}")).await;
        self.timely("get", begun);
        self.ring.tell(format_args!("key {key}: get {}", said(&result)));
        match result {
            Ok(Some(found)) => match number(&found.value) {
                Some(number) => self.learn(key, found.version, number, floor, "get"),
                None => self.ring.fail(format!("key {key}: a value of {} bytes is torn", found.value.len())),
            },
            Ok(None) if floor != Version::default() => {
                self.ring.fail(format!("key {key}: nothing found, where {floor:?} was known"));
            }
            Ok(None) => {}
            Err(_) => {
                self.ring.count("gets failed");
                return false;
            }
        }
        self.ring.count("gets answered");
        true
    }

    fn timely(&self, what: &str, begun: Instant) {
        if begun.elapsed() > TIMEOUT + SLACK {
            self.ring.fail(format!("a {what} took {:?}", begun.elapsed()));
        }
    }

    async fn work(self: Rc<Self>, mut rng: Rng) {
        while !self.ring.over.get() {
            let key = rng.below(KEYS);
            if rng.chance(500) {
                self.put(key).await;
            } else {
                self.get(key).await;
            }
            tokio::time::sleep(Duration::from_millis(rng.range(5, 200))).await;
        }
    }
}

fn said<T: std::fmt::Debug>(result: &Result<T, ClientError>) -> String {
    match result {
        Ok(_) => "done".into(),
        Err(error) => format!("failed: {error}"),
    }
}

/// What the client does from beginning to end.
pub(crate) async fn run(ring: Rc<Ring>, seed: u64) -> turmoil::Result {
    let seeds: Vec<_> = (0..ring.len()).map(address).collect();
    let config = ClientConfig { timeout: TIMEOUT, ..ClientConfig::default() };
    let client = loop {
        match Client::connect(seeds.clone(), config.clone()).await {
            Ok(client) => break client,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    let keys = RefCell::new((0..KEYS).map(|_| Key::default()).collect());
    let load = Rc::new(Load { ring, client, keys });
    let worker = |number| tokio::task::spawn_local(load.clone().work(Rng::new(seed ^ (number + 1) << 32)));
    for worker in (0..WORKERS).map(worker).collect::<Vec<_>>() {
        worker.await?;
    }
    for key in 0..KEYS {
        let mut tries = 0;
        while !load.get(key).await {
            tries += 1;
            if tries == LAST_TRIES {
                load.ring.fail(format!("key {key} can't be read in a ring at rest"));
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    Ok(())
}
