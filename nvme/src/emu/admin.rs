//! Admin commands (5).

use std::sync::PoisonError;

use zerocopy::{FromZeros, IntoBytes};

use super::controller::{MAX_ERRORS, MAX_EVENT_REQUESTS};
use super::data::{give, take};
use super::queue::{CompletionQueue, Outcome, SubmissionQueue};
use super::subsystem::Namespace;
use super::{Bus, Controller};
use crate::spec::{
    ALL_NAMESPACES, AdminOpcode, AsyncEvent, Cns, Feature, IDENTIFY_BYTES, IdentifyController, IdentifyNamespace,
    LbaFormat, LogPage, NamespaceList, PAGE_BYTES, SmartLog, Status, Submission, Version,
};

/// Room temperature.
const KELVIN: u16 = 300;
/// LBA formats by index, as log2 of their bytes.
const FORMATS: [u8; 2] = [9, 12];

/// RESCAP: all types, nothing persistent.
const RESERVATION_TYPES: u8 = 0x7e;

type Answer = Result<u32, Status>;

impl<B: Bus> Controller<B> {
    /// `garble`: whatever it answers is random.
    pub(super) fn execute_admin(&self, command: &Submission, garble: bool) -> Outcome {
        let Some(opcode) = AdminOpcode::from_byte(command.opcode) else {
            return Outcome::Done(Status::INVALID_OPCODE.with_do_not_retry(), 0);
        };
        if opcode == AdminOpcode::AsyncEventRequest {
            return self.event_request(command);
        }
        let answer = match opcode {
            AdminOpcode::Identify => self.identify(command, garble),
            AdminOpcode::GetLogPage => self.log_page(command, garble),
            AdminOpcode::CreateCompletionQueue => self.create_completion_queue(command),
            AdminOpcode::CreateSubmissionQueue => self.create_submission_queue(command),
            AdminOpcode::DeleteSubmissionQueue => self.delete(command, |qid| self.put_submission_queue(qid, None)),
            AdminOpcode::DeleteCompletionQueue => self.delete_completion_queue(command),
            AdminOpcode::SetFeatures => self.set_features(command),
            AdminOpcode::GetFeatures => self.get_features(command),
            AdminOpcode::Abort => {
                self.admin_state().aborts += 1;
                Ok(1) // not aborted: allowed always, and the host must cope (5.1)
            }
            AdminOpcode::DoorbellBufferConfig => self.doorbell_buffers(command),
            AdminOpcode::FormatNvm => self.format(command),
            AdminOpcode::AsyncEventRequest => Err(Status::INVALID_OPCODE),
        };
        match answer {
            Ok(result) if garble => Outcome::Done(Status::SUCCESS, result ^ self.random_below(1 << 32) as u32),
            Ok(result) => Outcome::Done(Status::SUCCESS, result),
            Err(status) => {
                self.log_error(command, status);
                Outcome::Done(status.with_do_not_retry(), 0)
            }
        }
    }

    fn give_structure(&self, command: &Submission, bytes: &mut [u8], garble: bool) -> Answer {
        if garble {
            self.random_fill(bytes);
        }
        give(self.bus(), command, bytes).map(|()| 0)
    }

    fn identify(&self, command: &Submission, garble: bool) -> Answer {
        let nsid = command.nsid.get();
        match Cns::from_id(command.cdw10.get() & 0xff).ok_or(Status::INVALID_FIELD)? {
            Cns::Controller => self.give_structure(command, self.identity().as_mut_bytes(), garble),
            Cns::Namespace => {
                let mut identity = IdentifyNamespace::new_zeroed();
                // A namespace that is not active is all zeros (NVM 4.1.5.1).
                if let Some(ns) = self.subsystem().namespace(nsid) {
                    identity = self.identity_of(ns);
                } else if nsid == 0 || nsid > self.subsystem().highest_nsid() {
                    return Err(Status::INVALID_NAMESPACE);
                }
                self.give_structure(command, identity.as_mut_bytes(), garble)
            }
            Cns::ActiveNamespaces => {
                let mut list = NamespaceList::new_zeroed();
                let active = self.subsystem().attached().filter(|ns| ns.nsid > nsid);
                for (place, ns) in list.ids.iter_mut().zip(active) {
                    *place = ns.nsid.into();
                }
                self.give_structure(command, list.as_mut_bytes(), garble)
            }
            Cns::NamespaceDescriptors => {
                let ns = self.subsystem().namespace(nsid).ok_or(Status::INVALID_NAMESPACE)?;
                let mut bytes = [0; IDENTIFY_BYTES];
                bytes[0] = 2;
                bytes[1] = 16;
                bytes[4..20].copy_from_slice(&ns.nguid);
                self.give_structure(command, &mut bytes, garble)
            }
        }
    }

    fn identity(&self) -> IdentifyController {
        let config = self.config();
        let mut id = IdentifyController::new_zeroed();
        let pad = |field: &mut [u8], text: &str| {
            field.fill(b' ');
            field.iter_mut().zip(text.bytes()).for_each(|(place, byte)| *place = byte);
        };
        pad(&mut id.sn, &self.subsystem().serial);
        pad(&mut id.mn, "Vellum model controller");
        pad(&mut id.fr, "1");
        id.mdts = config.mdts;
        id.cmic = 2;
        id.cntlid = self.id().into();
        id.ver = Version::V1_4.0.into();
        id.oaes = IdentifyController::OAES_NAMESPACES.into();
        let buffers = if config.doorbell_buffers { IdentifyController::OACS_DOORBELL_BUFFERS } else { 0 };
        id.oacs = (IdentifyController::OACS_FORMAT | buffers).into();
        id.acl = 3;
        id.aerl = MAX_EVENT_REQUESTS as u8 - 1;
        id.elpe = MAX_ERRORS as u8 - 1;
        id.wctemp = 343.into();
        id.cctemp = 373.into();
        id.sqes = 0x66;
        id.cqes = 0x44;
        id.nn = self.subsystem().highest_nsid().into();
        let dsm = if config.dsm { IdentifyController::ONCS_DSM } else { 0 };
        let zeroes = if config.write_zeroes { IdentifyController::ONCS_WRITE_ZEROES } else { 0 };
        let reservations = if config.reservations { IdentifyController::ONCS_RESERVATIONS } else { 0 };
        id.oncs = (dsm | zeroes | reservations).into();
        id.ctratt = if config.reservations { IdentifyController::CTRATT_LONG_HOST_ID.into() } else { 0.into() };
        id.vwc = u8::from(self.subsystem().volatile_write_cache);
        id.sgls = u32::from(config.sgl).into();
        let nqn = format!("nqn.2014-08.org.nvmexpress:vellum:{}", self.subsystem().serial);
        id.subnqn.iter_mut().zip(nqn.bytes()).for_each(|(place, byte)| *place = byte);
        id
    }

    fn identity_of(&self, ns: &Namespace) -> IdentifyNamespace {
        let mut id = IdentifyNamespace::new_zeroed();
        let lbas = ns.size_lbas();
        (id.nsze, id.ncap, id.nuse) = (lbas.into(), lbas.into(), lbas.into());
        id.nlbaf = FORMATS.len() as u8 - 1;
        id.flbas = FORMATS.iter().position(|shift| u32::from(*shift) == ns.lba_shift()).unwrap_or(0) as u8;
        id.nmic = 1;
        id.rescap = if self.config().reservations { RESERVATION_TYPES } else { 0 };
        id.dlfeat = 1; // deallocated blocks read as zeros
        id.nguid = ns.nguid;
        for (format, shift) in id.formats.iter_mut().zip(FORMATS) {
            *format = LbaFormat { metadata_bytes: 0.into(), data_shift: shift, relative_performance: 0 };
        }
        id
    }

    fn log_page(&self, command: &Submission, garble: bool) -> Answer {
        let dwords = u64::from(command.cdw10.get() >> 16) | u64::from(command.cdw11.get() & 0xffff) << 16;
        let len = usize::try_from((dwords + 1) * 4).unwrap_or(usize::MAX);
        let page = LogPage::from_id(command.cdw10.get() & 0xff).ok_or(Status::INVALID_LOG_PAGE)?;
        if len > PAGE_BYTES {
            return Err(Status::INVALID_FIELD);
        }
        let mut bytes = [0; PAGE_BYTES];
        match page {
            LogPage::Smart => bytes[..512].copy_from_slice(self.smart().as_bytes()),
            LogPage::Error => {
                for (place, entry) in bytes.chunks_exact_mut(64).zip(&self.admin_state().errors) {
                    place.copy_from_slice(entry.as_bytes());
                }
            }
            LogPage::Firmware => bytes[0] = 1,
            LogPage::ChangedNamespaces => {
                let mut admin = self.admin_state();
                if std::mem::take(&mut admin.changed_namespaces) {
                    bytes[..4].copy_from_slice(&ALL_NAMESPACES.to_le_bytes());
                }
            }
        }
        self.give_structure(command, &mut bytes[..len], garble)
    }

    fn smart(&self) -> SmartLog {
        let mut log = SmartLog::new_zeroed();
        log.temperature_kelvin = KELVIN.into();
        log.available_spare = 100;
        log.spare_threshold = 10;
        let mut sum = [0u128; 5];
        for place in self.submission_queues() {
            if let Some(sq) = place.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
                let c = sq.counters;
                for (sum, more) in
                    sum.iter_mut().zip([c.reads, c.writes, c.bytes_read, c.bytes_written, c.media_errors])
                {
                    *sum += u128::from(more);
                }
            }
        }
        let [reads, writes, bytes_read, bytes_written, media_errors] = sum;
        log.host_reads = reads.to_le_bytes();
        log.host_writes = writes.to_le_bytes();
        log.data_units_read = bytes_read.div_ceil(512_000).to_le_bytes();
        log.data_units_written = bytes_written.div_ceil(512_000).to_le_bytes();
        log.media_errors = media_errors.to_le_bytes();
        log.error_log_entries = u128::from(self.admin_state().error_count).to_le_bytes();
        log
    }

    fn log_error(&self, command: &Submission, status: Status) {
        let mut admin = self.admin_state();
        admin.error_count += 1;
        let entry = crate::spec::ErrorEntry {
            error_count: admin.error_count.into(),
            cid: command.cid,
            status_phase: (status.0 << 1).into(),
            nsid: command.nsid,
            ..Default::default()
        };
        admin.errors.push_front(entry);
        admin.errors.truncate(MAX_ERRORS);
    }

    fn queue_shape(&self, command: &Submission) -> Result<(u16, u32, u64), Status> {
        let (qid, entries) = (command.cdw10.get() as u16, (command.cdw10.get() >> 16) + 1);
        if qid == 0 || usize::from(qid) >= self.submission_queues().len() {
            return Err(Status::INVALID_QUEUE_ID);
        }
        if entries < 2 || entries > self.config().max_queue_entries {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        let at = command.dptr.prp1.get();
        if !at.is_multiple_of(PAGE_BYTES as u64) {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        if command.cdw11.get() & 1 == 0 {
            return Err(Status::INVALID_FIELD); // not contiguous
        }
        Ok((qid, entries, at))
    }

    fn create_completion_queue(&self, command: &Submission) -> Answer {
        let (qid, entries, at) = self.queue_shape(command)?;
        if self.is_submission_or_completion_there(qid, true) {
            return Err(Status::INVALID_QUEUE_ID);
        }
        self.put_completion_queue(qid, Some(CompletionQueue { at, entries, tail: 0, phase: true }));
        Ok(0)
    }

    fn create_submission_queue(&self, command: &Submission) -> Answer {
        let (qid, entries, at) = self.queue_shape(command)?;
        let cq = (command.cdw11.get() >> 16) as u16;
        if cq == 0 || !self.is_submission_or_completion_there(cq, true) {
            return Err(Status::INVALID_COMPLETION_QUEUE);
        }
        if self.is_submission_or_completion_there(qid, false) {
            return Err(Status::INVALID_QUEUE_ID);
        }
        self.put_submission_queue(qid, Some(SubmissionQueue { at, entries, cq, ..SubmissionQueue::default() }));
        Ok(0)
    }

    fn is_submission_or_completion_there(&self, qid: u16, completion: bool) -> bool {
        let qid = usize::from(qid);
        if completion {
            self.completion_queues()
                .get(qid)
                .is_some_and(|q| q.lock().unwrap_or_else(PoisonError::into_inner).is_some())
        } else {
            self.submission_queues()
                .get(qid)
                .is_some_and(|q| q.lock().unwrap_or_else(PoisonError::into_inner).is_some())
        }
    }

    fn delete(&self, command: &Submission, remove: impl FnOnce(u16) -> bool) -> Answer {
        let qid = command.cdw10.get() as u16;
        if qid == 0 || !remove(qid) { Err(Status::INVALID_QUEUE_ID) } else { Ok(0) }
    }

    fn delete_completion_queue(&self, command: &Submission) -> Answer {
        let qid = command.cdw10.get() as u16;
        let in_use =
            self.submission_queues().iter().skip(1).any(|place| {
                place.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|sq| sq.cq == qid)
            });
        if in_use {
            return Err(Status::INVALID_QUEUE_DELETION);
        }
        self.delete(command, |qid| self.put_completion_queue(qid, None))
    }

    fn set_features(&self, command: &Submission) -> Answer {
        match Feature::from_id(command.cdw10.get() & 0xff).ok_or(Status::INVALID_FIELD)? {
            Feature::NumberOfQueues => {
                let asked = command.cdw11.get();
                if asked & 0xffff == 0xffff || asked >> 16 == 0xffff {
                    return Err(Status::INVALID_FIELD);
                }
                self.queue_counts()
            }
            Feature::VolatileWriteCache => {
                self.admin_state().write_cache_enabled = command.cdw11.get() & 1 != 0;
                Ok(0)
            }
            Feature::HostIdentifier => self.set_host(command),
            Feature::TemperatureThreshold | Feature::AsyncEventConfiguration => Ok(0),
        }
    }

    /// Once in the life of a controller (5.27.1.25).
    fn set_host(&self, command: &Submission) -> Answer {
        if !self.config().reservations {
            return Err(Status::INVALID_FIELD);
        }
        if command.cdw11.get() & 1 == 0 {
            return Err(Status::HOST_ID_INCONSISTENT);
        }
        let mut host = [0; 16];
        take(self.bus(), command, &mut host)?;
        let mut admin = self.admin_state();
        if admin.host != [0; 16] && admin.host != host {
            return Err(Status::COMMAND_SEQUENCE_ERROR);
        }
        admin.host = host;
        Ok(0)
    }

    fn queue_counts(&self) -> Answer {
        let zero_based = u32::from(self.config().io_queues.max(1) - 1);
        Ok(zero_based | zero_based << 16)
    }

    fn get_features(&self, command: &Submission) -> Answer {
        match Feature::from_id(command.cdw10.get() & 0xff).ok_or(Status::INVALID_FIELD)? {
            Feature::NumberOfQueues => self.queue_counts(),
            Feature::VolatileWriteCache => Ok(u32::from(self.admin_state().write_cache_enabled)),
            Feature::TemperatureThreshold => Ok(343),
            Feature::AsyncEventConfiguration => Ok(AsyncEvent::WANTED),
            Feature::HostIdentifier => {
                let host = self.admin_state().host;
                give(self.bus(), command, &host).map(|()| 0)
            }
        }
    }

    fn doorbell_buffers(&self, command: &Submission) -> Answer {
        let (shadow, events) = (command.dptr.prp1.get(), command.dptr.prp2.get());
        let aligned = shadow.is_multiple_of(PAGE_BYTES as u64) && events.is_multiple_of(PAGE_BYTES as u64);
        if !self.config().doorbell_buffers || !aligned || shadow == 0 || events == 0 {
            return Err(Status::INVALID_FIELD);
        }
        self.set_shadow(shadow, events);
        Ok(0)
    }

    fn format(&self, command: &Submission) -> Answer {
        let shift = *FORMATS.get((command.cdw10.get() & 0xf) as usize).ok_or(Status::INVALID_FORMAT)?;
        let nsid = command.nsid.get();
        let chosen = |ns: &&Namespace| nsid == ALL_NAMESPACES || ns.nsid == nsid;
        let mut any = false;
        for ns in self.subsystem().attached().filter(chosen) {
            self.check_reservation(ns, true)?;
            ns.medium.zero(0, ns.size_bytes).map_err(|_| Status::INTERNAL_ERROR)?;
            ns.set_lba_shift(u32::from(shift));
            any = true;
        }
        if any { Ok(0) } else { Err(Status::INVALID_NAMESPACE) }
    }

    fn event_request(&self, command: &Submission) -> Outcome {
        let mut admin = self.admin_state();
        if let Some(event) = admin.events.pop_front() {
            return Outcome::Done(Status::SUCCESS, event.0);
        }
        if admin.event_requests.len() == MAX_EVENT_REQUESTS {
            return Outcome::Done(Status::EVENT_LIMIT.with_do_not_retry(), 0);
        }
        admin.event_requests.push_back(command.cid.get());
        Outcome::Silent
    }
}
