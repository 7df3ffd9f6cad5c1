//! The seam: [`Device`] and [`Queue`], and the operations they take.

use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::{Context, Poll};

use vellum_base::units::BLOCK_SIZE;
use vellum_base::{DmaBuf, DmaSlice};

use crate::reservation::Reservations;
use crate::{DeviceError, Ticket};

/// What a device was when it was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// A multiple of 4 KiB. See [`Queue::look_at_size`].
    pub size_bytes: u64,
    /// The unit that the medium writes whole (512 or 4096); every transfer is in 4 KiB blocks all the same.
    pub lba_bytes: u32,
    /// Longest single operation; the helpers of `dyn Queue` split longer ones.
    pub max_transfer_bytes: usize,
    /// False only when a completed write is known to survive power loss without a flush.
    pub volatile_write_cache: bool,
    /// For people: backend, path, and how it is driven.
    pub name: String,
}

/// Shared by all reactors. Dropping the last reference to it and to its queues closes it and gives up its lock.
pub trait Device: Send + Sync {
    fn geometry(&self) -> &Geometry;

    /// A queue for the calling thread, with room for `depth` operations at the device at once. More may be submitted
    /// (up to [`crate::MAX_TRACKERS`]); they wait in the queue.
    fn open_queue(&self, depth: u32) -> Result<Rc<dyn Queue>, DeviceError>;

    /// Whether another opening of the device on this host, for the member in `slot`, may still have operations at the
    /// device; its process may be dead already. `None` where the backend cannot tell.
    fn slot_has_io(&self, _slot: u8) -> Result<Option<bool>, DeviceError> {
        Ok(None)
    }

    /// Who may write it, where several hosts share it. `None` where the device or the backend has no such thing.
    fn reservations(&self) -> Option<&dyn Reservations> {
        None
    }
}

/// One operation. Addresses and lengths are multiples of 4 KiB.
#[derive(Debug)]
pub enum IoOp {
    /// Fills `buf` whole (`buf.len()` bytes). On an error its content is unspecified.
    Read { at_bytes: u64, buf: DmaBuf },
    /// `fua`: complete only when this data is on the medium (not what was written before it).
    Write { at_bytes: u64, data: DmaSlice, fua: bool },
    /// Completes when every write that was complete at its submission is on the medium, whatever queue it went through.
    Flush,
    /// A hint: the content becomes unspecified (zeros, old, garbage) until written again. A device that cannot, succeeds.
    Discard { at_bytes: u64, len_bytes: u64 },
}

/// Outcome, and the buffer of a read.
pub type IoDone = (Result<(), DeviceError>, Option<DmaBuf>);

/// Operations of one reactor on one device. Not shared between threads.
///
/// Operations start at the next `process_completions` at the latest, all with one system call or doorbell; a reactor therefore
/// polls once more after its tasks ran and before it sleeps.
pub trait Queue {
    fn geometry(&self) -> &Geometry;

    /// Asks how many bytes the device has now, a multiple of 4 KiB. When it became larger since it was opened, all its
    /// queues take operations up to there from now on; [`Geometry::size_bytes`] stays what it was. A smaller size is
    /// told, and changes nothing.
    fn look_at_size(&self) -> Result<u64, DeviceError> {
        Ok(self.geometry().size_bytes)
    }

    /// Takes the operation; an invalid one is answered through its ticket.
    fn submit(&self, op: IoOp) -> Ticket;

    /// The outcome of `ticket`, once: after `Ready` the ticket is used up. The latest waker is kept.
    fn poll_done(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<IoDone>;

    /// Nobody waits for this any more. The operation is not cancelled; its memory lives until the device has answered.
    fn forget(&self, ticket: Ticket);

    /// Starts what was submitted, reaps what is done, wakes who waits. Returns the number of completions, or at least 1
    /// while something is in flight that `wake_fd` will not announce: the owner must then poll again without sleeping.
    fn process_completions(&self) -> usize;

    /// Readable (for poll, epoll or another ring) as soon as `process_completions` has something to reap.
    /// `None` for queues that complete only by being polled, and for those on the ring that the reactor itself sleeps on
    /// ([`vellum_uring::current`]).
    fn wake_fd(&self) -> Option<RawFd>;

    /// Submitted and not yet answered.
    fn in_flight(&self) -> usize;
}

impl IoOp {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            IoOp::Read { .. } => "read",
            IoOp::Write { .. } => "write",
            IoOp::Flush => "flush",
            IoOp::Discard { .. } => "discard",
        }
    }

    /// Address and length in bytes; a flush has neither.
    pub(crate) fn extent(&self) -> (u64, u64) {
        match self {
            IoOp::Read { at_bytes, buf } => (*at_bytes, buf.len() as u64),
            IoOp::Write { at_bytes, data, .. } => (*at_bytes, data.len() as u64),
            IoOp::Flush => (0, 0),
            IoOp::Discard { at_bytes, len_bytes } => (*at_bytes, *len_bytes),
        }
    }

    /// Refuses what no device should see.
    pub(crate) fn check(&self, geometry: &Geometry, size_bytes: u64, read_only: bool) -> Result<(), DeviceError> {
        const BLOCK: u64 = BLOCK_SIZE as u64;
        let op = self.name();
        let (at_bytes, len_bytes) = self.extent();
        if read_only && !matches!(self, IoOp::Read { .. }) {
            return Err(DeviceError::ReadOnly);
        }
        let memory_aligned = match self {
            IoOp::Write { data, .. } => data.is_block_aligned(),
            _ => true,
        };
        if !at_bytes.is_multiple_of(BLOCK) || !len_bytes.is_multiple_of(BLOCK) || !memory_aligned {
            return Err(DeviceError::Unaligned { op, at_bytes, len_bytes });
        }
        if at_bytes.checked_add(len_bytes).is_none_or(|end| end > size_bytes) {
            return Err(DeviceError::OutOfRange { op, at_bytes, len_bytes, size_bytes });
        }
        let moves_data = matches!(self, IoOp::Read { .. } | IoOp::Write { .. });
        if moves_data && len_bytes > geometry.max_transfer_bytes as u64 {
            return Err(DeviceError::TooLarge { op, len_bytes, max_bytes: geometry.max_transfer_bytes as u64 });
        }
        Ok(())
    }

    /// The buffer of a read, for its caller.
    #[inline]
    pub(crate) fn take_buf(&mut self) -> Option<DmaBuf> {
        match self {
            IoOp::Read { buf, .. } => Some(std::mem::take(buf)),
            _ => None,
        }
    }

    pub(crate) fn error(&self, errno: i32) -> DeviceError {
        let (at_bytes, len_bytes) = self.extent();
        DeviceError::Io { op: self.name(), at_bytes, len_bytes, errno }
    }
}
