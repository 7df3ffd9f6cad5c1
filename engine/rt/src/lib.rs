//! The runtime seam: everything above devices and sockets runs on this small set of words, in one of several worlds.
//!
//! Free functions act on the *current reactor* of the calling thread, so no generic parameter leaks upward. Natively
//! each thread installs one reactor ([`native`], which with the feature `glommio` has a second executor for it); in the
//! simulation ([`sim`]) one thread holds many and the world installs the right one before each poll.
//!
//! Invariants:
//! - A task, its timers and its local primitives belong to one reactor for life; futures are `!Send`.
//! - What crosses reactors is a [`channel`] message or a [`std::task::Waker`]; both are lock-free while the receiver is busy.
//! - Dropping a future cancels it; an IO in flight keeps its buffer alive in the reactor until the kernel has answered.
//! - An idle native reactor sleeps in the kernel until an event or a timer: there is no periodic tick.

pub mod channel;
pub mod fd;
pub mod local;
pub mod native;
pub mod net;
pub mod sim;

mod backend;
#[cfg(feature = "glommio")]
mod glommio;
mod kernel;
mod poller;
mod reactor;
mod ready;
mod scope;
mod stats;
mod task;
mod time;
mod timer;
mod wake;
mod yielding;

pub use poller::{FdWatch, PollerHandle, add_poller, watch_fd};
pub use reactor::{has_reactor, now, random_u64, reactor_id, stay_awake, wall_clock};
pub use scope::scope;
pub use stats::{ClassStats, Stall, Stats, stats};
pub use task::{Cancelled, JoinHandle, spawn};
pub use time::{Instant, WallTime};
pub use timer::{Elapsed, Sleep, sleep, sleep_until, timeout, wake_after};
pub use vellum_base::ReactorId;
pub use yielding::{slice_used_up, yield_if_needed, yield_now};

/// Scheduling class of a task. Ready classes share the core by weight; an idle class costs the others nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Class {
    /// Somebody waits for the answer.
    Request = 0,
    /// Epochs, logs, seals: requests wait for it in turn.
    Commit = 1,
    /// Flushes and compactions.
    Compaction = 2,
    /// Background reading that nobody waits for.
    Scrub = 3,
}

impl Class {
    pub const COUNT: usize = 4;
    pub const ALL: [Class; Class::COUNT] = [Class::Request, Class::Commit, Class::Compaction, Class::Scrub];

    /// Shares of the core when several classes are ready.
    pub const fn weight(self) -> u64 {
        match self {
            Class::Request => 16,
            Class::Commit => 16,
            Class::Compaction => 4,
            Class::Scrub => 1,
        }
    }
}
