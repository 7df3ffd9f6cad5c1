//! A node's clock: it started at some other time than the world's, and runs a little faster or slower.

use crate::time::Instant;

#[derive(Clone, Copy, Debug)]
pub(super) struct NodeClock {
    pub offset: u64,
    pub drift_ppm: i64,
}

impl NodeClock {
    /// The node's time at `world` nanoseconds.
    pub fn local(self, world: u64) -> Instant {
        let drift = i128::from(world) * i128::from(self.drift_ppm) / 1_000_000;
        Instant((i128::from(self.offset) + i128::from(world) + drift) as u64)
    }

    /// The least world time at which the node's clock shows `local`; `u64::MAX` when it never does.
    pub fn world(self, local: Instant) -> u64 {
        let Some(since) = local.0.checked_sub(self.offset) else { return 0 };
        let guess = i128::from(since) * 1_000_000 / (1_000_000 + i128::from(self.drift_ppm));
        let Ok(mut guess) = u64::try_from((guess - 2).max(0)) else { return u64::MAX };
        if guess > u64::MAX / 4 {
            return u64::MAX;
        }
        while self.local(guess) < local {
            guess += 1;
        }
        guess
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_due_at_its_world_time_and_not_before() {
        for drift_ppm in [-500, -1, 0, 1, 499] {
            let clock = NodeClock { offset: 12_345_678, drift_ppm };
            for local in [12_345_679, 99_999_999, 5_000_000_000, 86_400_000_000_000] {
                let world = clock.world(Instant(local));
                assert!(clock.local(world) >= Instant(local));
                assert!(world == 0 || clock.local(world - 1) < Instant(local), "{drift_ppm} {local}");
            }
        }
        assert_eq!(NodeClock { offset: 0, drift_ppm: 0 }.world(Instant::FAR_FUTURE), u64::MAX);
    }
}
