//! IO commands (NVM 3).

use zerocopy::IntoBytes;

use super::data::{for_each_piece, take};
use super::subsystem::Namespace;
use super::{Bus, Controller};
use crate::spec::{DsmRange, IoOpcode, PAGE_BYTES, Status, Submission};

/// What an IO queue has done; for the health log.
#[derive(Clone, Copy, Default)]
pub(super) struct IoCounters {
    pub reads: u64,
    pub writes: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub media_errors: u64,
}

impl<B: Bus> Controller<B> {
    #[inline]
    pub(super) fn execute_io(&self, command: &Submission, counters: &mut IoCounters) -> Status {
        match self.try_io(command, counters) {
            Ok(()) => Status::SUCCESS,
            Err(status) => status,
        }
    }

    fn try_io(&self, command: &Submission, counters: &mut IoCounters) -> Result<(), Status> {
        let opcode = IoOpcode::from_byte(command.opcode).ok_or(Status::INVALID_OPCODE.with_do_not_retry())?;
        if opcode == IoOpcode::Flush && command.nsid.get() == crate::spec::ALL_NAMESPACES {
            return self.subsystem().attached().try_for_each(|ns| {
                self.check_reservation(ns, true)?;
                ns.medium.flush().map_err(|_| Status::WRITE_FAULT)
            });
        }
        let invalid = Status::INVALID_NAMESPACE.with_do_not_retry();
        let ns = self.subsystem().namespace(command.nsid.get()).ok_or(invalid)?;
        if !opcode.is_reservation() {
            self.check_reservation(ns, opcode != IoOpcode::Read)?;
        }
        match opcode {
            IoOpcode::Flush => ns.medium.flush().map_err(|_| Status::WRITE_FAULT),
            IoOpcode::Read => {
                let (at, len) = self.extent(ns, command)?;
                counters.reads += 1;
                counters.bytes_read += len as u64;
                if ns.medium.is_null() { Ok(()) } else { self.read(ns, command, at, len) }
            }
            IoOpcode::Write => {
                let (at, len) = self.extent(ns, command)?;
                counters.writes += 1;
                counters.bytes_written += len as u64;
                if ns.medium.is_null() { Ok(()) } else { self.write(ns, command, at, len) }
            }
            IoOpcode::WriteZeroes => {
                let (at, len) = range(ns, command.lba(), u64::from(command.lbas()))?;
                ns.medium.zero(at, len).map_err(|_| Status::WRITE_FAULT)
            }
            IoOpcode::DatasetManagement => self.dataset_management(ns, command),
            IoOpcode::ReservationRegister
            | IoOpcode::ReservationReport
            | IoOpcode::ReservationAcquire
            | IoOpcode::ReservationRelease => self.reservation(ns, opcode, command),
        }
        .inspect_err(|status| counters.media_errors += u64::from(status.code() >> 8 == 2))
    }

    /// Byte address and length of a transfer, checked.
    fn extent(&self, ns: &Namespace, command: &Submission) -> Result<(u64, usize), Status> {
        let (at, len) = range(ns, command.lba(), u64::from(command.lbas()))?;
        if self.max_transfer_bytes().is_some_and(|max| len > max as u64) {
            return Err(Status::INVALID_FIELD.with_do_not_retry());
        }
        Ok((at, len as usize))
    }

    fn read(&self, ns: &Namespace, command: &Submission, mut at: u64, len: usize) -> Result<(), Status> {
        let mut page = [0; PAGE_BYTES];
        for_each_piece(self.bus(), command, len, |address, len| {
            for start in (0..len).step_by(PAGE_BYTES) {
                let piece = &mut page[..PAGE_BYTES.min(len - start)];
                ns.medium.read(at, piece).map_err(|_| Status::UNRECOVERED_READ)?;
                self.bus().write(address + start as u64, piece).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
                at += piece.len() as u64;
            }
            Ok(())
        })
    }

    fn write(&self, ns: &Namespace, command: &Submission, mut at: u64, len: usize) -> Result<(), Status> {
        let mut page = [0; PAGE_BYTES];
        for_each_piece(self.bus(), command, len, |address, len| {
            for start in (0..len).step_by(PAGE_BYTES) {
                let piece = &mut page[..PAGE_BYTES.min(len - start)];
                self.bus().read(address + start as u64, piece).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
                ns.medium.write(at, piece, command.is_fua()).map_err(|_| Status::WRITE_FAULT)?;
                at += piece.len() as u64;
            }
            Ok(())
        })
    }

    fn dataset_management(&self, ns: &Namespace, command: &Submission) -> Result<(), Status> {
        if command.cdw11.get() & 1 << 2 == 0 {
            return Ok(()); // hints of other kinds
        }
        let count = (command.cdw10.get() & 0xff) as usize + 1;
        let mut ranges = [DsmRange::default(); crate::spec::MAX_DSM_RANGES];
        let ranges = &mut ranges[..count];
        take(self.bus(), command, ranges.as_mut_bytes())?;
        for one in ranges.iter().filter(|one| one.len_lbas.get() > 0) {
            let (at, len) = range(ns, one.start_lba.get(), u64::from(one.len_lbas.get()))?;
            ns.medium.zero(at, len).map_err(|_| Status::WRITE_FAULT)?;
        }
        Ok(())
    }
}

/// LBAs as bytes, within the namespace.
fn range(ns: &Namespace, lba: u64, lbas: u64) -> Result<(u64, u64), Status> {
    let outside = Status::LBA_OUT_OF_RANGE.with_do_not_retry();
    let end = lba.checked_add(lbas).filter(|end| *end <= ns.size_lbas()).ok_or(outside)?;
    Ok((lba << ns.lba_shift(), (end - lba) << ns.lba_shift()))
}
