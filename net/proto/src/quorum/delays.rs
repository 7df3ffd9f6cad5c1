//! How long nothing came from a peer while something was due: the record that tells a network that is about to fail from
//! one that is well.

use std::time::Duration;

use crate::time::Time;

/// Upper bounds of the classes in milliseconds; what is longer is in one more.
pub const DELAY_BOUNDS_MS: [u64; 9] = [110, 150, 200, 300, 500, 1_000, 2_000, 5_000, 20_000];

/// Gaps between a peer's messages by length.
#[derive(Clone, Debug, Default)]
pub struct DelayRecord {
    counts: [u64; DELAY_BOUNDS_MS.len() + 1],
    longest: Duration,
    longest_at: Time,
    last: Option<Time>,
}

impl DelayRecord {
    /// A message came.
    pub fn heard(&mut self, now: Time) {
        if let Some(last) = self.last.replace(now) {
            let gap = now - last;
            let class = DELAY_BOUNDS_MS.iter().position(|ms| gap <= Duration::from_millis(*ms));
            self.counts[class.unwrap_or(DELAY_BOUNDS_MS.len())] += 1;
            if gap > self.longest {
                (self.longest, self.longest_at) = (gap, now);
            }
        }
    }

    /// Nothing is due from now on: the next message ends no gap.
    pub fn pause(&mut self) {
        self.last = None;
    }

    /// Gaps per class of [`DELAY_BOUNDS_MS`].
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The longest gap and when it ended.
    pub fn longest(&self) -> Option<(Duration, Time)> {
        (self.longest > Duration::ZERO).then_some((self.longest, self.longest_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_counted_by_length_and_a_pause_is_none() {
        let (mut record, ms) = (DelayRecord::default(), |n: u64| Time(n * 1_000_000));
        [0, 100, 200, 1_100].into_iter().for_each(|t| record.heard(ms(t)));
        record.pause();
        record.heard(ms(90_000));
        assert_eq!((record.counts()[0], record.counts()[5], record.counts().iter().sum::<u64>()), (2, 1, 3));
        assert_eq!(record.longest(), Some((Duration::from_millis(900), ms(1_100))));
    }
}
