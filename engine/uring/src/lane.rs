//! One owner's part of a ring.
#![allow(unsafe_code)] // pushing an entry is a promise about memory; it is passed on to the owner

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use io_uring::{squeue, types};

use crate::{Answer, Ring};

/// A way into a ring and the answers that come back. Dropping it does not cancel or wait: see [`Lane::drain`].
pub struct Lane {
    ring: Rc<Ring>,
    index: u16,
}

impl Lane {
    /// Bits of a key.
    pub const KEY_BITS: u32 = 48;

    /// With memory for so many answers at a time; more take more. Fails when the ring has as many lanes as there are names for.
    pub fn new(ring: &Rc<Ring>, answers: usize) -> io::Result<Lane> {
        let index = ring.open_lane(answers)?;
        Ok(Lane { ring: ring.clone(), index })
    }

    pub fn ring(&self) -> &Rc<Ring> {
        &self.ring
    }

    /// Registers the lane's one file with the ring, which spares the kernel a lookup for each entry; `None` where that cannot be.
    /// The ring keeps the file open until the lane is dropped.
    pub fn register(&self, fd: RawFd) -> Option<types::Fixed> {
        self.ring.register(self.index, fd).then_some(types::Fixed(u32::from(self.index)))
    }

    /// Queues `entry`; its answers carry `key`, whose upper bits are lost.
    ///
    /// # Safety
    /// What the entry points to, and its file, are the kernel's until the (last) answer to `key` was taken, or [`Lane::drain`]
    /// has succeeded.
    #[inline]
    pub unsafe fn push(&self, entry: squeue::Entry, key: u64) {
        // SAFETY: passed on.
        unsafe { self.ring.push(self.index, entry, key) };
    }

    /// Asks the kernel to end an entry early; its answer comes as usual.
    pub fn cancel(&self, key: u64) {
        self.ring.cancel(self.index, key);
    }

    /// Entries that the kernel has not (finally) answered, whether it knows them yet or not.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.ring.in_flight(self.index)
    }

    /// Enters the kernel if that is of use (see [`Ring::enter`]), and sorts what there is: for whoever wants answers now.
    #[inline]
    pub fn look(&self) -> io::Result<()> {
        self.ring.look()
    }

    /// What came for this lane. `answers` is empty, and lends its memory.
    #[inline]
    pub fn take(&self, answers: &mut Vec<Answer>) {
        self.ring.take(self.index, answers);
    }

    /// Waits until everything is answered, or for so long; true when it is. Answers of this lane are dropped.
    pub fn drain(&self, at_most: Duration) -> bool {
        self.ring.drain(self.index, at_most)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.ring.close_lane(self.index);
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lane({})", self.index)
    }
}
