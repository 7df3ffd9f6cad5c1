//! What Vellum is compared with in the same run.

pub mod kv;
pub mod memfs;
#[cfg(feature = "rocksdb")]
pub mod rocksdb;
pub mod sockets;
pub mod uring;
