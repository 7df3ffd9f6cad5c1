//! The native backend of a reactor: its ring, clock and entropy.

use std::cell::RefCell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::time::{ClockId, clock_gettime};
use vellum_base::prng::Prng;

use super::config::Config;
use super::ring::Ring;
use crate::time::{Instant, WallTime};
use crate::wake::Doorbell;

pub(crate) struct Driver {
    pub ring: Rc<Ring>,
    prng: RefCell<Prng>,
}

impl Driver {
    pub fn new(config: &Config, doorbell: Arc<OwnedFd>) -> io::Result<Driver> {
        let ring = Rc::new(Ring::new(config.ring_entries, doorbell)?);
        let seed = RandomState::new().build_hasher().finish() ^ clock().0; // RandomState draws from the kernel
        Ok(Driver { ring, prng: RefCell::new(Prng::new(seed)) })
    }

    pub fn random_u64(&self) -> u64 {
        self.prng.borrow_mut().next_u64()
    }

    /// Waits until a read (or an accept) on `file` would not block.
    pub async fn readable(&self, file: &Rc<OwnedFd>) -> io::Result<()> {
        self.poll(file, PollFlags::IN).await
    }

    /// Waits until a write on `file` would not block, or its connection attempt has ended.
    pub async fn writable(&self, file: &Rc<OwnedFd>) -> io::Result<()> {
        self.poll(file, PollFlags::OUT).await
    }

    async fn poll(&self, file: &Rc<OwnedFd>, events: PollFlags) -> io::Result<()> {
        let (result, _) = self.ring.poll(file, events.bits() as i16).await;
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
    }
}

pub(crate) fn clock() -> Instant {
    let t = clock_gettime(ClockId::Boottime);
    Instant(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

pub(crate) fn wall_clock() -> WallTime {
    let t = clock_gettime(ClockId::Realtime);
    WallTime { secs: t.tv_sec, nanos: t.tv_nsec as u32 }
}

/// An eventfd that the ring polls.
pub(super) struct EventfdDoorbell(pub Arc<OwnedFd>);

impl Doorbell for EventfdDoorbell {
    fn ring(&self) {
        // It fails only when the counter would overflow, and then the fd is readable anyway.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

pub(super) fn new_eventfd() -> io::Result<Arc<OwnedFd>> {
    Ok(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
}
