//! One simulated reactor's backend.

use std::rc::Rc;
use std::time::Duration;

use super::core::{Shared, draw};
use super::world::NodeId;
use crate::time::{Instant, WallTime};
use crate::wake::Doorbell;

/// 2026-01-01, the wall clock's start.
const WALL_START_SECS: i64 = 1_767_225_600;
/// Questions about the time slice that are answered with yes.
const SLICE_USED_UP_ONE_IN: u64 = 8;

pub(crate) struct Driver {
    pub(super) shared: Rc<Shared>,
    pub(super) node: NodeId,
}

impl Driver {
    pub fn now(&self) -> Instant {
        self.shared.with(|core| {
            let now = core.now;
            core.node(self.node).clock.local(now)
        })
    }

    pub fn wall_clock(&self) -> WallTime {
        let now = self.shared.with(|core| core.now);
        WallTime { secs: WALL_START_SECS + (now / 1_000_000_000) as i64, nanos: (now % 1_000_000_000) as u32 }
    }

    pub fn random_u64(&self) -> u64 {
        self.shared.with(|core| core.node(self.node).prng.next_u64())
    }

    /// By chance: computations yield at any of their points.
    pub fn slice_used_up(&self) -> bool {
        self.shared.with(|core| core.schedule.one_in(SLICE_USED_UP_ONE_IN))
    }

    pub fn channel_delay(&self) -> Duration {
        self.shared.with(|core| {
            let range = core.config.channel_delay.clone();
            Duration::from_nanos(draw(&mut core.schedule, &range).max(1))
        })
    }
}

/// The world looks at every reactor's wakes before it lets time pass.
pub(super) struct NoDoorbell;

impl Doorbell for NoDoorbell {
    fn ring(&self) {}
}
