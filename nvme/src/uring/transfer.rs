//! Transfers, and a lane of a ring that carries them: the unsafe leaf of this backend.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use vellum_base::DmaBuf;
use vellum_base::units::BLOCK_SIZE;
use vellum_uring::{Answer, Kind, Lane, Ring, opcode, squeue, types};

use crate::{DeviceError, IoOp};

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

/// A lane for the transfers of one file.
pub(super) struct Way {
    pub lane: Lane,
    file: Target,
    /// Transfers at the kernel at once.
    depth: usize,
}

#[derive(Clone, Copy)]
enum Target {
    Registered(types::Fixed),
    Plain(types::Fd),
}

impl Way {
    /// On `ring`, for a descriptor that its owner keeps open for as long.
    pub fn new(ring: &Rc<Ring>, depth: u32, fd: RawFd) -> io::Result<Way> {
        let lane = Lane::new(ring, depth as usize)?;
        let file = lane.register(fd).map_or(Target::Plain(types::Fd(fd)), Target::Registered);
        Ok(Way { lane, file, depth: depth as usize })
    }

    /// On a ring of its own.
    pub fn alone(kind: Kind, depth: u32, fd: RawFd) -> Result<Way, DeviceError> {
        Ring::new(depth, kind)
            .and_then(|ring| Way::new(&Rc::new(ring), depth, fd))
            .map_err(|err| DeviceError::Ring { errno: err.raw_os_error().unwrap_or(libc::EIO) })
    }

    #[inline]
    pub fn has_room(&self) -> bool {
        self.lane.in_flight() < self.depth
    }

    /// Queues what is left of a transfer; its answer carries `slot`.
    ///
    /// # Safety
    /// The transfer's memory and the file are left alone until that answer has come, or the lane was drained.
    #[inline]
    pub unsafe fn start(&self, slot: u32, transfer: &mut Transfer) {
        let entry = match self.file {
            Target::Registered(file) => entry_of(transfer, file),
            Target::Plain(file) => entry_of(transfer, file),
        };
        // SAFETY: the caller's promise; the entry's bounds are the buffer's.
        unsafe { self.lane.push(entry, u64::from(slot)) };
    }
}

/// The kernel's entry for what is left of a transfer.
fn entry_of(transfer: &mut Transfer, file: impl types_ext::File) -> squeue::Entry {
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

/// The two kinds of file (registered or not) are types in the io-uring crate; these are our five entries over both.
mod types_ext {
    use super::*;

    pub(super) trait File {
        fn read(self, ptr: *mut u8, len: u32, at: u64) -> squeue::Entry;
        fn write(self, ptr: *const u8, len: u32, at: u64, flags: i32) -> squeue::Entry;
        fn flush(self) -> squeue::Entry;
        fn discard(self, at: u64, len: u64) -> squeue::Entry;
        fn punch(self, at: u64, len: u64) -> squeue::Entry;
    }

    macro_rules! file {
        ($kind:ty) => {
            impl File for $kind {
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
    file!(types::Fixed);
    file!(types::Fd);
}

/// True when one polled read works. Kernels say EOPNOTSUPP for a queue or filesystem that has no polling.
pub(super) fn can_poll(fd: RawFd) -> bool {
    let Ok(way) = Way::alone(Kind::Polled, 2, fd) else { return false };
    let mut transfer = Transfer::new(IoOp::Read { at_bytes: 0, buf: DmaBuf::new(BLOCK_SIZE) }, DiscardBy::Nothing);
    // SAFETY: nobody touches the transfer; it is dropped after its answer, or not at all.
    unsafe { way.start(0, &mut transfer) };
    let deadline = Instant::now() + PROBE_WAIT;
    let mut answers: Vec<Answer> = Vec::new();
    while answers.is_empty() && way.lane.look().is_ok() && Instant::now() < deadline {
        way.lane.take(&mut answers);
    }
    if answers.is_empty() {
        #[allow(clippy::mem_forget)] // the kernel may still write there
        std::mem::forget(transfer);
    }
    answers.first().is_some_and(|answer| answer.result == BLOCK_SIZE as i32)
}
