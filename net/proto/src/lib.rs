//! Sessions and locks as state machines: inputs and time go in, frames and events come out. No IO, no clock, no
//! randomness of its own.
//!
//! - [`Channel`]: requests and responses in both directions, numbered, acknowledged, resent: each delivered once.
//! - [`ClientSession`] and [`ServerSession`]: a channel's life over one socket after another.
//! - [`LockTable`]: the engine's side of the locks.
//! - [`files`]: advisory file locks, who waits for whom, and open inodes.
//! - [`Quorum`]: who leads.

pub mod backoff;
pub mod channel;
pub mod client;
pub mod fact;
pub mod files;
pub mod grant_order;
pub mod locks;
pub mod quorum;
pub mod server;
pub mod time;
pub mod timers;
mod window;

pub use channel::{Channel, Inbound, Token, Violation};
pub use client::{ClientEvent, ClientSession, Closed};
pub use files::{FileLockOutput, FileLockTable, OpenTable, WaitGraph};
pub use grant_order::GrantOrder;
pub use locks::{LockError, LockOutput, LockTable};
pub use quorum::{Quorum, QuorumConfig, QuorumError, QuorumOutput, QuorumStatus, QuorumTimers};
pub use server::{ServerEvent, ServerSession};
pub use time::Time;
pub use timers::Timers;
pub use window::Window;
