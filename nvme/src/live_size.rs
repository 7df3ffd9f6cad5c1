//! The size of a device that may grow while it is open.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How far operations may go, in bytes: never less than it was. What a device that shrank refuses is its own error.
pub(crate) struct LiveSize(AtomicU64);

impl LiveSize {
    pub fn new(size_bytes: u64) -> LiveSize {
        LiveSize(AtomicU64::new(size_bytes))
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub fn grow(&self, size_bytes: u64) {
        self.0.fetch_max(size_bytes, Relaxed);
    }
}
