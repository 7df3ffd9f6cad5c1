//! The client of an engine: leased locks, an item cache that they keep coherent, atomic batches that survive a change
//! of leader, file data that is kept until it is durable, and inode numbers without round trips.
//!
//! How a change is made: [`Client::reserve`], [`Client::lock`], [`Client::get`] or [`Client::scan`] what is needed,
//! [`Client::begin`] a transaction, put and delete, commit: that is memory only. [`Client::sync`] makes all of it
//! durable. Everything lives on one reactor.
//!
//! What the locks do not do: tasks of one client do not exclude each other; who reads, waits, and then writes must hold
//! a lock of its own (the VFS has one per inode).

mod batch;
mod cache;
mod client;
mod data;
mod env;
mod error;
mod fact;
mod files;
mod inodes;
mod items;
mod link_port;
mod lock;
mod options;
pub mod port;
mod recovery;
mod stats;
pub mod testing;
mod txn;
mod wait;

pub use batch::TxnId;
pub use client::{Client, ReleaseHook};
pub use data::{block_checksums, is_provisional};
pub use error::ClientError;
pub use fact::Fact;
pub use items::ScanPage;
pub use lock::{LockGuard, LockView};
pub use options::{ClientOptions, MAX_TXN_OPS};
pub use stats::ClientStats;
pub use txn::{Seen, Txn};
pub use vellum_link::{Address, ConnectOptions};
pub use vellum_wire::{FILE_LOCK_MAX, FileLock, FileLockMode, FileLockOutcome, FileLockSpace};
pub use vellum_wire::{LockMode, LockName, StatFs};
