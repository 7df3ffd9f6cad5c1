//! A device in memory that counts what is written to it, and how often it is read.

use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, DeviceError, Geometry, IoDone, IoOp, Queue, Ticket};

#[derive(Clone)]
pub struct CountingDevice {
    memory: MemoryDevice,
    written: Arc<AtomicU64>,
    reads: Arc<AtomicU64>,
}

impl CountingDevice {
    pub fn new(bytes: u64) -> CountingDevice {
        CountingDevice { memory: MemoryDevice::new(bytes), written: Arc::default(), reads: Arc::default() }
    }

    /// Bytes written since the last time.
    pub fn take_written(&self) -> u64 {
        self.written.swap(0, Relaxed)
    }

    /// Read operations since the last time.
    pub fn take_reads(&self) -> u64 {
        self.reads.swap(0, Relaxed)
    }

    pub fn as_device(&self) -> Arc<dyn Device> {
        Arc::new(self.clone())
    }
}

impl Device for CountingDevice {
    fn geometry(&self) -> &Geometry {
        self.memory.geometry()
    }

    fn open_queue(&self, depth: u32) -> Result<Rc<dyn Queue>, DeviceError> {
        let (inner, written, reads) = (self.memory.open_queue(depth)?, self.written.clone(), self.reads.clone());
        Ok(Rc::new(CountingQueue { inner, written, reads }))
    }
}

struct CountingQueue {
    inner: Rc<dyn Queue>,
    written: Arc<AtomicU64>,
    reads: Arc<AtomicU64>,
}

impl Queue for CountingQueue {
    fn geometry(&self) -> &Geometry {
        self.inner.geometry()
    }

    fn submit(&self, op: IoOp) -> Ticket {
        match &op {
            IoOp::Write { data, .. } => drop(self.written.fetch_add(data.len() as u64, Relaxed)),
            IoOp::Read { .. } => drop(self.reads.fetch_add(1, Relaxed)),
            _ => {}
        }
        self.inner.submit(op)
    }

    fn poll_done(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<IoDone> {
        self.inner.poll_done(ticket, cx)
    }

    fn forget(&self, ticket: Ticket) {
        self.inner.forget(ticket);
    }

    fn process_completions(&self) -> usize {
        self.inner.process_completions()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.inner.wake_fd()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }
}
