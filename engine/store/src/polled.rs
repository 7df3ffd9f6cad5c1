//! A device queue as a reactor has it: polled each turn, and what ends the reactor's sleep.

use std::fmt;
use std::ops::Deref;
use std::rc::Rc;

use vellum_nvme::{Device, DeviceError, Queue};
use vellum_rt::{FdWatch, PollerHandle, add_poller, watch_fd};

/// A queue of the current reactor, for as long as this lives; references to the queue that outlive it are not polled.
pub struct PolledQueue {
    // Dropped in this order: the descriptor is watched no longer than the queue has it.
    _watch: Option<FdWatch>,
    poller: PollerHandle,
    queue: Rc<dyn Queue>,
}

impl PolledQueue {
    /// `name` is the poller's in the reactor's statistics.
    pub fn open(device: &dyn Device, depth: u32, name: &'static str) -> Result<PolledQueue, DeviceError> {
        let queue = device.open_queue(depth)?;
        let polled = queue.clone();
        let poller = add_poller(name, move || polled.process_completions());
        Ok(PolledQueue { _watch: queue.wake_fd().map(watch_fd), poller, queue })
    }
}

impl Deref for PolledQueue {
    type Target = Rc<dyn Queue>;

    fn deref(&self) -> &Rc<dyn Queue> {
        &self.queue
    }
}

impl fmt::Debug for PolledQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolledQueue").field("poller", &self.poller).finish_non_exhaustive()
    }
}
