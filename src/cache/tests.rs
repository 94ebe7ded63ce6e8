use super::*;
use crate::core::record::Version;
use futures_util::future::join_all;
use futures_util::poll;
use std::cell::Cell;
use std::convert::Infallible;
use std::pin::pin;
use tokio::sync::oneshot;
use tokio::time::{advance, sleep};

/// Far more than any test takes; where time matters, it passes by itself.
const TTL: Duration = Duration::from_secs(3600);

fn cache() -> Cache {
    Cache::new(CacheConfig { ttl: TTL, bytes: 1 << 20, often: 1 })
}

fn found(value: &str) -> Option<Found> {
    Some(Found {
        value: Bytes::copy_from_slice(value.as_bytes()),
        version: Version { hlc: 1, node: 1 },
        content_type: String::new(),
        expires_at_ms: None,
        consistency: Consistency::One,
    })
}

/// What is got of a key while its owner has this.
async fn get(cache: &Cache, key: &'static str, owner: &str) -> String {
    let got = cache.get(&key.into(), async { Ok::<_, Infallible>(found(owner)) }).await.unwrap();
    String::from_utf8(got.unwrap().value.to_vec()).unwrap()
}

fn used(cache: &Cache) -> (u64, u64) {
    let CacheUse { hits, misses } = cache.used().unwrap();
    (hits, misses)
}

#[tokio::test(start_paused = true)]
async fn a_value_is_given_out_for_so_long_from_when_it_began_to_be_read() {
    let cache = cache();
    let slow = async {
        sleep(TTL * 3 / 4).await;
        Ok::<_, Infallible>(found("old"))
    };
    assert_eq!(cache.get(&"k".into(), slow).await.unwrap().unwrap().value, "old");
    advance(TTL / 4 - Duration::from_millis(1)).await;
    assert_eq!(get(&cache, "k", "new").await, "old");
    advance(Duration::from_millis(1)).await;
    assert_eq!(get(&cache, "k", "new").await, "new");
    assert_eq!(get(&cache, "k", "newer").await, "new");
    assert_eq!(used(&cache), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn what_took_too_long_to_read_is_given_to_nobody_else() {
    let cache = cache();
    let key = Bytes::from("k");
    let slow = async {
        sleep(TTL).await;
        Ok::<_, Infallible>(found("old"))
    };
    let mut first = pin!(cache.get(&key, slow));
    assert!(poll!(&mut first).is_pending());
    let other = get(&cache, "k", "new");
    let (first, other) = futures_util::future::join(first, other).await;
    assert_eq!((first.unwrap().unwrap().value, other.as_str()), ("old".into(), "new"));
    assert_eq!(get(&cache, "k", "newer").await, "newer");
}

#[tokio::test]
async fn reads_at_once_are_one_load_also_where_nothing_is_found() {
    let cache = cache();
    let key = Bytes::from("k");
    for (what, loads_then) in [(found("v"), 1), (None, 2)] {
        let loads = Cell::new(0);
        let load = || async {
            loads.set(loads.get() + 1);
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(what.clone())
        };
        let all = join_all((0..100).map(|_| cache.get(&key, load()))).await;
        let value = |found: Option<Found>| found.map(|found| found.value);
        assert!(all.into_iter().all(|got| value(got.unwrap()) == value(what.clone())));
        assert_eq!(loads.get(), 1);
        // That there is nothing is not kept.
        cache.get(&key, load()).await.unwrap();
        assert_eq!(loads.get(), loads_then);
        cache.forget(&key);
    }
}

#[tokio::test]
async fn who_waits_for_a_load_that_fails_or_is_given_up_reads_for_himself() {
    let cache = cache();
    let key = Bytes::from("k");
    for fails in [true, false] {
        let (end, ended) = oneshot::channel::<()>();
        let mut first = Box::pin(cache.get(&key, async {
            ended.await.unwrap();
            Err("no owner is up")
        }));
        assert!(poll!(&mut first).is_pending());
        let mut other = pin!(cache.get(&key, async { Ok::<_, Infallible>(found("v")) }));
        assert!(poll!(&mut other).is_pending());
        if fails {
            end.send(()).unwrap();
            assert_eq!(first.await.unwrap_err(), "no owner is up");
        } else {
            drop(first);
        }
        assert_eq!(other.await.unwrap().unwrap().value, "v");
        assert!(cache.kept(&key).is_none(), "he read for himself alone");
        assert!(cache.loads().is_empty());
    }
}

#[tokio::test]
async fn what_began_to_be_read_before_a_change_ended_is_not_kept() {
    let cache = cache();
    let key = Bytes::from("k");
    let load_while = async |change: &dyn Fn()| {
        let (end, ended) = oneshot::channel::<()>();
        let mut load = pin!(cache.get(&key, async {
            ended.await.unwrap();
            Ok::<_, Infallible>(found("old"))
        }));
        assert!(poll!(&mut load).is_pending());
        change();
        end.send(()).unwrap();
        assert_eq!(load.await.unwrap().unwrap().value, "old");
    };
    // It began before the change, or while it was under way, and ended after it or before.
    load_while(&|| drop(cache.changing(&key))).await;
    assert_eq!(get(&cache, "k", "new").await, "new");
    let changing = cache.changing(&key);
    load_while(&|| {}).await;
    drop(changing);
    assert_eq!(get(&cache, "k", "newer").await, "newer");
    let changing = cache.changing(&key);
    assert_eq!(get(&cache, "k", "newest").await, "newest", "nothing from before the change");
    drop(changing);
    // Who reads after the change does not wait for who began before it.
    let mut before = pin!(cache.get(&key, std::future::pending::<Result<Option<Found>, Infallible>>()));
    assert!(poll!(&mut before).is_pending());
    drop(cache.changing(&key));
    assert_eq!(get(&cache, "k", "after").await, "after");
    assert_eq!(get(&cache, "k", "later").await, "after");
    assert!(cache.loads().is_empty());
}

#[tokio::test]
async fn nothing_is_given_out_after_its_own_expiry() {
    let cache = cache();
    let expires = |at_ms| found("v").map(|found| Found { expires_at_ms: Some(at_ms), ..found });
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    for (expires_at_ms, kept) in [(now_ms, false), (now_ms + 3_600_000, true), (u64::MAX, true)] {
        let key = Bytes::from(expires_at_ms.to_string());
        cache.get(&key, async { Ok::<_, Infallible>(expires(expires_at_ms)) }).await.unwrap();
        assert_eq!(cache.kept(&key).is_some(), kept, "{expires_at_ms}");
    }
}

#[tokio::test]
async fn without_a_ttl_every_read_is_a_load_of_its_own() {
    let cache = Cache::new(CacheConfig { ttl: Duration::ZERO, ..CacheConfig::default() });
    assert_eq!(get(&cache, "k", "old").await, "old");
    assert_eq!(get(&cache, "k", "new").await, "new");
    assert_eq!((cache.used(), cache.is_on()), (None, false));
}

#[tokio::test]
async fn keys_that_are_read_once_do_not_push_out_those_that_are_read_again() {
    let value = "v".repeat(1000);
    let key = |kind: &str, number: usize| Bytes::from(format!("{kind} {number}"));
    // Room for about a hundred.
    let most = 100 * (1000 + OVERHEAD as u64 + 10);
    let cache = Cache::new(CacheConfig { ttl: TTL, bytes: most, often: 1 });
    let read =
        async |key: Bytes| cache.get(&key, async { Ok::<_, Infallible>(found(&value)) }).await.unwrap();
    for number in 0..20_000 {
        read(key("once", number)).await;
        if number % 4 == 0 {
            read(key("again", number / 4 % 50)).await;
        }
        assert!(cache.kept.weighted_size() <= most, "{} bytes", cache.kept.weighted_size());
    }
    let kept = (0..50).filter(|number| cache.kept(&key("again", *number)).is_some()).count();
    assert!(kept >= 45, "{kept} of 50");
    // One that is larger than the whole cache is found, and not kept.
    let large = Bytes::from("large");
    let load = async { Ok::<_, Infallible>(found(&"v".repeat(most as usize))) };
    assert!(cache.get(&large, load).await.unwrap().is_some());
    assert!(cache.kept(&large).is_none());
}

#[tokio::test(start_paused = true)]
async fn only_what_is_read_often_is_kept_if_so_asked() {
    let cache = Cache::new(CacheConfig { ttl: TTL, bytes: 1 << 20, often: 3 });
    assert_eq!(get(&cache, "k", "1").await, "1");
    assert_eq!(get(&cache, "k", "2").await, "2");
    assert_eq!(get(&cache, "k", "3").await, "3");
    assert_eq!(get(&cache, "k", "4").await, "3");
    assert_eq!(get(&cache, "other", "4").await, "4");
    cache.forget(&"k".into());
    assert_eq!(get(&cache, "k", "5").await, "5");
    assert_eq!(get(&cache, "k", "6").await, "6");
    assert_eq!(used(&cache), (1, 6));
}
