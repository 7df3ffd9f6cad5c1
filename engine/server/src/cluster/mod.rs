//! A node as a member of a cluster: the quorum's machine with a device, a socket and a clock, and the engine that runs
//! for as long as this node leads.
//!
//! ```text
//!            UDP, slot blocks (a queue of its own)
//!                     |
//!   reactor 0:      Agent  -- Fence -->  Fencer
//!                     | Lead(term): a Valve over the device, a Plan
//!                     v
//!   reactors 1..n:  the Plan's reactors, in a scope     StopLeading: valve closed -> scopes end -> nothing in flight
//! ```
//! Invariants:
//! - a leadership has a [`vellum_nvme::Valve`] of its own, and every device operation of its engine passes it. A deposed
//!   node closes it before it does anything else (R2), and says that it has stopped only when nothing is in flight (Q5);
//! - an epoch is acknowledged only after a heartbeat round that was begun after its flush: the [`gate`];
//! - what a leadership started ends with it: tasks, sockets, queues; the next one begins from the device alone;
//! - an engine that does not start, or fails, costs the leadership and not the member (scenario 34).

mod agent;
mod blocks;
mod change;
mod fencer;
mod figures;
mod gate;
mod gone;
mod host_fencer;
mod leadership;
mod lend;
mod member;
mod native;
mod options;
mod reservation_fencer;
mod script_fencer;
mod status;

pub use blocks::{Membership, open_leaderships, read_blocks};
pub(crate) use change::{NotNow, SlotEdit};
pub use fencer::{FenceError, FenceFuture, FenceOrder, FenceWith, Fencer};
pub use figures::StatusAsks;
pub use gate::AgentHandle;
pub use host_fencer::HostFencer;
pub use member::{Member, MemberProgress, MemberStop};
pub use native::{MemberNode, own_process};
pub use options::MemberOptions;
pub use reservation_fencer::ReservationFencer;
pub use script_fencer::ScriptFencer;
pub use status::{block_status, quorum_status};
