//! Reservation commands of a namespace. They are IO commands, sent through a queue of their own.

use vellum_base::DmaBuf;
use vellum_base::dma::SharedPages;
use zerocopy::{FromBytes, IntoBytes};

use super::admin::page;
use super::{ControllerError, NvmeDevice, Transport};
use crate::reservation::{HostId, Registrant, ReservationReport, Reservations};
use crate::spec::{
    AcquireAction, PAGE_BYTES, RegisterAction, RegistrantStatus, ReleaseAction, ReservationKeys, ReservationStatus,
    ReservationType, Submission,
};
use crate::{DeviceError, IoOp};

pub(super) const SET_HOST: &str = "set features (host identifier)";

pub(super) fn host_page(host: HostId) -> Result<SharedPages, ControllerError> {
    let page = page()?;
    let [low, high]: [[u8; 8]; 2] = zerocopy::transmute!(host);
    page.store_words(0, [u64::from_ne_bytes(low), u64::from_ne_bytes(high)]);
    Ok(page)
}

impl ReservationReport {
    /// From the extended report of the namespace, with host identifiers of 16 bytes.
    pub fn parse(bytes: &[u8]) -> Result<ReservationReport, ControllerError> {
        let nonsense = || ControllerError::Nonsense { what: "reservation report" };
        let (head, rest) = ReservationStatus::read_from_prefix(bytes).map_err(|_| nonsense())?;
        let registrants = rest
            .chunks_exact(size_of::<RegistrantStatus>())
            .take(usize::from(head.registrants.get()))
            .filter_map(|chunk| RegistrantStatus::read_from_bytes(chunk).ok())
            .map(|one| Registrant {
                host: one.host,
                key: one.key.get(),
                holds: one.holds(),
                controller: one.controller.get(),
            })
            .collect();
        let kind = match head.kind {
            0 => None,
            id => Some(ReservationType::from_id(id).ok_or_else(nonsense)?),
        };
        Ok(ReservationReport { generation: head.generation.get(), kind, persists: head.persists & 1 != 0, registrants })
    }
}

impl<T: Transport> NvmeDevice<T> {
    fn error(&self, err: ControllerError) -> DeviceError {
        self.controller().device_error(err)
    }

    fn with_keys(&self, entry: Submission, current: u64, other: u64) -> Result<(), DeviceError> {
        let keys = ReservationKeys { current: current.into(), other: other.into() };
        let data = DmaBuf::copy_from(keys.as_bytes(), true).freeze();
        let op = IoOp::Write { at_bytes: 0, data, fua: true };
        self.queue(1)?.execute_and_wait(entry, op).0
    }

    fn check_type(&self, kind: ReservationType) -> Result<(), DeviceError> {
        if self.namespace().reservation_types & kind.capability() != 0 {
            return Ok(());
        }
        Err(self.error(ControllerError::Unsupported { what: "the namespace does not have this type of reservation" }))
    }
}

impl<T: Transport> Reservations for NvmeDevice<T> {
    fn report(&self) -> Result<ReservationReport, DeviceError> {
        let entry = Submission::reservation_report(self.namespace().nsid, PAGE_BYTES);
        let op = IoOp::Read { at_bytes: 0, buf: DmaBuf::zeroed(PAGE_BYTES) };
        let (result, buf) = self.queue(1)?.execute_and_wait(entry, op);
        result?;
        ReservationReport::parse(buf.as_deref().unwrap_or_default()).map_err(|err| self.error(err))
    }

    fn register(&self, host: HostId, key: u64) -> Result<(), DeviceError> {
        let set = host_page(host).and_then(|page| {
            self.controller().execute_with(SET_HOST, Submission::set_host_identifier(), Some(page)).map(|_| ())
        });
        set.map_err(|err| self.error(err))?;
        self.controller().admin().host = Some(host);
        let registered = self.report()?.registrants.iter().find(|one| one.host == host).map(|one| one.key);
        let action = match registered {
            Some(now) if now == key => return Ok(()),
            Some(_) => RegisterAction::Replace,
            None => RegisterAction::Register,
        };
        let entry = Submission::reservation_register(self.namespace().nsid, action, true);
        self.with_keys(entry, 0, key)
    }

    fn unregister(&self, key: u64) -> Result<(), DeviceError> {
        let entry = Submission::reservation_register(self.namespace().nsid, RegisterAction::Unregister, false);
        self.with_keys(entry, key, 0)
    }

    fn acquire(&self, key: u64, kind: ReservationType) -> Result<(), DeviceError> {
        self.check_type(kind)?;
        self.with_keys(Submission::reservation_acquire(self.namespace().nsid, AcquireAction::Acquire, kind), key, 0)
    }

    fn preempt(&self, key: u64, victim: u64, kind: ReservationType) -> Result<(), DeviceError> {
        self.check_type(kind)?;
        let entry = Submission::reservation_acquire(self.namespace().nsid, AcquireAction::PreemptAndAbort, kind);
        self.with_keys(entry, key, victim)
    }

    fn clear(&self, key: u64) -> Result<(), DeviceError> {
        // The type matters only to a release.
        let any = ReservationType::WriteExclusive;
        self.with_keys(Submission::reservation_release(self.namespace().nsid, ReleaseAction::Clear, any), key, 0)
    }
}
