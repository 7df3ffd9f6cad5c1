//! The FUSE gateway on our own kernel transport.
//!
//! ```text
//!   /dev/fuse -> buffer -> decode -> dispatch -> Filesystem (trait) <- gateway -> vellum-vfs
//!      ^            session (one per reader)  <- reply
//!      +-- notify (threads of its own)
//! ```
//! The transport (all but `gateway`) knows no vfs: it is tested with a filesystem in memory. It does not interpret
//! requests, cache, or check permissions; the kernel does the last (`default_permissions`).

pub mod abi;
mod buffer;
mod context;
mod decode;
mod device;
mod dirents;
mod dispatch;
mod filesystem;
#[cfg(test)]
mod fuzz;
mod gateway;
mod handle;
mod init;
mod interrupt;
mod known;
mod mount;
mod name;
mod notify;
mod readers;
mod reply;
mod session;
mod stats;
pub mod testing;
mod types;

pub use context::Context;
pub use dirents::Dirents;
pub use filesystem::{Created, Filesystem, Result};
pub use gateway::{ENDPOINT_XATTR, Gateway, LeaseLeft, mount_vfs};
pub use handle::{MountHandle, Unmounter, mount_filesystem};
pub use init::{MAX_WRITE, SessionInfo, Wants};
pub use known::KERNEL_INODES;
pub use mount::{MountError, MountOptions, Unmount, mounts_below, unmount};
pub use name::{NAME_MAX, Name};
pub use notify::Notifier;
pub use readers::Reader;
pub use session::End;
pub use stats::{OpStatistics, Statistics};
pub use types::*;
