//! Lengths of time as people type them.

use std::time::Duration;
use thrifty::core::ttl::Ttl;

/// Seconds, with or without decimals, or a number and a unit as in a [`Ttl`], between these bounds.
pub(crate) fn between(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let seconds = || text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let duration = text.parse().map(|ttl: Ttl| Duration::from_millis(ttl.as_ms())).ok().or_else(seconds);
    duration.filter(|duration| (least..=most).contains(duration)).ok_or_else(|| {
        let (least, most) = (least.as_secs_f64(), most.as_secs_f64());
        format!(
            "write seconds from {least} to {most}, or a number and a unit: for example 2.5, 500ms, 30s or 5m"
        )
    })
}
