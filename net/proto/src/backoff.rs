//! Exponential backoff with jitter: a dead leader is not hammered through the election (scenario 18).

use std::time::Duration;

use vellum_base::prng::Prng;

#[derive(Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    prng: Prng,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration, seed: u64) -> Backoff {
        Backoff { min, max, next: min, prng: Prng::new(seed) }
    }

    /// How long to wait before the next attempt: between half and all of a span that doubles up to the bound.
    pub fn pause(&mut self) -> Duration {
        let span = self.next;
        self.next = (span * 2).min(self.max);
        let half = u64::try_from(span.as_nanos() / 2).unwrap_or(u64::MAX / 2);
        Duration::from_nanos(half + self.prng.below(half.max(1)))
    }

    pub fn succeeded(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_bound_and_start_again() {
        let mut b = Backoff::new(Duration::from_millis(50), Duration::from_secs(2), 1);
        let pauses: Vec<_> = (0..10).map(|_| b.pause()).collect();
        assert!(pauses[0] >= Duration::from_millis(25) && pauses[0] < Duration::from_millis(50));
        assert!(pauses[9] >= Duration::from_secs(1) && pauses[9] < Duration::from_secs(2));
        b.succeeded();
        assert!(b.pause() < Duration::from_millis(50));
    }
}
