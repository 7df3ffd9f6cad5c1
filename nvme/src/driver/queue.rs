//! The queue pair of one reactor, behind the [`Queue`] trait.
//!
//! A command id is an index into `slots` and a generation, so that an answer that comes twice, or for an earlier command
//! of the slot, is noticed. Such an answer, as any nonsense, costs the controller a reset.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use vellum_base::DmaBuf;
use vellum_base::dma::{Arena, arena};

use super::admin::AdminTicket;
use super::controller::{Controller, DEAD, LIVE, RESETTING, state_of};
use super::device::Shared;
use super::pages::CommandPages;
use super::rings::Rings;
use super::{ControllerError, Transport};
use crate::spec::{Completion, Status, Submission};
use crate::tracker::{Trackers, wake_all};
use crate::{DeviceError, Geometry, IoDone, IoOp, Queue, Ticket};

/// Most commands at the device, per queue. With [`INDEX_BITS`], command id 0xffff is never used (it means "none" in the
/// error log).
const MAX_DEPTH: u32 = 1023;
const INDEX_BITS: u32 = 10;
const INDEX_MASK: u16 = (1 << INDEX_BITS) - 1;
const GENERATION_MASK: u16 = u16::MAX >> INDEX_BITS;
const _: () = assert!(MAX_DEPTH <= INDEX_MASK as u32);
/// Times that a command is given to the device before its error is final.
const MAX_ATTEMPTS: u8 = 4;
/// The unit of time in which commands age.
const TICK_MS: u64 = 10;
/// A command older than this makes the queue look at CSTS, each time it has aged as much again.
const LOOK_TICKS: u32 = 10;
/// How long a queue that is dropped waits for its commands, in polls with a yield each.
const MAX_DROP_POLLS: u32 = 200_000;
/// Most LBAs of one Dataset Management range.
const MAX_RANGE_LBAS: u64 = u32::MAX as u64;
/// Most LBAs of one Write Zeroes (NLB has 16 bits).
pub const MAX_ZERO_LBAS: u64 = 1 << 16;

/// An operation on its way.
struct Command {
    op: IoOp,
    /// The memory that the device uses instead of the operation's own.
    bounce: Option<DmaBuf>,
    attempts: u8,
    /// A discard that must leave zeros.
    zeroes: bool,
}

/// A command id.
#[derive(Clone, Copy, Default)]
struct Slot {
    tracker: u32,
    /// Tick of its submission.
    tick: u32,
    generation: u16,
    running: bool,
    aborting: bool,
}

/// How a queue comes back after a reset.
enum Attach {
    No,
    CompletionQueue(AdminTicket, u32),
    SubmissionQueue(AdminTicket, u32),
}

struct Inner {
    /// The controller's life in which this queue exists at the controller.
    life: u32,
    polls_to_tick: u32,
    rings: Rings,
    free: Vec<u16>,
    slots: Vec<Slot>,
    trackers: Trackers<Command>,
    waiting: VecDeque<u32>,
    pages: CommandPages,
    arena: &'static Arena,
    // Cold from here on.
    tick: u32,
    last_tick_ms: u64,
    looked_at_tick: u32,
    /// A command succeeded since the last tick.
    progress: bool,
    /// What the controller answered and could not have.
    nonsense: Option<&'static str>,
    doorbells: u64,
    attach: Attach,
    attach_deadline_ms: u64,
}

pub struct NvmeQueue<T: Transport> {
    inner: RefCell<Inner>,
    shared: Arc<Shared<T>>,
    qid: u16,
    /// Kept for its capacity between polls.
    wakers: RefCell<Vec<Waker>>,
}

impl<T: Transport> NvmeQueue<T> {
    pub(super) fn open(shared: Arc<Shared<T>>, depth: u32) -> Result<NvmeQueue<T>, ControllerError> {
        let controller = &shared.controller;
        let most = controller.capabilities().max_queue_entries() - 1;
        let depth = depth.clamp(1, MAX_DEPTH).min(most);
        let qid = controller.take_queue_id()?;
        match Self::create(&shared, qid, depth) {
            Ok(inner) => Ok(NvmeQueue { inner: RefCell::new(inner), shared, qid, wakers: RefCell::default() }),
            Err(err) => {
                controller.give_queue_id(qid);
                Err(err)
            }
        }
    }

    fn create(shared: &Shared<T>, qid: u16, depth: u32) -> Result<Inner, ControllerError> {
        let controller = &shared.controller;
        let transport = controller.transport();
        let arena = arena::activate().map_err(|_| ControllerError::NoMemory)?;
        let mut rings = Rings::new(qid, depth + 1, controller.capabilities().doorbell_stride_shift())?;
        let pages = CommandPages::new(depth as usize, transport)?;
        let life = controller.life();
        rings.restart(controller.buffers());
        let (submissions, completions) = rings.addresses(transport)?;
        let create = Submission::create_completion_queue(qid, rings.entries, completions);
        controller.execute("create IO completion queue", create, false)?;
        let create = Submission::create_submission_queue(qid, rings.entries, submissions);
        if let Err(err) = controller.execute("create IO submission queue", create, false) {
            if controller
                .execute("delete IO completion queue", Submission::delete_completion_queue(qid), false)
                .is_err()
            {
                controller.keep(rings.memory());
            }
            return Err(err);
        }
        Ok(Inner {
            life,
            polls_to_tick: controller.options.polls_per_tick,
            rings,
            free: (0..depth as u16).rev().collect(),
            slots: vec![Slot::default(); depth as usize],
            trackers: Trackers::new(depth),
            waiting: VecDeque::with_capacity(depth as usize),
            pages,
            arena,
            tick: 0,
            last_tick_ms: 0,
            looked_at_tick: 0,
            progress: false,
            nonsense: None,
            doorbells: 0,
            attach: Attach::No,
            attach_deadline_ms: 0,
        })
    }

    /// Write Zeroes of at most [`MAX_ZERO_LBAS`]; answered as a discard is.
    pub fn write_zeroes(&self, at_bytes: u64, len_bytes: u64) -> Ticket {
        self.take(IoOp::Discard { at_bytes, len_bytes }, true)
    }

    /// The same, to its end. Not for a reactor's tasks.
    pub fn write_zeroes_and_wait(&self, at_bytes: u64, len_bytes: u64) -> Result<(), DeviceError> {
        let ticket = self.write_zeroes(at_bytes, len_bytes);
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            self.process_completions();
            if let Poll::Ready((result, _)) = self.poll_done(ticket, &mut cx) {
                return result;
            }
            std::thread::yield_now();
        }
    }

    /// Doorbell registers written so far.
    pub fn doorbells(&self) -> u64 {
        self.inner.borrow().doorbells
    }

    /// Cache lines that one read of up to two pages touches in the driver, by the sizes of what it touches: entry and
    /// completion, the command's slot and id, and the tracker. Not counted: lines that every command shares.
    pub fn cache_lines_per_read() -> f64 {
        let bytes = size_of::<Submission>()
            + size_of::<Completion>()
            + size_of::<Slot>()
            + 2 * size_of::<u16>()
            + Trackers::<Command>::BYTES_PER_OPERATION;
        bytes as f64 / 64.0
    }

    pub fn controller(&self) -> &Arc<Controller<T>> {
        &self.shared.controller
    }

    #[inline]
    fn take(&self, op: IoOp, zeroes: bool) -> Ticket {
        let shared = &*self.shared;
        let inner = &mut *self.inner.borrow_mut();
        let checked = shared
            .controller
            .health
            .check()
            .and_then(|()| op.check(&shared.geometry, shared.size.get(), shared.read_only));
        if checked.is_err() || shared.is_nothing(&op, zeroes) {
            return inner.trackers.start_done(op.into_done(checked));
        }
        let (ticket, accepted) = inner.trackers.start(Command { op, bounce: None, attempts: 0, zeroes });
        if accepted {
            if inner.waiting.is_empty() && !inner.free.is_empty() {
                inner.place(ticket.slot, shared);
            } else {
                inner.waiting.push_back(ticket.slot);
            }
        }
        ticket
    }
}

impl Inner {
    /// Gives the operation in `tracker` to the device: there is a free command id.
    #[inline]
    fn place<T: Transport>(&mut self, tracker: u32, shared: &Shared<T>) {
        let Some(index) = self.free.pop() else {
            self.waiting.push_front(tracker);
            return;
        };
        let Some(command) = self.trackers.op(tracker) else {
            self.free.push(index);
            return;
        };
        command.attempts += 1;
        match build(command, usize::from(index), &self.pages, self.arena, shared) {
            Ok(mut entry) => {
                let slot = &mut self.slots[usize::from(index)];
                slot.tracker = tracker;
                slot.tick = self.tick;
                slot.running = true;
                slot.aborting = false;
                entry.cid = (index | slot.generation << INDEX_BITS).into();
                self.rings.push(&entry);
            }
            Err(err) => {
                self.free.push(index);
                self.trackers.finish(tracker, |command| command.op.into_done(Err(err)));
            }
        }
    }

    fn place_waiting<T: Transport>(&mut self, shared: &Shared<T>) {
        while !self.free.is_empty()
            && let Some(tracker) = self.waiting.pop_front()
        {
            self.place(tracker, shared);
        }
    }

    #[inline]
    fn reap<T: Transport>(&mut self, shared: &Shared<T>) -> usize {
        let mut count = 0;
        // As many as there can be: a controller that writes without end does not hold the reactor.
        while count < self.rings.entries as usize
            && let Some(done) = self.rings.pop()
        {
            count += 1;
            if !self.answered(&done, shared) && shared.controller.life() != self.life {
                break; // the device has failed: nothing more is acknowledged
            }
        }
        count
    }

    /// True when a command succeeded.
    #[inline]
    fn answered<T: Transport>(&mut self, done: &Completion, shared: &Shared<T>) -> bool {
        let cid = done.cid.get();
        let index = cid & INDEX_MASK;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            self.nonsense = Some("a completion with a command id that there is not");
            return false;
        };
        if !slot.running || slot.generation != cid >> INDEX_BITS {
            self.nonsense = Some("a completion of a command that is not at the device");
            return false;
        }
        if done.sq_id.get() != self.rings.qid {
            self.nonsense = Some("a completion of another queue's command");
            return false;
        }
        let (tracker, aborting) = (slot.tracker, slot.aborting);
        slot.running = false;
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        self.free.push(index);
        let status = done.status();
        if status.is_success() {
            self.progress = true;
            self.trackers.finish(tracker, |command| succeed(command, shared));
        } else {
            self.failed(tracker, status, aborting, shared);
        }
        status.is_success()
    }

    fn failed<T: Transport>(&mut self, tracker: u32, status: Status, aborting: bool, shared: &Shared<T>) {
        let Some(command) = self.trackers.op(tracker) else { return };
        // A flush that failed is not tried again: nobody knows what it has lost. One that we aborted did not fail.
        let was_aborted = aborting && status.code() == Status::ABORT_REQUESTED.code();
        let is_flush = matches!(command.op, IoOp::Flush);
        let again = command.attempts < MAX_ATTEMPTS && !status.do_not_retry() && (!is_flush || was_aborted);
        if again {
            shared.controller.counters.retried.fetch_add(1, Ordering::Relaxed);
            self.waiting.push_back(tracker);
            return;
        }
        let (at_bytes, len_bytes) = command.op.extent();
        let err = if is_flush {
            shared.controller.give_up(format!("flush of {}: {status}", shared.geometry.name))
        } else {
            DeviceError::Command { op: command.op.name(), at_bytes, len_bytes, status }
        };
        self.trackers.finish(tracker, |command| fail(command, err, shared));
    }

    fn at_device(&self) -> bool {
        self.free.len() < self.slots.len()
    }

    /// Looks at the clock now and then: commands that take too long, events.
    fn tick<T: Transport>(&mut self, shared: &Shared<T>) {
        let controller = &*shared.controller;
        self.polls_to_tick = controller.options.polls_per_tick;
        let now_ms = (controller.options.clock)();
        if now_ms.saturating_sub(self.last_tick_ms) < TICK_MS {
            return;
        }
        self.last_tick_ms = now_ms;
        self.tick = self.tick.wrapping_add(1);
        if self.at_device() {
            self.age(controller);
        }
        controller.tend(std::mem::take(&mut self.progress));
    }

    fn age<T: Transport>(&mut self, controller: &Controller<T>) {
        let (tick, qid) = (self.tick, self.rings.qid);
        let abort_ticks = (controller.options.io_timeout_ms / TICK_MS).clamp(2, 1 << 30) as u32;
        let mut oldest = 0;
        for (index, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| slot.running) {
            let age = tick.wrapping_sub(slot.tick);
            oldest = oldest.max(age);
            if age >= abort_ticks && !slot.aborting {
                slot.aborting = true;
                let cid = index as u16 | slot.generation << INDEX_BITS;
                controller.counters.aborts.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(device = controller.name(), qid, cid, "a command takes too long and is aborted");
                // Without a free admin slot the reset below is what is left.
                if let Ok(ticket) = controller.submit_admin(Submission::abort(qid, cid)) {
                    controller.admin().queue.abandon(ticket);
                }
            }
        }
        if oldest >= LOOK_TICKS && tick.wrapping_sub(self.looked_at_tick) >= LOOK_TICKS {
            self.looked_at_tick = tick;
            if let Err(reason) = controller.look() {
                return controller.begin_reset(self.life, &reason);
            }
        }
        if oldest >= abort_ticks + abort_ticks / 2 {
            let waited_ms = u64::from(oldest) * TICK_MS;
            controller.begin_reset(self.life, &ControllerError::Timeout { what: "a command", waited_ms });
        }
    }

    /// The controller is in another life than this queue. True when the owner should poll again.
    fn out_of_service<T: Transport>(&mut self, shared: &Shared<T>) -> bool {
        let life = shared.controller.life();
        match state_of(life) {
            DEAD => {
                self.fail_all(shared);
                self.life = life;
                return false;
            }
            RESETTING => shared.controller.recover(),
            _ => {
                debug_assert_eq!(state_of(life), LIVE);
                if let Err(reason) = self.reattach(life, shared) {
                    self.attach = Attach::No;
                    shared.controller.begin_reset(life, &reason);
                }
            }
        }
        // An idle queue need not keep its reactor awake for this; it goes on at its next operation.
        self.at_device() || !self.waiting.is_empty()
    }

    fn reattach<T: Transport>(&mut self, life: u32, shared: &Shared<T>) -> Result<(), ControllerError> {
        let controller = &*shared.controller;
        let now_ms = (controller.options.clock)();
        let (ticket, for_life) = match self.attach {
            Attach::No => {
                self.requeue(shared);
                self.rings.restart(controller.buffers());
                let (_, completions) = self.rings.addresses(controller.transport())?;
                let create = Submission::create_completion_queue(self.rings.qid, self.rings.entries, completions);
                self.attach = Attach::CompletionQueue(controller.submit_admin(create)?, life);
                self.attach_deadline_ms = now_ms + controller.options.admin_timeout_ms;
                return Ok(());
            }
            Attach::CompletionQueue(ticket, for_life) | Attach::SubmissionQueue(ticket, for_life) => (ticket, for_life),
        };
        if for_life != life {
            self.attach = Attach::No; // reset again meanwhile
            return Ok(());
        }
        let what = "create IO queue after a reset";
        match controller.poll_admin(ticket)? {
            None if now_ms > self.attach_deadline_ms => {
                return Err(ControllerError::Timeout { what, waited_ms: controller.options.admin_timeout_ms });
            }
            None => {}
            Some(done) if !done.status().is_success() => {
                return Err(ControllerError::Command { what, status: done.status() });
            }
            Some(_) if matches!(self.attach, Attach::CompletionQueue(..)) => {
                let (submissions, _) = self.rings.addresses(controller.transport())?;
                let create = Submission::create_submission_queue(self.rings.qid, self.rings.entries, submissions);
                self.attach = Attach::SubmissionQueue(controller.submit_admin(create)?, life);
            }
            Some(_) => {
                self.attach = Attach::No;
                self.life = life;
            }
        }
        Ok(())
    }

    /// The controller was reset, so it has none of our commands any more: each is given again, or failed.
    fn requeue<T: Transport>(&mut self, shared: &Shared<T>) {
        let mut running: Vec<_> = self.slots.iter().filter(|slot| slot.running).map(|slot| slot.tracker).collect();
        self.release_slots();
        running.retain(|tracker| {
            let Some(command) = self.trackers.op(*tracker) else { return false };
            if command.attempts < MAX_ATTEMPTS {
                return true;
            }
            let err = match command.op {
                IoOp::Flush => shared.controller.give_up(format!("flush of {}: no answer", shared.geometry.name)),
                _ => command.op.error(libc::ETIMEDOUT),
            };
            self.trackers.finish(*tracker, |command| fail(command, err, shared));
            false
        });
        shared.controller.counters.retried.fetch_add(running.len() as u64, Ordering::Relaxed);
        for tracker in running.into_iter().rev() {
            self.waiting.push_front(tracker);
        }
    }

    fn release_slots(&mut self) {
        self.free.clear();
        for (index, slot) in self.slots.iter_mut().enumerate().rev() {
            slot.generation = (slot.generation + u16::from(slot.running)) & GENERATION_MASK;
            slot.running = false;
            self.free.push(index as u16);
        }
    }

    /// The controller is dead. What it may still write is kept from everybody.
    fn fail_all<T: Transport>(&mut self, shared: &Shared<T>) {
        let controller = &*shared.controller;
        let quiet = controller.is_quiet();
        let err = controller.health.check().err().unwrap_or_else(|| controller.device_error(ControllerError::Gone));
        let lent: Vec<u32> = self.slots.iter().filter(|slot| slot.running).map(|slot| slot.tracker).collect();
        if !quiet {
            controller.keep(self.rings.memory());
            self.pages.memory().for_each(|pages| controller.keep(pages));
        }
        for tracker in lent {
            self.trackers.finish(tracker, |command| {
                if quiet {
                    fail(command, err.clone(), shared)
                } else {
                    controller.keep((command.op, command.bounce));
                    (Err(err.clone()), None)
                }
            });
        }
        self.release_slots();
        self.waiting.clear();
        let rest: Vec<u32> = self.trackers.running().collect();
        for tracker in rest {
            self.trackers.finish(tracker, |command| fail(command, err.clone(), shared));
        }
    }
}

/// The entry for `command`, with its data where command id `index` has its page.
#[inline]
fn build<T: Transport>(
    command: &mut Command,
    index: usize,
    pages: &CommandPages,
    arena: &Arena,
    shared: &Shared<T>,
) -> Result<Submission, DeviceError> {
    let (nsid, shift) = (shared.namespace.nsid, shared.namespace.lba_shift);
    let zeroes = command.zeroes;
    match &mut command.op {
        IoOp::Read { at_bytes, buf } => {
            let len = buf.len();
            let address = match shared.address_of(arena, buf) {
                Some(address) => address,
                None => shared.bounce(arena, command.bounce.insert(DmaBuf::new(len)))?,
            };
            let entry = Submission::read(nsid, *at_bytes >> shift, (len >> shift) as u32);
            Ok(pages.point(entry, index, address, len, shared.sgl))
        }
        IoOp::Write { at_bytes, data, fua } => {
            let len = data.len();
            let address = match shared.address_of(arena, data) {
                Some(address) => address,
                None => {
                    let bounce = command.bounce.insert(DmaBuf::new(len));
                    bounce.copy_from_slice(data);
                    shared.bounce(arena, bounce)?
                }
            };
            let fua = *fua && shared.geometry.volatile_write_cache;
            let entry = Submission::write(nsid, *at_bytes >> shift, (len >> shift) as u32, fua);
            Ok(pages.point(entry, index, address, len, shared.sgl))
        }
        IoOp::Flush => {
            if command.attempts == 1 {
                shared.controller.flushing.fetch_add(1, Ordering::AcqRel);
                shared.controller.unflushed.store(false, Ordering::Release);
            }
            Ok(Submission::flush(nsid))
        }
        IoOp::Discard { at_bytes, len_bytes } => {
            let (lba, lbas) = (*at_bytes >> shift, *len_bytes >> shift);
            if zeroes {
                return Ok(Submission::write_zeroes(nsid, lba, lbas as u32, false));
            }
            let ranges = (0..lbas)
                .step_by(MAX_RANGE_LBAS as usize)
                .map(|done| (lba + done, (lbas - done).min(MAX_RANGE_LBAS) as u32));
            let (address, count) = pages.put_ranges(index, ranges);
            Ok(Submission::deallocate(nsid, count).with_prp(address, 0))
        }
    }
}

#[inline]
fn succeed<T: Transport>(mut command: Command, shared: &Shared<T>) -> IoDone {
    match &mut command.op {
        IoOp::Read { buf, .. } => {
            if let Some(bounce) = &command.bounce {
                buf.copy_from_slice(bounce);
            }
        }
        IoOp::Write { fua: false, .. } => {
            let unflushed = &shared.controller.unflushed;
            if shared.geometry.volatile_write_cache && !unflushed.load(Ordering::Relaxed) {
                unflushed.store(true, Ordering::Release);
            }
        }
        IoOp::Flush => {
            shared.controller.flushing.fetch_sub(1, Ordering::AcqRel);
        }
        _ => {}
    }
    command.op.into_done(Ok(()))
}

fn fail<T: Transport>(command: Command, err: DeviceError, shared: &Shared<T>) -> IoDone {
    if matches!(command.op, IoOp::Flush) && command.attempts > 0 {
        shared.controller.flushing.fetch_sub(1, Ordering::AcqRel);
    }
    command.op.into_done(Err(err))
}

impl<T: Transport> Queue for NvmeQueue<T> {
    fn geometry(&self) -> &Geometry {
        &self.shared.geometry
    }

    fn look_at_size(&self) -> Result<u64, DeviceError> {
        let (controller, known) = (&self.shared.controller, &self.shared.namespace);
        let now = controller.namespace(known.nsid).map_err(|err| controller.device_error(err))?;
        if now.lba_shift == known.lba_shift {
            self.shared.size.grow(now.size_bytes());
        }
        Ok(now.size_bytes())
    }

    fn submit(&self, op: IoOp) -> Ticket {
        self.take(op, false)
    }

    fn poll_done(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<IoDone> {
        let (poll, old_waker) = self.inner.borrow_mut().trackers.poll_done(ticket, cx);
        drop(old_waker); // outside of the borrow
        poll
    }

    fn forget(&self, ticket: Ticket) {
        let old_waker = self.inner.borrow_mut().trackers.forget(ticket);
        drop(old_waker); // outside of the borrow
    }

    fn process_completions(&self) -> usize {
        let mut borrowed = self.inner.borrow_mut();
        let inner = &mut *borrowed;
        let shared = &*self.shared;
        let controller = &*shared.controller;
        let mut events;
        if controller.life() == inner.life {
            let transport = controller.transport();
            if !inner.waiting.is_empty() {
                inner.place_waiting(shared);
            }
            let rung = inner.rings.ring_tail(transport);
            transport.turn(self.qid);
            events = inner.reap(shared);
            let rung_head = inner.rings.ring_head(transport);
            inner.doorbells += u64::from(rung) + u64::from(rung_head);
            inner.polls_to_tick = inner.polls_to_tick.saturating_sub(1);
            if inner.polls_to_tick == 0 {
                inner.tick(shared);
            }
            if let Some(what) = inner.nonsense.take() {
                controller.count_nonsense(1);
                controller.begin_reset(inner.life, &ControllerError::Nonsense { what });
            }
            events = events.max(usize::from(inner.at_device() || !inner.waiting.is_empty()));
        } else {
            events = usize::from(inner.out_of_service(shared));
        }
        drop(borrowed);
        wake_all(&self.wakers, |empty| self.inner.borrow_mut().trackers.take_wakers(empty));
        events
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }

    fn in_flight(&self) -> usize {
        self.inner.borrow().trackers.in_flight()
    }
}

impl<T: Transport> Drop for NvmeQueue<T> {
    /// Waits for what is at the device, and takes the queue pair back. Memory goes only where the device cannot follow.
    fn drop(&mut self) {
        let controller = self.shared.controller.clone();
        for _ in 0..MAX_DROP_POLLS {
            if !self.inner.borrow().at_device() && self.inner.borrow().waiting.is_empty() {
                break;
            }
            self.process_completions();
            std::thread::yield_now();
        }
        let inner = self.inner.get_mut();
        controller.counters.doorbells.fetch_add(inner.doorbells, Ordering::Relaxed);
        if state_of(controller.life()) == DEAD {
            inner.fail_all(&self.shared);
            return;
        }
        // In another life the controller does not know the queue; deleting it fails, and is not needed.
        let known = controller.life() == inner.life;
        let delete = |what, command| controller.execute(what, command, false);
        let deleted = !known
            || delete("delete IO submission queue", Submission::delete_submission_queue(self.qid))
                .and_then(|_| delete("delete IO completion queue", Submission::delete_completion_queue(self.qid)))
                .is_ok();
        if deleted && (known || !inner.at_device()) {
            controller.give_queue_id(self.qid);
            return;
        }
        tracing::warn!(device = controller.name(), qid = self.qid, "a queue could not be deleted: its memory is kept");
        controller.keep(inner.rings.memory());
        inner.pages.memory().for_each(|pages| controller.keep(pages));
        let lent: Vec<u32> = inner.slots.iter().filter(|slot| slot.running).map(|slot| slot.tracker).collect();
        for tracker in lent {
            inner.trackers.finish(tracker, |command| {
                controller.keep((command.op, command.bounce));
                (Err(controller.device_error(ControllerError::Gone)), None)
            });
        }
    }
}
