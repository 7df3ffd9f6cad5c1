//! The kernel's clocks and entropy.

use std::hash::{BuildHasher, Hasher, RandomState};

use rustix::time::{ClockId, clock_gettime};
use vellum_base::prng::Prng;

use crate::time::{Instant, WallTime};

pub(crate) fn clock() -> Instant {
    let t = clock_gettime(ClockId::Boottime);
    Instant(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

pub(crate) fn wall_clock() -> WallTime {
    let t = clock_gettime(ClockId::Realtime);
    WallTime { secs: t.tv_sec, nanos: t.tv_nsec as u32 }
}

/// A generator that nobody can foresee. Not for secrets.
pub(crate) fn unpredictable() -> Prng {
    Prng::new(RandomState::new().build_hasher().finish() ^ clock().0) // RandomState draws from the kernel
}
