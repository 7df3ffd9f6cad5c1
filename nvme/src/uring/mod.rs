//! Regular files and block devices through io_uring.
//!
//! Direct IO through the ring that the thread's reactor sleeps on, or through one of the queue's own where there is none; the file
//! registered with the ring. Decisions:
//! - buffers are not registered: `DmaBuf` memory is not one arena, and registering each buffer for one IO costs more than
//!   the page pinning that it saves. An arena in `base` would change that;
//! - every queue opens its own file description: Linux reports a lost write once per description, so a flush of one
//!   queue must not swallow the error that belongs to another's;
//! - a queue whose device has poll queues runs its reads and writes on a second, polled ring (IOPOLL), which takes no
//!   interrupt and cannot announce completions: its reactor does not sleep while such an operation is in flight.

mod file;
pub mod fill;
mod lock;
mod queue;
#[cfg(test)]
mod tests;
mod transfer;

use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;

use file::OpenFile;
use queue::UringQueue;

use crate::health::Health;
use crate::live_size::LiveSize;
use crate::{Device, DeviceError, Geometry, OpenMode, Queue};

/// What all queues of the device share.
struct Shared {
    /// Carries the lock: it is given up when the device and its last queue are dropped.
    file: OpenFile,
    health: Health,
    read_only: bool,
    size: LiveSize,
    /// Completions can be polled for, without interrupts.
    polled: bool,
}

pub struct UringDevice {
    shared: Arc<Shared>,
}

impl UringDevice {
    pub fn open(path: &str, mode: OpenMode) -> Result<UringDevice, DeviceError> {
        let mut file = OpenFile::open(path, mode)?;
        let polled = file.direct && file.queue_has_polling() && transfer::can_poll(file.file.as_raw_fd());
        if polled {
            file.geometry.name.push_str(" (polled)");
        }
        let size = LiveSize::new(file.geometry.size_bytes);
        let shared = Shared { size, file, health: Health::default(), read_only: mode.read_only, polled };
        Ok(UringDevice { shared: Arc::new(shared) })
    }
}

impl Device for UringDevice {
    fn geometry(&self) -> &Geometry {
        &self.shared.file.geometry
    }

    fn open_queue(&self, depth: u32) -> Result<Rc<dyn Queue>, DeviceError> {
        Ok(Rc::new(UringQueue::open(self.shared.clone(), depth)?))
    }

    fn slot_has_io(&self, slot: u8) -> Result<Option<bool>, DeviceError> {
        let file = &self.shared.file;
        file.slot_has_io(slot).map(Some).map_err(|err| DeviceError::open(&file.path, "look at the locks of", &err))
    }
}
