//! Reservations (8.19 and 7.5 to 7.8): who of several hosts may write a shared namespace.
//!
//! A host registers a key; one registrant may hold the reservation, whose type says what the others may still do. A
//! registrant that is preempted is none any more.

use std::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// RTYPE (figure 460).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ReservationType {
    WriteExclusive = 1,
    ExclusiveAccess = 2,
    WriteExclusiveRegistrantsOnly = 3,
    ExclusiveAccessRegistrantsOnly = 4,
    WriteExclusiveAllRegistrants = 5,
    ExclusiveAccessAllRegistrants = 6,
}

impl ReservationType {
    pub fn from_id(id: u8) -> Option<ReservationType> {
        use ReservationType::*;
        [
            WriteExclusive,
            ExclusiveAccess,
            WriteExclusiveRegistrantsOnly,
            ExclusiveAccessRegistrantsOnly,
            WriteExclusiveAllRegistrants,
            ExclusiveAccessAllRegistrants,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == id)
    }

    /// Its bit in RESCAP.
    pub const fn capability(self) -> u8 {
        1 << self as u8
    }

    /// Reads of others are refused too.
    pub fn is_exclusive_access(self) -> bool {
        (self as u8).is_multiple_of(2)
    }

    /// Every registrant has the holder's rights.
    pub fn is_for_registrants(self) -> bool {
        self as u8 >= 3
    }

    /// Every registrant is a holder.
    pub fn is_for_all_registrants(self) -> bool {
        self as u8 >= 5
    }
}

impl fmt::Display for ReservationType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReservationType::WriteExclusive => "write exclusive",
            ReservationType::ExclusiveAccess => "exclusive access",
            ReservationType::WriteExclusiveRegistrantsOnly => "write exclusive, registrants only",
            ReservationType::ExclusiveAccessRegistrantsOnly => "exclusive access, registrants only",
            ReservationType::WriteExclusiveAllRegistrants => "write exclusive, all registrants",
            ReservationType::ExclusiveAccessAllRegistrants => "exclusive access, all registrants",
        })
    }
}

/// RREGA of Reservation Register (7.6, figure 403).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RegisterAction {
    Register = 0,
    Unregister = 1,
    Replace = 2,
}

/// RACQA of Reservation Acquire (7.5, figure 400).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum AcquireAction {
    Acquire = 0,
    Preempt = 1,
    PreemptAndAbort = 2,
}

/// RRELA of Reservation Release (7.7, figure 406).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ReleaseAction {
    Release = 0,
    Clear = 1,
}

macro_rules! action {
    ($($name:ident: $($variant:ident),*;)*) => {
        $(impl $name {
            /// From CDW10 2:0.
            pub fn from_cdw10(cdw10: u32) -> Option<$name> {
                let id = (cdw10 & 7) as u8;
                [$($name::$variant),*].into_iter().find(|action| *action as u8 == id)
            }
        })*
    };
}
action! {
    RegisterAction: Register, Unregister, Replace;
    AcquireAction: Acquire, Preempt, PreemptAndAbort;
    ReleaseAction: Release, Clear;
}

/// Data of Reservation Register (figure 404) and Acquire (figure 401): the own key as it is, and the new one or the one to
/// preempt. Release (figure 407) has the first only.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct ReservationKeys {
    /// CRKEY.
    pub current: U64,
    /// NRKEY or PRKEY.
    pub other: U64,
}
const _: () = assert!(size_of::<ReservationKeys>() == 16);

/// The head of the extended Reservation Status (7.8, figure 411).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ReservationStatus {
    /// GEN: changes with every registration.
    pub generation: U32,
    /// RTYPE; 0: nobody holds one.
    pub kind: u8,
    /// REGCTL, bytes 6:5: how many registrants follow.
    pub registrants: U16,
    pub reserved_7: U16,
    /// PTPLS: whether all of this survives a power loss.
    pub persists: u8,
    pub reserved_10: [u8; 54],
}
const _: () = assert!(size_of::<ReservationStatus>() == 64);

/// One registrant of it (figure 412).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct RegistrantStatus {
    /// CNTLID; 0xffff for a controller that is not there now.
    pub controller: U16,
    /// RCSTS: bit 0 it holds the reservation.
    pub status: u8,
    pub reserved_3: [u8; 5],
    /// RKEY.
    pub key: U64,
    /// HOSTID.
    pub host: [u8; 16],
    pub reserved_32: [u8; 32],
}
const _: () = assert!(size_of::<RegistrantStatus>() == 64);
const _: () = assert!(std::mem::offset_of!(RegistrantStatus, key) == 8);
const _: () = assert!(std::mem::offset_of!(RegistrantStatus, host) == 16);

impl RegistrantStatus {
    pub fn new(controller: u16, holds: bool, key: u64, host: [u8; 16]) -> RegistrantStatus {
        RegistrantStatus {
            controller: controller.into(),
            status: u8::from(holds),
            key: key.into(),
            host,
            ..RegistrantStatus::new_zeroed()
        }
    }

    pub fn holds(&self) -> bool {
        self.status & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_say_whom_they_bind() {
        use ReservationType::*;
        for id in 1..=6 {
            let kind = ReservationType::from_id(id).unwrap();
            assert_eq!(kind as u8, id);
            assert_eq!(kind.is_exclusive_access(), matches!(id, 2 | 4 | 6), "{kind}");
            assert_eq!(kind.is_for_registrants(), id > 2, "{kind}");
        }
        assert_eq!(ReservationType::from_id(7), None);
        assert_eq!(WriteExclusive.capability(), 2);
        assert_eq!(WriteExclusiveRegistrantsOnly.capability(), 1 << 3);
        assert_eq!(AcquireAction::from_cdw10(0x30a), Some(AcquireAction::PreemptAndAbort));
        assert_eq!(RegisterAction::from_cdw10(3), None);
    }
}
