//! Where a command's data is: PRPs (4.1.1) or one SGL data block (4.1.2).

use zerocopy::IntoBytes;

use super::Bus;
use crate::spec::{DATA_BLOCK_DESCRIPTOR, PAGE_BYTES, PSDT_SGL, Status, Submission};

const PAGE: u64 = PAGE_BYTES as u64;

/// Calls `each` with address and length of each piece of the command's `len_bytes` of data, in order.
pub(super) fn for_each_piece<B: Bus>(
    bus: &B,
    command: &Submission,
    len_bytes: usize,
    mut each: impl FnMut(u64, usize) -> Result<(), Status>,
) -> Result<(), Status> {
    if command.flags & 0xc0 != 0 {
        let sgl = command.sgl();
        if command.flags & 0xc0 != PSDT_SGL || sgl.kind != DATA_BLOCK_DESCRIPTOR {
            return Err(Status::INVALID_SGL_TYPE);
        }
        if sgl.len_bytes.get() as usize != len_bytes {
            return Err(Status::INVALID_SGL_LENGTH);
        }
        return each(sgl.address.get(), len_bytes);
    }
    let prp1 = command.dptr.prp1.get();
    let first = len_bytes.min((PAGE - prp1 % PAGE) as usize);
    each(prp1, first)?;
    let rest = len_bytes - first;
    if rest == 0 {
        return Ok(());
    }
    let prp2 = command.dptr.prp2.get();
    if rest <= PAGE_BYTES {
        if !prp2.is_multiple_of(PAGE) {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        return each(prp2, rest);
    }
    walk_list(bus, prp2, rest, each)
}

/// A list of page addresses; the last entry of a page names the next page when more than it follows.
fn walk_list<B: Bus>(
    bus: &B,
    mut list: u64,
    mut rest: usize,
    mut each: impl FnMut(u64, usize) -> Result<(), Status>,
) -> Result<(), Status> {
    if !list.is_multiple_of(8) {
        return Err(Status::INVALID_PRP_OFFSET);
    }
    while rest > 0 {
        let mut entry = 0u64;
        bus.read(list, entry.as_mut_bytes()).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        let entry = u64::from_le(entry);
        if !entry.is_multiple_of(PAGE) {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        if (list + 8).is_multiple_of(PAGE) && rest > PAGE_BYTES {
            list = entry;
            continue;
        }
        let len = rest.min(PAGE_BYTES);
        each(entry, len)?;
        rest -= len;
        list += 8;
    }
    Ok(())
}

/// Gives `data` to the host.
pub(super) fn give<B: Bus>(bus: &B, command: &Submission, data: &[u8]) -> Result<(), Status> {
    let mut rest = data;
    for_each_piece(bus, command, data.len(), |at, len| {
        let (piece, tail) = rest.split_at(len.min(rest.len()));
        rest = tail;
        bus.write(at, piece).map_err(|_| Status::DATA_TRANSFER_ERROR)
    })
}

/// Takes data from the host.
pub(super) fn take<B: Bus>(bus: &B, command: &Submission, out: &mut [u8]) -> Result<(), Status> {
    let (mut done, len) = (0, out.len());
    for_each_piece(bus, command, len, |at, len| {
        let piece = out.get_mut(done..done + len).ok_or(Status::INTERNAL_ERROR)?;
        done += len;
        bus.read(at, piece).map_err(|_| Status::DATA_TRANSFER_ERROR)
    })
}
