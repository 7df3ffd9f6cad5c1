//! Log pages (5.16.1).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Log page identifiers (figure 202).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum LogPage {
    Error = 0x01,
    Smart = 0x02,
    Firmware = 0x03,
    ChangedNamespaces = 0x04,
}

impl LogPage {
    pub fn from_id(id: u32) -> Option<LogPage> {
        [LogPage::Error, LogPage::Smart, LogPage::Firmware, LogPage::ChangedNamespaces]
            .into_iter()
            .find(|page| *page as u32 == id)
    }
}

/// An entry of the error log (5.16.1.2, figure 206); newest first.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct ErrorEntry {
    /// 0 in an unused entry; grows by one with each error.
    pub error_count: U64,
    pub sq_id: U16,
    pub cid: U16,
    /// The completion's status field, with the phase tag in bit 0.
    pub status_phase: U16,
    pub parameter_location: U16,
    pub lba: U64,
    pub nsid: U32,
    pub vendor_info: u8,
    pub transport: u8,
    pub reserved_30: [u8; 2],
    pub command_specific: U64,
    pub transport_specific: U16,
    pub reserved_42: [u8; 22],
}
const _: () = assert!(size_of::<ErrorEntry>() == 64);

/// SMART / Health Information (5.16.1.3, figure 207).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub struct SmartLog {
    /// 0: spare low, temperature, reliability degraded, read only, backup failed, persistent memory.
    pub critical_warning: u8,
    /// 2:1, Kelvin.
    pub temperature_kelvin: U16,
    /// Per cent.
    pub available_spare: u8,
    pub spare_threshold: u8,
    /// Per cent of the life that the vendor expects; may pass 100.
    pub percentage_used: u8,
    pub endurance_warning: u8,
    pub reserved_7: [u8; 25],
    /// 47:32, in units of 1,000 times 512 bytes; 128 bits, as the next ones.
    pub data_units_read: [u8; 16],
    pub data_units_written: [u8; 16],
    pub host_reads: [u8; 16],
    pub host_writes: [u8; 16],
    pub busy_minutes: [u8; 16],
    pub power_cycles: [u8; 16],
    pub power_on_hours: [u8; 16],
    pub unsafe_shutdowns: [u8; 16],
    pub media_errors: [u8; 16],
    pub error_log_entries: [u8; 16],
    pub warning_temperature_minutes: U32,
    pub critical_temperature_minutes: U32,
    pub sensors_kelvin: [U16; 8],
    pub reserved_216: [u8; 296],
}
const _: () = assert!(size_of::<SmartLog>() == 512);
const _: () = assert!(std::mem::offset_of!(SmartLog, data_units_read) == 32);

impl SmartLog {
    /// One of the 128-bit counters.
    pub fn counter(field: [u8; 16]) -> u128 {
        u128::from_le_bytes(field)
    }

    /// The critical warnings in words.
    pub fn warnings(&self) -> Vec<&'static str> {
        const NAMES: [&str; 6] = [
            "spare space is below its threshold",
            "a temperature is outside of its thresholds",
            "the reliability is degraded by media or internal errors",
            "the media are read only",
            "the backup of the volatile memory has failed",
            "the persistent memory region is read only or unreliable",
        ];
        NAMES
            .iter()
            .enumerate()
            .filter(|(bit, _)| self.critical_warning & 1 << bit != 0)
            .map(|(_, name)| *name)
            .collect()
    }
}

/// Firmware Slot Information (5.16.1.4, figure 208).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub struct FirmwareLog {
    /// AFI: the active slot in 2:0.
    pub active: u8,
    pub reserved_1: [u8; 7],
    pub slots: [[u8; 8]; 7],
    pub reserved_64: [u8; 448],
}
const _: () = assert!(size_of::<FirmwareLog>() == 512);
