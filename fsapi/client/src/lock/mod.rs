//! Locks: which leases this client holds, who uses them, and how they are given away.
//!
//! Invariants: a user is counted only in a mode that the held one covers and no queued invalidation forbids; at most
//! one request is in flight per lock; what a lock covers is used within the lease alone; a lock is weakened only after
//! everything dirty under it is durable and everything stale is dropped.
//! Deliberately not here: exclusion between tasks of one client. Two of them may use one lock in WRITE at once.

mod acquire;
mod guard;
mod release;
mod table;

pub(crate) use guard::Era;
pub use guard::LockGuard;
pub use table::LockView;
pub(crate) use table::{Lock, LockTable};
