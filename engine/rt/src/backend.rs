//! What the worlds do not share, chosen once per reactor. An enum and not a trait object: IO futures stay unboxed.

use std::time::Duration;

use crate::kernel;
use crate::sim;
use crate::time::{Instant, WallTime};

pub(crate) enum Backend {
    Kernel(kernel::Driver),
    Sim(sim::Driver),
}

impl Backend {
    pub fn now(&self) -> Instant {
        match self {
            Backend::Kernel(_) => kernel::clock(),
            Backend::Sim(driver) => driver.now(),
        }
    }

    pub fn wall_clock(&self) -> WallTime {
        match self {
            Backend::Kernel(_) => kernel::wall_clock(),
            Backend::Sim(driver) => driver.wall_clock(),
        }
    }

    pub fn random_u64(&self) -> u64 {
        match self {
            Backend::Kernel(driver) => driver.random_u64(),
            Backend::Sim(driver) => driver.random_u64(),
        }
    }

    pub fn slice_used_up(&self, poll_began: Instant, slice: Duration) -> bool {
        match self {
            Backend::Kernel(_) => kernel::clock() - poll_began >= slice,
            Backend::Sim(driver) => driver.slice_used_up(),
        }
    }

    /// How long a message to another reactor is on its way, beyond what the hardware takes.
    pub fn channel_delay(&self) -> Duration {
        match self {
            Backend::Kernel(_) => Duration::ZERO,
            Backend::Sim(driver) => driver.channel_delay(),
        }
    }
}
