//! Fences by the device itself: NVMe reservations of a namespace that the members share.
//!
//! Every member registers a key when it starts, and one of them holds a "write exclusive, registrants only" reservation:
//! registrants write, nobody else does. To fence a member is to preempt its key: its commands are aborted, and what it
//! sends from then on is refused by the controller ([`vellum_nvme::DeviceError::is_taken_away`]), whatever became of it.
//! No script, no power switch, and no answer of the fenced host are needed.
//!
//! A key names the slot and the process, so that the right run is preempted; where the block of a slot cannot be read,
//! every run of that slot is. A host is named by its machine and the slot: a new run on the same machine takes the place
//! of the one before, a run on another machine does not.
//!
//! What it does not do: vouch for a target that never registered while nobody held the reservation. Nothing would have
//! kept that one's commands out.

use std::sync::Arc;
use std::time::Duration;

use vellum_base::{Slot, crc32c};
use vellum_format::ProcessIdentity;
use vellum_nvme::spec::ReservationType;
use vellum_nvme::{Device, DeviceError, HostId, Registrant, ReservationReport, Reservations};
use vellum_rt::{now, sleep};

use super::fencer::{FenceError, FenceFuture, FenceOrder, Fencer};
use crate::plan::NodeError;

const KIND: ReservationType = ReservationType::WriteExclusiveRegistrantsOnly;
/// The first byte of our keys.
const TAG: u64 = b'V' as u64;
/// How long the commands of one fence may take.
const LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(1);

/// Tag, slot, and 48 bits of which process it is.
fn key_of(slot: Slot, process: &ProcessIdentity) -> u64 {
    let mut bytes = process.boot_id.to_vec();
    bytes.extend_from_slice(&process.start_ticks.to_le_bytes());
    let run = u64::from(crc32c(&bytes)) | u64::from(process.pid & 0xffff) << 32;
    TAG << 56 | u64::from(slot.0) << 48 | run
}

fn is_of_slot(key: u64, slot: Slot) -> bool {
    key >> 48 == TAG << 8 | u64::from(slot.0)
}

/// This machine's member in `slot`.
fn host_of(slot: Slot, process: &ProcessIdentity) -> HostId {
    let text = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let machine = u128::from_str_radix(text.trim(), 16).ok().filter(|id| *id != 0);
    let machine = machine.unwrap_or_else(|| u128::from_be_bytes(process.boot_id));
    machine.wrapping_add(1 + u128::from(slot.0)).max(1).to_be_bytes()
}

#[derive(Clone)]
pub struct ReservationFencer {
    device: Arc<dyn Device>,
    key: u64,
}

impl ReservationFencer {
    /// Registers the member that `process` is, and takes the reservation where nobody has it. Waits for the device: to be
    /// called before the reactors run. The controller must grant one IO queue pair more than the reactors need.
    pub fn register(
        device: Arc<dyn Device>,
        own: Slot,
        process: &ProcessIdentity,
    ) -> Result<ReservationFencer, NodeError> {
        let key = key_of(own, process);
        let fencer = ReservationFencer { device, key };
        let refused = |error: String| NodeError::Member(format!("--fence reservation: {error}"));
        let reservations = fencer.reservations().map_err(|error| refused(error.to_string()))?;
        reservations.register(host_of(own, process), key).map_err(|error| refused(error.to_string()))?;
        fencer.hold(reservations).map_err(|error| refused(error.to_string()))?;
        tracing::info!(slot = %own, key = format!("{key:#x}"), "registered for reservations");
        Ok(fencer)
    }

    pub fn key(&self) -> u64 {
        self.key
    }

    /// For a member that leaves in order. One that was fenced is no registrant: nothing is left to do.
    pub fn unregister(&self) -> Result<(), DeviceError> {
        let Some(reservations) = self.device.reservations() else { return Ok(()) };
        match reservations.unregister(self.key) {
            Err(error) if error.is_taken_away() => Ok(()),
            other => other,
        }
    }

    fn reservations(&self) -> Result<&dyn Reservations, FenceError> {
        let name = &self.device.geometry().name;
        let none =
            || FenceError::NotMine(format!("{name} has no reservations (NVMe, ONCS bit 5): fence by other means"));
        self.device.reservations().ok_or_else(none)
    }

    /// Sees to it that somebody of us holds the reservation. True when it was held already.
    fn hold(&self, reservations: &dyn Reservations) -> Result<bool, FenceError> {
        let failed = |error: DeviceError| FenceError::Failed(error.to_string());
        let held = |report: &ReservationReport| match report.kind {
            Some(KIND) => Ok(true),
            Some(other) => Err(FenceError::Failed(format!(
                "the namespace is reserved in another way ({other}), not by Vellum: see `vellum nvme reservations`"
            ))),
            None => Ok(false),
        };
        if held(&reservations.report().map_err(failed)?)? {
            return Ok(true);
        }
        match reservations.acquire(self.key, KIND) {
            Ok(()) => Ok(false),
            // Another member was faster, or we are no registrant any more.
            Err(error) if error.is_taken_away() && held(&reservations.report().map_err(failed)?)? => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Waits for the device.
    fn preempt(&self, order: &FenceOrder) -> Result<(), FenceError> {
        let reservations = self.reservations()?;
        let report = || reservations.report().map_err(|error| FenceError::Failed(error.to_string()));
        let victims = |report: &ReservationReport| -> Vec<u64> {
            let exact = order.process().map(|process| key_of(order.slot(), &process));
            let meant = |one: &&Registrant| exact.map_or(is_of_slot(one.key, order.slot()), |key| one.key == key);
            report.registrants.iter().filter(meant).map(|one| one.key).filter(|key| *key != self.key).collect()
        };
        let was_held = self.hold(reservations)?;
        let before = report()?;
        let found = victims(&before);
        if found.is_empty() && !was_held {
            let why = "it has no registration, and nobody held the reservation: nothing kept it from writing";
            return Err(FenceError::NotMine(why.into()));
        }
        for victim in found {
            match reservations.preempt(self.key, victim, KIND) {
                Err(error) if !error.is_taken_away() => return Err(FenceError::Failed(error.to_string())),
                _ => {} // a conflict: another leader has preempted it, or us; the report tells
            }
        }
        let after = report()?;
        if !after.registrants.iter().any(|one| one.key == self.key) {
            return Err(FenceError::Failed("this member was fenced itself".into()));
        }
        if after.kind != Some(KIND) || !victims(&after).is_empty() {
            return Err(FenceError::Failed("the key is registered still after it was preempted".into()));
        }
        tracing::info!(%order, "fenced: its key is preempted, the device refuses what it writes");
        Ok(())
    }
}

impl std::fmt::Debug for ReservationFencer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReservationFencer({}, {:#x})", self.device.geometry().name, self.key)
    }
}

impl Fencer for ReservationFencer {
    /// The commands wait for the device in a thread of their own: the reactor's heartbeats go on.
    fn fence(&self, order: FenceOrder) -> FenceFuture {
        let fencer = self.clone();
        Box::pin(async move {
            let thread = std::thread::Builder::new().name("fence".into()).spawn(move || fencer.preempt(&order));
            let thread = thread.map_err(|error| FenceError::Failed(error.to_string()))?;
            let give_up = now() + LIMIT;
            while !thread.is_finished() {
                if now() >= give_up {
                    return Err(FenceError::TimedOut(LIMIT)); // the thread ends with the device's answer, and changes no more
                }
                sleep(LOOK).await;
            }
            thread.join().unwrap_or_else(|_| Err(FenceError::Failed("the fencing thread panicked".into())))
        })
    }
}
