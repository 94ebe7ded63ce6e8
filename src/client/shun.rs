//! For how long a node is left alone that could not be reached or did not answer.

/// The first failure costs a node so much, in milliseconds, and each further one twice as much.
const FIRST_MS: u64 = 100;

/// No failure costs more, in milliseconds: about what the ring itself takes to see that a node hangs.
const MOST_MS: u64 = 3_000;

/// After so many failures nothing is added.
const ENOUGH: u64 = 6;

/// Bits of [`Shun::bits`] that count failures.
const COUNT_BITS: u32 = 8;

/// What a client remembers of a node's failures. Times are milliseconds on the client's own clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Shun {
    failures: u64,
    until_ms: u64,
}

impl Shun {
    /// In a word that can be swapped; 0 is a node in good standing.
    pub(super) fn bits(self) -> u64 {
        self.until_ms << COUNT_BITS | self.failures
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        Shun { failures: bits & ((1 << COUNT_BITS) - 1), until_ms: bits >> COUNT_BITS }
    }

    /// It could not be reached. What failed while it is shunned, such as all that was on its way at
    /// once, is one failure.
    pub(super) fn failed(self, now_ms: u64) -> Self {
        if self.holds(now_ms) {
            return self;
        }
        let failures = (self.failures + 1).min(ENOUGH);
        Shun { failures, until_ms: now_ms + (FIRST_MS << (failures - 1)).min(MOST_MS) }
    }

    /// It let a request run out of time, which costs more than to be turned away.
    pub(super) fn was_silent(self, now_ms: u64) -> Self {
        Shun { failures: ENOUGH, until_ms: now_ms + MOST_MS }
    }

    /// Whether it is left alone now.
    pub(super) fn holds(self, now_ms: u64) -> bool {
        now_ms < self.until_ms
    }

    /// Asked whether one more request may go there: what is remembered from then on if it may. The
    /// first after a pause may, and the others wait for what comes of that.
    pub(super) fn asked(self, now_ms: u64) -> Option<Self> {
        match (self == Shun::default(), self.holds(now_ms)) {
            (true, _) => Some(self),
            (false, true) => None,
            (false, false) => Some(self.failed(now_ms)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        let (mut shun, mut now, mut pauses) = (Shun::default(), 5, Vec::new());
        for _ in 0..8 {
            shun = shun.failed(now);
            pauses.push(shun.until_ms - now);
            now = shun.until_ms;
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3000, 3000, 3000]);
    }

    #[test]
    fn what_fails_at_once_is_one_failure() {
        let shun = Shun::default().failed(5);
        assert_eq!(shun.failed(5).failed(104), shun);
        assert_ne!(shun.failed(105), shun);
    }

    #[test]
    fn one_request_finds_out_whether_it_is_back() {
        let good = Shun::default();
        assert_eq!(good.asked(5), Some(good));
        let shun = good.failed(5);
        assert_eq!(shun.asked(104), None);
        let probed = shun.asked(105).unwrap();
        assert_eq!(probed.asked(105), None);
        // Neither its failure nor its lateness adds to what is remembered already.
        assert_eq!(probed.failed(200), probed);
        assert!(probed.asked(305).is_some());
    }

    #[test]
    fn silence_costs_the_most_at_once() {
        let shun = Shun::default().was_silent(5);
        assert!(shun.holds(3_004) && !shun.holds(3_005));
        assert_eq!(shun.asked(3_005).unwrap().until_ms, 6_005);
    }

    #[test]
    fn it_fits_a_word() {
        let shun = Shun::default().failed(1 << 40);
        assert_eq!(Shun::from_bits(shun.bits()), shun);
        assert_eq!(Shun::default().bits(), 0);
    }
}
