//! How compaction that has fallen behind slows writers: smoothly, and never to a stop (C4).
//!
//! The debt (see [`crate::lsm::Shard::debt`]) of the worst shard of the node sets a rate at which batches are admitted. It
//! falls geometrically from far more than any device takes, at a debt of 0, to [`SLOWEST`] at a debt of 1; beyond it stays
//! there. No batch waits longer than [`LONGEST`] for it, so that an invalidation's last batch is not late, whoever else
//! writes.

use std::cell::Cell;
use std::time::Duration;

use vellum_base::ReactorId;
use vellum_rt::{Instant, now, sleep};

/// Bytes per second of a node at the smallest debt, and at a debt of 1 or more.
const FASTEST: f64 = 512e6;
const SLOWEST: f64 = 512e3;
/// Most that one batch waits.
const LONGEST: Duration = Duration::from_secs(1);
/// What an operation weighs besides its bytes.
pub const OP_BYTES: usize = 64;
/// It is said again after this long that writers are slowed.
const SAY_AGAIN: Duration = Duration::from_secs(30);

const _: () = assert!(LONGEST.as_millis() * 10 < 60_000, "far below the time that an invalidation may take");

/// Bytes per second that a node admits; as many as come when `None`.
pub fn rate(debt: f32) -> Option<f64> {
    (debt > 0.0).then(|| FASTEST * (SLOWEST / FASTEST).powf(f64::from(debt.min(1.0))))
}

pub struct Pace {
    /// Reactors that share the rate.
    reactors: f64,
    debt: Cell<f32>,
    /// When what was admitted so far is paid for.
    paid: Cell<Instant>,
    slowed_batches: Cell<u64>,
    slowed: Cell<Duration>,
    behind: Cell<bool>,
    said: Cell<Option<Instant>>,
}

impl Pace {
    pub fn new(reactors: usize) -> Pace {
        Pace {
            reactors: reactors.max(1) as f64,
            debt: Cell::new(0.0),
            paid: Cell::new(Instant(0)),
            slowed_batches: Cell::new(0),
            slowed: Cell::new(Duration::ZERO),
            behind: Cell::new(false),
            said: Cell::new(None),
        }
    }

    /// The node's debt as of the newest epoch.
    pub fn note_debt(&self, me: ReactorId, debt: f32) {
        self.debt.set(debt);
        let behind = debt > 0.0;
        let news = behind != self.behind.replace(behind);
        let again = behind && self.said.get().is_none_or(|at| at.elapsed() >= SAY_AGAIN);
        if me.0 != 0 || !(again || (news && !behind)) {
            return;
        }
        match rate(debt) {
            Some(rate) => {
                self.said.set(Some(now()));
                let bytes_per_s = rate as u64;
                tracing::warn!(debt, bytes_per_s, "compaction has fallen behind: writers are slowed");
            }
            None => tracing::info!("compaction has caught up: writers are not slowed any more"),
        }
    }

    pub fn debt(&self) -> f32 {
        self.debt.get()
    }

    /// Batches that had to wait, and how long altogether.
    pub fn slowed(&self) -> (u64, Duration) {
        (self.slowed_batches.get(), self.slowed.get())
    }

    /// Waits until a batch of `bytes` may go on.
    pub async fn admit(&self, bytes: usize) {
        let Some(rate) = rate(self.debt.get()) else { return };
        let began = now();
        let at = self.paid.get().max(began);
        let cost = Duration::from_secs_f64(bytes as f64 * self.reactors / rate);
        self.paid.set((at + cost).min(began + LONGEST));
        let wait = at - began;
        if wait > Duration::ZERO {
            self.slowed_batches.set(self.slowed_batches.get() + 1);
            self.slowed.set(self.slowed.get() + wait);
            sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_slow_smoothly_and_never_stop() {
        assert_eq!(rate(0.0), None);
        let rates: Vec<f64> = (1..=40).map(|i| rate(i as f32 / 20.0).unwrap()).collect();
        assert!(rates[0] > 300e6, "a small debt is hardly felt: {}", rates[0]);
        for pair in rates.windows(2) {
            assert!(pair[1] <= pair[0] && pair[1] > pair[0] / 2.0, "no step: {pair:?}");
        }
        assert!((rates[19] - SLOWEST).abs() < 1.0 && rates[39] == rates[19], "and never less");
    }

    #[test]
    fn a_batch_pays_for_those_before_it_and_none_waits_long() {
        vellum_rt::native::block_on(async {
            let pace = Pace::new(1);
            pace.admit(1 << 30).await;
            assert_eq!(pace.slowed().0, 0, "no debt, no wait");
            pace.note_debt(ReactorId(1), 1.0);
            let began = now();
            pace.admit(20_000).await; // the first pays, and does not wait
            assert_eq!(pace.slowed().0, 0);
            pace.admit(20_000).await;
            assert!(began.elapsed() >= Duration::from_millis(35), "{:?}", began.elapsed());
            assert_eq!(pace.slowed().0, 1);
            pace.admit(1 << 30).await; // half an hour's worth
            let began = now();
            pace.admit(1).await;
            assert!(began.elapsed() < Duration::from_secs(20) && pace.slowed().1 <= 3 * LONGEST);
            pace.note_debt(ReactorId(1), 0.0);
            let before = pace.slowed();
            pace.admit(1 << 30).await;
            assert_eq!(pace.slowed(), before);
        });
    }
}
