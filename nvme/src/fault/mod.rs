//! A device in memory that behaves as badly as devices are allowed to, and worse when told so; a pure function of its seed.
//!
//! Always on: a volatile write cache (what was not flushed may, at a crash, be kept, dropped or torn at 512 B, each write
//! on its own and so out of order), completions out of order, garbage after a discard. On request ([`Rule`],
//! [`FaultConfig`]): errors, flipped bits, lost and misdirected writes, old or foreign data once, stalls, failing flushes.
//!
//! Crash tests: let a workload run with `record_journal`, note [`FaultDevice::cut`] whenever something was promised, then
//! recover from [`Journal::crash_image`] at every cut. Images share memory, so a cut costs what it changes.
//!
//! ```text
//!   write ---> begun ---> done (visible to reads) ---> durable ---> folded into the medium
//!                |           |   covered by a flush      ^
//!                +-- a crash may keep, drop or tear ---- FUA
//! ```

mod cache;
mod config;
mod device;
mod journal;
mod queue;
#[cfg(test)]
mod tests;

pub use cache::{Content, Effect, Event};
pub use config::{Delay, DelayHook, Fault, FaultConfig, OpKind, Rule};
pub use device::{FaultDevice, FaultStats};
pub use journal::{Journal, Replay};
