//! Submission queue entries (4.1) and the commands that this project uses, as constructors.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{AcquireAction, Cns, Feature, LogPage, PAGE_BYTES, RegisterAction, ReleaseAction, ReservationType};

/// Admin commands (5, figure 138).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum AdminOpcode {
    DeleteSubmissionQueue = 0x00,
    CreateSubmissionQueue = 0x01,
    GetLogPage = 0x02,
    DeleteCompletionQueue = 0x04,
    CreateCompletionQueue = 0x05,
    Identify = 0x06,
    Abort = 0x08,
    SetFeatures = 0x09,
    GetFeatures = 0x0a,
    AsyncEventRequest = 0x0c,
    DoorbellBufferConfig = 0x7c,
    FormatNvm = 0x80,
}

/// Commands of the NVM command set (NVM 3, figure 20) and those of all IO command sets (7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum IoOpcode {
    Flush = 0x00,
    Write = 0x01,
    Read = 0x02,
    WriteZeroes = 0x08,
    DatasetManagement = 0x09,
    ReservationRegister = 0x0d,
    ReservationReport = 0x0e,
    ReservationAcquire = 0x11,
    ReservationRelease = 0x15,
}

macro_rules! from_byte {
    ($name:ident: $($variant:ident),*) => {
        impl $name {
            pub fn from_byte(byte: u8) -> Option<$name> {
                $(if byte == $name::$variant as u8 { return Some($name::$variant); })*
                None
            }
        }
    };
}
from_byte!(AdminOpcode: DeleteSubmissionQueue, CreateSubmissionQueue, GetLogPage, DeleteCompletionQueue,
    CreateCompletionQueue, Identify, Abort, SetFeatures, GetFeatures, AsyncEventRequest, DoorbellBufferConfig, FormatNvm);
from_byte!(IoOpcode: Flush, Write, Read, WriteZeroes, DatasetManagement, ReservationRegister, ReservationReport,
    ReservationAcquire, ReservationRelease);

impl IoOpcode {
    pub fn is_reservation(self) -> bool {
        use IoOpcode::*;
        matches!(self, ReservationRegister | ReservationReport | ReservationAcquire | ReservationRelease)
    }
}

/// PSDT 01b: the data pointer is an SGL descriptor (4.1, figure 86).
pub const PSDT_SGL: u8 = 1 << 6;
/// SGL data block descriptor, address subtype (4.1.2.1).
pub const DATA_BLOCK_DESCRIPTOR: u8 = 0;
/// Ranges that one Dataset Management command may have (NVM 3.2.3).
pub const MAX_DSM_RANGES: usize = 256;

/// A submission queue entry (4.1, figure 87). Words 2, 3 and 10 to 15 belong to the command.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Submission {
    /// CDW0 7:0.
    pub opcode: u8,
    /// CDW0 15:8: fused operation and PSDT.
    pub flags: u8,
    /// CDW0 31:16.
    pub cid: U16,
    pub nsid: U32,
    pub cdw2: U32,
    pub cdw3: U32,
    /// MPTR.
    pub metadata: U64,
    /// DPTR: PRP1 and PRP2, or an SGL descriptor in the same bytes.
    pub dptr: Pointer,
    pub cdw10: U32,
    pub cdw11: U32,
    pub cdw12: U32,
    pub cdw13: U32,
    pub cdw14: U32,
    pub cdw15: U32,
}
const _: () = assert!(size_of::<Submission>() == 1 << super::SUBMISSION_SHIFT);

/// DPTR (4.1.1): two PRPs, or an SGL descriptor ([`SglDescriptor`]) in the same bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Pointer {
    pub prp1: U64,
    pub prp2: U64,
}

/// SGL descriptor (4.1.2.1, figure 92).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct SglDescriptor {
    pub address: U64,
    pub len_bytes: U32,
    pub reserved: [u8; 3],
    /// Type in the upper, subtype in the lower four bits.
    pub kind: u8,
}
const _: () = assert!(size_of::<SglDescriptor>() == size_of::<Pointer>());

/// A range of Dataset Management (NVM 3.2.3.1, figure 41).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct DsmRange {
    pub attributes: U32,
    pub len_lbas: U32,
    pub start_lba: U64,
}
const _: () = assert!(size_of::<DsmRange>() * MAX_DSM_RANGES == PAGE_BYTES);

impl Submission {
    fn admin(opcode: AdminOpcode) -> Submission {
        Submission { opcode: opcode as u8, ..Submission::default() }
    }

    fn io(opcode: IoOpcode, nsid: u32) -> Submission {
        Submission { opcode: opcode as u8, nsid: nsid.into(), ..Submission::default() }
    }

    /// Data within one page (or two, when `prp2` names the second).
    pub fn with_prp(mut self, prp1: u64, prp2: u64) -> Submission {
        self.dptr = Pointer { prp1: prp1.into(), prp2: prp2.into() };
        self
    }

    /// Identify (5.17).
    pub fn identify(cns: Cns, nsid: u32) -> Submission {
        Submission { nsid: nsid.into(), cdw10: (cns as u32).into(), ..Submission::admin(AdminOpcode::Identify) }
    }

    /// Create I/O Completion Queue (5.4): contiguous, without interrupts.
    pub fn create_completion_queue(qid: u16, entries: u32, at: u64) -> Submission {
        let cdw10 = u32::from(qid) | (entries - 1) << 16;
        Submission { cdw10: cdw10.into(), cdw11: 1.into(), ..Submission::admin(AdminOpcode::CreateCompletionQueue) }
            .with_prp(at, 0)
    }

    /// Create I/O Submission Queue (5.5): contiguous, urgent priority, completions to the queue of the same number.
    pub fn create_submission_queue(qid: u16, entries: u32, at: u64) -> Submission {
        let cdw10 = u32::from(qid) | (entries - 1) << 16;
        let cdw11 = 1 | u32::from(qid) << 16;
        Submission { cdw10: cdw10.into(), cdw11: cdw11.into(), ..Submission::admin(AdminOpcode::CreateSubmissionQueue) }
            .with_prp(at, 0)
    }

    /// Delete I/O Submission Queue (5.7): the controller is done with every command of it when this completes.
    pub fn delete_submission_queue(qid: u16) -> Submission {
        Submission { cdw10: u32::from(qid).into(), ..Submission::admin(AdminOpcode::DeleteSubmissionQueue) }
    }

    /// Delete I/O Completion Queue (5.6).
    pub fn delete_completion_queue(qid: u16) -> Submission {
        Submission { cdw10: u32::from(qid).into(), ..Submission::admin(AdminOpcode::DeleteCompletionQueue) }
    }

    /// Get Log Page (5.16): `len_bytes` from the beginning, a multiple of 4.
    pub fn get_log_page(page: LogPage, nsid: u32, len_bytes: usize) -> Submission {
        let dwords = (len_bytes / 4).saturating_sub(1) as u32;
        let cdw10 = page as u32 | (dwords & 0xffff) << 16;
        Submission {
            nsid: nsid.into(),
            cdw10: cdw10.into(),
            cdw11: (dwords >> 16).into(),
            ..Submission::admin(AdminOpcode::GetLogPage)
        }
    }

    /// Set Features (5.27), not saved over a power cycle.
    pub fn set_features(feature: Feature, value: u32) -> Submission {
        Submission {
            cdw10: (feature as u32).into(),
            cdw11: value.into(),
            ..Submission::admin(AdminOpcode::SetFeatures)
        }
    }

    /// Set Features, Host Identifier (5.27.1.25) of 128 bits; the data is the identifier.
    pub fn set_host_identifier() -> Submission {
        Submission::set_features(Feature::HostIdentifier, 1)
    }

    /// Get Features (5.15), the current value.
    pub fn get_features(feature: Feature) -> Submission {
        Submission { cdw10: (feature as u32).into(), ..Submission::admin(AdminOpcode::GetFeatures) }
    }

    /// Abort (5.1).
    pub fn abort(qid: u16, cid: u16) -> Submission {
        Submission { cdw10: (u32::from(qid) | u32::from(cid) << 16).into(), ..Submission::admin(AdminOpcode::Abort) }
    }

    /// Asynchronous Event Request (5.2).
    pub fn async_event_request() -> Submission {
        Submission::admin(AdminOpcode::AsyncEventRequest)
    }

    /// Doorbell Buffer Config (5.8): one page of shadow doorbells, one of event indexes.
    pub fn doorbell_buffer_config(shadow: u64, event_index: u64) -> Submission {
        Submission::admin(AdminOpcode::DoorbellBufferConfig).with_prp(shadow, event_index)
    }

    /// Format NVM (5.14) with LBA format `format`, without secure erase.
    pub fn format_nvm(nsid: u32, format: u8) -> Submission {
        Submission {
            nsid: nsid.into(),
            cdw10: u32::from(format & 0xf).into(),
            ..Submission::admin(AdminOpcode::FormatNvm)
        }
    }

    /// Flush (7.1).
    pub fn flush(nsid: u32) -> Submission {
        Submission::io(IoOpcode::Flush, nsid)
    }

    /// Read (NVM 3.2.4). `lbas` is 1 to 65,536.
    pub fn read(nsid: u32, lba: u64, lbas: u32) -> Submission {
        Submission::io(IoOpcode::Read, nsid).at(lba, lbas)
    }

    /// Write (NVM 3.2.6). `fua`: CDW12 bit 30.
    pub fn write(nsid: u32, lba: u64, lbas: u32, fua: bool) -> Submission {
        let mut command = Submission::io(IoOpcode::Write, nsid).at(lba, lbas);
        command.cdw12 |= u32::from(fua) << 30;
        command
    }

    /// Write Zeroes (NVM 3.2.8). `deallocate`: CDW12 bit 25.
    pub fn write_zeroes(nsid: u32, lba: u64, lbas: u32, deallocate: bool) -> Submission {
        let mut command = Submission::io(IoOpcode::WriteZeroes, nsid).at(lba, lbas);
        command.cdw12 |= u32::from(deallocate) << 25;
        command
    }

    /// Dataset Management (NVM 3.2.3) with the deallocate attribute; the data pointer names `ranges` [`DsmRange`]s.
    pub fn deallocate(nsid: u32, ranges: u32) -> Submission {
        let mut command = Submission::io(IoOpcode::DatasetManagement, nsid);
        command.cdw10 = (ranges - 1).into();
        command.cdw11 = (1 << 2).into();
        command
    }

    /// Reservation Register (7.6); the data is [`super::ReservationKeys`]. `ignore`: whatever the own key is now.
    pub fn reservation_register(nsid: u32, action: RegisterAction, ignore: bool) -> Submission {
        let cdw10 = action as u32 | u32::from(ignore) << 3;
        Submission { cdw10: cdw10.into(), ..Submission::io(IoOpcode::ReservationRegister, nsid) }
    }

    /// Reservation Acquire (7.5); the data is [`super::ReservationKeys`].
    pub fn reservation_acquire(nsid: u32, action: AcquireAction, kind: ReservationType) -> Submission {
        let cdw10 = action as u32 | (kind as u32) << 8;
        Submission { cdw10: cdw10.into(), ..Submission::io(IoOpcode::ReservationAcquire, nsid) }
    }

    /// Reservation Release (7.7); the data is the first half of [`super::ReservationKeys`].
    pub fn reservation_release(nsid: u32, action: ReleaseAction, kind: ReservationType) -> Submission {
        let cdw10 = action as u32 | (kind as u32) << 8;
        Submission { cdw10: cdw10.into(), ..Submission::io(IoOpcode::ReservationRelease, nsid) }
    }

    /// Reservation Report (7.8) of `len_bytes`, in the extended form.
    pub fn reservation_report(nsid: u32, len_bytes: usize) -> Submission {
        let dwords = (len_bytes / 4).saturating_sub(1) as u32;
        let entry = Submission::io(IoOpcode::ReservationReport, nsid);
        Submission { cdw10: dwords.into(), cdw11: 1.into(), ..entry }
    }

    fn at(mut self, lba: u64, lbas: u32) -> Submission {
        self.cdw10 = (lba as u32).into();
        self.cdw11 = ((lba >> 32) as u32).into();
        self.cdw12 = (lbas.wrapping_sub(1) & 0xffff).into();
        self
    }

    /// SLBA of a read, write or write zeroes.
    pub fn lba(&self) -> u64 {
        u64::from(self.cdw10.get()) | u64::from(self.cdw11.get()) << 32
    }

    /// NLB of the same, as a count.
    pub fn lbas(&self) -> u32 {
        (self.cdw12.get() & 0xffff) + 1
    }

    pub fn is_fua(&self) -> bool {
        self.cdw12.get() & 1 << 30 != 0
    }

    /// The data pointer read as an SGL descriptor.
    pub fn sgl(&self) -> SglDescriptor {
        zerocopy::transmute!(self.dptr)
    }

    /// Points the command at one contiguous block of data.
    pub fn with_sgl(mut self, address: u64, len_bytes: u32) -> Submission {
        let descriptor = SglDescriptor {
            address: address.into(),
            len_bytes: len_bytes.into(),
            reserved: [0; 3],
            kind: DATA_BLOCK_DESCRIPTOR,
        };
        self.dptr = zerocopy::transmute!(descriptor);
        self.flags |= PSDT_SGL;
        self
    }

    /// The entry as the eight words that are stored into a queue.
    pub fn to_words(self) -> [u64; 8] {
        zerocopy::transmute!(self)
    }

    pub fn from_words(words: [u64; 8]) -> Submission {
        zerocopy::transmute!(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_bits_of_the_specification() {
        let write = Submission::write(7, 0x1_2345_6789, 256, true);
        assert_eq!((write.opcode, write.nsid.get()), (1, 7));
        assert_eq!((write.cdw10.get(), write.cdw11.get(), write.cdw12.get()), (0x2345_6789, 1, 0x4000_00ff));
        assert_eq!((write.lba(), write.lbas(), write.is_fua()), (0x1_2345_6789, 256, true));
        let log = Submission::get_log_page(LogPage::Smart, super::super::ALL_NAMESPACES, 512);
        assert_eq!(log.cdw10.get(), 0x007f_0002);
        let queue = Submission::create_submission_queue(3, 64, 0x1000);
        assert_eq!((queue.cdw10.get(), queue.cdw11.get(), queue.dptr.prp1.get()), (0x003f_0003, 0x0003_0001, 0x1000));
        let preempt = Submission::reservation_acquire(
            7,
            AcquireAction::PreemptAndAbort,
            ReservationType::WriteExclusiveRegistrantsOnly,
        );
        assert_eq!((preempt.opcode, preempt.cdw10.get()), (0x11, 0x302));
        assert_eq!(Submission::reservation_register(7, RegisterAction::Unregister, true).cdw10.get(), 9);
        let report = Submission::reservation_report(7, 4096);
        assert_eq!((report.opcode, report.cdw10.get(), report.cdw11.get()), (0x0e, 1023, 1));
        assert_eq!(Submission::from_words(queue.to_words()), queue);
    }

    #[test]
    fn an_sgl_lies_where_the_prps_do() {
        let read = Submission::read(1, 0, 8).with_sgl(0x1122_3344_5566_7788, 4096);
        assert_eq!(read.flags, PSDT_SGL);
        assert_eq!(read.dptr.prp1.get(), 0x1122_3344_5566_7788);
        assert_eq!(read.dptr.prp2.get(), 4096);
        assert_eq!((read.sgl().len_bytes.get(), read.sgl().kind), (4096, 0));
    }
}
