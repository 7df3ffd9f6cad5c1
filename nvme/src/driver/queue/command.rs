//! One operation as a command: the entry for it, and what its success or failure means.

use std::sync::atomic::Ordering;

use vellum_base::DmaBuf;
use vellum_base::dma::Arena;

use super::super::Transport;
use super::super::device::Shared;
use super::super::pages::CommandPages;
use crate::spec::Submission;
use crate::tracker::Operation;
use crate::{DeviceError, IoOp};

/// Most LBAs of one Dataset Management range.
const MAX_RANGE_LBAS: u64 = u32::MAX as u64;

/// An operation on its way.
pub(super) struct Command {
    pub op: IoOp,
    pub attempts: u8,
    /// Apart, so that a tracker is small.
    rare: Option<Box<Rare>>,
}

#[derive(Default)]
struct Rare {
    /// The memory that the device uses instead of the operation's own.
    bounce: Option<DmaBuf>,
    /// What is sent instead of the read, write or discard that `op` would be; its data is the operation's.
    instead: Option<Submission>,
}

impl Command {
    #[inline]
    pub fn new(op: IoOp, instead: Option<Submission>) -> Command {
        let rare = instead.map(|entry| Box::new(Rare { bounce: None, instead: Some(entry) }));
        Command { op, attempts: 0, rare }
    }

    pub fn is_rare(&self) -> bool {
        self.rare.is_some()
    }

    /// What is sent when `entry` was built.
    #[cold]
    pub fn instead_of(&self, entry: Submission) -> Submission {
        let Some(mut instead) = self.rare.as_ref().and_then(|rare| rare.instead) else { return entry };
        if matches!(self.op, IoOp::Read { .. } | IoOp::Write { .. }) {
            instead.dptr = entry.dptr;
            instead.flags |= entry.flags;
        }
        instead
    }

    /// All memory that the device may use for it.
    pub fn take_memory(&mut self) -> (IoOp, Option<DmaBuf>) {
        let op = std::mem::replace(&mut self.op, IoOp::Flush);
        (op, self.rare.take().and_then(|rare| rare.bounce))
    }
}

impl Operation for Command {
    #[inline]
    fn take_buf(&mut self) -> Option<DmaBuf> {
        self.op.take_buf()
    }
}

/// New memory for the device to use instead of the operation's own.
#[cold]
fn bounce(rare: &mut Option<Box<Rare>>, len: usize) -> &mut DmaBuf {
    rare.get_or_insert_default().bounce.insert(DmaBuf::new(len))
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
    match &mut command.op {
        IoOp::Read { at_bytes, buf } => {
            let len = buf.len();
            let address = match shared.address_of(arena, buf) {
                Some(address) => address,
                None => shared.bounce(arena, bounce(&mut command.rare, len))?,
            };
            let entry = Submission::read(nsid, *at_bytes >> shift, (len >> shift) as u32);
            Ok(pages.point(entry, index, address, len, shared.sgl))
        }
        IoOp::Write { at_bytes, data, fua } => {
            let len = data.len();
            let address = match shared.address_of(arena, data) {
                Some(address) => address,
                None => {
                    let bounce = bounce(&mut command.rare, len);
                    bounce.copy_from_slice(data);
                    shared.bounce(arena, bounce)?
                }
            };
            let fua = *fua && shared.geometry.volatile_write_cache;
            let entry = Submission::write(nsid, *at_bytes >> shift, (len >> shift) as u32, fua);
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
pub(super) fn succeed<T: Transport>(command: &mut Command, shared: &Shared<T>) {
    match &mut command.op {
        IoOp::Read { buf, .. } => {
            if let Some(bounce) = command.rare.as_ref().and_then(|rare| rare.bounce.as_ref()) {
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
}

pub(super) fn fail<T: Transport>(command: &Command, err: DeviceError, shared: &Shared<T>) -> Result<(), DeviceError> {
    if matches!(command.op, IoOp::Flush) && command.attempts > 0 {
        shared.controller.flushing.fetch_sub(1, Ordering::AcqRel);
    }
    Err(err)
}
