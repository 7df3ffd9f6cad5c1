//! One io_uring that owns the operations it was given until the kernel has answered: the unsafe leaf of this backend.
//!
//! Invariant: while an operation's entry may be known to the kernel, the operation (and with it the memory it points to)
//! is in `held`, and leaves it only with its completion. When the ring is dropped it waits for the kernel; if the kernel
//! does not answer, the memory is leaked rather than freed under a running transfer.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use vellum_base::DmaBuf;
use vellum_base::units::BLOCK_SIZE;

use crate::{DeviceError, IoOp};

/// How long a dropped ring waits for the kernel before it leaks what is in flight.
const DROP_WAIT: Duration = Duration::from_secs(10);
/// How long the probe for polled completions may take.
const PROBE_WAIT: Duration = Duration::from_secs(1);
/// BLOCK_URING_CMD_DISCARD, `_IO(0x12, 0)`, Linux 6.12.
const CMD_DISCARD: u32 = 0x12 << 8;

/// How a discard is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DiscardBy {
    /// The block layer's own command, without blocking.
    Command,
    /// `fallocate(PUNCH_HOLE)`: files, and block devices of kernels without the command.
    Punch,
    /// It can not: a hint is nothing to fail for.
    Nothing,
}

/// An operation on its way, possibly in several goes.
pub(super) struct Transfer {
    pub op: IoOp,
    pub done_bytes: usize,
    pub tries: u32,
    pub discard_by: DiscardBy,
    /// Set when the polled ring refused it.
    pub unpolled: bool,
}

impl Transfer {
    pub fn new(op: IoOp, discard_by: DiscardBy) -> Transfer {
        Transfer { op, done_bytes: 0, tries: 0, discard_by, unpolled: false }
    }
}

pub(super) struct Ring {
    uring: IoUring,
    fd: RawFd,
    registered: bool,
    polled: bool,
    /// By slot.
    held: Vec<Option<Transfer>>,
    at_kernel: usize,
    room: usize,
}

/// The best that still announces: one issuer, no interrupt for completions, and a flag in shared memory that says when to
/// enter. Not DEFER_TASKRUN: with it poll(2) and another ring's poll on this ring's descriptor were not woken by finished
/// work (Linux 6.18; the test `another_ring_can_sleep_on_the_wake_descriptor` hung), and a sleeping reactor relies on that.
fn build(entries: u32, polled: bool) -> io::Result<IoUring> {
    let with = |setup: fn(&mut io_uring::Builder)| {
        let mut builder = IoUring::builder();
        if polled {
            builder.setup_iopoll();
        }
        setup(&mut builder);
        builder.build(entries)
    };
    with(|b| {
        b.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
    })
    .or_else(|_| {
        with(|b| {
            b.setup_coop_taskrun().setup_taskrun_flag();
        })
    })
    .or_else(|_| with(|_| ()))
}

impl Ring {
    /// A ring for the calling thread, on a descriptor that its owner keeps open for as long.
    pub fn new(depth: u32, fd: RawFd, polled: bool) -> Result<Ring, DeviceError> {
        let uring = build(depth.next_power_of_two(), polled)
            .map_err(|err| DeviceError::Ring { errno: err.raw_os_error().unwrap_or(libc::EIO) })?;
        let registered = uring.submitter().register_files(&[fd]).is_ok();
        let held = (0..depth).map(|_| None).collect();
        Ok(Ring { uring, fd, registered, polled, held, at_kernel: 0, room: depth as usize })
    }

    pub fn wake_fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }

    pub fn has_room(&self) -> bool {
        self.at_kernel < self.room
    }

    pub fn at_kernel(&self) -> usize {
        self.at_kernel
    }

    /// Queues an entry for the next `enter`. The slot must not be in use; there must be room.
    pub fn start(&mut self, slot: u32, transfer: Transfer) {
        let index = slot as usize;
        if self.held.len() <= index {
            self.held.resize_with(index + 1, || None);
        }
        assert!(self.held[index].is_none() && self.has_room(), "one transfer per slot, and no more than there is room");
        let held = self.held[index].insert(transfer);
        let entry = if self.registered { entry_of(held, types::Fixed(0)) } else { entry_of(held, types::Fd(self.fd)) };
        let entry = entry.user_data(u64::from(slot));
        // SAFETY: the entry points into memory owned by `held[index]`, which stays until the completion is reaped
        // (the module's invariant); heap memory does not move with its owner. The transfer's bounds were taken from it.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the submission queue has an entry for each transfer that has room");
        self.at_kernel += 1;
    }

    /// At most one system call: submits what was queued and lets finished work be posted. Nothing to do costs two loads.
    pub fn enter(&mut self) -> io::Result<()> {
        let submission = self.uring.submission();
        let needed = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
        drop(submission);
        let reap_by_polling = self.polled && self.at_kernel > 0 && self.uring.completion().is_empty();
        if !needed && !reap_by_polling {
            return Ok(());
        }
        match self.uring.submit() {
            Ok(_) => Ok(()),
            // Signal, or short of kernel memory, or completions must be reaped first: the next turn tries again.
            Err(err) if matches!(err.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)) => {
                Ok(())
            }
            Err(err) => Err(err),
        }
    }

    /// Entries queued but not taken by the kernel: nobody will announce them, so the owner must come again.
    pub fn has_unsubmitted(&mut self) -> bool {
        !self.uring.submission().is_empty()
    }

    /// The next answer: slot, what was asked, and the kernel's result.
    pub fn reap(&mut self) -> Option<(u32, Transfer, i32)> {
        loop {
            let entry = self.uring.completion().next()?;
            let slot = entry.user_data() as u32;
            if let Some(transfer) = self.held.get_mut(slot as usize).and_then(Option::take) {
                self.at_kernel -= 1;
                return Some((slot, transfer, entry.result()));
            }
        }
    }
}

/// The kernel's entry for what is left of a transfer.
fn entry_of(transfer: &mut Transfer, file: impl types_ext::Target) -> squeue::Entry {
    let done = transfer.done_bytes;
    match &mut transfer.op {
        IoOp::Read { at_bytes, buf } => {
            let rest = &mut buf[done..];
            file.read(rest.as_mut_ptr(), rest.len() as u32, *at_bytes + done as u64)
        }
        IoOp::Write { at_bytes, data, fua } => {
            let rest = &data[done..];
            let flags = if *fua { libc::RWF_DSYNC } else { 0 };
            file.write(rest.as_ptr(), rest.len() as u32, *at_bytes + done as u64, flags)
        }
        IoOp::Flush => file.flush(),
        IoOp::Discard { at_bytes, len_bytes } => match transfer.discard_by {
            DiscardBy::Command => file.discard(*at_bytes, *len_bytes),
            DiscardBy::Punch => file.punch(*at_bytes, *len_bytes),
            DiscardBy::Nothing => opcode::Nop::new().build(),
        },
    }
}

/// The two kinds of target (registered or not) are types in the io-uring crate; these are our five entries over both.
mod types_ext {
    use super::*;

    pub(super) trait Target {
        fn read(self, ptr: *mut u8, len: u32, at: u64) -> squeue::Entry;
        fn write(self, ptr: *const u8, len: u32, at: u64, flags: i32) -> squeue::Entry;
        fn flush(self) -> squeue::Entry;
        fn discard(self, at: u64, len: u64) -> squeue::Entry;
        fn punch(self, at: u64, len: u64) -> squeue::Entry;
    }

    macro_rules! target {
        ($kind:ty) => {
            impl Target for $kind {
                fn read(self, ptr: *mut u8, len: u32, at: u64) -> squeue::Entry {
                    opcode::Read::new(self, ptr, len).offset(at).build()
                }
                fn write(self, ptr: *const u8, len: u32, at: u64, flags: i32) -> squeue::Entry {
                    opcode::Write::new(self, ptr, len).offset(at).rw_flags(flags).build()
                }
                fn flush(self) -> squeue::Entry {
                    opcode::Fsync::new(self).flags(types::FsyncFlags::DATASYNC).build()
                }
                fn discard(self, at: u64, len: u64) -> squeue::Entry {
                    // The command reads its length from the word that the crate calls the command's first 8 bytes.
                    let mut words = [0; 16];
                    words[..8].copy_from_slice(&len.to_ne_bytes());
                    opcode::UringCmd16::new(self, CMD_DISCARD).addr(Some(at)).cmd(words).build()
                }
                fn punch(self, at: u64, len: u64) -> squeue::Entry {
                    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                    opcode::Fallocate::new(self, len).offset(at).mode(mode).build()
                }
            }
        };
    }
    target!(types::Fixed);
    target!(types::Fd);
}

impl Drop for Ring {
    fn drop(&mut self) {
        let deadline = Instant::now() + DROP_WAIT;
        while self.at_kernel > 0 && Instant::now() < deadline {
            let timeout = types::Timespec::from(Duration::from_millis(100));
            let args = types::SubmitArgs::new().timespec(&timeout);
            let _ = self.uring.submitter().submit_with_args(1, &args); // a timeout or a signal: look again
            while self.reap().is_some() {}
        }
        if self.at_kernel > 0 {
            tracing::error!(
                in_flight = self.at_kernel,
                "the kernel did not answer; the memory of its transfers is leaked"
            );
            #[allow(clippy::mem_forget)] // the only safe end: the kernel may still write there
            std::mem::forget(std::mem::take(&mut self.held));
        }
    }
}

/// True when one polled read works. Kernels say EOPNOTSUPP for a queue or filesystem that has no polling.
pub(super) fn can_poll(fd: RawFd) -> bool {
    let Ok(mut ring) = Ring::new(2, fd, true) else { return false };
    let op = IoOp::Read { at_bytes: 0, buf: DmaBuf::new(BLOCK_SIZE) };
    ring.start(0, Transfer { op, done_bytes: 0, tries: 0, discard_by: DiscardBy::Nothing, unpolled: false });
    let deadline = Instant::now() + PROBE_WAIT;
    while Instant::now() < deadline {
        if ring.enter().is_err() {
            return false;
        }
        if let Some((_, _, result)) = ring.reap() {
            return result == BLOCK_SIZE as i32;
        }
    }
    false
}
