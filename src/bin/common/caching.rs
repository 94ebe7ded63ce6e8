//! The options of a cache for keys that everybody reads.

use super::duration;
use clap::Args;
use std::time::Duration;
use thrifty::cache::CacheConfig;
use thrifty::core::ttl::Ttl;

/// How stale, and how much.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Caching {
    /// How stale may be what is answered from the cache for keys that are read often; 0 for no cache. On a
    /// node that is reads at consistency ONE that it would otherwise ask another node for.
    #[arg(long, value_name = "TIME", default_value = "1s", env = "THRIFTY_CACHE_TTL", value_parser = ttl)]
    cache_ttl: Duration,

    /// Bytes of memory for that cache: a number and B, KiB, MiB or GiB, from 1MiB on.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", env = "THRIFTY_CACHE_SIZE", value_parser = size)]
    cache_size: u64,
}

impl Caching {
    pub(crate) fn config(self) -> CacheConfig {
        CacheConfig { ttl: self.cache_ttl, bytes: self.cache_size, ..CacheConfig::default() }
    }
}

fn ttl(text: &str) -> Result<Duration, String> {
    duration::between(text, Duration::ZERO, Ttl::MOST)
}

fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let shift = match unit {
        "" | "B" => Some(0),
        "KiB" => Some(10),
        "MiB" => Some(20),
        "GiB" => Some(30),
        _ => None,
    };
    let bytes = shift.and_then(|shift| number.parse::<u64>().ok()?.checked_mul(1 << shift));
    bytes
        .filter(|bytes| (1 << 20..=1 << 40).contains(bytes))
        .ok_or_else(|| "write a size from 1MiB to 1024GiB: for example 67108864, 512MiB or 2GiB".into())
}
