//! What all queues of a controller share: its state, its admin queue, recovery, namespaces.
//!
//! Life is one word that queues read at each poll: a generation, and LIVE, RESETTING or DEAD. Whoever finds a reason to
//! reset swaps LIVE for RESETTING; from then on every queue that is polled pushes the bring-up forward, and takes itself
//! back into service when the word says LIVE with the next generation. After `MAX_RESETS` without progress it is DEAD.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Instant;

use vellum_base::dma::SharedPages;
use zerocopy::FromBytes;

use super::admin::{AdminQueue, AdminTicket, page};
use super::bring_up::{BringUp, Learned};
use super::events::Events;
use super::namespace::NamespaceInfo;
use super::rings::DoorbellBuffers;
use super::{ControllerError, Transport};
use crate::DeviceError;
use crate::health::Health;
use crate::reservation::HostId;
use crate::spec::{
    ALL_NAMESPACES, Capabilities, Cns, Completion, Configuration, ControllerStatus, ErrorEntry, IDENTIFY_BYTES,
    IdentifyController, LogPage, NamespaceList, PAGE_BYTES, Register, SmartLog, Status, Submission, Version, text,
};

/// Resets in a row, without one command succeeding between them, until the controller is given up.
const MAX_RESETS: u32 = 4;
/// IO queue pairs asked for.
const WANT_QUEUES: u16 = 128;

pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

#[derive(Clone)]
pub struct Options {
    /// How long a command may be at the device before it is aborted; after half as long again the controller is reset.
    /// Counted in polled time: a reactor that sleeps, or is stopped, does not age its commands.
    pub io_timeout_ms: u64,
    pub admin_timeout_ms: u64,
    /// Polls between two looks at the clock.
    pub polls_per_tick: u32,
    /// Milliseconds since any moment.
    pub clock: Clock,
    /// Most IO queue pairs that are asked for.
    pub max_queues: u16,
    /// Use SGLs where the controller has them.
    pub sgl: bool,
}

impl Default for Options {
    fn default() -> Self {
        let start = Instant::now();
        Options {
            io_timeout_ms: 30_000,
            admin_timeout_ms: 30_000,
            polls_per_tick: 256,
            clock: Arc::new(move || start.elapsed().as_millis() as u64),
            max_queues: WANT_QUEUES,
            sgl: true,
        }
    }
}

/// What a controller says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControllerInfo {
    pub serial: String,
    pub model: String,
    pub firmware: String,
    pub subsystem: String,
    pub version: String,
    pub vendor: u16,
    pub controller_id: u16,
    /// None: unlimited.
    pub max_transfer_bytes: Option<u64>,
    pub volatile_write_cache: bool,
    pub dsm: bool,
    pub write_zeroes: bool,
    pub reservations: bool,
    pub sgl: bool,
    pub doorbell_buffers: bool,
    pub max_namespaces: u32,
    pub event_requests: usize,
    pub error_entries: usize,
}

impl ControllerInfo {
    /// From Identify's answer.
    pub fn parse(bytes: &[u8; IDENTIFY_BYTES]) -> Result<ControllerInfo, ControllerError> {
        let nonsense = |what| ControllerError::Nonsense { what };
        let id = IdentifyController::read_from_bytes(bytes).map_err(|_| nonsense("identify controller"))?;
        if id.sqes & 0xf > crate::spec::SUBMISSION_SHIFT as u8 || id.cqes & 0xf > crate::spec::COMPLETION_SHIFT as u8 {
            return Err(ControllerError::Unsupported { what: "its queue entries are larger than 64 and 16 bytes" });
        }
        let max_transfer_bytes = match id.mdts {
            0 => None,
            shift => Some((PAGE_BYTES as u64) << shift.min(32)),
        };
        Ok(ControllerInfo {
            serial: text(&id.sn),
            model: text(&id.mn),
            firmware: text(&id.fr),
            subsystem: text(&id.subnqn),
            version: Version(id.ver.get()).to_string(),
            vendor: id.vid.get(),
            controller_id: id.cntlid.get(),
            max_transfer_bytes,
            volatile_write_cache: id.has_volatile_write_cache(),
            dsm: id.has_dsm(),
            write_zeroes: id.has_write_zeroes(),
            reservations: id.has_reservations(),
            sgl: id.has_sgl(),
            doorbell_buffers: id.has_doorbell_buffers(),
            max_namespaces: id.nn.get(),
            event_requests: usize::from(id.aerl) + 1,
            error_entries: usize::from(id.elpe) + 1,
        })
    }
}

/// What has happened; for people and benchmarks.
#[derive(Default)]
pub struct Counters {
    /// Operations whose buffer the device could not address, so that they were copied.
    pub bounced: AtomicU64,
    pub retried: AtomicU64,
    pub aborts: AtomicU64,
    pub resets: AtomicU64,
    /// Completions for nothing that was at the device.
    pub nonsense: AtomicU64,
    /// Doorbell registers written by queues that are closed.
    pub doorbells: AtomicU64,
    /// Memory kept because the controller could not be stopped.
    pub kept_buffers: AtomicU64,
}

pub(super) const LIVE: u32 = 0;
pub(super) const RESETTING: u32 = 1;
pub(super) const DEAD: u32 = 2;
const STATE: u32 = 3;

pub(super) fn state_of(life: u32) -> u32 {
    life & STATE
}

pub(super) struct Admin {
    pub queue: AdminQueue,
    learned: Option<Learned>,
    bring_up: Option<BringUp>,
    events: Events,
    /// Queue ids handed out: bit per id.
    taken: Vec<bool>,
    resets_in_a_row: u32,
    /// What it was told that we are.
    pub host: Option<HostId>,
}

/// On its own cache lines: every queue reads it at every poll, and nothing beside it may be written.
#[repr(align(128))]
struct Life(AtomicU32);

pub struct Controller<T: Transport> {
    life: Life,
    transport: T,
    name: String,
    pub(super) options: Options,
    capabilities: Capabilities,
    info: ControllerInfo,
    granted: u16,
    admin: Mutex<Admin>,
    pub(super) health: Health,
    /// DEAD, and it is certain that the controller touches no memory any more.
    quiet: AtomicBool,
    /// Writes were acknowledged and no flush has begun since: what a controller that crashed may have lost.
    pub(super) unflushed: AtomicBool,
    /// Flushes on their way.
    pub(super) flushing: AtomicU32,
    pub counters: Counters,
    /// Memory that a controller which could not be stopped may still write. After `transport`: freed when that is closed.
    kept: Mutex<Vec<Box<dyn Send>>>,
}

impl<T: Transport> Controller<T> {
    /// Resets and initialises the controller.
    pub fn open(transport: T, options: Options) -> Result<Arc<Controller<T>>, ControllerError> {
        let capabilities = Capabilities(transport.read64(Register::Cap as u32));
        if capabilities.0 == u64::MAX {
            return Err(ControllerError::Gone);
        }
        if !capabilities.has_nvm_commands() {
            return Err(ControllerError::Unsupported { what: "it does not know the NVM command set" });
        }
        if capabilities.min_page_bytes() > PAGE_BYTES as u64 {
            return Err(ControllerError::Unsupported { what: "its smallest memory page is larger than 4 KiB" });
        }
        let mut queue = AdminQueue::new(capabilities.doorbell_stride_shift())?;
        let mut bring_up = BringUp::new(options.max_queues, options.admin_timeout_ms, None);
        let learned = loop {
            match bring_up.poll(&transport, &mut queue, (options.clock)()) {
                Poll::Ready(result) => break result?,
                Poll::Pending => std::thread::yield_now(),
            }
        };
        let mut events = Events::new();
        events.restart(learned.info.event_requests);
        let (info, granted) = (learned.info.clone(), learned.queues);
        tracing::info!(
            device = transport.name(),
            model = info.model,
            serial = info.serial,
            granted,
            "controller is up"
        );
        let taken = vec![false; usize::from(granted)];
        let admin =
            Admin { queue, learned: Some(learned), bring_up: None, events, taken, resets_in_a_row: 0, host: None };
        Ok(Arc::new(Controller {
            life: Life(AtomicU32::new(LIVE)),
            name: transport.name(),
            transport,
            options,
            capabilities,
            info,
            granted,
            admin: Mutex::new(admin),
            health: Health::default(),
            quiet: AtomicBool::new(false),
            unflushed: AtomicBool::new(false),
            flushing: AtomicU32::new(0),
            counters: Counters::default(),
            kept: Mutex::default(),
        }))
    }

    pub fn transport(&self) -> &T {
        &self.transport
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn info(&self) -> &ControllerInfo {
        &self.info
    }

    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// IO queue pairs that it grants.
    pub fn granted_queues(&self) -> u16 {
        self.granted
    }

    /// Longest single operation, by MDTS and by our lists.
    pub fn max_transfer_bytes(&self) -> usize {
        let limit = self.info.max_transfer_bytes.unwrap_or(u64::MAX).min(super::pages::MAX_TRANSFER_BYTES as u64);
        limit as usize
    }

    #[inline]
    pub(super) fn life(&self) -> u32 {
        self.life.0.load(Ordering::Acquire)
    }

    pub(super) fn admin(&self) -> MutexGuard<'_, Admin> {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        (self.options.clock)()
    }

    /// What has been reported by events since the controller was opened, oldest first; bounded.
    pub fn history(&self) -> Vec<String> {
        self.admin().events.history()
    }

    /// Sends an admin command and waits for its answer. Not for a reactor's tasks.
    pub fn execute(
        &self,
        what: &'static str,
        command: Submission,
        with_page: bool,
    ) -> Result<(Completion, Option<SharedPages>), ControllerError> {
        let data = if with_page { Some(page()?) } else { None };
        self.execute_with(what, command, data)
    }

    /// The same with data of the caller's.
    pub(super) fn execute_with(
        &self,
        what: &'static str,
        command: Submission,
        data: Option<SharedPages>,
    ) -> Result<(Completion, Option<SharedPages>), ControllerError> {
        let ticket = {
            let mut admin = self.admin();
            admin.queue.submit(command, data, &self.transport)?
        };
        let deadline_ms = self.now_ms() + self.options.admin_timeout_ms;
        loop {
            let mut admin = self.admin();
            self.count_nonsense(admin.queue.poll(&self.transport));
            if let Some((done, page)) = admin.queue.take(ticket)? {
                let status = done.status();
                return if status.is_success() {
                    Ok((done, page))
                } else {
                    Err(ControllerError::Command { what, status })
                };
            }
            if ControllerStatus(self.transport.register(Register::Csts)).is_gone() {
                return Err(ControllerError::Gone);
            }
            if self.now_ms() > deadline_ms {
                admin.queue.abandon(ticket);
                return Err(ControllerError::Timeout { what, waited_ms: self.options.admin_timeout_ms });
            }
            drop(admin);
            std::thread::yield_now();
        }
    }

    pub(super) fn count_nonsense(&self, count: u64) {
        if count > 0 {
            self.counters.nonsense.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn identify(&self, what: &'static str, cns: Cns, nsid: u32) -> Result<[u8; IDENTIFY_BYTES], ControllerError> {
        let (_, page) = self.execute(what, Submission::identify(cns, nsid), true)?;
        let mut bytes = [0; IDENTIFY_BYTES];
        page.ok_or(ControllerError::NoMemory)?.copy_to(&mut bytes);
        Ok(bytes)
    }

    /// Ids of the active namespaces, as far as one list goes.
    pub fn namespace_ids(&self) -> Result<Vec<u32>, ControllerError> {
        let bytes = self.identify("identify (active namespaces)", Cns::ActiveNamespaces, 0)?;
        let nonsense = ControllerError::Nonsense { what: "namespace list" };
        let list = NamespaceList::read_from_bytes(&bytes).map_err(|_| nonsense.clone())?;
        let ids: Vec<u32> = list.ids.iter().map(|id| id.get()).take_while(|id| *id != 0).collect();
        if ids.windows(2).any(|pair| pair[0] >= pair[1]) { Err(nonsense) } else { Ok(ids) }
    }

    pub fn namespace(&self, nsid: u32) -> Result<NamespaceInfo, ControllerError> {
        if nsid == 0 || nsid == ALL_NAMESPACES {
            return Err(ControllerError::Namespace { nsid, what: "is no single namespace" });
        }
        let identity = self.identify("identify namespace", Cns::Namespace, nsid).map_err(|err| match err {
            ControllerError::Command { status, .. } if status.code() == Status::INVALID_NAMESPACE.code() => {
                ControllerError::Namespace { nsid, what: "is not there (`vellum nvme identify` lists those that are)" }
            }
            other => other,
        })?;
        let descriptors = self.identify("identify (descriptors)", Cns::NamespaceDescriptors, nsid).ok();
        NamespaceInfo::parse(nsid, &identity, descriptors.as_ref().map(|bytes| &bytes[..]))
    }

    /// From now on a change of it is noticed.
    pub(super) fn watch(&self, namespace: &NamespaceInfo) {
        self.admin().events.watch(namespace);
    }

    fn log(&self, page: LogPage, len: usize) -> Result<[u8; PAGE_BYTES], ControllerError> {
        let (_, data) = self.execute("get log page", Submission::get_log_page(page, ALL_NAMESPACES, len), true)?;
        let mut bytes = [0; PAGE_BYTES];
        data.ok_or(ControllerError::NoMemory)?.copy_to(&mut bytes);
        Ok(bytes)
    }

    pub fn smart(&self) -> Result<SmartLog, ControllerError> {
        let bytes = self.log(LogPage::Smart, size_of::<SmartLog>())?;
        SmartLog::read_from_prefix(&bytes)
            .map(|(log, _)| log)
            .map_err(|_| ControllerError::Nonsense { what: "health log" })
    }

    /// Newest first.
    pub fn error_log(&self) -> Result<Vec<ErrorEntry>, ControllerError> {
        let entries = self.info.error_entries.min(PAGE_BYTES / size_of::<ErrorEntry>());
        let bytes = self.log(LogPage::Error, entries * size_of::<ErrorEntry>())?;
        let all = bytes.chunks_exact(size_of::<ErrorEntry>()).take(entries);
        Ok(all
            .filter_map(|chunk| ErrorEntry::read_from_bytes(chunk).ok())
            .filter(|e| e.error_count.get() != 0)
            .collect())
    }

    /// Destroys all data of the namespace. No queue may be open.
    pub fn format(&self, nsid: u32, format: u8) -> Result<(), ControllerError> {
        self.execute("format", Submission::format_nvm(nsid, format), false).map(|_| ())
    }

    pub(super) fn take_queue_id(&self) -> Result<u16, ControllerError> {
        let mut admin = self.admin();
        let free = admin.taken.iter().position(|taken| !taken);
        let index = free.ok_or(ControllerError::NoQueue { granted: self.granted })?;
        admin.taken[index] = true;
        Ok(index as u16 + 1)
    }

    pub(super) fn give_queue_id(&self, qid: u16) {
        if let Some(taken) = self.admin().taken.get_mut(usize::from(qid) - 1) {
            *taken = false;
        }
    }

    pub(super) fn buffers(&self) -> Option<Arc<DoorbellBuffers>> {
        self.admin().learned.as_ref()?.buffers.clone()
    }

    /// What a queue does now and then: admin completions, events. Does nothing while another queue is at it.
    pub(super) fn tend(&self, progress: bool) {
        let Ok(mut admin) = self.admin.try_lock() else { return };
        let admin = &mut *admin;
        if progress {
            admin.resets_in_a_row = 0;
        }
        if state_of(self.life()) != LIVE {
            return;
        }
        if self.transport.is_wanted_back() {
            drop(self.die(admin, format!("{}: the kernel takes it back: it is being removed or unbound", self.name)));
            return;
        }
        self.count_nonsense(admin.queue.poll(&self.transport));
        if let Err(err) = admin.events.poll(&self.transport, &mut admin.queue) {
            match err {
                ControllerError::Namespace { .. } => drop(self.die(admin, format!("{}: {err}", self.name))),
                other => tracing::warn!(%other, "an event could not be looked into"),
            }
        }
    }

    /// The controller's state as its register says. An MMIO read: only when something takes long.
    pub(super) fn look(&self) -> Result<(), ControllerError> {
        let status = ControllerStatus(self.transport.register(Register::Csts));
        match status {
            _ if status.is_gone() => Err(ControllerError::Gone),
            _ if status.is_fatal() => Err(ControllerError::Fatal),
            _ if !status.is_ready() => Err(ControllerError::NotReady { what: "ready", waited_ms: 0 }),
            _ => Ok(()),
        }
    }

    /// Begins a reset, unless the life that the caller saw is over already.
    pub(super) fn begin_reset(&self, seen_life: u32, reason: &ControllerError) {
        let resetting = seen_life & !STATE | RESETTING;
        let won = self.life.0.compare_exchange(seen_life, resetting, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if !won {
            return;
        }
        // A crashed controller may have lost what it had acknowledged and not flushed (one that was only slow has not).
        let dirty = self.unflushed.load(Ordering::Acquire) || self.flushing.load(Ordering::Acquire) > 0;
        if *reason == ControllerError::Fatal && self.info.volatile_write_cache && dirty {
            self.give_up(format!("{}: {reason}, with writes in its cache that were not flushed", self.name));
            return;
        }
        if *reason == ControllerError::Gone {
            self.give_up(format!("{}: {reason}", self.name));
            return;
        }
        self.counters.resets.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(device = self.name, %reason, "resetting the controller");
    }

    /// Pushes a reset forward. Called by every queue that is polled meanwhile.
    pub(super) fn recover(&self) {
        let Ok(mut admin) = self.admin.try_lock() else { return };
        let admin = &mut *admin;
        let life = self.life();
        if state_of(life) != RESETTING {
            return;
        }
        let options = &self.options;
        let host = admin.host;
        let fresh = || BringUp::new(options.max_queues, options.admin_timeout_ms, host);
        let bring_up = admin.bring_up.get_or_insert_with(fresh);
        let Poll::Ready(result) = bring_up.poll(&self.transport, &mut admin.queue, self.now_ms()) else { return };
        admin.bring_up = None;
        admin.resets_in_a_row += 1;
        match result.and_then(|learned| self.still_the_same(learned)) {
            Ok(_) if admin.resets_in_a_row > MAX_RESETS => {
                self.die(admin, format!("{}: nothing succeeds between its resets", self.name));
            }
            Ok(learned) => {
                admin.events.restart(learned.info.event_requests);
                admin.learned = Some(learned);
                tracing::warn!(device = self.name, "the controller is up again");
                self.life.0.store((life & !STATE).wrapping_add(STATE + 1) | LIVE, Ordering::Release);
            }
            Err(err) if err == ControllerError::Gone || admin.resets_in_a_row > MAX_RESETS => {
                self.die(admin, format!("{}: {err}", self.name));
            }
            Err(err) => tracing::warn!(device = self.name, %err, "the reset failed and is tried again"),
        }
    }

    /// After a reset the same controller must be there, with at least the queues that are in use.
    fn still_the_same(&self, learned: Learned) -> Result<Learned, ControllerError> {
        if learned.info.serial != self.info.serial || learned.info.model != self.info.model {
            return Err(ControllerError::Nonsense { what: "another controller answers after the reset" });
        }
        if learned.queues < self.granted {
            return Err(ControllerError::Nonsense { what: "fewer queues are granted after the reset" });
        }
        Ok(learned)
    }

    /// Gives the controller up, for all queues and for good, and stops it by force.
    pub(super) fn give_up(&self, reason: String) -> DeviceError {
        let mut admin = self.admin();
        self.die(&mut admin, reason)
    }

    /// With the lock, so that no bring-up goes on at the same time.
    fn die(&self, admin: &mut Admin, reason: String) -> DeviceError {
        let failed = self.health.fail(reason);
        if state_of(self.life()) != DEAD {
            admin.bring_up = None;
            let quiet = self.disable() || self.transport.reset().is_ok();
            self.quiet.store(quiet, Ordering::Release);
            if !quiet {
                tracing::error!(device = self.name, "the controller cannot be stopped: memory it may write is kept");
            }
            self.life.0.store(DEAD, Ordering::Release);
        }
        failed
    }

    /// True when the controller has shown that it is disabled. Bounded by CAP.TO.
    fn disable(&self) -> bool {
        let cc = Configuration(self.transport.register(Register::Cc));
        self.transport.set_register(Register::Cc, cc.disabled().0);
        let deadline_ms = self.now_ms() + self.capabilities.ready_timeout_ms();
        loop {
            let status = ControllerStatus(self.transport.register(Register::Csts));
            if status.is_gone() || !status.is_ready() {
                return true;
            }
            if self.now_ms() > deadline_ms {
                return false;
            }
            std::thread::yield_now();
        }
    }

    /// Whether memory lent to a dead controller may be given back.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Acquire)
    }

    /// Keeps what a controller that could not be stopped may write.
    pub(super) fn keep(&self, memory: impl Send + 'static) {
        self.counters.kept_buffers.fetch_add(1, Ordering::Relaxed);
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(memory));
    }

    pub(super) fn device_error(&self, err: ControllerError) -> DeviceError {
        err.on(&self.name)
    }

    pub(super) fn submit_admin(&self, command: Submission) -> Result<AdminTicket, ControllerError> {
        self.admin().queue.submit(command, None, &self.transport)
    }

    /// An admin command's answer, if it is there.
    pub(super) fn poll_admin(&self, ticket: AdminTicket) -> Result<Option<Completion>, ControllerError> {
        let mut admin = self.admin();
        self.count_nonsense(admin.queue.poll(&self.transport));
        Ok(admin.queue.take(ticket)?.map(|(done, _)| done))
    }
}

impl<T: Transport> Drop for Controller<T> {
    /// Normal shutdown (3.6.1), so that the controller writes its cache back and knows of no unsafe shutdown.
    fn drop(&mut self) {
        if state_of(self.life()) == DEAD {
            return;
        }
        let cc = Configuration(self.transport.register(Register::Cc));
        self.transport.set_register(Register::Cc, cc.with_shutdown().0);
        let deadline_ms = self.now_ms() + self.capabilities.ready_timeout_ms();
        loop {
            let status = ControllerStatus(self.transport.register(Register::Csts));
            if status.is_gone() || status.is_shut_down() || self.now_ms() > deadline_ms {
                break;
            }
            std::thread::yield_now();
        }
        if !self.disable() && self.transport.reset().is_err() {
            tracing::error!(device = self.name, "the controller did not stop");
        }
    }
}
