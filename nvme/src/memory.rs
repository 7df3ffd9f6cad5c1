//! A device in memory. Its content lives as long as the [`MemoryDevice`] (or a queue of it).
//!
//! It completes an operation at the first `process_completions` after its submission, in order of submission; nobody may
//! rely on that order. For a device that misbehaves see [`crate::fault`].

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, Waker};

use vellum_base::units::BLOCK_SIZE;

use crate::live_size::LiveSize;
use crate::tracker::{Trackers, Tracking};
use crate::{Device, DeviceError, Geometry, Image, IoDone, IoOp, Queue, Ticket};

/// Small enough that the splitting helpers are exercised by every test that writes a segment.
const MAX_TRANSFER_BYTES: usize = 1 << 20;

struct Shared {
    geometry: Geometry,
    size: LiveSize,
    image: RwLock<Image>,
}

#[derive(Clone)]
pub struct MemoryDevice {
    shared: Arc<Shared>,
}

impl MemoryDevice {
    /// `size_bytes` of zeros, rounded down to whole blocks.
    pub fn new(size_bytes: u64) -> MemoryDevice {
        MemoryDevice::from_image(Image::zeroed(size_bytes - size_bytes % BLOCK_SIZE as u64))
    }

    /// Panics when the image is not made of whole blocks.
    pub fn from_image(image: Image) -> MemoryDevice {
        let geometry = Geometry {
            size_bytes: image.len_bytes(),
            lba_bytes: 512,
            max_transfer_bytes: MAX_TRANSFER_BYTES,
            volatile_write_cache: false,
            name: format!("memory:{}", image.len_bytes()),
        };
        assert!(geometry.size_bytes.is_multiple_of(BLOCK_SIZE as u64), "an image is made of whole blocks");
        MemoryDevice {
            shared: Arc::new(Shared { size: LiveSize::new(geometry.size_bytes), geometry, image: RwLock::new(image) }),
        }
    }

    /// The content now; cheap.
    pub fn snapshot(&self) -> Image {
        self.shared.image.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes it larger, as a volume manager does to a device that is in use; the new end is zeros.
    pub fn enlarge(&self, size_bytes: u64) {
        self.shared.image.write().unwrap_or_else(PoisonError::into_inner).enlarge(size_bytes);
    }

    /// Puts a content of the same size in place.
    pub fn restore(&self, image: Image) {
        assert_eq!(image.len_bytes(), self.snapshot().len_bytes());
        *self.shared.image.write().unwrap_or_else(PoisonError::into_inner) = image;
    }
}

impl Device for MemoryDevice {
    fn geometry(&self) -> &Geometry {
        &self.shared.geometry
    }

    fn open_queue(&self, depth: u32) -> Result<Rc<dyn Queue>, DeviceError> {
        let inner = Inner { trackers: Trackers::new(depth), waiting: VecDeque::with_capacity(depth as usize) };
        Ok(Rc::new(MemoryQueue { shared: self.shared.clone(), inner: RefCell::new(inner), wakers: RefCell::default() }))
    }
}

struct Inner {
    trackers: Trackers<IoOp>,
    waiting: VecDeque<u32>,
}

struct MemoryQueue {
    shared: Arc<Shared>,
    inner: RefCell<Inner>,
    /// Kept for its capacity between polls.
    wakers: RefCell<Vec<Waker>>,
}

impl MemoryQueue {
    fn perform(&self, op: &mut IoOp) {
        match op {
            IoOp::Read { at_bytes, buf } => {
                self.shared.image.read().unwrap_or_else(PoisonError::into_inner).read(*at_bytes, buf);
            }
            IoOp::Write { at_bytes, data, .. } => {
                self.shared.image.write().unwrap_or_else(PoisonError::into_inner).write(*at_bytes, data);
            }
            IoOp::Flush => {}
            IoOp::Discard { at_bytes, len_bytes } => {
                self.shared.image.write().unwrap_or_else(PoisonError::into_inner).zero(*at_bytes, *len_bytes);
            }
        }
    }
}

impl Tracking<IoOp> for MemoryQueue {
    fn trackers(&self) -> RefMut<'_, Trackers<IoOp>> {
        RefMut::map(self.inner.borrow_mut(), |inner| &mut inner.trackers)
    }

    fn spare_wakers(&self) -> &RefCell<Vec<Waker>> {
        &self.wakers
    }
}

impl Queue for MemoryQueue {
    fn geometry(&self) -> &Geometry {
        &self.shared.geometry
    }

    fn look_at_size(&self) -> Result<u64, DeviceError> {
        let size_bytes = self.shared.image.read().unwrap_or_else(PoisonError::into_inner).len_bytes();
        self.shared.size.grow(size_bytes);
        Ok(size_bytes)
    }

    fn submit(&self, op: IoOp) -> Ticket {
        let mut inner = self.inner.borrow_mut();
        if let Err(err) = op.check(&self.shared.geometry, self.shared.size.get(), false) {
            return inner.trackers.start_done(op, Err(err));
        }
        let (ticket, accepted) = inner.trackers.start(op);
        if accepted {
            inner.waiting.push_back(ticket.slot);
        }
        ticket
    }

    fn poll_done(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<IoDone> {
        self.poll_ticket(ticket, cx)
    }

    fn forget(&self, ticket: Ticket) {
        self.forget_ticket(ticket);
    }

    fn process_completions(&self) -> usize {
        let mut inner = self.inner.borrow_mut();
        let count = inner.waiting.len();
        while let Some(slot) = inner.waiting.pop_front() {
            inner.trackers.finish(slot, |op| {
                self.perform(op);
                Ok(())
            });
        }
        drop(inner);
        self.wake_waiters();
        count
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }

    fn in_flight(&self) -> usize {
        self.inner.borrow().trackers.in_flight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::block_on;
    use vellum_base::DmaBuf;

    #[test]
    fn queues_share_the_content_and_snapshots_keep_it() {
        let device = MemoryDevice::new(1 << 20);
        let (a, b) = (device.open_queue(4).unwrap(), device.open_queue(4).unwrap());
        let before = device.snapshot();
        block_on(&a, a.write(8192, DmaBuf::copy_from(b"one", true).freeze(), false)).unwrap();
        let read = block_on(&b, b.read(8192, DmaBuf::new(4096))).unwrap();
        assert_eq!(&read[..3], b"one");
        device.restore(before);
        let read = block_on(&b, b.read(8192, read)).unwrap();
        assert_eq!(&read[..3], [0; 3]);
    }

    #[test]
    fn what_no_device_should_see_is_refused_with_its_buffer() {
        let device = MemoryDevice::new(8192);
        let q = device.open_queue(1).unwrap();
        assert!(matches!(block_on(&q, q.read(8192, DmaBuf::new(4096))), Err(DeviceError::OutOfRange { .. })));
        assert!(matches!(block_on(&q, q.read(512, DmaBuf::new(4096))), Err(DeviceError::Unaligned { .. })));
        let odd = DmaBuf::new(8192).freeze().slice(1..4097);
        assert!(matches!(block_on(&q, q.write(0, odd, false)), Err(DeviceError::Unaligned { .. })));
        assert!(matches!(block_on(&q, q.discard(u64::MAX - 4095, 4096)), Err(DeviceError::OutOfRange { .. })));
        assert_eq!(q.in_flight(), 0);
    }
}
