//! What the death of one node of three does to everybody's requests.
//!
//! Requests start on a fixed schedule, so that a ring that stalls can't hide it by being asked
//! less, and each counts in the window in which it was due. `THRIFTY_KILLED_SECONDS` says how long
//! it is watched before and after, and `_RATE` how many requests a second there are
//! (`just killed`). With the first set, latencies are held to what is promised, too.

use crate::rig::{Rig, addresses, setting};
use futures_util::StreamExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use thrifty::client::{Client, ClientConfig, ClientError};

/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(2);

/// What a deadline may be exceeded by on a busy machine before the client is to blame.
const GRACE: Duration = Duration::from_millis(250);

/// Keys that are written and read.
const KEYS: u64 = 1_000;

/// Bytes of a value.
const VALUE_BYTES: usize = 100;

/// How finely latencies are looked at.
const WINDOW: Duration = Duration::from_millis(500);

/// How much more than normally requests may take, and from when on after the kill.
const TIMES_NORMAL: u32 = 2;
const SOON: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Well,
    /// The client said that it may have happened or not.
    Unknown,
    Failed,
}

/// A request that ended.
#[derive(Debug)]
#[allow(dead_code, reason = "all of it is printed")]
struct Asked {
    read: bool,
    /// When it was due, from the begin.
    due: Duration,
    /// How long it took from then, and from when it was sent: a busy tester may be late.
    took: Duration,
    kept: Duration,
    end: End,
    said: String,
}

fn key(number: u64) -> String {
    format!("killed/{number:08}")
}

async fn ask(client: Arc<Client>, begin: Instant, due: Duration) -> Asked {
    let sent = Instant::now();
    let (read, key) = (rand::random(), key(rand::random_range(0..KEYS)));
    let result = match read {
        true => client.get(key).await.map(|found| assert!(found.is_some(), "all keys are there")),
        false => client.put(key, vec![b'x'; VALUE_BYTES]).await.map(|_| ()),
    };
    let (took, kept) = (begin.elapsed().saturating_sub(due), sent.elapsed());
    let end = match &result {
        Ok(()) => End::Well,
        Err(ClientError::OutcomeUnknown(_)) if !read => End::Unknown,
        Err(_) => End::Failed,
    };
    Asked {
        read,
        due,
        took,
        kept,
        end,
        said: result.err().map(|error| error.to_string()).unwrap_or_default(),
    }
}

/// Asks at this rate for so long, whether or not answers come.
async fn load(client: Arc<Client>, begin: Instant, rate: u64, time: Duration) -> Vec<Asked> {
    let done = Arc::new(Mutex::new(Vec::new()));
    let mut asking = tokio::task::JoinSet::new();
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let mut started = 0;
    let total = (time.as_secs_f64() * rate as f64) as u64;
    while started < total {
        tick.tick().await;
        let due = ((begin.elapsed().as_secs_f64() * rate as f64) as u64).min(total);
        for number in started..due {
            let due = Duration::from_secs_f64(number as f64 / rate as f64);
            let (client, done) = (client.clone(), done.clone());
            asking.spawn(async move {
                let asked = ask(client, begin, due).await;
                done.lock().unwrap().push(asked);
            });
        }
        started = due;
        while let Some(ended) = asking.try_join_next() {
            ended.unwrap();
        }
    }
    while let Some(ended) = asking.join_next().await {
        ended.unwrap();
    }
    std::mem::take(&mut *done.lock().unwrap())
}

/// The latency that 99 of 100 of those keep to that were due in this time.
fn p99<'a>(asked: impl IntoIterator<Item = &'a Asked>, from: Duration, to: Duration) -> Duration {
    let due = asked.into_iter().filter(|asked| (from..to).contains(&asked.due));
    let mut took: Vec<_> = due.map(|asked| asked.took).collect();
    took.sort_unstable();
    took.get(took.len() * 99 / 100).copied().unwrap_or_default()
}

/// What became of reads, or of writes.
struct Found<'a> {
    asked: Vec<&'a Asked>,
    killed: Duration,
    end: Duration,
}

impl Found<'_> {
    fn ends(&self, end: End) -> usize {
        self.asked.iter().filter(|asked| asked.end == end).count()
    }

    /// Before the kill, and when it should be forgotten.
    fn normal_and_later(&self) -> (Duration, Duration) {
        let p99 = |from, to| p99(self.asked.iter().copied(), from, to);
        (p99(Duration::ZERO, self.killed - WINDOW), p99(self.killed + SOON, self.end))
    }

    /// The windows, by their begin and from the kill on, in which more than this was usual.
    fn slow(&self, from: Duration, to: Duration, limit: Duration) -> Vec<Duration> {
        let windows = (0..).map(|n| from + n * WINDOW).take_while(|begin| *begin + WINDOW <= to);
        windows
            .filter(|begin| p99(self.asked.iter().copied(), *begin, *begin + WINDOW) > limit)
            .map(|b| b - from)
            .collect()
    }

    fn tell(&self, name: &str) {
        let (normal, later) = self.normal_and_later();
        let limit = TIMES_NORMAL * normal;
        let (before, after) =
            (self.slow(Duration::ZERO, self.killed, limit), self.slow(self.killed, self.end, limit));
        println!(
            "{name}: {} well, {} failed, {} of unknown outcome",
            self.ends(End::Well),
            self.ends(End::Failed),
            self.ends(End::Unknown)
        );
        println!(
            "  p99 {normal:.1?} before the kill, {later:.1?} from {SOON:?} after it on; more than {limit:.1?} in \
             {} windows of {WINDOW:?} before, and after it in those that began {after:.1?} after",
            before.len()
        );
    }
}

#[test]
fn a_killed_node_fails_no_request_of_the_others() {
    let (seconds, rate) = (setting("KILLED_SECONDS"), setting("KILLED_RATE").unwrap_or(50));
    let half = Duration::from_secs(seconds.unwrap_or(2));
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let client =
        rig.client_with(&addresses(&nodes), ClientConfig { timeout: DEADLINE, ..ClientConfig::default() });
    let client = Arc::new(client);
    // With more time, since all come at once.
    let patient = rig.client(&addresses(&nodes));
    rig.wait(async {
        let puts = (0..KEYS).map(|number| patient.put(key(number), vec![b'x'; VALUE_BYTES]));
        let mut stored = futures_util::stream::iter(puts).buffer_unordered(8);
        while let Some(one) = stored.next().await {
            one.unwrap();
        }
    });
    let warm = rig.runtime().spawn(load(client.clone(), Instant::now(), rate, half / 4));
    rig.wait(warm).unwrap();

    assert!(seconds.is_none() || half > SOON + WINDOW, "too short to tell what comes later");
    let begin = Instant::now();
    let asking = rig.runtime().spawn(load(client, begin, rate, 2 * half));
    std::thread::sleep(half);
    // The one that the client knew first, so that it also has to look for others.
    nodes[0].kill();
    let killed = begin.elapsed();
    let asked = rig.wait(asking).unwrap();

    let end = 2 * half;
    for from in (0..).map(|n| n * WINDOW).take_while(|from| *from < end) {
        let of = |read| p99(asked.iter().filter(|a| a.read == read), from, from + WINDOW);
        println!("{from:>6.1?}: p99 of reads {:>8.1?}, of writes {:>8.1?}", of(true), of(false));
    }
    for bad in asked.iter().filter(|asked| asked.end != End::Well).take(5) {
        println!("{bad:?}");
    }
    let slowest = asked.iter().map(|asked| asked.kept).max().unwrap();
    println!("killed after {killed:.2?} at {rate} requests/s; the slowest took {slowest:.1?}");
    for (name, read) in [("reads", true), ("writes", false)] {
        let found = Found { asked: asked.iter().filter(|a| a.read == read).collect(), killed, end };
        found.tell(name);
        assert_eq!(found.ends(End::Failed), 0, "of {name}");
        let (normal, later) = found.normal_and_later();
        assert!(seconds.is_none() || later <= TIMES_NORMAL * normal, "{name}: {later:?}, usually {normal:?}");
    }
    assert!(slowest <= DEADLINE + GRACE, "{slowest:?}");
    // Those on connections that broke, which the client learns in a moment, and no others.
    for unknown in asked.iter().filter(|asked| asked.end == End::Unknown) {
        assert!(unknown.due <= killed + GRACE && killed <= unknown.due + DEADLINE, "{unknown:?}");
    }
}
