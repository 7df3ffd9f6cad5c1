//! Room on the device: what a write may trust in before the engine has its data.
//!
//! While there is clearly more room than what may be dirty here, writes return when their data is in memory. Near the end
//! they are handed to the engine before they return, so that it is the write that fails and not something after a close.
//! The engine is asked once a second, and sooner when much was written since; a gateway that writes nothing asks nothing.

use std::cell::Cell;
use std::time::Duration;

use vellum_base::BLOCK_SIZE;
use vellum_rt::{self as rt, Instant};

use crate::error::Result;
use crate::vfs::Vfs;

/// An answer is believed so long.
const BELIEVED: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct Room {
    asked: Cell<Option<Instant>>,
    /// Blocks that could be had when the engine was asked.
    available: Cell<u64>,
    /// Bytes written since then, by this gateway.
    written: Cell<u64>,
}

impl Vfs {
    /// Counts a write of `len` bytes; true when it must not return before the engine has its data.
    pub(crate) async fn room_is_tight(&self, len: usize) -> Result<bool> {
        let room = &self.room;
        room.written.set(room.written.get() + len as u64);
        let fresh = room.asked.get().is_some_and(|asked| rt::now() < asked + BELIEVED);
        if !fresh || self.is_tight() {
            room.asked.set(Some(rt::now()));
            room.written.set(len as u64);
            room.available.set(self.client.statfs().await?.available_blocks);
        }
        Ok(self.is_tight())
    }

    fn is_tight(&self) -> bool {
        let margin = (self.options.max_dirty_bytes / BLOCK_SIZE) as u64;
        let used = self.room.written.get() / BLOCK_SIZE as u64;
        self.room.available.get().saturating_sub(used) < margin
    }
}
