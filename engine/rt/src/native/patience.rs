//! How long a reactor spins before it sleeps, learnt from how long its waits turned out to be.
//!
//! Spinning pays when what is waited for comes while the reactor spins: then a sleep and a wake-up are saved. A device that takes
//! longer than that costs the whole spin each time and a wake-up besides. So a wait that spinning could not have caught halves
//! the time, down to none, and one that it could have caught doubles it, up to the bound (as KVM polls before it halts,
//! Documentation/virt/kvm/halt-polling.rst).

use std::cell::Cell;
use std::time::Duration;

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

    pub fn now(&self) -> Duration {
        self.now.get()
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
        assert_eq!(patience.now(), us(50));
        let after = |waits: &[u64]| {
            waits.iter().for_each(|wait| patience.learn(us(*wait)));
            patience.now()
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
    fn no_spinning_stays_none() {
        let patience = Patience::new(Duration::ZERO);
        patience.learn(Duration::ZERO);
        assert_eq!(patience.now(), Duration::ZERO);
    }
}
