//! What the death of one node of three does to everybody's requests.
//!
//! Requests start on a fixed schedule, so that a ring that stalls can't hide it by being asked
//! less, and each counts in the window in which it was due. `THRIFTY_KILLED_SECONDS` says how long
//! it is watched before and after, and `_RATE` how many requests a second there are
//! (`just killed`). With the first set, latencies are held to what is promised, too.

use crate::rig::{Rig, addresses, setting};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use thrifty::client::{Client, ClientConfig, ClientError};

/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(2);

/// What a deadline may be exceeded by on a busy machine before the client is to blame.
const GRACE: Duration = Duration::from_millis(250);

/// Keys that are written and read.
const KEYS: u64 = 10_000;

/// Bytes of a value.
const VALUE_BYTES: usize = 100;

/// How finely latencies are looked at.
const WINDOW: Duration = Duration::from_millis(500);

/// How much more than normal latencies may be, and for how long.
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
#[derive(Clone, Debug)]
struct Asked {
    read: bool,
    /// When it was due, from the begin.
    due: Duration,
    /// How long it took from then.
    took: Duration,
    end: End,
    said: String,
}

fn key(number: u64) -> String {
    format!("killed/{number:08}")
}

async fn ask(client: Arc<Client>, begin: Instant, due: Duration) -> Asked {
    let (read, key) = (rand::random(), key(rand::random_range(0..KEYS)));
    let result = match read {
        true => client.get(key).await.map(|found| assert!(found.is_some(), "all keys are there")),
        false => client.put(key, vec![b'x'; VALUE_BYTES]).await.map(|_| ()),
    };
    let took = begin.elapsed().saturating_sub(due);
    let end = match &result {
        Ok(()) => End::Well,
        Err(ClientError::OutcomeUnknown(_)) if !read => End::Unknown,
        Err(_) => End::Failed,
    };
    Asked { read, due, took, end, said: result.err().map(|error| error.to_string()).unwrap_or_default() }
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

/// How long after `killed` the last window ended in which requests took more than this.
fn back_after(asked: &[Asked], killed: Duration, end: Duration, limit: Duration) -> Duration {
    let windows = (0..).map(|n| killed + n * WINDOW).take_while(|from| *from < end);
    let slow = windows.filter(|from| p99(asked, *from, *from + WINDOW) > limit);
    slow.last().map_or(Duration::ZERO, |from| from + WINDOW - killed)
}

#[test]
fn a_killed_node_fails_no_request_of_the_others() {
    let (seconds, rate) = (setting("KILLED_SECONDS"), setting("KILLED_RATE").unwrap_or(200));
    let half = Duration::from_secs(seconds.unwrap_or(2));
    let rig = Rig::new();
    let mut nodes = rig.ring_of(3);
    let client =
        rig.client_with(&addresses(&nodes), ClientConfig { timeout: DEADLINE, ..ClientConfig::default() });
    let client = Arc::new(client);
    rig.wait(async {
        let stored = (0..KEYS).map(|number| client.put(key(number), vec![b'x'; VALUE_BYTES]));
        for one in futures_util::future::join_all(stored).await {
            one.unwrap();
        }
    });
    let warm = rig.runtime().spawn(load(client.clone(), Instant::now(), rate, half / 4));
    rig.wait(warm).unwrap();

    let begin = Instant::now();
    let asking = rig.runtime().spawn(load(client, begin, rate, 2 * half));
    std::thread::sleep(half);
    // The one that the client knew first, so that it also has to look for others.
    nodes[0].kill();
    let killed = begin.elapsed();
    let asked = rig.wait(asking).unwrap();

    let ends = |end: End, read: bool| asked.iter().filter(|a| a.end == end && a.read == read).count();
    let slowest = asked.iter().map(|asked| asked.took).max().unwrap();
    let normal = p99(&asked, Duration::ZERO, killed.saturating_sub(WINDOW));
    for from in (0..).map(|n| n * WINDOW).take_while(|from| *from < 2 * half) {
        let of = |read| p99(asked.iter().filter(|a| a.read == read), from, from + WINDOW);
        println!("{from:>6.1?}: p99 of reads {:>8.1?}, of writes {:>8.1?}", of(true), of(false));
    }
    for said in asked.iter().filter(|a| a.end != End::Well).take(5) {
        println!("{said:?}");
    }
    let back = back_after(&asked, killed, 2 * half, TIMES_NORMAL * normal);
    println!("killed after {killed:.2?}, at {rate} requests/s, normal p99 {normal:.2?}");
    println!(
        "reads: {} well, {} failed; writes: {} well, {} failed, {} of unknown outcome; the slowest took {slowest:.2?}",
        ends(End::Well, true),
        ends(End::Failed, true),
        ends(End::Well, false),
        ends(End::Failed, false),
        ends(End::Unknown, false)
    );
    println!("p99 back within {TIMES_NORMAL} times normal {back:.1?} after the kill");
    assert_eq!((ends(End::Failed, true), ends(End::Failed, false)), (0, 0), "no request fails");
    assert!(slowest <= DEADLINE + GRACE, "{slowest:?}");
    // Those that were on their way to it when it died, and no others.
    let unknown = asked.iter().filter(|asked| asked.end == End::Unknown);
    for one in unknown {
        assert!(one.due <= killed && killed <= one.due + DEADLINE, "{one:?}");
    }
    if seconds.is_some() {
        assert!(back <= SOON, "{back:?}");
    }
}
