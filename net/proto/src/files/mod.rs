//! Advisory file locks and open inodes: what applications hold, apart from the leases that clients hold.
//!
//! - [`Ranges`]: the locks of one file in one family, as bytes and owners.
//! - [`FileLockTable`]: the engine's side of the file locks that one reactor owns: who waits, who is next.
//! - [`WaitGraph`]: who waits for whom over all reactors: circles.
//! - [`OpenTable`]: inodes that clients have open without holding their lease.

mod list;
mod moving;
mod opens;
mod ranges;
mod table;
mod waits;

pub use list::FileLockInfo;
pub use moving::{MovedFiles, MovedOpens};
pub use opens::{MAX_OPENS_PER_CLIENT, OpenTable};
pub use ranges::{Held, Owner, Ranges};
pub use table::{FileLockOutput, FileLockStats, FileLockTable, MAX_FILE_LOCKS_PER_CLIENT, MAX_FILE_WAITS_PER_CLIENT};
pub use waits::{WaitChange, WaitGraph, WaitId};
