//! Reservations: which of several hosts that share a device may write it (NVMe base 8.19).
//!
//! A host registers a key; registrants may take the device's one reservation, whose type says what the others may do. A
//! registrant can preempt another one: its commands are aborted, and from then on it is refused whatever the type forbids.

use crate::DeviceError;
use crate::spec::ReservationType;

/// Who a host is, through whichever controller; never zero.
pub type HostId = [u8; 16];

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registrant {
    pub host: HostId,
    pub key: u64,
    pub holds: bool,
    /// Through which it is registered; 0xffff: one that is not there now.
    pub controller: u16,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReservationReport {
    /// Grows with every registration.
    pub generation: u32,
    /// None: nobody holds a reservation, everybody may write.
    pub kind: Option<ReservationType>,
    /// True when all of this survives a power loss.
    pub persists: bool,
    /// As many as one page reports (63).
    pub registrants: Vec<Registrant>,
}

/// Every call waits for the controller, and opens a queue for the time of it: not for a reactor's tasks.
///
/// Errors: [`DeviceError::Command`] with a reservation conflict where the key is not (any more) the own host's, or
/// another reservation is in the way.
pub trait Reservations: Send + Sync {
    fn report(&self) -> Result<ReservationReport, DeviceError>;

    /// Makes `host` a registrant with `key`, whatever key it has; from then on this controller speaks for `host`.
    fn register(&self, host: HostId, key: u64) -> Result<(), DeviceError>;

    /// A reservation that `key` holds ends with it.
    fn unregister(&self, key: u64) -> Result<(), DeviceError>;

    /// Takes the reservation. Success too when it is held already, by this host in this type.
    fn acquire(&self, key: u64, kind: ReservationType) -> Result<(), DeviceError>;

    /// Unregisters `victim`, and aborts its commands. Takes over the reservation if that was the victim's.
    fn preempt(&self, key: u64, victim: u64, kind: ReservationType) -> Result<(), DeviceError>;

    /// Ends the reservation and unregisters everybody.
    fn clear(&self, key: u64) -> Result<(), DeviceError>;
}
