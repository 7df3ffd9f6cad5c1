//! What Vellum is compared with in the same run.

pub mod kv;
pub mod memfs;
pub mod sockets;
