//! What is asked: keys, values, and which of them next.
//!
//! All is made before the measurement. A request takes slices of two big buffers, so that sending
//! it costs this program as little as can be.

use crate::args::Load;
use crate::common::{Exit, Failure};
use crate::random::Random;
use bytes::Bytes;

/// Which requests there are.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Mode {
    /// Writes.
    Put,
    /// Reads.
    Get,
    /// Both.
    Mix {
        /// Which part of them are reads.
        read_ratio: f64,
    },
}

/// One request.
pub(crate) enum Ask {
    /// Store this value under this key.
    Put(Bytes, Bytes),
    /// Read this key.
    Get(Bytes),
}

/// The most memory that the keys may take.
const MAX_KEYS_BYTES: u64 = 4 << 30;

/// Values are stretches of one pool of random bytes, which is longer than a value by so much.
const SPARE_BYTES: usize = 4096;

/// Numbers of which the first ones are chosen most often.
struct Zipf {
    /// How likely this number is, or one before it.
    up_to: Vec<f64>,
}

impl Zipf {
    /// `count` of them; the Nth, from 1, is chosen with a likelihood of `1 / N^exponent`.
    fn new(count: u64, exponent: f64) -> Self {
        let mut sum = 0.0;
        let mut up_to: Vec<f64> = (1..=count)
            .map(|number| {
                sum += (number as f64).powf(-exponent);
                sum
            })
            .collect();
        up_to.iter_mut().for_each(|likelihood| *likelihood /= sum);
        Zipf { up_to }
    }

    /// One of them, counted from 0.
    fn next(&self, random: &mut Random) -> u64 {
        let point = (random.next() >> 11) as f64 / (1u64 << 53) as f64;
        let index = self.up_to.partition_point(|likelihood| *likelihood <= point);
        index.min(self.up_to.len() - 1) as u64
    }
}

/// Everything that can be asked.
pub(crate) struct Workload {
    keys: Bytes,
    key_bytes: usize,
    count: u64,
    popular: Option<Zipf>,
    values: Bytes,
    value_bytes: usize,
    /// A request is a read if a random number of 63 bits is less than this.
    reads_below: u64,
    in_order: bool,
}

impl Workload {
    /// Keys and values as the command line wants them.
    pub(crate) fn new(load: &Load, mode: Mode) -> Result<Self, Failure> {
        let (count, key_bytes) = (load.keys, load.key_bytes);
        let digits = (count - 1).checked_ilog10().map_or(1, |log| log as usize + 1);
        if key_bytes < digits {
            let message = format!("{count} different keys need --key-bytes {digits} or more");
            return Err(Failure::new(Exit::Usage, message));
        }
        if count.saturating_mul(key_bytes as u64) > MAX_KEYS_BYTES {
            let message = "so many keys take more than 4 GiB of memory: choose fewer --keys or --key-bytes";
            return Err(Failure::new(Exit::Usage, message));
        }
        let mut keys = vec![b'0'; count as usize * key_bytes];
        for (mut number, key) in (0..count).zip(keys.chunks_exact_mut(key_bytes)) {
            for digit in key.iter_mut().rev().take(digits) {
                *digit = b'0' + (number % 10) as u8;
                number /= 10;
            }
        }
        let mut random = Random::new(0);
        let values: Vec<u8> = (0..load.value_bytes + SPARE_BYTES).map(|_| random.next() as u8).collect();
        let read_ratio = match mode {
            Mode::Put => 0.0,
            Mode::Get => 1.0,
            Mode::Mix { read_ratio } => read_ratio,
        };
        Ok(Workload {
            keys: keys.into(),
            key_bytes,
            count,
            popular: load.zipf.map(|exponent| Zipf::new(count, exponent)),
            values: values.into(),
            value_bytes: load.value_bytes,
            reads_below: (read_ratio * (1u64 << 63) as f64) as u64,
            in_order: false,
        })
    }

    /// The same keys, each of which is stored once.
    pub(crate) fn preload(&self) -> Self {
        let (keys, values) = (self.keys.clone(), self.values.clone());
        Workload { keys, values, popular: None, reads_below: 0, in_order: true, ..*self }
    }

    /// The request of this number.
    pub(crate) fn ask(&self, number: u64, random: &mut Random) -> Ask {
        let index = match &self.popular {
            _ if self.in_order => number % self.count,
            Some(popular) => popular.next(random),
            None => random.below(self.count),
        };
        let start = index as usize * self.key_bytes;
        let key = self.keys.slice(start..start + self.key_bytes);
        if random.next() >> 1 < self.reads_below {
            return Ask::Get(key);
        }
        let start = random.below(SPARE_BYTES as u64) as usize;
        Ask::Put(key, self.values.slice(start..start + self.value_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn reads(mode: Mode, args: &[&str]) -> (usize, HashSet<Bytes>) {
        let load = crate::args::load_of(args);
        let (workload, mut random) = (Workload::new(&load, mode).unwrap(), Random::new(1));
        let asks: Vec<Ask> = (0..1000).map(|number| workload.ask(number, &mut random)).collect();
        let reads = asks.iter().filter(|ask| matches!(ask, Ask::Get(_))).count();
        (reads, asks.into_iter().map(|(Ask::Get(key) | Ask::Put(key, _))| key).collect())
    }

    #[test]
    fn the_parts_and_keys_are_those_asked_for() {
        assert_eq!(reads(Mode::Get, &[]).0, 1000);
        assert_eq!(reads(Mode::Put, &[]).0, 0);
        assert!((400..600).contains(&reads(Mode::Mix { read_ratio: 0.5 }, &[]).0));
        let (_, keys) = reads(Mode::Put, &["--keys", "10", "--key-bytes", "3"]);
        assert_eq!(keys, (0..10).map(|n| Bytes::from(format!("{n:03}"))).collect());
    }

    #[test]
    fn some_keys_are_chosen_as_much_more_often_as_they_should_be() {
        let (zipf, mut random) = (Zipf::new(4, 1.0), Random::new(1));
        let mut chosen = [0; 4];
        (0..25_000).for_each(|_| chosen[zipf.next(&mut random) as usize] += 1);
        for (number, (chosen, likely)) in chosen.into_iter().zip([12_000, 6_000, 4_000, 3_000]).enumerate() {
            assert!((likely - 300..likely + 300).contains(&chosen), "{chosen} times number {number}");
        }
        let (_, keys) = reads(Mode::Get, &["--keys", "3", "--key-bytes", "1", "--zipf", "10"]);
        assert!(keys.contains(&Bytes::from("0")) && keys.len() < 3, "{keys:?}");
    }

    #[test]
    fn keys_must_fit() {
        let check = |keys, bytes, good| {
            let load = crate::args::load_of(&["--keys", keys, "--key-bytes", bytes]);
            assert_eq!(Workload::new(&load, Mode::Put).is_ok(), good, "{keys} of {bytes}");
        };
        check("1", "1", true);
        check("10", "1", true);
        check("11", "1", false);
        check("1", "0", false);
    }
}
