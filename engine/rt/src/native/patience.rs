//! How long a reactor spins before it sleeps, learnt from how long its waits turned out to be.
//!
//! Spinning pays when what is waited for comes while the reactor spins: then a sleep and a wake-up are saved. A device that takes
//! longer than that costs the whole spin each time and a wake-up besides. So a wait that spinning could not have caught halves
//! the time, down to none, and one that it could have caught doubles it, up to the bound (as KVM polls before it halts,
//! Documentation/virt/kvm/halt-polling.rst). Whoever knows that something is due says so ([`crate::stay_awake`]).

use std::cell::Cell;
use std::time::Duration;

use crate::time::Instant;

/// Where growing begins, and below which spinning ends.
const LEAST: Duration = Duration::from_micros(5);

pub(super) struct Patience {
    most: Duration,
    now: Cell<Duration>,
}

impl Patience {
    pub fn new(most: Duration) -> Patience {
        Patience { most, now: Cell::new(most) }
    }

    /// Whether a reactor without work since `last_work`, that expects something until `expects`, has spun for long enough.
    pub fn is_over(&self, now: Instant, last_work: Instant, expects: Instant) -> bool {
        now >= expects && now - last_work >= self.now.get()
    }

    /// A sleep has ended, so long after the last work.
    pub fn learn(&self, waited: Duration) {
        let now = self.now.get();
        self.now.set(if waited <= self.most {
            (now * 2).clamp(LEAST.min(self.most), self.most)
        } else {
            Some(now / 2).filter(|half| *half >= LEAST).unwrap_or_default()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_waits_end_the_spinning_and_short_ones_bring_it_back() {
        let us = Duration::from_micros;
        let patience = Patience::new(us(50));
        assert_eq!(patience.now.get(), us(50));
        let after = |waits: &[u64]| {
            waits.iter().for_each(|wait| patience.learn(us(*wait)));
            patience.now.get()
        };
        assert_eq!(after(&[51]), us(25));
        assert_eq!(after(&[1000, 1000]), us(6) + Duration::from_nanos(250));
        assert_eq!(after(&[1000]), Duration::ZERO);
        assert_eq!(after(&[1000]), Duration::ZERO);
        assert_eq!(after(&[50]), us(5));
        assert_eq!(after(&[10, 10, 10]), us(40));
        assert_eq!(after(&[10]), us(50));
    }

    #[test]
    fn what_is_expected_is_waited_for_awake() {
        let at = |us: u64| Instant(us * 1000);
        let patience = Patience::new(Duration::from_micros(50));
        assert!(!patience.is_over(at(149), at(100), at(0)));
        assert!(patience.is_over(at(150), at(100), at(0)));
        assert!(!patience.is_over(at(299), at(100), at(300)));
        assert!(patience.is_over(at(300), at(100), at(300)));
    }

    #[test]
    fn no_spinning_stays_none() {
        let patience = Patience::new(Duration::ZERO);
        patience.learn(Duration::ZERO);
        assert_eq!(patience.now.get(), Duration::ZERO);
    }
}
