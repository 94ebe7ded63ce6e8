//! The client: it writes values that are never written twice, deletes, reads, and minds what it is told.

use crate::key::Key;
use crate::ring::{Ring, address};
use crate::rng::Rng;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use thrifty::client::{Client, ClientConfig, ClientError, PutOptions};
use thrifty::core::ttl::Ttl;
use tokio::time::Instant;

/// Keys whose values last, and those whose values expire. The first are in the greatest demand, so that
/// what of the others is deleted or expires stays so for a while.
const LASTING: u64 = 6;
const EXPIRING: u64 = 2;

/// For how long what expires is kept. That is real time: simulated it is a second or a few.
const TTL_MS: u64 = 20;

/// Requests at once.
const WORKERS: u64 = 4;

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How much longer it takes at the most: timers are as coarse as the simulation's steps.
const SLACK: Duration = Duration::from_millis(100);

/// Some values fill many packets, to be cut half-way.
const LARGE: usize = 300 << 10;

/// What writes that may have happened or not are counted as.
pub(crate) const UNKNOWN: &str = "writes of unknown outcome";

/// How often the last reads are tried.
const LAST_TRIES: usize = 10;

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
    fn known<T>(&self, key: u64, tell: impl FnOnce(&mut Key) -> T) -> T {
        tell(&mut self.keys.borrow_mut()[key as usize])
    }

    /// Tells of a key, and notes what is wrong with that.
    fn judge(&self, key: u64, tell: impl FnOnce(&mut Key) -> Result<(), String>) {
        if let Err(why) = self.known(key, tell) {
            self.ring.fail(format!("key {key}: {why}"));
        }
    }

    async fn write(&self, key: u64, deletes: bool) {
        let (write, begun) = self.known(key, |known| known.writes(deletes));
        let (name, start) = (format!("key {key}"), Instant::now());
        let result = if deletes {
            self.client.delete(name).await
        } else {
            let options = PutOptions { ttl: self.known(key, |known| known.ttl()), ..PutOptions::default() };
            self.client.put_with(name, value(write.number), options).await
        };
        self.timely("write", start);
        self.ring.tell(format_args!("key {key}: {write:?} {}", said(&result)));
        match result {
            Ok(written) => {
                self.ring.count(if deletes { "deletes acknowledged" } else { "puts acknowledged" });
                self.judge(key, |known| known.acknowledged(write, begun, written.version));
            }
            Err(ClientError::OutcomeUnknown(_)) => {
                self.ring.count(UNKNOWN);
                self.known(key, |known| known.unknown(write, begun));
            }
            Err(_) => {
                self.ring.count("writes refused");
                self.judge(key, |known| known.refused(write));
            }
        }
    }

    async fn get(&self, key: u64) -> bool {
        let begun = self.known(key, Key::begins);
        let start = Instant::now();
        let result = self.client.get(format!("key {key}")).await;
        self.timely("get", start);
        self.ring.tell(format_args!("key {key}: get {}", said(&result)));
        match result {
            Ok(Some(found)) => match number(&found.value) {
                Some(number) => self.judge(key, |known| known.found(number, &found, begun)),
                None => self.ring.fail(format!("key {key}: a value of {} bytes is torn", found.value.len())),
            },
            Ok(None) => self.judge(key, |known| known.nothing(begun)),
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
            let most = rng.range(1, LASTING + EXPIRING + 1);
            let key = rng.below(most);
            if rng.chance(500) {
                self.write(key, key < LASTING && rng.chance(300)).await;
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
    let ttl = |key| (key >= LASTING).then(|| Ttl::from_ms(TTL_MS)).transpose();
    let keys = (0..LASTING + EXPIRING).map(|key| ttl(key).map(Key::new)).collect::<Result<_, _>>()?;
    let keys = RefCell::new(keys);
    let load = Rc::new(Load { ring: ring.clone(), client, keys });
    let worker = |number| tokio::task::spawn_local(load.clone().work(Rng::new(seed ^ (number + 1) << 32)));
    for worker in (0..WORKERS).map(worker).collect::<Vec<_>>() {
        worker.await?;
    }
    while !ring.agreed.get() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for key in 0..LASTING + EXPIRING {
        let mut tries = 0;
        while !load.get(key).await {
            tries += 1;
            if tries == LAST_TRIES {
                load.ring.fail(format!("key {key} can't be read in a ring at rest"));
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        load.judge(key, |known| known.judge());
    }
    Ok(())
}
