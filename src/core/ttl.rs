//! How long a value is to be kept.

use crate::core::clock::{Stamp, wall_ms};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A time to live: a millisecond to a [hundred years](Ttl::MOST), in whole milliseconds.
///
/// It is written as a number and a unit: `500ms`, `30s`, `5m`, `2h`, `1d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ttl {
    ms: u64,
}

/// What is given as a time to live is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a ttl is a number and a unit, from 1ms to 36500d: for example 30s, 5m, 2h or 1d")]
pub struct BadTtl;

impl Ttl {
    /// The longest: whoever asks for more means "for ever", and says that by asking for none.
    pub const MOST: Duration = Duration::from_secs(36_500 * 86_400);

    /// From milliseconds.
    pub fn from_ms(ms: u64) -> Result<Self, BadTtl> {
        let fits = ms > 0 && u128::from(ms) <= Ttl::MOST.as_millis();
        if fits { Ok(Ttl { ms }) } else { Err(BadTtl) }
    }

    /// In milliseconds.
    pub fn as_ms(self) -> u64 {
        self.ms
    }

    /// When what is written at `now_ms` expires, in milliseconds since 1970 as `now_ms`.
    pub fn expires_at_ms(self, now_ms: u64) -> u64 {
        now_ms.saturating_add(self.ms)
    }
}

/// How far ahead of a node's wall clock the time may be from which a ttl counts, in milliseconds: more
/// than a clock that was set to the wrong zone or season is off.
pub const MAX_LEAD_MS: u64 = 2 * 3_600_000;

/// The time from which a ttl counts, of what gets this stamp from a node whose wall clock shows
/// `now_ms`; both in milliseconds since 1970.
///
/// It is the stamp's time, which is not behind what others wrote: were this node's clock, then the value
/// would be gone for them too early. But not more than [`MAX_LEAD_MS`] ahead: since stamps never go
/// back, one clock that jumped ahead, be it for a moment, takes those of all nodes along until their
/// wall clocks are there, which may be years, and so much longer would all be kept that is to expire.
pub fn counts_from_ms(stamp: Stamp, now_ms: u64) -> u64 {
    wall_ms(stamp).min(now_ms.saturating_add(MAX_LEAD_MS))
}

impl TryFrom<Duration> for Ttl {
    type Error = BadTtl;

    fn try_from(duration: Duration) -> Result<Self, BadTtl> {
        u64::try_from(duration.as_millis()).map_err(|_error| BadTtl).and_then(Ttl::from_ms)
    }
}

impl FromStr for Ttl {
    type Err = BadTtl;

    fn from_str(text: &str) -> Result<Self, BadTtl> {
        let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or(BadTtl)?;
        let (number, unit) = text.split_at(unit_at);
        let ms: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(BadTtl),
        };
        let number: u64 = number.parse().map_err(|_error| BadTtl)?;
        Ttl::from_ms(number.checked_mul(ms).ok_or(BadTtl)?)
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::at_ms;

    #[test]
    fn a_ttl_is_a_number_and_a_unit() {
        for (text, ms) in [
            ("1ms", 1),
            ("30s", 30_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("36500d", 3_153_600_000_000),
        ] {
            let ttl: Ttl = text.parse().unwrap();
            assert_eq!(ttl.as_ms(), ms, "{text}");
            assert_eq!(ttl.to_string().parse(), Ok(ttl), "{text}");
        }
        for bad in [
            "",
            "0s",
            "0ms",
            "30",
            "s",
            "-1s",
            "+1s",
            "1.5s",
            "1 s",
            "1s ",
            "1S",
            "1w",
            "1sm",
            "é",
            "36501d",
            "3153600000001ms",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert_eq!(bad.parse::<Ttl>(), Err(BadTtl), "{bad}");
        }
    }

    #[test]
    fn nothing_and_more_than_a_hundred_years_is_refused() {
        assert_eq!(Ttl::try_from(Duration::ZERO), Err(BadTtl));
        assert_eq!(Ttl::try_from(Duration::from_micros(999)), Err(BadTtl));
        assert_eq!(Ttl::try_from(Ttl::MOST).map(Ttl::as_ms), Ok(3_153_600_000_000));
        assert_eq!(Ttl::try_from(Ttl::MOST + Duration::from_millis(1)), Err(BadTtl));
        assert_eq!(Ttl::try_from(Duration::MAX), Err(BadTtl));
    }

    #[test]
    fn it_counts_from_when_it_is_written() {
        assert_eq!(Ttl::from_ms(30).map(|ttl| ttl.expires_at_ms(100)), Ok(130));
        assert_eq!(Ttl::from_ms(30).map(|ttl| ttl.expires_at_ms(u64::MAX)), Ok(u64::MAX));
    }

    #[test]
    fn it_counts_from_the_stamp_as_far_as_that_is_not_far_ahead() {
        let now = 1_800_000_000_000;
        let from = |stamp_ms| counts_from_ms(at_ms(stamp_ms), now);
        assert_eq!(from(now), now);
        assert_eq!(from(now + MAX_LEAD_MS), now + MAX_LEAD_MS);
        assert_eq!(from(now + MAX_LEAD_MS + 1), now + MAX_LEAD_MS);
        assert_eq!(counts_from_ms(Stamp::MAX, now), now + MAX_LEAD_MS);
        assert_eq!(counts_from_ms(at_ms(now), u64::MAX), now);
    }
}
