//! Registers and life cycle of a modelled controller.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Bus;
use super::faults::{Fault, FaultRule, Faults};
use super::queue::{CompletionQueue, SubmissionQueue};
use super::subsystem::Subsystem;
use crate::spec::{
    AdminQueueAttributes, AsyncEvent, Capabilities, Completion, Configuration, ControllerStatus, ErrorEntry, GONE_32,
    PAGE_BYTES, Register, Status, Version,
};

/// Event requests that the controller holds at most (AERL + 1).
pub(super) const MAX_EVENT_REQUESTS: usize = 4;
/// Events kept while no request is there to carry them.
const MAX_EVENTS: usize = 16;
/// Entries of the error log (ELPE + 1).
pub(super) const MAX_ERRORS: usize = 16;

#[derive(Clone)]
pub struct ControllerConfig {
    /// MQES + 1.
    pub max_queue_entries: u32,
    /// IO queue pairs that it grants, however many are asked for.
    pub io_queues: u16,
    /// log2 of the longest transfer in pages; 0: unlimited.
    pub mdts: u8,
    pub doorbell_buffers: bool,
    pub sgl: bool,
    pub dsm: bool,
    pub write_zeroes: bool,
    pub reservations: bool,
    /// Reads of CSTS until RDY follows CC.EN.
    pub ready_after_reads: u32,
    pub seed: u64,
    pub faults: Vec<FaultRule>,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        ControllerConfig {
            max_queue_entries: 2048,
            io_queues: 8,
            mdts: 7,
            doorbell_buffers: false,
            sgl: false,
            dsm: true,
            write_zeroes: true,
            reservations: true,
            ready_after_reads: 0,
            seed: 1,
            faults: Vec::new(),
        }
    }
}

#[derive(Default)]
struct Registers {
    cc: Configuration,
    aqa: AdminQueueAttributes,
    asq: u64,
    acq: u64,
    /// Reads of CSTS left until it is ready.
    ready_in: u32,
}

/// What admin commands leave behind.
#[derive(Default)]
pub(super) struct AdminState {
    /// Commands of Asynchronous Event Requests that wait.
    pub event_requests: VecDeque<u16>,
    pub events: VecDeque<AsyncEvent>,
    pub errors: VecDeque<ErrorEntry>,
    pub error_count: u64,
    pub changed_namespaces: bool,
    pub write_cache_enabled: bool,
    pub aborts: u64,
    /// Host Identifier; zeros: none was set since the last reset.
    pub host: [u8; 16],
}

pub struct Controller<B: Bus> {
    bus: B,
    config: ControllerConfig,
    subsystem: Arc<Subsystem>,
    id: u16,
    registers: Mutex<Registers>,
    /// CSTS; all ones when the function has left the bus.
    csts: AtomicU32,
    /// Device addresses of the shadow doorbells and the event indexes; 0: none.
    shadow_at: AtomicU64,
    events_at: AtomicU64,
    submission_queues: Vec<Mutex<Option<SubmissionQueue>>>,
    completion_queues: Vec<Mutex<Option<CompletionQueue>>>,
    admin: Mutex<AdminState>,
    faults: Mutex<Faults>,
    /// 1 while there are rules: the usual case is one load.
    faulty: AtomicU32,
}

impl<B: Bus> Controller<B> {
    pub fn new(bus: B, subsystem: Arc<Subsystem>, config: ControllerConfig) -> Arc<Controller<B>> {
        let places = usize::from(config.io_queues) + 1;
        let faults = Faults::new(config.seed, config.faults.clone());
        Arc::new(Controller {
            bus,
            id: subsystem.new_controller_id(),
            subsystem,
            registers: Mutex::default(),
            csts: AtomicU32::new(0),
            shadow_at: AtomicU64::new(0),
            events_at: AtomicU64::new(0),
            submission_queues: (0..places).map(|_| Mutex::new(None)).collect(),
            completion_queues: (0..places).map(|_| Mutex::new(None)).collect(),
            admin: Mutex::new(AdminState { write_cache_enabled: true, ..AdminState::default() }),
            faulty: AtomicU32::new(u32::from(!faults.is_empty())),
            faults: Mutex::new(faults),
            config,
        })
    }

    #[inline]
    pub fn bus(&self) -> &B {
        &self.bus
    }

    pub fn config(&self) -> &ControllerConfig {
        &self.config
    }

    #[inline]
    pub fn subsystem(&self) -> &Subsystem {
        &self.subsystem
    }

    pub(super) fn id(&self) -> u16 {
        self.id
    }

    pub(super) fn submission_queues(&self) -> &[Mutex<Option<SubmissionQueue>>] {
        &self.submission_queues
    }

    pub(super) fn completion_queues(&self) -> &[Mutex<Option<CompletionQueue>>] {
        &self.completion_queues
    }

    pub(super) fn admin_state(&self) -> MutexGuard<'_, AdminState> {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn max_transfer_bytes(&self) -> Option<usize> {
        (self.config.mdts > 0).then(|| PAGE_BYTES << self.config.mdts.min(20))
    }

    #[inline]
    pub(super) fn shadow(&self) -> Option<(u64, u64)> {
        let at = self.shadow_at.load(Ordering::Acquire);
        (at != 0).then(|| (at, self.events_at.load(Ordering::Acquire)))
    }

    pub(super) fn set_shadow(&self, shadow: u64, events: u64) {
        self.events_at.store(events, Ordering::Release);
        self.shadow_at.store(shadow, Ordering::Release);
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn capabilities(&self) -> u64 {
        Capabilities::new(self.config.max_queue_entries, 2000, 0).0
    }

    pub fn read_register(&self, at: u32) -> u32 {
        const CAP: u32 = Register::Cap as u32;
        const CAP_HIGH: u32 = CAP + 4;
        const ASQ: u32 = Register::Asq as u32;
        const ACQ: u32 = Register::Acq as u32;
        let csts = self.csts.load(Ordering::Acquire);
        if csts == GONE_32 {
            return GONE_32;
        }
        match at {
            CAP => self.capabilities() as u32,
            CAP_HIGH => (self.capabilities() >> 32) as u32,
            _ if at == Register::Vs as u32 => Version::V1_4.0,
            _ if at == Register::Cc as u32 => self.registers().cc.0,
            _ if at == Register::Csts as u32 => {
                let mut registers = self.registers();
                if registers.ready_in > 0 {
                    registers.ready_in -= 1;
                    if registers.ready_in == 0 {
                        self.csts.fetch_or(ControllerStatus::READY.0, Ordering::AcqRel);
                    }
                }
                self.csts.load(Ordering::Acquire)
            }
            _ if at == Register::Aqa as u32 => self.registers().aqa.0,
            ASQ => self.registers().asq as u32,
            ACQ => self.registers().acq as u32,
            _ if at == ASQ + 4 => (self.registers().asq >> 32) as u32,
            _ if at == ACQ + 4 => (self.registers().acq >> 32) as u32,
            _ => 0,
        }
    }

    pub fn write_register(&self, at: u32, value: u32) {
        if self.csts.load(Ordering::Acquire) == GONE_32 {
            return;
        }
        let mut registers = self.registers();
        let low = |old: u64| old & !0xffff_ffff | u64::from(value);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        const ASQ: u32 = Register::Asq as u32;
        const ACQ: u32 = Register::Acq as u32;
        match at {
            ASQ => registers.asq = low(registers.asq),
            ACQ => registers.acq = low(registers.acq),
            _ if at == ASQ + 4 => registers.asq = high(registers.asq),
            _ if at == ACQ + 4 => registers.acq = high(registers.acq),
            _ if at == Register::Aqa as u32 => registers.aqa = AdminQueueAttributes(value),
            _ if at == Register::Cc as u32 => {
                drop(registers);
                self.configure(Configuration(value));
            }
            _ => {}
        }
    }

    fn configure(&self, cc: Configuration) {
        let was = std::mem::replace(&mut self.registers().cc, cc);
        match (was.is_enabled(), cc.is_enabled()) {
            (false, true) => self.enable(cc),
            (true, false) => self.quiesce(),
            _ => {}
        }
        if cc.shutdown_asked() && !was.shutdown_asked() {
            let _ = self.subsystem.attached().try_for_each(|ns| ns.medium.flush());
            self.csts.fetch_or(ControllerStatus::SHUTDOWN_DONE.0, Ordering::AcqRel);
        }
    }

    fn enable(&self, cc: Configuration) {
        let mut registers = self.registers();
        let good = cc.page_shift() == 0
            && cc.entry_shifts() == (crate::spec::SUBMISSION_SHIFT, crate::spec::COMPLETION_SHIFT)
            && registers.asq.is_multiple_of(PAGE_BYTES as u64)
            && registers.acq.is_multiple_of(PAGE_BYTES as u64);
        if !good {
            drop(registers);
            return self.fatal();
        }
        let admin_sq = SubmissionQueue {
            at: registers.asq,
            entries: registers.aqa.submission_entries(),
            ..SubmissionQueue::default()
        };
        let admin_cq =
            CompletionQueue { at: registers.acq, entries: registers.aqa.completion_entries(), tail: 0, phase: true };
        registers.ready_in = self.config.ready_after_reads;
        let ready = if registers.ready_in == 0 { ControllerStatus::READY } else { ControllerStatus::default() };
        drop(registers);
        self.put_submission_queue(0, Some(admin_sq));
        self.put_completion_queue(0, Some(admin_cq));
        self.csts.store(ready.0, Ordering::Release);
    }

    /// Forgets every queue and command; host memory is not touched after this.
    fn quiesce(&self) {
        for qid in 0..self.submission_queues.len() as u16 {
            self.put_submission_queue(qid, None);
            self.put_completion_queue(qid, None);
        }
        self.set_shadow(0, 0);
        let mut admin = self.admin_state();
        admin.event_requests.clear();
        admin.host = Default::default();
        drop(admin);
        self.registers().ready_in = 0;
        let _ = self.csts.fetch_update(Ordering::AcqRel, Ordering::Acquire, |csts| (csts != GONE_32).then_some(0));
    }

    /// Puts a queue in place (None: takes it away); its doorbell starts at 0. True: there was none (or one).
    pub(super) fn put_submission_queue(&self, qid: u16, queue: Option<SubmissionQueue>) -> bool {
        let Some(place) = self.submission_queues.get(usize::from(qid)) else { return false };
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        self.bus.set_doorbell(2 * usize::from(qid), 0);
        let was = std::mem::replace(&mut *place, queue);
        was.is_some() != place.is_some()
    }

    pub(super) fn put_completion_queue(&self, qid: u16, queue: Option<CompletionQueue>) -> bool {
        let Some(place) = self.completion_queues.get(usize::from(qid)) else { return false };
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        self.bus.set_doorbell(2 * usize::from(qid) + 1, 0);
        let was = std::mem::replace(&mut *place, queue);
        was.is_some() != place.is_some()
    }

    /// Function level reset: as if CC.EN had been cleared.
    pub fn function_reset(&self) {
        let cc = self.registers().cc.disabled();
        self.registers().cc = cc;
        self.quiesce();
    }

    /// CSTS.CFS: nothing is done any more until a reset.
    pub fn fatal(&self) {
        if self.csts.load(Ordering::Acquire) != GONE_32 {
            self.csts.fetch_or(ControllerStatus::FATAL.0, Ordering::AcqRel);
        }
    }

    pub(super) fn is_fatal(&self) -> bool {
        ControllerStatus(self.csts.load(Ordering::Acquire)).is_fatal()
    }

    /// The function leaves the bus: every register reads as ones, and memory is not touched any more.
    pub fn vanish(&self) {
        self.csts.store(GONE_32, Ordering::Release);
        self.quiesce();
        self.csts.store(GONE_32, Ordering::Release);
    }

    #[inline]
    pub(super) fn has_faults(&self) -> bool {
        self.faulty.load(Ordering::Relaxed) != 0
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add_fault(&self, rule: FaultRule) {
        self.faults().add(rule);
        self.faulty.store(1, Ordering::Relaxed);
    }

    /// Commands that are held stay held for their turns.
    pub fn clear_faults(&self) {
        self.faults().clear();
    }

    pub(super) fn next_fault(&self, admin: bool, opcode: u8) -> Option<Fault> {
        self.faults().next(admin, opcode)
    }

    pub(super) fn random_below(&self, bound: u64) -> u64 {
        self.faults().prng.below(bound)
    }

    pub(super) fn random_fill(&self, out: &mut [u8]) {
        self.faults().prng.fill(out);
    }

    /// Aborts that the host has asked for.
    pub fn aborts(&self) -> u64 {
        self.admin_state().aborts
    }

    /// The host wrote a doorbell value that is no index of the queue (5.2.1: error event 1).
    pub(super) fn invalid_doorbell(&self) {
        self.raise(AsyncEvent::new(0, 1, crate::spec::LogPage::Error as u8));
    }

    /// Tells the host, now or when it asks for the next event.
    pub fn raise(&self, event: AsyncEvent) {
        let cid = {
            let mut admin = self.admin_state();
            if event.is_namespace_change() {
                admin.changed_namespaces = true;
            }
            match admin.event_requests.pop_front() {
                Some(cid) => cid,
                None => {
                    if admin.events.len() < MAX_EVENTS {
                        admin.events.push_back(event);
                    }
                    return;
                }
            }
        };
        self.complete(0, 0, Completion::new(cid, 0, 0, Status::SUCCESS, event.0));
    }
}
