//! One operation as a command: the entry for it, and what its success or failure means.

use std::sync::atomic::Ordering;

use vellum_base::DmaBuf;
use vellum_base::dma::Arena;

use super::super::Transport;
use super::super::device::Shared;
use super::super::pages::CommandPages;
use crate::spec::Submission;
use crate::{DeviceError, IoDone, IoOp};

/// Most LBAs of one Dataset Management range.
const MAX_RANGE_LBAS: u64 = u32::MAX as u64;

/// An operation on its way.
pub(super) struct Command {
    pub op: IoOp,
    /// The memory that the device uses instead of the operation's own.
    pub bounce: Option<DmaBuf>,
    pub attempts: u8,
    /// What is sent instead of the read, write or discard that `op` would be; its data is the operation's.
    pub instead: Option<Box<Submission>>,
}

impl Command {
    pub fn new(op: IoOp, instead: Option<Box<Submission>>) -> Command {
        Command { op, bounce: None, attempts: 0, instead }
    }
}

/// The entry for `command`, with its data where command id `index` has its page.
#[inline]
pub(super) fn build<T: Transport>(
    command: &mut Command,
    index: usize,
    pages: &CommandPages,
    arena: &Arena,
    shared: &Shared<T>,
) -> Result<Submission, DeviceError> {
    let (nsid, shift) = (shared.namespace.nsid, shared.namespace.lba_shift);
    let instead = command.instead.as_deref();
    match &mut command.op {
        IoOp::Read { at_bytes, buf } => {
            let len = buf.len();
            let address = match shared.address_of(arena, buf) {
                Some(address) => address,
                None => shared.bounce(arena, command.bounce.insert(DmaBuf::new(len)))?,
            };
            let read = || Submission::read(nsid, *at_bytes >> shift, (len >> shift) as u32);
            let entry = instead.copied().unwrap_or_else(read);
            Ok(pages.point(entry, index, address, len, shared.sgl))
        }
        IoOp::Write { at_bytes, data, fua } => {
            let len = data.len();
            let address = match shared.address_of(arena, data) {
                Some(address) => address,
                None => {
                    let bounce = command.bounce.insert(DmaBuf::new(len));
                    bounce.copy_from_slice(data);
                    shared.bounce(arena, bounce)?
                }
            };
            let fua = *fua && shared.geometry.volatile_write_cache;
            let write = || Submission::write(nsid, *at_bytes >> shift, (len >> shift) as u32, fua);
            let entry = instead.copied().unwrap_or_else(write);
            Ok(pages.point(entry, index, address, len, shared.sgl))
        }
        IoOp::Flush => {
            if command.attempts == 1 {
                shared.controller.flushing.fetch_add(1, Ordering::AcqRel);
                shared.controller.unflushed.store(false, Ordering::Release);
            }
            Ok(Submission::flush(nsid))
        }
        IoOp::Discard { at_bytes, len_bytes } => {
            if let Some(entry) = instead {
                return Ok(*entry);
            }
            let (lba, lbas) = (*at_bytes >> shift, *len_bytes >> shift);
            let ranges = (0..lbas)
                .step_by(MAX_RANGE_LBAS as usize)
                .map(|done| (lba + done, (lbas - done).min(MAX_RANGE_LBAS) as u32));
            let (address, count) = pages.put_ranges(index, ranges);
            Ok(Submission::deallocate(nsid, count).with_prp(address, 0))
        }
    }
}

#[inline]
pub(super) fn succeed<T: Transport>(mut command: Command, shared: &Shared<T>) -> IoDone {
    match &mut command.op {
        IoOp::Read { buf, .. } => {
            if let Some(bounce) = &command.bounce {
                buf.copy_from_slice(bounce);
            }
        }
        IoOp::Write { fua: false, .. } => {
            let unflushed = &shared.controller.unflushed;
            if shared.geometry.volatile_write_cache && !unflushed.load(Ordering::Relaxed) {
                unflushed.store(true, Ordering::Release);
            }
        }
        IoOp::Flush => {
            shared.controller.flushing.fetch_sub(1, Ordering::AcqRel);
        }
        _ => {}
    }
    command.op.into_done(Ok(()))
}

pub(super) fn fail<T: Transport>(command: Command, err: DeviceError, shared: &Shared<T>) -> IoDone {
    if matches!(command.op, IoOp::Flush) && command.attempts > 0 {
        shared.controller.flushing.fetch_sub(1, Ordering::AcqRel);
    }
    command.op.into_done(Err(err))
}
