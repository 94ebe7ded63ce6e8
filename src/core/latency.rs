//! How long requests took, counted in buckets: four to each doubling, so that what is read from them is at most a
//! quarter too much.

use std::time::Duration;

/// How many buckets there are. In the last is all that took more than some four minutes.
pub const BUCKETS: usize = 108;

/// The number of the bucket for what took so long.
pub fn bucket(took: Duration) -> usize {
    let us = took.as_micros().min(u128::from(u64::MAX)) as u64;
    if us < 4 {
        return us as usize;
    }
    let doublings = us.ilog2() as usize;
    let quarter = (us >> (doublings - 2)) as usize & 3;
    ((doublings - 1) * 4 + quarter).min(BUCKETS - 1)
}

/// What everything in a bucket took less than, save for the last one.
fn below(bucket: usize) -> Duration {
    Duration::from_micros(match bucket.min(BUCKETS - 1) {
        us @ 0..4 => us as u64 + 1,
        bucket => (5 + bucket as u64 % 4) << (bucket / 4 - 1),
    })
}

/// What this part of all (from 0 to 1) took less than, where so many are in each bucket; `None` if there are none.
pub fn quantile(counts: &[u64], part: f64) -> Option<Duration> {
    let all = counts.iter().fold(0, |all: u64, count| all.saturating_add(*count));
    let wanted = ((all as f64 * part).ceil() as u64).max(1);
    let mut seen: u64 = 0;
    let bucket = counts.iter().position(|count| {
        seen = seen.saturating_add(*count);
        seen >= wanted
    });
    bucket.map(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_a_bucket_that_is_not_much_wider() {
        let mut last = 0;
        for us in (0..5_000).chain((13..27).map(|doublings| (1 << doublings) + 12_345)) {
            let took = Duration::from_micros(us);
            let bucket = bucket(took);
            assert!(bucket == last || bucket == last + 1 || us > 5_000, "{us}: {last}, {bucket}");
            assert!(
                took < below(bucket) && below(bucket) <= took.mul_f64(1.25) + Duration::from_micros(1),
                "{us}"
            );
            last = bucket;
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_part_of_all_took_less() {
        let mut counts = [0; BUCKETS];
        assert_eq!((quantile(&counts, 0.99), quantile(&[], 0.5)), (None, None));
        counts[bucket(Duration::from_millis(1))] = 99;
        counts[bucket(Duration::from_millis(100))] = 1;
        let ms = |part| quantile(&counts, part).unwrap().as_millis();
        assert_eq!((ms(0.0), ms(0.5), ms(0.99), ms(1.0)), (1, 1, 1, 114));
        assert!(quantile(&[u64::MAX; 200], 1.0).is_some(), "whatever others tell");
    }
}
